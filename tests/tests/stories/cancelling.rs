//! `cancel` in every state that a run can be in.

use towpath_proto::v1::report::Ended;
use towpath_tests::phase_word;
use towpath_tests::{TestServer, code, failed, file, succeeded};

fn cancelled() -> Ended {
    Ended::Cancelled(Default::default())
}

#[tokio::test]
async fn a_run_without_a_process_is_cancelled_at_once() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n")).await;

    let view = server.cancel(&run).await.expect("the run ends");

    assert_eq!(phase_word(&view), "cancelled");
    assert_eq!(server.states(&run).await, "a cancelled");
    let told = server.newest(&run, "run_cancel_requested").await;
    assert_eq!((&told["by"], &told["event"]["reason"]), (&"human:ana".into(), &"enough".into()));
}

#[tokio::test]
async fn a_running_job_is_ended_by_its_worker_and_then_the_run_is_cancelled() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]
jobs:
  a: {stage: s, command: x}
  b: {stage: s, command: x}
  c: {stage: s, command: x, needs: [a], when: always}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 2).await;
    let running = worker.take_some(2).await;

    let view = server.cancel(&run).await.expect("the run is ending");
    assert_eq!(phase_word(&view), "cancelling");
    let told = [worker.cancelled_job().await.job, worker.cancelled_job().await.job];
    assert!(told.contains(&"a".to_owned()) && told.contains(&"b".to_owned()), "{told:?}");
    worker.report(&running["a"], cancelled()).await;
    worker.report(&running["b"], succeeded()).await;

    assert_eq!(server.ended(&run).await, "cancelled");
    assert_eq!(server.states(&run).await, "a cancelled, b succeeded, c cancelled");
}

#[tokio::test]
async fn a_run_at_a_gate_can_be_cancelled() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, command: x, when: manual}\n";
    let run = server.start(&file(yaml)).await;
    let approval_digest = server.job(&run, "a").await.approval_digest;

    let view = server.cancel(&run).await.expect("the run ends");

    assert_eq!(phase_word(&view), "cancelled");
    let late =
        server.decide(&run, "a", &approval_digest, true).await.expect_err("nothing waits any more");
    assert_eq!(code(&late), "GATE_NOT_WAITING");
}

#[tokio::test]
async fn a_run_whose_job_backs_off_can_be_cancelled() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, command: x, retry: {max: 3, backoff: 1m}}\n";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;
    worker.fail("a", 1).await;
    assert_eq!(server.states(&run).await, "a backing_off");

    let view = server.cancel(&run).await.expect("the run ends");

    assert_eq!(phase_word(&view), "cancelled");
    server.pass(600_000).await;
    assert_eq!(server.states(&run).await, "a cancelled", "it is not tried again");
}

#[tokio::test]
async fn a_run_that_aborts_can_be_cancelled() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]
jobs:
  check: {stage: s, command: x, on_failure: abort}
  a: {stage: s, command: x}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 2).await;
    let running = worker.take_some(2).await;
    worker.report(&running["check"], failed(1)).await;
    assert_eq!(server.phase(&run).await, "aborting");

    let view = server.cancel(&run).await.expect("the run is ending");
    assert_eq!(phase_word(&view), "cancelling");
    worker.report(&running["a"], cancelled()).await;

    assert_eq!(server.ended(&run).await, "cancelled");
}

#[tokio::test]
async fn a_finished_run_cannot_be_cancelled() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n")).await;
    let mut worker = server.worker("w", 1).await;
    worker.succeed("a").await;
    assert_eq!(server.ended(&run).await, "succeeded");

    let late = server.cancel(&run).await.expect_err("it has ended");

    assert_eq!(code(&late), "RUN_ENDED");
    assert_eq!(late.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test]
async fn a_second_cancel_changes_nothing() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n")).await;
    let mut worker = server.worker("w", 1).await;
    let a = worker.take_job("a").await;

    server.cancel(&run).await.expect("the run is ending");
    server.cancel(&run).await.expect("it is ending already");
    worker.report(&a, cancelled()).await;
    assert_eq!(server.ended(&run).await, "cancelled");
    server.cancel(&run).await.expect("it is cancelled already");

    assert_eq!(server.count(&run, "run_cancel_requested").await, 1);
}

#[tokio::test]
async fn a_run_that_is_ending_takes_no_other_command() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n")).await;
    let mut worker = server.worker("w", 1).await;
    worker.take_job("a").await;
    server.cancel(&run).await.expect("the run is ending");

    let resumed = server.resume(&run).await.expect_err("it must come to rest first");
    let retried = server.retry(&run, "a").await.expect_err("it must come to rest first");

    assert_eq!([code(&resumed), code(&retried)], ["RUN_ENDING", "RUN_ENDING"]);
}

#[tokio::test]
async fn a_cancelled_run_can_be_resumed() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]
jobs:
  a: {stage: s, command: x}
  b: {stage: s, command: x, needs: [a]}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;
    worker.succeed("a").await;
    let b = worker.take_job("b").await;
    server.cancel(&run).await.expect("the run is ending");
    worker.report(&b, cancelled()).await;
    assert_eq!(server.ended(&run).await, "cancelled");

    server.resume(&run).await.expect("something is left to do");
    worker.succeed("b").await;

    server.until(&run, "run_finished", 2).await;
    assert_eq!(server.phase(&run).await, "succeeded");
    assert_eq!(server.job(&run, "a").await.attempt, 1, "what had succeeded was not run again");
}

#[tokio::test]
async fn a_worker_that_is_lost_does_not_hold_up_the_end_of_a_run() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n")).await;
    let mut worker = server.worker("w", 1).await;
    let a = worker.take_job("a").await;
    server.cancel(&run).await.expect("the run is ending");

    let gone = Ended::Lost(towpath_proto::v1::Lost { reason: "killed".to_owned() });
    worker.report(&a, gone).await;

    assert_eq!(server.ended(&run).await, "cancelled");
}
