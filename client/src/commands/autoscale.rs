//! `tow autoscale`.

use std::{
    io,
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::process::{Child, Command};
use tokio_stream::StreamExt as _;
use towpath_engine::code::ErrorCode;
use towpath_proto::v1;

use super::{App, CommandResult, duration, workers};
use crate::{args::Output, connect::ServerConnection, exit, failure::Failure, signals::Signals};

/// Longest time between two checks: launched commands end without the server knowing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long nothing is launched after a launch failed; twice as long after each one more.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause after launches that failed.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Start a worker for every job that waits for one
///
/// Follows what waits at the server of `--server`, and for each job that a worker with `--tags`
/// could take runs the command of `--launch` once, with `sh`. The command gets TOW_SERVER,
/// TOW_WORKER_NAME and TOW_TAGS in its environment, which `tow worker --once --idle-timeout 1m`
/// reads. A worker is counted while its command runs or while it is connected. Started workers
/// continue when this program ends.
#[derive(Debug, clap::Args)]
pub(crate) struct AutoscaleArgs {
    /// Workers that run even when no job waits
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=4096), value_name = "N")]
    min: u32,
    /// Most workers at once
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096), value_name = "N")]
    max: u32,
    /// The command that starts one worker
    #[arg(long, value_name = "CMD")]
    launch: String,
    /// What the workers offer to jobs with `tags`
    #[arg(
        long,
        env = "TOW_TAGS",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "TAG"
    )]
    tags: Vec<String>,
    /// For a command that submits a worker and ends: how long the worker may take to connect, such
    /// as `5m`
    #[arg(long, value_name = "DURATION")]
    start_within: Option<String>,
    /// Check once, start the missing workers, wait until the commands have ended
    #[arg(long)]
    once: bool,
}

/// What is said of each launch. Names are stable.
#[derive(Serialize)]
struct LaunchedJson<'a> {
    launched: &'a str,
    pending: u64,
    living: u32,
}

/// One worker that was launched.
struct Launched {
    name: String,
    at: Instant,
    /// The command, as long as it runs.
    command: Option<Child>,
    /// It has been connected.
    seen: bool,
    connected: bool,
    /// It holds a job.
    busy: bool,
}

/// What was launched and lives, and what it takes to launch more.
struct Fleet<'a> {
    app: &'a App,
    server: &'a str,
    args: AutoscaleArgs,
    start_within: Duration,
    /// The beginning of the names of all workers of this fleet.
    prefix: String,
    count: u64,
    launched: Vec<Launched>,
    /// Looks in a row that found a launch that failed.
    failures: u32,
    not_before: Instant,
}

/// Starts workers until a signal arrives.
pub(crate) async fn autoscale(app: &App, args: AutoscaleArgs) -> CommandResult {
    let Some(address) = &app.global.server else {
        let advice = "Name the server with `--server HOST:PORT` or `TOW_SERVER`.";
        return Err(Failure::new(ErrorCode::Usage, "workers need a server", advice));
    };
    let mut fleet = Fleet::new(app, address, args)?;
    let mut signals = Signals::new()?;
    // The first connection must succeed: a wrong address is a mistake of the user and not an
    // outage.
    let mut server = app.server().await?;
    if fleet.args.once {
        fleet.look(&server).await?;
        tokio::select! {
            ended = fleet.ended() => return ended.map(|()| exit::DONE),
            () = signals.next() => return Ok(exit::INTERRUPTED),
        }
    }
    loop {
        match fleet.follow(&server, &mut signals).await {
            Err(failure) if failure.is_unreachable() => {
                app.say("The server does not answer. Trying again; nothing is started.");
            }
            Err(failure) => return Err(failure),
            Ok(()) => return Ok(exit::DONE),
        }
        server = tokio::select! {
            server = reach(app) => server?,
            () = signals.next() => return Ok(exit::DONE),
        };
    }
}

/// Waits for the server to come back, however long that takes.
async fn reach(app: &App) -> Result<ServerConnection, Failure> {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match app.server().await {
            Err(failure) if failure.is_unreachable() => {}
            reached => return reached,
        }
    }
}

fn gone() -> Failure {
    Failure::new(ErrorCode::Unreachable, "the server ended the stream", "Try again.")
}

impl<'a> Fleet<'a> {
    fn new(app: &'a App, server: &'a str, args: AutoscaleArgs) -> Result<Self, Failure> {
        if args.min > args.max {
            let message = format!("--min {} is more than --max {}", args.min, args.max);
            return Err(Failure::new(
                ErrorCode::Usage,
                message,
                "Name a `--max` that is not smaller.",
            ));
        }
        let within = args.start_within.as_deref().map(duration).transpose()?.unwrap_or_default();
        // Names of an earlier `tow autoscale` may still be connected, and a name can be connected
        // once.
        let unique = uuid::Uuid::now_v7().simple().to_string();
        Ok(Self {
            app,
            server,
            args,
            start_within: Duration::from_millis(within),
            prefix: format!("auto-{}", unique.get(20..).unwrap_or(&unique)),
            count: 0,
            launched: Vec::new(),
            failures: 0,
            not_before: Instant::now(),
        })
    }

    /// Looks whenever demand changes, and every now and then.
    async fn follow(
        &mut self,
        server: &ServerConnection,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let mut changes = self.demand(server).await?;
        loop {
            self.look(server).await?;
            tokio::select! {
                change = changes.next() => drop(change.ok_or_else(gone)??),
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = signals.next() => return Ok(()),
            }
        }
    }

