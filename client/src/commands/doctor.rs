//! Being built.
use super::{Desk, Finished};
/// Being built.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {}
pub(crate) async fn doctor(_: &Desk, _: DoctorArgs) -> Finished {
    Ok(0)
}
