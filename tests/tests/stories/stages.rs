//! In which order jobs run, and what a failure means for the others.

use towpath_proto::v1::report::Ended;
use towpath_tests::SeenJob as _;
use towpath_tests::{TestServer, code, failed, file, succeeded};

#[tokio::test]
async fn a_stage_begins_when_every_job_of_the_one_before_has_ended() {
    let server = TestServer::in_memory().await;
    let run = server
        .start(&file(
            "stages: [copy, check]
jobs:
  orders: {stage: copy, command: x}
  customers: {stage: copy, command: x}
  counts: {stage: check, command: x}
",
        ))
        .await;
    let mut worker = server.worker("w", 4).await;

    let copies = worker.take_some(2).await;
    worker.report(&copies["orders"], succeeded()).await;
    server.settle().await;
    assert_eq!(server.states(&run).await, "orders succeeded, customers running, counts waiting");

    // The barrier waits for the end of `customers`, not for its success.
    worker.report(&copies["customers"], failed(1)).await;
    worker.succeed("counts").await;

    assert_eq!(server.ended(&run).await, "partial");
}

#[tokio::test]
async fn within_a_stage_a_job_begins_as_soon_as_its_needs_have_succeeded() {
    let server = TestServer::in_memory().await;
    let run = server
        .start(&file(
            "stages: [copy]
jobs:
  orders: {stage: copy, command: x}
  lines: {stage: copy, command: x, needs: [orders]}
  slow: {stage: copy, command: x}
",
        ))
        .await;
    let mut worker = server.worker("w", 4).await;

    let first = worker.take_some(2).await;
    assert_eq!(server.job(&run, "lines").await.word(), "waiting");
    worker.report(&first["orders"], succeeded()).await;
    worker.succeed("lines").await;

    assert_eq!(server.job(&run, "slow").await.word(), "running");
    worker.report(&first["slow"], succeeded()).await;
    assert_eq!(server.ended(&run).await, "succeeded");
}

#[tokio::test]
async fn a_skipped_job_names_the_root_of_the_failure_and_how_it_ended() {
    let server = TestServer::in_memory().await;
    let run = server
        .start(&file(
            "stages: [copy]
jobs:
  a: {stage: copy, command: x}
  b: {stage: copy, command: x, needs: [a]}
  c: {stage: copy, command: x, needs: [b]}
",
        ))
        .await;
    let mut worker = server.worker("w", 1).await;

    worker.fail("a", 3).await;

    assert_eq!(server.ended(&run).await, "failed");
    let [a, b, c] = &server.jobs(&run).await[..] else { panic!("three jobs") };
    assert_eq!((a.reason().as_str(), a.exit_code), ("exit code 3", Some(3)));
    assert_eq!((b.word().as_str(), b.reason().as_str()), ("skipped", "need_unmet a a failed"));
    assert_eq!((c.word().as_str(), c.reason().as_str()), ("skipped", "need_unmet b a failed"));
    let skipped = server.newest(&run, "job_skipped").await;
    assert_eq!(skipped["event"]["cause"]["need_unmet"]["root"], "a");
}

#[tokio::test]
async fn a_job_that_always_runs_runs_after_a_failure_and_saves_nothing() {
    let server = TestServer::in_memory().await;
    let run = server
        .start(&file(
            "stages: [copy]
jobs:
  a: {stage: copy, command: x}
  tidy: {stage: copy, command: x, needs: [a], when: always}
  b: {stage: copy, command: x, needs: [a]}
",
        ))
        .await;
    let mut worker = server.worker("w", 1).await;

    worker.fail("a", 1).await;
    worker.succeed("tidy").await;

    assert_eq!(server.ended(&run).await, "failed");
    assert_eq!(server.states(&run).await, "a failed, tidy succeeded, b skipped");
}

