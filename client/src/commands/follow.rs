//! Following a run until it comes to rest, and drawing it on the way: what `run`, `resume` and
//! `watch` share.

mod gate;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gate::AtGate;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use towpath_engine::{
    captured, codec,
    event::{Fact, RunEvent},
    ids::{Digest, JobName, RunId},
    job::JobState,
    run::{Phase, Run},
    time::Timestamp,
};
use towpath_proto::v1;
use towpath_server::{Clock as _, LOCAL_WORKER_PREFIX, SystemClock};
use towpath_worker::{AttemptsError, Stay, Stop, Worked, WorkerError, WorkerOptions, work};

pub(crate) use crate::signals::Signals;

use super::{Desk, Finished, events};
use crate::{
    cli::Output,
    connect::Server,
    exit,
    failure::Failure,
    render::{
        board::{self, LastLines},
        plain, safe,
        screen::Screen,
    },
};

/// How often a moving picture is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Records that belong together come together: a pause of this length means that there are no more.
const MORE_WITHIN: Duration = Duration::from_millis(50);
/// Lines of a failed job's output that are shown.
const TAIL_LINES: usize = 10;
/// Failed jobs whose output is shown.
const TAILS_MAX: usize = 3;

/// What to follow, and whether to work on it.
pub(crate) struct Follow {
    pub(crate) run: RunId,
    pub(crate) short_id: String,
    /// Events up to this version are not news.
    pub(crate) known: u64,
    /// Run its jobs in this process, this many at once.
    pub(crate) slots: Option<u32>,
    /// Stay at a gate until somebody opens it elsewhere.
    pub(crate) wait: bool,
    /// What this worker offers.
    pub(crate) tags: Vec<String>,
}

/// The moment it is, for drawing.
pub(crate) fn now() -> Timestamp {
    SystemClock.now()
}

/// The state of run `id` and its version.
pub(crate) async fn snapshot(server: &Server, id: &str) -> Result<(Run, u64), Failure> {
    let request = v1::GetRunRequest { run: id.to_owned() };
    let mut parts = server.runs().read_snapshot(request).await?.into_inner();
    let (mut version, mut bytes) = (0, Vec::new());
    while let Some(part) = parts.next().await {
        let v1::SnapshotPart { version: shown, content } = part?;
        version = shown;
        bytes.extend_from_slice(&content);
    }
    let run = Run::from_snapshot(&bytes).map_err(|_| {
        Failure::new(
            "VERSION_MISMATCH",
            "the server keeps runs in another form",
            "Use the same version of `tow` on both sides.",
        )
    })?;
    Ok((run, version))
}

/// Works on a run to its end. When the process that keeps the store goes away, this one keeps it.
pub(crate) async fn work_on(desk: &Desk, mut server: Server, mut what: Follow) -> Finished {
    loop {
        let finished = follow(desk, &server, &what).await;
        let lost = finished.as_ref().is_err_and(Failure::is_unreachable) && !server.is_ours();
        let aged = finished.as_ref().is_err_and(Failure::is_aged);
        let server_is_remote = server.is_remote();
        server.close().await;
        if !lost {
            return finished;
        }
        server = if server_is_remote {
            if !aged {
                desk.say("The server went away; the run goes on when it is back.");
            }
            Server::reach_again(&desk.url()).await?
        } else {
            desk.say("The process that kept the store has ended; this one goes on.");
            Server::reach(&desk.url()).await?
        };
        let request = v1::GetRunRequest { run: what.run.to_string() };
        what.known = server.runs().get_run(request).await?.into_inner().version;
    }
}

