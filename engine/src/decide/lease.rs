//! A worker gets the lease of the next job that fits its tags.

use crate::{
    event::{FailureCause, RunEvent},
    ids::{JobName, WorkerName},
    refusal::Refusal,
    run::{LockUsage, Run},
    time::Timestamp,
};

/// Give a job to a worker.
#[derive(Clone, Debug)]
pub struct LeaseJob {
    /// The worker.
    pub worker: WorkerName,
    /// What it offers.
    pub tags: Vec<String>,
    /// The lease expires after this time without a heartbeat, in milliseconds.
    pub lease_ms: u64,
    /// How many jobs of other runs hold each lock.
    pub busy: LockUsage,
    /// The one job that the worker was started for, with any tags.
    pub only: Option<JobName>,
}

pub(super) fn decide(
    run: &Run,
    lease: &LeaseJob,
    now: Timestamp,
) -> Result<Vec<RunEvent>, Refusal> {
    if run.header().is_none() {
        return Err(Refusal::RunUnknown);
    }
    let next = match &lease.only {
        Some(only) => run.leasable(only, &lease.busy, now),
        None => run.next_for(&lease.tags, &lease.busy, now),
    };
    // Not a refusal: the scheduler asks whenever a slot is free, and another worker may have been
    // first.
    let Some(job) = next else { return Ok(Vec::new()) };
    // The events that void the approvals instead of a lease: the gate asks again, and the next
    // lease is decided on that state.
    if job.has_lapsed(now) {
        return Ok(run.lapsed(now));
    }
    let name = job.plan.name.clone();
    Ok(vec![match run.assignment(job) {
        // The assignment is built and dropped. If a value is missing the job must fail here, before
        // a worker holds a lease for a script that cannot be written.
        Ok(_) => RunEvent::JobLeased {
            job: name,
            attempt: job.attempt.next(),
            worker: lease.worker.clone(),
            lease_ms: lease.lease_ms,
        },
        Err(why) => RunEvent::JobFailed {
            job: name,
            // No new number: no attempt has begun, and a fence without a lease would be a gap.
            attempt: job.attempt,
            cause: FailureCause::NotStarted(why).bounded(),
            ran_ms: 0,
            captured_output: None,
        },
    }])
}

#[cfg(test)]
mod tests {
    use crate::{
        decide::testing::*,
        plan::{Resource, RetryPolicy},
        run::LockUsage,
    };

    #[test]
    fn jobs_are_given_in_file_order_up_to_the_parallelism() {
        let mut fixture = Fixture::begin(vec![job("a"), job("b"), job("c")]);

        let given: Vec<_> = (0..3).map(|_| fixture.leases()).collect();

        assert_eq!(given, [Some("a".into()), Some("b".into()), None]);
    }

    #[test]
    fn a_job_waits_for_its_needs_and_for_the_stage_before() {
        let mut fixture =
            Fixture::begin(vec![job("a"), needing(job("b"), "a"), staged(job("z"), "late")]);

        assert_eq!(fixture.leases().as_deref(), Some("a"));
        assert_eq!(fixture.leases(), None);
        fixture.succeeds("a");
        assert_eq!(fixture.leases().as_deref(), Some("b"));
        assert_eq!(fixture.leases(), None);
        fixture.succeeds("b");
        assert_eq!(fixture.leases().as_deref(), Some("z"));
    }

    #[test]
    fn a_worker_without_the_tag_is_not_given_the_job() {
        let mut tagged = job("a");
        tagged.tags = vec!["eu".into()];
        let mut fixture = Fixture::begin(vec![tagged, job("b")]);

        assert_eq!(fixture.leases().as_deref(), Some("b"));
        assert_eq!(fixture.leases_with(&["eu"], LockUsage::new()).as_deref(), Some("a"));
    }

    #[test]
    fn a_job_says_how_much_it_prefers_a_worker_while_it_waits_for_one() {
        let mut has_preferences = needing(job("b"), "a");
        has_preferences.prefer = [("ssd".to_owned(), 10), ("near".to_owned(), 50)].into();
        let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
        assert_eq!(has_preferences.preference(&tags(&["ssd", "near", "eu"])), 60);
        assert_eq!(has_preferences.preference(&tags(&["eu"])), 0);
        let mut fixture = Fixture::begin(vec![job("a"), has_preferences]);

        assert!(!fixture.run.has_preferences(), "the job without a preference comes first");
        fixture.runs("a");
        assert!(fixture.run.has_preferences());
        assert_eq!(fixture.leases().as_deref(), Some("b"), "a preference keeps nothing back");
        assert!(!fixture.run.has_preferences());
    }

