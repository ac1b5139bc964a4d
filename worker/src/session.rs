//! The session with a server: takes assignments, runs them, and reports. A job that outlived an
//! earlier worker process is taken up again where it is.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};
use towpath_engine::{
    event::FailureCause,
    ids::{Attempt, JobName, RunId},
};
use towpath_proto::v1::{
    self, failed::Cause, report, server_message::Message as FromServer,
    worker_message::Message as ToServer, workers_client::WorkersClient,
};

use crate::{
    Adopted, AttemptsDir, AttemptsError, Ended, Environment, FoundAttempt, OutputChunk, Script,
    adopt, execute,
};

/// Messages to the server that may wait; beyond that jobs wait before they print more.
const QUEUE: usize = 256;
/// Chunks of one job that may wait.
const CHUNKS: usize = 16;
/// Bytes of a file in one message.
const PART_BYTES: usize = 64 * 1024;

/// Who a worker is and what it takes.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Its name. A worker that comes back under the same name takes up what it held.
    pub name: String,
    /// How many jobs it runs at once.
    pub slots: u32,
    /// What it offers.
    pub tags: Vec<String>,
    /// Only jobs of this run; `None`: of any.
    pub run: Option<String>,
    /// Where the attempts' own files are kept.
    pub attempts: PathBuf,
}

/// How a worker is told to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Take nothing new; finish what runs.
    pub drain: CancellationToken,
    /// End what runs, too.
    pub kill: CancellationToken,
}

