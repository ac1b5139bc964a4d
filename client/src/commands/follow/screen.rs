//! What is shown of a run while it is followed: the block that moves, the lines that stay, and the
//! last picture.

use crate::clock::now;
use std::{
    io::{self, IsTerminal as _},
    sync::{Arc, Mutex, PoisonError},
};

use tokio_stream::StreamExt as _;
use towpath_engine::{
    captured_output,
    event::Fact,
    ids::{Digest, JobName},
    job::JobState,
    run::{Job, Run},
    views::{BoardChange, board_change},
};
use towpath_proto::{streams::Records, v1};
use towpath_wire::views;

use super::{Follow, LAST_WORD_WITHIN, stall::Stall, stream::apply};
use crate::{
    args::Output,
    commands::{App, events, logs},
    connect::ServerConnection,
    failure::Failure,
    json,
    render::{
        Style,
        board::{self, LastLines, Moving},
        plain, safe,
        screen::Screen,
        visible::wrapped,
    },
};

/// Lines of a failed job's output that are shown.
const TAIL_LINES: usize = 10;
/// Failed jobs whose output is shown.
const TAILS_MAX: usize = 3;

/// What is shown of a run.
pub(super) struct Show<'a> {
    pub(super) app: &'a App,
    pub(super) server: &'a ServerConnection,
    pub(super) run: Run,
    pub(super) short_id: String,
    pub(super) screen: Screen,
    /// Lines that scroll up with the next drawing.
    pub(super) lines: Vec<String>,
    /// The newest output of what runs.
    pub(super) last: Arc<Mutex<LastLines>>,
    /// Gates that the person at this terminal was asked about.
    pub(super) asked: Vec<Digest>,
    /// The newest event that was applied.
    pub(super) version: u64,
    pub(super) live: bool,
    pub(super) headed: bool,
    /// The worker of this process takes nothing new.
    pub(super) stopping: bool,
    /// Why nothing runs.
    pub(super) stall: Option<Stall>,
    pub(super) unread: Unread,
}

/// Whether standard output still goes anywhere.
pub(super) enum Unread {
    Read,
    /// Why writing failed, until it is reported.
    Newly(String),
    Known,
}

impl<'a> Show<'a> {
    pub(super) fn new(
        app: &'a App,
        server: &'a ServerConnection,
        run: Run,
        follow: &Follow,
    ) -> Self {
        Self {
            live: app.style.live && app.output() == Output::Text,
            short_id: follow.short_id.clone(),
            screen: Screen::default(),
            lines: Vec::new(),
            last: Arc::default(),
            asked: Vec::new(),
            version: follow.known,
            headed: false,
            stopping: false,
            stall: None,
            unread: Unread::Read,
            app,
            server,
            run,
        }
    }

    /// How to draw in the window as it is now: people narrow it while a run continues, and a row
    /// that is longer than the window would be left behind at every drawing.
    pub(super) fn style(&self) -> Style {
        self.app.style.measured()
    }

    /// Writes to standard output, as long as that works. A reader that has closed its end (`| head
    /// -1`) must not end the process: jobs would continue without a process that records their end.
    fn write(&mut self, write: impl FnOnce(&mut Self) -> Result<(), Failure>) {
        if !matches!(self.unread, Unread::Read) {
            return;
        }
        if let Err(failure) = write(self) {
            self.unread = Unread::Newly(if failure.is_broken_pipe() {
                "The reader of the output has closed it".to_owned()
            } else {
                format!("The output cannot be written ({})", failure.message())
            });
        }
    }

    /// Why standard output goes nowhere; once.
    pub(super) fn newly_unread(&mut self) -> Option<String> {
        match std::mem::replace(&mut self.unread, Unread::Known) {
            Unread::Newly(why) => Some(why),
            Unread::Known => None,
            // Nothing failed so far: the state is put back as it was.
            Unread::Read => {
                self.unread = Unread::Read;
                None
            }
        }
    }

    /// Says something beside the picture: above the block that moves, which would erase it.
    pub(super) fn say(&mut self, text: &str) {
        // A message between two drawings would be overwritten by the next one, so it becomes a line
        // above the picture.
        let shown = self.live && self.headed && matches!(self.unread, Unread::Read);
        if !shown || !io::stderr().is_terminal() {
            self.app.say(text);
            return;
        }
        self.lines.extend(wrapped(text, self.style().width).into_iter().map(str::to_owned));
        self.draw();
    }

    /// Notes why nothing runs. The live view shows it for as long as it holds; without one it is said
    /// once, since a run that waits for days must not fill a log.
    pub(super) fn note_stall(&mut self, stall: Option<Stall>) {
        let reason = |stall: &Option<Stall>| stall.as_ref().map(|stall| stall.reason);
        let is_news = reason(&stall) != reason(&self.stall);
        self.stall = stall;
        let is_seen = self.live && io::stderr().is_terminal();
        if let Some(stall) = self.stall.as_ref().filter(|_| is_news && !is_seen) {
            self.app.say(&format!("Waiting: {}", stall.sentence));
        }
    }

    /// Applies what was recorded while the worker came to its end, so that the last picture is
    /// not an old one.
    pub(super) async fn catch_up(&mut self, records: &mut Records) {
        let newest = async {
            let newest = self.server.run(&self.server_run()).await.ok()?.version;
            while self.version < newest {
                let record = records.next().await?.ok()?;
                self.take(&record).ok()?;
            }
            Some(())
        };
        // What is missing then is in the log, and is shown by `tow status`.
        // A server that is ending may not answer any more, and the exit must not wait for it.
        drop(tokio::time::timeout(LAST_WORD_WITHIN, newest).await);
    }

    fn server_run(&self) -> String {
        self.run.header().map(|header| header.run.to_string()).unwrap_or_default()
    }

