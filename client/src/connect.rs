//! Reaching a server: the one that has the store open already, or one of our own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::transport::Channel;
use towpath_proto::v1::{
    self, gates_client::GatesClient, log_client::LogClient, runs_client::RunsClient,
};
use towpath_server::{House, SystemClock, dial_socket};

use crate::failure::Failure;

/// The folder of the default store.
const STORE_FOLDER: &str = ".towpath";
/// Largest message that is read.
const MESSAGE_BYTES_MAX: usize = 18 * 1024 * 1024;
/// How often a store is tried that somebody is just opening or closing.
const TRY_FOR: Duration = Duration::from_secs(3);
/// How long an owner may take to say that it is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const TRY_EVERY: Duration = Duration::from_millis(50);

/// A server that answers.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    channel: Channel,
    /// The server itself, if it lives in this process.
    house: Option<House>,
    folder: PathBuf,
}

/// Where the store is: as asked, or `.towpath` here or in the nearest folder above that has one.
pub(crate) fn store_url(asked: Option<&str>) -> String {
    if let Some(asked) = asked {
        return asked.to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    let found = here.ancestors().map(|folder| folder.join(STORE_FOLDER)).find(|at| at.is_dir());
    format!("sled:{}", found.unwrap_or_else(|| here.join(STORE_FOLDER)).display())
}

/// The folder that a URL names. `None`: the store has none of its own.
pub(crate) fn store_folder(url: &str) -> Option<PathBuf> {
    match url.split_once(':') {
        Some(("memory", _)) => None,
        Some(("sled" | "fjall", path)) => Some(path.into()),
        Some(_) | None => Some(url.into()),
    }
}

impl Server {
    /// The server of the store at `url`.
    pub(crate) async fn reach(url: &str) -> Result<Self, Failure> {
        let mut owned = None;
        let until = Instant::now() + TRY_FOR;
        while owned.is_none() || Instant::now() < until {
            match House::open(url, Arc::new(SystemClock)).await {
                Ok(house) => {
                    let (channel, folder) = (house.connect(), house.folder());
                    return Ok(Self { channel, house: Some(house), folder });
                }
                Err(error) => {
                    let failure = Failure::from(error);
                    if !failure.is_owned() {
                        return Err(failure);
                    }
                    owned = Some(failure);
                }
            }
            let folder = store_folder(url).unwrap_or_default();
            if let Ok(channel) = dial_socket(folder.join("tow.sock")).await {
                // Whoever owns the store may be stopped: it takes the call and says nothing.
                let mut log = LogClient::new(channel.clone());
                let answer = log.describe(v1::DescribeRequest {});
                if let Ok(Ok(_)) = tokio::time::timeout(ANSWER_WITHIN, answer).await {
                    return Ok(Self { channel, house: None, folder });
                }
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
        Err(owned.unwrap_or_else(|| Failure::new("UNREACHABLE", "no server answers", "Try again.")))
    }

    /// As [`Server::reach`], but never makes a store where there is none.
    pub(crate) async fn reach_existing(url: &str) -> Result<Self, Failure> {
        match store_folder(url) {
            Some(folder) if !folder.exists() => Err(Failure::new(
                "RUN_UNKNOWN",
                format!("there is no store at `{}`", folder.display()),
                "Begin with `tow run`, or name a store with `--store`.",
            )),
            Some(_) | None => Self::reach(url).await,
        }
    }

    pub(crate) fn runs(&self) -> RunsClient<Channel> {
        RunsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn gates(&self) -> GatesClient<Channel> {
        GatesClient::new(self.channel.clone())
    }

    pub(crate) fn log(&self) -> LogClient<Channel> {
        LogClient::new(self.channel.clone())
    }

    /// The connection, for a worker's session.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Lets the other programs of this machine reach a server of our own, for as long as we stay.
    pub(crate) fn listen(&self) {
        if let Some(house) = &self.house {
            // Without it the others wait until we have gone, and no harm is done.
            if let Err(error) = house.listen_locally() {
                tracing::warn!(%error, "other programs cannot reach this one");
            }
        }
    }

    /// Whether the server lives in this process.
    pub(crate) fn is_ours(&self) -> bool {
        self.house.is_some()
    }

    /// The store's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends a server of our own, and keeps what makes the next start quick.
    pub(crate) async fn close(self) {
        if let Some(house) = self.house {
            house.close().await;
        }
    }
}
