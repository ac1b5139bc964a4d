//! A worker says how a job ended.

use std::collections::BTreeMap;

use super::LoseJob;
use crate::{
    codec::FACT_BYTES_MAX,
    event::{Artifact, FailureCause, RunEvent},
    ids::{Attempt, Blob, JobName, WorkerName},
    refusal::Refusal,
    results,
    retry::{backoff_ms, retries},
    run::{Job, Run},
    time::Timestamp,
};

/// Room for the envelope of a fact beside its event, in bytes: when, and by which worker.
const ENVELOPE_BYTES: usize = 1_024;

/// How a job ended, as its worker saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It did what it should.
    Succeeded {
        /// What it wrote to `$TOW_OUTPUT`.
        outputs: BTreeMap<String, String>,
        /// The files it left behind.
        artifacts: Vec<Artifact>,
    },
    /// It went wrong.
    Failed(FailureCause),
    /// It was ended on request.
    Cancelled,
}

/// Take in how a job ended.
#[derive(Clone, Debug)]
pub struct ReportJob {
    /// The job.
    pub job: JobName,
    /// Which attempt.
    pub attempt: Attempt,
    /// Who reports.
    pub worker: WorkerName,
    /// How it ended.
    pub ended: Ended,
    /// How long the script ran, in milliseconds by the worker's clock.
    pub ran_ms: u64,
    /// What it printed.
    pub captured_output: Option<Blob>,
}

pub(super) fn decide(
    run: &Run,
    report: &ReportJob,
    now: Timestamp,
) -> Result<Vec<RunEvent>, Refusal> {
    let job = super::known(run, &report.job)?;
    if job.state.lease() != Some((report.attempt, &report.worker)) {
        // Heard twice: the first time counted.
        // Workers repeat a report until they receive that it is recorded. A refusal of the
        // repetition would look like a void attempt.
        if job.state.is_over() && job.attempt == report.attempt {
            return Ok(Vec::new());
        }
        let ReportJob { job, attempt, worker, .. } = report.clone();
        return Err(Refusal::AttemptStale { job, attempt, worker });
    }
    let ReportJob { job: name, attempt, ended, ran_ms, captured_output, worker: _ } =
        report.clone();
    Ok(vec![match usable(ended) {
        Ended::Succeeded { outputs, artifacts } => {
            let event = RunEvent::JobSucceeded {
                job: name,
                attempt,
                ran_ms,
                outputs,
                captured_output,
                artifacts,
            };
            match too_long(&event) {
                // The rules above bound outputs and artifacts one by one. Together, and with the
                // escapes of JSON, they can still be more than an event holds.
                Some(why) => failure(run, job, (report, FailureCause::OutputUnusable(why)), now),
                None => event,
            }
        }
        Ended::Cancelled if run.phase().is_ending() => {
            RunEvent::JobCancelled { job: name, attempt, ran_ms, captured_output }
        }
        // The worker was told to stop, not the run: the job goes back, as often as lost ones do. A
        // worker that says so of everything it is given would else be given it for ever.
        Ended::Cancelled => {
            let reason = "the worker was stopped".to_owned();
            return super::lose::decide(run, &LoseJob { job: name, attempt, reason });
        }
        Ended::Failed(cause) => failure(run, job, (report, cause), now),
    }])
}

/// The end that can be recorded: what is wrong with a report fails its job.
///
/// A refusal instead would leave the job leased for ever, since its worker could only repeat the
/// same report.
fn usable(ended: Ended) -> Ended {
    match ended {
        Ended::Succeeded { outputs, artifacts } => match results::problem(&outputs, &artifacts) {
            Some(why) => Ended::Failed(FailureCause::OutputUnusable(why)),
            None => Ended::Succeeded { outputs, artifacts },
        },
        // Exit code 0 of a failure, or one that no process can have, would pass `retry.on` and the
        // display as a real one.
        Ended::Failed(FailureCause::ExitCode(code)) if !(1..=255).contains(&code) => {
            let why = format!("it names the exit code {code} for a failure");
            Ended::Failed(FailureCause::ReportInvalid(why))
        }
        Ended::Failed(FailureCause::Signal(signal)) if !(1..=64).contains(&signal) => {
            let why = format!("it names the signal {signal}, which does not exist");
            Ended::Failed(FailureCause::ReportInvalid(why))
        }
        Ended::Failed(cause) => Ended::Failed(cause.bounded()),
        Ended::Cancelled => Ended::Cancelled,
    }
}

