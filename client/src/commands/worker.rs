//! `tow worker`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::watch;
use towpath_server::LOCAL_WORKER_PREFIX;
use towpath_worker::{AttemptsError, Link, Stay, Stop, WorkerError, WorkerOptions, work};

use super::{Desk, Finished, follow::Signals, serve::duration};
use crate::{connect, exit, failure::Failure, render::safe};

/// Run jobs for a server
///
/// Takes jobs of any run from the server of `--server` and runs them on this machine, in the folder
/// that the run names. When the server cannot be reached the jobs go on, and what they print and
/// how they end is told later. SIGTERM and Ctrl-C let running jobs finish first, a second one ends
/// them; if this process is killed, its jobs go on and the next worker of the same name takes them
/// up.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    /// What the worker is called; no two of one server at once
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
    /// Where running jobs are written down [default: ~/.local/state/towpath/attempts/NAME]
    #[arg(long, value_name = "DIR")]
    attempts: Option<PathBuf>,
    /// Take one job, and end when it is recorded
    #[arg(long, conflicts_with = "max_jobs")]
    once: bool,
    /// Take so many jobs, and end when they are recorded
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    max_jobs: Option<u32>,
    /// End when there was nothing to do for so long, such as `5m`
    #[arg(long, value_name = "DURATION")]
    idle_timeout: Option<String>,
}

impl WorkerArgs {
    /// The worker's own certificate and key.
    pub(crate) fn certificate(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }
}

/// Works until told to stop.
pub(crate) async fn worker(desk: &Desk, args: WorkerArgs) -> Finished {
    let Some(server) = &desk.global.server else {
        let advice = "Name the server with `--server HOST:PORT` or `TOW_SERVER`.";
        return Err(Failure::new("USAGE", "a worker needs a server", advice));
    };
    if args.name.starts_with(LOCAL_WORKER_PREFIX) {
        let message = format!("names that begin with `{LOCAL_WORKER_PREFIX}` belong to `tow run`");
        return Err(Failure::new("USAGE", message, "Give the worker another name."));
    }
    let idle = args.idle_timeout.as_deref().map(duration).transpose()?;
    let (link, links) = watch::channel(Link::New);
    let options = WorkerOptions {
        attempts: args.attempts.unwrap_or_else(|| default_folder(&args.name)),
        name: args.name,
        slots: args.slots,
        tags: args.tags,
        run: None,
        bearer: connect::bearer(),
        stay: Stay {
            reconnect: true,
            jobs_max: if args.once { Some(1) } else { args.max_jobs },
            idle: idle.map(Duration::from_millis),
            link,
        },
    };
    let (channel, address) = connect::dial(server)?;
    let stop = Stop::default();
    let mut working = tokio::spawn(work(channel, options.clone(), stop.clone()));
    let mut news = News { desk, address, name: options.name, links, lost: false };
    let mut signals = Signals::new()?;
    let mut asked = 0;
    loop {
        tokio::select! {
            worked = &mut working => return match worked {
                Ok(Ok(())) => Ok(exit::DONE),
                Ok(Err(error)) => Err(failure(&error)),
                Err(_) => Err(Failure::new("UNEXPECTED", "the worker broke", "Please report it.")),
            },
            () = news.tell() => {}
            () = signals.next() => {
                asked += 1;
                match asked {
                    1 => {
                        desk.say("Stopping: running jobs finish first; a second signal ends them.");
                        stop.drain.cancel();
                    }
                    2 => {
                        desk.say("Ending the running jobs; a third signal leaves them alone.");
                        stop.kill.cancel();
                    }
                    _ => return Ok(exit::INTERRUPTED),
                }
            }
        }
    }
}

/// Tells the person at the terminal how the worker stands to its server.
struct News<'a> {
    desk: &'a Desk,
    address: String,
    name: String,
    links: watch::Receiver<Link>,
    /// It was told that there is no session: every try more says the same.
    lost: bool,
}

impl News<'_> {
    /// Tells the next change; never comes back when there are no more.
    async fn tell(&mut self) {
        if self.links.changed().await.is_err() {
            return std::future::pending().await;
        }
        let (name, address) = (safe(&self.name), safe(&self.address));
        let link = self.links.borrow_and_update().clone();
        let known = std::mem::replace(&mut self.lost, matches!(link, Link::Lost(_)));
        match &link {
            Link::New => {}
            Link::Open(0) => self.desk.say(&format!("{name} is connected to {address}.")),
            Link::Open(held) => self
                .desk
                .say(&format!("{name} is connected to {address} and goes on with {held} jobs.")),
            Link::Lost(_) if known => {}
            Link::Lost(why) => self.desk.say(&format!(
                "No session with {address}: {}. Trying again; what runs goes on.",
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
        if plain(c) { escaped.push(c) } else { escaped.push_str(&format!("%{:x}", u32::from(c))) }
    }
    state.join("towpath/attempts").join(escaped)
}

fn failure(error: &WorkerError) -> Failure {
    match error {
        WorkerError::Session(status) => Failure::from((**status).clone()),
        WorkerError::Attempts(AttemptsError::InUse { .. }) => Failure::new(
            "ATTEMPTS_IN_USE",
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
    fn names_become_folders_of_their_own() {
        let name = |name| default_folder(name).file_name().unwrap().to_owned();
        assert_eq!(name("eu-2"), "eu-2");
        assert_eq!(name("../a"), "%2e%2e%2fa");
        assert_ne!(name("a/b"), name("a_b"));
    }
}
