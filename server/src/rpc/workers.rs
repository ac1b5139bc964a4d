//! `towpath.v1.Workers`: one session for each worker.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use towpath_engine::{
    decide::{Command, Ended, ReportJob},
    ids::{Actor, WorkerName},
    refusal::Refusal,
};
use towpath_proto::v1::{self, worker_message::Message, workers_server::Workers};

use towpath_storage::{Full, StoreError};

use super::{STREAM_QUEUE, Streamed, channel};
use crate::{
    House, auth,
    figures::Figures,
    limits::{Limit, PART_BYTES_MAX},
    outputs::Key,
    runs::CommandError,
    sessions::{Outgoing, SESSION_QUEUE},
    status,
    wire::{self, Reported},
};

/// Shortest time between two looks at what wants a worker.
const DEMAND_EVERY: Duration = Duration::from_millis(200);
/// Longest time between two looks.
const DEMAND_LOOK_EVERY: Duration = Duration::from_secs(2);

#[tonic::async_trait]
impl Workers for House {
    type SessionStream = Streamed<v1::ServerMessage>;
    type WatchDemandStream = Streamed<v1::Demand>;

    async fn session(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (send, receive) = mpsc::channel(SESSION_QUEUE);
        let house = self.clone();
        let (_, extensions, mut incoming) = request.into_parts();
        tokio::spawn(async move {
            let hello = match incoming.next().await {
                Some(Ok(v1::WorkerMessage { message: Some(Message::Hello(hello)) })) => hello,
                first => {
                    let unread = first.and_then(Result::err).and_then(|why| status::misread(&why));
                    let what = "a session begins with a hello".to_owned();
                    let error = unread.unwrap_or(CommandError::MessageInvalid { what });
                    drop(send.send(Err(status::of(error))).await);
                    return;
                }
            };
            let named = auth::is_worker(&extensions, &hello.worker);
            if let Err(error) = named {
                drop(send.send(Err(status::of(error))).await);
                return;
            }
            if let Err(error) = house.serve_worker(hello, incoming, send.clone()).await {
                drop(send.send(Err(status::of(error))).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersReply>, Status> {
        Ok(Response::new(v1::ListWorkersReply { workers: self.dispatch().workers() }))
    }

    async fn drain_worker(
        &self,
        request: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::Worker>, Status> {
        let v1::DrainWorkerRequest { name, drain } = request.into_inner();
        self.dispatch().drain_worker(&name, drain).map(Response::new).map_err(status::of)
    }

    async fn watch_demand(
        &self,
        request: Request<v1::WatchDemandRequest>,
    ) -> Result<Response<Self::WatchDemandStream>, Status> {
        let (send, stream) = channel(STREAM_QUEUE);
        let (house, asked) = (self.clone(), request.into_inner());
        let demand = move |figures: &Figures| figures.demand(&asked);
        tokio::spawn(async move { house.tell(demand, send).await });
        Ok(Response::new(stream))
    }
}

impl House {
    /// Tells what the figures mean, and again whenever that has changed.
    pub(super) async fn tell<T: Clone + PartialEq>(
        &self,
        meaning: impl Fn(&Figures) -> T,
        send: mpsc::Sender<Result<T, Status>>,
    ) {
        let mut tail = self.runs().store.watch();
        let mut told = None;
        loop {
            // Seen before reading: what is recorded in between wakes the wait below.
            tail.borrow_and_update();
            let figures = self.figures().await.map_err(status::of);
            match figures.map(|figures| meaning(&figures)) {
                Ok(meant) if told.as_ref() == Some(&meant) => {}
                Ok(meant) => {
                    told = Some(meant.clone());
                    if send.send(Ok(meant)).await.is_err() {
                        return;
                    }
                }
                Err(status) => {
                    drop(send.send(Err(status)).await);
                    return;
                }
            }
            let changed = async {
                tokio::time::sleep(DEMAND_EVERY).await;
                // A try in back-off is due without an event.
                drop(tokio::time::timeout(DEMAND_LOOK_EVERY, tail.changed()).await);
            };
            tokio::select! {
                () = send.closed() => return,
                () = self.stopping().cancelled() => return,
                () = changed => {}
            }
        }
    }

    async fn serve_worker(
        &self,
        hello: v1::Hello,
        mut incoming: Streaming<v1::WorkerMessage>,
        send: mpsc::Sender<Outgoing>,
    ) -> Result<(), CommandError> {
        let (session, held) = self.dispatch().open(hello, send.clone()).await?;
        let lengths =
            held.iter().map(|key| (key.clone(), self.outputs().length(key))).collect::<Vec<_>>();
        let welcome = wire::welcome(lengths.into_iter(), self.dispatch().lease_ms());
        drop(send.try_send(Ok(welcome)));
        self.dispatch().begin(session, &held).await;
        let served = loop {
            let message = tokio::select! {
                () = self.stopping().cancelled() => break Ok(()),
                () = send.closed() => break Ok(()),
                message = incoming.next() => message,
            };
            let message = match message {
                Some(Ok(v1::WorkerMessage { message })) => message,
                // A worker that is gone is told nothing.
                Some(Err(gone)) => break status::misread(&gone).map_or(Ok(()), Err),
                None => break Ok(()),
            };
            if !self.dispatch().hear(session) {
                // It was silent for too long: it must say anew what it holds.
                break Ok(());
            }
            if matches!(message, Some(Message::Leave(_))) {
                break self.dispatch().leave(session).await;
            }
            if let Err(error) = self.worker_says(session, message, &send).await {
                break Err(error);
            }
        };
        self.dispatch().close(session);
        served
    }

    async fn worker_says(
        &self,
        session: u64,
        message: Option<Message>,
        send: &mpsc::Sender<Outgoing>,
    ) -> Result<(), CommandError> {
        match message {
            Some(Message::Output(v1::Output { of, offset, content })) => {
                fits(&content)?;
                let key = self.own(session, of)?;
                self.outputs().write(&key, offset, &content).map_err(disk)
            }
            Some(Message::Artifact(v1::ArtifactPart { of, path, content, offset })) => {
                fits(&content)?;
                let key = self.own(session, of)?;
                self.outputs().write_artifact(&key, &path, offset, &content).map_err(disk)
            }
            Some(Message::Report(report)) => self.take_report(session, report, send).await,
            Some(Message::Drain(v1::Drain {})) => {
                self.dispatch().drain(session);
                Ok(())
            }
            Some(Message::Beat(v1::Beat {}) | Message::Leave(v1::Leave {})) | None => Ok(()),
            Some(Message::Hello(_)) => {
                Err(CommandError::MessageInvalid { what: "a second hello".to_owned() })
            }
        }
    }

    /// The attempt that a message is about, which must be one that this session was given.
    fn own(&self, session: u64, of: Option<v1::Holding>) -> Result<Key, CommandError> {
        let missing = || CommandError::MessageInvalid { what: "no attempt named".to_owned() };
        let key = wire::key(of.ok_or_else(missing)?);
        if self.dispatch().holds(session, &key) {
            return Ok(key);
        }
        let worker = self.dispatch().worker(session).unwrap_or_else(|| "".into());
        Err(Refusal::AttemptStale { job: key.job, attempt: key.attempt, worker }.into())
    }

    async fn take_report(
        &self,
        session: u64,
        report: v1::Report,
        send: &mpsc::Sender<Outgoing>,
    ) -> Result<(), CommandError> {
        let v1::Report { of, ran_ms, ended, output_bytes } = report;
        let key = self.own(session, of)?;
        let Some(worker) = self.dispatch().worker(session) else { return Ok(()) };
        let (house, send) = (self.clone(), send.clone());
        let reported = wire::reported(ended)?;
        let arrived = self.outputs().length(&key);
        if output_bytes > arrived {
            let what = "a report of more output than has arrived".to_owned();
            return Err(CommandError::MessageInvalid { what });
        }
        // Beside the session: the disk of one job does not hold up the messages of another.
        let finished = async move {
            let answer =
                match house.record((session, worker), &key, ran_ms, reported, arrived).await {
                    // A report of what no longer counts is answered like any other: forget it.
                    Ok(()) | Err(CommandError::Refused(_)) => Ok(wire::recorded(&key)),
                    Err(error) => Err(status::of(error)),
                };
            drop(send.send(answer).await);
        };
        tokio::spawn(finished);
        Ok(())
    }

    /// Keeps what the attempt left, then records how it ended; the slot that is free now is used
    /// in the same append.
    async fn record(
        &self,
        (session, worker): (u64, WorkerName),
        key: &Key,
        ran_ms: u64,
        reported: Reported,
        arrived: u64,
    ) -> Result<(), CommandError> {
        let ended = match reported {
            Reported::Ended(ended) => ended,
            Reported::Lost(reason) => {
                self.dispatch().free_slot(session, key);
                return self.dispatch().lose(key, &reason).await;
            }
        };
        let log = if arrived == 0 { None } else { self.blocking(key, Self::keep_output).await? };
        if let Ended::Succeeded { artifacts, .. } = &ended {
            for artifact in artifacts.clone() {
                self.blocking(key, move |house, key| house.keep_file(key, &artifact)).await?;
            }
        }
        let paths: Vec<String> = match &ended {
            Ended::Succeeded { artifacts, .. } => {
                artifacts.iter().map(|artifact| artifact.path.clone()).collect()
            }
            Ended::Failed(_) | Ended::Cancelled => Vec::new(),
        };
        let by = Actor::worker(worker.as_str());
        let (job, attempt) = (key.job.clone(), key.attempt);
        let report = ReportJob { job, attempt, worker, ended, ran_ms, log };
        let mut commands = vec![Command::Report(report)];
        self.dispatch().free_slot(session, key);
        // Unless another run is to be served first.
        let again = self.dispatch().take_turn(session, &key.run).await;
        let reserved = if again { self.dispatch().reserve(session, 1) } else { None };
        let count = u32::from(reserved.is_some());
        commands.extend(reserved.map(|(lease, _)| lease));
        match self.runs().execute_all(&key.run, &commands, &by).await {
            Ok(recorded) => {
                self.dispatch().assign(session, &key.run, &recorded, count).await;
                self.outputs().forget(key, paths.iter().map(String::as_str));
                Ok(())
            }
            Err(error) => {
                self.dispatch().release(session, count);
                Err(error)
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        key: &Key,
        work: impl FnOnce(&Self, &Key) -> Result<T, CommandError> + Send + 'static,
    ) -> Result<T, CommandError> {
        let (house, key) = (self.clone(), key.clone());
        let done = tokio::task::spawn_blocking(move || work(&house, &key)).await;
        done.unwrap_or(Err(CommandError::Store(StoreError::Closed)))
    }

    fn keep_output(&self, key: &Key) -> Result<Option<towpath_engine::ids::Blob>, CommandError> {
        Ok(self.outputs().keep(key)?)
    }

    fn keep_file(
        &self,
        key: &Key,
        artifact: &towpath_engine::event::Artifact,
    ) -> Result<(), CommandError> {
        let kept = self.outputs().keep_artifact(key, &artifact.path)?;
        let empty = towpath_engine::ids::Blob::of(b"");
        let kept = match kept {
            Some(kept) => kept,
            None => {
                self.outputs().blobs.put(b"")?;
                empty
            }
        };
        if kept == artifact.blob {
            return Ok(());
        }
        let what = format!("artifact `{}` did not arrive as it was sent", artifact.path);
        Err(CommandError::MessageInvalid { what })
    }
}

/// Refuses a part of more bytes than one message may carry.
fn fits(part: &[u8]) -> Result<(), Limit> {
    if part.len() <= PART_BYTES_MAX {
        return Ok(());
    }
    let found = format!("a part of {} bytes, and {PART_BYTES_MAX} are the most", part.len());
    Err(Limit::MessageTooLarge { found })
}

fn disk(error: std::io::Error) -> CommandError {
    if error.kind() == std::io::ErrorKind::InvalidInput {
        return CommandError::MessageInvalid { what: error.to_string() };
    }
    if let Some(full) = error.get_ref().and_then(|cause| cause.downcast_ref::<Full>()) {
        return StoreError::Full(*full).into();
    }
    let doing = "keeping what a job printed";
    CommandError::Store(StoreError::Unavailable { doing, cause: std::sync::Arc::new(error) })
}
