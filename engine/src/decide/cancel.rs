//! `tow cancel`: a person ends a run, whatever state it is in.

use crate::{
    event::RunEvent,
    refusal::Refusal,
    run::{Phase, Run},
};

/// What has not begun is cancelled at once; what runs is ended by its worker and then reported.
pub(super) fn decide(run: &Run, reason: &str) -> Result<Vec<RunEvent>, Refusal> {
    let reason = super::bounded_comment(reason)?;
    match run.phase() {
        Phase::Unborn | Phase::Planning => Err(Refusal::RunUnknown),
        Phase::Running | Phase::Aborting | Phase::TimingOut => {
            Ok(vec![RunEvent::RunCancelRequested { reason }])
        }
        Phase::Cancelling => Ok(Vec::new()),
        Phase::Finished(crate::event::RunOutcome::Cancelled) => Ok(Vec::new()),
        phase @ Phase::Finished(_) => Err(Refusal::RunEnded { phase: phase.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::{Command, Ended, testing::*},
        event::RunOutcome,
        plan::OnFailure,
    };

    #[test]
    fn a_run_at_a_gate_can_be_cancelled() {
        let mut fixture = Fixture::begin(vec![gated(job("x"))]);
        fixture.cancels();
        assert_eq!(*fixture.run.phase(), Phase::Finished(RunOutcome::Cancelled));
    }

    #[test]
    fn a_cancelled_run_ends_once_what_runs_has_been_ended() {
        let mut fixture = Fixture::begin(vec![job("a"), job("b"), job("c")]);
        fixture.leases();
        fixture.leases();
        fixture.cancels();
        assert_eq!(fixture.leases(), None);

        fixture.reports("a", Ended::Cancelled);
        fixture.succeeds("b");

        assert_eq!(*fixture.run.phase(), Phase::Finished(RunOutcome::Cancelled));
        assert_eq!(fixture.run.counts().succeeded, 1, "what had already succeeded stays so");
    }

    #[test]
    fn an_aborting_run_can_be_cancelled_and_a_finished_one_cannot() {
        let mut check = job("check");
        check.on_failure = OnFailure::Abort;
        let mut fixture = Fixture::begin(vec![check, job("b")]);
        fixture.leases();
        fixture.leases();
        fixture.fails("check", 1);
        fixture.cancels();
        assert_eq!(*fixture.run.phase(), Phase::Cancelling);

        let mut fixture = Fixture::begin(vec![job("a")]);
        fixture.runs("a");
        assert_eq!(fixture.refused(&Command::Cancel(String::new())).code().as_str(), "RUN_ENDED");
    }

    #[test]
    fn a_second_cancel_changes_nothing() {
        let mut fixture = Fixture::begin(vec![job("a")]);
        fixture.leases();
        fixture.cancels();
        let before = fixture.facts.len();
        fixture.cancels();
        assert_eq!(fixture.facts.len(), before);
    }
}