/// Follows a run until it has ended, waits for a person, or is left alone.
pub(crate) async fn follow(desk: &Desk, server: &Server, follow: &Follow) -> Finished {
    server.listen();
    let stop = Stop::default();
    // A server that was named as one has workers of its own.
    let slots = follow.slots.filter(|_| !server.is_remote());
    let mut worker = slots.map(|slots| begin_work(server, follow, slots, stop.clone()));
    let (run, known) = if follow.known == 0 {
        (Run::default(), 0)
    } else {
        snapshot(server, follow.run.as_str()).await?
    };
    let request = v1::FollowRequest { run: follow.run.to_string(), after: known, follow: true };
    let mut records = server.log().follow(request).await?.into_inner();
    let mut show = Show::new(desk, server, run, follow);
    show.begin()?;
    let mut signals = Signals::new()?;
    let mut interrupted = false;
    let mut ticks = tokio::time::interval(DRAW_EVERY);
    let finished = loop {
        if let Some(code) = exit::of_phase(show.run.phase()) {
            break Ok(code);
        }
        if show.waits_for_a_person() && !interrupted && (worker.is_some() || !follow.wait) {
            // An approval may be on its way already, with `--yes` even in the same append.
            if let Ok(record) = tokio::time::timeout(MORE_WITHIN, records.next()).await {
                match heard(record) {
                    Ok(record) => show.take(&record)?,
                    Err(failure) => break Err(failure),
                }
                continue;
            }
            match show.at_gate(follow.wait, &mut signals).await? {
                AtGate::Leave => break Ok(exit::AT_GATE),
                AtGate::Decided | AtGate::Wait => {}
            }
        }
        tokio::select! {
            biased;
            record = records.next() => match heard(record) {
                Ok(record) => show.take(&record)?,
                Err(failure) => break Err(failure),
            },
            () = signals.next() => {
                if slots.is_none() {
                    break Ok(exit::INTERRUPTED);
                }
                if interrupted {
                    desk.say("Ending the running jobs.");
                    stop.kill.cancel();
                } else {
                    let running = show.run.counts().running;
                    desk.say(&format!(
                        "Stopping: {running} running jobs finish first. Ctrl-C again ends them."
                    ));
                    stop.drain.cancel();
                }
                interrupted = true;
            }
            worked = wait_for(&mut worker) => {
                worker = None;
                match worked {
                    Ok(_) if interrupted => break Ok(exit::INTERRUPTED),
                    Ok(_) => {}
                    Err(WorkerError::Attempts(AttemptsError::InUse { .. })) => desk.say(
                        "Another process is working on this run; watching it.",
                    ),
                    Err(error) => break Err(worker_failure(&error)),
                }
            }
            _ = ticks.tick() => show.draw()?,
        }
    };
    stop.drain.cancel();
    if let Some(mut worker) = worker {
        // Everything has ended or waits for a person: the worker holds nothing any more.
        drop(tokio::time::timeout(Duration::from_secs(30), &mut worker).await);
    }
    show.end().await?;
    if matches!(finished, Ok(exit::INTERRUPTED)) && server.is_remote() {
        desk.say(&format!("The run goes on. `tow watch {}` follows it.", follow.short_id));
    }
    if matches!(finished, Ok(exit::INTERRUPTED)) && slots.is_some() {
        desk.say(&format!("Stopped. `tow resume {}` goes on.", follow.short_id));
    }
    finished
}

/// The next record, or why there is none.
fn heard(record: Option<Result<v1::Record, tonic::Status>>) -> Result<v1::Record, Failure> {
    let advice = "Nothing that was acknowledged is lost; `tow resume` goes on.";
    let gone = || Failure::new("UNREACHABLE", "the server went away", advice);
    Ok(record.ok_or_else(gone)??)
}

fn begin_work(server: &Server, follow: &Follow, slots: u32, stop: Stop) -> JoinHandle<Worked> {
    let options = WorkerOptions {
        job: None,
        name: format!("{LOCAL_WORKER_PREFIX}{}", follow.run),
        slots,
        tags: follow.tags.clone(),
        run: Some(follow.run.to_string()),
        attempts: server.folder().join("attempts").join(follow.run.as_str()),
        bearer: None,
        file_remotes: false,
        keep_work: false,
        stay: Stay::default(),
    };
    tokio::spawn(work(server.channel(), options, stop))
}

