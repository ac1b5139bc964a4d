//! Why is a job in its state? Tags, locks, places, and the answer to `tow why`.

use towpath_proto::{v1, words::Word as _};
use towpath_tests::{TestServer, file, on_a_runtime, succeeded};

async fn waits_for(server: &TestServer, run: &str, job: &str) -> String {
    let answer = server.explain(run, job).await;
    assert_eq!(answer.job.expect("the job").name, job);
    assert_eq!(answer.run.expect("its run").id, run);
    answer.explanation.expect("an explanation").reason().word()
}

#[tokio::test]
async fn a_job_waits_until_a_worker_offers_its_tags() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, command: x, tags: [eu, big]}\n";
    let run = server.start(&file(yaml)).await;
    let hello = |worker: &str, tags: &[&str]| v1::Hello {
        worker: worker.to_owned(),
        slots: 1,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..Default::default()
    };

    let plain = server.worker_like(hello("plain", &["eu"])).await;
    server.settle().await;
    assert_eq!(server.states(&run).await, "a waiting");
    assert_eq!(waits_for(&server, &run, "a").await, "tags");
    let explanation = server.explain(&run, "a").await.explanation.expect("an explanation");
    assert_eq!(explanation.tags, ["eu", "big"]);
    let mut fit = server.worker_like(hello("fit", &["big", "eu", "fast"])).await;
    fit.succeed("a").await;

    assert_eq!(server.ended(&run).await, "succeeded");
    drop(plain);
}

#[tokio::test]
async fn a_worker_for_one_run_is_given_nothing_of_another() {
    let server = TestServer::in_memory().await;
    let yaml = file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n");
    let (first, second) = (server.start(&yaml).await, server.start(&yaml).await);
    let only =
        v1::Hello { worker: "w".to_owned(), slots: 9, run: second.clone(), ..Default::default() };

    let mut worker = server.worker_like(only).await;
    worker.succeed("a").await;
    server.settle().await;

    assert_eq!(server.ended(&second).await, "succeeded");
    assert_eq!(server.states(&first).await, "a waiting");
    assert_eq!(waits_for(&server, &first, "a").await, "no_worker");
}

#[tokio::test]
async fn every_job_says_what_it_waits_for() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [copy, cutover]
jobs:
  a: {stage: copy, command: x, retry: {max: 1, backoff: 1m, jitter: 0}}
  b: {stage: copy, command: x, needs: [a]}
  c: {stage: copy, command: x}
  d: {stage: copy, command: x}
  e: {stage: copy, command: x, when: manual}
  z: {stage: cutover, command: x}
";
    let run = server.start_with(&file(yaml), 1).await;

    assert_eq!(waits_for(&server, &run, "a").await, "no_worker");
    let mut worker = server.worker("w", 1).await;
    worker.fail("a", 1).await;
    let c = worker.take_job("c").await;
    for (job, answer) in [
        ("a", "backoff"),
        ("b", "needs"),
        ("c", "running"),
        ("d", "parallelism"),
        ("e", "gate"),
        ("z", "earlier_stage"),
    ] {
        assert_eq!(waits_for(&server, &run, job).await, answer, "{job}");
    }
    let waited = server.explain(&run, "b").await.explanation.expect("an explanation").waits_for;
    assert_eq!((waited[0].name.as_str(), waited[0].state()), ("a", v1::JobState::BackingOff));
    worker.report(&c, succeeded()).await;

    assert_eq!(waits_for(&server, &run, "c").await, "ended");
    let request = v1::ExplainJobRequest { run, job: "y".to_owned(), at: None };
    let unknown = server.runs().explain_job(request).await.expect_err("no such job");
    assert_eq!(towpath_tests::code(&unknown), "JOB_UNKNOWN");
}

const LOCKED: &str = "stages: [s]
jobs:
  a: {stage: s, command: x, resource: {name: target, limit: 1}}
";

