//! Watches one attempt: reads its pipes, passes its output on, ends it when it must, and learns
//! how it ended.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    time::{sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use towpath_engine::captured_output::OutputSource;

use crate::{
    attempts::OutputPipes,
    capture::{Capture, OutputChunk},
    journal::{self, LatestAttempt, StopReason},
    output_pipe::{OutputPipe, PipeRead},
    process_group::{ProcessGroup, Unkept},
};

/// How long after a script's end its output may still trickle in, from what it left running.
const DRAIN_MAX: Duration = Duration::from_millis(50);
/// How long a keeper may take to end processes before this worker does it itself, and how long
/// their end is waited for once they were seen to be dead.
const DYING_MAX: Duration = Duration::from_secs(2);
/// How often processes that are to end are looked at: at first, and after a while.
const GROUP_PAUSE: Duration = Duration::from_millis(10);
const GROUP_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Most that is read from a pipe after everybody was killed: what a pipe can hold at most.
const LEFTOVER_BYTES_MAX: usize = 1024 * 1024;

/// An attempt being watched.
#[derive(Debug)]
pub(crate) struct Supervision<'a> {
    folder: PathBuf,
    pipes: OutputPipes,
    group: ProcessGroup,
    page: LatestAttempt,
    capture: Capture,
    /// `None`: nobody listens any more.
    lines: Option<&'a mpsc::Sender<OutputChunk>>,
    began: Instant,
    /// When SIGKILL follows the SIGTERM that was sent, or followed it.
    kill_at: Option<Instant>,
    killed: bool,
    /// No keeper has the attempt any more: it was released, or its keeper was killed.
    is_unkept: bool,
    /// Its keeper was found gone.
    keeper_gone: bool,
    /// When a group that was asked to end is looked at again, and how long after that.
    look_at: Option<Instant>,
    look_pause: Duration,
    /// Why there never was a script.
    unstarted: Option<Unstarted>,
}

/// The end of an attempt, before it is judged.
#[derive(Debug)]
pub(crate) struct ScriptEnd {
    pub(crate) page: LatestAttempt,
    /// Why there never was a script.
    pub(crate) unstarted: Option<Unstarted>,
    pub(crate) ran_ms: u64,
}

/// Why a keeper did not start a script, with the number of the system's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unstarted {
    /// The program cannot be started so.
    Program(i32),
    /// The attempt's own files cannot be used.
    Files(i32),
}

enum Happening<'a> {
    EndRecord(PipeRead),
    Output(OutputSource, PipeRead),
    Room(Option<mpsc::Permit<'a, OutputChunk>>),
    Cancelled,
    Due,
    KeeperGone,
}

impl<'a> Supervision<'a> {
    /// An attempt whose pipes are open already, wherever it was started.
    pub(crate) fn new(
        folder: PathBuf,
        pipes: OutputPipes,
        group: ProcessGroup,
        page: LatestAttempt,
        capture: Capture,
        lines: &'a mpsc::Sender<OutputChunk>,
        began: Instant,
    ) -> Self {
        Self {
            folder,
            pipes,
            group,
            page,
            capture,
            lines: Some(lines),
            began,
            kill_at: None,
            killed: false,
            is_unkept: false,
            keeper_gone: false,
            look_at: None,
            look_pause: GROUP_PAUSE,
            unstarted: None,
        }
    }

    /// Watches an attempt that has just been started.
    pub(crate) async fn run(self, cancel: CancellationToken) -> ScriptEnd {
        self.run_from(PipeRead::Nothing, cancel).await
    }

