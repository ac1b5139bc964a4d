//! Stories with real processes: a real worker in this process, and the machine's shell.

use std::path::Path;

use towpath_proto::v1;
use towpath_tests::SeenJob as _;
use towpath_tests::{RealWorker, TestServer, file};

fn pipeline(yaml: &str, folder: &Path) -> v1::StartRunRequest {
    v1::StartRunRequest {
        file: Some(v1::PipelineFile {
            name: "towpath.yml".to_owned(),
            folder: folder.display().to_string(),
            content: yaml.as_bytes().to_vec().into(),
            ..Default::default()
        }),
        parallelism: 4,
        actor: towpath_tests::ANA.to_owned(),
        ..Default::default()
    }
}

fn text(output: &[u8]) -> String {
    let lines = towpath_engine::captured_output::lines(output);
    let lines = lines.map(|line| line.expect("a record").bytes.to_vec());
    String::from_utf8(lines.collect::<Vec<_>>().join(&b"\n"[..])).expect("text")
}

#[tokio::test]
async fn a_pipeline_of_shell_scripts_runs_to_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let worker = RealWorker::begin(&server, "real", 4, folder.path());
    let yaml = file(
        "stages: [copy, check]
jobs:
  a:
    stage: copy
    command: |
      echo one; echo two >&2
      echo \"motto=it's \\$HOME; exit 1\" >> \"$TOW_OUTPUT\"
      printf 'a\\nb\\n' > rows.txt
    outputs: [motto]
    artifacts: [rows.txt]
  b:
    stage: check
    command: printf '%s|' ${{ needs.a.outputs.motto }} \"$TOW_JOB\" \"$TOW_ATTEMPT\"
    needs: [a]
",
    );

    let run = server.try_start(pipeline(&yaml, folder.path())).await.expect("the run begins").id;

    assert_eq!(server.ended(&run).await, "succeeded");
    let mut lines: Vec<_> =
        text(&server.output(&run, "a", 0, false).await).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["one", "two"]);
    assert_eq!(text(&server.output(&run, "b", 0, false).await), "it's $HOME; exit 1|b|1|");
    let (job, path) = ("a".to_owned(), "rows.txt".to_owned());
    let request = v1::ReadArtifactRequest { run: run.clone(), job, path };
    let stream = server.runs().read_artifact(request).await.expect("it is kept").into_inner();
    assert_eq!(TestServer::collect(stream).await.expect("it is kept"), b"a\nb\n");
    assert_eq!(server.findings().await, Vec::<String>::new());
    worker.stop().await;
}

#[tokio::test]
async fn a_job_that_takes_too_long_is_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let worker = RealWorker::begin(&server, "real", 4, folder.path());
    let yaml = file(
        "stages: [s]
jobs:
  slow: {stage: s, command: echo begun; sleep 600, timeout: 1s, grace: 1s}
",
    );

    let run = server.try_start(pipeline(&yaml, folder.path())).await.expect("the run begins").id;

    assert_eq!(server.ended(&run).await, "timed_out");
    let slow = server.job(&run, "slow").await;
    assert_eq!(
        (slow.word().as_str(), slow.reason().as_str()),
        ("timed_out", "took longer than 1.0s")
    );
    assert!(text(&server.output(&run, "slow", 0, false).await).contains("begun"));
    worker.stop().await;
}

#[tokio::test]
async fn a_cancelled_run_leaves_no_process_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let worker = RealWorker::begin(&server, "real", 4, folder.path());
    let yaml = file(
        "stages: [s]
jobs:
  long: {stage: s, command: 'sleep 600 & echo $! > child.pid; mv child.pid child; wait'}
",
    );
    let run = server.try_start(pipeline(&yaml, folder.path())).await.expect("the run begins").id;
    let child = folder.path().join("child");
    towpath_tests::eventually("the child is there", || child.exists()).await;
    let pid = std::fs::read_to_string(&child).expect("a pid").trim().to_owned();

    server.cancel(&run).await.expect("the run is ending");

    assert_eq!(server.ended(&run).await, "cancelled");
    assert_eq!(server.states(&run).await, "long cancelled");
    let stat = Path::new("/proc").join(&pid).join("stat");
    let gone = || match std::fs::read_to_string(&stat) {
        // A process without a `wait` from its parent is dead as well.
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    towpath_tests::eventually("the child is gone", gone).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_failed_script_has_its_exit_code_and_a_killed_one_its_signal() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let worker = RealWorker::begin(&server, "real", 4, folder.path());
    let yaml = file(
        "stages: [s]
jobs:
  code: {stage: s, command: exit 7}
  signal: {stage: s, command: kill -9 $$}
  odd: {stage: s, command: echo 'a=b=c' > \"$TOW_OUTPUT\"; echo nonsense >> \"$TOW_OUTPUT\"}
",
    );

    let run = server.try_start(pipeline(&yaml, folder.path())).await.expect("the run begins").id;

    assert_eq!(server.ended(&run).await, "failed");
    assert_eq!(server.job(&run, "code").await.reason(), "exit code 7");
    assert_eq!(server.job(&run, "signal").await.reason(), "ended by signal 9");
    let odd = server.job(&run, "odd").await;
    assert!(odd.reason().starts_with("left something unusable: "), "{}", odd.reason());
    worker.stop().await;
}

#[tokio::test]
async fn a_draining_worker_finishes_running_jobs() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let worker = RealWorker::begin(&server, "real", 1, folder.path());
    let yaml = file(
        "stages: [s]
jobs:
  a: {stage: s, command: 'touch begun; while ! test -e go; do sleep 0.02; done'}
  b: {stage: s, command: 'true', needs: [a]}
",
    );
    let run = server.try_start(pipeline(&yaml, folder.path())).await.expect("the run begins").id;
    let begun = folder.path().join("begun");
    towpath_tests::eventually("`a` runs", || begun.exists()).await;

    worker.drain();
    std::fs::write(folder.path().join("go"), "").expect("a file can be written");
    worker.stop().await;

    assert_eq!(server.states(&run).await, "a succeeded, b waiting");
}
