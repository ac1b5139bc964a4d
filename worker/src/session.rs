//! The session with a server: takes assignments, runs them, and reports. A job that outlived an
//! earlier worker process, or an earlier session, is taken up again where it is.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use towpath_proto::{
    time::duration_ms,
    v1::{
        self, session_request::Message as ToServer, session_response::Message as FromServer,
        workers_service_client::WorkersServiceClient,
    },
};

use crate::{
    Adopted, AttemptsDir, AttemptsError, Environment,
    environment::shut_out_jobs,
    jobs::Jobs,
    own_disk::Pause,
    source_cache::{SOURCES_BYTES_MAX, SourceCache},
    tell::say,
    workspace::Workspaces,
};

/// Messages to the server that may wait; beyond that what is told waits on disk.
const QUEUE: usize = 256;
/// Longest time between two signs of life.
const BEAT_EVERY_MAX: Duration = Duration::from_secs(10);
/// Pause before the first new try to reach a server; it doubles with every try.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long the server may take to take leave.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// How long a server that is away is waited for by a worker that was told to end its jobs.
const KILLED_WAIT_MAX: Duration = Duration::from_secs(15);

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
    /// Only this job of `run`, whatever tags it asks for.
    pub job: Option<String>,
    /// Where the attempts' own files are kept.
    pub attempts: PathBuf,
    /// What it shows a server that asks who it is, as `Bearer TOKEN`.
    pub bearer: Option<MetadataValue<Ascii>>,
    /// Whether runs may take their files from repositories on this machine's disks.
    pub file_remotes: bool,
    /// Whether the folders of failed attempts stay, below `kept/` of the attempts' own files.
    pub keep_work: bool,
    /// How long it stays.
    pub stay: SessionLimits,
}

/// How long a worker stays, beside what it is told.
#[derive(Clone, Debug, Default)]
pub struct SessionLimits {
    /// When a session ends, go on with what runs and open another; else the work ends there.
    pub reconnect: bool,
    /// Take so many jobs and no more.
    pub jobs_max: Option<u32>,
    /// Go when there was nothing to do for so long.
    pub idle: Option<Duration>,
    /// How long a worker that is to go waits for a server that is away, once nothing runs any more
    /// and only reports are left. `None`: for ever.
    pub report_within: Option<Duration>,
    /// Told about every change of the session.
    pub link: watch::Sender<ConnectionState>,
}

/// How a worker stands to its server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConnectionState {
    /// There has been no session yet.
    #[default]
    New,
    /// There is a session; how many attempts of before it still counts.
    Open(usize),
    /// There is none; why.
    Lost(String),
    /// There is one, and the worker takes no jobs: it cannot write its own files; why.
    Paused(String),
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
    /// It was to go, and no server took the last of its reports.
    #[error("no server accepted the reports of {attempts} ended attempts within {} s: {}", .within.as_secs(), .status.message())]
    Unreported {
        /// How many attempts it still holds.
        attempts: usize,
        /// How long it waited.
        within: Duration,
        /// Why there was no session.
        status: Box<Status>,
    },
}

/// What became of the attempt that was recorded last, once a worker has stopped.
pub type WorkResult = Result<Option<Adopted>, WorkerError>;

/// Works until told to stop, and then until everything that ran is reported and recorded.
pub async fn work(channel: Channel, options: WorkerOptions, stop: Stop) -> WorkResult {
    if let Err(error) = shut_out_jobs() {
        tracing::warn!(%error, "jobs can read the environment of this worker");
    }
    let attempts =
        AttemptsDir::open_when_free(&options.attempts, &Environment::of_process()).await?;
    let unusable = |source| AttemptsError::Unusable { folder: attempts.sources(), source };
    let workspaces = Workspaces {
        sources: SourceCache::open(&attempts.sources(), SOURCES_BYTES_MAX).map_err(unusable)?,
        channel: channel.clone(),
        bearer: options.bearer.clone(),
        worker: options.name.clone(),
        file_remotes: options.file_remotes,
        keep_work: options.keep_work,
    };
    let mut worker = Worker {
        jobs: Jobs::new(attempts, workspaces, stop.kill.clone()),
        client: WorkersServiceClient::new(channel),
        worker_instance_id: uuid::Uuid::now_v7().to_string(),
        options,
        stop,
        idle_since: Instant::now(),
        away_since: None,
        pause: Pause::default(),
    };
    let worked = worker.work().await;
    // Whoever watches over the jobs lets go: they go on, and the next worker takes them up.
    worker.jobs.let_go().await;
    worked.map(|()| worker.jobs.last().cloned())
}

/// How a session ended.
enum End {
    /// Everything is done.
    Done,
    /// The server did not want this worker.
    Refused(Status),
    /// The server cannot be heard any more.
    Lost(Status),
    /// The worker was paused, and takes jobs again: only a new hello says so.
    Unpaused,
}

