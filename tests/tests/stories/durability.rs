//! What outlives a crash, and what the doctor sees.

use std::{fs, path::Path};

use towpath_engine::ids::Digest;
use towpath_proto::v1;
use towpath_storage::{NewRecord, open};
use towpath_tests::{TestServer, code, file, on_a_runtime, succeeded};

const FOUR: &str = "stages: [s]
jobs:
  a: {stage: s, command: x}
  b: {stage: s, command: x}
  c: {stage: s, command: x}
  d: {stage: s, command: x}
";

/// Begins a run, reports `a`, leaves `b` and `c` with a worker, and crashes.
fn crash_in_the_middle(folder: &Path) -> (String, Vec<v1::Record>, Vec<v1::Assignment>) {
    on_a_runtime(async {
        let server = TestServer::in_folder(folder).await;
        let run = server.start(&file(FOUR)).await;
        let mut worker = server.worker("w", 2).await;
        let mut taken = worker.take_some(2).await;
        let a = taken.remove("a").expect("a was given out");
        worker.print(&a, 0, b"1 o done\n").await;
        worker.report_printed(&a, succeeded(), 9).await;
        let next = worker.take_job("c").await;
        let held = taken.into_values().chain([next]).collect();
        (run, server.records("", 0).await, held)
    })
}

#[test]
fn everything_acknowledged_is_there_after_a_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    let (run, before, _) = crash_in_the_middle(folder.path());

    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let after = server.records("", 0).await;
        assert_eq!(after[..before.len()], before, "the same bytes at the same places");
        assert_eq!(server.output(&run, "a", 1, false).await, b"1 o done\n");
        assert_eq!(server.run("@latest").await.id, run);
        assert_eq!(server.findings().await, Vec::<String>::new());
        server.close().await;
    });
}

#[test]
fn what_a_vanished_worker_held_is_given_out_again_when_it_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (run, _, held) = crash_in_the_middle(folder.path());
    assert_eq!(held.len(), 2);

    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        assert_eq!(
            server.states(&run).await,
            "a succeeded, b running, c running, d waiting",
            "until then no newer state is known"
        );
        let mut worker = server.worker("w", 2).await;
        assert_eq!(worker.held(), []);
        for _ in 0..3 {
            let job = worker.take().await;
            worker.report(&job, succeeded()).await;
        }

        assert_eq!(server.ended(&run).await, "succeeded");
        let attempts: Vec<u32> = server.jobs(&run).await.iter().map(|job| job.attempt).collect();
        assert_eq!(attempts, [1, 2, 2, 1]);
        assert_eq!(server.count(&run, "job_lost").await, 2);
        assert_eq!(server.findings().await, Vec::<String>::new());
        server.close().await;
    });
}

#[test]
fn a_store_that_is_served_is_not_served_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;

        let clock = std::sync::Arc::new(towpath_server::SystemClock);
        let url = format!("sled:{}", folder.path().display());
        let second = towpath_server::Server::open(&url, clock).await;

        assert_eq!(second.expect_err("it is owned").code().as_str(), "STORE_OWNED");
        server.close().await;
    });
}

#[test]
fn a_closed_server_can_be_opened_again_in_the_same_process() {
    let folder = tempfile::tempdir().expect("a folder");
    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let run = server.start(&file(FOUR)).await;
        server.close().await;

        let server = TestServer::in_folder(folder.path()).await;
        assert_eq!(server.phase(&run).await, "running");
        server.close().await;
    });
}

/// Replaces `from` by `to` in a snapshot, and makes its cover agree with that.
fn tamper(snapshot: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(snapshot).expect("a snapshot");
    let (cover, body) = text.split_once('\n').expect("a cover and a body");
    let forged = body.replacen(from, to, 1);
    assert_ne!(forged, body, "the snapshot says `{from}`");
    let digests = [Digest::of(body.as_bytes()), Digest::of(forged.as_bytes())];
    let cover = cover.replace(&digests[0].to_string(), &digests[1].to_string());
    fs::write(snapshot, format!("{cover}\n{forged}")).expect("a snapshot can be written");
}

#[test]
fn the_doctor_sees_a_forged_list_of_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        server.start(&file(&format!("name: shop\n{FOUR}"))).await;
        server.close().await;
    });
    tamper(&folder.path().join("snapshots/list-run.json"), "\"shop\"", "\"shed\"");

    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        assert_eq!(server.findings().await, ["the list of runs differs from the log"]);
        server.close().await;
    });
}

