//! Reports of workers: what they change, and which are void.

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
