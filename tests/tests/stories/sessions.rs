//! Workers: what they may say, what is refused, and what happens to what they held.

use towpath_engine::ids::Digest;
use towpath_proto::time::duration;
use towpath_proto::v1::{self, failed::Cause, report::Ended, session_request::Message as ToServer};
use towpath_tests::SeenJob as _;
use towpath_tests::{
    ScriptedWorker, TestServer, code, failed, file, on_a_runtime, succeeded, succeeded_with,
};

const ONE: &str = "stages: [s]\njobs:\n  a: {stage: s, command: x}\n";

fn hello(worker: &str, held: Vec<v1::AttemptId>) -> v1::Hello {
    v1::Hello { worker: worker.to_owned(), slots: 1, held, ..Default::default() }
}

#[tokio::test]
async fn a_session_that_does_not_begin_with_a_hello_is_refused() {
    let server = TestServer::in_memory().await;
    let garbage = [
        ToServer::Heartbeat(v1::Heartbeat {}),
        ToServer::Drain(v1::Drain {}),
        ToServer::Report(v1::Report::default()),
        ToServer::Output(v1::Output::default()),
    ];

    for first in garbage {
        let refused = ScriptedWorker::connect_saying(server.channel(), first).await;
        assert_eq!(code(&refused.expect_err("no hello")), "MESSAGE_INVALID");
    }
}

#[tokio::test]
async fn a_session_has_one_hello() {
    let server = TestServer::in_memory().await;
    let mut worker = server.worker("w", 1).await;

    worker.say(ToServer::Hello(hello("other", Vec::new()))).await;

    assert_eq!(code(&worker.refusal().await), "MESSAGE_INVALID");
}

#[tokio::test]
async fn a_worker_for_a_run_that_does_not_exist_is_refused() {
    let server = TestServer::in_memory().await;

    let hello = v1::Hello { run: "nope".to_owned(), ..hello("w", Vec::new()) };
    let refused = ScriptedWorker::connect(server.channel(), hello).await;

    assert_eq!(code(&refused.expect_err("no such run")), "RUN_UNKNOWN");
}

#[tokio::test]
async fn what_a_worker_says_of_attempts_that_it_does_not_hold_changes_nothing() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut holder = server.worker("holder", 1).await;
    let a = holder.take_job("a").await;
    let of = a.attempt.clone().expect("an attempt");

    // One session says all of it: none of it ends the session.
    let mut thief = server.worker("thief", 1).await;
    thief.print(&a, 0, b"1 o painted\n").await;
    thief.leave(&a, "painted", b"painted").await;
    thief.send_report(&of, succeeded(), 0).await;
    thief.until_recorded(&of).await;
    for next in [
        v1::AttemptId { attempt: 2, ..of.clone() },
        v1::AttemptId { job: "nope".to_owned(), ..of.clone() },
        v1::AttemptId { run: "nope".to_owned(), ..of },
    ] {
        thief.send_report(&next, succeeded(), 0).await;
        thief.until_recorded(&next).await;
    }

    assert_eq!(server.states(&run).await, "a running");
    holder.report(&a, succeeded()).await;
    assert_eq!(server.ended(&run).await, "succeeded");
    assert_eq!(server.output(&run, "a", 0, false).await, b"");
}

/// Reports that no worker of ours sends, and what is said of the job that they fail.
fn invalid_reports() -> Vec<(Option<Ended>, u64, &'static str)> {
    let artifact = |path: &str| {
        let sha256 = Digest::of(b"").to_string();
        v1::Artifact { path: path.to_owned(), blob: Some(v1::Blob { size: 0, sha256 }) }
    };
    let named = |size: u64, sha256: &str| {
        let blob = v1::Blob { size, sha256: sha256.to_owned() };
        v1::Artifact { blob: Some(blob), ..artifact("a") }
    };
    let empty = Digest::of(b"").to_string();
    let left = |artifacts: Vec<v1::Artifact>| {
        Some(Ended::Succeeded(v1::Succeeded { artifacts, ..Default::default() }))
    };
    let failed_by = |cause| Some(Ended::Failed(v1::Failed { cause }));
    let folder = "d".repeat(200);
    let long = |number: u32| artifact(&format!("{folder}/{folder}/{folder}/{number}"));
    let large = "x".repeat(100 * 1024);
    let most = "x".repeat(4_000);
    let outputs = [("a", &*most), ("b", &*most), ("c", &*most)];
    let Ended::Succeeded(mut both) = succeeded_with(&outputs) else { unreachable!() };
    both.artifacts = (0..75).map(long).collect();
    vec![
        (None, 0, "it does not say how the job ended"),
        (failed_by(None), 0, "it names no cause of the failure"),
        (failed_by(Some(Cause::ExitCode(0))), 0, "it names the exit code 0 for a failure"),
        (left(vec![artifact("out/a\tb")]), 0, "holds control characters"),
        (left(vec![artifact("../a")]), 0, "leads out of the folder"),
        (left(vec![artifact("a"), artifact("a")]), 0, "is listed twice"),
        (left(vec![named(1, &empty)]), 0, "did not arrive"),
        (left(vec![named(0, "x")]), 0, "digest"),
        (left((0..11_000).map(|n| artifact(&n.to_string())).collect()), 0, "more than 1000"),
        (Some(succeeded_with(&[("a", &large)])), 0, "the output `a` is too long"),
        (Some(Ended::Succeeded(both)), 0, "bytes in an event that holds"),
        (Some(succeeded()), 16, "it counts 16 bytes of output, of which 0 have arrived"),
    ]
}

