//! The steps of a run's life that an operator follows in the log lines of a server.

use crate::event::{RunEvent, RunOutcome};

/// One step in the life of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifecycleStep<'a> {
    /// It was created.
    Created {
        /// The name of its pipeline.
        pipeline: &'a str,
        /// How many jobs it has.
        jobs: u32,
    },
    /// It was resumed.
    Resumed,
    /// It has ended.
    Finished {
        /// How.
        outcome: RunOutcome,
    },
}

/// The step that `event` is. `None`: it is in the log of the store alone. A log line for each lease
/// would hide the steps.
pub fn lifecycle_step(event: &RunEvent) -> Option<LifecycleStep<'_>> {
    match event {
        RunEvent::RunCreated { pipeline, jobs, .. } => {
            Some(LifecycleStep::Created { pipeline, jobs: *jobs })
        }
        RunEvent::RunResumed {} => Some(LifecycleStep::Resumed),
        RunEvent::RunFinished { outcome, .. } => {
            Some(LifecycleStep::Finished { outcome: *outcome })
        }
        // An abort, a cancel and a timeout end the run, and the line of the end says which it was.
        RunEvent::JobsPlanned { .. }
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
        | RunEvent::RunAborted { .. }
        | RunEvent::RunCancelRequested { .. }
        | RunEvent::RunTimedOut {}
        | RunEvent::JobsInvalidated { .. }
        | RunEvent::JobRetried { .. }
        | RunEvent::PlanReplaced { .. }
        | RunEvent::JobImported { .. } => None,
    }
}
