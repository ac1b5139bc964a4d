//! Why is a job in its state? (`tow why`.)
//!
//! The answer is data. Which sentence and which command line say it is up to the client: the server
//! and the engine know no command line.

use crate::{
    ids::{Attempt, Digest, JobName, WorkerName},
    job::JobState,
    run::{Job, LockUsage, Phase, Run},
    time::Timestamp,
};

/// Most jobs that [`WaitReason::Needs`] names: a job may need thousands.
pub const NEEDS_NAMED_MAX: usize = 20;

/// What a job waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// Nothing: it has ended, as its state says.
    Ended,
    /// Its worker, which runs it.
    Running {
        /// Who runs it.
        worker: WorkerName,
        /// Which attempt it is.
        attempt: Attempt,
        /// When the attempt was leased.
        since: Timestamp,
        /// The run is ending, and the attempt is being ended with it.
        ending: bool,
    },
    /// Its worker, which is not connected. The script may still be running.
    WorkerAbsent {
        /// Who holds the lease.
        worker: WorkerName,
        /// Which attempt it is.
        attempt: Attempt,
        /// When the attempt was leased.
        since: Timestamp,
    },
    /// People, at its gate.
    Gate {
        /// When the gate was reached.
        since: Timestamp,
        /// Digest of what an approval covers.
        digest: Digest,
        /// How many people must still approve.
        approvals_remaining: u32,
    },
    /// The moment of its next attempt, after one that failed.
    Backoff {
        /// When it may be leased again.
        until: Timestamp,
    },
    /// Jobs that it needs.
    Needs {
        /// Those that have not ended, in file order, at most [`NEEDS_NAMED_MAX`]. Never empty.
        open: Vec<JobName>,
        /// How many have not ended.
        count: u32,
    },
    /// A job of an earlier stage.
    EarlierStage {
        /// The first job of the first stage that is not over.
        job: JobName,
    },
    /// A lock that others hold.
    Lock {
        /// The name of the resource.
        name: String,
        /// How many jobs hold it.
        held: u32,
        /// How many may.
        limit: u32,
    },
    /// Nothing: its run leases no more jobs.
    RunNotRunning {
        /// The phase of the run.
        phase: Phase,
    },
    /// A running job of the same run to end, because as many run as may.
    Parallelism {
        /// How many jobs of the run may run at once.
        limit: u32,
    },
    /// A worker that takes jobs of its run: none is connected.
    NoWorker,
    /// A worker that takes new jobs: all that are connected are drained.
    WorkersDrained,
    /// A worker that offers its tags: none that is connected does.
    Tags {
        /// The tags of the job.
        tags: Vec<String>,
    },
    /// The store, which takes no leases now.
    LeasingPaused,
    /// The next free slot of a worker.
    FreeSlot,
}

/// Which workers there are for a job, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerSupply {
    /// None is connected that takes jobs of the run.
    Absent,
    /// All of those that are connected are drained.
    Drained,
    /// Some take new jobs, and none of these offers the job's tags.
    WithoutTags,
    /// Some take new jobs and offer the job's tags.
    Fitting,
}

/// What an explanation needs to know beyond the run itself.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The moment it is.
    pub now: Timestamp,
    /// How many jobs of other runs hold each lock.
    pub locks_of_others: &'a LockUsage,
    /// Whether the worker that holds the job's lease is connected.
    pub holder_connected: bool,
    /// Which workers there are for the job.
    pub workers: WorkerSupply,
    /// The store takes no leases now.
    pub leasing_paused: bool,
}

/// What `job` of `run` waits for.
pub fn explain(run: &Run, job: &Job, around: &Surroundings<'_>) -> WaitReason {
    match &job.state {
        JobState::Succeeded
        | JobState::Failed
        | JobState::TimedOut
        | JobState::Skipped
        | JobState::Cancelled
        | JobState::Rejected => WaitReason::Ended,
        JobState::Leased(attempt, worker) => {
            let (worker, attempt, since) = (worker.clone(), *attempt, job.since);
            if around.holder_connected {
                let ending = run.phase().is_ending();
                WaitReason::Running { worker, attempt, since, ending }
            } else {
                WaitReason::WorkerAbsent { worker, attempt, since }
            }
        }
        JobState::AtGate(digest) => WaitReason::Gate {
            since: job.since,
            digest: *digest,
            approvals_remaining: job.approvals_remaining(),
        },
        // After that moment it waits like any other job, although no event says so.
        JobState::BackingOff(due) if *due > around.now => WaitReason::Backoff { until: *due },
        JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::Approved
        | JobState::Requeued
        | JobState::BackingOff(_) => of_waiting(run, job, around),
    }
}

