//! Following a run until it comes to rest, and drawing it on the way: what `run`, `resume` and
//! `watch` share.

mod gate;

use std::{
    io::{self, IsTerminal as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gate::AtGate;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tonic::Streaming;
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
        visible::wrapped,
    },
};

/// How often a moving picture is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Records that belong together come together: a pause of this length means that there are no more.
const MORE_WITHIN: Duration = Duration::from_millis(50);
/// How long a stream may take to say why it ends, or what was recorded last.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(2);
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
    // A server that was named as one has workers of its own.
    let slots = follow.slots.filter(|_| !server.is_remote());
    let mut host = Host::begin(server, follow, slots);
    let (run, known) = if follow.known == 0 {
        (Run::default(), 0)
    } else {
        snapshot(server, follow.run.as_str()).await?
    };
    let request = v1::FollowRequest { run: follow.run.to_string(), after: known, follow: true };
    let mut records = server.log().follow(request).await?.into_inner();
    let mut show = Show::new(desk, server, run, follow);
    show.begin();
    let mut signals = Signals::new()?;
    let mut ticks = tokio::time::interval(DRAW_EVERY);
    let finished = loop {
        if let Some(code) = exit::of_phase(show.run.phase()) {
            break Ok(code);
        }
        if let Some(why) = show.newly_unread()
            && host.interrupt(&mut show, Some(&why))
        {
            break Ok(exit::INTERRUPTED);
        }
        if show.waits_for_a_person() && !host.interrupted && (host.works() || !follow.wait) {
            // An approval may be on its way already, with `--yes` even in the same append.
            if let Ok(record) = tokio::time::timeout(MORE_WITHIN, records.next()).await {
                match heard(record).and_then(|record| show.take(&record)) {
                    Ok(()) => continue,
                    Err(failure) => break Err(failure),
                }
            }
            let at_gate = tokio::select! {
                at_gate = show.at_gate(follow.wait, &mut signals) => at_gate,
                () = server.stopped() => Err(why_stopped(&mut records).await),
            };
            match at_gate {
                Ok(AtGate::Leave) => break Ok(exit::AT_GATE),
                Ok(AtGate::Decided | AtGate::Wait) => {}
                Err(failure) => break Err(failure),
            }
        }
        tokio::select! {
            biased;
            record = records.next() => {
                if let Err(failure) = heard(record).and_then(|record| show.take(&record)) {
                    break Err(failure);
                }
            }
            // The commit of a lease is nobody's request: no answer and no record says that it
            // failed, and a run that cannot be recorded would be waited for forever.
            () = server.stopped() => break Err(why_stopped(&mut records).await),
            () = signals.next() => {
                if host.interrupt(&mut show, None) {
                    break Ok(exit::INTERRUPTED);
                }
            }
            worked = host.ended() => match worked {
                Ok(_) if host.interrupted => break Ok(exit::INTERRUPTED),
                Ok(_) => {}
                Err(WorkerError::Attempts(AttemptsError::InUse { .. })) => {
                    host.others_work = true;
                    show.say("Another process is working on this run; watching it.");
                }
                Err(error) => break Err(worker_failure(&error)),
            },
            _ = ticks.tick() => show.draw(),
        }
    };
    let finished = finished.map_err(|failure| resumable(failure, &follow.short_id));
    host.end(&finished).await;
    if matches!(finished, Ok(exit::INTERRUPTED)) {
        show.catch_up(&mut records).await;
    }
    // A failure says more than whatever the picture cannot show because of it.
    let shown = show.end().await;
    let code = finished?;
    shown?;
    if code == exit::INTERRUPTED {
        let id = &follow.short_id;
        desk.say(&if host.is_of_others(server) {
            format!("The run goes on. `tow watch {id}` follows it.")
        } else {
            format!("Stopped. `tow resume {id}` goes on.")
        });
    }
    Ok(code)
}

/// The next record, or why there is none.
fn heard(record: Option<Result<v1::Record, tonic::Status>>) -> Result<v1::Record, Failure> {
    let advice = "Nothing that was acknowledged is lost; `tow resume` goes on.";
    let gone = || Failure::new("UNREACHABLE", "the server went away", advice);
    Ok(record.ok_or_else(gone)??)
}

