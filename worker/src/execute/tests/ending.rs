//! How scripts end: by themselves, asked to, killed; and what they leave running.

use super::*;

#[tokio::test]
async fn a_child_in_the_background_does_not_hold_the_job_up() {
    let yard = Yard::new();
    let done = yard.run("sleep 30 & echo $! >pid; echo done").await;
    assert_eq!(done.out(), "done");
    assert!(done.ran_ms() < 1_000 && matches!(done.ended, Ended::Succeeded { .. }));
    let pid = fs::read_to_string(yard.folder.path().join("work/pid")).unwrap();
    assert!(dies(&pid).await);
}

#[tokio::test]
async fn output_that_comes_a_moment_late_is_still_kept() {
    let yard = Yard::new();
    let done = yard.run("(sleep 0.01; echo late) & echo early").await;
    assert_eq!(done.out(), "early\nlate");
}

#[tokio::test]
async fn a_job_that_ignores_sigterm_is_killed_with_all_its_children() {
    let yard = Yard::new();
    let mut script = yard.script(
        "trap '' TERM; sh -c 'echo $$ >pid; while :; do sleep 0.1; done' >/dev/null 2>&1 &\n\
         while :; do sleep 0.1; done",
    );
    script.timeout = Some(Duration::from_millis(150));
    script.grace = Some(Duration::from_millis(200));
    let done = yard.execute(&script, &CancellationToken::new()).await;
    assert_eq!(done.cause(), &FailureCause::TimedOut(150));
    assert!((340..1_500).contains(&done.ran_ms()), "{}", done.ran_ms());
    let pid = fs::read_to_string(yard.folder.path().join("work/pid")).unwrap();
    assert!(!is_alive(&pid));
}

#[tokio::test]
async fn a_job_may_tidy_up_when_its_time_is_over() {
    let yard = Yard::new();
    let mut script = yard.script("trap 'sleep 0.1; echo tidied; exit 0' TERM; sleep 5 & wait");
    script.timeout = Some(Duration::from_millis(100));
    let done = yard.execute(&script, &CancellationToken::new()).await;
    assert_eq!(done.cause(), &FailureCause::TimedOut(100));
    assert_eq!(done.out(), "tidied");
    assert!(done.ran_ms() < 1_500, "{}", done.ran_ms());
}

#[tokio::test]
async fn a_cancelled_job_ends_soon_and_its_children_with_it() {
    let yard = Yard::new();
    let script = yard.script("echo begun; sh -c 'echo $$ >pid; sleep 30' & wait");
    let cancel = CancellationToken::new();
    let pid_file = yard.folder.path().join("work/pid");
    let (done, pid) = tokio::join!(yard.execute(&script, &cancel), async {
        let pid = appears(&pid_file).await;
        cancel.cancel();
        pid
    });
    assert!(matches!(done.ended, Ended::Cancelled { .. }), "{:?}", done.ended);
    assert_eq!(done.out(), "begun");
    assert!(!is_alive(&pid));
}

#[tokio::test]
async fn a_job_cancelled_before_it_starts_never_starts() {
    let yard = Yard::new();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let done = yard.execute(&yard.script("touch started"), &cancel).await;
    assert_eq!(done.ended, Ended::Cancelled { ran_ms: 0 });
    assert!(!yard.folder.path().join("work/started").exists());
}

#[tokio::test]
async fn a_script_that_ended_by_itself_is_not_cancelled() {
    let yard = Yard::new();
    let script = yard.script("sleep 30 & exit 0");
    let cancel = CancellationToken::new();
    let journal = yard.folder.path().join("attempts/1/journal");
    let (done, ()) = tokio::join!(yard.execute(&script, &cancel), async {
        while !fs::read_to_string(&journal).unwrap_or_default().contains("exit 0\n") {
            sleep(Duration::from_millis(1)).await;
        }
        cancel.cancel();
    });
    assert!(matches!(done.ended, Ended::Succeeded { .. }), "{:?}", done.ended);
}

#[tokio::test]
async fn output_without_end_fills_neither_memory_nor_the_log() {
    let yard = Yard::new();
    let done = yard.run("yes $(printf %0200d 7) | head -c 1000000000; echo; echo the end").await;
    assert!(matches!(done.ended, Ended::Succeeded { .. }));
    assert!(done.log.len() > LOG_HEAD_BYTES_MAX && done.log.len() <= LOG_BYTES_MAX);
    assert!(done.out().ends_with("\nthe end"));
    let note = &done.lines(OutputSource::Note)[0];
    assert!(note.ends_with("bytes of output omitted"), "{note}");
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak_kib < 300 * 1024, "{peak_kib} KiB");
    }
}

