//! `kill -9`, repeatedly: `tow` dies at random moments, and nothing that it said was recorded
//! is ever missing, and no job leaves its mark twice.
//!
//! `TOW_KILLS` asks for another number of kills than 100, `TOW_SEED` for the moments of an earlier
//! failure, `TOW_BIN` for another program than the one that this workspace builds.

use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use towpath_tests::{Chance, program};

const STAGES: usize = 8;
const JOBS_PER_STAGE: usize = 15;
/// When a `tow` is killed, counted from its start.
const MOMENTS_MS: std::ops::Range<u64> = 20..400;
/// How long a `tow` may take that is not killed.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// Exit codes of `tow` that the test has to tell apart.
const DONE: i32 = 0;
const NOT_FOUND: i32 = 3;
const NOTHING_TO_DO: i32 = 4;

/// A hundred and twenty jobs that leave a mark and take a moment. Names are as odd as they may be.
fn pipeline(chance: &mut Chance) -> String {
    let stages: Vec<String> = (0..STAGES).map(|stage| format!("s{stage}")).collect();
    let mut yaml = format!("version: \"1.0\"\nstages: [{}]\njobs:\n", stages.join(", "));
    for stage in 0..STAGES {
        for job in 0..JOBS_PER_STAGE {
            let ms = 5 + chance.below(16);
            let needs = match job {
                0..5 => String::new(),
                later => format!("    needs: [\"{}\"]\n", job_name(stage, later - 5)),
            };
            let name = job_name(stage, job);
            yaml.push_str(&format!(
                "  \"{name}\":
    stage: s{stage}
{needs}    command: |
      printf '%s %s\\n' \"$TOW_JOB\" \"$TOW_ATTEMPT\" >> effects.log
      sleep 0.0{ms:02}
"
            ));
        }
    }
    yaml
}

fn job_name(stage: usize, job: usize) -> String {
    format!("s{stage}/t:{job} ü")
}

/// A folder with a pipeline, and what has been seen of its run.
struct Scene {
    program: PathBuf,
    folder: tempfile::TempDir,
    /// Every line of the log that some `tow` printed before it died, by position.
    seen: BTreeMap<u64, String>,
    starts: usize,
}

/// How a `tow` ended.
enum Ended {
    Killed,
    Exit(i32),
}

