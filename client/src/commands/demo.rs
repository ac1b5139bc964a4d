//! Being built.
use super::{Desk, Finished};
/// Being built.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {}
pub(crate) async fn demo(_: &Desk, _: DemoArgs) -> Finished {
    Ok(0)
}