#[tokio::test]
async fn a_slow_listener_makes_the_job_wait_and_loses_nothing() {
    let yard = Yard::new();
    let script = yard.script("i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); done");
    let (lines, mut chunks) = mpsc::channel::<OutputChunk>(1);
    let cancel = CancellationToken::new();
    let (ended, log) = tokio::join!(execute(&yard.attempts, &script, lines, cancel), async {
        let mut log = Vec::new();
        sleep(Duration::from_millis(400)).await;
        while let Some(chunk) = chunks.recv().await {
            log.extend_from_slice(&chunk.records);
            sleep(Duration::from_millis(5)).await;
        }
        log
    });
    assert!(matches!(ended, Ended::Succeeded { .. }));
    let lines = lines_of(&log, OutputSource::Out);
    assert_eq!(lines.len(), 60_000);
    assert_eq!(lines.last().unwrap(), "line 59999");
}

#[tokio::test]
async fn a_job_is_ended_in_time_although_nobody_takes_its_output() {
    let yard = Yard::new();
    let mut script = yard.script("yes");
    script.timeout = Some(Duration::from_millis(200));
    let (lines, mut chunks) = mpsc::channel::<OutputChunk>(1);
    let cancel = CancellationToken::new();
    let (ended, ()) = tokio::join!(execute(&yard.attempts, &script, lines, cancel), async {
        sleep(Duration::from_millis(600)).await;
        while chunks.recv().await.is_some() {}
    });
    let Ended::Failed { cause, ran_ms } = ended else { panic!("{ended:?}") };
    assert_eq!(cause, FailureCause::TimedOut(200));
    assert!(ran_ms < 500, "{ran_ms}");
}

#[tokio::test]
async fn a_closed_listener_does_not_disturb_the_job() {
    let yard = Yard::new();
    let (lines, chunks) = mpsc::channel(1);
    drop(chunks);
    let script = yard.script("seq 100000; exit 6");
    let ended = execute(&yard.attempts, &script, lines, CancellationToken::new()).await;
    assert!(matches!(ended, Ended::Failed { cause: FailureCause::ExitCode(6), .. }));
}

#[tokio::test]
async fn berths_are_used_again_and_keep_nothing_of_the_last_attempt() {
    let yard = Yard::new();
    for number in 1..=30 {
        let mut script =
            yard.script("cat $TOW_OUTPUT 2>/dev/null; echo mine; echo a=1 >>$TOW_OUTPUT");
        script.attempt = Attempt(number);
        let done = yard.execute(&script, &CancellationToken::new()).await;
        assert_eq!(done.out(), "mine");
        yard.attempts.forget(&script.run, &script.job, script.attempt);
    }
    let attempt_dirs = fs::read_dir(yard.folder.path().join("attempts")).unwrap().count();
    assert!(attempt_dirs < 10, "{attempt_dirs}");
}

#[tokio::test]
async fn one_who_left_the_group_cannot_write_into_the_next_job() {
    let yard = Yard::new();
    let script = yard.script("setsid sh -c 'sleep 0.3; echo intruder' & echo first");
    let done = yard.execute(&script, &CancellationToken::new()).await;
    assert_eq!(done.out(), "first");
    yard.attempts.forget(&script.run, &script.job, script.attempt);
    let done = yard.run("sleep 0.5; echo second").await;
    assert_eq!(done.out(), "second");
}

#[tokio::test]
async fn a_process_that_left_its_group_ends_with_the_job_unless_it_took_its_mark_off() {
    let yard = Yard::new();
    let text = "(setsid sh -c 'echo $$ >marked; exec sleep 30' &)\n\
                (env -u TOW_OUTPUT setsid sh -c 'echo $$ >bare; exec sleep 30' &)\n\
                until [ -s marked ] && [ -s bare ]; do sleep 0.01; done";
    let done = yard.run(text).await;
    assert!(matches!(done.ended, Ended::Succeeded { .. }), "{:?}", done.ended);
    let pid_in = |name| fs::read_to_string(yard.folder.path().join("work").join(name)).unwrap();
    assert!(dies(&pid_in("marked")).await);
    assert!(is_alive(&pid_in("bare")));
    kill_now(&pid_in("bare"));
}
