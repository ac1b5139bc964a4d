//! The life of a whole run, as a table.

use serde::{Deserialize, Serialize};

use crate::{
    any_event::IllegalEvent,
    event::{RunEvent, RunOutcome},
};

/// The phase of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing has happened yet.
    #[default]
    Unborn,
    /// Its plan is being written down.
    Planning,
    /// Jobs may be leased.
    Running,
    /// A failure ended it; what runs is being cancelled.
    Aborting,
    /// A person ended it; what runs is being cancelled.
    Cancelling,
    /// It took too long; what runs is being cancelled.
    TimingOut,
    /// Every job has ended.
    Finished(RunOutcome),
}

impl Phase {
    /// The phase after `event`. Events about a job leave the phase as it is, if it allows them.
    pub fn next(&self, event: &RunEvent) -> Result<Self, IllegalEvent> {
        use RunEvent as E;
        match (self, event) {
            (Self::Unborn, E::RunCreated { .. })
            | (Self::Planning, E::JobsPlanned { .. })
            | (Self::Running | Self::Finished(_), E::PlanReplaced { .. }) => Ok(Self::Planning),
            (Self::Planning, E::RunStarted {}) => Ok(Self::Running),
            (Self::Running, E::RunAborted { .. }) => Ok(Self::Aborting),
            (Self::Running | Self::Aborting | Self::TimingOut, E::RunCancelRequested { .. }) => {
                Ok(Self::Cancelling)
            }
            (Self::Running, E::RunTimedOut {}) => Ok(Self::TimingOut),
            (
                Self::Running | Self::Aborting | Self::Cancelling | Self::TimingOut,
                E::RunFinished { outcome, .. },
            ) => Ok(Self::Finished(*outcome)),
            (
                Self::Running | Self::Finished(_),
                E::RunResumed {} | E::JobsInvalidated { .. } | E::JobRetried { .. },
            ) => Ok(Self::Running),
            (
                Self::Running,
                E::ConditionEvaluated { .. }
                | E::GateReached { .. }
                | E::GateApproved { .. }
                | E::GateVoided { .. }
                | E::GateRejected { .. }
                | E::JobLeased { .. }
                | E::JobAttemptFailed { .. }
                | E::JobLost { .. }
                | E::JobSkipped { .. }
                | E::JobImported { .. },
            ) => Ok(Self::Running),
            (
                Self::Running | Self::Aborting | Self::Cancelling | Self::TimingOut,
                E::JobSucceeded { .. } | E::JobFailed { .. } | E::JobCancelled { .. },
            ) => Ok(self.clone()),
            (phase, event) => Err(IllegalEvent::new(event, phase.sentence())),
        }
    }

    /// Whether anything may still happen without a person.
    pub fn is_live(&self) -> bool {
        match self {
            Self::Planning
            | Self::Running
            | Self::Aborting
            | Self::Cancelling
            | Self::TimingOut => true,
            Self::Unborn | Self::Finished(_) => false,
        }
    }

    /// Whether what runs is to be cancelled.
    pub fn is_ending(&self) -> bool {
        match self {
            Self::Aborting | Self::Cancelling | Self::TimingOut => true,
            Self::Unborn | Self::Planning | Self::Running | Self::Finished(_) => false,
        }
    }

    /// The phase in one word, stable: machine output uses it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unborn => "unborn",
            Self::Planning => "planning",
            Self::Running => "running",
            Self::Aborting => "aborting",
            Self::Cancelling => "cancelling",
            Self::TimingOut => "timing_out",
            Self::Finished(outcome) => outcome.word(),
        }
    }

    fn sentence(&self) -> String {
        format!("a run is {}", self.word())
    }
}

impl RunOutcome {
    /// Every outcome.
    pub const ALL: [Self; 6] = [
        Self::Succeeded,
        Self::Partial,
        Self::Failed,
        Self::Rejected,
        Self::Cancelled,
        Self::TimedOut,
    ];

    /// The outcome in one word, stable: machine output uses it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::test_events::one_of_each_kind;

    /// Every phase × every kind of event: the drawing of the table above.
    #[test]
    fn the_whole_life_of_a_run() {
        let phases = [
            Phase::Unborn,
            Phase::Planning,
            Phase::Running,
            Phase::Aborting,
            Phase::Cancelling,
            Phase::TimingOut,
            Phase::Finished(RunOutcome::Failed),
        ];
        let mut table = format!("{:21}", "event");
        for phase in &phases {
            let word =
                if phase.is_live() || *phase == Phase::Unborn { phase.word() } else { "finished" };
            write!(table, "|{word:11}").unwrap();
        }
        table.push('\n');
        for event in one_of_each_kind() {
            write!(table, "{:21}", event.kind()).unwrap();
            for phase in &phases {
                let next = phase.next(&event);
                write!(table, "|{:11}", next.map_or("-", |next| next.word())).unwrap();
            }
            table.push('\n');
        }
        let golden = include_str!("../../golden/run_life.txt");
        assert_eq!(table, golden, "the table is now:\n{table}");
    }
}
