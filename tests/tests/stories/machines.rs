//! Many machines: workers over TCP, servers that restart, workers that die, sleep and come back.

use std::{fs, path::Path, time::Duration};

use futures_util::future::join_all;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use towpath_proto::streams::Records;
use towpath_proto::v1::{self, report::Ended};
use towpath_tests::SeenJob as _;
use towpath_tests::{
    RealWorker, ScriptedWorker, TestServer, code, eventually, file, on_a_runtime, start_request,
    succeeded,
};
use towpath_wire::dial::dial_tcp;
use towpath_worker::{SessionLimits, WorkerError};

const ONE: &str = "stages: [s]\njobs:\n  a: {stage: s, command: x}\n";
const ANYWHERE: &str = "127.0.0.1:0";

fn hello(worker: &str, worker_instance_id: &str, held: Vec<v1::AttemptId>) -> v1::Hello {
    let (worker, worker_instance_id) = (worker.to_owned(), worker_instance_id.to_owned());
    v1::Hello { worker, worker_instance_id, slots: 1, held, ..Default::default() }
}

fn staying() -> SessionLimits {
    SessionLimits { reconnect: true, ..SessionLimits::default() }
}

fn dial(address: &str) -> Channel {
    dial_tcp(address).expect("an address")
}

/// A run of jobs that are real processes, in `folder`.
async fn start_in(server: &TestServer, folder: &Path, yaml: &str) -> String {
    let mut request = start_request(&file(yaml));
    request.file.as_mut().expect("a file").folder = folder.display().to_string();
    server.try_start(request).await.expect("the run begins").id
}

async fn until_there(path: &Path) {
    eventually(&format!("the file {}", path.display()), || path.exists()).await;
}

#[tokio::test]
async fn workers_on_other_machines_run_every_job_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let address = server.serve(ANYWHERE).await;
    let begin = |name: &str| {
        RealWorker::begin_at(dial(&address), name, 2, &folder.path().join(name), staying())
    };
    let workers = [begin("one"), begin("two")];
    let jobs: String =
        (0..12).map(|n| format!("  j{n}: {{stage: s, command: 'echo ran >>{n}'}}\n")).collect();

    let run = start_in(&server, folder.path(), &format!("stages: [s]\njobs:\n{jobs}")).await;

    assert_eq!(server.ended(&run).await, "succeeded");
    for n in 0..12 {
        let ran = fs::read_to_string(folder.path().join(n.to_string())).expect("it ran");
        assert_eq!(ran, "ran\n");
    }
    for worker in workers {
        worker.stop().await;
    }
    assert_eq!(server.count(&run, "job_leased").await, 12);
    server.close().await;
}

#[tokio::test]
async fn a_folder_that_is_not_on_the_workers_machine_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let worker = RealWorker::begin(&server, "w", 1, folder.path());

    let run = start_in(&server, &folder.path().join("elsewhere"), ONE).await;

    assert_eq!(server.ended(&run).await, "failed");
    let reason = server.job(&run, "a").await.reason();
    assert!(reason.contains("elsewhere` does not exist on the machine of this worker"), "{reason}");
    worker.stop().await;
    server.close().await;
}

#[test]
fn a_job_outlives_a_restart_of_the_server_with_all_it_prints() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    let at = |name: &str| folder.path().join(name);
    let yaml = "stages: [s]\njobs:\n  a:\n    stage: s\n    command: |\n      echo before; echo x >>began\n      until [ -e away ]; do sleep 0.01; done; echo during; echo x >said\n      until [ -e back ]; do sleep 0.01; done; echo after\n";
    on_a_runtime(async {
        let server = TestServer::in_folder(&store).await;
        let address = server.serve(ANYWHERE).await;
        let worker =
            RealWorker::begin_at(dial(&address), "w", 1, &folder.path().join("w"), staying());
        let run = start_in(&server, folder.path(), yaml).await;
        until_there(&at("began")).await;
        server.close().await;

        fs::write(at("away"), "").expect("a file");
        until_there(&at("said")).await;
        let server = TestServer::in_folder(&store).await;
        server.serve(&address).await;
        fs::write(at("back"), "").expect("a file");

        assert_eq!(server.ended(&run).await, "succeeded");
        let output = server.output(&run, "a", 0, false).await;
        let lines: Vec<_> = towpath_engine::captured_output::lines(&output)
            .map(|line| String::from_utf8_lossy(line.expect("a line").bytes).into_owned())
            .collect();
        assert_eq!(lines, ["before", "during", "after"]);
        assert_eq!(server.count(&run, "job_leased").await, 1);
        assert_eq!(fs::read_to_string(at("began")).expect("it ran"), "x\n");
        worker.stop().await;
        assert_eq!(server.findings().await, Vec::<String>::new());
        server.close().await;
    });
}

