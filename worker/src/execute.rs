//! Runs one attempt of a job, or goes on with one that an earlier worker process began: the script
//! is started as a process group that outlives this process, and its end and output are collected
//! by whoever is there.

use std::{
    ffi::OsString,
    io::ErrorKind,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use towpath_engine::event::FailureCause;

use crate::{
    attempt::{Adopted, Ended, Script},
    attempts::{AttemptsDir, FoundAttempt, OutputPipes},
    capture::{Capture, OutputChunk},
    environment::unusable_name,
    journal::{self, JournalEntry, LatestAttempt, StopReason},
    keeper::{Request, Start},
    mask::Mask,
    process_group::ProcessGroup,
    results,
    supervise::{self, ScriptEnd, Supervision},
};

/// From SIGTERM to SIGKILL, unless the job says otherwise.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// What reads a script that asks for no other program.
const SHELL: &str = "/bin/sh";
/// A shell reports a command that a signal of number `n` ended as this plus `n`.
const SIGNAL_OFFSET: i32 = 128;
/// Highest signal that is counted as one, in what a shell reports. Higher codes are codes.
const SIGNAL_MAX: i32 = 31;

/// Runs `script` to its end and sends what it prints to `lines`, which makes the script wait when
/// it is full and is not needed when it is closed.
///
/// If this future is dropped, the script goes on: see [`adopt`]. Afterwards the attempt stays on
/// disk until [`AttemptsDir::forget`].
pub async fn execute(
    attempts: &AttemptsDir,
    script: &Script,
    lines: mpsc::Sender<OutputChunk>,
    cancel: CancellationToken,
) -> Ended {
    match execute_or_lose(attempts, script, lines, cancel).await {
        Adopted::Ended(ended) => ended,
        Adopted::Lost(reason) => not_started(reason),
        Adopted::NeverStarted => not_started("it was never started".to_owned()),
    }
}

/// As [`execute`]. An attempt that came to nothing because of this worker is lost, not failed:
/// another worker may do better.
pub(crate) async fn execute_or_lose(
    attempts: &AttemptsDir,
    script: &Script,
    lines: mpsc::Sender<OutputChunk>,
    cancel: CancellationToken,
) -> Adopted {
    let mask = match attempts.environment().mask(&script.secrets) {
        Ok(mask) => Arc::new(mask),
        Err(error) => return Adopted::Ended(not_started(error.to_string())),
    };
    if cancel.is_cancelled() {
        return Adopted::Ended(Ended::Cancelled { ran_ms: 0 });
    }
    let unstarted = match start(attempts, script, &mask, &lines) {
        Ok(supervision) => {
            let end = supervision.run(cancel).await;
            match end.unstarted.filter(|_| end.page.stop.is_none()) {
                None => return judge(end, &mask, None).await,
                Some(unstarted) => Unstarted::of(unstarted, &script.folder),
            }
        }
        Err(unstarted) => unstarted,
    };
    match unstarted {
        Unstarted::Before(reason) => Adopted::Ended(not_started(mask.text(&reason))),
        Unstarted::ByJob(reason) => {
            attempts.forget(&script.run, &script.job, script.attempt);
            Adopted::Ended(not_started(mask.text(&reason)))
        }
        Unstarted::ByDisk(error) => {
            attempts.forget(&script.run, &script.job, script.attempt);
            lost_to_disk(attempts, &error.to_string())
        }
    }
}

/// Goes on with an attempt of an earlier worker process, as [`execute`] would have.
///
/// What that process had read and not passed on is gone; what the script printed since is not.
pub async fn adopt(
    attempts: &AttemptsDir,
    found: &FoundAttempt,
    lines: mpsc::Sender<OutputChunk>,
    cancel: CancellationToken,
) -> Adopted {
    let Some(folder) = attempts.attempt_dir(&found.run, &found.job, found.attempt) else {
        return Adopted::NeverStarted;
    };
    let unreadable = || Adopted::Lost("the attempt's folder cannot be read".to_owned());
    let Ok(Some(page)) = LatestAttempt::newest(&folder) else { return unreadable() };
    // From here on its keeper starts nothing that the worker before asked for.
    let keeper = attempts.reach_keeper(&page.kept.keeper).await;
    let (Ok(mut pipes), Ok(Some(page))) =
        (OutputPipes::open(&folder), LatestAttempt::newest(&folder))
    else {
        return unreadable();
    };
    let group = ProcessGroup::new(folder.clone(), keeper);
    if !page.started {
        group.release();
        return Adopted::NeverStarted;
    }
    let first = pipes.end.take_now();
    let known = attempts.environment().mask(&page.kept.secrets);
    let withheld = known.as_ref().err().map(ToString::to_string);
    let mask = Arc::new(known.unwrap_or_else(|_| Mask::none()));
    let mut capture = Capture::new(&mask);
    if let Some(why) = &withheld {
        capture.withhold(format!("the output is not shown: {why}"));
    }
    let ran = Duration::from_millis(journal::boot_ms().saturating_sub(page.kept.began_ms));
    let began = Instant::now().checked_sub(ran).unwrap_or_else(Instant::now);
    let supervision = Supervision::new(folder, pipes, group, page, capture, &lines, began);
    let end = supervision.run_from(first, cancel).await;
    match end.unstarted.filter(|_| end.page.stop.is_none()) {
        Some(_) => Adopted::NeverStarted,
        None => judge(end, &mask, withheld).await,
    }
}

/// Why a script was not started.
enum Unstarted {
    /// It cannot be, on any worker like this one. There is nothing of it on disk.
    Before(String),
    /// The same, and it has an attempt directory.
    ByJob(String),
    /// This worker cannot write its own files, or start processes of its own.
    ByDisk(std::io::Error),
}

impl From<String> for Unstarted {
    fn from(reason: String) -> Self {
        Self::Before(reason)
    }
}

impl Unstarted {
    fn of(unstarted: supervise::Unstarted, folder: &Path) -> Self {
        let error = std::io::Error::from_raw_os_error;
        match unstarted {
            supervise::Unstarted::Program(number) => {
                Self::ByJob(spawn_failed(folder, &error(number)))
            }
            supervise::Unstarted::Files(number) => Self::ByDisk(error(number)),
        }
    }
}

/// The end of an attempt whose worker cannot write its own files: from now on it takes no jobs.
fn lost_to_disk(attempts: &AttemptsDir, why: &str) -> Adopted {
    attempts.disk().note(why);
    Adopted::Lost(format!("its worker cannot write its own files: {why}"))
}

fn start<'a>(
    attempts: &AttemptsDir,
    script: &Script,
    mask: &Arc<Mask>,
    lines: &'a mpsc::Sender<OutputChunk>,
) -> Result<Supervision<'a>, Unstarted> {
    if let Some(name) = unusable_name(&script.env) {
        return Err(format!("the variable `{name}` cannot be passed to a script").into());
    }
    let start = start_of(attempts, script);
    if has_nul(&start) {
        return Err("the script or its variables hold a NUL byte".to_owned().into());
    }
    let keeper = attempts.keeper().map_err(Unstarted::ByDisk)?;
    let kept = kept_of(attempts, script, keeper.name())?;
    let attempt_dir = attempts.take(&kept).map_err(|error| {
        if error.kind() == ErrorKind::AlreadyExists {
            Unstarted::Before("this attempt has been started before".to_owned())
        } else {
            Unstarted::ByDisk(error)
        }
    })?;
    let began = Instant::now();
    let start = Request::Start(Start { attempt: attempt_dir.folder.clone(), ..start });
    if let Err(error) = keeper.send(&start)
        && error.kind() == ErrorKind::ArgumentListTooLong
    {
        return Err(Unstarted::ByJob(spawn_failed(&script.folder, &error)));
    }
    // A keeper that is gone is noticed by what watches the attempt.
    let page =
        LatestAttempt { kept, started: true, pid: None, exit: None, stop: None, forgotten: false };
    let group = ProcessGroup::new(attempt_dir.folder.clone(), Some(keeper));
    let capture = Capture::new(mask);
    Ok(Supervision::new(attempt_dir.folder, attempt_dir.pipes, group, page, capture, lines, began))
}