/// Why the store takes nothing more: the stream's last word, if that comes.
async fn why_stopped(records: &mut Streaming<v1::Record>) -> Failure {
    let last_word = async {
        loop {
            match records.next().await {
                // Recorded before the commit that failed.
                Some(Ok(_)) => {}
                Some(Err(status)) => return Some(Failure::from(status)),
                None => return None,
            }
        }
    };
    let said = tokio::time::timeout(LAST_WORD_WITHIN, last_word).await.ok().flatten();
    said.unwrap_or_else(|| {
        Failure::new("STORE_UNAVAILABLE", "the store stopped because a commit failed", "")
    })
}

/// `failure`, with how this run goes on if it is the store's.
fn resumable(failure: Failure, short_id: &str) -> Failure {
    if failure.code != "STORE_UNAVAILABLE" {
        return failure;
    }
    failure.with_advice(format!(
        "Nothing after what was shown is recorded, and jobs that run are left running. Mend what \
         the message names (room on the disk, a device with errors); then `tow resume {short_id}` \
         takes them up."
    ))
}

/// The worker of this process, while it has one.
struct Host {
    task: Option<JoinHandle<Worked>>,
    stop: Stop,
    /// It was told to stop: by a signal, or because nobody reads the output any more.
    interrupted: bool,
    /// The run is worked on elsewhere on this machine.
    others_work: bool,
}

impl Host {
    fn begin(server: &Server, follow: &Follow, slots: Option<u32>) -> Self {
        let stop = Stop::default();
        let task = slots.map(|slots| begin_work(server, follow, slots, stop.clone()));
        Self { task, stop, interrupted: false, others_work: false }
    }

    fn works(&self) -> bool {
        self.task.is_some()
    }

    /// Whether the run goes on without this process.
    fn is_of_others(&self, server: &Server) -> bool {
        self.others_work || server.is_remote()
    }

    /// Stops a step further: first what runs may finish, then it is ended. `true`: there is
    /// nothing to wait for.
    fn interrupt(&mut self, show: &mut Show<'_>, why: Option<&str>) -> bool {
        // Whoever only watches, or found the run in the hands of another process, just leaves.
        if self.task.is_none() {
            return true;
        }
        if self.interrupted {
            show.say("Ending the running jobs.");
            self.stop.kill.cancel();
        } else {
            let running = show.run.counts().running;
            let why = why.map(|why| format!("{why}. ")).unwrap_or_default();
            show.say(&format!(
                "{why}Stopping: {running} running jobs finish first. Ctrl-C again ends them."
            ));
            self.stop.drain.cancel();
            show.stopping = true;
        }
        self.interrupted = true;
        false
    }

    /// The end of the worker; never, if there is none.
    async fn ended(&mut self) -> Worked {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let worked = task.await;
        self.task = None;
        worked.unwrap_or_else(|_| Err(Box::new(tonic::Status::internal("the worker broke")).into()))
    }

    /// Ends the worker, whatever `finished` the run for this process.
    async fn end(&mut self, finished: &Finished) {
        self.stop.drain.cancel();
        let Some(mut worker) = self.task.take() else { return };
        let stopped = finished.as_ref().is_err_and(|failure| failure.code == "STORE_UNAVAILABLE");
        if stopped {
            // It would wait for its reports to be recorded, which a stopped store never does. Its
            // jobs go on as after a kill, and the next worker takes them up.
            worker.abort();
            return;
        }
        // Everything has ended or waits for a person: the worker holds nothing any more.
        drop(tokio::time::timeout(Duration::from_secs(30), &mut worker).await);
    }
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
    /// The newest event that was taken in.
    version: u64,
    live: bool,
    headed: bool,
    /// The worker of this process takes nothing new.
    stopping: bool,
    unread: Unread,
}

