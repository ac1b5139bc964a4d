//! A worker is lost: what it held goes back, until it has gone back too often.

use crate::{
    event::{CAUSE_BYTES_MAX, FailureCause, RunEvent, bounded_text},
    ids::{Attempt, JobName},
    job::JobState,
    refusal::Refusal,
    retry::LOSSES_MAX,
    run::Run,
};

/// Take in that a worker is lost.
#[derive(Clone, Debug)]
pub struct LoseJob {
    /// The job it held.
    pub job: JobName,
    /// Which attempt.
    pub attempt: Attempt,
    /// What is known about why.
    pub reason: String,
}

pub(super) fn decide(run: &Run, lose: &LoseJob) -> Result<Vec<RunEvent>, Refusal> {
    let job = super::known(run, &lose.job)?;
    // A loss is reported by the server itself, which may be slower than the worker's own report:
    // then there is nothing left to lose.
    let JobState::Leased(held, worker) = &job.state else { return Ok(Vec::new()) };
    if *held != lose.attempt {
        return Ok(Vec::new());
    }
    let LoseJob { job: name, attempt, reason } = lose.clone();
    // The job was to be cancelled anyway. Lost, it would wait for a worker in a run that starts
    // nothing.
    if run.phase().is_ending() {
        return Ok(vec![RunEvent::JobCancelled {
            job: name,
            attempt,
            ran_ms: 0,
            captured_output: None,
        }]);
    }
    // A script that kills its worker, by memory for example, would otherwise take down one worker
    // after the other.
    if job.losses + 1 >= LOSSES_MAX {
        let cause = FailureCause::Lost(job.losses + 1);
        return Ok(vec![RunEvent::JobFailed {
            job: name,
            attempt,
            cause,
            ran_ms: 0,
            captured_output: None,
        }]);
    }
    // Workers write reasons. A loss that does not fit an event would leave the job leased for ever.
    let reason = bounded_text(reason, CAUSE_BYTES_MAX);
    Ok(vec![RunEvent::JobLost { job: name, attempt, worker: worker.clone(), reason }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::*;

    #[test]
    fn a_lost_job_is_given_again_under_the_next_attempt() {
        let mut fixture = Fixture::begin(vec![job("a")]);
        fixture.leases();

        fixture.loses("a");

        assert_eq!(fixture.leases().as_deref(), Some("a"));
        assert_eq!(fixture.run.job("a").unwrap().attempt, Attempt(2));
    }

    #[test]
    fn a_job_that_kills_its_workers_fails_in_the_end() {
        let mut fixture = Fixture::begin(vec![job("a")]);

        for _ in 0..LOSSES_MAX {
            assert!(fixture.leases().is_some());
            fixture.loses("a");
        }

        assert_eq!(fixture.run.job("a").unwrap().cause, Some(FailureCause::Lost(LOSSES_MAX)));
    }

    #[test]
    fn a_loss_of_any_words_is_recorded() {
        let mut stage = Fixture::begin(vec![job("a")]);
        stage.leases();
        let reason = "\0".repeat(1 << 20);

        stage.carries_out(&super::super::Command::Lose(LoseJob {
            job: "a".into(),
            attempt: Attempt(1),
            reason,
        }));

        assert_eq!(stage.run.job("a").unwrap().state, JobState::Requeued);
    }

    #[test]
    fn a_loss_during_the_end_of_a_run_does_not_hold_it_up() {
        let mut fixture = Fixture::begin(vec![job("a")]);
        fixture.leases();
        fixture.cancels();

        fixture.loses("a");

        assert_eq!(fixture.kinds().last(), Some(&"run_finished"));
    }
}
