//! `tow worker`.

use crate::credentials;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::watch;
use towpath_engine::code::ErrorCode;
use towpath_engine::event::FailureCause;
use towpath_engine::scheduler::LOCAL_WORKER_PREFIX;
use towpath_worker::{
    Adopted, AttemptsError, ConnectionState, Ended, SessionLimits, Stop, WorkerError,
    WorkerOptions, work,
};

use super::{App, CommandResult, duration};
use crate::{connect, exit, failure::Failure, render::safe, signals::Signals};

/// The exit code of a job that took too long, as that of `timeout`.
const TIMED_OUT: u8 = 124;

/// Run jobs for a server
///
/// Takes jobs of any run from the server of `--server` and runs them on this machine: in a folder
/// of their own with the files that the run brought along, or in the folder that the run names.
/// When the server cannot be reached the jobs continue, and their output and results are sent
/// later. SIGTERM and Ctrl-C let running jobs finish first, a second one ends them; if this process
/// is killed, its jobs continue and the next worker of the same name adopts them.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("single").args(["once", "acquire"]))]
pub(crate) struct WorkerArgs {
    /// The worker's name; unique among the connected workers
    #[arg(long, env = "TOW_WORKER_NAME", hide_env_values = true, value_name = "NAME")]
    name: String,
    /// Most jobs at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096), value_name = "N")]
    slots: u32,
    /// What this machine offers to jobs with `tags`
    #[arg(
        long,
        env = "TOW_TAGS",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "TAG"
    )]
    tags: Vec<String>,
    /// The worker's certificate, which proves its name; see `tow pki issue --worker`
    #[arg(
        long,
        requires = "tls_key",
        env = "TOW_TLS_CERT",
        hide_env_values = true,
        value_name = "FILE"
    )]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate
    #[arg(
        long,
        requires = "tls_cert",
        env = "TOW_TLS_KEY",
        hide_env_values = true,
        value_name = "FILE"
    )]
    tls_key: Option<PathBuf>,
    /// The folder of running attempts [default: ~/.local/state/towpath/attempts/NAME]
    #[arg(long, value_name = "DIR")]
    attempts: Option<PathBuf>,
    /// Allow `file://` sources: repositories on this machine
    #[arg(long)]
    allow_file_remotes: bool,
    /// Keep the folders of failed attempts, below `kept/` of the folder of `--attempts`
    #[arg(long)]
    keep_work: bool,
    /// Take one job, and end when it is recorded
    #[arg(long, conflicts_with = "max_jobs")]
    once: bool,
    /// Take this job and no other, whatever tags it asks for, and end when it is recorded; waits
    /// until it can be run
    #[arg(long, conflicts_with_all = ["max_jobs", "once"], value_name = "RUN/JOB")]
    acquire: Option<String>,
    /// End with the exit code of the job: 128 and the number of a signal, 124 if it took too long
    #[arg(long, requires = "single")]
    reflect_exit: bool,
    /// Take this many jobs, and end when they are recorded
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    max_jobs: Option<u32>,
    /// End after this time without work, such as `5m`
    #[arg(long, value_name = "DURATION")]
    idle_timeout: Option<String>,
    /// How long a worker that is stopping waits for an unreachable server once no job runs; results
    /// that it could not report stay on its disk
    #[arg(long, default_value = "15m", value_name = "DURATION")]
    report_timeout: String,
}

impl WorkerArgs {
    /// The worker's own certificate and key.
    pub(crate) fn certificate(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }
}

