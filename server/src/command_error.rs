//! Why a command was not carried out, in one list: codes and gRPC statuses follow from it in
//! `status`.

use towpath_engine::{
    aggregate::IllegalEvent,
    ids::{Attempt, Digest, JobName},
    refusal::Refusal,
    views::FindError,
};
use towpath_storage::{StoreError, Version};

use crate::{auth::request_refused::RequestRefused, limits::Limit};

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The engine said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The pipeline file has errors.
    #[error("the pipeline file `{name}` has errors")]
    FileInvalid {
        /// The file, as the client named it.
        name: String,
        /// The first of them, one on each line, with line and column.
        problems: String,
    },
    /// More than one run answers to the prefix.
    #[error("`{prefix}` matches {count} runs")]
    RunAmbiguous {
        /// What was asked for.
        prefix: String,
        /// How many runs it fits.
        count: usize,
    },
    /// More waits to be written than may wait.
    #[error("the write queue of the store is full")]
    StoreBusy,
    /// The command means more events than one append may hold.
    #[error("too much at once: {what}")]
    TooMuch {
        /// Which bound it passes.
        what: String,
    },
    /// Another process wrote first, repeatedly.
    #[error("other writers changed the run while the command was decided")]
    Contended,
    /// The store could not do its part.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log says something that cannot have happened.
    #[error("the stream `{stream}` cannot be replayed at version {version}: {why}")]
    Unreplayable {
        /// The stream.
        stream: String,
        /// Where in its stream.
        version: Version,
        /// What is wrong with it.
        why: String,
    },
    /// A message of the wire that no client of ours sends.
    #[error("{what}")]
    MessageInvalid {
        /// What is wrong with it.
        what: String,
    },
    /// A record to import that cannot be read.
    #[error("{what}")]
    ImportInvalid {
        /// What is wrong with it.
        what: String,
    },
    /// The job left no such file.
    #[error("job `{job}` left no file `{path}`")]
    ArtifactUnknown {
        /// The job.
        job: String,
        /// The file asked for.
        path: String,
    },
    /// The job was not tried so often.
    #[error("job `{job}` has no attempt {attempt}; its newest is {newest}")]
    AttemptUnknown {
        /// The job.
        job: JobName,
        /// The attempt asked for.
        attempt: Attempt,
        /// The newest attempt; 0 before the first.
        newest: Attempt,
    },
    /// The log has not reached that point, or the run was started later.
    #[error("there is nothing at {at}: {why}")]
    AtOutOfRange {
        /// The point asked for.
        at: String,
        /// What there is instead.
        why: String,
    },
    /// The request of another run went by this name.
    #[error("a request with this idempotency key already began a run with other arguments")]
    KeyReused,
    /// Another worker goes by this name, and is there.
    #[error("a worker named `{name}` is connected already")]
    WorkerNameTaken {
        /// The name.
        name: String,
    },
    /// A worker at a port goes by a name that only workers of `tow run` have.
    #[error(
        "a worker at a port cannot be named `{name}`: `local/` is for the workers of `tow run`"
    )]
    WorkerNameReserved {
        /// The name.
        name: String,
    },
    /// The job will not be assigned any more.
    #[error("job `{job}` is {state}")]
    JobEnded {
        /// The job.
        job: JobName,
        /// Its state.
        state: &'static str,
    },
    /// The other side speaks another version.
    #[error("this server is tow {server}, and the worker is tow {worker}")]
    VersionMismatch {
        /// Our own.
        server: &'static str,
        /// Theirs.
        worker: String,
    },
    /// The client is not authenticated.
    #[error("{why}")]
    Unauthenticated {
        /// What is wrong with the proof.
        why: &'static str,
    },
    /// The client is not allowed to send the request.
    #[error("`{who}` is not allowed to call {what}")]
    Forbidden {
        /// Who asks.
        who: String,
        /// For what.
        what: String,
    },
    /// The request is made in the name of another actor.
    #[error("the token is that of `{own}`, and the request names `{claimed}`")]
    ActorMismatch {
        /// Who it was proven to be.
        own: String,
        /// Who the request names.
        claimed: String,
    },
    /// The worker goes by the name of another.
    #[error("this is the identity of worker `{own}`, and the session names `{claimed}`")]
    WorkerIdentityMismatch {
        /// Who it was proven to be.
        own: String,
        /// Who the session names.
        claimed: String,
    },
    /// A request that is no gRPC client's.
    #[error(transparent)]
    RequestRefused(#[from] RequestRefused),
    /// A bound of the port.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// The bundle of a run was not sent before the run.
    #[error("the bundle {sha256} of the run is not here")]
    SourceMissing {
        /// Which.
        sha256: Digest,
    },
    /// A bundle that is larger than may be.
    #[error("a bundle of {bytes} bytes is larger than the {bytes_max} that one may have")]
    SourceTooLarge {
        /// How large it is.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// The engine decided on something that cannot be replayed.
    #[error("a bug in the engine: {0}")]
    Bug(#[from] IllegalEvent),
}

impl From<FindError> for CommandError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Unknown => Refusal::RunUnknown.into(),
            FindError::Ambiguous { prefix, count } => Self::RunAmbiguous { prefix, count },
        }
    }
}
