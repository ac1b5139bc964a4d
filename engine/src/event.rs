//! The facts of a run, as in the log forever.

mod parts;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    gate::{Authors, Identity},
    ids::{Actor, Attempt, Blob, Digest, JobName, RunId, StageName, WorkerName},
    plan::JobPlan,
    source::Source,
    time::Timestamp,
};

pub use crate::failure::{CAUSE_BYTES_MAX, FailureCause, bounded_text};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// Every job succeeded or was omitted by its own condition.
    Succeeded,
    /// Something failed, and yet every job of the last stage succeeded.
    Partial,
    /// Something failed.
    Failed,
    /// A person rejected a gate.
    Rejected,
    /// A person ended the run.
    Cancelled,
    /// The run, or every job that failed, took longer than allowed.
    TimedOut,
}

/// Why a job was not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipCause {
    /// A need did not succeed.
    NeedUnmet {
        /// The need itself.
        need: JobName,
        /// The job at which the chain of skipped needs began.
        root: JobName,
    },
    /// The job's own `if` was false.
    ConditionFalse,
}

/// Why approvals are no longer valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VoidCause {
    /// The first of them counted until this moment, and the job had not been leased.
    Expired(Timestamp),
    /// The plan was replaced by one with this digest.
    PlanReplaced(Digest),
    /// Everything from this stage on runs again.
    StageRepeated(StageName),
    /// This job, whose result they covered, runs again.
    JobRepeated(JobName),
}

impl VoidCause {
    /// The cause in words, as the end of a sentence.
    pub fn words(&self) -> String {
        match self {
            Self::Expired(until) => format!("the first approval counted until {until}"),
            Self::PlanReplaced(plan) => format!("the plan was replaced by {}", plan.short()),
            Self::StageRepeated(stage) => format!("stage `{stage}` and all after it run again"),
            Self::JobRepeated(job) => format!("`{job}`, which it covered, runs again"),
        }
    }
}

/// A file that a job left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Its path below the working folder, with `/`.
    pub path: String,
    /// Its content.
    pub blob: Blob,
}