struct Worker {
    jobs: Jobs,
    client: WorkersServiceClient<Channel>,
    worker_instance_id: String,
    options: WorkerOptions,
    stop: Stop,
    /// Since when there is nothing to do.
    idle_since: Instant,
    /// Since when there is no session and nothing runs.
    away_since: Option<Instant>,
    /// Whether it takes no jobs because it cannot write its own files.
    pause: Pause,
}

impl Worker {
    async fn work(&mut self) -> Result<(), WorkerError> {
        let (mut tries, mut was_welcome) = (0, false);
        let mut killed: Option<Instant> = None;
        loop {
            let began = Instant::now();
            let (end, welcomed) = self.session().await;
            was_welcome |= welcomed;
            let status = match end {
                End::Done => return Ok(()),
                End::Refused(status) => {
                    if was_welcome && status.code() == Code::AlreadyExists {
                        // Somebody took our place, and with it what we held.
                        self.jobs.end_all().await;
                    }
                    return Err(Box::new(status).into());
                }
                End::Lost(status) => status,
                End::Unpaused => continue,
            };
            if self.stop.kill.is_cancelled() {
                killed.get_or_insert_with(Instant::now);
            }
            let in_vain = killed.is_some_and(|since| since.elapsed() >= KILLED_WAIT_MAX);
            if !self.options.stay.reconnect || in_vain {
                return Err(Box::new(status).into());
            }
            if self.may_go() {
                return Ok(());
            }
            if welcomed {
                self.away_since = None;
            }
            if let Some(attempts) = self.gives_up(Instant::now()) {
                let within = self.options.stay.report_within.unwrap_or_default();
                let status = Box::new(status);
                return Err(WorkerError::Unreported { attempts, within, status });
            }
            self.options.stay.link.send_replace(ConnectionState::Lost(told(&status)));
            tracing::warn!(status = told(&status), "no session");
            tries = if began.elapsed() > PAUSE_MAX { 0 } else { tries + 1 };
            self.pause(tries).await;
        }
    }