#[tokio::test]
async fn an_abort_ends_what_runs_and_skips_the_rest() {
    let server = TestServer::in_memory().await;
    let run = server
        .start(&file(
            "stages: [copy, check]
jobs:
  preflight: {stage: copy, command: x, on_failure: abort}
  orders: {stage: copy, command: x}
  tidy: {stage: copy, command: x, needs: [orders], when: always}
  counts: {stage: check, command: x}
",
        ))
        .await;
    let mut worker = server.worker("w", 4).await;

    let running = worker.take_some(2).await;
    worker.report(&running["preflight"], failed(2)).await;
    let cancelled = worker.cancelled_job().await;
    assert_eq!(cancelled.job, "orders");
    assert_eq!(server.phase(&run).await, "aborting");
    worker.report(&running["orders"], Ended::Cancelled(Default::default())).await;

    assert_eq!(server.ended(&run).await, "failed");
    assert_eq!(
        server.states(&run).await,
        "preflight failed, orders cancelled, tidy skipped, counts skipped"
    );
    assert_eq!(server.run(&run).await.abort_root, "preflight");
    assert_eq!(server.job(&run, "counts").await.reason(), "run_aborted preflight failed");
}

#[tokio::test]
async fn what_succeeds_although_the_run_aborts_counts() {
    let server = TestServer::in_memory().await;
    let run = server
        .start(&file(
            "stages: [copy]
jobs:
  preflight: {stage: copy, command: x, on_failure: abort}
  orders: {stage: copy, command: x}
",
        ))
        .await;
    let mut worker = server.worker("w", 4).await;

    let running = worker.take_some(2).await;
    worker.report(&running["preflight"], failed(2)).await;
    worker.report(&running["orders"], succeeded()).await;

    assert_eq!(server.ended(&run).await, "failed");
    assert_eq!(server.job(&run, "orders").await.word(), "succeeded");
}

#[tokio::test]
async fn never_more_jobs_run_than_the_run_may_run_at_once() {
    let server = TestServer::in_memory().await;
    let jobs: String = (0..6).map(|n| format!("  j{n}: {{stage: copy, command: x}}\n")).collect();
    let run = server.start_with(&file(&format!("stages: [copy]\njobs:\n{jobs}")), 2).await;
    let mut worker = server.worker("w", 6).await;

    let mut running = vec![worker.take().await, worker.take().await];
    for _ in 0..4 {
        server.settle().await;
        assert_eq!(server.counts(&run).await.running, 2);
        worker.report(&running.remove(0), succeeded()).await;
        running.push(worker.take().await);
    }
    for last in running {
        worker.report(&last, succeeded()).await;
    }

    assert_eq!(server.ended(&run).await, "succeeded");
}

#[tokio::test]
async fn a_file_with_errors_begins_nothing_and_tells_all_of_them() {
    let server = TestServer::in_memory().await;
    let request = |content: &str| towpath_proto::v1::StartRunRequest {
        file: Some(towpath_proto::v1::PipelineFile {
            name: "towpath.yml".to_owned(),
            content: content.as_bytes().to_vec().into(),
            ..Default::default()
        }),
        parallelism: 1,
        actor: towpath_tests::ANA.to_owned(),
        ..Default::default()
    };
    let broken = file(
        "stages: [copy]
jobs:
  a: {stage: copy, command: x, needs: [nobody]}
  b: {stage: nowhere, command: x}
",
    );

    let refused = server.try_start(request(&broken)).await.expect_err("two errors");

    assert_eq!(code(&refused), "FILE_INVALID");
    let details = tonic_types::StatusExt::get_error_details(&refused);
    let problems = &details.error_info().expect("a code").metadata["problems"];
    assert!(problems.contains("nobody") && problems.contains("nowhere"), "{problems}");
    assert_eq!(server.records("", 0).await.len(), 0);
}

#[tokio::test]
async fn a_run_without_a_place_for_a_job_is_refused() {
    let server = TestServer::in_memory().await;
    let request = |parallelism| towpath_proto::v1::StartRunRequest {
        file: Some(towpath_proto::v1::PipelineFile {
            name: "towpath.yml".to_owned(),
            content: file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n").into_bytes().into(),
            ..Default::default()
        }),
        parallelism,
        actor: towpath_tests::ANA.to_owned(),
        ..Default::default()
    };

    for parallelism in [0, 1_025] {
        let refused = server.try_start(request(parallelism)).await.expect_err("out of bounds");
        assert_eq!(code(&refused), "ARGUMENT_OUT_OF_BOUNDS");
    }
    let nobody = towpath_proto::v1::StartRunRequest { actor: "ana".to_owned(), ..request(1) };
    let refused = server.try_start(nobody).await.expect_err("an actor without a kind");
    assert_eq!(code(&refused), "MESSAGE_INVALID");
}
