//! Scripts that really run: what they see, print and leave behind.

mod ending;
mod keepers;
mod next_worker;

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
        let attempts = AttemptsDir::open(&folder.path().join("attempts"), environment()).unwrap();
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
        let wanted = (1..=8).flat_map(|i| (1..=5000).map(move |n| format!("{name} {i} {n:06}")));
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
        ("mkdir -p out; touch \"out/$(printf 'a\\tb')\"", "`out/a\\tb` holds control characters"),
        ("mkdir -p out; touch \"out/$(printf 'a\\nb')\"", "`out/a\\nb` holds control characters"),
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
    let lines: Vec<_> = captured_output::lines(&done.log).map(|line| line.unwrap().bytes).collect();
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
async fn a_script_may_begin_with_a_hyphen() {
    let yard = Yard::new();
    let done = yard.run("-x 2>/dev/null; echo \"$0 $#\"").await;
    assert_eq!(done.out(), "sh 0");
}
