//! Whatever is asked of a run, and however large it is: what was refused left no trace, and what
//! was carried out is what its facts say.

use std::collections::BTreeMap;

use proptest::{prelude::*, sample::select};

use super::{
    ApproveGate, CarryOutError, Command, Ended, LeaseJob, LoseJob, RejectGate, ReportJob,
    ResumeRun, testing::*,
};
use crate::{
    event::{Artifact, FailureCause},
    gate::Identity,
    ids::{Attempt, Blob, Digest},
    job::JobState,
    plan::{JobPlan, OnFailure, RetryPolicy, When},
    run::{LockUsage, Run},
};

/// The jobs that are read have short names, since an expression is bounded; the others have the
/// longest that a file takes. All of characters that JSON writes as two.
fn name(of: usize) -> String {
    format!("{}{of}", "\"".repeat(if of < 4 { 9 } else { 199 }))
}

/// Jobs that read all that the others can write, in every way there is.
fn jobs() -> Vec<JobPlan> {
    let mut jobs: Vec<JobPlan> = (0..4).map(|writer| job(&name(writer))).collect();
    jobs[1].on_failure = OnFailure::Abort;
    jobs[2].retry = Some(RetryPolicy {
        max: 1,
        backoff_ms: 0,
        factor_percent: 100,
        backoff_max_ms: 0,
        jitter_percent: 0,
        on: Vec::new(),
    });
    let read = |writer: usize, key: &str| format!("needs[{:?}].outputs.{key}", name(writer));
    let all = || (0..4).flat_map(|writer| ["a", "b", "c", "d"].map(|key| (writer, key)));
    let condition =
        all().map(|(writer, key)| format!("{} | default(\"\") != \"no\"", read(writer, key)));
    let condition = condition.take(14).collect::<Vec<_>>().join(" and ");
    assert!(condition.len() <= crate::expression::EXPRESSION_BYTES_MAX, "{}", condition.len());
    for reader in 4..8 {
        let mut plan = job(&name(reader));
        plan.needs = (0..4).map(|writer| name(writer).as_str().into()).collect();
        match reader {
            4 => plan.condition = Some(condition.clone()),
            5 => {
                let values = all().map(|(writer, key)| format!("${{{{ {} }}}}", read(writer, key)));
                plan.env = [("ALL".to_owned(), values.collect::<String>())].into();
                plan.condition = Some("env.ALL != \"no\"".to_owned());
            }
            6 => {
                plan = gated(plan);
                plan.condition = Some(condition.clone());
            }
            _ => {
                plan.when = When::Always;
                plan.script = format!("echo ${{{{ {} }}}}", read(0, "a")).into();
            }
        }
        jobs.push(plan);
    }
    jobs
}

/// Texts of every size that a client may send, of characters that JSON writes in one, two and six
/// bytes.
fn text() -> impl Strategy<Value = String> {
    let of = select(vec!["x", "\"", "\n", "\0", "é"]);
    let sizes = select(vec![0_usize, 1, 900, 2_000, 4_000, 4_096, 4_097, 70_000]);
    (of, sizes).prop_map(|(of, bytes)| of.repeat(bytes / of.len()))
}

fn ended() -> impl Strategy<Value = Ended> {
    let outputs = prop::collection::btree_map(select(vec!["a", "b", "c", "d"]), text(), 0..5);
    let paths = prop::collection::vec(text(), 0..3);
    let succeeded = (outputs, paths, select(vec![0_usize, 75, 250, 1_001])).prop_map(
        |(outputs, mut paths, more)| {
            let folder = "d".repeat(200);
            paths.extend((0..more).map(|number| format!("{folder}/{number}")));
            let blob = Blob::of(b"");
            let outputs: BTreeMap<_, _> =
                outputs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            let artifacts = paths.into_iter().map(|path| Artifact { path, blob }).collect();
            Ended::Succeeded { outputs, artifacts }
        },
    );
    prop_oneof![
        6 => succeeded,
        1 => select(vec![0, 1, -1]).prop_map(|code| Ended::Failed(FailureCause::ExitCode(code))),
        1 => text().prop_map(|why| Ended::Failed(FailureCause::NotStarted(why))),
        1 => text().prop_map(|why| Ended::Failed(FailureCause::ReportInvalid(why))),
        1 => Just(Ended::Cancelled),
    ]
}