/// What a keeper is asked to start for `script`, but for where its attempt lies.
fn start_of(attempts: &AttemptsDir, script: &Script) -> Start {
    let arguments: Vec<OsString> = if script.shell.is_empty() {
        // It may begin with a hyphen. It sees `sh` as `$0`, and no arguments.
        ["-c", "--", &script.script, "sh"].map(OsString::from).into()
    } else {
        // Found by a shell, by the script's own `PATH`, and said in its words if it is not there.
        let program = script.shell.iter().map(String::as_str);
        let exec = ["-c", "exec \"$@\"", "sh"].into_iter().chain(program);
        exec.chain([script.script.as_str()]).map(OsString::from).collect()
    };
    let output = attempts.output(&script.run, &script.job, script.attempt);
    Start {
        attempt: PathBuf::new(),
        program: SHELL.into(),
        arguments,
        // Only what is chosen: the worker's own environment holds its token and its secrets.
        variables: attempts.environment().of_script(script, &output).into_iter().collect(),
        folder: script.folder.clone(),
    }
}

/// Whether something of `start` cannot be passed to any program.
fn has_nul(start: &Start) -> bool {
    let variables = start.variables.iter().flat_map(|(name, value)| [name, value]);
    start.arguments.iter().chain(variables).any(|text| text.as_bytes().contains(&0))
}

