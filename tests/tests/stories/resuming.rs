//! `resume`, edited files, and records of another tool.

use towpath_proto::time::duration;
use towpath_proto::v1;
use towpath_tests::SeenJob as _;
use towpath_tests::{ANA, TestServer, code, file};

const THREE: &str = "stages: [check, copy, cutover]
jobs:
  preflight: {stage: check, command: x}
  orders: {stage: copy, command: x}
  lines: {stage: copy, command: x, needs: [orders]}
  switch: {stage: cutover, command: x, needs: [lines]}
";

fn pipeline(yaml: &str) -> v1::PipelineFile {
    v1::PipelineFile {
        name: "towpath.yml".to_owned(),
        content: yaml.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

fn with_file(run: &str, yaml: &str, accept_changes: bool) -> v1::ResumeRunRequest {
    let (run, file) = (run.to_owned(), Some(pipeline(yaml)));
    v1::ResumeRunRequest { run, file, accept_changes, ..Default::default() }
}

#[tokio::test]
async fn a_resume_never_runs_a_succeeded_job_again() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(THREE)).await;
    let mut worker = server.worker("w", 1).await;
    worker.succeed("preflight").await;
    worker.succeed("orders").await;
    worker.fail("lines", 1).await;
    assert_eq!(server.ended(&run).await, "failed");

    server.resume(&run).await.expect("something is left to do");
    worker.succeed("lines").await;
    worker.succeed("switch").await;

    server.until(&run, "run_finished", 2).await;
    let attempts: Vec<u32> = server.jobs(&run).await.iter().map(|job| job.attempt).collect();
    assert_eq!(attempts, [1, 1, 2, 1]);
    assert_eq!(server.phase(&run).await, "succeeded");
    let done = server.resume(&run).await.expect_err("everything succeeded");
    assert_eq!(code(&done), "NOTHING_TO_RESUME");
}

#[tokio::test]
async fn a_resume_from_a_stage_runs_it_and_what_follows_again() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(THREE)).await;
    let mut worker = server.worker("w", 1).await;
    for job in ["preflight", "orders", "lines", "switch"] {
        worker.succeed(job).await;
    }
    let from = |stage: &str| v1::ResumeRunRequest {
        run: run.clone(),
        from_stage: stage.to_owned(),
        ..Default::default()
    };

    let unknown = server.resume_with(from("copying")).await.expect_err("no such stage");
    assert_eq!(code(&unknown), "STAGE_UNKNOWN");
    server.resume_with(from("copy")).await.expect("the stage runs again");
    for job in ["orders", "lines", "switch"] {
        worker.succeed(job).await;
    }

    server.until(&run, "run_finished", 2).await;
    let attempts: Vec<u32> = server.jobs(&run).await.iter().map(|job| job.attempt).collect();
    assert_eq!(attempts, [1, 2, 2, 2]);
    let told = server.newest(&run, "jobs_invalidated").await;
    assert_eq!((&told["by"], &told["event"]["from"]), (&ANA.into(), &"copy".into()));
}

#[tokio::test]
async fn results_are_not_taken_back_while_jobs_run() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(THREE)).await;
    let mut worker = server.worker("w", 1).await;
    worker.take_job("preflight").await;

    let from_stage = "check".to_owned();
    let again = v1::ResumeRunRequest { run: run.clone(), from_stage, ..Default::default() };
    let refused = server.resume_with(again).await.expect_err("preflight runs");

    assert_eq!(code(&refused), "JOBS_RUNNING");
}

#[tokio::test]
async fn an_edited_file_is_refused_until_the_edit_is_accepted() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(THREE)).await;
    let mut worker = server.worker("w", 1).await;
    worker.succeed("preflight").await;
    worker.succeed("orders").await;
    worker.fail("lines", 1).await;
    assert_eq!(server.ended(&run).await, "failed");
    let edited = file(&format!(
        "{}  report: {{stage: cutover, command: x}}\n",
        THREE.replace("lines: {stage: copy, command: x,", "lines: {stage: copy, command: y,")
    ));

    let refused = server.resume_with(with_file(&run, &edited, false)).await;
    assert_eq!(code(&refused.expect_err("the plan differs")), "PLAN_CHANGED");
    server.resume_with(with_file(&run, &edited, true)).await.expect("the edit is accepted");
    let lines = worker.take_job("lines").await;
    assert_eq!(lines.script, "y", "what runs is what the file says now");
    worker.report(&lines, towpath_tests::succeeded()).await;
    worker.succeed("switch").await;
    worker.succeed("report").await;

    server.until(&run, "run_finished", 2).await;
    assert_eq!(server.phase(&run).await, "succeeded");
    assert_eq!(server.count(&run, "plan_replaced").await, 1);
    assert_eq!(server.job(&run, "orders").await.attempt, 1);
}

