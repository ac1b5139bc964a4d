//! A wall clock that is set while a server runs: the time of the log continues, in one direction.

use towpath_engine::time::Timestamp;
use towpath_proto::v1::{self, runs_service_client::RunsServiceClient};
use towpath_server::{
    Access,
    auth::{
        roles::Role,
        tokens::{self, NewToken, TokenKind},
    },
};
use towpath_tests::{BEGINNING, TestServer, code, file, on_a_runtime};
use towpath_wire::dial::dial_tcp;

const YEAR_MS: i64 = 365 * 86_400_000;

const FLAKY: &str = "stages: [copy]
jobs:
  flaky: {stage: copy, command: x, retry: {max: 9, backoff: 10s, factor: 1, jitter: 0}}
";

/// The wall clock is a year ahead while one command is carried out, and is then right again.
async fn one_event_a_year_ahead(server: &TestServer) {
    server.set_clock(YEAR_MS);
    let other = server.start(&file("stages: [s]\njobs:\n  o: {stage: s, command: x}\n")).await;
    server.cancel(&other).await.expect("the other run ends");
    server.set_clock(-YEAR_MS);
}

/// The moments of all events of the log, oldest first.
async fn times(server: &TestServer) -> Vec<Timestamp> {
    let at = |record: &v1::Record| {
        let fact: serde_json::Value = serde_json::from_slice(&record.payload).expect("JSON");
        Timestamp::parse(fact["at"].as_str().expect("a moment")).expect("a moment")
    };
    server.records("", 0).await.iter().map(at).collect()
}

#[tokio::test]
async fn a_retry_is_due_after_a_clock_that_was_ahead() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(FLAKY)).await;
    let mut worker = server.worker("w", 1).await;
    one_event_a_year_ahead(&server).await;

    worker.fail("flaky", 1).await;
    server.pass(9_999).await;
    assert_eq!(server.states(&run).await, "flaky backing_off");
    server.pass(1).await;
    worker.fail("flaky", 1).await;
    // Slower than the wall clock ever is, and then right: nothing is due twice, nothing waits.
    server.set_clock(-YEAR_MS);
    server.pass(10_000).await;
    worker.succeed("flaky").await;

    assert_eq!(server.ended(&run).await, "succeeded");
    let times = times(&server).await;
    assert!(times.is_sorted(), "{times:?}");
    let begun = times[0].plus_ms(YEAR_MS.unsigned_abs());
    assert!(times.last().expect("events").ms_since(begun) >= 20_000, "time went on: {times:?}");
}

#[tokio::test]
async fn a_run_times_out_after_a_clock_that_was_ahead() {
    let server = TestServer::in_memory().await;
    one_event_a_year_ahead(&server).await;
    let yaml = "timeout: 1m\nstages: [s]\njobs:\n  a: {stage: s, command: x}\n";
    let run = server.start(&file(yaml)).await;

    server.pass(59_999).await;
    assert_eq!(server.phase(&run).await, "running");
    server.pass(1).await;
    assert_eq!(server.ended(&run).await, "timed_out");
}

#[test]
fn a_retry_is_due_after_a_restart_under_a_clock_that_is_behind_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let run = server.start(&file(FLAKY)).await;
        one_event_a_year_ahead(&server).await;
        server.worker("w", 1).await.fail("flaky", 1).await;
        server.close().await;
        run
    });
    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let mut worker = server.worker("w", 1).await;

        server.pass(10_000).await;
        worker.succeed("flaky").await;

        assert_eq!(server.ended(&run).await, "succeeded");
        assert!(times(&server).await.is_sorted());
        server.close().await;
    });
}

#[tokio::test]
async fn tokens_expire_by_the_wall_clock() {
    let server = TestServer::in_memory().await;
    let address = server.serve_guarded(Access { strict: true, ..Access::default() }).await;
    let channel = dial_tcp(&address).expect("an address");
    let token = NewToken {
        name: "ana".to_owned(),
        kind: TokenKind::Human,
        roles: vec![Role::Viewer],
        expires_at: Some(BEGINNING.plus_ms(3_600_000)),
        emails: Vec::new(),
    };
    let issued = tokens::issue(&server.server().folder(), token, BEGINNING).expect("a token");
    let list = || async {
        let mut request = tonic::Request::new(v1::ListRunsRequest::default());
        let header = format!("Bearer {}", issued.reveal()).parse().expect("a header");
        request.metadata_mut().insert("authorization", header);
        RunsServiceClient::new(channel.clone()).list_runs(request).await
    };
    one_event_a_year_ahead(&server).await;

    list().await.expect("the token has not expired");
    server.pass(3_600_000).await;
    assert_eq!(code(&list().await.expect_err("it has expired")), "UNAUTHENTICATED");
    server.close().await;
}