    /// The run, as it is drawn.
    fn run_message(&self) -> v1::Run {
        views::run(&self.run, self.version, 0, &self.short_id)
    }

    /// A job of it, as it is drawn.
    fn message(&self, job: &Job) -> v1::Job {
        views::job(&self.run, job, v1::JobView::Basic)
    }

    /// Whatever ran before we came is shown as running.
    pub(super) fn begin(&mut self) {
        let running: Vec<JobName> = self.run.leased().map(|job| job.plan.name.clone()).collect();
        for job in running {
            self.listen(job);
        }
        self.draw();
    }

    pub(super) fn take(&mut self, record: &v1::Record) -> Result<(), Failure> {
        let fact = apply(&mut self.run, record)?;
        self.version = record.version;
        match self.app.output() {
            Output::Jsonl => self.write(|_| events::print(record)),
            Output::Json => {}
            Output::Text if self.live => self.tell(&fact),
            Output::Text => {
                if let Some(line) = plain::line(record.position, &fact, &self.run) {
                    self.write(|show| show.app.print(&(line + "\n")));
                }
            }
        }
        Ok(())
    }

    /// What scrolls up for good because of `fact`.
    fn tell(&mut self, fact: &Fact) {
        let style = &self.style();
        let fitted = |line: String| style.fit(&line, style.width);
        let name = |job: &Job| safe(job.plan.name.as_str());
        let Some(change) = board_change(&self.run, fact) else { return };
        let line = match change {
            BoardChange::AttemptBegan(job) => return self.listen(job.plan.name.clone()),
            BoardChange::AttemptEnded(job) => board::ended_line(&self.message(job), style),
            BoardChange::GateApproved { job, by, open } => {
                let did = if open { "opened" } else { "approved" };
                fitted(format!("    Gate of {} {did} by {by}.", name(job)))
            }
            BoardChange::GateVoided { job, cause } => {
                let why = safe(&cause.words());
                fitted(format!("    The approvals at {} are void: {why}.", name(job)))
            }
            BoardChange::RunAborted { root } => {
                fitted(format!("  Aborted, cause {} failed.", safe(root.as_str())))
            }
        };
        self.lines.push(line);
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
        // Ends with the attempt's stream. Its errors are not shown: the last line of a job is only
        // decoration.
        tokio::spawn(async move {
            let Ok(chunks) = runs.read_output(request).await else { return };
            let mut chunks = chunks.into_inner();
            while let Some(Ok(v1::ReadOutputResponse { content })) = chunks.next().await {
                let newest = captured_output::lines(&content).filter_map(Result::ok).last();
                if let Some(line) = newest {
                    let text = captured_output::printable(line.bytes, false);
                    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                    last.insert(job.to_string(), text.trim().replace('\t', " "));
                }
            }
            last.lock().unwrap_or_else(PoisonError::into_inner).remove(job.as_str());
        });
    }

    pub(super) fn draw(&mut self) {
        if !self.live || self.run.header().is_none() {
            return;
        }
        let style = &self.style();
        // The head needs the name of the pipeline, which is known with the first record only.
        if !std::mem::replace(&mut self.headed, true) {
            self.lines.insert(0, board::head(&self.run_message(), style));
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let stall = self.stall.as_ref().map(|stall| stall.sentence.as_str());
        let about = Moving { lines: &last, stall, stopping: self.stopping };
        let block = board::moving(&self.run, &about, now(), style);
        drop(last);
        let lines = std::mem::take(&mut self.lines);
        self.write(|show| Ok(show.screen.draw(&mut io::stdout().lock(), &lines, block)?));
    }

    /// Removes the moving block.
    pub(super) fn clear(&mut self) {
        self.write(|show| Ok(show.screen.clear(&mut io::stdout().lock())?));
    }

    /// Leaves the final picture behind.
    pub(super) async fn end(&mut self) -> Result<(), Failure> {
        if self.app.output() == Output::Json {
            let run = self.server.run(&self.short_id).await?;
            self.write(|show| show.app.json(&json::of(&run)));
            return Ok(());
        }
        if self.live {
            self.draw();
            self.clear();
            let foot = board::foot(&self.run_message(), now(), &self.style()) + "\n";
            self.write(|show| show.app.print(&foot));
        }
        if self.app.output() == Output::Text {
            self.show_failures().await?;
        }
        Ok(())
    }

    /// The last lines of what failed, and how to see more.
    async fn show_failures(&self) -> Result<(), Failure> {
        let failed = |state: &JobState| matches!(state, JobState::Failed | JobState::TimedOut);
        let jobs: Vec<_> = self.run.jobs().iter().filter(|job| failed(&job.state)).collect();
        // Each needs a request and up to ten lines; a run in which a thousand jobs failed has one
        // cause more often than a thousand.
        for job in jobs.iter().take(TAILS_MAX) {
            let name = safe(job.plan.name.as_str());
            self.app.say(&format!("\n{name}: {}", board::note(&self.message(job))));
            let run = self.short_id.clone();
            let output = logs::whole_output(self.server, &run, job.plan.name.as_str()).await;
            let lines: Vec<String> = captured_output::lines(&output.unwrap_or_default())
                .filter_map(Result::ok)
                .map(|line| captured_output::printable(line.bytes, false))
                .collect();
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                self.app.say(&format!("  {} {line}", if self.app.style.ascii { "|" } else { "│" }));
            }
            let quoted = towpath_engine::expression::quoted(job.plan.name.as_str());
            self.app.say(&format!("  tow logs {quoted} --run {run}"));
        }
        if jobs.len() > TAILS_MAX {
            self.app.say(&format!("… and {} more failed.", jobs.len() - TAILS_MAX));
        }
        Ok(())
    }
}
