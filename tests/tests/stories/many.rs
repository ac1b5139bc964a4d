//! Many jobs, many runs, many workers at once.

use towpath_proto::v1;
use towpath_tests::{ScriptedWorker, TestServer, code, file, on_a_runtime};

#[test]
fn a_run_of_five_thousand_jobs_comes_to_its_end() {
    on_a_runtime(async {
        let server = TestServer::in_memory().await;
        let mut yaml = file("stages: [copy, check]\njobs:\n");
        for n in 0..5_000 {
            let (stage, needs) = match n {
                0 => ("copy", String::new()),
                1..2_500 => ("copy", format!(", needs: [j{}]", n / 2)),
                _ => ("check", format!(", needs: [j{}]", n - 2_500)),
            };
            yaml.push_str(&format!("  j{n}: {{stage: {stage}, command: x{needs}}}\n"));
        }
        let run = server.start_with(&yaml, 256).await;
        let mut worker = server.worker("w", 256).await;

        worker.run_all(5_000).await;

        assert_eq!(server.ended(&run).await, "succeeded");
        assert_eq!(server.counts(&run).await.succeeded, 5_000);
        assert_eq!(server.jobs(&run).await.len(), 5_000);
        assert_eq!(server.findings().await, Vec::<String>::new());
        server.close().await;
    });
}

#[test]
fn runs_that_begin_at_the_same_time_stand_in_the_list_as_in_the_log() {
    on_a_runtime(async {
        let server = TestServer::in_memory().await;
        let yaml = file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n");

        let begun = futures_util::future::join_all((0..60).map(|_| server.start(&yaml))).await;

        let records = server.records("", 0).await;
        let created = records.iter().filter(|record| record.kind == "run_created");
        let newest = created.last().expect("sixty runs").stream.clone();
        assert_eq!(format!("run/{}", server.run("@latest").await.id), newest);
        assert_eq!(begun.len(), 60);
        assert_eq!(server.findings().await, Vec::<String>::new());
        server.close().await;
    });
}

#[test]
fn several_workers_share_several_runs_and_run_every_job_once() {
    on_a_runtime(async {
        let server = TestServer::in_memory().await;
        let jobs: String = (0..50).map(|n| format!("  j{n}: {{stage: s, command: x}}\n")).collect();
        let yaml = file(&format!("stages: [s]\njobs:\n{jobs}"));
        let mut workers = Vec::new();
        for name in ["one", "two", "three"] {
            let mut worker = server.worker(name, 4).await;
            workers.push(tokio::spawn(async move { worker.run_until_closed().await }));
        }

        let runs = futures_util::future::join_all((0..6).map(|_| server.start(&yaml))).await;
        for run in &runs {
            assert_eq!(server.ended(run).await, "succeeded");
            assert_eq!(server.count(run, "job_leased").await, 50);
        }

        assert_eq!(server.findings().await, Vec::<String>::new());
        server.close().await;
        let mut given = 0;
        for worker in workers {
            given += worker.await.expect("the worker did its work");
        }
        assert_eq!(given, 300);
    });
}

#[tokio::test]
async fn a_job_goes_to_the_free_worker_that_it_prefers_and_waits_for_none() {
    let server = TestServer::in_memory().await;
    let offering = |name: &str, slots, tags: &[&str]| v1::Hello {
        worker: name.to_owned(),
        slots,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..Default::default()
    };
    let mut plain =
        ScriptedWorker::connect(server.channel(), offering("plain", 9, &[])).await.unwrap();
    let mut near = ScriptedWorker::connect(server.channel(), offering("near", 1, &["ssd", "near"]))
        .await
        .unwrap();
    let mut fast =
        ScriptedWorker::connect(server.channel(), offering("fast", 1, &["ssd"])).await.unwrap();
    let prefer = "prefer: {ssd: 10, near: 5}";
    let jobs: String =
        (1..=4).map(|n| format!("  j{n}: {{stage: s, command: x, {prefer}}}\n")).collect();

    server.start_with(&file(&format!("stages: [s]\njobs:\n{jobs}")), 3).await;

    near.take_job("j1").await;
    fast.take_job("j2").await;
    plain.succeed("j3").await;
    plain.succeed("j4").await;
    server.close().await;
}

fn there_for(name: &str, run: &str, job: &str) -> v1::Hello {
    let text = str::to_owned;
    v1::Hello {
        worker: text(name),
        slots: 1,
        jobs_max: 1,
        run: text(run),
        job: text(job),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_worker_for_one_job_is_given_that_and_no_other() {
    let server = TestServer::in_memory().await;
    let yaml = file(
        "stages: [s]
jobs:
  a: {stage: s, command: x}
  b: {stage: s, command: x, needs: [a], tags: [gpu]}
",
    );
    let run = server.start(&yaml).await;
    let mut waits =
        ScriptedWorker::connect(server.channel(), there_for("one", &run, "b")).await.unwrap();
    let mut late =
        ScriptedWorker::connect(server.channel(), there_for("two", &run, "b")).await.unwrap();
    let mut other = server.worker("other", 1).await;

    other.succeed("a").await;
    waits.succeed("b").await;

    let refused = late.refusal().await;
    assert_eq!(code(&refused), "JOB_ENDED");
    assert_eq!(server.ended(&run).await, "succeeded");
    for (job, expected) in [("b", "JOB_ENDED"), ("nobody", "JOB_UNKNOWN")] {
        let hello = there_for("three", &run, job);
        let refused = ScriptedWorker::connect(server.channel(), hello).await.unwrap_err();
        assert_eq!(code(&refused), expected);
    }
    let refused = ScriptedWorker::connect(server.channel(), there_for("four", "", "b")).await;
    assert_eq!(code(&refused.unwrap_err()), "MESSAGE_INVALID");
    server.close().await;
}