#[test]
fn a_job_that_ends_while_the_server_is_away_is_reported_when_it_is_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, command: 'echo x >>began; until [ -e go ]; do sleep 0.01; done; echo done; echo x >over'}\n";
    on_a_runtime(async {
        let server = TestServer::in_folder(&store).await;
        let address = server.serve(ANYWHERE).await;
        let own = folder.path().join("w");
        let worker = RealWorker::begin_at(dial(&address), "w", 1, &own, staying());
        let run = start_in(&server, folder.path(), yaml).await;
        until_there(&folder.path().join("began")).await;
        server.close().await;
        fs::write(folder.path().join("go"), "").expect("a file");
        until_there(&folder.path().join("over")).await;
        // The worker is killed on top of it, and another takes its place before the server is back.
        worker.kill().await;
        let worker = RealWorker::begin_at(dial(&address), "w", 1, &own, staying());

        let server = TestServer::in_folder(&store).await;
        server.serve(&address).await;

        assert_eq!(server.ended(&run).await, "succeeded");
        assert_eq!(server.count(&run, "job_leased").await, 1);
        worker.stop().await;
        server.close().await;
    });
}

#[tokio::test]
async fn a_lease_lapses_when_its_worker_stays_away_and_its_late_report_changes_nothing() {
    let server = TestServer::with_lease("memory:", 1_000).await;
    let run = server.start(&file(ONE)).await;
    let mut first = server.worker_like(hello("first", "1", Vec::new())).await;
    let of = first.take_job("a").await.attempt.expect("an attempt");
    drop(first);

    server.until(&run, "job_lost", 1).await;
    let mut second = server.worker("second", 1).await;
    let again = second.take_job("a").await;
    assert_eq!(again.attempt.as_ref().map(|of| of.attempt), Some(2));

    let kinds = server.kinds(&run).await;
    let mut late = server.worker_like(hello("first", "1", vec![of.clone()])).await;
    assert_eq!(late.held(), [], "the attempt is void");
    late.send_report(&of, succeeded(), 0).await;
    late.until_recorded(&of).await;
    assert_eq!(server.kinds(&run).await, kinds);
    second.report(&again, succeeded()).await;
    assert_eq!(server.ended(&run).await, "succeeded");
}

#[tokio::test]
async fn a_worker_that_slept_too_long_ends_its_jobs_and_continues() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_lease("memory:", 200).await;
    let run = server.start(&file(ONE)).await;
    let mut sleeper = server.worker("sleeper", 1).await;
    let of = sleeper.take_job("a").await.attempt.expect("an attempt");

    // It sends nothing, but its connection is open.
    server.until(&run, "job_lost", 1).await;
    let worker = RealWorker::begin(&server, "awake", 1, folder.path());
    server.ended(&run).await;
    let kinds = server.kinds(&run).await;
    // The session has expired with the lease: a worker that wakes has to say again what it holds.
    sleeper.refusal().await;

    assert_eq!(server.kinds(&run).await, kinds);
    let woken = server.worker_like(hello("sleeper", "", vec![of])).await;
    assert_eq!(woken.held(), []);
    worker.stop().await;
}

#[tokio::test]
async fn a_void_attempt_is_ended_before_its_job_begins_again_on_the_same_machine() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, grace: 5s, command: 'echo + >>log; trap \"echo - >>log; exit 1\" TERM; [ $TOW_ATTEMPT = 2 ] && exit 0; touch began; while :; do sleep 0.01; done'}\n";
    let worker = RealWorker::begin(&server, "w", 1, folder.path());
    let run = start_in(&server, folder.path(), yaml).await;
    until_there(&folder.path().join("began")).await;
    worker.kill().await;
    // Another client reports in its name that it holds nothing: the attempt is lost.
    let impostor = server.worker_like(v1::Hello { draining: true, ..hello("w", "", Vec::new()) });
    drop(impostor.await);
    assert_eq!(server.count(&run, "job_lost").await, 1);

    let worker = RealWorker::begin(&server, "w", 1, folder.path());

    assert_eq!(server.ended(&run).await, "succeeded");
    let log = fs::read_to_string(folder.path().join("log")).expect("it ran");
    assert_eq!(log, "+\n-\n+\n");
    worker.stop().await;
}

