//! Reads of the past: a run as it was at a position of the log, or at a time.

use tonic::Status;
use towpath_proto::{
    time::timestamp,
    v1::{self, read_point::Point},
    words::Word as _,
};
use towpath_tests::{BEGINNING, SeenJob as _, TestServer, code, file};

const FILE: &str = "stages: [copy, cutover]
jobs:
  a: {stage: copy, command: x, retry: {max: 1, backoff: 1m}}
  b: {stage: copy, command: x, needs: [a]}
  c: {stage: cutover, command: x, when: manual}
";

fn position(position: u64) -> Option<v1::ReadPoint> {
    Some(v1::ReadPoint { point: Some(Point::Position(position)) })
}

fn time(ms: i64) -> Option<v1::ReadPoint> {
    Some(v1::ReadPoint { point: Some(Point::Time(timestamp(ms))) })
}

/// A run and its jobs, as they are or were.
async fn read(
    server: &TestServer,
    run: &str,
    at: Option<v1::ReadPoint>,
) -> Result<v1::ListJobsResponse, Status> {
    let request = v1::ListJobsRequest {
        run: run.to_owned(),
        view: v1::JobView::Full.into(),
        at,
        ..Default::default()
    };
    Ok(server.runs().list_jobs(request).await?.into_inner())
}

/// A run that meets a back-off, a gate and its end, and what was read of it on the way.
async fn watched(server: &TestServer) -> (String, Vec<v1::ListJobsResponse>) {
    let run = server.start(&file(FILE)).await;
    let mut seen = vec![read(server, &run, None).await.expect("a run")];
    let mut worker = server.worker("w", 1).await;
    let first = worker.take_job("a").await;
    seen.push(read(server, &run, None).await.expect("a run"));
    worker.report(&first, towpath_tests::failed(3)).await;
    seen.push(read(server, &run, None).await.expect("a run"));
    server.pass(60_000).await;
    for job in ["a", "b"] {
        worker.succeed(job).await;
        seen.push(read(server, &run, None).await.expect("a run"));
    }
    server.approve(&run, "c").await;
    seen.push(read(server, &run, None).await.expect("a run"));
    worker.succeed("c").await;
    assert_eq!(server.ended(&run).await, "succeeded");
    seen.push(read(server, &run, None).await.expect("a run"));
    (run, seen)
}

#[tokio::test]
async fn a_read_at_a_position_is_what_was_read_then() {
    let server = TestServer::in_memory().await;
    let (run, seen) = watched(&server).await;
    server.start(&file(FILE)).await;

    for live in &seen {
        let at = live.run.as_ref().expect("a run").position;
        let then = read(&server, &run, position(at)).await.expect("the past");
        let short_id = then.run.as_ref().expect("a run").short_id.clone();
        let mut live = live.clone();
        // How much of an id is enough changes with other runs.
        live.run.as_mut().expect("a run").short_id = short_id;
        assert_eq!(then.as_of.as_ref().map(|as_of| as_of.position), Some(at));
        assert_eq!(v1::ListJobsResponse { as_of: None, ..then }, live, "position {at}");
    }
}

#[tokio::test]
async fn every_position_of_a_run_can_be_read_in_every_way() {
    let server = TestServer::in_memory().await;
    let (run, _) = watched(&server).await;

    let records = server.records(&run, 0).await;
    for record in &records {
        let at = position(record.position);
        let then = read(&server, &run, at).await.expect("the past").run.expect("a run");
        assert_eq!((then.version, then.position), (record.version, record.position));
        let request = v1::GetRunRequest { run: run.clone(), at };
        let alone = server.runs().get_run(request).await.expect("a run").into_inner();
        assert_eq!(alone.run.as_ref(), Some(&then));
        let request = v1::ListRunsRequest { at, ..Default::default() };
        let listed = server.runs().list_runs(request).await.expect("a list").into_inner();
        assert_eq!(listed.runs.as_slice(), std::slice::from_ref(&then));
        let request = v1::ListGatesRequest { run: run.clone(), at, ..Default::default() };
        let gates = server.gates().list_gates(request).await.expect("gates").into_inner().gates;
        assert_eq!(gates.len(), then.counts.expect("counts").at_gate as usize);
        for job in ["a", "b", "c"] {
            let (run, job) = (run.clone(), job.to_owned());
            let request = v1::ExplainJobRequest { run, job, at };
            let answer = server.runs().explain_job(request).await;
            // A plan is recorded after its run: until then there is no job.
            if let Ok(answer) = answer {
                let reason = answer.into_inner().explanation.expect("an explanation").reason();
                assert_ne!(reason.word(), "unspecified");
            }
        }
    }
}

#[tokio::test]
async fn a_read_at_a_time_sees_what_was_decided_by_then() {
    let server = TestServer::in_memory().await;
    let (run, _) = watched(&server).await;

    let backing_off = read(&server, &run, time(BEGINNING.0 + 30_000)).await.expect("the past");
    assert_eq!(backing_off.jobs[0].word(), "backing_off");
    let request =
        v1::GetJobRequest { run, job: "a".to_owned(), at: time(BEGINNING.0 + 60_000), view: 0 };
    let later = server.runs().get_job(request).await.expect("the past").into_inner();
    assert_eq!(later.job.expect("a job").word(), "succeeded");
    assert!(later.as_of.expect("a point").position > 0);
}

#[tokio::test]
async fn what_the_log_has_not_reached_is_refused() {
    let server = TestServer::in_memory().await;
    let first = server.start(&file(FILE)).await;
    let tail = server.records("", 0).await.len() as u64;
    let second = server.start(&file(FILE)).await;

    for (run, at) in [
        (&first, position(0)),
        (&first, position(u64::MAX)),
        (&first, time(BEGINNING.0 + 86_400_000)),
        (&second, position(tail)),
        (&second, time(BEGINNING.0 - 1)),
    ] {
        let refused = read(&server, run, at).await.expect_err("there is nothing");
        assert_eq!(code(&refused), "AT_OUT_OF_RANGE", "{at:?}");
    }
    let request = v1::ListRunsRequest { at: position(tail), ..Default::default() };
    let listed = server.runs().list_runs(request).await.expect("a list").into_inner().runs;
    assert_eq!(listed.iter().map(|run| &run.id).collect::<Vec<_>>(), [&first]);
    let nowhere = Some(v1::ReadPoint { point: None });
    let invalid = read(&server, &first, nowhere).await.expect_err("a point without a point");
    assert_eq!(code(&invalid), "MESSAGE_INVALID");
}
