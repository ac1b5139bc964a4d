//! Keepers that are killed, that do not run, and that cannot be started.

use super::*;

impl Yard {
    /// The same folders, of the next worker, and what that finds of an attempt.
    fn reopened(self, attempt: Attempt) -> (Self, FoundAttempt) {
        let Self { folder, attempts } = self;
        drop(attempts);
        let attempts = AttemptsDir::open(&folder.path().join("attempts"), environment()).unwrap();
        let found = attempts.found().into_iter().find(|found| found.attempt == attempt).unwrap();
        (Self { folder, attempts }, found)
    }

    /// The number of the keeper of its first attempt, once that has noted what it started: a script
    /// may be faster.
    async fn keeper(&self) -> String {
        let folder = self.folder.path().join("attempts/1");
        loop {
            let page = LatestAttempt::newest(&folder).ok().flatten();
            if let Some(pid) = page.and_then(|page| page.pid) {
                return parent_of(&pid.to_string());
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn a_killed_keeper_loses_what_ran_and_the_next_job_has_another() {
    let yard = Yard::new();
    let begun = yard.folder.path().join("work/begun");
    let script = yard.script("(setsid sleep 30) & echo $$ >begun; echo said; sleep 30");
    let cancel = CancellationToken::new();
    let (lines, log) = collector();
    let (lost, pid) =
        tokio::join!(execute_or_lose(&yard.attempts, &script, lines, cancel), async {
            let pid = appears(&begun).await;
            kill_now(&parent_of(&pid));
            pid
        });
    assert!(matches!(lost, Adopted::Lost(_)), "{lost:?}");
    assert_eq!(lines_of(&log.await.unwrap(), OutputSource::Out), ["said"]);
    assert!(dies(&pid).await);
    let output = yard.attempts.output(&script.run, &script.job, script.attempt);
    assert_eq!(process_search::kill_marked(&output), 0, "what left the group is ended too");

    yard.attempts.forget(&script.run, &script.job, script.attempt);
    assert_eq!(yard.run("echo again").await.out(), "again");
}

#[tokio::test]
async fn a_killed_keeper_leaves_nothing_of_a_group_that_took_its_mark_off() {
    for text in [
        "echo $$ >begun; exec env -i sleep 1000",
        "env -i sleep 1000 & echo $! >begun; exec sleep 1000",
    ] {
        let yard = Yard::new();
        let script = yard.script(text);
        let (lines, _log) = collector();
        let cancel = CancellationToken::new();
        let (lost, pid) =
            tokio::join!(execute_or_lose(&yard.attempts, &script, lines, cancel), async {
                let pid = appears(&yard.folder.path().join("work/begun")).await;
                let environ = format!("/proc/{}/environ", pid.trim());
                while fs::read(&environ).is_ok_and(|marked| !marked.is_empty()) {
                    sleep(Duration::from_millis(1)).await;
                }
                kill_now(&yard.keeper().await);
                pid
            });
        assert!(matches!(lost, Adopted::Lost(_)), "{lost:?}");
        assert!(!is_alive(&pid), "{text}: it runs beside the next attempt");
    }
}

/// How long a keeper is stopped: longer than any wait after which it could be taken for gone.
const STOPPED: Duration = Duration::from_millis(5_500);

#[tokio::test]
async fn a_keeper_that_does_not_answer_is_not_taken_for_gone() {
    // given: an attempt that a keeper was asked to start while it did not run
    let yard = Yard::new();
    let keeper = yard.execute(&yard.script("echo $PPID"), &CancellationToken::new()).await.out();
    let stopped = Stopped::new(&keeper);
    let mut script = yard.script("touch started");
    script.attempt = Attempt(4);
    let (lines, _log) = collector();
    let began = execute(&yard.attempts, &script, lines, CancellationToken::new());
    drop(tokio::time::timeout(Duration::from_millis(100), began).await);

    // when: the next worker asks about it, and the keeper runs again only after a while
    let (yard, found) = yard.reopened(Attempt(4));
    let adopted = yard.adopt(&found);
    tokio::pin!(adopted);
    let early = tokio::time::timeout(STOPPED, &mut adopted).await;
    assert!(early.is_err(), "judged although nobody knows whether it will be started: {early:?}");
    drop(stopped);

    // then: it was not started, and is not
    assert_eq!(adopted.await.0, Adopted::NeverStarted);
    yard.attempts.forget(&found.run, &found.job, found.attempt);
    assert_eq!(yard.run("ls").await.out(), "");
}

#[tokio::test]
async fn what_an_earlier_worker_asked_for_is_dropped_when_another_connects() {
    for _ in 0..4 {
        let yard = Yard::new();
        let first = yard.script("echo $PPID");
        let keeper = yard.execute(&first, &CancellationToken::new()).await.out();
        let stopped = Stopped::new(&keeper);
        let begun: Vec<_> = (4..12)
            .map(|number| Script { attempt: Attempt(number), ..yard.script("true") })
            .collect();
        for script in &begun {
            let (lines, _log) = collector();
            let began = execute(&yard.attempts, script, lines, CancellationToken::new());
            drop(tokio::time::timeout(Duration::from_millis(20), began).await);
        }
        let (yard, found) = yard.reopened(Attempt(4));
        let (adopted, ()) = tokio::join!(yard.adopt(&found), async { drop(stopped) });
        assert_eq!(adopted.0, Adopted::NeverStarted);
        let begun = yard.attempts.found().into_iter().filter(|found| found.attempt >= Attempt(4));
        assert!(begun.into_iter().all(|found| found.state == FoundState::NeverStarted));
    }
}

#[tokio::test]
async fn a_script_is_not_reported_as_ended_while_its_keeper_does_not_end_it() {
    let yard = Yard::new();
    let mut script = yard.script("trap '' TERM; echo $$ >begun; while :; do sleep 0.05; done");
    script.timeout = Some(Duration::from_millis(500));
    script.grace = Some(Duration::from_millis(100));
    let cancel = CancellationToken::new();
    let begun = yard.folder.path().join("work/begun");
    let (done, (pid, _stopped)) = tokio::join!(yard.execute(&script, &cancel), async {
        let pid = appears(&begun).await;
        let stopped = Stopped::new(&yard.keeper().await);
        (pid, stopped)
    });
    assert_eq!(done.cause(), &FailureCause::TimedOut(500));
    assert!(!is_alive(&pid), "it runs beside the next attempt");
}

/// A process that is stopped until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: &str) -> Self {
        let pid = Pid::from_raw(pid.trim().parse().unwrap());
        signal::kill(pid, signal::Signal::SIGSTOP).unwrap();
        // The signal is taken by one thread; until that runs, the others go on.
        let threads = || fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let stat = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("stat")).unwrap();
        while !threads().all(|thread| stat(thread.unwrap()).contains(") T ")) {
            std::thread::yield_now();
        }
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = signal::kill(self.0, signal::Signal::SIGCONT);
    }
}

/// Not a test of its own: a worker whose keeper cannot be started, in a process of its own because
/// the program of keepers is chosen once.
#[tokio::test]
async fn a_worker_without_a_keeper() {
    let Ok(program) = std::env::var("TOWPATH_TEST_NO_KEEPER") else { return };
    keeper::tests::use_other_program(&program);
    let yard = Yard::new();
    let (lines, _log) = collector();
    let script = yard.script("touch started");
    let lost = execute_or_lose(&yard.attempts, &script, lines, CancellationToken::new()).await;

    let Adopted::Lost(why) = lost else { panic!("{lost:?}") };
    assert!(why.starts_with("its script was not started: "), "{why}");
    if program.starts_with("/no") {
        assert!(
            why.contains(&format!("cannot start the keeper of its scripts: `{program}`")),
            "{why}"
        );
        assert!(yard.attempts.disk().trouble().is_some(), "it would be given the same job again");
        assert!(!yard.attempts.can_run_again());
        assert_eq!(yard.attempts.found(), []);
    }
    assert!(!yard.folder.path().join("work/started").exists());
}

#[test]
fn a_job_whose_keeper_cannot_be_started_is_lost_and_says_why() {
    for program in ["/no/such/program", "/bin/true"] {
        let worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "execute::tests::keepers::a_worker_without_a_keeper"])
            .env("TOWPATH_TEST_NO_KEEPER", program)
            .output()
            .unwrap();
        assert!(worker.status.success(), "{}", String::from_utf8_lossy(&worker.stdout));
    }
}
