//! Gates: stops that only a person opens.

use towpath_proto::v1::{self, gates_client::GatesClient};
use towpath_tests::{TestHouse, code, file, on_a_runtime, succeeded_with};

const CUTOVER: &str = "stages: [copy, cutover]
jobs:
  orders: {stage: copy, command: x}
  switch: {stage: cutover, command: x, needs: [orders], when: manual, irreversible: true}
";

#[tokio::test]
async fn a_gate_blocks_until_a_person_opens_it() {
    let house = TestHouse::in_memory().await;
    let run = house.start(&file(CUTOVER)).await;
    let mut worker = house.worker("w", 1).await;

    worker.succeed("orders").await;
    house.settle().await;
    assert_eq!(house.states(&run).await, "orders succeeded, switch at_gate");
    assert!(!house.run(&run).await.can_move, "only a person can move the run");
    house.approve(&run, "switch").await;
    worker.succeed("switch").await;

    assert_eq!(house.ended(&run).await, "succeeded");
    let gate = house.job(&run, "switch").await.gate.expect("a decision");
    assert!(gate.approved);
    assert_eq!((gate.by.as_str(), gate.comment.as_str()), ("human:ana", "counts read"));
    let kinds = house.kinds(&run).await;
    let tail: Vec<&str> = kinds.iter().skip(5).map(String::as_str).collect();
    assert_eq!(
        tail,
        ["gate_reached", "gate_approved", "job_leased", "job_succeeded", "run_finished"]
    );
}

#[tokio::test]
async fn a_gate_holds_no_slot() {
    let house = TestHouse::in_memory().await;
    let run = house
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
    let mut worker = house.worker("w", 1).await;

    worker.succeed("free").await;

    assert_eq!(house.states(&run).await, "gated at_gate, free succeeded");
    assert_eq!(house.counts(&run).await.running, 0);
}

#[tokio::test]
async fn a_gate_that_is_not_reached_cannot_be_opened() {
    let house = TestHouse::in_memory().await;
    let run = house.start(&file(CUTOVER)).await;
    let anything = "0".repeat(64);

    let early = house.decide(&run, "switch", &anything, true).await.expect_err("orders is open");
    assert_eq!(code(&early), "GATE_NOT_WAITING");
    let nobody = house.decide(&run, "swich", &anything, true).await.expect_err("no such job");
    assert_eq!(code(&nobody), "JOB_UNKNOWN");
    let vague = house.decide(&run, "switch", "all of it", true).await.expect_err("no digest");
    assert_eq!(code(&vague), "MESSAGE_INVALID");

    assert_eq!(house.count(&run, "gate_approved").await, 0);
}

#[tokio::test]
async fn an_approval_covers_what_was_read_and_nothing_else() {
    let house = TestHouse::in_memory().await;
    let run = house.start(&file(CUTOVER)).await;
    let mut worker = house.worker("w", 1).await;
    let orders = worker.take_job("orders").await;
    worker.report(&orders, succeeded_with(&[("rows", "10")])).await;
    let read = house.job(&run, "switch").await.binds;

    // The results behind the gate change after they were read.
    let from_stage = "copy".to_owned();
    let again = v1::ResumeRunRequest { run: run.clone(), from_stage, ..Default::default() };
    house.resume_with(again).await.expect("the stage runs again");
    let orders = worker.take_job("orders").await;
    worker.report(&orders, succeeded_with(&[("rows", "11")])).await;
    let stale = house.decide(&run, "switch", &read, true).await.expect_err("other results");

    assert_eq!(code(&stale), "APPROVAL_STALE");
    let details = tonic_types::StatusExt::get_error_details(&stale);
    let waiting = &details.error_info().expect("a code").metadata["waiting"];
    assert_eq!(*waiting, house.job(&run, "switch").await.binds, "it says what waits instead");
    assert_eq!(house.job(&run, "switch").await.state, "at_gate");
    house.approve(&run, "switch").await;
    worker.succeed("switch").await;
}

