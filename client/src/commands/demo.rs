//! `tow demo`: a real run in a folder of its own, by this very program started repeatedly, one
//! time killed in the middle. What it claims in the end, it has counted.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::process::{Child, Command};
use towpath_engine::code::ErrorCode;
use towpath_engine::time::duration_words;
use towpath_pipeline::file::{Parsed, parse};

use super::{App, CommandResult, validate::counted};
use crate::{exit, failure::Failure};

const FILE_NAME: &str = "towpath.yml";
const FILE: &str = include_str!("../../../examples/demo/towpath.yml");
const SCRIPT_NAME: &str = "demo.sh";
const SCRIPT: &str = include_str!("../../../examples/demo/demo.sh");
/// Every job adds a line here when its work is done.
const WORK_LOG: &str = "ran.log";
/// The job behind the gate.
const GATE: &str = "cutover";

/// The first `tow` is killed once this many jobs have done their work and another is at it.
const DONE_BEFORE_KILL: usize = 3;
/// A machine on which that takes longer is too slow for a demo.
const KILL_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The jobs that are at it have really begun by then. Shorter than any of them.
const INTO_THE_WORK: Duration = Duration::from_millis(200);

/// Run a small migration in a temporary folder, kill it, and resume it
///
/// Five tables move to another layout in eleven jobs. In the middle `tow` is killed with SIGKILL
/// and started again; in the end the work that was done is counted. Takes a few seconds, needs sh
/// and awk, and leaves nothing behind.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Keep the folder
    #[arg(long)]
    keep: bool,
    /// Stop at the gate
    #[arg(long)]
    no_approve: bool,
}

/// A demo under way.
struct Demo<'d> {
    app: &'d App,
    folder: TempDir,
    began: Instant,
}

/// Shows what this program is for.
pub(crate) async fn demo(app: &App, args: DemoArgs) -> CommandResult {
    let folder = tempfile::Builder::new().prefix("tow-demo-").tempdir()?;
    let demo = Demo { app, folder, began: Instant::now() };
    match demo.play(args.no_approve).await {
        Ok(()) if !args.keep => Ok(exit::DONE),
        Ok(()) => {
            let folder = demo.folder.keep();
            let folder = folder.display();
            app.print(&format!("\nThe folder is kept. Look around: cd {folder} && tow status\n"))?;
            Ok(exit::DONE)
        }
        Err(failure) if failure.is(ErrorCode::Interrupted) => Err(failure),
        Err(failure) => {
            // The folder is needed to find the reason.
            app.say(&format!("The folder is kept: {}", demo.folder.keep().display()));
            Err(failure)
        }
    }
}

