//! `towpath.v1.LogService`.

use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status};
use towpath_engine::{
    aggregate::stream_of,
    ids::{Digest, RunId},
    run::Run,
};
use towpath_proto::{
    time::duration,
    v1::{self, log_service_server::LogService},
};
use towpath_storage::{Position, Record, StoreError};

use super::{STREAM_QUEUE, Streamed, channel};
use crate::{
    Server,
    auth::{self, roles::Role},
    check,
    followers::Follower,
    status,
};

/// Records read from the store at a time.
const PAGE: usize = 512;
/// Payload in one message. One message for each record would cost more than the records; one for a
/// page could be larger than clients take.
const GROUP_BYTES: usize = 256 * 1024;

#[tonic::async_trait]
impl LogService for Server {
    type FollowStream = Streamed<v1::FollowResponse>;
    type CheckStream = Streamed<v1::CheckResponse>;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let v1::FollowRequest { run, after, follow } = request.into_inner();
        let run = match run.as_str() {
            "" => None,
            asked => Some(self.find(asked).map_err(status::of)?),
        };
        let (send, stream) = channel(STREAM_QUEUE);
        let server = self.clone();
        tokio::spawn(async move { server.follow_log(run, after, follow, send).await });
        Ok(Response::new(stream))
    }

    async fn check(
        &self,
        _: Request<v1::CheckRequest>,
    ) -> Result<Response<Self::CheckStream>, Status> {
        let (send, stream) = channel(STREAM_QUEUE);
        let server = self.clone();
        tokio::spawn(async move { check::check(&server, send).await });
        Ok(Response::new(stream))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        // Where the store lies, and with what it is reached, is for those who look after it.
        // Everybody else learns only its kind.
        let url = self.url();
        let store = match auth::needs(&request, &[Role::Auditor, Role::Admin], "the store") {
            Ok(()) => url.to_string(),
            Err(_) => url.scheme().to_owned(),
        };
        Ok(Response::new(v1::DescribeResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            position: self.runs().log.position(),
            store,
            clock_ahead: Some(duration(self.runs().log.clock_ahead_ms())),
        }))
    }
}

impl Server {
    /// Sends every record after `after`, and goes on as the log grows. Each reader reads the log
    /// from its own position: nobody waits for the slowest.
    async fn follow_log(
        &self,
        run: Option<RunId>,
        mut after: u64,
        follow: bool,
        send: mpsc::Sender<Result<v1::FollowResponse, Status>>,
    ) {
        let store = &self.runs().log.store;
        let mut tail = match &run {
            Some(run) => Tail::OfRun(self.runs().log.followers.follow(&stream_of::<Run>(run))),
            None => Tail::OfLog(store.watch()),
        };
        loop {
            // Seen before reading: what is appended in between wakes the wait below.
            tail.seen();
            loop {
                let page = match &run {
                    Some(run) => store.read(&stream_of::<Run>(run), after, PAGE).await,
                    None => store.read_all(after, PAGE).await,
                };
                let page = match page {
                    Ok(page) => page,
                    Err(error) => {
                        drop(send.send(Err(status::of(error.into()))).await);
                        return;
                    }
                };
                let Some(last) = page.last() else { break };
                after = if run.is_some() { last.version } else { last.position };
                for records in groups(page) {
                    if send.send(Ok(v1::FollowResponse { records })).await.is_err() {
                        return;
                    }
                }
            }
            if !follow {
                return;
            }
            tokio::select! {
                () = send.closed() => return,
                () = self.stopping().cancelled() => return,
                // The tail of a store that stopped never moves again: whoever waits for it is told.
                () = self.stopped().cancelled() => {
                    drop(send.send(Err(self.why_stopped().await)).await);
                    return;
                }
                more = tail.wait() => if !more { return },
            }
        }
    }
}

impl Server {
    /// Why the store takes nothing any more.
    pub(super) async fn why_stopped(&self) -> Status {
        // A store that stopped answers every read with the cause.
        let asked = self.runs().log.store.read_all(0, 1).await;
        status::of(asked.err().unwrap_or(StoreError::Closed).into())
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

/// `page` in messages: each holds at most [`GROUP_BYTES`] of payload, or one record.
fn groups(page: Vec<Record>) -> Vec<Vec<v1::Record>> {
    let (mut groups, mut bytes) = (vec![Vec::new()], 0);
    for record in page {
        bytes += record.bytes.len();
        if bytes > GROUP_BYTES {
            groups.push(Vec::new());
            bytes = record.bytes.len();
        }
        if let Some(group) = groups.last_mut() {
            group.push(message(record));
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}

fn message(record: Record) -> v1::Record {
    v1::Record {
        position: record.position,
        stream: record.stream.to_string(),
        version: record.version,
        kind: record.kind.to_string(),
        payload: record.bytes,
        log_hash: Digest(record.hash).to_string(),
    }
}