#[tokio::test]
async fn opening_one_gate_opens_no_other() {
    let house = TestHouse::in_memory().await;
    let run = house
        .start(&file(
            "stages: [copy]
jobs:
  x: {stage: copy, command: x, when: manual}
  y: {stage: copy, command: x, when: manual}
",
        ))
        .await;
    let mut worker = house.worker("w", 2).await;
    let (of_x, of_y) = (house.job(&run, "x").await.binds, house.job(&run, "y").await.binds);

    let crossed = house.decide(&run, "y", &of_x, true).await.expect_err("that covers x");
    assert_eq!(code(&crossed), "APPROVAL_STALE");
    house.decide(&run, "x", &of_x, true).await.expect("x opens");
    worker.succeed("x").await;
    house.settle().await;

    assert_eq!(house.states(&run).await, "x succeeded, y at_gate");
    assert_ne!(of_x, of_y);
}

#[test]
fn a_gate_waits_through_a_restart_and_is_opened_by_another_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    let (run, binds) = on_a_runtime(async {
        let house = TestHouse::in_folder(folder.path()).await;
        let run = house.start(&file(CUTOVER)).await;
        let mut worker = house.worker("w", 1).await;
        worker.succeed("orders").await;
        let binds = house.job(&run, "switch").await.binds;
        drop(worker);
        house.close().await;
        (run, binds)
    });

    on_a_runtime(async {
        let house = TestHouse::in_folder(folder.path()).await;
        let outside = house.dial().await.expect("the socket answers");
        let mut gates = GatesClient::new(outside);
        let waiting = gates.list_gates(v1::ListGatesRequest::default()).await.expect("a list");
        let gate = waiting.into_inner().gates.pop().expect("a gate waits");
        assert_eq!((gate.job.as_str(), gate.irreversible), ("switch", true));
        assert_eq!(gate.binds, binds, "the same results wait after the restart");
        let v1::Gate { run: of, job, binds, .. } = gate;
        let actor = "human:dana".to_owned();
        let request = v1::DecideGateRequest { run: of, job, binds, actor, ..Default::default() };
        gates.approve_gate(request).await.expect("the gate opens");

        let mut worker = house.worker("w", 1).await;
        worker.succeed("switch").await;
        assert_eq!(house.ended(&run).await, "succeeded");
        assert_eq!(house.job(&run, "switch").await.gate.expect("a decision").by, "human:dana");
        house.close().await;
    });
}

#[tokio::test]
async fn a_rejected_gate_ends_the_run_and_stays_rejected() {
    let house = TestHouse::in_memory().await;
    let yaml = format!("{CUTOVER}  after: {{stage: cutover, command: x, needs: [switch]}}\n");
    let run = house.start(&file(&yaml)).await;
    let mut worker = house.worker("w", 1).await;
    worker.succeed("orders").await;
    let binds = house.job(&run, "switch").await.binds;

    let phase = house.decide(&run, "switch", &binds, false).await.expect("the gate is shut");

    assert_eq!(phase, "rejected");
    assert_eq!(house.states(&run).await, "orders succeeded, switch rejected, after skipped");
    assert_eq!(house.job(&run, "after").await.reason, "needs switch, which was rejected");
    let late = house.decide(&run, "switch", &binds, true).await.expect_err("it was rejected");
    assert_eq!(code(&late), "GATE_DECIDED");
}

#[tokio::test]
async fn a_second_approval_changes_nothing() {
    let house = TestHouse::in_memory().await;
    let run = house.start(&file(CUTOVER)).await;
    let mut worker = house.worker("w", 1).await;
    worker.succeed("orders").await;
    let binds = house.job(&run, "switch").await.binds;
    house.decide(&run, "switch", &binds, true).await.expect("the gate opens");
    let before = house.kinds(&run).await;

    house.decide(&run, "switch", &binds, true).await.expect("it is open already");
    let shut = house.decide(&run, "switch", &binds, false).await.expect_err("it is open");

    assert_eq!(code(&shut), "GATE_DECIDED");
    let after = house.kinds(&run).await;
    let decisions =
        |kinds: &[String]| kinds.iter().filter(|kind| kind.starts_with("gate_")).count();
    assert_eq!(decisions(&before), decisions(&after));
}

#[tokio::test]
async fn gates_that_were_approved_in_advance_do_not_stop_the_run() {
    let house = TestHouse::in_memory().await;
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
    let run = house.try_start(request).await.expect("the run begins").id;
    let mut worker = house.worker("w", 1).await;

    worker.succeed("orders").await;
    worker.succeed("switch").await;

    assert_eq!(house.ended(&run).await, "succeeded");
    assert_eq!(house.count(&run, "gate_approved").await, 1, "the log says that it was");
}