#[tokio::test]
async fn what_is_wrong_with_a_report_fails_its_job_and_nothing_else() {
    let server = TestServer::in_memory().await;
    // One session for all of it.
    let mut worker = server.worker("w", 2).await;
    for (ended, output_bytes, why) in invalid_reports() {
        let run = server.start(&file(ONE)).await;
        let a = worker.take_job("a").await;
        let of = a.attempt.expect("an attempt");

        let report = v1::Report {
            attempt: Some(of.clone()),
            run_time: Some(duration(5)),
            ended,
            output_bytes,
        };
        worker.say(ToServer::Report(report)).await;
        worker.until_recorded(&of).await;

        assert_eq!(server.ended(&run).await, "failed", "{why}");
        let reason = server.job(&run, "a").await.reason();
        assert!(reason.contains(why), "{reason:?} instead of {why:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_part_fails_its_job_and_nothing_else() {
    let server = TestServer::in_memory().await;
    let mut worker = server.worker("w", 2).await;
    let parts: [(&str, usize, u64, &str); 5] = [
        ("", 5, 9, "output with a hole in it"),
        ("", 65_537, 0, "a part of 65537 bytes"),
        ("a\tb", 5, 0, "the path of an artifact holds control characters"),
        ("a", 5, 9, "output with a hole in it"),
        ("a", 65_537, 0, "a part of 65537 bytes"),
    ];
    for (path, bytes, offset, why) in parts {
        let run = server.start(&file(ONE)).await;
        let a = worker.take_job("a").await;
        let (of, content) = (a.attempt.clone(), vec![b'x'; bytes].into());
        let path = path.to_owned();
        worker
            .say(if path.is_empty() {
                ToServer::Output(v1::Output { attempt: of, offset, content })
            } else {
                ToServer::Artifact(v1::ArtifactPart { attempt: of, path, content, offset })
            })
            .await;
        worker.report(&a, succeeded()).await;

        assert_eq!(server.ended(&run).await, "failed", "{why}");
        let reason = server.job(&run, "a").await.reason();
        assert!(reason.contains(why), "{reason:?} instead of {why:?}");
    }
}

#[tokio::test]
async fn a_run_with_a_part_that_was_refused_can_be_cancelled() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut worker = server.worker("w", 1).await;
    let a = worker.take_job("a").await;
    worker.print(&a, 9, b"late\n").await;

    server.cancel(&run).await.expect("it is running");
    assert_eq!(Some(worker.cancelled_job().await), a.attempt);
    worker.report(&a, Ended::Cancelled(v1::Cancelled {})).await;

    assert_eq!(server.ended(&run).await, "cancelled");
}

#[tokio::test]
async fn a_report_that_is_heard_twice_counts_once() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut worker = server.worker("w", 1).await;
    let of = worker.take_job("a").await.attempt.expect("an attempt");

    worker.send_report(&of, succeeded(), 0).await;
    worker.send_report(&of, failed(1), 0).await;

    assert_eq!(server.ended(&run).await, "succeeded");
    let kinds = server.kinds(&run).await;
    let ends = kinds.iter().filter(|kind| *kind == "job_succeeded" || *kind == "job_failed");
    assert_eq!(ends.count(), 1);
    assert_eq!(server.findings().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_late_report_of_an_attempt_that_went_to_another_worker_changes_nothing() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut first = server.worker("w", 1).await;
    let of = first.take_job("a").await.attempt.expect("an attempt");

    // The worker comes back and knows nothing of what it held.
    let mut second = server.worker_like(hello("w", Vec::new())).await;
    let again = second.take_job("a").await;
    assert_eq!(again.attempt.as_ref().map(|of| of.attempt), Some(2));
    let kinds = server.kinds(&run).await;
    first.send_report(&of, failed(9), 0).await;
    // The old session is told to forget it; the run does not hear of it.
    first.until_recorded(&of).await;

    assert_eq!(server.kinds(&run).await, kinds);
    second.report(&again, succeeded()).await;
    assert_eq!(server.ended(&run).await, "succeeded");
    assert_eq!(server.job(&run, "a").await.attempt, 2);
}

#[tokio::test]
async fn a_lost_job_is_given_out_again_until_it_has_been_lost_too_often() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut worker = server.worker("w", 1).await;

    for _ in 0..towpath_engine::retry::LOSSES_MAX {
        let a = worker.take_job("a").await;
        let lost = Ended::Lost(v1::Lost { reason: "the process has disappeared".to_owned() });
        worker.report(&a, lost).await;
    }

    assert_eq!(server.ended(&run).await, "failed");
    assert_eq!(server.job(&run, "a").await.reason(), "lost 20 workers");
}