/// What a job waits for that could be leased as far as its own state goes. What a person can do
/// least about comes last: a job that waits for its needs and for a worker waits for its needs.
fn of_waiting(run: &Run, job: &Job, around: &Surroundings<'_>) -> WaitReason {
    let needs = job.plan.needs.iter().filter_map(|need| run.job(need.as_str()));
    let open: Vec<&Job> = needs.filter(|need| !need.state.is_over()).collect();
    if !open.is_empty() {
        let names = open.iter().take(NEEDS_NAMED_MAX).map(|need| need.plan.name.clone());
        let count = u32::try_from(open.len()).unwrap_or(u32::MAX);
        return WaitReason::Needs { open: names.collect(), count };
    }
    if let Some(first) = open_in_earlier_stage(run, job) {
        return WaitReason::EarlierStage { job: first.plan.name.clone() };
    }
    if let Some(resource) = &job.plan.resource {
        let of = |locks: &LockUsage| locks.get(&resource.name).copied().unwrap_or(0);
        // A lock is shared by all runs of the server, so a run alone does not know who holds it.
        let held = of(around.locks_of_others) + of(run.busy());
        if held >= resource.limit {
            let (name, limit) = (resource.name.clone(), resource.limit);
            return WaitReason::Lock { name, held, limit };
        }
    }
    if *run.phase() != Phase::Running {
        return WaitReason::RunNotRunning { phase: run.phase().clone() };
    }
    let limit = run.header().map_or(1, |header| header.parallelism);
    if run.counts().running >= limit {
        return WaitReason::Parallelism { limit };
    }
    match around.workers {
        WorkerSupply::Absent => WaitReason::NoWorker,
        WorkerSupply::Drained => WaitReason::WorkersDrained,
        WorkerSupply::WithoutTags => WaitReason::Tags { tags: job.plan.tags.clone() },
        // Only where a lease would be decided at once: a store that takes none is then the reason.
        WorkerSupply::Fitting if around.leasing_paused => WaitReason::LeasingPaused,
        WorkerSupply::Fitting => WaitReason::FreeSlot,
    }
}

