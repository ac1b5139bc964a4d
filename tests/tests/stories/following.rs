//! The log as its readers see it, and how runs are found.

use std::collections::BTreeSet;

use tokio_stream::StreamExt as _;
use towpath_proto::streams::Records;
use towpath_proto::v1;
use towpath_tests::{TestServer, code, file};

const TWO: &str = "stages: [s]
jobs:
  a: {stage: s, command: x}
  b: {stage: s, command: x, needs: [a]}
";

#[tokio::test]
async fn a_reader_that_reconnects_gets_every_record_once() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(TWO)).await;
    let mut worker = server.worker("w", 1).await;
    let follow = |after| v1::FollowRequest { run: String::new(), after, follow: true };

    let mut first = Records::new(server.log().follow(follow(0)).await.expect("a log").into_inner());
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.push(first.next().await.expect("the log continues").expect("a record"));
    }
    drop(first);
    worker.succeed("a").await;
    worker.succeed("b").await;
    let stopped_at = seen.last().expect("a record").position;
    let mut second =
        Records::new(server.log().follow(follow(stopped_at)).await.expect("a log").into_inner());
    while seen.last().is_some_and(|record| record.kind != "run_finished") {
        seen.push(second.next().await.expect("the log continues").expect("a record"));
    }

    let all = server.records("", 0).await;
    assert_eq!(seen, all, "the same bytes, in the same order");
    let positions: Vec<u64> = seen.iter().map(|record| record.position).collect();
    assert_eq!(positions, (1..=all.len() as u64).collect::<Vec<_>>());
    drop(run);
}

#[tokio::test]
async fn the_log_of_one_run_holds_that_run_alone() {
    let server = TestServer::in_memory().await;
    let first = server.start(&file(TWO)).await;
    let second = server.start(&file(TWO)).await;

    let records = server.records(&second, 0).await;

    assert!(records.iter().all(|record| record.stream == format!("run/{second}")));
    let versions: Vec<u64> = records.iter().map(|record| record.version).collect();
    assert_eq!(versions, [1, 2, 3]);
    assert_eq!(server.records(&second, 2).await, records[2..]);
    assert_ne!(records[0].payload, server.records(&first, 0).await[0].payload);
}

#[tokio::test]
async fn the_log_of_one_run_is_followed_by_its_own_versions() {
    let server = TestServer::in_memory().await;
    server.start(&file(TWO)).await;
    let second = server.start(&file(TWO)).await;
    let request = v1::FollowRequest { run: second.clone(), after: 0, follow: true };
    let mut stream = Records::new(server.log().follow(request).await.expect("a log").into_inner());
    for _ in 0..3 {
        stream.next().await.expect("the log continues").expect("a record");
    }

    let only = v1::Hello { worker: "w".to_owned(), slots: 1, run: second, ..Default::default() };
    let mut worker = server.worker_like(only).await;
    worker.succeed("a").await;

    let next = tokio::time::timeout(towpath_tests::WAIT_MAX, stream.next()).await;
    let next = next.expect("the reader is woken").expect("the log continues").expect("a record");
    assert_eq!((next.version, next.kind.as_str()), (4, "job_leased"));
    assert!(next.position > next.version, "places in the log are other numbers");
}

#[tokio::test]
async fn what_is_followed_is_what_was_decided() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(TWO)).await;
    let mut worker = server.worker("w", 1).await;
    worker.succeed("a").await;
    worker.fail("b", 1).await;
    assert_eq!(server.ended(&run).await, "failed");

    let facts: Vec<_> = server
        .records(&run, 0)
        .await
        .iter()
        .map(|record| {
            let fact =
                towpath_engine::codec::decode::<towpath_engine::event::RunEvent>(&record.payload)
                    .expect("an event");
            assert_eq!(fact.event.kind(), record.kind);
            fact
        })
        .collect();

    let replayed = towpath_engine::run::Run::replay(&facts).expect("a run");
    assert_eq!(replayed.phase().word(), server.phase(&run).await);
}