#[tokio::test]
async fn a_name_belongs_to_one_process_as_long_as_it_is_connected() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut first = server.worker_like(hello("w", "1", Vec::new())).await;
    let a = first.take_job("a").await;

    let taken = ScriptedWorker::connect(server.channel(), hello("w", "2", Vec::new())).await;
    assert_eq!(code(&taken.expect_err("the name is taken")), "WORKER_NAME_TAKEN");
    first.report(&a, succeeded()).await;
    assert_eq!(server.ended(&run).await, "succeeded");
    assert_eq!(server.count(&run, "job_lost").await, 0);

    drop(first);
    let mut next = ScriptedWorker::connect(server.channel(), hello("w", "2", Vec::new())).await;
    while next.is_err() {
        tokio::task::yield_now().await;
        next = ScriptedWorker::connect(server.channel(), hello("w", "2", Vec::new())).await;
    }
}

#[tokio::test]
async fn a_worker_without_a_proper_name_or_of_another_version_is_refused() {
    let server = TestServer::in_memory().await;
    let refused = async |hello| {
        let refused = ScriptedWorker::connect(server.channel(), hello).await;
        code(&refused.expect_err("it is refused"))
    };

    assert_eq!(refused(hello("", "", Vec::new())).await, "ARGUMENT_OUT_OF_BOUNDS");
    assert_eq!(refused(hello("a\nb", "", Vec::new())).await, "ARGUMENT_OUT_OF_BOUNDS");
    let future = v1::Hello { version: "99.0.0".to_owned(), ..hello("w", "", Vec::new()) };
    assert_eq!(refused(future).await, "VERSION_MISMATCH");
}

#[tokio::test]
async fn a_report_after_a_cancel_ends_the_job_and_the_run_once() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut worker = server.worker("w", 1).await;
    let a = worker.take_job("a").await;

    server.cancel(&run).await.expect("the run is ending");
    assert_eq!(worker.cancelled_job().await.job, "a");
    worker.report(&a, Ended::Cancelled(v1::Cancelled {})).await;
    worker.say(v1::session_request::Message::Heartbeat(v1::Heartbeat {})).await;

    assert_eq!(server.ended(&run).await, "cancelled");
    assert_eq!(server.count(&run, "job_cancelled").await, 1);
    assert_eq!(server.count(&run, "run_finished").await, 1);
}

#[tokio::test]
async fn a_long_run_does_not_keep_a_short_one_waiting() {
    let server = TestServer::in_memory().await;
    let jobs = |count: usize| {
        let jobs = (0..count).map(|n| format!("  j{n}: {{stage: s, command: x}}\n"));
        file(&format!("stages: [s]\njobs:\n{}", jobs.collect::<String>()))
    };
    let long = server.start_with(&jobs(500), 100).await;
    let mut worker = server.worker("w", 1).await;
    let first = worker.take().await;
    let short = server.start_with(&jobs(5), 100).await;
    worker.report(&first, succeeded()).await;

    let mut others = 0;
    let mut left = 5;
    while left > 0 {
        let next = worker.take().await;
        let is_short = next.attempt.as_ref().is_some_and(|of| of.run == short);
        left -= usize::from(is_short);
        others += usize::from(!is_short);
        worker.report(&next, succeeded()).await;
    }

    assert!(others <= 6, "{others} jobs of the long run went before five of the short one");
    assert_eq!(server.ended(&short).await, "succeeded");
    assert_eq!(server.phase(&long).await, "running");
}

