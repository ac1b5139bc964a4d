//! Time passes: what is due by now. Due times are in events; the timer itself has no state.

use crate::{event::RunEvent, refusal::Refusal, run::Run, time::Timestamp};

/// A run that has taken too long is ended, and approvals that have expired are void. (A job in
/// back-off needs no event to become due.)
pub(super) fn decide(run: &Run, now: Timestamp) -> Result<Vec<RunEvent>, Refusal> {
    let due = run.due().is_some_and(|due| due <= now);
    if !run.phase().is_running() {
        return Ok(Vec::new());
    }
    // One or the other: a run that timed out cancels its gates, and voiding their approvals first
    // would only add events.
    Ok(if due { vec![RunEvent::RunTimedOut {}] } else { run.lapsed(now) })
}

#[cfg(test)]
mod tests {
    use crate::{
        decide::{Command, Ended, testing::*},
        event::RunOutcome,
        run::Phase,
    };

    #[test]
    fn a_run_that_takes_too_long_is_ended() {
        let mut fixture = Fixture::begin_with(vec![job("a"), job("b")], |create| {
            create.plan.timeout_ms = Some(60_000);
        });
        fixture.leases();
        assert_eq!(
            fixture.run.next_due(fixture.now).map(|due| due.ms_since(fixture.now)),
            Some(60_000)
        );

        fixture.passes(59_999);
        fixture.carries_out(&Command::PassTime);
        assert_eq!(*fixture.run.phase(), Phase::Running);
        fixture.passes(1);
        fixture.carries_out(&Command::PassTime);
        assert_eq!(*fixture.run.phase(), Phase::TimingOut);
        fixture.reports("a", Ended::Cancelled);

        assert_eq!(*fixture.run.phase(), Phase::Finished(RunOutcome::TimedOut));
    }
}