    #[test]
    fn a_worker_that_is_there_for_one_job_waits_for_it_and_needs_no_tags() {
        let mut tagged = needing(job("b"), "a");
        tagged.tags = vec!["eu".into()];
        tagged.resource = Some(Resource { name: "target".into(), limit: 1 });
        let mut fixture = Fixture::begin(vec![job("a"), tagged]);
        let busy = LockUsage::from([("target".to_owned(), 1)]);

        assert_eq!(fixture.leases_only("b", LockUsage::new()), None, "its need is open");
        assert_eq!(fixture.leases_only("nobody", LockUsage::new()), None);
        fixture.runs("a");
        assert_eq!(fixture.leases_only("b", busy), None, "its lock is held");
        assert_eq!(fixture.leases_only("b", LockUsage::new()).as_deref(), Some("b"));
        assert_eq!(fixture.leases_only("b", LockUsage::new()), None);
    }

    #[test]
    fn a_lock_that_another_run_holds_keeps_the_job_back() {
        let mut locked = job("a");
        locked.resource = Some(Resource { name: "target".into(), limit: 1 });
        let mut second = locked.clone();
        second.name = "b".into();
        let mut fixture = Fixture::begin(vec![locked, second]);

        let busy = LockUsage::from([("target".to_owned(), 1)]);
        assert_eq!(fixture.leases_with(&[], busy), None);
        assert_eq!(fixture.leases().as_deref(), Some("a"));
        assert_eq!(fixture.leases(), None, "the run's own lease holds it too");
    }

    #[test]
    fn a_job_in_backoff_is_given_only_when_it_is_due() {
        let mut flaky = job("a");
        flaky.retry = Some(RetryPolicy {
            max: 1,
            backoff_ms: 5_000,
            factor_percent: 200,
            backoff_max_ms: 60_000,
            jitter_percent: 0,
            on: Vec::new(),
        });
        let mut fixture = Fixture::begin(vec![flaky]);
        fixture.leases();
        fixture.fails("a", 1);

        fixture.passes(4_999);
        assert_eq!(fixture.leases(), None);
        fixture.passes(1);
        assert_eq!(fixture.leases().as_deref(), Some("a"));
        assert_eq!(fixture.run.job("a").unwrap().attempt.0, 2);
    }

    #[test]
    fn jobs_that_want_the_same_are_counted_together() {
        let mut tagged = job("a");
        tagged.tags = vec!["eu".into()];
        let mut locked = job("b");
        locked.resource = Some(Resource { name: "target".into(), limit: 1 });
        let mut second = locked.clone();
        second.name = "c".into();
        let mut fixture = Fixture::begin(vec![tagged, locked, second, staged(job("z"), "late")]);
        let wants = |fixture: &Fixture| -> Vec<(Vec<String>, u32, u32)> {
            let all = fixture.run.wants(fixture.now).into_iter();
            let mut all: Vec<_> = all.map(|it| (it.want.tags.clone(), it.jobs, it.first)).collect();
            all.sort();
            all
        };
        let eu = || vec!["eu".to_owned()];

        assert_eq!(wants(&fixture), [(vec![], 2, 1), (eu(), 1, 0)]);
        assert_eq!(fixture.run.room(), 2);
        fixture.leases();
        assert_eq!(wants(&fixture), [(vec![], 1, 2), (eu(), 1, 0)]);
        assert_eq!(*fixture.run.busy(), LockUsage::from([("target".to_owned(), 1)]));
        fixture.leases_with(&["eu"], LockUsage::new());
        assert_eq!((wants(&fixture), fixture.run.room()), (vec![(vec![], 1, 2)], 0));
        fixture.succeeds("b");
        assert!(fixture.run.busy().is_empty());
    }

    #[test]
    fn a_placeholder_that_names_nothing_fails_the_job_before_it_starts() {
        let mut broken = needing(job("b"), "a");
        broken.script = "echo ${{ needs.a.outputs.rows }}".into();
        let mut fixture = Fixture::begin(vec![job("a"), broken]);
        fixture.leases();
        fixture.succeeds("a");

        assert_eq!(fixture.leases(), None);
        assert_eq!(fixture.kinds()[fixture.facts.len() - 2..], ["job_failed", "run_finished"]);
    }
}