    /// Waits before the next try: somewhere between at once and a bound that grows.
    async fn pause(&self, tries: u32) {
        let bound = PAUSE_MIN.saturating_mul(1 << tries.min(16)).min(PAUSE_MAX);
        let share = uuid::Uuid::now_v7().as_u128() as u32;
        let pause = bound.mul_f64(f64::from(share) / f64::from(u32::MAX));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.stop.drain.cancelled(), if !self.stop.drain.is_cancelled() => {}
            () = self.stop.kill.cancelled(), if !self.stop.kill.is_cancelled() => {}
        }
    }

    /// Nothing is to be taken any more.
    fn is_leaving(&self) -> bool {
        let enough = self.options.stay.jobs_max.is_some_and(|max| self.jobs.begun() >= max);
        self.stop.drain.is_cancelled() || self.stop.kill.is_cancelled() || enough
    }

    /// Nothing is to be taken now.
    fn takes_nothing(&self) -> bool {
        self.is_leaving() || self.jobs.disk().trouble().is_some()
    }

    /// Whether a worker that is to end by itself has waited long enough, at `now`, for a server
    /// that is away: how many attempts it leaves unreported. They stay on its disk.
    fn gives_up(&mut self, now: Instant) -> Option<usize> {
        let ends_by_itself = self.is_leaving() || self.options.stay.idle.is_some();
        let unreported = self.jobs.unreported().filter(|_| ends_by_itself);
        let Some(unreported) = unreported else {
            self.away_since = None;
            return None;
        };
        let since = *self.away_since.get_or_insert(now);
        let within = self.options.stay.report_within?;
        (now.duration_since(since) >= within).then_some(unreported)
    }

    /// Takes no jobs until the worker's own files can be written again. Says so once.
    fn begin_pause(&mut self, why: &str) {
        self.pause.begin(Instant::now());
        tracing::warn!(worker = self.options.name, why, "worker paused: it cannot write its files");
        self.options.stay.link.send_replace(ConnectionState::Paused(why.to_owned()));
    }

    /// Looks whether a paused worker may take jobs again.
    async fn look_again(&mut self) -> bool {
        let disk = Arc::clone(self.jobs.disk());
        // On a thread that may block: the runtime has two, and they serve running jobs.
        let looked = tokio::task::spawn_blocking(move || disk.look_again()).await;
        let takes_bytes = looked.unwrap_or(false);
        if takes_bytes {
            self.pause.end(Instant::now());
            tracing::info!(worker = self.options.name, "worker takes jobs again");
        } else {
            self.pause.put_off(Instant::now());
        }
        takes_bytes
    }

    /// Nothing is held, and nothing more is wanted.
    fn may_go(&self) -> bool {
        let bored = self.options.stay.idle.is_some_and(|idle| self.idle_since.elapsed() >= idle);
        self.jobs.is_empty() && (self.is_leaving() || bored)
    }

    fn hello(&self) -> v1::Hello {
        let left = |max: u32| max.saturating_sub(self.jobs.begun()).max(1);
        v1::Hello {
            worker: self.options.name.clone(),
            slots: self.options.slots,
            tags: self.options.tags.clone(),
            run: self.options.run.clone().unwrap_or_default(),
            held: self.jobs.held_attempts(),
            worker_instance_id: self.worker_instance_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            jobs_max: self.options.stay.jobs_max.map(left).unwrap_or_default(),
            draining: self.takes_nothing(),
            job: self.options.job.clone().unwrap_or_default(),
        }
    }

    /// One session, from hello to its end; and whether the worker was welcome.
    async fn session(&mut self) -> (End, bool) {
        let (send, receive) = mpsc::channel(QUEUE);
        say(&send, ToServer::Hello(self.hello())).await;
        let mut request = Request::new(ReceiverStream::new(receive));
        if let Some(bearer) = &self.options.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        let opened = self.client.session(request).await;
        let mut incoming = match opened {
            Ok(opened) => opened.into_inner(),
            Err(status) => return (refused_or_lost(status), false),
        };
        // Before the welcome nothing is to be done but to wait for it, whoever says stop.
        let welcome = loop {
            match incoming.next().await {
                Some(Ok(v1::SessionResponse { message: Some(FromServer::Welcome(welcome)) })) => {
                    break welcome;
                }
                Some(Ok(_)) => {}
                Some(Err(status)) => return (refused_or_lost(status), false),
                None => return (End::Lost(Status::unavailable("the session ended")), false),
            }
        };
        let lease_ms = welcome.lease.as_ref().and_then(duration_ms).unwrap_or_default();
        let lease = Duration::from_millis(lease_ms);
        let beat = if lease.is_zero() { BEAT_EVERY_MAX } else { (lease / 3).min(BEAT_EVERY_MAX) };
        let counts = self.jobs.take_up(welcome.held, &send);
        self.options.stay.link.send_replace(ConnectionState::Open(counts));
        let end = self.listen(&mut incoming, &send, beat).await;
        self.jobs.fall_silent().await;
        (end, true)
    }

    /// Hears what the server says, until the session ends.
    async fn listen(
        &mut self,
        incoming: &mut Streaming<v1::SessionResponse>,
        send: &mpsc::Sender<v1::SessionRequest>,
        beat: Duration,
    ) -> End {
        let mut beats = tokio::time::interval(beat);
        let mut draining = self.takes_nothing();
        loop {
            if let Some(why) = self.jobs.disk().trouble().filter(|_| self.pause.look_at().is_none())
            {
                self.begin_pause(&why);
            }
            if !self.jobs.is_empty() {
                self.idle_since = Instant::now();
            }
            if self.may_go() {
                say(send, ToServer::Goodbye(v1::Goodbye {})).await;
                let goodbye = async { while let Some(Ok(_)) = incoming.next().await {} };
                drop(tokio::time::timeout(LEAVE_WITHIN, goodbye).await);
                return End::Done;
            }
            if self.takes_nothing() && !draining {
                draining = true;
                say(send, ToServer::Drain(v1::Drain {})).await;
            }
            let idle = self.options.stay.idle.unwrap_or(Duration::MAX);
            let bored = idle.saturating_sub(self.idle_since.elapsed());
            let (look_at, disk) = (self.pause.look_at(), Arc::clone(self.jobs.disk()));
            tokio::select! {
                () = self.stop.drain.cancelled(), if !self.stop.drain.is_cancelled() => {}
                () = self.stop.kill.cancelled(), if !self.stop.kill.is_cancelled() => {}
                () = disk.fails(), if look_at.is_none() => {}
                () = sleep_until(look_at), if look_at.is_some() => {
                    if self.look_again().await {
                        return End::Unpaused;
                    }
                }
                () = tokio::time::sleep(bored), if self.jobs.is_empty() && idle < Duration::MAX => {}
                // A full queue is a sign of life itself.
                _ = beats.tick() => drop(send.try_send(v1::SessionRequest {
                    message: Some(ToServer::Heartbeat(v1::Heartbeat {})),
                })),
                () = self.jobs.watched() => {}
                message = incoming.next() => match message {
                    Some(Ok(v1::SessionResponse { message: Some(message) })) => {
                        self.hear(message, send);
                    }
                    Some(Ok(v1::SessionResponse { message: None })) => {}
                    Some(Err(status)) => return End::Lost(status),
                    None => return End::Lost(Status::unavailable("the session ended")),
                },
            }
        }
    }

    fn hear(&mut self, message: FromServer, send: &mpsc::Sender<v1::SessionRequest>) {
        match message {
            FromServer::Welcome(v1::Welcome { .. }) => {}
            FromServer::Assignment(assignment) => self.jobs.begin(assignment, send),
            FromServer::Cancel(v1::Cancel { attempt: of }) => self.jobs.cancel(of),
            FromServer::Recorded(of) => self.jobs.forget(of),
            FromServer::Heartbeat(v1::Heartbeat {}) => {}
        }
    }
}

/// Waits until `moment`; for ever, if there is none.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Whether a server that answers so will ever answer otherwise.
fn refused_or_lost(status: Status) -> End {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => End::Refused(status),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => End::Lost(status),
    }
}

/// What a status says, with the cause that people want to know.
fn told(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(deeper) = cause {
        let said = deeper.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = deeper.source();
    }
    text
}
