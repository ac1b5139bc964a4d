//! A worker as its caller sees it: who it is, how it is told to stop, and how it ended. What it
//! does in between is decided in `protocol` and carried out by `driver`.

use std::{path::PathBuf, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use towpath_proto::v1::workers_service_client::WorkersServiceClient;

use crate::{
    Adopted, AttemptsDir, AttemptsError, Environment,
    driver::Driver,
    environment::shut_out_jobs,
    protocol::{ANSWER_WITHIN, EndReason},
    runner::Runner,
    source_cache::{SOURCES_BYTES_MAX, SourceCache},
    workspace::Workspaces,
};

/// Who a worker is and what it takes.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Its name. A worker that comes back under the same name continues what it held.
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
    /// When a session ends, continue what runs and open another; else the work ends there.
    pub reconnect: bool,
    /// Take so many jobs and no more.
    pub jobs_max: Option<u32>,
    /// Stop when there was nothing to do for so long.
    pub idle: Option<Duration>,
    /// How long a worker that is to stop waits for a server that is away, once nothing runs any more
    /// and only reports are left. `None`: without bound.
    pub report_within: Option<Duration>,
    /// How long a server may take to answer a hello. `None`: [`ANSWER_WITHIN`].
    pub answer_within: Option<Duration>,
    /// Sent every change of the session.
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

/// Why a worker stopped without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its own files cannot be used.
    #[error(transparent)]
    Attempts(#[from] AttemptsError),
    /// The server ended the session.
    #[error("the server ended the session: {}", .0.message())]
    Session(#[from] Box<Status>),
    /// It was to stop, and no server took the last of its reports.
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
    let within = options.stay.report_within.unwrap_or_default();
    let answer_within = options.stay.answer_within.unwrap_or(ANSWER_WITHIN);
    let runner = Runner::new(attempts, workspaces);
    let client = WorkersServiceClient::new(channel);
    let mut driver = Driver::new(client, options, answer_within, stop, runner);
    match driver.run().await {
        EndReason::Done => Ok(driver.last()),
        EndReason::Refused | EndReason::Disconnected => Err(Box::new(driver.status()).into()),
        EndReason::Unreported { attempts } => {
            let status = Box::new(driver.status());
            Err(WorkerError::Unreported { attempts, within, status })
        }
    }
}
