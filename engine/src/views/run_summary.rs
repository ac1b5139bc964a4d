//! What a list shows of a run, without its jobs: each event costs the same, however many jobs the
//! run has, so that a list of runs never has to replay one.
//!
//! The counts of an unfinished run are not here: they follow from every job, and an unfinished run
//! is in memory with all of them.

use serde::{Deserialize, Serialize};

use crate::{
    aggregate::Summary,
    event::{Fact, RunEvent, RunOutcome},
    ids::JobName,
    run::{Header, Phase, Run},
    time::Timestamp,
    trace::{TraceContext, run_span},
};

/// A run, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSummary {
    /// What the run was asked to be.
    pub header: Header,
    /// When it was last resumed after it had finished.
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

impl Summary for RunSummary {
    type Event = RunEvent;

    fn begin(fact: &Fact) -> Option<Self> {
        let header = Header::begin(fact)?;
        Some(Self { header, reopened_at: None, abort_root: None, end: None })
    }

    fn unreadable(id: &str, at: Timestamp) -> Self {
        let header = Header::unreadable(id.into(), at);
        Self { header, reopened_at: None, abort_root: None, end: None }
    }

    fn is_live(&self) -> bool {
        self.end.is_none()
    }

    fn idempotency_key(fact: &Fact) -> Option<&str> {
        if let RunEvent::RunCreated { idempotency_key, .. } = &fact.event {
            idempotency_key.as_deref()
        } else {
            None
        }
    }

    // Facts that change nothing here are most of them.
    fn take(&mut self, fact: &Fact) {
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
                // A retry of another job leaves the run aborted.
                self.abort_root = self.abort_root.take().filter(|root| root != job);
                self.reopen(fact);
            }
            RunEvent::PlanReplaced { .. } => {
                self.header.replace(fact);
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
}

impl RunSummary {
    /// What a list must show of `run`. `None` before its first event.
    pub fn of(run: &Run) -> Option<Self> {
        let end = match (run.phase(), run.finished_at()) {
            (Phase::Finished(outcome), Some(at)) => {
                let counts = run.counts();
                let counts = EndCounts {
                    succeeded: counts.succeeded,
                    failed: counts.failed,
                    skipped: counts.skipped,
                    cancelled: counts.cancelled,
                    rejected: counts.rejected,
                };
                Some(RunEnd { at, outcome: *outcome, counts })
            }
            (_, _) => None,
        };
        let (header, reopened_at) = (run.header()?.clone(), run.reopened_at());
        Some(Self { header, reopened_at, abort_root: run.abort_root().cloned(), end })
    }

    /// The span of the run, as [`crate::run::Run::span`] has it.
    pub fn span(&self) -> Option<TraceContext> {
        let asked_in = self.header.traceparent.as_ref()?.parse().ok()?;
        Some(run_span(&asked_in, &self.header.run, self.reopened_at))
    }

    fn reopen(&mut self, fact: &Fact) {
        // Only a run that had ended gets a new span in its trace; an interrupted one keeps its own.
        if self.end.take().is_some() {
            self.reopened_at = Some(fact.at);
        }
    }
}
