//! The log as it grows, for those who follow it.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use towpath_engine::{aggregate::stream_of, ids::RunId, run::Run};
use towpath_storage::{Position, Record};

use crate::{command_error::CommandError, followers::Follower, open_log::OpenLog};

/// Records read from the store at a time.
const PAGE: usize = 512;
/// Payload in one group. One message for each record would cost more than the records; one for a
/// page could be larger than clients take.
const GROUP_BYTES: usize = 256 * 1024;

/// Reads the log for followers.
#[derive(Clone, Debug)]
pub(crate) struct LogReader {
    log: Arc<OpenLog>,
    /// Cancelled when the server closes.
    stop: CancellationToken,
}

impl LogReader {
    pub(crate) fn new(log: Arc<OpenLog>, stop: CancellationToken) -> Self {
        Self { log, stop }
    }

    /// Sends every record after `after`, of `run` or of all streams, in groups; and, to a client that
    /// asks to `follow`, those that are recorded later. `after` is a version of the run's stream, or
    /// a position of the log. Each reader reads the log from its own position: no reader waits for
    /// the slowest.
    pub(crate) async fn read(
        &self,
        run: Option<RunId>,
        mut after: u64,
        follow: bool,
        send: mpsc::Sender<Result<Vec<Record>, CommandError>>,
    ) {
        let store = &self.log.store;
        let stream = run.as_ref().map(stream_of::<Run>);
        let mut tail = match &stream {
            Some(stream) => Tail::OfRun(self.log.followers.follow(stream)),
            None => Tail::OfLog(store.watch()),
        };
        loop {
            // Seen before reading: what is appended in between wakes the wait below.
            tail.seen();
            loop {
                let page = match &stream {
                    Some(stream) => store.read(stream, after, PAGE).await,
                    None => store.read_all(after, PAGE).await,
                };
                let page = match page {
                    Ok(page) => page,
                    Err(error) => {
                        drop(send.send(Err(error.into())).await);
                        return;
                    }
                };
                let Some(last) = page.last() else { break };
                after = if stream.is_some() { last.version } else { last.position };
                for group in groups(page) {
                    // Waits for room: a slow client holds a few groups in memory and no more.
                    if send.send(Ok(group)).await.is_err() {
                        return;
                    }
                }
            }
            if !follow {
                return;
            }
            tokio::select! {
                () = send.closed() => return,
                () = self.stop.cancelled() => return,
                // The tail of a store that stopped never moves again: the follower gets the cause.
                () = self.log.stopped.cancelled() => {
                    drop(send.send(Err(self.log.why_stopped().await)).await);
                    return;
                }
                more = tail.wait() => if !more { return },
            }
        }
    }
}

/// What a follower waits for: of one run, it is not woken by any other.
enum Tail {
    OfRun(Follower),
    OfLog(watch::Receiver<Position>),
}

impl Tail {
    fn seen(&mut self) {
        match self {
            Self::OfRun(follower) => follower.seen(),
            Self::OfLog(tail) => drop(tail.borrow_and_update()),
        }
    }

    /// Waits until there is more; says whether there can be.
    async fn wait(&mut self) -> bool {
        match self {
            Self::OfRun(follower) => {
                follower.wait().await;
                true
            }
            Self::OfLog(tail) => tail.changed().await.is_ok(),
        }
    }
}

/// `page` in groups: each holds at most [`GROUP_BYTES`] of payload, or one record.
fn groups(page: Vec<Record>) -> Vec<Vec<Record>> {
    let (mut groups, mut bytes) = (vec![Vec::new()], 0);
    for record in page {
        bytes += record.bytes.len();
        if bytes > GROUP_BYTES {
            groups.push(Vec::new());
            bytes = record.bytes.len();
        }
        if let Some(group) = groups.last_mut() {
            group.push(record);
        }
    }
    // The first is empty if the first record alone is larger than a group.
    groups.retain(|group| !group.is_empty());
    groups
}
