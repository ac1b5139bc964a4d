//! What events of several kinds have in common: the job, the attempt, what it printed. Readers that
//! need one of these ask here, and need not know the kinds.

use super::RunEvent;
use crate::ids::{Attempt, Blob, JobName};

impl RunEvent {
    /// The job that this event is about, if it is about one.
    pub fn job(&self) -> Option<&JobName> {
        match self {
            Self::ConditionEvaluated { job, .. }
            | Self::GateReached { job, .. }
            | Self::GateApproved { job, .. }
            | Self::GateVoided { job, .. }
            | Self::GateRejected { job, .. }
            | Self::JobLeased { job, .. }
            | Self::JobSucceeded { job, .. }
            | Self::JobAttemptFailed { job, .. }
            | Self::JobFailed { job, .. }
            | Self::JobCancelled { job, .. }
            | Self::JobLost { job, .. }
            | Self::JobSkipped { job, .. }
            | Self::JobRetried { job }
            | Self::JobImported { job, .. } => Some(job),
            Self::RunCreated { .. }
            | Self::JobsPlanned { .. }
            | Self::RunStarted {}
            | Self::RunAborted { .. }
            | Self::RunCancelRequested { .. }
            | Self::RunTimedOut {}
            | Self::RunFinished { .. }
            | Self::RunResumed {}
            | Self::JobsInvalidated { .. }
            | Self::PlanReplaced { .. } => None,
        }
    }

    /// The attempt that this event gives to a worker, if it does.
    pub fn leased(&self) -> Option<(&JobName, Attempt)> {
        if let Self::JobLeased { job, attempt, .. } = self { Some((job, *attempt)) } else { None }
    }

    /// The words of the kinds for which [`RunEvent::reported`] answers something: a reader of
    /// records need not decode the others.
    pub const REPORT_KINDS: [&'static str; 4] =
        ["job_succeeded", "job_attempt_failed", "job_failed", "job_cancelled"];

    /// The attempt that this event ends by a report, and what it printed.
    pub fn reported(&self) -> Option<(Attempt, Option<Blob>)> {
        if let Self::JobSucceeded { attempt, captured_output, .. }
        | Self::JobAttemptFailed { attempt, captured_output, .. }
        | Self::JobFailed { attempt, captured_output, .. }
        | Self::JobCancelled { attempt, captured_output, .. } = self
        {
            Some((*attempt, *captured_output))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_events::one_of_each_kind;

    #[test]
    fn every_kind_of_report_is_looked_into() {
        for event in one_of_each_kind() {
            let reports = event.reported().is_some();
            assert_eq!(RunEvent::REPORT_KINDS.contains(&event.kind()), reports, "{}", event.kind());
        }
    }

    #[test]
    fn one_kind_gives_an_attempt_to_a_worker() {
        let events = one_of_each_kind();
        let leases: Vec<_> = events.iter().filter_map(RunEvent::leased).collect();
        assert_eq!(leases, [(&"copy/orders: ü".into(), Attempt(2))]);
    }
}