#[tokio::test]
async fn the_same_request_begins_one_run_however_often_it_is_made() {
    let server = TestServer::in_memory().await;
    let request = |yaml: &str, key: &str| v1::StartRunRequest {
        idempotency_key: key.to_owned(),
        ..start_request(&file(yaml))
    };

    let all = join_all((0..8).map(|_| server.try_start(request(ONE, "k")))).await;
    let ids: std::collections::BTreeSet<String> =
        all.into_iter().map(|run| run.expect("the run").id).collect();
    assert_eq!(ids.len(), 1);
    let other = server.try_start(request(ONE, "other")).await.expect("another run").id;
    assert!(!ids.contains(&other));

    let two = ONE.replace("a:", "b:");
    let same = || request(ONE, "k");
    let mut elsewhere = same();
    elsewhere.file.as_mut().expect("a file").folder = "/elsewhere".to_owned();
    for (changed, what) in [
        (request(&two, "k"), "another file"),
        (v1::StartRunRequest { parallelism: 3, ..same() }, "another parallelism"),
        (v1::StartRunRequest { gates_preapproved: true, ..same() }, "open gates"),
        (elsewhere, "another folder"),
    ] {
        let reused = server.try_start(changed).await.expect_err(what);
        assert_eq!(code(&reused), "IDEMPOTENCY_KEY_REUSED", "{what}");
    }
    let long = server.try_start(request(ONE, &"k".repeat(129))).await.expect_err("too long");
    assert_eq!(code(&long), "ARGUMENT_OUT_OF_BOUNDS");
    assert_eq!(server.records("", 0).await.iter().filter(|r| r.kind == "run_created").count(), 2);
}

#[tokio::test]
async fn the_same_key_of_another_actor_is_another_key() {
    let server = TestServer::in_memory().await;
    let by = |actor: &str| v1::StartRunRequest {
        idempotency_key: "k".to_owned(),
        actor: actor.to_owned(),
        ..start_request(&file(ONE))
    };

    let ana = server.try_start(by("human:ana")).await.expect("a run").id;
    let mallory = server.try_start(by("human:mallory")).await.expect("a run of their own").id;

    assert_ne!(ana, mallory);
    assert_eq!(server.try_start(by("human:ana")).await.expect("the first run").id, ana);
    assert_eq!(server.run(&mallory).await.requested_by, "human:mallory");
}

#[test]
fn a_request_is_remembered_over_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let again = || {
        on_a_runtime(async {
            let server = TestServer::in_folder(folder.path()).await;
            let request = start_request(&file(ONE));
            let request = v1::StartRunRequest { idempotency_key: "k".to_owned(), ..request };
            let run = server.try_start(request).await.expect("the run").id;
            assert_eq!(server.findings().await, Vec::<String>::new());
            server.close().await;
            run
        })
    };
    assert_eq!(again(), again());
}

#[tokio::test]
async fn a_worker_that_is_drained_finishes_and_is_given_nothing_new() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, command: x}\n  b: {stage: s, command: x}\n";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;
    let a = worker.take_job("a").await;
    let drain = |name: &str, drain| v1::DrainWorkerRequest {
        name: name.to_owned(),
        drain,
        actor: towpath_tests::ANA.to_owned(),
    };

    let view =
        server.workers().drain_worker(drain("w", true)).await.expect("a worker").into_inner();
    let view = view.worker.expect("a worker");
    assert_eq!((view.running, view.slots, view.state()), (1, 1, v1::WorkerState::Draining));
    worker.report(&a, succeeded()).await;
    server.settle().await;
    assert_eq!(server.states(&run).await, "a succeeded, b waiting");
    server.workers().drain_worker(drain("w", false)).await.expect("a worker");
    worker.succeed("b").await;

    assert_eq!(server.ended(&run).await, "succeeded");
    let unknown = server.workers().drain_worker(drain("x", true)).await.expect_err("nobody");
    assert_eq!(code(&unknown), "WORKER_UNKNOWN");
    let listed =
        server.workers().list_workers(v1::ListWorkersRequest::default()).await.expect("a list");
    let names: Vec<_> = listed.into_inner().workers.into_iter().map(|worker| worker.name).collect();
    assert_eq!(names, ["w"]);
}

