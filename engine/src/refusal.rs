//! The ways in which the engine says no. Each has a code that scripts may match on and a page in
//! `docs/errors/`.

use thiserror::Error;

use crate::{
    code::ErrorCode,
    ids::{Attempt, Digest, JobName, StageName, WorkerName},
    run::Phase,
};

/// The engine understood the command and said no. Nothing was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No worker of this name is connected or drained.
    #[error("no worker named `{worker}` is connected")]
    WorkerUnknown {
        /// The name asked for.
        worker: WorkerName,
    },
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
    #[error("job `{job}` is {state} and has no gate that waits for a decision")]
    GateNotWaiting {
        /// The job.
        job: JobName,
        /// Its state.
        state: &'static str,
    },
    /// The approval speaks about something else than what waits.
    #[error(
        "the approval covers {given}, but the gate of `{job}` now needs an approval of {waiting}"
    )]
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
    #[error("`{by}` is not a person, and only people can approve the gate of `{job}`")]
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
    /// The gate excludes the requester of the run.
    #[error("`{by}` {why} and may not approve at `{job}`")]
    ApproverIsRequester {
        /// The job.
        job: JobName,
        /// Who wanted to approve.
        by: String,
        /// In which way they are the requester: by name, or by an address.
        why: String,
    },
    /// The same person has approved already, by another name.
    #[error("`{by}` is the same person as `{before}`, who has approved at `{job}` already")]
    ApproverHasApproved {
        /// The job.
        job: JobName,
        /// Who wanted to approve.
        by: String,
        /// The name of the approval that counts.
        before: String,
    },
    /// The gate excludes the authors of the pipeline file.
    #[error("`{by}` wrote or committed the pipeline file and may not approve at `{job}`")]
    ApproverIsAuthor {
        /// The job.
        job: JobName,
        /// Who wanted to approve.
        by: String,
    },
    /// The approver's address is unknown, so they could be an author of the pipeline file.
    #[error("the e-mail address of `{by}` is unknown, so `{by}` could be an author of the file")]
    ApproverEmailUnknown {
        /// The job.
        job: JobName,
        /// Who wanted to approve.
        by: String,
    },
    /// A gate excludes the authors of the file, and the authors are unknown.
    #[error("the gate of `{job}` excludes the authors of the file, and the authors are unknown")]
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
        /// Its state.
        phase: Phase,
    },
    /// Nothing is left to resume.
    #[error("nothing to resume: the run has succeeded")]
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
    #[error("job `{job}` is {state}; only a failed or skipped job can be retried")]
    JobNotRetryable {
        /// The job.
        job: JobName,
        /// Its state.
        state: &'static str,
    },
    /// The report is about an attempt that is no longer valid.
    #[error("attempt {attempt} of `{job}` by {worker} is no longer valid")]
    AttemptStale {
        /// The job.
        job: JobName,
        /// The attempt reported.
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
    /// The record of another tool says that a job behind a gate succeeded.
    #[error("the record says that `{job}` succeeded, but the gate of `{gate}` was not approved")]
    ImportPassesGate {
        /// The job that the record names.
        job: JobName,
        /// The job with the gate: the same, or one that it needs.
        gate: JobName,
    },
    /// The edited plan takes a gate away, and its sender may open none.
    #[error("the edited plan takes away the gate of `{job}`; that needs the role approver")]
    GateLifted {
        /// The job with the gate.
        job: JobName,
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
    /// The stable code that scripts may match on.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::WorkerUnknown { .. } => ErrorCode::WorkerUnknown,
            Self::RunUnknown => ErrorCode::RunUnknown,
            Self::RunExists => ErrorCode::RunExists,
            Self::JobUnknown { .. } => ErrorCode::JobUnknown,
            Self::StageUnknown { .. } => ErrorCode::StageUnknown,
            Self::ArgumentOutOfBounds { .. } => ErrorCode::ArgumentOutOfBounds,
            Self::GateNotWaiting { .. } => ErrorCode::GateNotWaiting,
            Self::ApprovalStale { .. } => ErrorCode::ApprovalStale,
            Self::GateDecided { .. } => ErrorCode::GateDecided,
            Self::ApprovalExpired { .. } => ErrorCode::ApprovalExpired,
            Self::ApproverNotHuman { .. } => ErrorCode::ApproverNotHuman,
            Self::ApproverNotAllowed { .. } => ErrorCode::ApproverNotAllowed,
            Self::ApproverHasApproved { .. } => ErrorCode::ApproverHasApproved,
            Self::ApproverIsRequester { .. } => ErrorCode::ApproverIsRequester,
            Self::ApproverIsAuthor { .. } => ErrorCode::ApproverIsAuthor,
            Self::ApproverEmailUnknown { .. } => ErrorCode::ApproverEmailUnknown,
            Self::AuthorsUnknown { .. } => ErrorCode::AuthorsUnknown,
            Self::RunEnded { .. } => ErrorCode::RunEnded,
            Self::RunEnding { .. } => ErrorCode::RunEnding,
            Self::NothingToResume => ErrorCode::NothingToResume,
            Self::PlanChanged { .. } => ErrorCode::PlanChanged,
            Self::JobsRunning { .. } => ErrorCode::JobsRunning,
            Self::JobNotRetryable { .. } => ErrorCode::JobNotRetryable,
            Self::AttemptStale { .. } => ErrorCode::AttemptStale,
            Self::ImportMismatch { .. } => ErrorCode::ImportMismatch,
            Self::ImportPassesGate { .. } => ErrorCode::ImportPassesGate,
            Self::GateLifted { .. } => ErrorCode::GateLifted,
            Self::EventTooLong { .. } => ErrorCode::EventTooLong,
        }
    }

    /// What the refusal is about, by name, for programs. The message says the same in a sentence.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::WorkerUnknown { worker } => vec![("worker", worker.to_string())],
            Self::RunUnknown | Self::RunExists | Self::NothingToResume => Vec::new(),
            Self::JobUnknown { job }
            | Self::ApprovalExpired { job }
            | Self::GateLifted { job }
            | Self::AuthorsUnknown { job } => vec![("job", job.to_string())],
            Self::ImportMismatch { job, stage } => {
                vec![("job", job.to_string()), ("stage", stage.to_string())]
            }
            Self::ImportPassesGate { job, gate } => {
                vec![("job", job.to_string()), ("gate", gate.to_string())]
            }
            Self::StageUnknown { stage } => vec![("stage", stage.to_string())],
            Self::ArgumentOutOfBounds { what, bounds } => {
                vec![("argument", (*what).to_owned()), ("bounds", bounds.clone())]
            }
            Self::GateNotWaiting { job, state } | Self::JobNotRetryable { job, state } => {
                vec![("job", job.to_string()), ("state", (*state).to_owned())]
            }
            Self::ApprovalStale { job, waiting, given } => vec![
                ("job", job.to_string()),
                ("waiting", waiting.to_string()),
                ("given", given.to_string()),
            ],
            Self::GateDecided { job, decision, by } => vec![
                ("job", job.to_string()),
                ("decision", (*decision).to_owned()),
                ("actor", by.clone()),
            ],
            Self::ApproverNotHuman { job, by }
            | Self::ApproverNotAllowed { job, by, .. }
            | Self::ApproverHasApproved { job, by, .. }
            | Self::ApproverIsRequester { job, by, .. }
            | Self::ApproverIsAuthor { job, by }
            | Self::ApproverEmailUnknown { job, by } => {
                vec![("job", job.to_string()), ("actor", by.clone())]
            }
            Self::RunEnded { phase } | Self::RunEnding { phase } => {
                vec![("phase", phase.word().to_owned())]
            }
            Self::PlanChanged { frozen, now } => {
                vec![("frozen", frozen.to_string()), ("now", now.to_string())]
            }
            Self::JobsRunning { running } => vec![("running", running.to_string())],
            Self::AttemptStale { job, attempt, worker } => vec![
                ("job", job.to_string()),
                ("attempt", attempt.to_string()),
                ("worker", worker.to_string()),
            ],
            Self::EventTooLong { what, bytes_max } => {
                vec![("what", what.clone()), ("bytes_max", bytes_max.to_string())]
            }
        }
    }
}