#[tokio::test]
async fn a_reader_that_never_reads_delays_no_other_reader() {
    let server = TestServer::in_memory().await;
    let jobs: String = (0..800).map(|n| format!("  j{n}: {{stage: s, command: x}}\n")).collect();
    let run = server.start(&file(&format!("stages: [s]\njobs:\n{jobs}"))).await;
    let mut asleep = Vec::new();
    for _ in 0..3 {
        let follow = v1::FollowRequest { run: String::new(), after: 0, follow: true };
        asleep.push(Records::new(server.log().follow(follow).await.expect("a log").into_inner()));
    }

    let mut worker = server.worker("w", 4).await;
    for _ in 0..800 {
        let job = worker.take().await;
        worker.report(&job, towpath_tests::succeeded()).await;
    }

    assert_eq!(server.ended(&run).await, "succeeded");
    // And once it wakes up, everything is there for it.
    let mut woken = asleep.pop().expect("a reader");
    for record in server.records("", 0).await {
        assert_eq!(woken.next().await.expect("the log continues").expect("a record"), record);
    }
}

#[tokio::test]
async fn runs_are_listed_newest_first_a_page_at_a_time() {
    let server = TestServer::in_memory().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(server.start(&file(TWO)).await);
    }
    server.cancel(&ids[1]).await.expect("the run ends");
    let list = async |token: &str, page_size, outcomes: &[v1::RunOutcome]| {
        let outcomes = outcomes.iter().map(|outcome| (*outcome).into()).collect();
        let page_token = token.to_owned();
        let phases = Vec::new();
        let request = v1::ListRunsRequest { page_token, page_size, phases, outcomes, at: None };
        let reply = server.runs().list_runs(request).await?.into_inner();
        let found: Vec<String> = reply.runs.into_iter().map(|run| run.id).collect();
        Ok::<_, tonic::Status>((found, reply.next_page_token))
    };

    let (first, token) = list("", 2, &[]).await.expect("a page");
    assert_eq!(first, [ids[4].clone(), ids[3].clone()]);
    let (second, token) = list(&token, 2, &[]).await.expect("a page");
    assert_eq!(second, [ids[2].clone(), ids[1].clone()]);
    let (third, token) = list(&token, 2, &[]).await.expect("a page");
    assert_eq!((third, token.as_str()), (vec![ids[0].clone()], ""));
    let ended = list("", 0, &[v1::RunOutcome::Cancelled]).await.expect("a page");
    assert_eq!(ended, (vec![ids[1].clone()], String::new()));
    let unknown = list("nonsense", 2, &[]).await.expect_err("no answer had it");
    assert_eq!(code(&unknown), "MESSAGE_INVALID");
}

#[tokio::test]
async fn a_run_answers_to_its_prefix_and_to_latest() {
    let server = TestServer::in_memory().await;
    let refused = async |run: &str| {
        let request = v1::GetRunRequest { run: run.to_owned(), at: None };
        code(&server.runs().get_run(request).await.expect_err("no such run"))
    };
    assert_eq!(refused("@latest").await, "RUN_UNKNOWN");

    let mut ids = Vec::new();
    for _ in 0..40 {
        ids.push(server.start(&file(TWO)).await);
    }

    assert_eq!(server.run("@latest").await.id, ids[39]);
    for id in &ids {
        let view = server.run(id).await;
        assert_eq!(server.run(&view.short_id).await.id, *id);
    }
    // Forty runs share thirty-two first characters.
    let firsts: BTreeSet<&str> = ids.iter().map(|id| &id[..1]).collect();
    let mut shared =
        firsts.iter().filter(|first| ids.iter().filter(|id| id.starts_with(**first)).count() > 1);
    assert_eq!(refused(shared.next().expect("two runs share one")).await, "RUN_AMBIGUOUS");
    assert_eq!(refused("").await, "RUN_UNKNOWN");
    assert_eq!(refused("u-is-no-digit").await, "RUN_UNKNOWN");
}

#[tokio::test]
async fn the_server_says_what_it_is() {
    let server = TestServer::in_memory().await;
    server.start(&file(TWO)).await;

    let described = server.log().describe(v1::DescribeRequest {}).await.expect("a description");

    let described = described.into_inner();
    assert_eq!(described.pid, std::process::id());
    assert_eq!((described.position, described.store.as_str()), (3, "memory:"));
}