#[tokio::test]
async fn a_worker_that_is_stopped_gives_its_job_back() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut worker = server.worker("w", 1).await;

    let a = worker.take_job("a").await;
    worker.report(&a, Ended::Cancelled(v1::Cancelled {})).await;
    worker.succeed("a").await;

    assert_eq!(server.ended(&run).await, "succeeded");
    assert_eq!(server.count(&run, "job_lost").await, 1);
}

#[test]
fn a_worker_keeps_its_job_through_a_restart_of_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let (run, a) = on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let run = server.start(&file(ONE)).await;
        let mut worker = server.worker("w", 1).await;
        let a = worker.take_job("a").await;
        worker.print(&a, 0, b"1 o one\n").await;
        // The server has heard it once it answers for the session's next message.
        while server.output(&run, "a", 0, false).await.is_empty() {
            tokio::task::yield_now().await;
        }
        drop(worker);
        server.close().await;
        (run, a)
    });

    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let void = v1::AttemptId { attempt: 9, ..a.attempt.clone().expect("an attempt") };
        let held = vec![a.attempt.clone().expect("an attempt"), void];
        let mut worker = server.worker_like(hello("w", held)).await;
        assert_eq!(worker.held(), [("a/1".to_owned(), 8)], "and how much of its output is there");
        assert_eq!(worker.heartbeats_before_welcome(), 1, "the server says that it reads it");
        worker.print(&a, 8, b"2 o two\n").await;
        worker.report_printed(&a, succeeded(), 16).await;

        assert_eq!(server.ended(&run).await, "succeeded");
        assert_eq!(server.output(&run, "a", 0, false).await, b"1 o one\n2 o two\n");
        assert_eq!(server.count(&run, "job_leased").await, 1);
        server.close().await;
    });
}

#[tokio::test]
async fn a_reconnected_worker_must_end_its_job_of_an_ending_run() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut first = server.worker("w", 1).await;
    let a = first.take_job("a").await;
    drop(first);
    server.cancel(&run).await.expect("the run is ending");

    let held = vec![a.attempt.clone().expect("an attempt")];
    let mut second = server.worker_like(hello("w", held)).await;
    assert_eq!(second.cancelled_job().await.job, "a");
    second.report(&a, Ended::Cancelled(v1::Cancelled {})).await;

    assert_eq!(server.ended(&run).await, "cancelled");
}

#[tokio::test]
async fn a_worker_is_named_in_the_log_as_the_one_who_reports() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut worker = server.worker("eu-2", 1).await;

    worker.succeed("a").await;

    assert_eq!(server.newest(&run, "job_succeeded").await["by"], "worker:eu-2");
    assert_eq!(server.newest(&run, "job_leased").await["event"]["worker"], "eu-2");
}

/// Starts a run, unless there is one, and gives its job out once. Answers with the fence.
fn fence_of_one_lease(folder: &std::path::Path, begins: bool) -> u64 {
    on_a_runtime(async {
        let server = TestServer::in_folder(folder).await;
        if begins {
            server.start(&file("stages: [s]\njobs: {a: {stage: s, command: x}}\n")).await;
        }
        let fence = server.worker("w", 1).await.take_job("a").await.fence;
        server.close().await;
        fence
    })
}

#[test]
fn no_fence_comes_again_after_a_loss_was_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = fence_of_one_lease(folder.path(), true);

    // All records are lost, and a person removes the high-water mark to go on.
    std::fs::remove_dir_all(folder.path().join("sled")).expect("the log can be removed");
    std::fs::remove_file(folder.path().join("high-water")).expect("the mark can be removed");
    let after = fence_of_one_lease(folder.path(), true);

    assert!(before < after, "{before}, then {after}");
}

#[tokio::test]
async fn the_fence_grows_with_every_lease() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, command: x, retry: {max: 9, backoff: 0s}}\n";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;

    let mut fences = Vec::new();
    for _ in 0..4 {
        let a = worker.take_job("a").await;
        fences.push(a.fence);
        worker.report(&a, failed(1)).await;
        server.settle().await;
    }

    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
    let records = server.records("", 0).await;
    for fence in fences {
        let place = usize::try_from(fence).expect("a small log") - 1;
        assert_eq!(records[place].kind, "job_leased", "a fence is the place of its lease");
    }
    drop(run);
}
