//! The ways in which the engine says no. Each has a code that scripts may match on and a page in
//! `docs/errors/`.

use thiserror::Error;

use crate::{
    ids::{Attempt, Digest, JobName, StageName, WorkerName},
    run::Phase,
};

/// What kind of no it is: decides the gRPC code and the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalClass {
    /// What the command names does not exist.
    Missing,
    /// The command itself cannot be meant.
    Invalid,
    /// The run is not in a state for it.
    Conflict,
    /// Somebody else must do it.
    Forbidden,
}

/// The engine understood the command and said no. Nothing was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No run has this id.
    #[error("there is no such run")]
    RunUnknown,
    /// The run exists already.
    #[error("the run exists already")]
    RunExists,
    /// No job has this name.
    #[error("the run has no job `{job}`")]
    JobUnknown {
        /// The name asked for.
        job: JobName,
    },
    /// No stage has this name.
    #[error("the run has no stage `{stage}`")]
    StageUnknown {
        /// The name asked for.
        stage: StageName,
    },
    /// A number or text of the command is out of bounds.
    #[error("{what} must be {bounds}")]
    ArgumentOutOfBounds {
        /// The argument.
        what: &'static str,
        /// What it may be.
        bounds: String,
    },
    /// The job waits at no gate.
    #[error("job `{job}` is {state}; no gate of it waits for a decision")]
    GateNotWaiting {
        /// The job.
        job: JobName,
        /// Where it stands.
        state: &'static str,
    },
    /// The approval speaks about something else than what waits.
    #[error("the approval covers {given}, but what waits at `{job}` is {waiting}")]
    ApprovalStale {
        /// The job.
        job: JobName,
        /// Digest of what waits.
        waiting: Digest,
        /// Digest of what was approved.
        given: Digest,
    },
    /// The gate was decided the other way.
    #[error("the gate of `{job}` was already {decision} by {by}")]
    GateDecided {
        /// The job.
        job: JobName,
        /// `approved` or `rejected`.
        decision: &'static str,
        /// Who decided.
        by: String,
    },
    /// Approvals before this one have expired; the gate asks again.
    #[error("the approvals at `{job}` have expired")]
    ApprovalExpired {
        /// The job.
        job: JobName,
    },
    /// Agents, services and workers open no gates.
    #[error("`{by}` is no person, and the gate of `{job}` is opened by people")]
    ApproverNotHuman {
        /// The job.
        job: JobName,
        /// Who wanted to approve.
        by: String,
    },
    /// The gate is for others.
    #[error("`{by}` may not approve at `{job}`: {why}")]
    ApproverNotAllowed {
        /// The job.
        job: JobName,
        /// Who wanted to approve.
        by: String,
        /// What is missing.
        why: String,
    },
    /// The gate wants somebody else than who asked for the run.
    #[error("`{by}` {why} and may not approve at `{job}`")]
    ApproverIsRequester {
        /// The job.
        job: JobName,
        /// Who wanted to approve.
        by: String,
        /// In which way they are the requester: by name, or by an address.
        why: String,
    },
    /// The gate wants somebody else than who wrote the pipeline file.
    #[error("`{by}` wrote or committed the pipeline file and may not approve at `{job}`")]
    ApproverIsAuthor {
        /// The job.
        job: JobName,
        /// Who wanted to approve.
        by: String,
    },
    /// Nobody can tell whether they wrote the pipeline file.
    #[error("no e-mail address of `{by}` is known, so they could be an author of the file")]
    ApproverEmailUnknown {
        /// The job.
        job: JobName,
        /// Who wanted to approve.
        by: String,
    },
    /// A gate excludes the authors of the file, and nobody knows them.
    #[error("the gate of `{job}` excludes the authors of the file, and nobody knows who they are")]
    AuthorsUnknown {
        /// The job.
        job: JobName,
    },
    /// The run has ended.
    #[error("the run has ended: {}", .phase.word())]
    RunEnded {
        /// How.
        phase: Phase,
    },
    /// The run is being ended; it must come to rest first.
    #[error("the run is {}; wait until it has ended", .phase.word())]
    RunEnding {
        /// Where it stands.
        phase: Phase,
    },
    /// Nothing is left to resume.
    #[error("nothing is left to do: every job has succeeded")]
    NothingToResume,
    /// The file is not the one the run began with.
    #[error("the pipeline file has changed since the run began")]
    PlanChanged {
        /// Digest of the frozen plan.
        frozen: Digest,
        /// Digest of what the file means now.
        now: Digest,
    },
    /// Jobs run while the command needs the run to be at rest.
    #[error("{running} jobs of the run are running")]
    JobsRunning {
        /// How many.
        running: u32,
    },
    /// The job has not ended badly.
    #[error("job `{job}` is {state}; only what failed, or was skipped, can be retried")]
    JobNotRetryable {
        /// The job.
        job: JobName,
        /// Where it stands.
        state: &'static str,
    },
    /// The report is about a try that no longer counts.
    #[error("attempt {attempt} of `{job}` by {worker} no longer counts")]
    AttemptStale {
        /// The job.
        job: JobName,
        /// The try reported.
        attempt: Attempt,
        /// Who reported.
        worker: WorkerName,
    },
    /// The record of another tool names a job, or a stage of it, that the pipeline file lacks.
    #[error(
        "the record names job `{job}` of stage `{stage}`, which the pipeline file does not have"
    )]
    ImportMismatch {
        /// The job.
        job: JobName,
        /// Its stage, as the record has it.
        stage: StageName,
    },
    /// The record of another tool says that a job succeeded which stands behind a gate.
    #[error(
        "the record says that `{job}` succeeded, which the gate of `{gate}` would have to allow"
    )]
    ImportPassesGate {
        /// The job that the record names.
        job: JobName,
        /// The job with the gate: the same, or one that it needs.
        gate: JobName,
    },
    /// The event would be larger than a record may be.
    #[error("{what} makes an event larger than {bytes_max} bytes")]
    EventTooLong {
        /// What is too long.
        what: String,
        /// The bound, in bytes.
        bytes_max: usize,
    },
}