/// What is asked of one of the jobs. Attempts and digests are filled in when it is asked.
fn asked() -> impl Strategy<Value = (usize, Command)> {
    let (job, attempt, approval_digest) = (|| "".into(), Attempt(0), Digest([0; 32]));
    let identity = Identity::default;
    let command = prop_oneof![
        8 => Just(Command::Lease(LeaseJob {
            worker: "w1".into(),
            tags: Vec::new(),
            lease_ms: 1,
            busy: LockUsage::new(),
            only: None,
        })),
        8 => ended().prop_map(move |ended| {
            let worker = "w1".into();
            Command::Report(ReportJob { job: job(), attempt, worker, ended, ran_ms: 1, captured_output: None })
        }),
        1 => text().prop_map(move |reason| Command::Lose(LoseJob { job: job(), attempt, reason })),
        2 => text().prop_map(move |comment| {
            Command::Approve(ApproveGate { job: job(), approval_digest, comment, identity: identity() })
        }),
        1 => text().prop_map(move |comment| {
            Command::Reject(RejectGate { job: job(), approval_digest: None, comment })
        }),
        1 => text().prop_map(Command::Cancel),
        1 => Just(Command::Resume(ResumeRun::default())),
        1 => Just(Command::Retry(job())),
        1 => Just(Command::PassTime),
    ];
    (0..8_usize, command)
}

/// `command` about job `of`, with what only the run knows.
fn about(run: &Run, of: usize, mut command: Command) -> Command {
    let known = run.job(&name(of)).unwrap();
    let (job, attempt) = (known.plan.name.clone(), known.attempt);
    match &mut command {
        Command::Report(report) => {
            // Whichever job is leased, so that most reports count.
            let leased = run.leased().next().unwrap_or(known);
            (report.job, report.attempt) = (leased.plan.name.clone(), leased.attempt);
        }
        Command::Lose(lose) => (lose.job, lose.attempt) = (job, attempt),
        Command::Approve(approve) => {
            approve.job = job;
            if let JobState::AtGate(approval_digest) = known.state {
                approve.approval_digest = approval_digest;
            }
        }
        Command::Reject(reject) => reject.job = job,
        Command::Retry(retried) => *retried = job,
        Command::Create(_)
        | Command::Lease(_)
        | Command::Cancel(_)
        | Command::Resume(_)
        | Command::Import(_)
        | Command::PassTime => {}
    }
    command
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_run_is_always_what_its_facts_say(
        history in prop::collection::vec(asked(), 1..40),
    ) {
        let mut stage = Fixture::begin(jobs());
        for (of, command) in history {
            let command = about(&stage.run, of, command);
            let before = stage.run.clone();
            match super::carry_out(&mut stage.run, &command, &ana(), stage.now) {
                Ok(written) => {
                    stage.facts.extend(written.into_iter().map(|(fact, _)| fact));
                    let replayed = Run::replay(&stage.facts).expect("what was written replays");
                    prop_assert!(replayed == stage.run, "the replay differs");
                }
                Err(CarryOutError::Refused(refusal)) => {
                    prop_assert!(stage.run == before, "{} left a trace", refusal.code());
                    let is_report = matches!(command, Command::Report(_) | Command::Lose(_));
                    prop_assert!(!is_report || refusal.code() == crate::code::ErrorCode::AttemptStale);
                }
                Err(error @ (CarryOutError::Unwritable(_) | CarryOutError::Bug(_))) => {
                    prop_assert!(false, "a consequence cannot be written: {error}");
                }
            }
        }
    }
}
