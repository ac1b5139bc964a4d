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
        Unstarted::ByKeeper(error) => {
            attempts.forget(&script.run, &script.job, script.attempt);
            let why = format!("this worker cannot start the keeper of its scripts: {error}");
            // The next job would be lost for the same reason: it takes none until it has a keeper.
            attempts.disk().note(&why);
            Adopted::Lost(format!("its script was not started: {why}"))
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
    let keeper = attempts.reach_keeper(&page.kept.keeper).await;
    if let Some(keeper) = keeper.as_ref().filter(|_| !page.started) {
        // From then on it starts nothing that the worker before asked for. Until then nobody knows
        // whether this attempt never started: its request may still wait in the socket.
        keeper.answered().await;
    }
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
    /// This worker cannot write its own files.
    ByDisk(std::io::Error),
    /// This worker has no keeper that starts it.
    ByKeeper(std::io::Error),
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
    let keeper = attempts.keeper().map_err(Unstarted::ByKeeper)?;
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
    match keeper.send(&start).map_err(|error| error.kind()) {
        Err(kind @ ErrorKind::ArgumentListTooLong) => {
            return Err(Unstarted::ByJob(spawn_failed(&script.folder, &kind.into())));
        }
        Err(ErrorKind::QuotaExceeded) => {
            let why = "its keeper has not read what it was asked for";
            return Err(Unstarted::ByKeeper(std::io::Error::other(why)));
        }
        // A keeper that is gone is noticed by what watches the attempt.
        Ok(()) | Err(_) => {}
    }
    let page = LatestAttempt {
        kept,
        started: true,
        pid: None,
        born: None,
        exit: None,
        stop: None,
        forgotten: false,
    };
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
        (None, None) if !page.started => {
            Adopted::Lost("its script was not started: its keeper has ended before".to_owned())
        }
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
mod tests;
