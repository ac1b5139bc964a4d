//! Who a worker is, how long it stays, and how it is told to stop.

use std::{path::PathBuf, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};

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
    /// How long a server may take to answer a hello. `None`: [`crate::protocol::ANSWER_WITHIN`].
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
    /// There is one, and the worker takes no jobs: it cannot write its own files, or start a
    /// keeper; why.
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
