//! What the next worker makes of the attempts of one that was killed.

use super::*;

/// Not a test of its own: the worker process that the tests below kill.
#[tokio::test]
async fn a_worker_to_be_killed() {
    let Some(folder) = std::env::var_os("TOWPATH_TEST_YARD") else { return };
    keeper::tests::use_test_program();
    let folder = PathBuf::from(folder);
    let attempts = AttemptsDir::open(&folder.join("attempts"), environment()).unwrap();
    let text = fs::read_to_string(folder.join("script")).unwrap();
    let mut script = script_in(&folder, &text);
    script.secrets = vec!["TOKEN".to_owned()];
    if folder.join("timeout").exists() {
        script.timeout = Some(Duration::from_millis(700));
        script.grace = Some(Duration::from_millis(300));
    }
    let (lines, _log) = collector();
    execute(&attempts, &script, lines, CancellationToken::new()).await;
    fs::write(folder.join("work/ended"), "yes\n").unwrap();
    sleep(Duration::from_secs(30)).await;
}

/// Starts a script under a worker process of its own, and kills that with SIGKILL as soon as
/// the script (or the worker) has written the file `until`.
async fn worker_killed(text: &str, until: &str, timeout: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("work")).unwrap();
    fs::write(folder.path().join("script"), text).unwrap();
    if timeout {
        fs::write(folder.path().join("timeout"), "").unwrap();
    }
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "execute::tests::next_worker::a_worker_to_be_killed"])
        .env("TOWPATH_TEST_YARD", folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    appears(&folder.path().join("work").join(until)).await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    folder
}

fn reopened(folder: tempfile::TempDir) -> (Yard, FoundAttempt) {
    let attempts = AttemptsDir::open(&folder.path().join("attempts"), environment()).unwrap();
    let mut found = attempts.found();
    assert_eq!(found.len(), 1);
    (Yard { folder, attempts }, found.remove(0))
}

#[tokio::test]
async fn a_job_outlives_its_worker_and_the_next_worker_sees_its_end() {
    let text = "echo go >begun; sleep 0.4; echo after $TOKEN; echo bad >&2; exit 7";
    let (yard, found) = reopened(worker_killed(text, "begun", false).await);
    assert_eq!((found.state, found.attempt, found.fence), (FoundState::Begun, Attempt(3), 3));
    assert_eq!(found.job, JobName::from("a/b: c+ü"));

    let (adopted, log) = yard.adopt(&found).await;
    let Adopted::Ended(Ended::Failed { cause, ran_ms }) = adopted else { panic!("{adopted:?}") };
    assert_eq!(cause, FailureCause::ExitCode(7));
    assert!((400..2_000).contains(&ran_ms), "{ran_ms}");
    assert_eq!(lines_of(&log, OutputSource::Out), ["after ***"]);
    assert_eq!(lines_of(&log, OutputSource::Err), ["bad"]);

    yard.attempts.forget(&found.run, &found.job, found.attempt);
    assert_eq!(yard.attempts.found(), []);
}

#[tokio::test]
async fn a_job_that_ended_while_no_worker_was_there_is_judged_by_the_next() {
    let text = "echo go >begun; sleep 0.2; echo unread; echo rows=5 >>$TOW_OUTPUT";
    let folder = worker_killed(text, "begun", false).await;
    sleep(Duration::from_millis(600)).await;
    let (yard, found) = reopened(folder);
    assert_eq!(found.state, FoundState::Ended);
    let pid = LatestAttempt::newest(&yard.folder.path().join("attempts/1")).unwrap().unwrap().pid;

    let (adopted, log) = yard.adopt(&found).await;
    let Adopted::Ended(Ended::Succeeded { ran_ms, outputs, .. }) = adopted else {
        panic!("{adopted:?}")
    };
    assert_eq!(outputs["rows"], "5");
    assert!(ran_ms >= 150, "{ran_ms}");
    assert_eq!(lines_of(&log, OutputSource::Out), ["unread"]);
    assert!(dies(&pid.unwrap().to_string()).await, "the shell around it has disappeared");
}

#[tokio::test]
async fn a_worker_killed_after_the_end_leaves_the_same_end_to_the_next() {
    let folder = worker_killed("echo rows=5 >>$TOW_OUTPUT; exit 0", "ended", false).await;
    let (yard, found) = reopened(folder);
    let (adopted, _) = yard.adopt(&found).await;
    let Adopted::Ended(Ended::Succeeded { outputs, .. }) = adopted else { panic!("{adopted:?}") };
    assert_eq!(outputs["rows"], "5");
}