    /// Watches an attempt, given what its last pipe said when it was opened.
    pub(crate) async fn run_from(
        mut self,
        first: PipeRead,
        cancel: CancellationToken,
    ) -> ScriptEnd {
        if self.page.stop.is_some() {
            // Asked to end by a process that was killed over it. It has had its grace.
            self.kill_at = Some(Instant::now());
        }
        let watched = first != PipeRead::Closed && self.page.exit.is_none();
        let mut over = match first {
            PipeRead::Closed => true,
            PipeRead::Nothing | PipeRead::Bytes(_) => self.note_end(first),
        };
        self.is_unkept = first == PipeRead::Closed;
        while !over {
            over = match self.next(&cancel).await {
                Happening::EndRecord(took) => self.note_end(took),
                Happening::Output(source, took) => self.take_output(source, took),
                Happening::Room(permit) => self.pass_on(permit),
                Happening::Cancelled => self.stop(StopReason::Cancelled),
                Happening::Due => self.do_what_is_due(),
                Happening::KeeperGone => self.note_keeper_gone(),
            };
        }
        let ran_ms = match watched {
            true => elapsed_ms(self.began),
            false => self.page.ran_unwatched_ms(&self.folder),
        };
        self.close().await;
        ScriptEnd { page: self.page, unstarted: self.unstarted, ran_ms }
    }

