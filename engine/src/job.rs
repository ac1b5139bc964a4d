//! The life of one job, as a table.

use serde::{Deserialize, Serialize};

use crate::{
    any_event::IllegalEvent,
    event::{FailureCause, ImportedResult, RunEvent},
    ids::{Attempt, Digest, WorkerName},
    time::Timestamp,
};

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Nothing has been decided about it yet. It may be ready: that follows from its needs.
    Waiting,
    /// Its `if` held.
    Admitted,
    /// Its `if` did not hold.
    Declined,
    /// A person must open its gate.
    AtGate(Digest),
    /// A person opened its gate.
    Approved,
    /// A worker runs it.
    Leased(Attempt, WorkerName),
    /// It failed and may be retried at this moment.
    BackingOff(Timestamp),
    /// Its worker was lost; it may be leased again at once.
    Requeued,
    /// It ended well.
    Succeeded,
    /// It ended badly.
    Failed,
    /// It ended badly because it took too long.
    TimedOut,
    /// It was not run.
    Skipped,
    /// It was ended, or not begun, because the run was.
    Cancelled,
    /// A person rejected its gate.
    Rejected,
}

impl JobState {
    /// The state after `event`, which must name this job.
    ///
    /// One row per legal step. A step without a row cannot be recorded, because the server checks
    /// this table before every append, and cannot be replayed, because `evolve` checks it too.
    pub fn next(&self, event: &RunEvent) -> Result<Self, IllegalEvent> {
        use RunEvent as E;
        match (self, event) {
            (Self::Waiting, E::ConditionEvaluated { holds: true, .. }) => Ok(Self::Admitted),
            (Self::Waiting, E::ConditionEvaluated { holds: false, .. }) => Ok(Self::Declined),
            // Not from `Admitted`: a job whose condition holds is skipped only while it still waits
            // for needs, and its condition is decided after they have ended.
            (Self::Waiting | Self::Declined, E::JobSkipped { .. }) => Ok(Self::Skipped),
            (Self::Waiting | Self::Admitted, E::GateReached { approval_digest, .. }) => {
                Ok(Self::AtGate(*approval_digest))
            }
            (Self::AtGate(asked), E::GateApproved { approval_digest, approvals_remaining, .. })
                if asked == approval_digest =>
            {
                // The event says how many remain, so the table needs no policy, and old logs keep
                // their meaning when a policy changes.
                Ok(if *approvals_remaining == 0 { Self::Approved } else { self.clone() })
            }
            (Self::AtGate(asked), E::GateRejected { approval_digest: of, .. }) if asked == of => {
                Ok(Self::Rejected)
            }
            (Self::AtGate(asked), E::GateVoided { approval_digest: of, .. }) if asked == of => {
                Ok(Self::Waiting)
            }
            // Also once it has begun, as long as it is to begin again.
            (Self::Approved | Self::BackingOff(_) | Self::Requeued, E::GateVoided { .. }) => {
                Ok(Self::Waiting)
            }
            (
                Self::Waiting
                | Self::Admitted
                | Self::Approved
                | Self::BackingOff(_)
                | Self::Requeued,
                E::JobLeased { attempt, worker, .. },
            ) => Ok(Self::Leased(*attempt, worker.clone())),
            // The number is compared in every row that ends an attempt: this is where a late report
            // of an older one is stopped.
            (Self::Leased(held, _), E::JobSucceeded { attempt, .. }) if held == attempt => {
                Ok(Self::Succeeded)
            }
            (Self::Leased(held, _), E::JobAttemptFailed { attempt, retry_due, .. })
                if held == attempt =>
            {
                Ok(Self::BackingOff(*retry_due))
            }
            (Self::Leased(held, _), E::JobFailed { attempt, cause, .. }) if held == attempt => {
                Ok(Self::failed(cause))
            }
            (Self::Leased(held, _), E::JobCancelled { attempt, .. }) if held == attempt => {
                Ok(Self::Cancelled)
            }
            (Self::Leased(held, by), E::JobLost { attempt, worker, .. })
                // Also the worker: a loss is decided by the server, which could have an older
                // session of that number in mind.
                if held == attempt && by == worker =>
            {
                Ok(Self::Requeued)
            }
            // Never started: what it would have run could not be put together.
            (
                Self::Waiting
                | Self::Admitted
                | Self::Approved
                | Self::BackingOff(_)
                | Self::Requeued,
                E::JobFailed { cause: FailureCause::NotStarted(_), .. },
            ) => Ok(Self::Failed),
            // Only from the first state: a job that has run here has a history that a record of
            // another tool must not replace.
            (Self::Waiting, E::JobImported { result, .. }) => Ok(match result {
                ImportedResult::Succeeded => Self::Succeeded,
                ImportedResult::Failed => Self::Failed,
                ImportedResult::Skipped => Self::Skipped,
            }),
            (
                Self::Failed | Self::TimedOut | Self::Skipped | Self::Cancelled | Self::Rejected,
                E::JobRetried { .. },
            ) => Ok(Self::Waiting),
            (state, event) => Err(IllegalEvent::new(event, state.sentence())),
        }
    }

    fn failed(cause: &FailureCause) -> Self {
        match cause {
            FailureCause::TimedOut(_) => Self::TimedOut,
            FailureCause::ExitCode(_)
            | FailureCause::Signal(_)
            | FailureCause::NotStarted(_)
            | FailureCause::OutputUnusable(_)
            | FailureCause::ReportInvalid(_)
            | FailureCause::Lost(_) => Self::Failed,
        }
    }

    /// The attempt that is under way, and who runs it.
    pub fn lease(&self) -> Option<(Attempt, &WorkerName)> {
        if let Self::Leased(attempt, worker) = self { Some((*attempt, worker)) } else { None }
    }

    /// Whether the job has ended, in the current state of the run.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Succeeded
            | Self::Failed
            | Self::TimedOut
            | Self::Skipped
            | Self::Cancelled
            | Self::Rejected => true,
            Self::Waiting
            | Self::Admitted
            | Self::Declined
            | Self::AtGate(_)
            | Self::Approved
            | Self::Leased(..)
            | Self::BackingOff(_)
            | Self::Requeued => false,
        }
    }

    /// Whether the job ended in another way than by success.
    pub fn is_over_badly(&self) -> bool {
        self.is_over() && *self != Self::Succeeded
    }

    /// The state in one word, stable: machine output and expressions use it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Admitted => "admitted",
            Self::Declined => "declined",
            Self::AtGate(_) => "at_gate",
            Self::Approved => "approved",
            Self::Leased(..) => "running",
            Self::BackingOff(_) => "backing_off",
            Self::Requeued => "requeued",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
            Self::Rejected => "rejected",
        }
    }

    fn sentence(&self) -> String {
        format!("a job is {}", self.word())
    }
}

#[cfg(test)]
mod tests;