/// The end of the worker; never, if there is none.
async fn wait_for(worker: &mut Option<JoinHandle<Worked>>) -> Worked {
    match worker {
        Some(task) => match task.await {
            Ok(worked) => worked,
            Err(_) => Err(Box::new(tonic::Status::internal("the worker broke")).into()),
        },
        None => std::future::pending().await,
    }
}

fn worker_failure(error: &WorkerError) -> Failure {
    match error {
        WorkerError::Session(status) => Failure::from((**status).clone()),
        WorkerError::Attempts(error) => Failure::new(
            "STORE_UNAVAILABLE",
            error.to_string(),
            "The folder of the store must be writable, and on a disk with room.",
        ),
    }
}

/// What is shown of a run.
struct Show<'a> {
    desk: &'a Desk,
    server: &'a Server,
    run: Run,
    short_id: String,
    screen: Screen,
    /// Lines that scroll up with the next drawing.
    lines: Vec<String>,
    /// The newest output of what runs.
    last: Arc<Mutex<LastLines>>,
    /// Gates that the person at this terminal was asked about.
    asked: Vec<Digest>,
    live: bool,
    headed: bool,
}

impl<'a> Show<'a> {
    fn new(desk: &'a Desk, server: &'a Server, run: Run, follow: &Follow) -> Self {
        Self {
            live: desk.style.live && desk.output() == Output::Text,
            short_id: follow.short_id.clone(),
            screen: Screen::default(),
            lines: Vec::new(),
            last: Arc::default(),
            asked: Vec::new(),
            headed: false,
            desk,
            server,
            run,
        }
    }

    /// Whatever ran before we came is shown as running.
    fn begin(&mut self) -> Result<(), Failure> {
        let running: Vec<JobName> = self.run.leased().map(|job| job.plan.name.clone()).collect();
        for job in running {
            self.listen(job);
        }
        self.draw()
    }

    fn waits_for_a_person(&self) -> bool {
        *self.run.phase() == Phase::Running && !self.run.can_move() && self.run.counts().at_gate > 0
    }

    fn take(&mut self, record: &v1::Record) -> Result<(), Failure> {
        let unreadable = |what: String| {
            let what = format!("record {}: {what}", record.position);
            Failure::new("LOG_DAMAGED", what, "docs/errors/ says how to go on.")
        };
        let fact = codec::decode(&record.payload).map_err(|error| unreadable(error.to_string()))?;
        self.run.evolve(&fact).map_err(|error| unreadable(error.to_string()))?;
        match self.desk.output() {
            Output::Jsonl => events::print(record)?,
            Output::Json => {}
            Output::Text if self.live => self.tell(&fact),
            Output::Text => {
                if let Some(line) = plain::line(record.position, &fact, &self.run) {
                    self.desk.print(&(line + "\n"))?;
                }
            }
        }
        Ok(())
    }

    /// What scrolls up for good because of `fact`.
    fn tell(&mut self, fact: &Fact) {
        let Some(job) = fact.event.job().and_then(|job| self.run.job(job.as_str())) else {
            if let RunEvent::RunAborted { root } = &fact.event {
                let line = format!("  Aborted, because {} failed.", safe(root.as_str()));
                self.lines.push(self.desk.style.fit(&line, self.desk.style.width));
            }
            return;
        };
        let (name, style) = (job.plan.name.clone(), &self.desk.style);
        let failed_try = matches!(fact.event, RunEvent::JobAttemptFailed { .. });
        if matches!(fact.event, RunEvent::JobLeased { .. }) {
            self.listen(name);
        } else if let RunEvent::GateApproved { missing, .. } = &fact.event {
            let did = if *missing > 0 { "approved" } else { "opened" };
            let by = self.run.approver(fact);
            let line = format!("    Gate of {} {did} by {by}.", safe(name.as_str()));
            self.lines.push(style.fit(&line, style.width));
        } else if let RunEvent::GateVoided { because, .. } = &fact.event {
            let (name, why) = (safe(name.as_str()), safe(&because.words()));
            let line = format!("    What was approved at {name} is void: {why}.");
            self.lines.push(style.fit(&line, style.width));
        } else if failed_try || job.state.is_over() {
            self.lines.push(board::ended_line(job, style));
        }
    }