/// What the next worker process needs to know.
fn kept_of(attempts: &AttemptsDir, script: &Script, keeper: &str) -> Result<JournalEntry, String> {
    Ok(JournalEntry {
        run: script.run.clone(),
        job: script.job.clone(),
        attempt: script.attempt,
        fence: script.fence,
        folder: std::path::absolute(&script.folder).map_err(|error| error.to_string())?,
        output: attempts.output(&script.run, &script.job, script.attempt),
        timeout_ms: script.timeout.map(millis),
        grace_ms: millis(script.grace.unwrap_or(GRACE_DEFAULT)),
        artifacts: script.artifacts.clone(),
        secrets: script.secrets.clone(),
        traceparent: script.traceparent.clone(),
        keeper: keeper.to_owned(),
        began_ms: journal::boot_ms(),
        began_unix_ms: journal::unix_ms(SystemTime::now()),
    })
}

fn spawn_failed(folder: &Path, error: &std::io::Error) -> String {
    if error.kind() == ErrorKind::ArgumentListTooLong {
        // Scripts are an argument of their shell, and Linux takes 128 KiB of one.
        "the script, with its values filled in, or its variables are longer than the system takes; \
         move the script into a file of the source"
            .to_owned()
    } else if folder.is_dir() {
        format!("the script cannot be started: {error}")
    } else {
        format!("the folder `{}` does not exist on the machine of this worker", folder.display())
    }
}

fn not_started(reason: String) -> Ended {
    Ended::Failed { cause: FailureCause::NotStarted(reason), ran_ms: 0 }
}

/// What the end of a script means, with what it left behind.
async fn judge(end: ScriptEnd, mask: &Arc<Mask>, withheld: Option<String>) -> Adopted {
    let ScriptEnd { page, unstarted: _, ran_ms } = end;
    let failed = |cause| Adopted::Ended(Ended::Failed { cause, ran_ms });
    match (page.stop, page.exit) {
        (Some(StopReason::Cancelled), _) => Adopted::Ended(Ended::Cancelled { ran_ms }),
        (Some(StopReason::TimedOut), _) => {
            failed(FailureCause::TimedOut(page.kept.timeout_ms.unwrap_or(ran_ms)))
        }
        (None, Some(0)) => match results::read(&page.kept, mask, withheld).await {
            Ok((outputs, artifacts)) => {
                Adopted::Ended(Ended::Succeeded { ran_ms, outputs, artifacts })
            }
            Err(reason) => failed(FailureCause::OutputUnusable(mask.text(&reason))),
        },
        (None, Some(code)) => failed(cause_of(code)),
        (None, None) => Adopted::Lost("the keeper of its script was killed".to_owned()),
    }
}