#[tokio::test]
async fn a_job_whose_keeper_is_gone_too_is_lost_and_its_processes_are_ended() {
    let text = "sleep 30 & echo $! >child; echo $$ >begun; wait";
    let folder = worker_killed(text, "begun", false).await;
    let pid = appears(&folder.path().join("work/begun")).await;
    let child = appears(&folder.path().join("work/child")).await;
    let keeper = parent_of(&pid);
    kill_now(&keeper);
    assert!(dies(&keeper).await);
    assert!(is_alive(&pid) && is_alive(&child), "they do not end with their keeper");

    let (yard, found) = reopened(folder);
    let (adopted, _) = yard.adopt(&found).await;
    assert!(matches!(adopted, Adopted::Lost(_)), "{adopted:?}");
    assert!(dies(&pid).await && dies(&child).await);
}

#[tokio::test]
async fn a_keeper_ends_when_nothing_is_left_to_keep() {
    let text = "echo $$ >begun; sleep 0.2; exit 3";
    let folder = worker_killed(text, "begun", false).await;
    let keeper = parent_of(&appears(&folder.path().join("work/begun")).await);
    sleep(Duration::from_millis(400)).await;
    assert!(is_alive(&keeper), "it keeps how the script ended");

    let (yard, found) = reopened(folder);
    let (adopted, _) = yard.adopt(&found).await;
    let Adopted::Ended(Ended::Failed { cause, .. }) = adopted else { panic!("{adopted:?}") };
    assert_eq!(cause, FailureCause::ExitCode(3));
    assert!(dies(&keeper).await);
}

#[tokio::test]
async fn a_time_limit_holds_across_workers() {
    let text = "trap '' TERM; echo $$ >begun; while :; do sleep 0.05; done";
    let (yard, found) = reopened(worker_killed(text, "begun", true).await);
    let (adopted, _) = yard.adopt(&found).await;
    let Adopted::Ended(Ended::Failed { cause, ran_ms }) = adopted else { panic!("{adopted:?}") };
    assert_eq!(cause, FailureCause::TimedOut(700));
    assert!((990..3_000).contains(&ran_ms), "{ran_ms}");
}

#[tokio::test]
async fn output_is_not_shown_when_its_secrets_are_no_longer_known() {
    let text = "echo go >begun; sleep 0.3; echo $TOKEN; echo k=$TOKEN >>$TOW_OUTPUT";
    let folder = worker_killed(text, "begun", false).await;
    let bare = Environment::default();
    let attempts = AttemptsDir::open(&folder.path().join("attempts"), bare).unwrap();
    let found = attempts.found().remove(0);
    let yard = Yard { folder, attempts };
    let (adopted, log) = yard.adopt(&found).await;
    assert!(
        matches!(
            &adopted,
            Adopted::Ended(Ended::Failed { cause: FailureCause::OutputUnusable(_), .. })
        ),
        "{adopted:?}"
    );
    assert!(!String::from_utf8_lossy(&log).contains("hunter2"));
    assert_eq!(lines_of(&log, OutputSource::Note).len(), 1);
}

#[tokio::test]
async fn a_dropped_execution_goes_on_and_can_be_adopted() {
    let yard = Yard::new();
    let script = yard.script("sleep 0.2; exit 5");
    let (lines, _) = collector();
    let cancel = CancellationToken::new();
    let execution = execute(&yard.attempts, &script, lines, cancel);
    let dropped = tokio::time::timeout(Duration::from_millis(50), execution).await;
    assert!(dropped.is_err());
    let found = yard.attempts.found().remove(0);
    let (adopted, _) = yard.adopt(&found).await;
    let Adopted::Ended(Ended::Failed { cause, .. }) = adopted else { panic!("{adopted:?}") };
    assert_eq!(cause, FailureCause::ExitCode(5));
}

#[tokio::test]
async fn an_attempt_that_was_written_down_and_not_started_never_started() {
    let yard = Yard::new();
    let script = yard.script("true");
    let kept = kept_of(&yard.attempts, &script, "keeper-none").unwrap();
    drop(yard.attempts.take(&kept).unwrap());
    let (yard, found) = {
        let Yard { folder, attempts } = yard;
        drop(attempts);
        reopened(folder)
    };
    assert_eq!(found.state, FoundState::NeverStarted);
    assert_eq!(yard.adopt(&found).await.0, Adopted::NeverStarted);
}