/// The first job of an earlier stage that has not ended.
fn open_in_earlier_stage<'a>(run: &'a Run, job: &Job) -> Option<&'a Job> {
    let stages = &run.header()?.stages;
    let place = |job: &Job| stages.iter().position(|stage| *stage == job.plan.stage);
    let own = place(job)?;
    run.jobs()
        .iter()
        .filter(|other| !other.state.is_over() && place(other).is_some_and(|at| at < own))
        // The first open stage is the cause; those between it and the job wait as well.
        .min_by_key(|other| place(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::{
            Command, Ended,
            testing::{Fixture, gated, job, needing, staged},
        },
        event::FailureCause,
        plan::{Resource, RetryPolicy},
    };

    fn why(fixture: &Fixture, job: &str, workers: WorkerSupply) -> WaitReason {
        let locks_of_others = LockUsage::from([("target".to_owned(), 1)]);
        let around = Surroundings {
            now: fixture.now,
            locks_of_others: &locks_of_others,
            holder_connected: workers > WorkerSupply::Absent,
            workers,
            leasing_paused: false,
        };
        explain(&fixture.run, fixture.run.job(job).unwrap(), &around)
    }

    fn reasons(fixture: &Fixture) -> Vec<WaitReason> {
        let names = fixture.run.jobs().iter().map(|job| job.plan.name.clone());
        names.map(|name| why(fixture, name.as_str(), WorkerSupply::Fitting)).collect()
    }

    #[test]
    fn every_job_says_what_it_waits_for_first() {
        let mut locked = job("locked");
        locked.resource = Some(Resource { name: "target".into(), limit: 1 });
        let jobs = vec![
            job("a"),
            needing(job("b"), "a"),
            gated(job("gate")),
            locked,
            job("free"),
            staged(job("late"), "late"),
        ];
        let mut fixture = Fixture::begin(jobs);
        let gate = fixture.run.job("gate").unwrap();
        let JobState::AtGate(digest) = gate.state else { panic!("{:?}", gate.state) };
        let needs = || WaitReason::Needs { open: vec!["a".into()], count: 1 };
        let expected = [
            WaitReason::FreeSlot,
            needs(),
            WaitReason::Gate { since: gate.since, digest, approvals_remaining: 1 },
            WaitReason::Lock { name: "target".into(), held: 1, limit: 1 },
            WaitReason::FreeSlot,
            WaitReason::EarlierStage { job: "a".into() },
        ];
        assert_eq!(reasons(&fixture), expected);
        assert_eq!(why(&fixture, "a", WorkerSupply::Absent), WaitReason::NoWorker);
        assert_eq!(why(&fixture, "a", WorkerSupply::Drained), WaitReason::WorkersDrained);
        let tags = WaitReason::Tags { tags: Vec::new() };
        assert_eq!(why(&fixture, "a", WorkerSupply::WithoutTags), tags);

        assert_eq!(fixture.leases().as_deref(), Some("a"));
        let (worker, attempt, since) = ("w1".into(), Attempt::FIRST, fixture.now);
        let running = WaitReason::Running { worker, attempt, since, ending: false };
        assert_eq!(why(&fixture, "a", WorkerSupply::Fitting), running);
        let absent = WaitReason::WorkerAbsent { worker: "w1".into(), attempt, since };
        assert_eq!(why(&fixture, "a", WorkerSupply::Absent), absent);
        assert_eq!(why(&fixture, "b", WorkerSupply::Fitting), needs());
        fixture.fails("a", 1);
        assert_eq!(why(&fixture, "a", WorkerSupply::Fitting), WaitReason::Ended);
        assert_eq!(why(&fixture, "b", WorkerSupply::Fitting), WaitReason::Ended);
    }

    #[test]
    fn a_run_that_ends_is_the_reason_of_what_it_still_holds() {
        let mut fixture = Fixture::begin(vec![job("a")]);
        assert_eq!(fixture.leases().as_deref(), Some("a"));
        fixture.carries_out(&Command::Cancel("enough".to_owned()));

        let reason = why(&fixture, "a", WorkerSupply::Fitting);

        assert!(matches!(reason, WaitReason::Running { ending: true, .. }), "{reason:?}");
    }

    #[test]
    fn an_attempt_that_failed_waits_for_its_next_one() {
        let mut again = job("a");
        again.retry = Some(RetryPolicy {
            max: 1,
            backoff_ms: 5_000,
            factor_percent: 100,
            backoff_max_ms: 5_000,
            jitter_percent: 0,
            on: Vec::new(),
        });
        let mut fixture = Fixture::begin(vec![again]);
        assert_eq!(fixture.leases().as_deref(), Some("a"));
        fixture.reports("a", Ended::Failed(FailureCause::ExitCode(1)));

        let WaitReason::Backoff { until } = why(&fixture, "a", WorkerSupply::Fitting) else {
            panic!("{:?}", why(&fixture, "a", WorkerSupply::Fitting))
        };
        assert!(until > fixture.now);
        fixture.passes(60_000);
        assert_eq!(why(&fixture, "a", WorkerSupply::Fitting), WaitReason::FreeSlot);
    }

    #[test]
    fn no_more_needs_are_named_than_may_be() {
        let needs: Vec<String> = (0..NEEDS_NAMED_MAX * 2).map(|n| format!("n{n}")).collect();
        let last = needs.iter().fold(job("last"), |last, need| needing(last, need));
        let jobs = needs.iter().map(|need| job(need)).chain([last]).collect();

        let reason = why(&Fixture::begin(jobs), "last", WorkerSupply::Fitting);

        let WaitReason::Needs { open, count } = reason else { panic!("{reason:?}") };
        assert_eq!((open.len(), count as usize), (NEEDS_NAMED_MAX, needs.len()));
    }
}