/// Shells report a signal as a code, and nobody can tell it from a script that ended with that
/// code on purpose. The signal is by far the likelier.
fn cause_of(code: i32) -> FailureCause {
    match code - SIGNAL_OFFSET {
        signal @ 1..=SIGNAL_MAX => FailureCause::Signal(signal),
        _ => FailureCause::ExitCode(code),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs,
        io::Read as _,
        process::{Command, Stdio},
    };

    use nix::{sys::signal, unistd::Pid};
    use tokio::{task::JoinHandle, time::sleep};
    use towpath_engine::{
        captured_output::{self, OutputSource},
        ids::{Attempt, Digest, JobName},
    };

    use super::*;
    use crate::{
        attempts::FoundState,
        capture::{LOG_BYTES_MAX, LOG_HEAD_BYTES_MAX},
        environment::Environment,
        keeper, output_pipe, process_search,
    };

    /// A worker's folders, and a memory of what came out.
    struct Yard {
        folder: tempfile::TempDir,
        attempts: AttemptsDir,
    }

    struct Done {
        ended: Ended,
        log: Vec<u8>,
    }

    impl Done {
        /// The lines of one stream, without their moments.
        fn lines(&self, source: OutputSource) -> Vec<String> {
            lines_of(&self.log, source)
        }

        fn out(&self) -> String {
            self.lines(OutputSource::Out).join("\n")
        }

        fn cause(&self) -> &FailureCause {
            match &self.ended {
                Ended::Failed { cause, .. } => cause,
                other @ (Ended::Succeeded { .. } | Ended::Cancelled { .. }) => {
                    panic!("{other:?}: {}", String::from_utf8_lossy(&self.log))
                }
            }
        }

        fn outputs(&self) -> &BTreeMap<String, String> {
            match &self.ended {
                Ended::Succeeded { outputs, .. } => outputs,
                other @ (Ended::Failed { .. } | Ended::Cancelled { .. }) => {
                    panic!("{other:?}: {}", String::from_utf8_lossy(&self.log))
                }
            }
        }

        fn ran_ms(&self) -> u64 {
            match self.ended {
                Ended::Succeeded { ran_ms, .. }
                | Ended::Failed { ran_ms, .. }
                | Ended::Cancelled { ran_ms } => ran_ms,
            }
        }
    }

    fn lines_of(log: &[u8], source: OutputSource) -> Vec<String> {
        let lines =
            captured_output::lines(log).map(Result::unwrap).filter(|line| line.source == source);
        lines.map(|line| captured_output::printable(line.bytes, false)).collect()
    }

    const SECRET: &str = "hunter2-correct-horse";

    fn environment() -> Environment {
        let path = std::env::var("PATH").unwrap();
        [
            ("PATH", path.as_str()),
            ("HOME", "/home/worker"),
            ("LC_ALL", "C.UTF-8"),
            ("LD_PRELOAD", "/nowhere.so"),
            ("AWS_ACCESS_KEY_ID", "leak"),
            ("TOKEN", SECRET),
            ("PIN", "123"),
            ("TOW_TOKEN", "towpath_of_the_worker"),
        ]
        .into_iter()
        .collect()
    }

    impl Yard {
        fn new() -> Self {
            keeper::tests::use_test_program();
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("work")).unwrap();
            let attempts =
                AttemptsDir::open(&folder.path().join("attempts"), environment()).unwrap();
            Self { folder, attempts }
        }

        fn script(&self, text: &str) -> Script {
            script_in(self.folder.path(), text)
        }

        async fn run(&self, text: &str) -> Done {
            self.execute(&self.script(text), &CancellationToken::new()).await
        }

        async fn execute(&self, script: &Script, cancel: &CancellationToken) -> Done {
            let (lines, log) = collector();
            let ended = execute(&self.attempts, script, lines, cancel.clone()).await;
            Done { ended, log: log.await.unwrap() }
        }

        async fn adopt(&self, found: &FoundAttempt) -> (Adopted, Vec<u8>) {
            let (lines, log) = collector();
            let adopted = adopt(&self.attempts, found, lines, CancellationToken::new()).await;
            (adopted, log.await.unwrap())
        }
    }

    fn script_in(folder: &Path, text: &str) -> Script {
        Script {
            run: "r1".into(),
            job: "a/b: c+ü".into(),
            attempt: Attempt(3),
            fence: 3,
            script: text.to_owned(),
            shell: Vec::new(),
            env: BTreeMap::new(),
            secrets: Vec::new(),
            folder: folder.join("work"),
            root: None,
            timeout: None,
            grace: None,
            artifacts: Vec::new(),
            traceparent: None,
        }
    }

    fn collector() -> (mpsc::Sender<OutputChunk>, JoinHandle<Vec<u8>>) {
        let (lines, mut chunks) = mpsc::channel::<OutputChunk>(4);
        let log = tokio::spawn(async move {
            let mut log = Vec::new();
            while let Some(chunk) = chunks.recv().await {
                log.extend_from_slice(&chunk.records);
            }
            log
        });
        (lines, log)
    }

    fn is_alive(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        !matches!(stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]), None | Some("Z" | "X"))
    }

    fn kill_now(pid: &str) {
        signal::kill(Pid::from_raw(pid.trim().parse().unwrap()), signal::Signal::SIGKILL).unwrap();
    }

    /// The parent of a process: of a script's first one, its keeper.
    fn parent_of(pid: &str) -> String {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap();
        let rest = stat.rsplit_once(") ").unwrap().1;
        rest.split(' ').nth(1).unwrap().to_owned()
    }

    async fn dies(pid: &str) -> bool {
        for _ in 0..200 {
            if !is_alive(pid) {
                return true;
            }
            sleep(Duration::from_millis(5)).await;
        }
        false
    }

    async fn appears(path: &Path) -> String {
        for _ in 0..400 {
            match fs::read_to_string(path) {
                Ok(text) if text.ends_with('\n') => return text,
                Ok(_) | Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
        panic!("{} never appears", path.display());
    }

    #[tokio::test]
    async fn a_script_that_ends_with_0_succeeds() {
        let yard = Yard::new();
        let done = yard.run("echo hello; echo sorry >&2; printf 'no newline'").await;
        assert_eq!(done.outputs(), &BTreeMap::new());
        assert_eq!(done.lines(OutputSource::Out), ["hello", "no newline"]);
        assert_eq!(done.lines(OutputSource::Err), ["sorry"]);
    }

    /// Prints 1 MB to both streams, in pieces of which each waits until it is let go on.
    const PRINTS_PIECES: &str = r#"
for i in 1 2 3 4 5 6 7 8; do
  seq -f "out $i %06g" 1 5000
  seq -f "err $i %06g" 1 5000 >&2
  until [ -e "go.$i" ]; do sleep 0.01; done
done
"#;

    #[tokio::test]
    async fn the_second_job_of_a_slot_is_read_while_it_prints() {
        // given: a first job has used the attempt folder, and its keeper has released it
        let yard = Yard::new();
        yard.run("true").await;
        let end = yard.folder.path().join("attempts/1/end");
        while !output_pipe::open_pipe(&end).is_ok_and(|mut pipe| pipe.read(&mut [0]).is_ok()) {
            sleep(Duration::from_millis(1)).await;
        }
        let mut script = yard.script(PRINTS_PIECES);
        yard.attempts.forget(&script.run, &script.job, script.attempt);
        script.attempt = script.attempt.next();

        // when: the second job prints a piece only after the piece before has arrived here
        let (lines, mut chunks) = mpsc::channel::<OutputChunk>(4);
        let listens = async {
            let (mut log, mut piece) = (Vec::new(), 1);
            while let Some(chunk) = chunks.recv().await {
                log.extend_from_slice(&chunk.records);
                let last = [format!("out {piece} 005000\n"), format!("err {piece} 005000\n")];
                let text = String::from_utf8_lossy(&log);
                if last.iter().all(|last| text.contains(last.as_str())) {
                    fs::write(script.folder.join(format!("go.{piece}")), "").unwrap();
                    piece += 1;
                }
            }
            log
        };
        let cancel = CancellationToken::new();
        let both = async { tokio::join!(execute(&yard.attempts, &script, lines, cancel), listens) };
        let within = tokio::time::timeout(Duration::from_secs(20), both).await;
        let (ended, log) = within.expect("a script that prints waits for ever");

        // then: every line is there, in the order of its stream, with the time it came at
        assert!(matches!(ended, Ended::Succeeded { .. }), "{ended:?}");
        assert!(yard.folder.path().join("attempts/1").exists(), "the slot was not used again");
        assert!(!yard.folder.path().join("attempts/2").exists(), "the slot was not used again");
        assert!(log.len() > 1_000_000, "{}", log.len());
        for (source, name) in [(OutputSource::Out, "out"), (OutputSource::Err, "err")] {
            let wanted =
                (1..=8).flat_map(|i| (1..=5000).map(move |n| format!("{name} {i} {n:06}")));
            assert!(lines_of(&log, source).into_iter().eq(wanted), "{name}");
        }
        let times: Vec<_> =
            captured_output::lines(&log).map(|line| line.unwrap()).map(|line| line.at_ms).collect();
        assert!(times.is_sorted(), "lines come in the order of their times");
        assert!(times[0] < times[times.len() - 1], "not all lines came at the end");
    }

    #[tokio::test]
    async fn a_script_fails_with_its_own_code() {
        let yard = Yard::new();
        for (number, (text, cause)) in [
            ("exit 1", FailureCause::ExitCode(1)),
            ("set -e; false; exit 0", FailureCause::ExitCode(1)),
            ("exit 255", FailureCause::ExitCode(255)),
            ("no-such-program", FailureCause::ExitCode(127)),
            ("if", FailureCause::ExitCode(2)),
            ("exec sh -c 'exit 9'", FailureCause::ExitCode(9)),
            ("trap 'exit 4' EXIT; exit 3", FailureCause::ExitCode(4)),
            ("sh -c 'kill -9 $$'", FailureCause::Signal(9)),
            ("kill -9 $$; sleep 9", FailureCause::Signal(9)),
            ("kill $$; sleep 9; echo went on", FailureCause::Signal(15)),
            ("kill -- -$$; sleep 9", FailureCause::Signal(15)),
        ]
        .into_iter()
        .enumerate()
        {
            let mut script = yard.script(text);
            script.attempt = Attempt(u32::try_from(number).unwrap());
            let done = yard.execute(&script, &CancellationToken::new()).await;
            assert_eq!(done.cause(), &cause, "{text}");
            assert!(!done.out().contains("went on"));
        }
    }

    #[tokio::test]
    async fn a_script_that_the_system_cannot_take_fails_by_name() {
        let yard = Yard::new();
        let done = yard.run(&format!("echo {}", "x".repeat(200_000))).await;
        let FailureCause::NotStarted(why) = done.cause() else { panic!("{:?}", done.cause()) };
        assert!(why.contains("longer than the system takes"), "{why}");
    }

    #[tokio::test]
    async fn an_artifact_that_no_server_can_record_fails_its_job_by_name() {
        let yard = Yard::new();
        let long = "mkdir -p out; for i in $(seq 100); do touch out/$i$(printf %0200d 0); done";
        let quotes = r#"q=$(printf '%04000d' 0 | tr 0 '"'); for i in a b c; do echo "$i=$q"; done >$TOW_OUTPUT
mkdir -p out; for i in $(seq 88); do touch "out/$i$(printf '%0150d' 0 | tr 0 '"')"; done"#;
        for (number, (text, wanted)) in [
            (
                "mkdir -p out; touch \"out/$(printf 'a\\tb')\"",
                "`out/a\\tb` holds control characters",
            ),
            (
                "mkdir -p out; touch \"out/$(printf 'a\\nb')\"",
                "`out/a\\nb` holds control characters",
            ),
            ("mkdir -p out; touch out/$TOKEN", "`out/***` holds a secret"),
            (long, "more artifacts than an event can list"),
            (quotes, "an event holds"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut script = yard.script(&format!("rm -rf out; {text}"));
            script.attempt = Attempt(u32::try_from(number).unwrap());
            script.secrets = vec!["TOKEN".to_owned()];
            script.artifacts = vec!["out".to_owned()];
            let done = yard.execute(&script, &CancellationToken::new()).await;
            let FailureCause::OutputUnusable(why) = done.cause() else { panic!("{text}") };
            assert!(why.contains(wanted), "{text}: {why}");
            assert!(!why.contains(char::is_control), "{why:?}");
        }
    }

    #[tokio::test]
    async fn what_is_printed_is_kept_byte_by_byte() {
        let yard = Yard::new();
        let done = yard.run(r"printf 'caf\303\251 \377\033[2J\r\n\0end'").await;
        let lines: Vec<_> =
            captured_output::lines(&done.log).map(|line| line.unwrap().bytes).collect();
        assert_eq!(lines, [&b"caf\xc3\xa9 \xff\x1b[2J\r"[..], b"\0end"]);
    }

    #[tokio::test]
    async fn lines_longer_than_a_record_are_whole_when_joined() {
        let yard = Yard::new();
        let done = yard.run("head -c 200000 /dev/zero | tr '\\0' x; echo; echo short").await;
        let read: Vec<_> = captured_output::lines(&done.log).map(Result::unwrap).collect();
        let ends: Vec<_> = read.iter().map(|line| line.ends).collect();
        assert_eq!(ends, [false, false, false, true, true]);
        assert_eq!(read[..4].iter().map(|line| line.bytes.len()).sum::<usize>(), 200_000);
    }

    #[tokio::test]
    async fn a_script_sees_only_what_it_should() {
        let yard = Yard::new();
        let mut script = yard.script("env | sort; pwd; cat; echo \"$0 $#\"");
        script.env = [("TOW_JOB", "other"), ("HOME", "/mine"), ("A", "1 2")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        script.traceparent = Some("00-1-2-01".to_owned());
        let done = yard.execute(&script, &CancellationToken::new()).await;
        let out = done.out();
        for expected in [
            "A=1 2",
            "HOME=/mine",
            "LC_ALL=C.UTF-8",
            "TERM=dumb",
            "TOW_ATTEMPT=3",
            "TOW_FENCE=3",
            "TOW_JOB=a/b: c+ü",
            "TOW_RUN_ID=r1",
            "TRACEPARENT=00-1-2-01",
            "sh 0",
        ] {
            assert!(out.lines().any(|line| line == expected), "{expected}: {out}");
        }
        for hidden in ["LD_PRELOAD", "AWS", "TOKEN", "other", "eval"] {
            assert!(!out.contains(hidden), "{hidden}: {out}");
        }
        assert!(out.contains(&script.folder.display().to_string()));
    }

    #[tokio::test]
    async fn another_shell_gets_the_script_as_its_last_argument() {
        let yard = Yard::new();
        let mut script = yard.script("a  b'c\"$x");
        script.shell = vec!["printf".to_owned(), "<%s>".to_owned()];
        let done = yard.execute(&script, &CancellationToken::new()).await;
        assert_eq!(done.out(), "<a  b'c\"$x>");

        yard.attempts.forget(&script.run, &script.job, script.attempt);
        script.shell = vec!["no-such-shell".to_owned()];
        let done = yard.execute(&script, &CancellationToken::new()).await;
        assert_eq!(done.cause(), &FailureCause::ExitCode(127));
    }

    #[tokio::test]
    async fn a_script_that_cannot_start_says_why() {
        let yard = Yard::new();
        let mut script = yard.script("true");
        script.folder = "/no/such/folder".into();
        let done = yard.execute(&script, &CancellationToken::new()).await;
        let reason =
            "the folder `/no/such/folder` does not exist on the machine of this worker".to_owned();
        assert_eq!(done.cause(), &FailureCause::NotStarted(reason));
        assert_eq!(yard.attempts.found(), []);

        let mut script = yard.script("true");
        script.env.insert("A=B".to_owned(), String::new());
        let done = yard.execute(&script, &CancellationToken::new()).await;
        assert!(matches!(done.cause(), FailureCause::NotStarted(_)));
    }

    #[tokio::test]
    async fn an_attempt_is_never_started_twice() {
        let yard = Yard::new();
        yard.run("true").await;
        let again = yard.run("echo again").await;
        let reason = "this attempt has been started before".to_owned();
        assert_eq!(again.cause(), &FailureCause::NotStarted(reason));
        assert_eq!(yard.attempts.found().len(), 1);
    }

    #[tokio::test]
    async fn outputs_are_read_and_bad_ones_fail_the_job() {
        let yard = Yard::new();
        let text = "echo rows=12 >>\"$TOW_OUTPUT\"; printf 'note<<E\\na\\nb\\nE\\n' >>$TOW_OUTPUT";
        let done = yard.run(text).await;
        let expected = [("note", "a\nb"), ("rows", "12")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(done.outputs(), &BTreeMap::from(expected));

        let script = yard.script("echo oops >>\"$TOW_OUTPUT\"");
        yard.attempts.forget(&script.run, &script.job, script.attempt);
        let done = yard.execute(&script, &CancellationToken::new()).await;
        let reason = "line 1 of `$TOW_OUTPUT` is neither `name=value` nor `name<<WORD`".to_owned();
        assert_eq!(done.cause(), &FailureCause::OutputUnusable(reason));
    }

    #[tokio::test]
    async fn artifacts_are_found_and_a_missing_one_fails_the_job() {
        let yard = Yard::new();
        let mut script = yard.script("mkdir d; echo hi >d/x.txt");
        script.artifacts = vec!["d/*.txt".to_owned()];
        let done = yard.execute(&script, &CancellationToken::new()).await;
        let Ended::Succeeded { artifacts, .. } = &done.ended else { panic!("{:?}", done.ended) };
        assert_eq!((artifacts[0].path.as_str(), artifacts[0].size), ("d/x.txt", 3));
        assert_eq!(artifacts[0].sha256, Digest::of(b"hi\n"));

        script.attempt = Attempt(4);
        script.script = "true".to_owned();
        script.artifacts = vec!["missing.txt".to_owned()];
        let done = yard.execute(&script, &CancellationToken::new()).await;
        assert!(matches!(done.cause(), FailureCause::OutputUnusable(_)));
    }

    #[tokio::test]
    async fn secrets_are_masked_wherever_they_come_out() {
        let yard = Yard::new();
        let mut script = yard.script(
            "echo $TOKEN; printf 'user:%s' $TOKEN | base64 >&2\n\
             printf 'hunter2-'; sleep 0.15; printf 'correct-'; sleep 0.15; echo 'horse!'\n\
             echo key=x${TOKEN}y >>$TOW_OUTPUT",
        );
        script.secrets = vec!["TOKEN".to_owned()];
        let done = yard.execute(&script, &CancellationToken::new()).await;
        assert_eq!(done.lines(OutputSource::Out), ["***", "***!"]);
        assert!(done.lines(OutputSource::Err)[0].contains("***"));
        assert_eq!(done.outputs()["key"], "x***y");
        assert!(!String::from_utf8_lossy(&done.log).contains("correct"));
    }

    #[tokio::test]
    async fn a_secret_that_is_missing_or_too_short_stops_the_job_before_it_starts() {
        let yard = Yard::new();
        for (name, reason) in [
            ("ABSENT", "the worker's environment has no secret `ABSENT`"),
            // It would let the job act as its worker.
            ("TOW_TOKEN", "the worker's environment has no secret `TOW_TOKEN`"),
            ("PIN", "the secret `PIN` cannot be masked: it must have 4 to 16384 bytes"),
        ] {
            let mut script = yard.script("echo started");
            script.secrets = vec![name.to_owned()];
            let done = yard.execute(&script, &CancellationToken::new()).await;
            assert_eq!(done.cause(), &FailureCause::NotStarted(reason.to_owned()));
            assert_eq!(done.log, b"");
        }
    }

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
        let done =
            yard.run("yes $(printf %0200d 7) | head -c 1000000000; echo; echo the end").await;
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
            .args(["--exact", "execute::tests::a_worker_to_be_killed"])
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
        let Adopted::Ended(Ended::Failed { cause, ran_ms }) = adopted else {
            panic!("{adopted:?}")
        };
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
        let pid =
            LatestAttempt::newest(&yard.folder.path().join("attempts/1")).unwrap().unwrap().pid;

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
        let Adopted::Ended(Ended::Succeeded { outputs, .. }) = adopted else {
            panic!("{adopted:?}")
        };
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
    async fn what_a_killed_worker_asked_for_last_is_not_begun_behind_the_back_of_the_next() {
        // given: an attempt in the journal of a keeper that does nothing at the moment
        let yard = Yard::new();
        let first = yard.script("echo $PPID");
        let keeper = yard.execute(&first, &CancellationToken::new()).await.out();
        let stopped = Pid::from_raw(keeper.parse().unwrap());
        signal::kill(stopped, signal::Signal::SIGSTOP).unwrap();
        let mut script = yard.script("touch started");
        script.attempt = Attempt(4);
        let (lines, _log) = collector();
        let began = execute(&yard.attempts, &script, lines, CancellationToken::new());
        drop(tokio::time::timeout(Duration::from_millis(100), began).await);

        // when: the next worker asks about it, and then the keeper goes on
        let found = yard.attempts.found().into_iter().find(|found| found.attempt == Attempt(4));
        let Yard { folder, attempts } = yard;
        drop(attempts);
        let attempts = AttemptsDir::open(&folder.path().join("attempts"), environment()).unwrap();
        let yard = Yard { folder, attempts };
        let (adopted, ()) = tokio::join!(yard.adopt(found.as_ref().unwrap()), async {
            sleep(Duration::from_millis(100)).await;
            signal::kill(stopped, signal::Signal::SIGCONT).unwrap();
        });

        // then: it was started and is watched, or it never is
        let started = yard.folder.path().join("work/started").exists();
        match adopted.0 {
            Adopted::NeverStarted => assert!(!started),
            Adopted::Ended(Ended::Succeeded { .. }) => assert!(started),
            other @ (Adopted::Ended(_) | Adopted::Lost(_)) => panic!("{other:?}"),
        }
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

    #[tokio::test]
    async fn a_script_may_begin_with_a_hyphen() {
        let yard = Yard::new();
        let done = yard.run("-x 2>/dev/null; echo \"$0 $#\"").await;
        assert_eq!(done.out(), "sh 0");
    }

    #[tokio::test]
    async fn a_time_limit_holds_across_workers() {
        let text = "trap '' TERM; echo $$ >begun; while :; do sleep 0.05; done";
        let (yard, found) = reopened(worker_killed(text, "begun", true).await);
        let (adopted, _) = yard.adopt(&found).await;
        let Adopted::Ended(Ended::Failed { cause, ran_ms }) = adopted else {
            panic!("{adopted:?}")
        };
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
}