/// Works until a signal arrives.
pub(crate) async fn worker(app: &App, args: WorkerArgs) -> CommandResult {
    let Some(server) = &app.global.server else {
        let advice = "Name the server with `--server HOST:PORT` or `TOW_SERVER`.";
        return Err(Failure::new(ErrorCode::Usage, "a worker needs a server", advice));
    };
    // Refused here too, before the server does: the folder of attempts below would already be
    // created.
    if args.name.starts_with(LOCAL_WORKER_PREFIX) {
        let message = format!("names that begin with `{LOCAL_WORKER_PREFIX}` belong to `tow run`");
        return Err(Failure::new(ErrorCode::Usage, message, "Give the worker another name."));
    }
    let idle = args.idle_timeout.as_deref().map(duration).transpose()?;
    let acquired = args.acquire.as_deref().map(run_and_job).transpose()?;
    let single = args.once || acquired.is_some();
    let (link, links) = watch::channel(ConnectionState::New);
    let options = WorkerOptions {
        attempts: args.attempts.unwrap_or_else(|| default_folder(&args.name)),
        name: args.name,
        slots: app.jobs_at_once(args.slots),
        tags: args.tags,
        run: acquired.as_ref().map(|(run, _)| run.clone()),
        job: acquired.map(|(_, job)| job),
        bearer: credentials::bearer(),
        file_remotes: args.allow_file_remotes,
        keep_work: args.keep_work,
        stay: SessionLimits {
            reconnect: true,
            // `--once` and `--acquire` are bounds of one job, so that the end of the worker has one
            // implementation.
            jobs_max: if single { Some(1) } else { args.max_jobs },
            idle: idle.map(Duration::from_millis),
            report_within: Some(Duration::from_millis(duration(&args.report_timeout)?)),
            answer_within: None,
            link,
        },
    };
    let (channel, address) = connect::dial(server)?;
    let stop = Stop::default();
    // A task of its own: the loop below must see signals also while the worker waits for its disk.
    let mut working = tokio::spawn(work(channel, options.clone(), stop.clone()));
    let mut news = News { app, address, name: options.name, links, lost: false };
    let mut signals = Signals::new()?;
    let mut asked = 0;
    loop {
        tokio::select! {
            worked = &mut working => return match worked {
                Ok(Ok(last)) if args.reflect_exit => Ok(reflected(last.as_ref())),
                Ok(Ok(_)) => Ok(exit::DONE),
                Ok(Err(error)) => Err(failure(&error)),
                Err(_) => Err(Failure::new(ErrorCode::Unexpected, "the worker failed", "Please report it.")),
            },
            () = news.tell() => {}
            () = signals.next() => {
                asked += 1;
                match asked {
                    1 => {
                        app.say("Stopping: running jobs finish first; a second signal ends them.");
                        stop.drain.cancel();
                    }
                    2 => {
                        app.say("Ending the running jobs; a third signal leaves them alone.");
                        stop.kill.cancel();
                    }
                    _ => return Ok(exit::INTERRUPTED),
                }
            }
        }
    }
}

/// `RUN/JOB` taken apart.
fn run_and_job(asked: &str) -> Result<(String, String), Failure> {
    let parts = asked.split_once('/').filter(|(run, job)| !run.is_empty() && !job.is_empty());
    parts.map(|(run, job)| (run.to_owned(), job.to_owned())).ok_or_else(|| {
        let message = format!("`{}` does not name a job of a run", safe(asked));
        Failure::new(
            ErrorCode::Usage,
            message,
            "Write `--acquire RUN/JOB`, such as `@latest/copy`.",
        )
    })
}

/// The exit code that says how a job ended.
fn reflected(last: Option<&Adopted>) -> u8 {
    let Some(Adopted::Ended(ended)) = last else {
        // A lost attempt has no exit code of its script, and must not look like a success to a
        // cluster scheduler.
        return if last.is_none() { exit::NOTHING_TO_DO } else { exit::FAILED };
    };
    match ended {
        Ended::Succeeded { .. } => exit::DONE,
        Ended::Cancelled { .. } => exit::CANCELLED,
        Ended::Failed { cause, .. } => match cause {
            FailureCause::ExitCode(code) => u8::try_from(*code).unwrap_or(exit::FAILED),
            FailureCause::Signal(number) => {
                u8::try_from(*number).map_or(exit::FAILED, |number| number.saturating_add(128))
            }
            FailureCause::TimedOut(_) => TIMED_OUT,
            FailureCause::NotStarted(_)
            | FailureCause::OutputUnusable(_)
            | FailureCause::ReportInvalid(_)
            | FailureCause::Lost(_) => exit::FAILED,
        },
    }
}