/// Whether standard output still goes anywhere.
enum Unread {
    Read,
    /// Writing failed, which nobody was told yet; why.
    Newly(String),
    Known,
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
            version: follow.known,
            headed: false,
            stopping: false,
            unread: Unread::Read,
            desk,
            server,
            run,
        }
    }

    /// Writes to standard output, as long as that works. A reader that went away (`| head -1`)
    /// must not end the process: jobs would go on without anybody to record their end.
    fn write(&mut self, write: impl FnOnce(&mut Self) -> Result<(), Failure>) {
        if !matches!(self.unread, Unread::Read) {
            return;
        }
        if let Err(failure) = write(self) {
            self.unread = Unread::Newly(if failure.is_broken_pipe() {
                "Nobody reads the output any more".to_owned()
            } else {
                format!("The output cannot be written ({})", failure.message())
            });
        }
    }

    /// Why standard output goes nowhere; once.
    fn newly_unread(&mut self) -> Option<String> {
        match std::mem::replace(&mut self.unread, Unread::Known) {
            Unread::Newly(why) => Some(why),
            Unread::Known => None,
            Unread::Read => {
                self.unread = Unread::Read;
                None
            }
        }
    }

    /// Says something beside the picture: above the block that moves, which would erase it.
    fn say(&mut self, text: &str) {
        let shown = self.live && self.headed && matches!(self.unread, Unread::Read);
        if !shown || !io::stderr().is_terminal() {
            self.desk.say(text);
            return;
        }
        self.lines.extend(wrapped(text, self.desk.style.width).into_iter().map(str::to_owned));
        self.draw();
    }

    /// Takes in what was recorded while the worker came to its end, so that the last picture is
    /// not an old one.
    async fn catch_up(&mut self, records: &mut Streaming<v1::Record>) {
        let newest = async {
            let request = v1::GetRunRequest { run: self.server_run() };
            let newest = self.server.runs().get_run(request).await.ok()?.into_inner().version;
            while self.version < newest {
                let record = records.next().await?.ok()?;
                self.take(&record).ok()?;
            }
            Some(())
        };
        // What is missing then is in the log, and is shown by `tow status`.
        drop(tokio::time::timeout(LAST_WORD_WITHIN, newest).await);
    }

    fn server_run(&self) -> String {
        self.run.header().map(|header| header.run.to_string()).unwrap_or_default()
    }

    /// Whatever ran before we came is shown as running.
    fn begin(&mut self) {
        let running: Vec<JobName> = self.run.leased().map(|job| job.plan.name.clone()).collect();
        for job in running {
            self.listen(job);
        }
        self.draw();
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
        self.version = record.version;
        match self.desk.output() {
            Output::Jsonl => self.write(|_| events::print(record)),
            Output::Json => {}
            Output::Text if self.live => self.tell(&fact),
            Output::Text => {
                if let Some(line) = plain::line(record.position, &fact, &self.run) {
                    self.write(|show| show.desk.print(&(line + "\n")));
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
            run: self.server_run(),
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

    fn draw(&mut self) {
        if !self.live || self.run.header().is_none() {
            return;
        }
        let style = &self.desk.style;
        if !std::mem::replace(&mut self.headed, true) {
            self.lines.insert(0, board::head(&self.run, &self.short_id, style));
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let block = board::moving(&self.run, &last, now(), style, self.stopping);
        drop(last);
        let lines = std::mem::take(&mut self.lines);
        self.write(|show| Ok(show.screen.draw(&mut io::stdout().lock(), &lines, block)?));
    }

    /// Takes the block that moves away.
    fn clear(&mut self) {
        self.write(|show| Ok(show.screen.clear(&mut io::stdout().lock())?));
    }

    /// Leaves the final picture behind.
    async fn end(&mut self) -> Result<(), Failure> {
        if self.desk.output() == Output::Json {
            let request = v1::GetRunRequest { run: self.short_id.clone() };
            let run = self.server.runs().get_run(request).await?.into_inner();
            self.write(|show| show.desk.json(&super::status::RunJson::from(run)));
            return Ok(());
        }
        if self.live {
            self.draw();
            self.clear();
            let foot = board::foot(&self.run, now(), &self.desk.style) + "\n";
            self.write(|show| show.desk.print(&foot));
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