#[tokio::test]
async fn a_lock_is_held_by_one_run_at_a_time() {
    let server = TestServer::in_memory().await;
    let (first, second) = (server.start(&file(LOCKED)).await, server.start(&file(LOCKED)).await);
    let mut worker = server.worker("w", 2).await;

    let held = worker.take_job("a").await;
    let holder = held.attempt.clone().expect("an attempt").run;
    let other = if holder == first { &second } else { &first };
    server.settle().await;
    assert_eq!(server.states(other).await, "a waiting");
    assert_eq!(waits_for(&server, other, "a").await, "lock");
    worker.report(&held, succeeded()).await;
    worker.succeed("a").await;

    assert_eq!(server.ended(&first).await, "succeeded");
    assert_eq!(server.ended(&second).await, "succeeded");
}

#[tokio::test]
async fn a_lock_is_held_by_as_many_jobs_as_it_admits() {
    let server = TestServer::in_memory().await;
    let yaml = file(&LOCKED.replace("limit: 1", "limit: 2"));
    let runs = [server.start(&yaml).await, server.start(&yaml).await, server.start(&yaml).await];
    let mut worker = server.worker("w", 9).await;

    let held = [worker.take().await, worker.take().await];
    server.settle().await;
    let mut running = 0;
    for run in &runs {
        running += server.counts(run).await.running;
    }
    assert_eq!(running, 2);
    for held in &held {
        worker.report(held, succeeded()).await;
    }
    worker.succeed("a").await;

    for run in &runs {
        assert_eq!(server.ended(run).await, "succeeded");
    }
}

#[test]
fn a_run_that_waits_for_a_lock_keeps_no_other_run_waiting() {
    // More than one thread, as in a server: what waits must not go round in circles meanwhile.
    on_a_runtime(async {
        let server = TestServer::in_memory().await;
        let mut worker = server.worker("w", 9).await;
        server.start(&file(LOCKED)).await;
        let held = worker.take_job("a").await;
        server.start(&file(LOCKED)).await;

        let free = file("stages: [s]\njobs:\n  free: {stage: s, command: x}\n");
        for _ in 0..20 {
            let run = server.start(&free).await;
            worker.succeed("free").await;
            assert_eq!(server.ended(&run).await, "succeeded");
        }

        worker.report(&held, succeeded()).await;
        worker.succeed("a").await;
        server.close().await;
    });
}

#[tokio::test]
async fn a_worker_is_given_no_more_than_it_has_slots() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]
jobs:
  a: {stage: s, command: x}
  b: {stage: s, command: x}
  c: {stage: s, command: x}
";
    let run = server.start(&file(yaml)).await;
    let mut one = server.worker("one", 1).await;
    let a = one.take_job("a").await;
    let mut two = server.worker("two", 1).await;
    let b = two.take_job("b").await;

    server.settle().await;
    assert_eq!(server.states(&run).await, "a running, b running, c waiting");
    assert_eq!(waits_for(&server, &run, "c").await, "free_slot");
    one.report(&a, succeeded()).await;
    one.succeed("c").await;
    two.report(&b, succeeded()).await;

    assert_eq!(server.ended(&run).await, "succeeded");
}

#[tokio::test]
async fn runs_with_nothing_to_give_out_do_not_use_up_the_last_slot() {
    let server = TestServer::in_memory().await;
    let yaml = file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n");
    let mut busy = server.worker("busy", 8).await;
    for _ in 0..8 {
        server.start(&yaml).await;
    }
    for _ in 0..8 {
        busy.take_job("a").await;
    }

    // All of those are under way; one slot is left for the run that has something to do.
    let mut free = server.worker("free", 1).await;
    for _ in 0..4 {
        let run = server.start(&yaml).await;
        free.succeed("a").await;
        assert_eq!(server.ended(&run).await, "succeeded");
    }
}

#[tokio::test]
async fn a_worker_that_drains_is_given_nothing_more() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]
jobs:
  a: {stage: s, command: x}
  b: {stage: s, command: x}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;
    let a = worker.take_job("a").await;

    worker.say(v1::session_request::Message::Drain(v1::Drain {})).await;
    worker.report(&a, succeeded()).await;
    server.settle().await;

    assert_eq!(server.states(&run).await, "a succeeded, b waiting");
    assert_eq!(waits_for(&server, &run, "b").await, "workers_drained");
}
