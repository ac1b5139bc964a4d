//! Retries and time limits, under a clock that the test moves.

use towpath_proto::time::duration;
use towpath_proto::v1::{Failed, failed::Cause, report::Ended};
use towpath_tests::{TestServer, code, failed, file, succeeded};

const FLAKY: &str = "stages: [copy]
jobs:
  flaky:
    stage: copy
    command: x
    retry: {max: 2, backoff: 10s, factor: 3, backoff_max: 60s, jitter: 0}
";

#[tokio::test]
async fn a_failed_job_is_tried_again_when_its_time_has_come() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(FLAKY)).await;
    let mut worker = server.worker("w", 1).await;

    worker.fail("flaky", 1).await;
    server.pass(9_999).await;
    assert_eq!(server.states(&run).await, "flaky backing_off");
    server.pass(1).await;
    worker.fail("flaky", 1).await;
    server.pass(29_999).await;
    assert_eq!(server.states(&run).await, "flaky backing_off", "the second wait is longer");
    server.pass(1).await;
    let third = worker.take_job("flaky").await;
    assert_eq!(third.attempt.as_ref().map(|of| of.attempt), Some(3));
    worker.report(&third, succeeded()).await;

    assert_eq!(server.ended(&run).await, "succeeded");
    assert_eq!(server.count(&run, "job_attempt_failed").await, 2);
}

#[tokio::test]
async fn tries_come_to_an_end() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(FLAKY)).await;
    let mut worker = server.worker("w", 1).await;

    for _ in 0..3 {
        worker.fail("flaky", 1).await;
        server.pass(60_000).await;
    }

    assert_eq!(server.ended(&run).await, "failed");
    assert_eq!(server.job(&run, "flaky").await.attempt, 3);
}

#[tokio::test]
async fn only_the_failures_that_the_file_lists_are_tried_again() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [copy]
jobs:
  a: {stage: copy, command: x, retry: {max: 5, backoff: 0s, on: [75, timeout]}}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;

    worker.fail("a", 75).await;
    server.settle().await;
    let second = worker.take_job("a").await;
    let timed_out = Ended::Failed(Failed { cause: Some(Cause::TimedOut(duration(50))) });
    worker.report(&second, timed_out).await;
    server.settle().await;
    worker.fail("a", 1).await;

    assert_eq!(server.ended(&run).await, "failed");
    assert_eq!(server.job(&run, "a").await.attempt, 3);
}

#[tokio::test]
async fn a_job_in_backoff_holds_no_slot() {
    let server = TestServer::in_memory().await;
    let yaml = format!("{FLAKY}  other: {{stage: copy, command: x}}\n");
    let run = server.start_with(&file(&yaml), 1).await;
    let mut worker = server.worker("w", 1).await;

    worker.fail("flaky", 1).await;
    worker.succeed("other").await;

    assert_eq!(server.states(&run).await, "flaky backing_off, other succeeded");
}

#[tokio::test]
async fn a_run_that_takes_too_long_is_ended() {
    let server = TestServer::in_memory().await;
    let yaml = "timeout: 1m
stages: [copy]
jobs:
  a: {stage: copy, command: x}
  b: {stage: copy, command: x, needs: [a]}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;
    let a = worker.take_job("a").await;

    server.pass(59_999).await;
    assert_eq!(server.phase(&run).await, "running");
    server.pass(1).await;
    assert_eq!(worker.cancelled_job().await.job, "a");
    assert_eq!(server.phase(&run).await, "timing_out");
    worker.report(&a, Ended::Cancelled(Default::default())).await;

    assert_eq!(server.ended(&run).await, "timed_out");
    assert_eq!(server.states(&run).await, "a cancelled, b cancelled");
}

#[tokio::test]
async fn a_run_takes_too_long_even_while_a_job_waits_for_its_next_try() {
    let server = TestServer::in_memory().await;
    let yaml = "timeout: 1m
stages: [copy]
jobs:
  flaky: {stage: copy, command: x, retry: {max: 1, backoff: 10s, jitter: 0}}
  long: {stage: copy, command: x}
";
    let run = server.start_with(&file(yaml), 1).await;
    let mut worker = server.worker("w", 1).await;
    worker.fail("flaky", 1).await;
    worker.take_job("long").await;

    // The attempt is due now, but the only place is taken.
    server.pass(10_000).await;
    assert_eq!(server.states(&run).await, "flaky backing_off, long running");
    server.pass(50_000).await;

    assert_eq!(server.phase(&run).await, "timing_out");
    assert_eq!(worker.cancelled_job().await.job, "long");
}

#[tokio::test]
async fn a_resumed_run_has_the_time_of_a_new_one_however_often_it_is_resumed() {
    let server = TestServer::in_memory().await;
    let yaml = "timeout: 1m
stages: [copy]
jobs:
  a: {stage: copy, command: x}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;
    for _ in 0..2 {
        worker.fail("a", 1).await;
        server.pass(100_000).await;
        server.resume(&run).await.expect("something is left to do");
    }
    worker.take_job("a").await;

    server.pass(59_999).await;
    assert_eq!(server.phase(&run).await, "running");
    server.pass(1).await;
    assert_eq!(server.phase(&run).await, "timing_out");
}

#[tokio::test]
async fn one_job_is_given_another_chance_with_what_was_skipped_because_of_it() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [copy]
jobs:
  a: {stage: copy, command: x}
  b: {stage: copy, command: x, needs: [a]}
  c: {stage: copy, command: x}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;
    worker.fail("a", 1).await;
    worker.fail("c", 1).await;
    assert_eq!(server.ended(&run).await, "failed");

    server.retry(&run, "a").await.expect("a failed");
    worker.succeed("a").await;
    worker.succeed("b").await;

    server.until(&run, "run_finished", 2).await;
    assert_eq!(server.states(&run).await, "a succeeded, b succeeded, c failed");
    let pointless = server.retry(&run, "a").await.expect_err("a succeeded");
    assert_eq!(code(&pointless), "JOB_NOT_RETRYABLE");
    let unknown = server.retry(&run, "d").await.expect_err("no such job");
    assert_eq!(code(&unknown), "JOB_UNKNOWN");
}

#[tokio::test]
async fn a_retry_of_what_aborted_the_run_frees_all_that_the_abort_skipped() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [check, copy]
jobs:
  preflight: {stage: check, command: x, on_failure: abort}
  a: {stage: copy, command: x}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;
    let preflight = worker.take_job("preflight").await;
    worker.report(&preflight, failed(1)).await;
    assert_eq!(server.ended(&run).await, "failed");

    server.retry(&run, "preflight").await.expect("it failed");
    worker.succeed("preflight").await;
    worker.succeed("a").await;

    server.until(&run, "run_finished", 2).await;
    assert_eq!(server.phase(&run).await, "succeeded");
    assert_eq!(server.run(&run).await.abort_root, "");
}