#[test]
fn the_doctor_sees_a_forged_snapshot_of_a_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let jobs: String = (0..2_600).map(|n| format!("  j{n}: {{stage: s, command: x}}\n")).collect();
    let run = on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let run = server.start_with(&file(&format!("stages: [s]\njobs:\n{jobs}")), 1_024).await;
        let mut worker = server.worker("w", 1_024).await;
        worker.run_all(2_600).await;
        assert_eq!(server.ended(&run).await, "succeeded");
        assert_eq!(server.findings().await, Vec::<String>::new());
        server.close().await;
        run
    });
    tamper(
        &folder.path().join(format!("snapshots/run-{run}.json")),
        "\"state\":\"succeeded\"",
        "\"state\":\"skipped\"",
    );

    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let findings = server.findings().await;
        assert!(findings.contains(&format!("the snapshot of run {run} differs from the log")));
        server.close().await;
    });
}

#[test]
fn the_doctor_finds_a_missing_or_damaged_blob() {
    let folder = tempfile::tempdir().expect("a folder");
    let (run, _, _) = crash_in_the_middle(folder.path());
    let blob = newest_file(&folder.path().join("blobs")).expect("a blob");

    fs::set_permissions(&blob, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("our own file");
    fs::write(&blob, b"1 o dOne\n").expect("a blob can be overwritten");
    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let findings = server.findings().await;
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains(&run) && findings[0].contains("`a`"), "{findings:?}");
        server.close().await;
    });
    fs::remove_file(&blob).expect("a blob can be removed");
    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        assert_eq!(server.findings().await.len(), 1);
        server.close().await;
    });
}

fn newest_file(folder: &Path) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find_map(|path| if path.is_dir() { newest_file(&path) } else { Some(path) })
}

/// Appends `bytes` to the stream of `run`, as no server would.
fn append_raw(folder: &Path, run: &str, kind: &'static str, bytes: &[u8]) {
    on_a_runtime(async {
        let opened = open(&format!("sled:{}", folder.display())).expect("the store");
        let stream = format!("run/{run}");
        let records = opened.store.read(&stream, 0, 1_000).await.expect("its records");
        let record = NewRecord::new(kind, bytes.to_vec());
        let version = records.len() as u64;
        opened.store.append(&stream, version, vec![record]).await.expect("one more record");
    });
}

#[test]
fn a_run_that_cannot_be_replayed_stops_no_other_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let envelope = r#"{"at":"2100-01-01T00:00:00.000Z","by":"human:ana","event":{"kind":"#;
    let bad = ["\"run_started\"}}", "\"run_painted\"}}"].map(|end| format!("{envelope}{end}"));
    let (runs, good) = on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let runs = [server.start(&file(FOUR)).await, server.start(&file(FOUR)).await];
        let good = server.start(&file(FOUR)).await;
        let mut worker = server.worker("w", 1).await;
        drop(worker.take().await);
        server.close().await;
        (runs, good)
    });
    for (run, bytes) in runs.iter().zip(&bad) {
        append_raw(folder.path(), run, "run_started", bytes.as_bytes());
    }

    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let listed = server.runs().list_runs(v1::ListRunsRequest::default()).await;
        let listed = listed.expect("a list").into_inner().runs;
        let phases: Vec<_> = listed.iter().map(|run| (&*run.id, run.phase())).collect();
        assert_eq!(
            phases,
            [
                (&*good, v1::RunPhase::Running),
                (&*runs[1], v1::RunPhase::Damaged),
                (&*runs[0], v1::RunPhase::Damaged),
            ],
            "newest first, each by name"
        );
        for run in &runs {
            let asked = v1::GetRunRequest { run: run.clone(), at: None };
            let refused = server.runs().get_run(asked).await.expect_err("it is damaged");
            assert_eq!(code(&refused), "LOG_DAMAGED");
            assert_eq!(code(&server.cancel(run).await.expect_err("it is")), "LOG_DAMAGED");
        }
        // A worker that comes back is welcome, and is given what else there is.
        let mut worker = server.worker("w", 4).await;
        worker.run_all(4).await;
        assert_eq!(server.ended(&good).await, "succeeded");
        let findings = server.findings().await;
        for run in &runs {
            let found = findings.iter().filter(|finding| finding.contains(&**run)).count();
            assert_eq!(found, 1, "{findings:?}");
        }
        assert_eq!(findings.len(), 2, "{findings:?}");
        server.close().await;
    });
}