impl Scene {
    fn new(program: &Path, chance: &mut Chance) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("towpath.yml"), pipeline(chance)).expect("a file");
        Self { program: program.to_owned(), folder, seen: BTreeMap::new(), starts: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn begin(&mut self, arguments: &[&str]) -> Child {
        self.starts += 1;
        let file = |name: &str| File::create(self.path(name)).expect("a file can be written");
        Command::new(&self.program)
            .args(arguments)
            .args(["--output", "jsonl"])
            .current_dir(self.folder.path())
            .env_remove("TOW_STORE")
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .expect("`tow` can be started")
    }

    /// Starts `tow`, and kills it after `life` unless it ends before.
    fn live(&mut self, arguments: &[&str], life: Option<Duration>) -> Ended {
        let mut child = self.begin(arguments);
        let deadline = Instant::now() + life.unwrap_or(WAIT_MAX);
        let ended = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break Ended::Exit(status.code().unwrap_or(-1));
            }
            if Instant::now() >= deadline {
                child.kill().expect("a child can be killed");
                child.wait().expect("a child can be waited for");
                assert!(life.is_some(), "`tow {}` took over {WAIT_MAX:?}", arguments.join(" "));
                break Ended::Killed;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let printed = fs::read(self.path("stdout")).expect("what it printed");
        self.take_in(&printed);
        ended
    }

    /// Reads the complete lines of `printed`. What was seen before must not look different now.
    fn take_in(&mut self, printed: &[u8]) {
        for line in printed.split_inclusive(|byte| *byte == b'\n') {
            let Some(line) = line.strip_suffix(b"\n") else { continue };
            let value: serde_json::Value = serde_json::from_slice(line).expect("a line is JSON");
            let Some(position) = value["position"].as_u64() else { continue };
            let line = String::from_utf8(line.to_vec()).expect("JSON is text");
            let before = self.seen.insert(position, line.clone());
            assert!(before.is_none_or(|before| before == line), "position {position} changed");
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// The whole log, from a `tow` that is not killed.
    fn log(&mut self) -> Vec<serde_json::Value> {
        let seen = std::mem::take(&mut self.seen);
        let ended = self.live(&["events"], None);
        assert!(matches!(ended, Ended::Exit(DONE)), "{}", self.said());
        for (position, line) in seen {
            assert_eq!(self.seen.get(&position), Some(&line), "position {position} was printed");
        }
        let lines = self.seen.values();
        lines.map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }

    fn check(&mut self) {
        let log = self.log();
        for (record, position) in log.iter().zip(1_u64..) {
            assert_eq!(record["position"], position, "positions have no gaps");
            assert_eq!(record["version"], position, "the store holds one run");
        }
        let event = |record: &serde_json::Value| record["fact"]["event"].clone();
        assert_eq!(event(log.last().expect("a log"))["outcome"], "succeeded");

        let succeeded = log.iter().map(event).filter(|event| event["kind"] == "job_succeeded");
        let mut attempts: HashMap<String, String> = HashMap::new();
        for event in succeeded {
            let job = event["job"].as_str().expect("a name").to_owned();
            let again = attempts.insert(job, event["attempt"].to_string());
            assert_eq!(again, None, "a job succeeded twice");
        }
        assert_eq!(attempts.len(), STAGES * JOBS_PER_STAGE);

        let effects = fs::read_to_string(self.path("effects.log")).expect("the marks");
        let mut left: HashMap<&str, &str> = HashMap::new();
        let mut stage = "s0";
        for line in effects.lines() {
            let (job, attempt) = line.rsplit_once(' ').expect("a job and its try");
            assert_eq!(left.insert(job, attempt), None, "`{job}` left two marks");
            let own = &job[..2];
            assert!(own >= stage, "`{job}` ran after stage {stage} had begun");
            stage = own;
        }
        for (job, attempt) in &attempts {
            assert_eq!(left.get(job.as_str()), Some(&attempt.as_str()), "the mark of `{job}`");
        }
        assert_eq!(left.len(), attempts.len());

        let doctor = self.live(&["doctor"], None);
        assert!(matches!(doctor, Ended::Exit(DONE)), "the doctor says: {}", self.said());
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_done_twice() {
    let wanted = env::var("TOW_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let program = program();
    let mut chance = Chance::new();
    let seed = chance.seed;
    let (mut kills, mut runs, mut starts, mut records) = (0, 0, 0, 0);
    // Said now, because a failure below says no more than what went wrong.
    say(&format!("kill: TOW_SEED={seed}"));

    while kills < wanted {
        let mut scene = Scene::new(&program, &mut chance);
        let mut begun = false;
        loop {
            let arguments: &[&str] =
                if begun { &["resume", "@latest"] } else { &["run", "towpath.yml"] };
            let moment = chance.within(MOMENTS_MS);
            let life = (kills < wanted).then(|| Duration::from_millis(moment));
            match scene.live(arguments, life) {
                Ended::Killed => {
                    kills += 1;
                    begun = true;
                }
                // It was killed before it had begun the run.
                Ended::Exit(NOT_FOUND) if begun && scene.seen.is_empty() => begun = false,
                Ended::Exit(DONE) => break,
                // It was killed after it had ended the run.
                Ended::Exit(NOTHING_TO_DO) if begun => break,
                Ended::Exit(code) => panic!("`tow` ended with {code}: {}", scene.said()),
            }
        }
        scene.check();
        runs += 1;
        starts += scene.starts;
        records += scene.seen.len();
    }

    say(&format!(
        "kill: {kills} kills, {starts} starts, {runs} runs of {} jobs, {records} records; \
         TOW_SEED={seed}",
        STAGES * JOBS_PER_STAGE
    ));
}

/// Says something that the test harness does not swallow.
fn say(line: &str) {
    let mut out = std::io::stderr().lock();
    writeln!(out, "{line}").expect("a reader");
}