/// One thing that happened to a run.
///
/// Past tense. A variant is never renamed, never removed, never given a second meaning; a field is
/// only ever added, with a default that older logs can live with (`tests/golden/` proves it).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RunEvent {
    /// A client asked for a run. Its plan follows in `JobsPlanned`.
    RunCreated {
        /// The run's own id, so that an export of one stream stands alone.
        run: RunId,
        /// The name of the pipeline.
        pipeline: String,
        /// The pipeline file, as the client named it.
        file: String,
        /// Digest of the file's bytes.
        file_sha256: Digest,
        /// Digest of the plan that the file meant at this moment.
        plan_sha256: Digest,
        /// The stages in order.
        stages: Vec<StageName>,
        /// How many jobs the plan has.
        jobs: u32,
        /// Most jobs that run at once, from 1.
        parallelism: u32,
        /// Gates are approved by the requester as soon as they are reached (`--yes`).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        gates_preapproved: bool,
        /// When the whole run has taken too long.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        due: Option<Timestamp>,
        /// W3C trace context of the request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        traceparent: Option<String>,
        /// The folder the scripts run in, as the client named it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        folder: String,
        /// The idempotency key of the request: a repeated request with it is answered with this
        /// run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        idempotency_key: Option<String>,
        /// The files of the run. `None`: they are in `folder`, and workers share it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<Source>,
        /// What is known about who asked, where a gate depends on it.
        #[serde(default, skip_serializing_if = "Identity::is_empty")]
        requester: Identity,
        /// Who wrote the pipeline file, as the client says. `None`: unknown.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authors: Option<Authors>,
    },
    /// Part of the plan, in file order. Large plans need several.
    JobsPlanned {
        /// The jobs, frozen: later edits of the file do not change them.
        jobs: Vec<JobPlan>,
    },
    /// The plan is complete; jobs may be leased from here on.
    RunStarted {},
    /// A job's `if` was decided, once.
    ConditionEvaluated {
        /// The job.
        job: JobName,
        /// Whether the job runs.
        holds: bool,
        /// What the expression read, by path.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        inputs: BTreeMap<String, String>,
        /// Length and digest of what the expression read and is too long to be repeated here. The
        /// values themselves are in the events of the jobs that wrote them.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        long_inputs: BTreeMap<String, Blob>,
    },
    /// Everything before a manual job has ended; a person must open it.
    GateReached {
        /// The job behind the gate.
        job: JobName,
        /// What an approval covers: the plan, the job and the results before it.
        approval_digest: Digest,
    },
    /// A person approved at a gate. The last of those that it wants lets the job through.
    GateApproved {
        /// The job behind the gate.
        job: JobName,
        /// What was approved.
        approval_digest: Digest,
        /// What the person said.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        comment: String,
        /// How many more people the gate wants. 0: it is open.
        #[serde(default, skip_serializing_if = "is_zero")]
        approvals_remaining: u32,
        /// What was known about the person, where the gate has a policy.
        #[serde(default, skip_serializing_if = "Identity::is_empty")]
        identity: Identity,
        /// When the approval is no longer valid, unless the job was leased before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
        /// It is that of the requester of the run, given with `--yes` when they did.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        in_advance: bool,
    },
    /// What waited at a gate, or had passed it and not begun, is not what was read any more:
    /// approvals given are void, and the gate is reached again.
    GateVoided {
        /// The job behind the gate.
        job: JobName,
        /// What the approvals covered.
        approval_digest: Digest,
        /// Why.
        cause: VoidCause,
    },
    /// A person rejected a gate.
    GateRejected {
        /// The job behind the gate.
        job: JobName,
        /// What was rejected.
        approval_digest: Digest,
        /// What the person said.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        comment: String,
    },
    /// A worker took the job and promised to report.
    JobLeased {
        /// The job taken.
        job: JobName,
        /// Which attempt this is.
        attempt: Attempt,
        /// Who took it.
        worker: WorkerName,
        /// The lease expires when the worker has sent no heartbeat for this many milliseconds.
        lease_ms: u64,
    },
    /// The job did what it should.
    JobSucceeded {
        /// The job.
        job: JobName,
        /// Which attempt this was.
        attempt: Attempt,
        /// How long the script ran, in milliseconds by the worker's clock.
        ran_ms: u64,
        /// What it wrote to `$TOW_OUTPUT`.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        outputs: BTreeMap<String, String>,
        /// What it printed, masked. `None`: nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        captured_output: Option<Blob>,
        /// The files it left behind.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        artifacts: Vec<Artifact>,
    },
    /// An attempt went wrong and another one follows.
    JobAttemptFailed {
        /// The job.
        job: JobName,
        /// Which attempt this was.
        attempt: Attempt,
        /// Why.
        cause: FailureCause,
        /// How long the script ran, in milliseconds by the worker's clock.
        ran_ms: u64,
        /// What it printed, masked. `None`: nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        captured_output: Option<Blob>,
        /// The next attempt may begin at this moment.
        retry_due: Timestamp,
    },
    /// The job went wrong for good.
    JobFailed {
        /// The job.
        job: JobName,
        /// Which attempt this was.
        attempt: Attempt,
        /// Why.
        cause: FailureCause,
        /// How long the script ran, in milliseconds by the worker's clock.
        ran_ms: u64,
        /// What it printed, masked. `None`: nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        captured_output: Option<Blob>,
    },
    /// A running job was ended because its run is ending.
    JobCancelled {
        /// The job.
        job: JobName,
        /// Which attempt this was.
        attempt: Attempt,
        /// How long the script ran, in milliseconds by the worker's clock.
        ran_ms: u64,
        /// What it printed, masked. `None`: nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        captured_output: Option<Blob>,
    },
    /// The worker that held the job was lost, and its result with it.
    JobLost {
        /// The job.
        job: JobName,
        /// Which attempt this was.
        attempt: Attempt,
        /// The worker that held it.
        worker: WorkerName,
        /// What is known about why.
        reason: String,
    },
    /// The job will not run.
    JobSkipped {
        /// The job.
        job: JobName,
        /// Why.
        cause: SkipCause,
    },
    /// A job with `on_failure: abort` failed: what runs is cancelled, the rest is skipped.
    RunAborted {
        /// The job that failed.
        root: JobName,
    },
    /// An actor ended the run: running jobs are cancelled, and so are the others.
    RunCancelRequested {
        /// What they said.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// The run took too long: what runs is cancelled, and so is the rest.
    RunTimedOut {},
    /// Every job has ended.
    RunFinished {
        /// How.
        outcome: RunOutcome,
        /// Jobs that succeeded.
        succeeded: u32,
        /// Jobs that failed.
        failed: u32,
        /// Jobs that were skipped.
        skipped: u32,
        /// Jobs that were cancelled or kept behind a rejected gate.
        cancelled: u32,
        /// Of these, those that were kept behind a rejected gate.
        #[serde(default, skip_serializing_if = "is_zero")]
        rejected: u32,
    },
    /// An actor resumed the run: every job that has not succeeded runs again.
    RunResumed {},
    /// Results from this stage on are no longer valid, although they were good.
    JobsInvalidated {
        /// The first stage that runs again.
        from: StageName,
    },
    /// An actor retried one job, and the jobs that were skipped because of it.
    JobRetried {
        /// The job.
        job: JobName,
    },
    /// An edited pipeline file was accepted for a run that had begun. The new plan follows in
    /// `JobsPlanned`; results of jobs that still exist stay.
    PlanReplaced {
        /// Digest of the new file's bytes.
        file_sha256: Digest,
        /// Digest of the new plan.
        plan_sha256: Digest,
        /// The new stages in order.
        stages: Vec<StageName>,
        /// How many jobs the new plan has.
        jobs: u32,
        /// How long the whole run may take from here on, in milliseconds. `None`: no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
        /// The files of the run from here on. `None`: those it had.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<Source>,
        /// What is known about who accepted it, where a gate depends on it.
        #[serde(default, skip_serializing_if = "Identity::is_empty")]
        requester: Identity,
        /// Who wrote the new file, as the client says. `None`: unknown.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authors: Option<Authors>,
    },
    /// A result was taken over from another tool's record.
    JobImported {
        /// The job.
        job: JobName,
        /// Which result.
        result: ImportedResult,
        /// When it began, if the record says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        started_at: Option<Timestamp>,
        /// When it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        finished_at: Option<Timestamp>,
        /// The exit code, if the record says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// The record's own words about what went wrong.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        error: String,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over like this")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A result as another tool recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportedResult {
    /// `DONE`.
    Succeeded,
    /// `FAILED`.
    Failed,
    /// `SKIPPED`.
    Skipped,
}

impl RunEvent {
    /// The word for the kind, in the envelope of the record and in its bytes.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RunCreated { .. } => "run_created",
            Self::JobsPlanned { .. } => "jobs_planned",
            Self::RunStarted {} => "run_started",
            Self::ConditionEvaluated { .. } => "condition_evaluated",
            Self::GateReached { .. } => "gate_reached",
            Self::GateApproved { .. } => "gate_approved",
            Self::GateVoided { .. } => "gate_voided",
            Self::GateRejected { .. } => "gate_rejected",
            Self::JobLeased { .. } => "job_leased",
            Self::JobSucceeded { .. } => "job_succeeded",
            Self::JobAttemptFailed { .. } => "job_attempt_failed",
            Self::JobFailed { .. } => "job_failed",
            Self::JobCancelled { .. } => "job_cancelled",
            Self::JobLost { .. } => "job_lost",
            Self::JobSkipped { .. } => "job_skipped",
            Self::RunAborted { .. } => "run_aborted",
            Self::RunCancelRequested { .. } => "run_cancel_requested",
            Self::RunTimedOut {} => "run_timed_out",
            Self::RunFinished { .. } => "run_finished",
            Self::RunResumed {} => "run_resumed",
            Self::JobsInvalidated { .. } => "jobs_invalidated",
            Self::JobRetried { .. } => "job_retried",
            Self::PlanReplaced { .. } => "plan_replaced",
            Self::JobImported { .. } => "job_imported",
        }
    }
}

/// An event with its circumstances: what one line of the log says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact<E = RunEvent> {
    /// When the server decided it. Never goes backwards within a log.
    pub at: Timestamp,
    /// Who issued the command it follows from.
    pub by: Actor,
    /// What happened.
    pub event: E,
}