#[tokio::test]
async fn a_drain_survives_a_restart_of_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let drain = |name: &str, drain| v1::DrainWorkerRequest {
        name: name.to_owned(),
        drain,
        actor: towpath_tests::ANA.to_owned(),
    };
    let server = TestServer::in_folder(folder.path()).await;
    let worker = server.worker("w", 1).await;
    server.workers().drain_worker(drain("w", true)).await.expect("a worker");
    drop(worker);
    server.close().await;

    // Nothing asks for the settings before the worker connects: the server knows them by itself.
    let server = TestServer::in_folder(folder.path()).await;
    let worker = server.worker("w", 1).await;
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, command: x}\n";
    let run = server.start(&file(yaml)).await;
    server.settle().await;
    assert_eq!(server.states(&run).await, "a waiting", "it is drained as it was");
    drop(worker);
    server.close().await;

    let server = TestServer::in_folder(folder.path()).await;
    let listed =
        server.workers().list_workers(v1::ListWorkersRequest::default()).await.expect("a list");
    let [away] = &listed.into_inner().workers[..] else { panic!("one worker is listed") };
    assert_eq!((&*away.name, away.state()), ("w", v1::WorkerState::Draining));
    assert!(!away.connected);
    let mut worker = server.worker("w", 1).await;
    let resumed = server.workers().drain_worker(drain("w", false)).await.expect("a worker");
    assert!(resumed.into_inner().worker.expect("a worker").connected);
    worker.succeed("a").await;
    assert_eq!(server.ended(&run).await, "succeeded");
    let log = server.records("", 0).await;
    let settings: Vec<_> = log.iter().filter(|it| it.stream == "settings/server").collect();
    let kinds: Vec<_> = settings.iter().map(|record| &*record.kind).collect();
    assert_eq!(kinds, ["worker_drained", "worker_resumed"]);
    let fact: serde_json::Value = serde_json::from_slice(&settings[0].payload).expect("JSON");
    assert_eq!(fact["by"], "human:ana");
    assert_eq!(server.findings().await, [""; 0], "the doctor knows the stream");
    server.close().await;
}

#[tokio::test]
async fn a_worker_for_so_many_jobs_takes_no_more_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let jobs: String = (0..6).map(|n| format!("  j{n}: {{stage: s, command: ':'}}\n")).collect();
    let run = start_in(&server, folder.path(), &format!("stages: [s]\njobs:\n{jobs}")).await;
    let stay = SessionLimits { jobs_max: Some(2), ..staying() };

    let worker = RealWorker::begin_at(server.channel(), "w", 4, folder.path(), stay);
    worker.ended().await.expect("it ends well");

    assert_eq!(server.count(&run, "job_leased").await, 2);
    assert_eq!(server.counts(&run).await.succeeded, 2);
    let idle = SessionLimits { idle: Some(Duration::from_millis(100)), ..staying() };
    let worker = RealWorker::begin_at(server.channel(), "w", 4, folder.path(), idle);
    worker.ended().await.expect("it ends well");
    assert_eq!(server.phase(&run).await, "succeeded");
}

#[tokio::test]
async fn a_worker_whose_name_is_taken_says_so_and_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::in_memory().await;
    let _first = server.worker_like(hello("w", "1", Vec::new())).await;

    let worker = RealWorker::begin_at(server.channel(), "w", 1, folder.path(), staying());

    match worker.ended().await {
        Err(WorkerError::Session(status)) => assert_eq!(code(&status), "WORKER_NAME_TAKEN"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reader_that_does_not_read_delays_no_job() {
    on_a_runtime(async {
        let server = TestServer::in_memory().await;
        let request = v1::FollowRequest { run: String::new(), after: 0, follow: true };
        let mut slow =
            Records::new(server.log().follow(request).await.expect("a log").into_inner());
        let jobs: String =
            (0..2_000).map(|n| format!("  j{n}: {{stage: s, command: x}}\n")).collect();
        let run = server.start_with(&file(&format!("stages: [s]\njobs:\n{jobs}")), 64).await;

        server.worker("w", 64).await.run_all(2_000).await;
        assert_eq!(server.ended(&run).await, "succeeded");

        let tail = server.run(&run).await.position;
        let mut read = 0;
        while read < tail {
            read = slow.next().await.expect("the log continues").expect("a record").position;
        }
        let following = server.log();
        assert!(server.server().drain(Duration::from_secs(10)).await, "everything ended in time");
        assert!(slow.next().await.is_none_or(|last| last.is_err()), "streams end with the server");
        drop(following);
    });
}