impl Demo<'_> {
    async fn play(&self, stays_at_gate: bool) -> Result<(), Failure> {
        self.prepare()?;
        let jobs = job_names()?;
        self.step(&format!(
            "A small shop moves to another layout: 5 tables, {}, 3 at once.\n  In {}",
            counted(jobs.len(), "job"),
            self.folder.path().display()
        ))?;
        self.step("tow run")?;
        self.run_and_kill().await?;

        self.step("tow resume   (a new process: it adopts the running jobs and continues)")?;
        self.expect(&["resume"], exit::AT_GATE).await?;
        self.step("tow status")?;
        self.expect(&["status"], exit::AT_GATE).await?;
        if stays_at_gate || !self.asks()? {
            self.step("The gate is not approved.")?;
            return self.conclude(&jobs, &[GATE]);
        }
        self.expect(&["approve", GATE, "--comment", "tow demo"], exit::DONE).await?;
        self.step("tow resume")?;
        self.expect(&["resume"], exit::DONE).await?;
        self.conclude(&jobs, &[])
    }

    fn prepare(&self) -> Result<(), Failure> {
        for (name, text) in [(FILE_NAME, FILE), (SCRIPT_NAME, SCRIPT)] {
            let path = self.folder.path().join(name);
            fs::write(&path, text).map_err(|error| Failure::file(&path, &error))?;
        }
        Ok(())
    }

    /// Announces what comes next.
    fn step(&self, what: &str) -> Result<(), Failure> {
        let arrow = if self.app.style.ascii { "->" } else { "→" };
        self.app.print(&format!("\n{} {}\n", self.app.style.bold(arrow), what))
    }

    /// This program once more, in the folder and with the store of the demo.
    fn tow(&self, args: &[&str]) -> Result<Child, Failure> {
        let folder = self.folder.path();
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(args)
            .current_dir(folder)
            .env("TOW_STORE", folder.join(".towpath"))
            .env("TOW_ACTOR", self.app.actor())
            .stdin(Stdio::null())
            // A demo that fails must not leave a `tow` that works in a folder which is being
            // deleted.
            .kill_on_drop(true);
        if self.app.global.ascii {
            command.env("TOW_ASCII", "1");
        }
        Ok(command.spawn()?)
    }

    /// Starts the run, and kills it where it hurts.
    async fn run_and_kill(&self) -> Result<(), Failure> {
        let mut child = self.tow(&["run", FILE_NAME, "--parallelism", "3"])?;
        let (started, mut ripe) = (Instant::now(), None);
        loop {
            tokio::select! {
                status = child.wait() => {
                    let how = said(status?);
                    return Err(unexpected(format!("`tow run` ended by itself: {how}")));
                }
                _ = tokio::signal::ctrl_c() => return self.interrupted(child).await,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let (done, at_work) = (self.work_done().len(), self.at_work());
            // Killed only while a job is running: otherwise the demo would not show that a running
            // job is adopted.
            if done < DONE_BEFORE_KILL || at_work == 0 {
                ripe = None;
            } else if ripe.get_or_insert_with(Instant::now).elapsed() >= INTO_THE_WORK {
                child.start_kill()?;
                child.wait().await?;
                return self.tell_of_the_kill(done, at_work);
            }
            if started.elapsed() > KILL_WITHIN {
                return Err(unexpected("the jobs make no progress".to_owned()));
            }
        }
    }

    fn tell_of_the_kill(&self, done: usize, at_work: usize) -> Result<(), Failure> {
        self.step(&format!(
            "Killed: `tow` got SIGKILL and could not save anything.\n  {} had done their work, {} \
             in the middle of it. Each success was on disk before the next job began.",
            counted(done, "job"),
            if at_work == 1 { "1 was".to_owned() } else { format!("{at_work} were") },
        ))
    }

    /// Runs `tow` to its end, which must be `code`.
    async fn expect(&self, args: &[&str], code: u8) -> Result<(), Failure> {
        let mut child = self.tow(args)?;
        let status = tokio::select! {
            status = child.wait() => status?,
            _ = tokio::signal::ctrl_c() => return self.interrupted(child).await,
        };
        if status.code() == Some(code.into()) {
            return Ok(());
        }
        let (command, how) = (args.join(" "), said(status));
        Err(unexpected(format!("`tow {command}` should end with exit code {code}, but: {how}")))
    }

    /// Ctrl-C reaches the other `tow` as well, which then ends by itself.
    async fn interrupted(&self, mut child: Child) -> Result<(), Failure> {
        child.wait().await?;
        Err(Failure::new(ErrorCode::Interrupted, "the demo was interrupted", ""))
    }

    /// Whether the gate shall be opened: asks a person, if there is one.
    fn asks(&self) -> Result<bool, Failure> {
        if !io::stdin().is_terminal() || !self.app.style.live {
            self.step(&format!(
                "tow approve {GATE}   (no terminal to ask at, so the demo approves)"
            ))?;
            return Ok(true);
        }
        let arrow = if self.app.style.ascii { "->" } else { "→" };
        self.app.print(&format!("\n{arrow} Open the gate of `{GATE}`? [y/N] "))?;
        io::stdout().flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        let yes = ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
        if yes {
            self.step(&format!("tow approve {GATE}"))?;
        }
        Ok(yes)
    }

    /// How often each job did its work, by its own account.
    fn work_done(&self) -> BTreeMap<String, usize> {
        let log = fs::read_to_string(self.folder.path().join(WORK_LOG)).unwrap_or_default();
        tally(&log)
    }

    /// Jobs that are in the middle of their work: each has a draft.
    fn at_work(&self) -> usize {
        let entries = fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let is_draft = |name: &str| name.starts_with("draft.");
        entries.filter(|entry| entry.file_name().to_str().is_some_and(is_draft)).count()
    }

    /// Compares what was done with what should have been done, and says it.
    fn conclude(&self, jobs: &[String], left_out: &[&str]) -> Result<(), Failure> {
        // The jobs write the file themselves, so this count does not trust the log that it is to
        // prove.
        let wrong = deviations(jobs, left_out, &self.work_done());
        if !wrong.is_empty() {
            return Err(unexpected(wrong.join("; ")));
        }
        let done = jobs.len() - left_out.len();
        let live = self.folder.path().join("live").is_dir();
        if live == left_out.contains(&GATE) {
            return Err(unexpected(format!("`{GATE}` and the folder live/ disagree")));
        }
        self.step(&format!(
            "Counted in {WORK_LOG}: {done} of {} did their work, each exactly once, although `tow` \
             was killed.",
            counted(jobs.len(), "job")
        ))?;
        let took = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.app.print(&format!("\nDone in {}.\n", duration_words(took)))
    }
}