    async fn demand(
        &self,
        server: &ServerConnection,
    ) -> Result<tonic::Streaming<v1::WatchDemandResponse>, Failure> {
        let request = v1::WatchDemandRequest { tags: self.args.tags.clone(), all: false };
        Ok(server.workers().watch_demand(request).await?.into_inner())
    }

    /// Launches what is missing now.
    async fn look(&mut self, server: &ServerConnection) -> Result<(), Failure> {
        // Workers first: a worker that gets a job in between is then still counted as idle, and so
        // one worker less is launched, never one more.
        self.count_the_living(&workers::all(server).await?);
        let first = self.demand(server).await?.next().await.ok_or_else(gone)??;
        let pending = first.demand.unwrap_or_default().sets.iter().map(|set| set.pending).sum();
        if Instant::now() < self.not_before {
            return Ok(());
        }
        for _ in 0..self.missing(pending) {
            self.launch(pending)?;
        }
        Ok(())
    }

    fn living(&self) -> u32 {
        u32::try_from(self.launched.len()).unwrap_or(u32::MAX)
    }

    /// How many workers to launch while `pending` jobs wait.
    fn missing(&self, pending: u64) -> u32 {
        // Idle or still starting: each of them will take one of the waiting jobs, so none is
        // launched for that one.
        let coming = self.launched.iter().filter(|launched| !launched.busy).count() as u64;
        let wanted = u32::try_from(pending.saturating_sub(coming)).unwrap_or(u32::MAX);
        let living = self.living();
        wanted.max(self.args.min.saturating_sub(living)).min(self.args.max.saturating_sub(living))
    }

    /// Removes workers that have ended, and records whether launches failed.
    fn count_the_living(&mut self, workers: &[v1::Worker]) {
        let (mut failed, mut worked) = (None, false);
        for launched in &mut self.launched {
            let worker = workers.iter().find(|worker| worker.name == launched.name);
            launched.connected = worker.is_some();
            launched.busy = worker.is_some_and(|worker| worker.running > 0);
            launched.seen |= launched.connected;
            worked |= launched.connected;
            let ended = launched.command.as_mut().map(Child::try_wait);
            match ended {
                Some(Ok(Some(status))) if status.success() => worked = true,
                // Only a worker that never connected counts as a failed launch. One that ran jobs
                // and then failed is no reason to wait.
                Some(Ok(Some(status))) if !launched.seen => {
                    failed = Some((launched.name.clone(), status.to_string()));
                    launched.seen = true;
                }
                Some(Ok(Some(_)) | Err(_)) => {}
                Some(Ok(None)) | None => continue,
            }
            launched.command = None;
        }
        let within = self.start_within;
        self.launched.retain(|launched| {
            // For `sbatch` and the like: the command has ended and the worker has not connected
            // yet.
            let comes = !launched.seen && launched.at.elapsed() < within;
            launched.command.is_some() || launched.connected || comes
        });
        if let Some((name, how)) = failed {
            self.back_off(&format!("The command for {name} ended with {how}."));
        } else if worked {
            self.failures = 0;
        }
    }

    fn back_off(&mut self, why: &str) {
        // The shift is bounded, because it would overflow after a night of failures.
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Instant::now() + pause;
        self.app.say(&format!("{why} Nothing is started for {} s.", pause.as_secs()));
    }

    fn launch(&mut self, pending: u64) -> Result<(), Failure> {
        self.count += 1;
        let name = format!("{}-{}", self.prefix, self.count);
        let mut command = Command::new("sh");
        command
            .args(["-c", &self.args.launch])
            .env("TOW_SERVER", self.server)
            .env("TOW_WORKER_NAME", &name)
            // Inherited tags would differ from `--tags`, and the worker would take other jobs than
            // were counted.
            .env_remove("TOW_TAGS")
            .stdin(Stdio::null())
            // Standard output belongs to the JSON lines of this program.
            .stdout(io::stderr())
            // Ctrl-C is meant for this program; what it started continues.
            .process_group(0);
        if !self.args.tags.is_empty() {
            command.env("TOW_TAGS", self.args.tags.join(","));
        }
        let command = match command.spawn() {
            Ok(child) => Some(child),
            Err(error) => {
                self.back_off(&format!("`sh` could not be started: {error}."));
                return Ok(());
            }
        };
        let (at, seen, connected, busy) = (Instant::now(), false, false, false);
        self.launched.push(Launched { name: name.clone(), at, command, seen, connected, busy });
        let living = self.living();
        match self.app.output() {
            Output::Text => {
                let (max, jobs) =
                    (self.args.max, if pending == 1 { "job waits" } else { "jobs wait" });
                self.app.say(&format!("Started {name}, {living} of {max}; {pending} {jobs}."));
            }
            Output::Json | Output::Jsonl => {
                self.app.json(&LaunchedJson { launched: &name, pending, living })?;
            }
        }
        Ok(())
    }

    /// Waits until every command has ended; one that failed is a failure.
    async fn ended(&mut self) -> Result<(), Failure> {
        let mut failed = None;
        for launched in &mut self.launched {
            let Some(command) = &mut launched.command else { continue };
            let status = command.wait().await?;
            if !status.success() {
                failed = Some(format!("the command for `{}` ended with {status}", launched.name));
            }
        }
        match failed {
            Some(message) => {
                let advice = "Try the command of `--launch` on its own, with the same environment.";
                Err(Failure::new(ErrorCode::LaunchFailed, message, advice))
            }
            None => Ok(()),
        }
    }
}