/// Why `event` does not fit a record. `None`: it does.
fn too_long(event: &RunEvent) -> Option<String> {
    let bytes = serde_json::to_vec(event).expect("BUG: an event is always JSON").len();
    let bytes_max = FACT_BYTES_MAX - ENVELOPE_BYTES;
    (bytes > bytes_max).then(|| {
        format!("its outputs and artifacts take {bytes} bytes in an event that holds {bytes_max}")
    })
}

fn failure(
    run: &Run,
    job: &Job,
    (report, cause): (&ReportJob, FailureCause),
    now: Timestamp,
) -> RunEvent {
    let ReportJob { job: name, attempt, ran_ms, captured_output, .. } = report.clone();
    match retry_due(run, job, &cause, now) {
        Some(retry_due) => RunEvent::JobAttemptFailed {
            job: name,
            attempt,
            cause,
            ran_ms,
            captured_output,
            retry_due,
        },
        None => RunEvent::JobFailed { job: name, attempt, cause, ran_ms, captured_output },
    }
}

fn retry_due(run: &Run, job: &Job, cause: &FailureCause, now: Timestamp) -> Option<Timestamp> {
    let policy = job.plan.retry.as_ref()?;
    // This failure included: it is recorded by the event that is being decided.
    let failures = job.failures + 1;
    // A run that is being ended starts nothing, also no attempt that it would have to cancel at
    // once.
    if !run.phase().is_running() || !retries(policy, cause, failures) {
        return None;
    }
    let run = &run.header()?.run;
    Some(now.plus_ms(backoff_ms(policy, failures, run, &job.plan.name, job.attempt)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::{CONSEQUENCES_BYTES_MAX, Command, LeaseJob, testing::*},
        event::{RunOutcome, SkipCause},
        job::JobState,
        plan::{OnFailure, RetryPolicy, When},
        run::{LockUsage, Phase},
    };

    #[test]
    fn a_worker_that_stops_every_time_fails_the_job_in_the_end() {
        let mut fixture = Fixture::begin(vec![job("a")]);
        for _ in 0..crate::retry::LOSSES_MAX {
            assert_eq!(fixture.leases().as_deref(), Some("a"));
            fixture.reports("a", Ended::Cancelled);
        }
        assert_eq!(fixture.run.job("a").unwrap().state, JobState::Failed);
        assert_eq!(fixture.leases(), None);
    }

    #[test]
    fn a_run_whose_jobs_all_succeed_succeeds() {
        let mut fixture = Fixture::begin(vec![job("a"), needing(job("b"), "a")]);

        fixture.runs("a");
        fixture.runs("b");

        assert_eq!(*fixture.run.phase(), Phase::Finished(RunOutcome::Succeeded));
    }

    #[test]
    fn what_needs_a_failed_job_is_skipped_and_names_the_root() {
        let jobs = vec![job("a"), needing(job("b"), "a"), needing(job("c"), "b"), job("d")];
        let mut fixture = Fixture::begin(jobs);

        fixture.leases();
        fixture.fails("a", 1);

        let skipped = fixture.run.job("c").unwrap().skipped.clone();
        let cause = SkipCause::NeedUnmet { need: "b".into(), root: "a".into() };
        assert_eq!(skipped, Some(cause));
        assert_eq!(fixture.leases().as_deref(), Some("d"), "what does not need it goes on");
        fixture.succeeds("d");
        assert_eq!(*fixture.run.phase(), Phase::Finished(RunOutcome::Failed));
    }

    #[test]
    fn what_one_failure_skips_is_written_in_appends_of_bounded_size() {
        let dependents = 200_000;
        let jobs = std::iter::once(job("a"));
        let jobs = jobs.chain((0..dependents).map(|n| needing(job(&format!("b{n}")), "a")));
        let mut stage = Fixture::empty();
        let mut facts = Vec::new();
        let mut appends = 0;
        let mut carry_out = |stage: &mut Fixture, command: &Command| {
            let written = super::super::carry_out(&mut stage.run, command, &ana(), stage.now);
            let written = written.unwrap();
            let bytes: usize = written.iter().map(|(_, bytes)| bytes.len()).sum();
            facts.extend(written.into_iter().map(|(fact, _)| fact));
            bytes
        };
        carry_out(&mut stage, &Command::Create(creation(jobs.collect())));
        let lease = LeaseJob {
            worker: "w1".into(),
            tags: Vec::new(),
            lease_ms: 30_000,
            busy: LockUsage::new(),
            only: None,
        };
        carry_out(&mut stage, &Command::Lease(lease));

        let mut command = stage.report("a", Ended::Failed(FailureCause::ExitCode(1)));
        while stage.run.phase().is_live() {
            let bytes = carry_out(&mut stage, &command);
            assert!(bytes < CONSEQUENCES_BYTES_MAX + 2 * FACT_BYTES_MAX, "{bytes}");
            if stage.run.phase().is_live() {
                assert_eq!(stage.run.next_due(stage.now), Some(stage.now), "the rest is due");
            }
            command = Command::PassTime;
            appends += 1;
        }

        assert_eq!(*stage.run.phase(), Phase::Finished(RunOutcome::Failed));
        assert_eq!(stage.run.counts().skipped, dependents);
        assert!(appends > 3, "{appends}");
        assert!(Run::replay(&facts).unwrap() == stage.run, "the replay differs");
    }

    #[test]
    fn a_job_that_always_runs_runs_after_a_failure() {
        let mut tidy = needing(job("tidy"), "a");
        tidy.when = When::Always;
        let mut fixture = Fixture::begin(vec![job("a"), tidy]);

        fixture.leases();
        fixture.fails("a", 1);

        assert_eq!(fixture.leases().as_deref(), Some("tidy"));
    }

    #[test]
    fn an_abort_skips_the_rest_and_waits_for_what_runs() {
        let mut check = job("check");
        check.on_failure = OnFailure::Abort;
        let mut fixture = Fixture::begin(vec![check, job("b"), job("c")]);
        fixture.leases();
        fixture.leases();

        fixture.fails("check", 2);

        assert_eq!(*fixture.run.phase(), Phase::Aborting);
        assert_eq!(fixture.run.job("c").unwrap().state, JobState::Skipped);
        fixture.reports("b", Ended::Cancelled);
        assert_eq!(*fixture.run.phase(), Phase::Finished(RunOutcome::Failed));
    }

    #[test]
    fn a_run_that_lost_something_on_the_way_but_reached_its_end_is_partial() {
        let mut fixture = Fixture::begin(vec![job("a"), job("b"), staged(job("z"), "late")]);
        fixture.leases();
        fixture.leases();
        fixture.fails("a", 1);
        fixture.succeeds("b");

        fixture.runs("z");

        assert_eq!(*fixture.run.phase(), Phase::Finished(RunOutcome::Partial));
    }

    #[test]
    fn a_failed_try_is_repeated_as_often_as_allowed() {
        let mut flaky = job("a");
        flaky.retry = Some(RetryPolicy {
            max: 2,
            backoff_ms: 0,
            factor_percent: 100,
            backoff_max_ms: 0,
            jitter_percent: 0,
            on: Vec::new(),
        });
        let mut fixture = Fixture::begin(vec![flaky]);

        for _ in 0..3 {
            assert_eq!(fixture.leases().as_deref(), Some("a"));
            fixture.fails("a", 1);
        }

        let failures = ["job_attempt_failed", "job_attempt_failed", "job_failed"];
        let kinds = fixture.kinds().into_iter().filter(|kind| kind.ends_with("failed"));
        assert_eq!(kinds.collect::<Vec<_>>(), failures);
    }

    #[test]
    fn a_report_of_an_ended_attempt_changes_nothing() {
        let mut fixture = Fixture::begin(vec![job("a")]);
        fixture.leases();
        let late = fixture.report("a", Ended::Failed(FailureCause::ExitCode(1)));
        fixture.loses("a");
        fixture.leases();

        assert_eq!(fixture.refused(&late).code().as_str(), "ATTEMPT_STALE");
    }

    #[test]
    fn a_report_heard_twice_counts_once() {
        let mut fixture = Fixture::begin(vec![job("a"), job("b")]);
        fixture.leases();
        let report =
            fixture.report("a", Ended::Succeeded { outputs: BTreeMap::new(), artifacts: vec![] });

        fixture.carries_out(&report);
        let before = fixture.facts.len();
        fixture.carries_out(&report);

        assert_eq!(fixture.facts.len(), before);
    }

    fn success(outputs: &[(&str, &str)], artifacts: Vec<Artifact>) -> Ended {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Ended::Succeeded { outputs: outputs.iter().map(pair).collect(), artifacts }
    }

    fn artifact(path: impl Into<String>) -> Artifact {
        Artifact { path: path.into(), blob: Blob::of(b"x") }
    }

    #[test]
    fn whatever_is_wrong_with_a_report_fails_its_job() {
        let quotes = "\"".repeat(4_000);
        let outputs = [("a", &*quotes), ("b", &*quotes), ("c", &*quotes)];
        let folder = "d".repeat(200);
        let long = |number: usize| artifact(format!("{folder}/{folder}/{folder}/{number}"));
        let cases = [
            ("too long an event", success(&outputs, (0..75).map(long).collect())),
            ("too many", success(&[], (0..11_000).map(|n| artifact(n.to_string())).collect())),
            ("too large", success(&[("a", &"x".repeat(100 * 1024))], vec![])),
            ("a tab", success(&[], vec![artifact("out/a\tb")])),
            ("an escape", success(&[("a", "\u{1b}[2J")], vec![])),
            ("twice", success(&[], vec![artifact("a"), artifact("a")])),
            ("exit code 0", Ended::Failed(FailureCause::ExitCode(0))),
            ("signal 0", Ended::Failed(FailureCause::Signal(0))),
            ("long words", Ended::Failed(FailureCause::NotStarted("\0".repeat(1 << 20)))),
        ];
        for (case, ended) in cases {
            let mut stage = Fixture::begin(vec![job("a")]);
            stage.leases();

            stage.reports("a", ended);

            assert_eq!(stage.run.job("a").unwrap().state, JobState::Failed, "{case}");
            assert_eq!(*stage.run.phase(), Phase::Finished(RunOutcome::Failed), "{case}");
        }
    }

    #[test]
    fn the_largest_results_that_the_rules_allow_succeed() {
        let most = "x".repeat(results::OUTPUT_VALUE_BYTES_MAX - 1);
        let outputs = [("a", &*most), ("b", &*most), ("c", &*most), ("d", &*most)];
        let mut stage = Fixture::begin(vec![job("a")]);
        stage.leases();

        stage.reports("a", success(&outputs, (0..200).map(|n| artifact(n.to_string())).collect()));

        assert_eq!(stage.run.job("a").unwrap().state, JobState::Succeeded);
    }

    #[test]
    fn a_job_stopped_with_its_worker_goes_back() {
        let mut fixture = Fixture::begin(vec![job("a")]);
        fixture.leases();

        fixture.reports("a", Ended::Cancelled);

        assert_eq!(fixture.kinds().last(), Some(&"job_lost"));
        assert_eq!(fixture.leases().as_deref(), Some("a"));
    }

    #[test]
    fn a_report_by_another_worker_is_refused() {
        let mut fixture = Fixture::begin(vec![job("a")]);
        fixture.leases();
        let Command::Report(mine) = fixture.report("a", Ended::Cancelled) else { unreachable!() };

        let theirs = Command::Report(ReportJob { worker: "mallory".into(), ..mine });

        assert_eq!(fixture.refused(&theirs).code().as_str(), "ATTEMPT_STALE");
    }
}
