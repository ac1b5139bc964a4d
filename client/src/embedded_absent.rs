//! In place of `embedded.rs`, in a program that is built without the feature `server`: there is none.

use std::path::{Path, PathBuf};

use tonic::transport::Channel;
use towpath_engine::code::ErrorCode;
use towpath_proto::v1;

use crate::failure::Failure;

/// What this program was built with.
pub(crate) const FEATURES: &[&str] = &[
    #[cfg(feature = "otlp")]
    "otlp",
];

/// A server of this process: never.
#[derive(Clone, Debug)]
pub(crate) enum Embedded {}

impl Embedded {
    /// Refuses the store at `url`.
    pub(crate) async fn open(_url: &str) -> Result<Self, Failure> {
        Err(absent())
    }

    /// A client of it.
    pub(crate) fn connect(&self) -> Channel {
        match *self {}
    }

    /// The store's folder.
    pub(crate) fn folder(&self) -> PathBuf {
        match *self {}
    }

    /// Lets the other programs of this machine reach it.
    pub(crate) fn listen(&self) {
        match *self {}
    }

    /// Waits until the store takes nothing any more.
    pub(crate) async fn stopped(&self) {
        match *self {}
    }

    /// Ends it.
    pub(crate) async fn close(self) {
        match self {}
    }
}

fn absent() -> Failure {
    let message = "this `tow` is built without a server and cannot open a store";
    Failure::known(ErrorCode::FeatureAbsent, message.to_owned())
}

/// Refuses: there is no server that could check a run before it has a store.
pub(crate) async fn check_start_run(_request: v1::StartRunRequest) -> Result<(), Failure> {
    Err(absent())
}

/// Refuses, as [`check_start_run`].
pub(crate) async fn check_import_run(_request: v1::ImportRunRequest) -> Result<(), Failure> {
    Err(absent())
}

/// The folder of a store: this program knows no form of URL.
pub(crate) fn store_folder(_url: &str) -> Option<PathBuf> {
    None
}

/// Where the owner of a store listens.
pub(crate) fn socket_in(folder: &Path) -> PathBuf {
    folder.to_owned()
}

/// How the URL of a store is written.
pub(crate) fn store_usages(_durable_only: bool) -> String {
    "not in this build, name a server".to_owned()
}

/// There are no spans of a server.
#[cfg(feature = "otlp")]
pub(crate) fn switch_on_telemetry() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_is_refused_by_name() {
        let refused = Embedded::open("sled:/tmp/x").await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::FeatureAbsent));
    }
}
