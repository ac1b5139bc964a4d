//! `tow retry`: one job, and what was skipped because of it, gets another chance.

use crate::{
    event::{RunEvent, SkipCause, VoidCause},
    ids::JobName,
    refusal::Refusal,
    run::Run,
};

pub(super) fn decide(run: &Run, name: &JobName) -> Result<Vec<RunEvent>, Refusal> {
    let job = super::known(run, name)?;
    if run.phase().is_ending() {
        return Err(Refusal::RunEnding { phase: run.phase().clone() });
    }
    // A condition reads what is frozen, and would leave the job out again.
    if !job.state.is_over_badly() || job.skipped == Some(SkipCause::ConditionFalse) {
        let state = job.state.word();
        return Err(Refusal::JobNotRetryable { job: name.clone(), state });
    }
    let mut events = Vec::new();
    if run.phase().is_running() {
        events = run.voids(&VoidCause::JobRepeated(name.clone()), run.freed_by(name));
    }
    events.push(RunEvent::JobRetried { job: name.clone() });
    Ok(events)
}

#[cfg(test)]
mod tests {
    use crate::{
        decide::{Command, testing::*},
        job::JobState,
    };

    #[test]
    fn a_retried_job_takes_along_what_was_skipped_because_of_it() {
        let jobs = vec![job("a"), needing(job("b"), "a"), job("x"), needing(job("y"), "x")];
        let mut fixture = Fixture::begin(jobs);
        fixture.leases();
        fixture.fails("a", 1);
        fixture.leases();
        fixture.fails("x", 1);

        fixture.carries_out(&Command::Retry("a".into()));

        assert_eq!(fixture.leases().as_deref(), Some("a"));
        assert_eq!(fixture.run.job("b").unwrap().state, JobState::Waiting);
        assert_eq!(fixture.run.job("y").unwrap().state, JobState::Skipped);
    }

    #[test]
    fn a_requeued_job_waits_for_a_stage_that_was_opened_again() {
        let mut fixture = Fixture::begin(vec![staged(job("z"), "late"), job("a")]);
        fixture.leases();
        fixture.fails("a", 1);
        fixture.leases();
        fixture.loses("z");

        fixture.carries_out(&Command::Retry("a".into()));

        assert_eq!(fixture.leases().as_deref(), Some("a"));
        assert_eq!(fixture.leases(), None);
    }

    #[test]
    fn a_job_that_has_not_failed_is_not_retried() {
        let mut fixture = Fixture::begin(vec![job("a"), job("b")]);
        fixture.runs("a");
        for name in ["a", "b"] {
            assert_eq!(
                fixture.refused(&Command::Retry(name.into())).code().as_str(),
                "JOB_NOT_RETRYABLE"
            );
        }
        assert_eq!(fixture.refused(&Command::Retry("c".into())).code().as_str(), "JOB_UNKNOWN");
    }
}
