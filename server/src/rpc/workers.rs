//! `towpath.v1.Workers`: one session for each worker.

use std::{collections::HashMap, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use towpath_engine::{
    decide::{Command, Ended, ReportJob},
    event::{Artifact, FailureCause},
    ids::{Actor, WorkerName},
    refusal::Refusal,
    results,
};
use towpath_proto::v1::{self, worker_message::Message, workers_server::Workers};

use towpath_storage::{DiskFull, StoreError};

use super::{STREAM_QUEUE, Streamed, channel};
use crate::{
    House, auth,
    figures::Figures,
    limits::PART_BYTES_MAX,
    outputs::Key,
    runs::{CommandError, Loaded},
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
        let lengths = match self.lengths(&held).await {
            Ok(lengths) => lengths,
            Err(error) => {
                self.dispatch().close(session);
                return Err(error);
            }
        };
        let welcome = wire::welcome(lengths.into_iter(), self.dispatch().lease_ms());
        drop(send.try_send(Ok(welcome)));
        self.dispatch().begin(session, &held).await;
        let mut refused = RefusedParts::new();
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
            if let Err(error) = self.worker_says(session, message, (&send, &mut refused)).await {
                break Err(error);
            }
        };
        self.dispatch().close(session);
        served
    }

    /// Acts on one message. An error ends the session, and with it every other job of the worker:
    /// only what is wrong with the session itself, or with the store, is one. What is wrong with an
    /// attempt fails its job; else one bad file name would cost all the worker's jobs, again at
    /// every new session.
    async fn worker_says(
        &self,
        session: u64,
        message: Option<Message>,
        (send, refused): (&mpsc::Sender<Outgoing>, &mut RefusedParts),
    ) -> Result<(), CommandError> {
        match message {
            Some(Message::Output(v1::Output { of, offset, content })) => {
                let Some(key) = self.own(session, of)? else { return Ok(()) };
                let taken = fits(&content)
                    .and_then(|()| part(self.outputs().write(&key, offset, &content)));
                note_part(key, taken, refused)
            }
            Some(Message::Artifact(v1::ArtifactPart { of, path, content, offset })) => {
                let Some(key) = self.own(session, of)? else { return Ok(()) };
                let taken = fits(&content).and_then(|()| artifact_path(&path)).and_then(|()| {
                    part(self.outputs().write_artifact(&key, &path, offset, &content))
                });
                note_part(key, taken, refused)
            }
            Some(Message::Report(report)) => {
                self.take_report(session, report, (send, refused)).await
            }
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

    /// The attempt that a message is about, if this session was given it.
    fn own(&self, session: u64, of: Option<v1::Holding>) -> Result<Option<Key>, CommandError> {
        let key = named(of)?;
        Ok(self.dispatch().holds(session, &key).then_some(key))
    }

    async fn take_report(
        &self,
        session: u64,
        report: v1::Report,
        (send, refused): (&mpsc::Sender<Outgoing>, &mut RefusedParts),
    ) -> Result<(), CommandError> {
        let v1::Report { of, ran_ms, ended, output_bytes } = report;
        let key = named(of)?;
        let Some(worker) = self.dispatch().worker(session) else { return Ok(()) };
        if !self.dispatch().holds(session, &key) {
            return self.answer_unheld(&key, &worker, send).await;
        }
        let (house, send) = (self.clone(), send.clone());
        let arrived = self.outputs().length(&key);
        let missing = (output_bytes > arrived).then(|| {
            format!("it counts {output_bytes} bytes of output, of which {arrived} have arrived")
        });
        let reported = wire::reported(ended);
        let reported = match refused.remove(&key).or(missing) {
            Some(why) => reported.unless_invalid(why),
            None => reported,
        };
        // Beside the session: the disk of one job does not hold up the messages of another.
        let finished = async move {
            let answer =
                match house.record((session, worker), &key, ran_ms, reported, arrived).await {
                    Ok(()) => Ok(wire::recorded(&key)),
                    Err(error) if is_stale(&error) => Ok(wire::recorded(&key)),
                    // The store could not take it now. The worker keeps the report and repeats it
                    // in its next session.
                    Err(error) => Err(status::of(error)),
                };
            drop(send.send(answer).await);
        };
        tokio::spawn(finished);
        Ok(())
    }

    /// Answers a report of an attempt that this session does not hold.
    ///
    /// Either the attempt counts no more, and its worker may forget it. Or its report came twice
    /// and the first is still being written: that one is answered once it is durable, and to answer
    /// the second now would promise what may yet fail.
    async fn answer_unheld(
        &self,
        key: &Key,
        worker: &WorkerName,
        send: &mpsc::Sender<Outgoing>,
    ) -> Result<(), CommandError> {
        let counts = |loaded: &Loaded| {
            let job = loaded.run.job(key.job.as_str());
            job.is_some_and(|job| job.state.lease() == Some((key.attempt, worker)))
        };
        match self.runs().look(&key.run, counts).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if is_stale(&error) => {}
            Err(error) => return Err(error),
        }
        drop(send.send(Ok(wire::recorded(key))).await);
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
                self.dispatch().lose(key, &reason).await?;
                self.outputs().forget(key);
                return Ok(());
            }
        };
        let log = if arrived == 0 { None } else { self.blocking(key, Self::keep_output).await? };
        let ended = match self.keep_files(key, &ended).await? {
            Some(why) => Ended::Failed(FailureCause::ReportInvalid(why)),
            None => ended,
        };
        let by = Actor::worker(worker.as_str());
        let (job, attempt) = (key.job.clone(), key.attempt);
        let report = ReportJob { job, attempt, worker, ended, ran_ms, log };
        let mut commands = vec![Command::Report(report.clone())];
        self.dispatch().free_slot(session, key);
        // Unless another run is to be served first.
        let again = self.dispatch().take_turn(session, &key.run).await;
        let reserved = if again { self.dispatch().reserve(session, 1) } else { None };
        let count = u32::from(reserved.is_some());
        commands.extend(reserved.map(|(lease, _)| lease));
        let executed = match self.runs().execute_all(&key.run, &commands, &by).await {
            Err(error) if is_refusal_of_report(&error) => {
                // Whatever the rules turn down is no success. To end here would leave the job
                // leased for ever: its worker has nothing else to report.
                let cause = FailureCause::ReportInvalid(error.to_string()).bounded();
                let failed = ReportJob { ended: Ended::Failed(cause), ..report };
                commands[0] = Command::Report(failed);
                self.runs().execute_all(&key.run, &commands, &by).await
            }
            executed => executed,
        };
        match executed {
            Ok(recorded) => {
                self.dispatch().assign(session, &key.run, &recorded, count).await;
                self.outputs().forget(key);
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

    /// How much of the output of each attempt is there, for a worker that goes on from there.
    async fn lengths(&self, held: &[Key]) -> Result<Vec<(Key, u64)>, CommandError> {
        let mut lengths = Vec::new();
        for key in held {
            lengths.push((key.clone(), self.blocking(key, Self::recover_output).await?));
        }
        Ok(lengths)
    }

    fn recover_output(&self, key: &Key) -> Result<u64, CommandError> {
        self.outputs().recover(key).map_err(|error| {
            let (doing, cause) = ("reading what a job printed", std::sync::Arc::new(error));
            StoreError::Unavailable { doing, cause }.into()
        })
    }

    fn keep_output(&self, key: &Key) -> Result<Option<towpath_engine::ids::Blob>, CommandError> {
        Ok(self.outputs().keep(key)?)
    }

    /// Keeps the artifacts of a job that succeeded. Answers what is wrong with them.
    async fn keep_files(&self, key: &Key, ended: &Ended) -> Result<Option<String>, CommandError> {
        let Ended::Succeeded { outputs, artifacts } = ended else { return Ok(None) };
        if results::problem(outputs, artifacts).is_some() {
            // The engine fails the job for it; there is no use in keeping thousands of files first.
            return Ok(None);
        }
        for artifact in artifacts.clone() {
            let kept =
                self.blocking(key, move |house, key| house.keep_file(key, &artifact)).await?;
            if kept.is_some() {
                return Ok(kept);
            }
        }
        Ok(None)
    }

    fn keep_file(&self, key: &Key, artifact: &Artifact) -> Result<Option<String>, CommandError> {
        let kept = self.outputs().keep_artifact(key, &artifact.path)?;
        let empty = towpath_engine::ids::Blob::of(b"");
        let kept = match kept {
            Some(kept) => kept,
            None => {
                self.outputs().blobs.put(b"")?;
                empty
            }
        };
        let differs = || format!("artifact `{}` did not arrive as it was sent", artifact.path);
        Ok((kept != artifact.blob).then(differs))
    }
}

/// What is wrong with parts that attempts sent, until their reports come. Only attempts that the
/// session holds are in it, so it is no longer than a worker's slots.
type RefusedParts = HashMap<Key, String>;

/// Why a part was not taken.
enum PartError {
    /// It is wrong: its job fails.
    Invalid(String),
    /// The store could not take it now.
    Store(CommandError),
}

/// Notes a part that is wrong until the report of its attempt comes, which then fails the job. The
/// script may run on: nothing it does can be told from what it did before.
fn note_part(
    key: Key,
    taken: Result<(), PartError>,
    refused: &mut RefusedParts,
) -> Result<(), CommandError> {
    match taken {
        Ok(()) => Ok(()),
        Err(PartError::Invalid(why)) => {
            tracing::warn!(run = %key.run, job = %key.job, why, "part of an attempt refused");
            // The first is the cause of those that follow.
            refused.entry(key).or_insert(why);
            Ok(())
        }
        Err(PartError::Store(error)) => Err(error),
    }
}

/// The attempt that a message names.
fn named(of: Option<v1::Holding>) -> Result<Key, CommandError> {
    let missing = || CommandError::MessageInvalid { what: "no attempt named".to_owned() };
    Ok(wire::key(of.ok_or_else(missing)?))
}

/// Whether a report was not recorded because its attempt counts no more.
fn is_stale(error: &CommandError) -> bool {
    use Refusal as R;
    let CommandError::Refused(refusal) = error else { return false };
    matches!(refusal, R::AttemptStale { .. } | R::RunUnknown | R::JobUnknown { .. })
}

/// Whether `error` says no to a report that counts, and would say so every time.
fn is_refusal_of_report(error: &CommandError) -> bool {
    let refused = matches!(
        error,
        CommandError::Refused(_) | CommandError::TooMuch { .. } | CommandError::Bug(_)
    );
    refused && !is_stale(error)
}

/// Refuses a part of more bytes than one message may carry.
fn fits(content: &[u8]) -> Result<(), PartError> {
    if content.len() <= PART_BYTES_MAX {
        return Ok(());
    }
    let bytes = content.len();
    Err(PartError::Invalid(format!("a part of {bytes} bytes, and {PART_BYTES_MAX} are the most")))
}

fn artifact_path(path: &str) -> Result<(), PartError> {
    match results::artifact_path_problem(path) {
        Some(why) => Err(PartError::Invalid(format!("the path of an artifact {why}"))),
        None => Ok(()),
    }
}

fn part(written: std::io::Result<()>) -> Result<(), PartError> {
    let Err(error) = written else { return Ok(()) };
    if error.kind() == std::io::ErrorKind::InvalidInput {
        return Err(PartError::Invalid(error.to_string()));
    }
    if let Some(full) = error.get_ref().and_then(|cause| cause.downcast_ref::<DiskFull>()) {
        return Err(PartError::Store(StoreError::Full(*full).into()));
    }
    let (doing, cause) = ("keeping what a job printed", std::sync::Arc::new(error));
    Err(PartError::Store(StoreError::Unavailable { doing, cause }.into()))
}
