//! What the parts of a worker tell one another about an attempt: what is to be run, what it works on,
//! what happens to it, and how it ended.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use towpath_engine::{
    event::FailureCause,
    ids::{Attempt, AttemptId, Digest, JobName, RunId},
};
use towpath_proto::v1;

/// One attempt of a job, as the worker was leased it.
#[derive(Clone, Debug)]
pub struct Script {
    /// The run.
    pub run: RunId,
    /// The job.
    pub job: JobName,
    /// Which try this is.
    pub attempt: Attempt,
    /// What makes reports of older tries void; given to the script as `TOW_FENCE`.
    pub fence: u64,
    /// The text to run.
    pub script: String,
    /// The program that reads the text, which becomes its last argument. Empty: `sh`.
    pub shell: Vec<String>,
    /// The job's own variables. Names that begin with `TOW_` are passed over.
    pub env: BTreeMap<String, String>,
    /// Names of secrets: variables of the worker that the script sees and nobody else.
    pub secrets: Vec<String>,
    /// Where the script runs.
    pub folder: PathBuf,
    /// The root of the run's source, given to the script as `TOW_ROOT`. `None`: there is none.
    pub root: Option<PathBuf>,
    /// The longest it may run.
    pub timeout: Option<Duration>,
    /// From SIGTERM to SIGKILL. `None`: [`crate::execute::GRACE_DEFAULT`].
    pub grace: Option<Duration>,
    /// Paths and globs below the folder, kept if the script succeeds.
    pub artifacts: Vec<String>,
    /// W3C trace context of the attempt; what lies below it is the script's `TRACEPARENT`.
    pub traceparent: Option<String>,
}

/// A file that a script left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactFile {
    /// Its path below the working folder, with `/`.
    pub path: String,
    /// Where it is now.
    pub absolute: PathBuf,
    /// Its length when it was read, in bytes.
    pub size: u64,
    /// SHA-256 of what was read.
    pub sha256: Digest,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The script ended with 0 and what it left behind can be used.
    Succeeded {
        /// How long it ran, in milliseconds.
        ran_ms: u64,
        /// What it wrote to `$TOW_OUTPUT`, masked.
        outputs: BTreeMap<String, String>,
        /// The files it left behind, by path. Their content is not masked.
        artifacts: Vec<ArtifactFile>,
    },
    /// It went wrong.
    Failed {
        /// Why, masked.
        cause: FailureCause,
        /// How long it ran, in milliseconds.
        ran_ms: u64,
    },
    /// It was asked to end, before it did by itself.
    Cancelled {
        /// How long it ran, in milliseconds.
        ran_ms: u64,
    },
}

/// What became of an attempt that was found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// It ended, just as if nobody had been killed meanwhile.
    Ended(Ended),
    /// Nobody knows how it ended, and nothing of it runs any more; why.
    Lost(String),
    /// Its script was never started.
    NeverStarted,
}

/// What an attempt needs before its script can start.
#[derive(Debug)]
pub(crate) struct Needed {
    pub(crate) source: v1::Source,
    pub(crate) files: Vec<v1::NeededFile>,
    pub(crate) left_out: u32,
}

/// What an assignment says beside the attempt's name.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) script: Script,
    /// The files that it works on. `None`: they are on this machine already.
    pub(crate) needed: Option<Needed>,
}

/// What happened to an attempt.
#[derive(Debug)]
pub(crate) enum Event {
    OutputGrew { attempt: AttemptId, length: u64 },
    Ended { attempt: AttemptId, outcome: Adopted, incomplete: Option<String> },
    Cleared { attempt: AttemptId },
}
