//! Being built.
use super::{Desk, Finished};
/// Being built.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {}
pub(crate) fn init(_: &Desk, _: InitArgs) -> Finished {
    Ok(0)
}