/// The jobs of the demo's own file.
fn job_names() -> Result<Vec<String>, Failure> {
    match parse(FILE_NAME, FILE) {
        Ok(Parsed { plan, .. }) => {
            Ok(plan.jobs.into_iter().map(|job| job.name.to_string()).collect())
        }
        Err(problems) => {
            let message = format!("the demo's own file has {}", problems.summary());
            Err(Failure::new(ErrorCode::EngineBug, message, "Please report it."))
        }
    }
}

/// Lines of the work log by job; a line without its end is not there yet.
fn tally(log: &str) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    // A killed job may have written half a line.
    for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        if let Some(job) = line.split_whitespace().next() {
            *tally.entry(job.to_owned()).or_default() += 1;
        }
    }
    tally
}

/// What did not happen exactly as often as it should have.
fn deviations(jobs: &[String], left_out: &[&str], done: &BTreeMap<String, usize>) -> Vec<String> {
    let mut wrong = Vec::new();
    for job in jobs {
        let wanted = usize::from(!left_out.contains(&job.as_str()));
        let times = done.get(job).copied().unwrap_or(0);
        if times != wanted {
            wrong.push(format!("`{job}` did its work {times} times instead of {wanted}"));
        }
    }
    let unknown = done.keys().filter(|job| !jobs.contains(job));
    wrong.extend(unknown.map(|job| format!("`{job}` is not a job of the demo")));
    wrong
}

fn said(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit code {code}"),
        None => status.to_string(),
    }
}

fn unexpected(message: String) -> Failure {
    Failure::new(ErrorCode::Unexpected, message, "Please report it, with what is printed above.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_by_whole_lines() {
        let done = tally("generate 1\npreflight 1\ngenerate 2\ncopy-cus");
        assert_eq!(done, BTreeMap::from([("generate".to_owned(), 2), ("preflight".to_owned(), 1)]));
    }

    #[test]
    fn every_deviation_is_named() {
        let jobs = job_names().unwrap();
        assert_eq!((jobs.len(), jobs.last().map(String::as_str)), (11, Some(GATE)));
        let mut done: BTreeMap<String, usize> = jobs.iter().map(|job| (job.clone(), 1)).collect();
        assert_eq!(deviations(&jobs, &[], &done), Vec::<String>::new());
        assert_eq!(
            deviations(&jobs, &[GATE], &done),
            ["`cutover` did its work 1 times instead of 0"]
        );

        done.insert("generate".into(), 2);
        done.remove("cutover");
        done.insert("else".into(), 1);
        assert_eq!(deviations(&jobs, &[], &done).len(), 3);
    }
}
