//! The server inside this process, for a store that no other process has open.
//!
//! The only file of the client, beside the commands that work on a store itself, that knows the
//! server's crate. Without the feature `server` it is replaced by `embedded_absent.rs`.

use std::{path::PathBuf, sync::Arc};

use tonic::transport::Channel;
use towpath_server::{OpenError, Server, StoreUrl, SystemClock};

use crate::failure::Failure;

pub(crate) use towpath_server::{check_import_run, check_start_run, socket_in, store_usages};

/// What this program was built with.
pub(crate) const FEATURES: &[&str] = &[
    "server",
    #[cfg(feature = "fjall")]
    "fjall",
    #[cfg(feature = "otlp")]
    "otlp",
];

/// A server of this process.
#[derive(Clone, Debug)]
pub(crate) struct Embedded(Server);

impl Embedded {
    /// Opens the store at `url`.
    pub(crate) async fn open(url: &str) -> Result<Self, Failure> {
        Ok(Self(Server::open(url, Arc::new(SystemClock)).await?))
    }

    /// A client of it, over a pipe.
    pub(crate) fn connect(&self) -> Channel {
        self.0.connect()
    }

    /// The store's folder.
    pub(crate) fn folder(&self) -> PathBuf {
        self.0.folder()
    }

    /// Lets the other programs of this machine reach it.
    pub(crate) fn listen(&self) {
        // Without it other processes wait until this one has ended.
        if let Err(error) = self.0.listen_locally() {
            tracing::warn!(%error, "failed to listen on the store's socket: other programs cannot connect");
        }
    }

    /// Waits until the store takes nothing any more, because a commit failed.
    pub(crate) async fn stopped(&self) {
        self.0.stopped().cancelled().await;
    }

    /// Ends it, and keeps what makes the next start quick.
    pub(crate) async fn close(self) {
        self.0.close().await;
    }
}

/// The folder that the URL of a store names. `None`: the store has none of its own, or it is the
/// URL of something else.
pub(crate) fn store_folder(url: &str) -> Option<PathBuf> {
    StoreUrl::parse(url).ok()?.lasting_directory()
}

/// Exports the spans of the server, too.
#[cfg(feature = "otlp")]
pub(crate) fn switch_on_telemetry() {
    towpath_server::telemetry::switch_on();
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(deeper) = cause {
            let said = deeper.to_string();
            // Some errors repeat their cause in their own text.
            if !message.contains(&said) {
                message = format!("{message}: {said}");
            }
            cause = deeper.source();
        }
        Self::known(error.code(), message)
    }
}
