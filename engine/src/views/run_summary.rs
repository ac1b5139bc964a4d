//! What a list shows of a run, without its jobs: each event costs the same, however many jobs the
//! run has, so that a list of runs never has to replay one.
//!
//! The counts of a run that continues are not here: they follow from every job, and a run that goes
//! on is in memory with all of them.

use serde::{Deserialize, Serialize};

use crate::{
    event::{Fact, RunEvent, RunOutcome},
    ids::{Actor, Digest, JobName, RunId, StageName},
    source::Source,
    time::Timestamp,
    trace::{TraceContext, run_span},
};

/// A run, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSummary {
    /// The run.
    pub run: RunId,
    /// The name of the pipeline.
    pub pipeline: String,
    /// The pipeline file, as the client named it.
    pub file: String,
    /// The folder the scripts run in, as the client named it.
    pub folder: String,
    /// Digest of the file's bytes.
    pub file_sha256: Digest,
    /// Digest of the plan.
    pub plan_sha256: Digest,
    /// The stages in order.
    pub stages: Vec<StageName>,
    /// Most jobs that run at once.
    pub parallelism: u32,
    /// The files of the run, if workers do not share `folder`.
    pub source: Option<Source>,
    /// The requester.
    pub requested_by: Actor,
    /// When the run was requested.
    pub created_at: Timestamp,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// When an actor last resumed the run after it had finished.
    pub reopened_at: Option<Timestamp>,
    /// The job whose failure aborted the run.
    pub abort_root: Option<JobName>,
    /// How it ended. `None`: it has not ended.
    pub end: Option<RunEnd>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEnd {
    /// When.
    pub at: Timestamp,
    /// How.
    pub outcome: RunOutcome,
    /// How its jobs ended.
    pub counts: EndCounts,
}

/// How the jobs of a run ended: every job is in one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndCounts {
    /// Ended well.
    pub succeeded: u32,
    /// Ended badly, timeouts included.
    pub failed: u32,
    /// Not run.
    pub skipped: u32,
    /// Ended with the run.
    pub cancelled: u32,
    /// Kept behind a gate.
    pub rejected: u32,
}

impl RunSummary {
    /// The run that `fact` begins, if it begins one.
    pub fn begin(fact: &Fact) -> Option<Self> {
        let RunEvent::RunCreated {
            run,
            pipeline,
            file,
            file_sha256,
            plan_sha256,
            stages,
            parallelism,
            traceparent,
            folder,
            source,
            jobs: _,
            gates_preapproved: _,
            due: _,
            idempotency_key: _,
            requester: _,
            authors: _,
        } = &fact.event
        else {
            return None;
        };
        Some(Self {
            run: run.clone(),
            pipeline: pipeline.clone(),
            file: file.clone(),
            folder: folder.clone(),
            file_sha256: *file_sha256,
            plan_sha256: *plan_sha256,
            stages: stages.clone(),
            parallelism: *parallelism,
            source: source.clone(),
            requested_by: fact.by.clone(),
            created_at: fact.at,
            traceparent: traceparent.clone(),
            reopened_at: None,
            abort_root: None,
            end: None,
        })
    }

    /// A run of which only the id is known, because its first record, read at about `at`, cannot be
    /// read.
    pub fn unreadable(run: RunId, at: Timestamp) -> Self {
        Self {
            run,
            pipeline: String::new(),
            file: String::new(),
            folder: String::new(),
            file_sha256: Digest([0; 32]),
            plan_sha256: Digest([0; 32]),
            stages: Vec::new(),
            parallelism: 0,
            source: None,
            requested_by: Actor::timer(),
            created_at: at,
            traceparent: None,
            reopened_at: None,
            abort_root: None,
            end: None,
        }
    }

    /// Applies one more fact of the run. Facts that change nothing here are most of them.
    pub fn take(&mut self, fact: &Fact) {
        match &fact.event {
            RunEvent::RunFinished { outcome, succeeded, failed, skipped, cancelled, rejected } => {
                let counts = EndCounts {
                    succeeded: *succeeded,
                    failed: *failed,
                    skipped: *skipped,
                    // The event counts a rejected job among the cancelled ones as well.
                    cancelled: cancelled.saturating_sub(*rejected),
                    rejected: *rejected,
                };
                self.end = Some(RunEnd { at: fact.at, outcome: *outcome, counts });
            }
            RunEvent::RunAborted { root } => self.abort_root = Some(root.clone()),
            RunEvent::RunResumed {} | RunEvent::JobsInvalidated { .. } => {
                self.abort_root = None;
                self.reopen(fact);
            }
            RunEvent::JobRetried { job } => {
                self.abort_root = self.abort_root.take().filter(|root| root != job);
                self.reopen(fact);
            }
            RunEvent::PlanReplaced { file_sha256, plan_sha256, stages, source, .. } => {
                (self.file_sha256, self.plan_sha256) = (*file_sha256, *plan_sha256);
                self.stages.clone_from(stages);
                if source.is_some() {
                    self.source.clone_from(source);
                }
                self.reopen(fact);
            }
            RunEvent::RunCreated { .. }
            | RunEvent::JobsPlanned { .. }
            | RunEvent::RunStarted {}
            | RunEvent::ConditionEvaluated { .. }
            | RunEvent::GateReached { .. }
            | RunEvent::GateApproved { .. }
            | RunEvent::GateVoided { .. }
            | RunEvent::GateRejected { .. }
            | RunEvent::JobLeased { .. }
            | RunEvent::JobSucceeded { .. }
            | RunEvent::JobAttemptFailed { .. }
            | RunEvent::JobFailed { .. }
            | RunEvent::JobCancelled { .. }
            | RunEvent::JobLost { .. }
            | RunEvent::JobSkipped { .. }
            | RunEvent::RunCancelRequested { .. }
            | RunEvent::RunTimedOut {}
            | RunEvent::JobImported { .. } => {}
        }
    }

    /// The span of the run, as [`crate::run::Run::span`] has it.
    pub fn span(&self) -> Option<TraceContext> {
        let asked_in = self.traceparent.as_ref()?.parse().ok()?;
        Some(run_span(&asked_in, &self.run, self.reopened_at))
    }

    fn reopen(&mut self, fact: &Fact) {
        if self.end.take().is_some() {
            self.reopened_at = Some(fact.at);
        }
    }
}
