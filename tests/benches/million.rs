//! A run of a million events: how long it takes to decide and write them, to open the store without
//! a snapshot, and to open it with one. And the cost of a job in runs of 100 to 100,000 jobs, in
//! the engine alone. Prints; asserts nothing.
//!
//! `cargo bench -p towpath-tests --bench million`

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use towpath_engine::{
    decide::{Command, CreateRun, Ended, LeaseJob, ReportJob, Written, carry_out},
    event::FailureCause,
    gate::Identity,
    ids::{Actor, Digest},
    plan::{JobPlan, Plan, RetryPolicy},
    run::{LockUsage, Run},
    time::Timestamp,
};
use towpath_server::{Server, SystemClock};
use towpath_storage::{EventStore, NewRecord, open};

const RUN: &str = "0000000000000000";
const JOBS: usize = 5_000;
const RETRIES: u32 = 100;

fn main() {
    for jobs in [100, 1_000, 10_000, 100_000] {
        let took = whole_run(jobs);
        println!("{jobs:>7} jobs, engine alone: {:>7.2} µs a job", micros(took) / jobs as f64);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(million());
}

/// Decides a whole run of jobs without needs, in memory.
fn whole_run(jobs: usize) -> Duration {
    let mut run = Run::default();
    let by = Actor::human("bench");
    create(&mut run, jobs, 0);
    let began = Instant::now();
    while let Some(job) = run.next_for(&[], &LockUsage::new(), Timestamp(1)) {
        let (name, attempt) = (job.plan.name.clone(), job.attempt.next());
        carry_out(&mut run, &lease(), &by, Timestamp(1)).expect("a lease");
        let ended = Ended::Succeeded { outputs: BTreeMap::new(), artifacts: Vec::new() };
        let report = ReportJob {
            job: name,
            attempt,
            worker: "w".into(),
            ended,
            ran_ms: 1,
            captured_output: None,
        };
        carry_out(&mut run, &Command::Report(report), &by, Timestamp(1)).expect("a report");
    }
    began.elapsed()
}

async fn million() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sled:{}", folder.path().join("store").display());
    let began = Instant::now();
    let events = write(&url).await;
    println!("{events} events decided and written in {:.1} s", began.elapsed().as_secs_f64());
    let replayed = opened(&url).await;
    println!("opened without a snapshot in {:.2} s: {:.0} records/s", secs(replayed), {
        events as f64 / secs(replayed)
    });
    let shortcut = opened(&url).await;
    println!("opened from a snapshot in {:.2} s", secs(shortcut));
}

/// Opens the store, loads the run, and closes it, which keeps a snapshot.
async fn opened(url: &str) -> Duration {
    let began = Instant::now();
    let server = Server::open(url, Arc::new(SystemClock)).await.expect("the store opens");
    let took = began.elapsed();
    server.close().await;
    drop(server);
    took
}

async fn write(url: &str) -> u64 {
    let opened = open(url).expect("a store");
    let by = Actor::human("bench");
    let mut run = Run::default();
    let mut waiting = create(&mut run, JOBS, RETRIES);
    let mut version = 0;
    for _ in 0..RETRIES {
        for _ in 0..JOBS {
            let leased = carry_out(&mut run, &lease(), &by, Timestamp(1)).expect("a lease");
            let name = leased[0].0.event.job().expect("a job").clone();
            let attempt = run.job(name.as_str()).expect("a job").attempt;
            let ended = Ended::Failed(FailureCause::ExitCode(1));
            let report = ReportJob {
                job: name,
                attempt,
                worker: "w".into(),
                ended,
                ran_ms: 1,
                captured_output: None,
            };
            waiting.extend(leased);
            let report = Command::Report(report);
            waiting.extend(carry_out(&mut run, &report, &by, Timestamp(1)).expect("a report"));
        }
        version = append(&*opened.store, version, std::mem::take(&mut waiting)).await;
    }
    version
}

async fn append(store: &dyn EventStore, version: u64, facts: Vec<Written>) -> u64 {
    let records =
        facts.into_iter().map(|(fact, bytes)| NewRecord::new(fact.event.kind(), bytes)).collect();
    let stream = format!("run/{RUN}");
    store.append(&stream, version, records).await.expect("an append").version
}

fn lease() -> Command {
    let (worker, busy) = ("w".into(), LockUsage::new());
    Command::Lease(LeaseJob { worker, tags: Vec::new(), lease_ms: 30_000, busy, only: None })
}

fn create(run: &mut Run, jobs: usize, retries: u32) -> Vec<Written> {
    let retry = RetryPolicy {
        max: retries,
        backoff_ms: 0,
        factor_percent: 100,
        backoff_max_ms: 0,
        jitter_percent: 0,
        on: Vec::new(),
    };
    let job = |n: usize| {
        let mut job = JobPlan::new(&format!("job-{n}"), "all", "true");
        job.retry = (retries > 0).then(|| retry.clone());
        job
    };
    let plan = Plan {
        pipeline: "bench".into(),
        stages: vec!["all".into()],
        jobs: (0..jobs).map(job).collect(),
        timeout_ms: None,
    };
    let create = CreateRun {
        run: RUN.into(),
        file: "towpath.yml".into(),
        folder: "/".into(),
        file_sha256: Digest([0; 32]),
        plan,
        parallelism: 2,
        gates_preapproved: false,
        traceparent: None,
        idempotency_key: None,
        source: None,
        requester: Identity::default(),
        authors: None,
    };
    let by = Actor::human("bench");
    carry_out(run, &Command::Create(create), &by, Timestamp(0)).expect("a run")
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn secs(time: Duration) -> f64 {
    time.as_secs_f64()
}
