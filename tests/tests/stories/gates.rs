//! Gates: stops that only a person opens.

use towpath_proto::v1::{self, gates_service_client::GatesServiceClient};
use towpath_tests::SeenJob as _;
use towpath_tests::{TestServer, code, file, on_a_runtime, succeeded_with};

const CUTOVER: &str = "stages: [copy, cutover]
jobs:
  orders: {stage: copy, command: x}
  switch: {stage: cutover, command: x, needs: [orders], when: manual, irreversible: true}
";

#[tokio::test]
async fn a_gate_blocks_until_a_person_opens_it() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(CUTOVER)).await;
    let mut worker = server.worker("w", 1).await;

    worker.succeed("orders").await;
    server.settle().await;
    assert_eq!(server.states(&run).await, "orders succeeded, switch at_gate");
    assert!(!server.run(&run).await.can_move, "only a person can move the run");
    server.approve(&run, "switch").await;
    worker.succeed("switch").await;

    assert_eq!(server.ended(&run).await, "succeeded");
    let gate = server.job(&run, "switch").await.decision.expect("a decision");
    assert!(gate.approved);
    assert_eq!((gate.by.as_str(), gate.comment.as_str()), ("human:ana", "counts read"));
    let kinds = server.kinds(&run).await;
    let tail: Vec<&str> = kinds.iter().skip(5).map(String::as_str).collect();
    assert_eq!(
        tail,
        ["gate_reached", "gate_approved", "job_leased", "job_succeeded", "run_finished"]
    );
}

#[tokio::test]
async fn a_gate_holds_no_slot() {
    let server = TestServer::in_memory().await;
    let run = server
        .start_with(
            &file(
                "stages: [copy]
jobs:
  gated: {stage: copy, command: x, when: manual}
  free: {stage: copy, command: x}
",
            ),
            1,
        )
        .await;
    let mut worker = server.worker("w", 1).await;

    worker.succeed("free").await;

    assert_eq!(server.states(&run).await, "gated at_gate, free succeeded");
    assert_eq!(server.counts(&run).await.running, 0);
}

#[tokio::test]
async fn a_gate_that_is_not_reached_cannot_be_opened() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(CUTOVER)).await;
    let anything = "0".repeat(64);

    let early = server.decide(&run, "switch", &anything, true).await.expect_err("orders is open");
    assert_eq!(code(&early), "GATE_NOT_WAITING");
    let nobody = server.decide(&run, "swich", &anything, true).await.expect_err("no such job");
    assert_eq!(code(&nobody), "JOB_UNKNOWN");
    let vague = server.decide(&run, "switch", "all of it", true).await.expect_err("no digest");
    assert_eq!(code(&vague), "MESSAGE_INVALID");

    assert_eq!(server.count(&run, "gate_approved").await, 0);
}

#[tokio::test]
async fn an_approval_covers_what_was_read_and_nothing_else() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(CUTOVER)).await;
    let mut worker = server.worker("w", 1).await;
    let orders = worker.take_job("orders").await;
    worker.report(&orders, succeeded_with(&[("rows", "10")])).await;
    let read = server.job(&run, "switch").await.approval_digest;

    // The results behind the gate change after they were read.
    let from_stage = "copy".to_owned();
    let again = v1::ResumeRunRequest { run: run.clone(), from_stage, ..Default::default() };
    server.resume_with(again).await.expect("the stage runs again");
    let orders = worker.take_job("orders").await;
    worker.report(&orders, succeeded_with(&[("rows", "11")])).await;
    let stale = server.decide(&run, "switch", &read, true).await.expect_err("other results");

    assert_eq!(code(&stale), "APPROVAL_STALE");
    let details = tonic_types::StatusExt::get_error_details(&stale);
    let waiting = &details.error_info().expect("a code").metadata["waiting"];
    assert_eq!(
        *waiting,
        server.job(&run, "switch").await.approval_digest,
        "it says what waits instead"
    );
    assert_eq!(server.job(&run, "switch").await.word(), "at_gate");
    server.approve(&run, "switch").await;
    worker.succeed("switch").await;
}

#[tokio::test]
async fn opening_one_gate_opens_no_other() {
    let server = TestServer::in_memory().await;
    let run = server
        .start(&file(
            "stages: [copy]
jobs:
  x: {stage: copy, command: x, when: manual}
  y: {stage: copy, command: x, when: manual}
",
        ))
        .await;
    let mut worker = server.worker("w", 2).await;
    let (of_x, of_y) =
        (server.job(&run, "x").await.approval_digest, server.job(&run, "y").await.approval_digest);

    let crossed = server.decide(&run, "y", &of_x, true).await.expect_err("that covers x");
    assert_eq!(code(&crossed), "APPROVAL_STALE");
    server.decide(&run, "x", &of_x, true).await.expect("x opens");
    worker.succeed("x").await;
    server.settle().await;

    assert_eq!(server.states(&run).await, "x succeeded, y at_gate");
    assert_ne!(of_x, of_y);
}