impl Refusal {
    /// Every code, for the house rule that each has its page.
    pub const CODES: [&'static str; 25] = [
        "RUN_UNKNOWN",
        "RUN_EXISTS",
        "JOB_UNKNOWN",
        "STAGE_UNKNOWN",
        "ARGUMENT_OUT_OF_BOUNDS",
        "GATE_NOT_WAITING",
        "APPROVAL_STALE",
        "GATE_DECIDED",
        "APPROVAL_EXPIRED",
        "APPROVER_NOT_HUMAN",
        "APPROVER_NOT_ALLOWED",
        "APPROVER_IS_REQUESTER",
        "APPROVER_IS_AUTHOR",
        "APPROVER_EMAIL_UNKNOWN",
        "AUTHORS_UNKNOWN",
        "RUN_ENDED",
        "RUN_ENDING",
        "NOTHING_TO_RESUME",
        "PLAN_CHANGED",
        "JOBS_RUNNING",
        "JOB_NOT_RETRYABLE",
        "ATTEMPT_STALE",
        "IMPORT_MISMATCH",
        "IMPORT_PASSES_GATE",
        "EVENT_TOO_LONG",
    ];

    /// The stable code that scripts may match on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::RunUnknown => "RUN_UNKNOWN",
            Self::RunExists => "RUN_EXISTS",
            Self::JobUnknown { .. } => "JOB_UNKNOWN",
            Self::StageUnknown { .. } => "STAGE_UNKNOWN",
            Self::ArgumentOutOfBounds { .. } => "ARGUMENT_OUT_OF_BOUNDS",
            Self::GateNotWaiting { .. } => "GATE_NOT_WAITING",
            Self::ApprovalStale { .. } => "APPROVAL_STALE",
            Self::GateDecided { .. } => "GATE_DECIDED",
            Self::ApprovalExpired { .. } => "APPROVAL_EXPIRED",
            Self::ApproverNotHuman { .. } => "APPROVER_NOT_HUMAN",
            Self::ApproverNotAllowed { .. } => "APPROVER_NOT_ALLOWED",
            Self::ApproverIsRequester { .. } => "APPROVER_IS_REQUESTER",
            Self::ApproverIsAuthor { .. } => "APPROVER_IS_AUTHOR",
            Self::ApproverEmailUnknown { .. } => "APPROVER_EMAIL_UNKNOWN",
            Self::AuthorsUnknown { .. } => "AUTHORS_UNKNOWN",
            Self::RunEnded { .. } => "RUN_ENDED",
            Self::RunEnding { .. } => "RUN_ENDING",
            Self::NothingToResume => "NOTHING_TO_RESUME",
            Self::PlanChanged { .. } => "PLAN_CHANGED",
            Self::JobsRunning { .. } => "JOBS_RUNNING",
            Self::JobNotRetryable { .. } => "JOB_NOT_RETRYABLE",
            Self::AttemptStale { .. } => "ATTEMPT_STALE",
            Self::ImportMismatch { .. } => "IMPORT_MISMATCH",
            Self::ImportPassesGate { .. } => "IMPORT_PASSES_GATE",
            Self::EventTooLong { .. } => "EVENT_TOO_LONG",
        }
    }

    /// What kind of no it is.
    pub fn class(&self) -> RefusalClass {
        match self {
            Self::RunUnknown | Self::JobUnknown { .. } | Self::StageUnknown { .. } => {
                RefusalClass::Missing
            }
            Self::ArgumentOutOfBounds { .. }
            | Self::ImportMismatch { .. }
            | Self::EventTooLong { .. } => RefusalClass::Invalid,
            Self::RunExists
            | Self::GateNotWaiting { .. }
            | Self::ApprovalStale { .. }
            | Self::GateDecided { .. }
            | Self::ApprovalExpired { .. }
            | Self::AuthorsUnknown { .. }
            | Self::RunEnded { .. }
            | Self::RunEnding { .. }
            | Self::NothingToResume
            | Self::PlanChanged { .. }
            | Self::JobsRunning { .. }
            | Self::JobNotRetryable { .. }
            | Self::AttemptStale { .. } => RefusalClass::Conflict,
            Self::ApproverNotHuman { .. }
            | Self::ApproverNotAllowed { .. }
            | Self::ApproverIsRequester { .. }
            | Self::ApproverIsAuthor { .. }
            | Self::ApproverEmailUnknown { .. }
            | Self::ImportPassesGate { .. } => RefusalClass::Forbidden,
        }
    }

    /// What to do next, in a sentence.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::RunUnknown => "See `tow list` for the runs of this store.",
            Self::RunExists => "Follow the run that exists with `tow watch`.",
            Self::JobUnknown { .. } | Self::StageUnknown { .. } => {
                "See `tow status` for the names in this run."
            }
            Self::ArgumentOutOfBounds { .. } => "Give a value within the bounds.",
            Self::GateNotWaiting { .. } => "See `tow why` for what the job waits for.",
            Self::ApprovalStale { .. } => {
                "Read what waits now with `tow status`, then approve that."
            }
            Self::GateDecided { .. } => "See `tow status`; a decision cannot be taken back.",
            Self::ApprovalExpired { .. } => {
                "The gate asks again: read it with `tow status`, then approve."
            }
            Self::ApproverNotHuman { .. } => "Ask a person to approve, in their own name.",
            Self::ApproverNotAllowed { .. } => {
                "Ask somebody whom the gate names; `tow why` says whom."
            }
            Self::ApproverIsRequester { .. } | Self::ApproverIsAuthor { .. } => {
                "Ask somebody else to approve."
            }
            Self::ApproverEmailUnknown { .. } => {
                "Issue a token with `--email`, or set `user.email` of git on the store's machine."
            }
            Self::AuthorsUnknown { .. } => {
                "Commit the pipeline file to git and begin from a whole clone, or take `author` out."
            }
            Self::RunEnded { .. } => "Use `tow resume` to let it go on.",
            Self::RunEnding { .. } => "Follow it with `tow watch` until it has ended.",
            Self::NothingToResume => {
                "Use `--from STAGE` to run a stage again although it succeeded."
            }
            Self::PlanChanged { .. } => {
                "Restore the file, or accept the edit with `--accept-changes`."
            }
            Self::JobsRunning { .. } => "Wait for them, or cancel the run first.",
            Self::JobNotRetryable { .. } => {
                "Use `tow resume --from STAGE` to run succeeded jobs again."
            }
            Self::AttemptStale { .. } => "Nothing: a newer try of the job is what counts.",
            Self::ImportMismatch { .. } => {
                "Import with the pipeline file that the record was made with."
            }
            Self::ImportPassesGate { .. } => {
                "Take the line out of the record; the gate then waits in the imported run."
            }
            Self::EventTooLong { .. } => "Shorten it, or keep the bulk in a file.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_once() {
        let codes: std::collections::BTreeSet<_> = Refusal::CODES.into_iter().collect();
        assert_eq!(codes.len(), Refusal::CODES.len());
        assert!(codes.contains(Refusal::RunUnknown.code()));
    }
}