/// Why a worker stopped although nobody told it to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its own files cannot be used.
    #[error(transparent)]
    Attempts(#[from] AttemptsError),
    /// The server ended the session.
    #[error("the server ended the session: {}", .0.message())]
    Session(#[from] Box<Status>),
}

/// Works until told to stop, and then until everything that ran is reported and recorded.
pub async fn work(channel: Channel, options: WorkerOptions, stop: Stop) -> Result<(), WorkerError> {
    let attempts = AttemptsDir::open(&options.attempts, Environment::of_process())?;
    let found = attempts.found();
    let (send, receive) = mpsc::channel(QUEUE);
    let hello = v1::Hello {
        worker: options.name,
        slots: options.slots,
        tags: options.tags,
        run: options.run.unwrap_or_default(),
        holding: found.iter().map(holding_of_found).collect(),
    };
    say(&send, ToServer::Hello(hello)).await;
    let mut client = WorkersClient::new(channel);
    let mut incoming =
        client.session(ReceiverStream::new(receive)).await.map_err(Box::new)?.into_inner();
    let mut worker = Worker {
        attempts: Arc::new(attempts),
        send,
        running: HashMap::new(),
        tasks: JoinSet::new(),
        kill: stop.kill.clone(),
    };
    let mut draining = false;
    let mut welcomed = false;
    loop {
        if draining && welcomed && worker.running.is_empty() {
            return Ok(());
        }
        tokio::select! {
            () = stop.drain.cancelled(), if !draining => {
                draining = true;
                say(&worker.send, ToServer::Drain(v1::Drain {})).await;
            }
            () = stop.kill.cancelled(), if !draining => {
                draining = true;
                say(&worker.send, ToServer::Drain(v1::Drain {})).await;
            }
            () = tokio::time::sleep(Duration::from_secs(10)) => {
                say(&worker.send, ToServer::Beat(v1::Beat {})).await;
            }
            message = incoming.next() => match message {
                Some(Ok(v1::ServerMessage { message: Some(message) })) => {
                    welcomed |= matches!(message, FromServer::Welcome(_));
                    worker.hear(message, &found).await;
                }
                Some(Ok(v1::ServerMessage { message: None })) => {}
                Some(Err(status)) => return worker.leave(status).await,
                None => return worker.leave(Status::unavailable("the session ended")).await,
            },
        }
    }
}

type Key = (RunId, JobName, Attempt);

struct Worker {
    attempts: Arc<AttemptsDir>,
    send: mpsc::Sender<v1::WorkerMessage>,
    /// What is held, with how to end it.
    running: HashMap<Key, CancellationToken>,
    /// What watches over the jobs. Without it they go on, and can be taken up again.
    tasks: JoinSet<()>,
    kill: CancellationToken,
}

impl Worker {
    /// Lets go of everything: the jobs go on, and the next session takes them up.
    async fn leave(mut self, status: Status) -> Result<(), WorkerError> {
        self.tasks.shutdown().await;
        Err(Box::new(status).into())
    }

    async fn hear(&mut self, message: FromServer, found: &[FoundAttempt]) {
        match message {
            FromServer::Welcome(v1::Welcome { held }) => self.take_up(held, found).await,
            FromServer::Assignment(assignment) => self.begin(assignment),
            FromServer::Cancel(v1::Cancel { of }) => {
                if let Some(token) = of.and_then(|of| self.running.get(&key(of))) {
                    token.cancel();
                }
            }
            FromServer::Recorded(of) => {
                let key = key(of);
                self.attempts.forget(&key.0, &key.1, key.2);
                self.running.remove(&key);
            }
        }
    }

    /// Goes on with what still counts of the attempts on disk, and ends the rest.
    async fn take_up(&mut self, held: Vec<v1::Held>, found: &[FoundAttempt]) {
        let mut counts: HashMap<Key, u64> =
            held.into_iter().filter_map(|held| Some((key(held.of?), held.output_bytes))).collect();
        let mut void = JoinSet::new();
        for attempt in found {
            let key = (attempt.run.clone(), attempt.job.clone(), attempt.attempt);
            let (attempts, send) = (Arc::clone(&self.attempts), self.send.clone());
            let attempt = attempt.clone();
            match counts.remove(&key) {
                Some(output_bytes) => {
                    let token = self.kill.child_token();
                    self.running.insert(key, token.clone());
                    self.tasks.spawn(async move {
                        go_on(&attempts, &attempt, output_bytes, &send, token).await;
                    });
                }
                None => {
                    void.spawn(async move { end_void(&attempts, &attempt).await });
                }
            }
        }
        // Before anything new begins: a job never runs beside its own past.
        void.join_all().await;
    }

    fn begin(&mut self, assignment: v1::Assignment) {
        let Some(script) = script_of(assignment) else { return };
        let key = (script.run.clone(), script.job.clone(), script.attempt);
        let token = self.kill.child_token();
        self.running.insert(key, token.clone());
        let (attempts, send) = (Arc::clone(&self.attempts), self.send.clone());
        self.tasks.spawn(async move {
            let of = holding(&script.run, &script.job, script.attempt);
            let (lines, chunks) = mpsc::channel(CHUNKS);
            let (ended, output_bytes) = tokio::join!(
                execute(&attempts, &script, lines, token),
                forward(&of, 0, chunks, &send),
            );
            report(of, ended, output_bytes, &send).await;
        });
    }
}

async fn go_on(
    attempts: &AttemptsDir,
    found: &FoundAttempt,
    output_bytes: u64,
    send: &mpsc::Sender<v1::WorkerMessage>,
    token: CancellationToken,
) {
    let of = holding_of_found(found);
    let (lines, chunks) = mpsc::channel(CHUNKS);
    let (adopted, output_bytes) = tokio::join!(
        adopt(attempts, found, lines, token),
        forward(&of, output_bytes, chunks, send),
    );
    match adopted {
        Adopted::Ended(ended) => report(of, ended, output_bytes, send).await,
        Adopted::Lost(reason) => lost(of, reason, send).await,
        Adopted::NeverStarted => lost(of, "it was never started".to_owned(), send).await,
    }
}

/// Ends an attempt that no longer counts, so that nothing of it runs beside its successor.
async fn end_void(attempts: &AttemptsDir, found: &FoundAttempt) {
    let (lines, chunks) = mpsc::channel(CHUNKS);
    drop(chunks);
    let token = CancellationToken::new();
    token.cancel();
    adopt(attempts, found, lines, token).await;
    attempts.forget(&found.run, &found.job, found.attempt);
}

/// Sends what a job prints; says how long its output is in the end.
async fn forward(
    of: &v1::Holding,
    mut offset: u64,
    mut chunks: mpsc::Receiver<OutputChunk>,
    send: &mpsc::Sender<v1::WorkerMessage>,
) -> u64 {
    while let Some(OutputChunk { records }) = chunks.recv().await {
        let length = records.len() as u64;
        let output = v1::Output { of: Some(of.clone()), offset, content: records };
        say(send, ToServer::Output(output)).await;
        offset += length;
    }
    offset
}

async fn report(
    of: v1::Holding,
    ended: Ended,
    output_bytes: u64,
    send: &mpsc::Sender<v1::WorkerMessage>,
) {
    let (ran_ms, ended) = match ended {
        Ended::Succeeded { ran_ms, outputs, artifacts } => {
            let mut references = Vec::new();
            let mut unusable = None;
            for file in artifacts {
                if let Err(error) = upload(&of, &file.path, &file.absolute, send).await {
                    unusable = Some(format!("artifact `{}`: {error}", file.path));
                    break;
                }
                let (size, sha256) = (file.size, file.sha256.to_string());
                references.push(v1::ArtifactRef { path: file.path, size, sha256 });
            }
            let ended = match unusable {
                Some(why) => failed(FailureCause::OutputUnusable(why)),
                None => report::Ended::Succeeded(v1::Succeeded { outputs, artifacts: references }),
            };
            (ran_ms, ended)
        }
        Ended::Failed { cause, ran_ms } => (ran_ms, failed(cause)),
        Ended::Cancelled { ran_ms } => (ran_ms, report::Ended::Cancelled(v1::Cancelled {})),
    };
    let report = v1::Report { of: Some(of), ran_ms, ended: Some(ended), output_bytes };
    say(send, ToServer::Report(report)).await;
}

async fn lost(of: v1::Holding, reason: String, send: &mpsc::Sender<v1::WorkerMessage>) {
    let ended = Some(report::Ended::Lost(v1::Lost { reason }));
    let report = v1::Report { of: Some(of), ran_ms: 0, ended, output_bytes: 0 };
    say(send, ToServer::Report(report)).await;
}

fn failed(cause: FailureCause) -> report::Ended {
    let cause = match cause {
        FailureCause::ExitCode(code) => Cause::ExitCode(code),
        FailureCause::Signal(signal) => Cause::Signal(signal),
        FailureCause::TimedOut(ms) => Cause::TimedOutMs(ms),
        FailureCause::NotStarted(why) => Cause::NotStarted(why),
        FailureCause::OutputUnusable(why) => Cause::OutputUnusable(why),
        FailureCause::Lost(_) => Cause::NotStarted("lost".to_owned()),
    };
    report::Ended::Failed(v1::Failed { cause: Some(cause) })
}

async fn upload(
    of: &v1::Holding,
    path: &str,
    absolute: &std::path::Path,
    send: &mpsc::Sender<v1::WorkerMessage>,
) -> io::Result<()> {
    let mut file = File::open(absolute)?;
    let mut offset = 0;
    loop {
        let mut part = Vec::with_capacity(PART_BYTES);
        let read = (&mut file).take(PART_BYTES as u64).read_to_end(&mut part)?;
        let part = v1::ArtifactPart {
            of: Some(of.clone()),
            path: path.to_owned(),
            content: part.into(),
            offset,
        };
        say(send, ToServer::Artifact(part)).await;
        offset += read as u64;
        if read < PART_BYTES {
            return Ok(());
        }
    }
}

/// Sends a message. Without a session nobody hears it; the session's end is noticed elsewhere.
async fn say(send: &mpsc::Sender<v1::WorkerMessage>, message: ToServer) {
    drop(send.send(v1::WorkerMessage { message: Some(message) }).await);
}

fn holding(run: &RunId, job: &JobName, attempt: Attempt) -> v1::Holding {
    v1::Holding { run: run.to_string(), job: job.to_string(), attempt: attempt.0 }
}

fn holding_of_found(found: &FoundAttempt) -> v1::Holding {
    holding(&found.run, &found.job, found.attempt)
}

fn key(of: v1::Holding) -> Key {
    let v1::Holding { run, job, attempt } = of;
    (run.into(), job.into(), Attempt(attempt))
}

fn script_of(assignment: v1::Assignment) -> Option<Script> {
    let v1::Assignment {
        of,
        fence,
        script,
        shell,
        env,
        secrets,
        folder,
        timeout_ms,
        grace_ms,
        artifacts,
        traceparent,
        stage: _,
    } = assignment;
    let (run, job, attempt) = key(of?);
    Some(Script {
        run,
        job,
        attempt,
        fence,
        script,
        shell,
        env,
        secrets,
        folder: folder.into(),
        timeout: timeout_ms.map(Duration::from_millis),
        grace: grace_ms.map(Duration::from_millis),
        artifacts,
        traceparent: (!traceparent.is_empty()).then_some(traceparent),
    })
}