#[test]
fn a_gate_waits_through_a_restart_and_is_opened_by_another_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    let (run, approval_digest) = on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let run = server.start(&file(CUTOVER)).await;
        let mut worker = server.worker("w", 1).await;
        worker.succeed("orders").await;
        let approval_digest = server.job(&run, "switch").await.approval_digest;
        drop(worker);
        server.close().await;
        (run, approval_digest)
    });

    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let outside = server.dial().await.expect("the socket answers");
        let mut gates = GatesServiceClient::new(outside);
        let waiting = gates.list_gates(v1::ListGatesRequest::default()).await.expect("a list");
        let gate = waiting.into_inner().gates.pop().expect("a gate waits");
        assert_eq!((gate.job.as_str(), gate.irreversible), ("switch", true));
        assert_eq!(
            gate.approval_digest, approval_digest,
            "the same results wait after the restart"
        );
        let v1::Gate { run: of, job, approval_digest, .. } = gate;
        let actor = "human:dana".to_owned();
        let request =
            v1::ApproveGateRequest { run: of, job, approval_digest, actor, ..Default::default() };
        gates.approve_gate(request).await.expect("the gate opens");

        let mut worker = server.worker("w", 1).await;
        worker.succeed("switch").await;
        assert_eq!(server.ended(&run).await, "succeeded");
        assert_eq!(server.job(&run, "switch").await.decision.expect("a decision").by, "human:dana");
        server.close().await;
    });
}

#[tokio::test]
async fn a_rejected_gate_ends_the_run_and_stays_rejected() {
    let server = TestServer::in_memory().await;
    let yaml = format!("{CUTOVER}  after: {{stage: cutover, command: x, needs: [switch]}}\n");
    let run = server.start(&file(&yaml)).await;
    let mut worker = server.worker("w", 1).await;
    worker.succeed("orders").await;
    let approval_digest = server.job(&run, "switch").await.approval_digest;

    let phase =
        server.decide(&run, "switch", &approval_digest, false).await.expect("the gate is shut");

    assert_eq!(phase, "rejected");
    assert_eq!(server.states(&run).await, "orders succeeded, switch rejected, after skipped");
    assert_eq!(server.job(&run, "after").await.reason(), "need_unmet switch switch rejected");
    let late =
        server.decide(&run, "switch", &approval_digest, true).await.expect_err("it was rejected");
    assert_eq!(code(&late), "GATE_DECIDED");
}

#[tokio::test]
async fn a_second_approval_changes_nothing() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(CUTOVER)).await;
    let mut worker = server.worker("w", 1).await;
    worker.succeed("orders").await;
    let approval_digest = server.job(&run, "switch").await.approval_digest;
    server.decide(&run, "switch", &approval_digest, true).await.expect("the gate opens");
    let before = server.kinds(&run).await;

    server.decide(&run, "switch", &approval_digest, true).await.expect("it is open already");
    let shut =
        server.decide(&run, "switch", &approval_digest, false).await.expect_err("it is open");

    assert_eq!(code(&shut), "GATE_DECIDED");
    let after = server.kinds(&run).await;
    let decisions =
        |kinds: &[String]| kinds.iter().filter(|kind| kind.starts_with("gate_")).count();
    assert_eq!(decisions(&before), decisions(&after));
}

#[tokio::test]
async fn gates_that_were_approved_in_advance_do_not_stop_the_run() {
    let server = TestServer::in_memory().await;
    let request = v1::StartRunRequest {
        file: Some(v1::PipelineFile {
            name: "towpath.yml".to_owned(),
            content: file(CUTOVER).into_bytes().into(),
            ..Default::default()
        }),
        parallelism: 1,
        gates_preapproved: true,
        actor: "human:ana".to_owned(),
        ..Default::default()
    };
    let run = server.try_start(request).await.expect("the run begins").id;
    let mut worker = server.worker("w", 1).await;

    worker.succeed("orders").await;
    worker.succeed("switch").await;

    assert_eq!(server.ended(&run).await, "succeeded");
    assert_eq!(server.count(&run, "gate_approved").await, 1, "the log says that it was");
}