    /// Keeps the newest line that `job` prints, as long as it runs.
    fn listen(&self, job: JobName) {
        if !self.live {
            return;
        }
        let request = v1::ReadOutputRequest {
            run: self.run.header().map(|header| header.run.to_string()).unwrap_or_default(),
            job: job.to_string(),
            attempt: 0,
            follow: true,
        };
        let (mut runs, last) = (self.server.runs(), Arc::clone(&self.last));
        tokio::spawn(async move {
            let Ok(chunks) = runs.read_output(request).await else { return };
            let mut chunks = chunks.into_inner();
            while let Some(Ok(v1::OutputChunk { content })) = chunks.next().await {
                let newest = captured::lines(&content).filter_map(Result::ok).last();
                if let Some(line) = newest {
                    let text = captured::printable(line.bytes, false);
                    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                    last.insert(job.to_string(), text.trim().replace('\t', " "));
                }
            }
            last.lock().unwrap_or_else(PoisonError::into_inner).remove(job.as_str());
        });
    }

    fn draw(&mut self) -> Result<(), Failure> {
        if !self.live || self.run.header().is_none() {
            return Ok(());
        }
        let style = &self.desk.style;
        if !std::mem::replace(&mut self.headed, true) {
            self.lines.insert(0, board::head(&self.run, &self.short_id, style));
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let block = board::moving(&self.run, &last, now(), style);
        let lines = std::mem::take(&mut self.lines);
        Ok(self.screen.draw(&mut io::stdout().lock(), &lines, block)?)
    }

    /// Leaves the final picture behind.
    async fn end(&mut self) -> Result<(), Failure> {
        if self.desk.output() == Output::Json {
            let request = v1::GetRunRequest { run: self.short_id.clone() };
            let run = self.server.runs().get_run(request).await?.into_inner();
            return self.desk.json(&super::status::RunJson::from(run));
        }
        if self.live {
            self.draw()?;
            self.screen.clear(&mut io::stdout().lock())?;
            self.desk.print(&(board::foot(&self.run, now(), &self.desk.style) + "\n"))?;
        }
        if self.desk.output() == Output::Text {
            self.show_failures().await?;
        }
        Ok(())
    }

    /// The last lines of what failed, and how to see more.
    async fn show_failures(&self) -> Result<(), Failure> {
        let failed = |state: &JobState| matches!(state, JobState::Failed | JobState::TimedOut);
        let jobs: Vec<_> = self.run.jobs().iter().filter(|job| failed(&job.state)).collect();
        for job in jobs.iter().take(TAILS_MAX) {
            let name = safe(job.plan.name.as_str());
            self.desk.say(&format!("\n{name}: {}", board::note(job)));
            let run = self.short_id.clone();
            let output = super::logs::whole_output(self.server, &run, job.plan.name.as_str()).await;
            let lines: Vec<String> = captured::lines(&output.unwrap_or_default())
                .filter_map(Result::ok)
                .map(|line| captured::printable(line.bytes, false))
                .collect();
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                self.desk
                    .say(&format!("  {} {line}", if self.desk.style.ascii { "|" } else { "│" }));
            }
            let quoted = towpath_engine::expression::quoted(job.plan.name.as_str());
            self.desk.say(&format!("  tow logs {quoted} --run {run}"));
        }
        if jobs.len() > TAILS_MAX {
            self.desk.say(&format!("… and {} more failed.", jobs.len() - TAILS_MAX));
        }
        Ok(())
    }
}