/// Prints changes of the connection to the terminal.
struct News<'a> {
    app: &'a App,
    address: String,
    name: String,
    links: watch::Receiver<ConnectionState>,
    /// The lost session was reported: further attempts to connect say the same.
    lost: bool,
}

impl News<'_> {
    /// Prints the next change; never returns when there are no more.
    async fn tell(&mut self) {
        // The worker has dropped its side and is ending: its result comes from the other branch of
        // the loop.
        if self.links.changed().await.is_err() {
            return std::future::pending().await;
        }
        let (name, address) = (safe(&self.name), safe(&self.address));
        let link = self.links.borrow_and_update().clone();
        let known = std::mem::replace(&mut self.lost, matches!(link, ConnectionState::Lost(_)));
        match &link {
            ConnectionState::New => {}
            ConnectionState::Open(0) => self.app.say(&format!("{name} is connected to {address}.")),
            ConnectionState::Open(held) => self
                .app
                .say(&format!("{name} is connected to {address} and continues {held} jobs.")),
            ConnectionState::Paused(why) => self
                .app
                .say(&format!("{name} takes no jobs until it can run them again: {}.", safe(why))),
            ConnectionState::Lost(_) if known => {}
            ConnectionState::Lost(why) => self.app.say(&format!(
                "No session with {address}: {}. Connecting again; running jobs continue.",
                safe(why)
            )),
        }
    }
}

/// A folder for the worker of this name alone.
fn default_folder(name: &str) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = || set("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = set("XDG_STATE_HOME").map(PathBuf::from).or_else(home).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let mut escaped = String::new();
    for c in name.chars() {
        // A worker's name may contain slashes and dots, and must not name a folder elsewhere.
        if plain(c) { escaped.push(c) } else { escaped.push_str(&format!("%{:x}", u32::from(c))) }
    }
    state.join("towpath/attempts").join(escaped)
}

fn failure(error: &WorkerError) -> Failure {
    match error {
        WorkerError::Session(status) => Failure::from((**status).clone()),
        WorkerError::Unreported { .. } => Failure::new(
            ErrorCode::Unreachable,
            error.to_string(),
            "They are kept in the folder of `--attempts`: start a worker of the same name there.",
        ),
        WorkerError::Attempts(AttemptsError::InUse { .. }) => Failure::new(
            ErrorCode::AttemptsInUse,
            error.to_string(),
            "Give every worker of a machine a name, and a folder, of its own.",
        ),
        WorkerError::Attempts(AttemptsError::Unusable { folder, source }) => {
            Failure::file(folder, source)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_job_is_named_by_its_run_and_its_name_which_may_have_slashes() {
        let named = |asked| run_and_job(asked).ok();
        assert_eq!(named("@latest/copy"), Some(("@latest".to_owned(), "copy".to_owned())));
        assert_eq!(named("ab12/etl/copy"), Some(("ab12".to_owned(), "etl/copy".to_owned())));
        assert_eq!([named("copy"), named("/copy"), named("ab12/")], [None, None, None]);
    }

    #[test]
    fn a_worker_can_end_as_its_job_did() {
        let failed = |cause| Adopted::Ended(Ended::Failed { cause, ran_ms: 1 });
        assert_eq!(reflected(Some(&failed(FailureCause::ExitCode(7)))), 7);
        assert_eq!(reflected(Some(&failed(FailureCause::Signal(9)))), 137);
        assert_eq!(reflected(Some(&failed(FailureCause::TimedOut(1)))), 124);
        assert_eq!(reflected(Some(&failed(FailureCause::ExitCode(1_000)))), exit::FAILED);
        assert_eq!(reflected(Some(&Adopted::NeverStarted)), exit::FAILED);
        assert_eq!(reflected(None), exit::NOTHING_TO_DO);
    }

    #[test]
    fn names_become_folders_of_their_own() {
        let name = |name| default_folder(name).file_name().unwrap().to_owned();
        assert_eq!(name("eu-2"), "eu-2");
        assert_eq!(name("../a"), "%2e%2e%2fa");
        assert_ne!(name("a/b"), name("a_b"));
    }
}