    async fn next(&mut self, cancel: &CancellationToken) -> Happening<'a> {
        let due = self.due();
        let stopping = self.page.stop.is_some();
        // While a chunk waits for space, the pipes are not read: they fill, and the script waits.
        // Without this a script that prints faster than the disk takes would fill the memory.
        let lines = self.lines.filter(|_| self.capture.is_full());
        let reads = !self.capture.is_full() || self.lines.is_none();
        let keeper_gone = self.group.keeper_gone().filter(|_| !self.keeper_gone);
        let OutputPipes { out, err, end } = &mut self.pipes;
        tokio::select! {
            // The end of the script comes first, before a cancellation and a time limit: a script
            // that ended by itself is not reported as cancelled or timed out. Output comes last,
            // so that a script that never stops printing cannot outlive its time limit.
            biased;
            took = end.take(), if !self.is_unkept => Happening::EndRecord(took),
            () = cancel.cancelled(), if !stopping => Happening::Cancelled,
            () = wait_until(due), if due.is_some() => Happening::Due,
            () = cancelled(keeper_gone), if keeper_gone.is_some() => Happening::KeeperGone,
            permit = reserve(lines), if lines.is_some() => Happening::Room(permit),
            took = err.take(), if reads && !err.is_closed() => Happening::Output(OutputSource::Err, took),
            took = out.take(), if reads && !out.is_closed() => Happening::Output(OutputSource::Out, took),
        }
    }

    /// The next moment at which something must be done unasked.
    fn due(&self) -> Option<Instant> {
        let ends = match self.page.stop {
            Some(_) => self.kill_at,
            None => {
                let timeout = self.page.kept.timeout_ms.map(Duration::from_millis);
                timeout.and_then(|timeout| self.began.checked_add(timeout))
            }
        };
        let flush = self.capture.due().filter(|_| !self.capture.is_full());
        [ends, self.look_at, flush].into_iter().flatten().min()
    }

    fn do_what_is_due(&mut self) -> bool {
        let now = Instant::now();
        if self.capture.due().is_some_and(|due| due <= now) {
            self.capture.flush();
        }
        if self.look_at.is_some_and(|look_at| look_at <= now) {
            if self.group.is_empty() {
                return true;
            }
            self.look_at = Some(now + self.look_pause);
            self.look_pause = (2 * self.look_pause).min(GROUP_PAUSE_MAX);
        }
        let Some(kill_at) = self.kill_at else {
            let timeout = self.page.kept.timeout_ms.map(Duration::from_millis);
            let over = timeout.is_some_and(|timeout| now.duration_since(self.began) >= timeout);
            return over && self.stop(StopReason::TimedOut);
        };
        if kill_at > now {
            return false;
        }
        self.kill_at = Some(now + DYING_MAX);
        if self.killed {
            // Its keeper does not run at the moment, or the system holds the processes up. A report
            // now would let the job be leased beside them, so it is looked for their end instead.
            self.group.kill_without_keeper();
            return false;
        }
        self.group.kill();
        self.killed = true;
        // Also if its keeper never says that it has ended.
        self.look_at.get_or_insert(now);
        false
    }

    /// Asks the script to end, unless it has just done so by itself.
    fn stop(&mut self, stop: StopReason) -> bool {
        match self.pipes.end.take_now() {
            PipeRead::Nothing => {}
            took @ (PipeRead::Bytes(_) | PipeRead::Closed) => return self.note_end(took),
        }
        let newest = LatestAttempt::newest(&self.folder).ok().flatten();
        if let Some(exit) = newest.and_then(|page| page.exit) {
            self.page.exit = Some(exit);
            return true;
        }
        self.page.stop = Some(stop);
        // If it cannot be noted, it is done all the same.
        let _ = journal::stop(&self.folder, stop);
        let grace = Duration::from_millis(self.page.kept.grace_ms);
        self.kill_at = Instant::now().checked_add(grace);
        self.group.ask_to_end();
        false
    }

    /// The keeper said what became of the script, or has it no more. Returns whether all is over.
    fn note_end(&mut self, took: PipeRead) -> bool {
        match took {
            PipeRead::Nothing => self.page.exit.is_some(),
            PipeRead::Bytes(count) => {
                let said = std::str::from_utf8(self.pipes.end.bytes(count)).unwrap_or_default();
                match said_of(said.trim_end()) {
                    Some(Ok(code)) => self.page.exit = Some(code),
                    Some(Err(unstarted)) => self.unstarted = Some(unstarted),
                    None => {
                        // No keeper says that. A job can write to the pipe too, and may have filled
                        // it, so that its keeper could say nothing: the journal knows.
                        let newest = LatestAttempt::newest(&self.folder).ok().flatten();
                        self.page.exit = newest.and_then(|page| page.exit);
                        if self.page.exit.is_none() {
                            return false;
                        }
                    }
                }
                if self.page.stop.is_some() && self.unstarted.is_none() {
                    // Others of its group may still be busy ending, and have the same time for it.
                    self.look_at = Some(Instant::now());
                    return false;
                }
                true
            }
            PipeRead::Closed => {
                self.is_unkept = true;
                // The keeper was killed between its two notes, or before it could say anything here.
                // The journal is written first, so it may know more than the pipe.
                if let Ok(Some(newest)) = LatestAttempt::newest(&self.folder) {
                    self.page.exit = newest.exit.or(self.page.exit);
                    self.page.started = newest.started;
                }
                true
            }
        }
    }

    /// Nobody takes requests about this attempt any more. Its pipe says whether a keeper has it: it
    /// is read at once, because a pipe that never had a writer is not seen to close.
    fn note_keeper_gone(&mut self) -> bool {
        self.keeper_gone = true;
        match self.pipes.end.take_now() {
            PipeRead::Nothing => false,
            took @ (PipeRead::Bytes(_) | PipeRead::Closed) => self.note_end(took),
        }
    }

    fn take_output(&mut self, source: OutputSource, took: PipeRead) -> bool {
        if let PipeRead::Bytes(count) = took {
            self.feed(source, count);
        }
        false
    }

    fn feed(&mut self, source: OutputSource, count: usize) {
        let at_ms = elapsed_ms(self.began);
        let bytes = pipe(&mut self.pipes, source).bytes(count);
        // Read all the same if nothing takes the lines any more: a full pipe would stop the script.
        if self.lines.is_some() {
            self.capture.feed(source, at_ms, bytes);
        }
    }

    fn pass_on(&mut self, permit: Option<mpsc::Permit<'_, OutputChunk>>) -> bool {
        match (permit, self.capture.take()) {
            (Some(permit), Some(chunk)) => permit.send(chunk),
            (Some(_), None) => {}
            (None, _) => self.lines = None,
        }
        false
    }

    async fn pass_on_all(&mut self) {
        while let Some(chunk) = self.capture.take() {
            let Some(lines) = self.lines else { continue };
            if lines.send(chunk).await.is_err() {
                self.lines = None;
            }
        }
    }

    /// Collects the rest of the output, and ends whatever the script left running.
    async fn close(&mut self) {
        // A background process may hold the pipes open for ever, so their end is not waited for.
        // What it prints until it is killed is collected afterwards.
        let until = Instant::now() + DRAIN_MAX;
        for source in [OutputSource::Out, OutputSource::Err] {
            self.drain(source, until).await;
        }
        if self.is_unkept {
            self.end_unkept().await;
        } else {
            self.group.release();
        }
        for source in [OutputSource::Out, OutputSource::Err] {
            self.collect_leftover(source).await;
        }
        // An attempt that ended by itself has nothing left but what was just killed; waiting for it
        // would cost every job another round through its keeper.
        if self.page.stop.is_some() {
            self.wait_until_released().await;
        }
        self.capture.finish(elapsed_ms(self.began));
        self.pass_on_all().await;
    }

    /// Ends what is left of a script whose keeper was killed.
    ///
    /// Nobody holds the numbers of its processes any more, so they may be strangers' by now. What
    /// carries the name of this attempt is its own, and so is a group whose first process is still
    /// the one that the journal names.
    async fn end_unkept(&self) {
        // Where nobody watched it begin, the journal alone knows its number.
        let newest = LatestAttempt::newest(&self.folder).ok().flatten();
        let mut unkept = Unkept::new(newest.as_ref().unwrap_or(&self.page));
        let mut pause = GROUP_PAUSE;
        // Without a bound: only a process that the system holds up takes long to die, and while it
        // lives the job must not be given to another worker.
        while unkept.end() {
            sleep(pause).await;
            pause = (2 * pause).min(GROUP_PAUSE_MAX);
        }
    }

    /// Reads a stream until nobody can write to it any more, or it is late.
    async fn drain(&mut self, source: OutputSource, until: Instant) {
        loop {
            let took = match pipe(&mut self.pipes, source).take_now() {
                PipeRead::Nothing => tokio::select! {
                    took = pipe(&mut self.pipes, source).take() => took,
                    () = sleep_until(until.into()) => PipeRead::Nothing,
                },
                took @ (PipeRead::Bytes(_) | PipeRead::Closed) => took,
            };
            match took {
                PipeRead::Bytes(count) => self.feed(source, count),
                PipeRead::Closed | PipeRead::Nothing => return,
            }
            self.pass_on_all().await;
            if Instant::now() >= until {
                return;
            }
        }
    }

    async fn collect_leftover(&mut self, source: OutputSource) {
        let mut left = LEFTOVER_BYTES_MAX;
        while left > 0 && !pipe(&mut self.pipes, source).is_closed() {
            let PipeRead::Bytes(count) = pipe(&mut self.pipes, source).take_now() else { return };
            self.feed(source, count);
            left = left.saturating_sub(count);
            self.pass_on_all().await;
        }
    }

    /// The next attempt must not begin while this one still does something. Its keeper closes the
    /// pipe when nothing of it is left.
    async fn wait_until_released(&mut self) {
        let until = Instant::now() + DYING_MAX;
        while !self.is_unkept {
            tokio::select! {
                took = self.pipes.end.take() => self.is_unkept = took == PipeRead::Closed,
                () = sleep_until(until.into()) => return,
            }
        }
    }
}

/// What a keeper's line means: the exit code, or why there never was a script.
fn said_of(line: &str) -> Option<Result<i32, Unstarted>> {
    Some(match line.split_once(' ') {
        Some(("unstarted", error)) => Err(Unstarted::Program(error.parse().ok()?)),
        Some(("unwritable", error)) => Err(Unstarted::Files(error.parse().ok()?)),
        // A script reports 0 to 255.
        Some(_) | None => Ok(line.parse::<u8>().ok()?.into()),
    })
}

fn pipe(pipes: &mut OutputPipes, source: OutputSource) -> &mut OutputPipe {
    match source {
        OutputSource::Err => &mut pipes.err,
        OutputSource::Out | OutputSource::Note => &mut pipes.out,
    }
}

async fn reserve<'a>(
    lines: Option<&'a mpsc::Sender<OutputChunk>>,
) -> Option<mpsc::Permit<'a, OutputChunk>> {
    lines?.reserve().await.ok()
}

async fn cancelled(token: Option<&CancellationToken>) {
    if let Some(token) = token {
        token.cancelled().await;
    }
}

async fn wait_until(due: Option<Instant>) {
    if let Some(due) = due {
        sleep_until(due.into()).await;
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