#[tokio::test]
async fn an_edit_that_changes_nothing_of_the_plan_is_no_edit() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(THREE)).await;
    let mut worker = server.worker("w", 1).await;
    worker.fail("preflight", 1).await;
    worker.succeed("orders").await;
    worker.succeed("lines").await;
    worker.succeed("switch").await;
    assert_eq!(server.ended(&run).await, "partial");
    let commented = file(&format!("# a remark\n{THREE}"));

    server.resume_with(with_file(&run, &commented, false)).await.expect("the plan is the same");

    assert_eq!(server.count(&run, "plan_replaced").await, 0);
    worker.succeed("preflight").await;
}

#[tokio::test]
async fn a_file_is_the_same_file_after_a_resume() {
    let server = TestServer::in_memory().await;
    let yaml = file("timeout: 1h\nstages: [s]\njobs:\n  a: {stage: s, command: x}\n");
    let run = server.start(&yaml).await;
    let mut worker = server.worker("w", 1).await;

    for _ in 0..3 {
        worker.fail("a", 1).await;
        server.pass(1_000).await;
        server.resume_with(with_file(&run, &yaml, false)).await.expect("an unedited file");
    }
}

/// As the other tool writes it: one object per transition, a failure without its beginning.
const RECORD: &str = r#"{"pipeline_run_id":"run-20260407-1400","job":"preflight","stage":"check","status":"DONE","started_at":"2026-04-07T14:00:00Z","finished_at":"2026-04-07T14:00:04Z","exit_code":0,"error":""}
{"pipeline_run_id":"run-20260407-1400","job":"orders","stage":"copy","status":"FAILED","finished_at":"2026-04-07T14:15:01Z","exit_code":1,"error":"lost connection"}
{"pipeline_run_id":"run-20260407-1400","job":"lines","stage":"copy","status":"SKIPPED","finished_at":"2026-04-07T14:15:01Z","error":""}
"#;

async fn import(server: &TestServer, yaml: &str, record: &str) -> Result<v1::Run, tonic::Status> {
    let request = v1::ImportRunRequest {
        file: Some(pipeline(yaml)),
        record: record.as_bytes().to_vec().into(),
        actor: ANA.to_owned(),
    };
    Ok(server.runs().import_run(request).await?.into_inner().run.unwrap_or_default())
}

#[tokio::test]
async fn the_record_of_another_tool_becomes_a_run_that_continues_here() {
    let server = TestServer::in_memory().await;

    let run = import(&server, &file(THREE), RECORD).await.expect("the record fits the file").id;
    assert_eq!(
        server.states(&run).await,
        "preflight succeeded, orders failed, lines skipped, switch skipped"
    );
    let orders = server.job(&run, "orders").await;
    assert_eq!((orders.reason().as_str(), orders.exit_code), ("lost connection", Some(1)));
    server.resume(&run).await.expect("something is left to do");
    let mut worker = server.worker("w", 1).await;
    for job in ["orders", "lines", "switch"] {
        worker.succeed(job).await;
    }

    server.until(&run, "run_finished", 2).await;
    assert_eq!(server.phase(&run).await, "succeeded");
    assert_eq!(server.job(&run, "preflight").await.run_time, Some(duration(4_000)));
    assert_eq!(server.findings().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_imported_run_has_as_much_time_as_any_other() {
    let server = TestServer::in_memory().await;
    let yaml = file(&format!("timeout: 1h\n{THREE}"));
    let done = RECORD.lines().next().expect("a line");

    let run = import(&server, &yaml, done).await.expect("the record fits the file").id;
    server.settle().await;

    assert_eq!(server.phase(&run).await, "running");
}

#[tokio::test]
async fn a_record_that_does_not_fit_or_cannot_be_read_is_refused_whole() {
    let server = TestServer::in_memory().await;

    let elsewhere = RECORD.replace("\"orders\"", "\"orders-of-another-pipeline\"");
    let other = import(&server, &file(THREE), &elsewhere).await.expect_err("another pipeline");
    let odd = RECORD.replace("SKIPPED", "PAINTED");
    let odd = import(&server, &file(THREE), &odd).await.expect_err("no such status");

    assert_eq!([code(&other), code(&odd)], ["IMPORT_MISMATCH", "IMPORT_INVALID"]);
    assert_eq!(server.records("", 0).await.len(), 0);
}
