//! `tow reject`: a person rejects a gate.

use crate::{
    event::RunEvent,
    ids::{Digest, JobName},
    job::JobState,
    refusal::Refusal,
    run::Run,
};

/// Reject the gate of a job.
#[derive(Clone, Debug)]
pub struct RejectGate {
    /// The job behind it.
    pub job: JobName,
    /// Digest of what the person read. `None`: whatever waits.
    pub approval_digest: Option<Digest>,
    /// What they say.
    pub comment: String,
}

/// Records who rejected the gate of a job. What needs the job is skipped; the run ends as
/// rejected unless something else fails.
pub(super) fn decide(run: &Run, reject: &RejectGate) -> Result<Vec<RunEvent>, Refusal> {
    let RejectGate { job, approval_digest, comment } = reject.clone();
    let known = super::known(run, &job)?;
    let comment = super::bounded_comment(&comment)?;
    match (&known.state, &known.gate) {
        (JobState::AtGate(waiting), _) => match approval_digest {
            Some(given) if given != *waiting => {
                Err(Refusal::ApprovalStale { job, waiting: *waiting, given })
            }
            Some(_) | None => {
                Ok(vec![RunEvent::GateRejected { job, approval_digest: *waiting, comment }])
            }
        },
        (JobState::Rejected, _) => Ok(Vec::new()),
        (_, Some(gate)) if gate.approved => {
            Err(Refusal::GateDecided { job, decision: "approved", by: gate.by.to_string() })
        }
        (state, _) => Err(Refusal::GateNotWaiting { job, state: state.word() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::{Command, testing::*},
        event::RunOutcome,
        run::Phase,
    };

    fn rejection(job: &str) -> Command {
        Command::Reject(RejectGate {
            job: job.into(),
            approval_digest: None,
            comment: "not today".into(),
        })
    }

    #[test]
    fn a_rejected_gate_ends_the_run_as_rejected() {
        let mut fixture =
            Fixture::begin(vec![gated(job("cutover")), needing(job("after"), "cutover")]);

        fixture.carries_out(&rejection("cutover"));

        assert_eq!(fixture.run.job("after").unwrap().state, JobState::Skipped);
        assert_eq!(*fixture.run.phase(), Phase::Finished(RunOutcome::Rejected));
    }

    #[test]
    fn a_decision_cannot_be_turned_round() {
        let mut fixture = Fixture::begin(vec![gated(job("x")), job("y")]);
        fixture.approves("x");
        assert_eq!(fixture.refused(&rejection("x")).code().as_str(), "GATE_DECIDED");

        let mut fixture = Fixture::begin(vec![gated(job("x")), job("y")]);
        let approval = fixture.approval("x");
        fixture.carries_out(&rejection("x"));
        assert_eq!(fixture.refused(&approval).code().as_str(), "GATE_DECIDED");
    }
}
