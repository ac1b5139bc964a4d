//! The server: real commands decided by the real engine, over a simulated disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use towpath_engine::{
    codec,
    decide::{CarryOutError, Command, carry_out},
    event::Fact,
    ids::{Actor, AttemptId, RunId},
    log_clock::{LogClock, Reading},
    run::{LockUsage, Run},
    scheduler::{DueTimes, Input, Leased, Scheduler, SessionId},
    time::Timestamp,
};

use crate::{
    book::{Book, Key},
    checks::{Checks, begins_the_end},
    client::Ask,
    disk::Disk,
    random::Rng,
    script::Outcome,
    uploads::Uploads,
    world::{Ms, Plant, Step, World},
};

/// A worker may be without a heartbeat for this long.
pub(crate) const LEASE: Ms = 30_000;
const LOOK_EVERY: Ms = LEASE / 4;
/// A moment of the year 2025, as the server's clock has it at the beginning.
const EPOCH: i64 = 1_763_715_723_007;

pub(crate) struct Cell {
    pub(crate) run: Run,
    pub(crate) version: u64,
}

/// How an attempt ended, on its way into the log.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) conn: u64,
    pub(crate) worker: usize,
    pub(crate) key: Key,
    pub(crate) outcome: Outcome,
}

/// What happens once enough is safe.
pub(crate) enum Then {
    Answer {
        ask: Box<Ask>,
        records: (usize, usize),
    },
    Durable {
        run: RunId,
        version: u64,
        facts: Vec<Fact>,
    },
    LeaseDurable {
        session: SessionId,
        leased: Vec<Leased>,
    },
    Lost {
        attempt: AttemptId,
    },
    Reconciled {
        session: SessionId,
        leased: Vec<AttemptId>,
    },
    Void {
        session: SessionId,
        attempt: AttemptId,
    },
    Recorded {
        session: SessionId,
        attempt: AttemptId,
        with_lease: bool,
        leased: Vec<Leased>,
        /// Else the server believed a report that the scheduler knows nothing of.
        held: bool,
    },
}

/// What a command recorded, and the position that must be safe before anybody is told.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) first: usize,
    pub(crate) facts: Vec<Fact>,
    pub(crate) rests_on: usize,
}

/// Why a command recorded nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum No {
    Refused(towpath_engine::refusal::Refusal),
    /// The store has no room now, or another process wrote first.
    Later,
}

pub(crate) struct Server {
    pub(crate) up: bool,
    pub(crate) life: u64,
    pub(crate) disk: Disk,
    /// What attempts printed and left behind, as far as it has arrived.
    pub(crate) uploads: Uploads,
    pub(crate) cells: BTreeMap<RunId, Cell>,
    /// The scheduler that ships.
    pub(crate) scheduler: Scheduler,
    /// When the server that is up began.
    pub(crate) booted: Ms,
    /// The server does nothing until then: its machine sleeps.
    pub(crate) paused_until: Ms,
    /// Workers that an operator has drained.
    pub(crate) drained: BTreeSet<usize>,
    pub(crate) checks: Checks,
    due: DueTimes,
    /// When the newest lease that was asked for is decided.
    pub(crate) lease_at: Ms,
    pub(crate) waiting: Vec<(usize, Then)>,
    committing: Option<usize>,
    /// The time of the log, as the server that is up reads it.
    log_clock: LogClock,
    /// The time of the log stands still while the wall clock is behind it.
    pub(crate) freezes: bool,
    pub(crate) clock_off: i64,
    pub(crate) slow_until: Ms,
    pub(crate) full_until: Ms,
    due_at: Option<Ms>,
    /// Takes reports about attempts that the session was never given.
    pub(crate) gullible: bool,
}

impl Server {
    pub(crate) fn new(gullible: bool, rng: &mut Rng) -> Self {
        Self {
            up: false,
            life: 0,
            disk: Disk::default(),
            uploads: Uploads::default(),
            cells: BTreeMap::new(),
            scheduler: Scheduler::new(Duration::ZERO),
            booted: 0,
            paused_until: 0,
            drained: BTreeSet::new(),
            checks: Checks::new(0),
            due: DueTimes::default(),
            lease_at: 0,
            waiting: Vec::new(),
            committing: None,
            log_clock: LogClock::new(Timestamp(0), Duration::ZERO),
            freezes: false,
            clock_off: EPOCH + i64::try_from(rng.below(86_400_000)).unwrap_or(0),
            slow_until: 0,
            full_until: 0,
            due_at: None,
            gullible,
        }
    }

    fn now(&mut self, at: Ms) -> Timestamp {
        let wall = Timestamp(self.clock_off + i64::try_from(at).unwrap_or(0));
        let elapsed = Duration::from_millis(if self.freezes { 0 } else { at });
        self.log_clock.stamp(Reading { wall, elapsed }).at
    }
}

impl World {
    pub(crate) fn load(&mut self, run: &RunId) {
        if self.server.cells.contains_key(run) {
            return;
        }
        let stale = self.plant == Plant::StaleReload;
        let disk = &self.server.disk;
        let upto = if stale { disk.durable } else { disk.records.len() };
        let loaded = disk.read(run, upto).and_then(|(facts, version)| {
            let run = Run::replay(&facts).map_err(|error| error.to_string())?;
            Ok(Cell { run, version })
        });
        match loaded {
            Ok(cell) => {
                self.server.cells.insert(run.clone(), cell);
                self.tell_loaded(run);
                self.note_due(run);
            }
            Err(broken) => self.fail(format!("{run} cannot be read: {broken}")),
        }
    }

    /// The time of the log.
    pub(crate) fn log_time(&mut self) -> Timestamp {
        self.server.now(self.now)
    }

    /// Keeps the timer in step with a run.
    fn note_due(&mut self, run: &RunId) {
        let now = self.log_time();
        let Some(cell) = self.server.cells.get(run) else { return };
        self.server.due.set(run, cell.run.next_due(now));
        self.set_timer();
    }

    fn set_timer(&mut self) {
        let now = self.log_time();
        let Some(due) = self.server.due.next() else { return };
        let at = self.now + due.ms_since(now).clamp(1, 5_000);
        if self.server.due_at.is_none_or(|before| before > at || before <= self.now) {
            self.server.due_at = Some(at);
            let life = self.server.life;
            self.after(at - self.now, Step::Due { life });
        }
    }

    /// Decides `commands` one after the other and queues what they record as one append.
    pub(crate) fn queue_up(
        &mut self,
        run: &RunId,
        commands: &[Command],
        by: &Actor,
    ) -> Result<Queued, No> {
        self.load(run);
        let (mut facts, mut bytes) = (Vec::new(), Vec::new());
        for (nth, command) in commands.iter().enumerate() {
            let mut command = command.clone();
            if let Command::Lease(lease) = &mut command {
                lease.busy = self.busy_of_others(run);
            }
            let now = self.server.now(self.now);
            let Some(cell) = self.server.cells.get_mut(run) else { return Err(No::Later) };
            match carry_out(&mut cell.run, &command, by, now) {
                Ok(written) => {
                    for (fact, line) in written {
                        facts.push(fact);
                        bytes.push(line);
                    }
                }
                Err(CarryOutError::Refused(refusal)) if nth == 0 => {
                    return Err(No::Refused(refusal));
                }
                Err(CarryOutError::Refused(_)) => {}
                Err(error @ (CarryOutError::Unwritable(_) | CarryOutError::Bug(_))) => {
                    self.fail(format!("{run}: {command:?}: {error}"));
                    return Err(No::Later);
                }
            }
        }
        self.tell_decided(run, &facts);
        self.note_due(run);
        self.append(run, facts, bytes)
    }

    fn append(&mut self, run: &RunId, facts: Vec<Fact>, bytes: Vec<Vec<u8>>) -> Result<Queued, No> {
        if facts.is_empty() {
            let records = &self.server.disk.records;
            let newest = records.iter().rposition(|record| record.run == *run);
            let rests_on = newest.map_or(0, |at| at + 1);
            return Ok(Queued { first: rests_on + 1, facts, rests_on });
        }
        let Some(cell) = self.server.cells.get_mut(run) else { return Err(No::Later) };
        let expected = cell.version;
        cell.version += facts.len() as u64;
        let version = cell.version;
        let full = self.now < self.server.full_until && self.rng.chance(50);
        let last = if full { None } else { self.server.disk.append(run, expected, bytes) };
        let Some(last) = last else {
            // What memory holds was not written: forget it, read again.
            self.server.cells.remove(run);
            if self.plant != Plant::StaleLocks {
                self.load(run);
            }
            return Err(No::Later);
        };
        let first = last + 1 - facts.len();
        for (nth, fact) in facts.iter().enumerate() {
            let bytes = &self.server.disk.records[first + nth - 1].bytes;
            match codec::decode(bytes) {
                Ok(read) if read == *fact => {}
                other => {
                    let other = format!("{other:?}");
                    self.fail(format!("{fact:?} reads back as {other}"));
                }
            }
            self.witness(run, expected + 1 + nth as u64, first + nth, fact);
        }
        let same = self.server.cells.get(run).map(|cell| &cell.run) == self.shadows.get(run);
        if !same {
            self.fail(format!("the state of {run} is not what its records say"));
        }
        self.once_safe(last, Then::Durable { run: run.clone(), version, facts: facts.clone() });
        self.begin_commit();
        Ok(Queued { first, facts, rests_on: last })
    }

    fn busy_of_others(&self, run: &RunId) -> LockUsage {
        let Some(cell) = self.server.cells.get(run) else { return LockUsage::new() };
        if self.plant == Plant::NoLocks {
            return LockUsage::new();
        }
        self.server.scheduler.locks_of_others(run, cell.run.locks())
    }

    fn begin_commit(&mut self) {
        let (life, upto) = (self.server.life, self.server.disk.records.len());
        if self.server.committing.is_some() || self.server.disk.durable >= upto {
            return;
        }
        self.server.committing = Some(upto);
        let slow = self.now < self.server.slow_until;
        let wait = if slow { self.rng.between(200, 5_000) } else { self.rng.mostly(15, 400) };
        self.after(wait, Step::Committed { life, upto });
    }

    pub(crate) fn committed(&mut self, life: u64, upto: usize) {
        if life != self.server.life {
            return;
        }
        self.server.committing = None;
        self.settle(upto);
        self.begin_commit();
        self.release();
    }

    /// Notes that the first `upto` records are safe.
    fn settle(&mut self, upto: usize) {
        let from = self.server.disk.durable;
        for position in from + 1..=upto {
            let record = self.server.disk.records[position - 1].clone();
            let taken = match codec::decode(&record.bytes) {
                Ok(fact) => self.settled.take(&record.run, record.version, position, &fact),
                Err(error) => Err(error.to_string()),
            };
            if let Err(broken) = taken {
                self.fail(format!("safe record {position}: {broken}"));
            }
        }
        self.server.disk.durable = upto.max(from);
    }

    /// Does `then` once the first `position` records are safe.
    pub(crate) fn once_safe(&mut self, position: usize, then: Then) {
        let early = self.plant == Plant::AnswerEarly;
        let position = if early { 0 } else { position };
        self.server.waiting.push((position, then));
        if position <= self.server.disk.durable {
            self.release();
        }
    }

    pub(crate) fn release(&mut self) {
        let durable = self.server.disk.durable;
        let waiting = std::mem::take(&mut self.server.waiting);
        let (mut ready, rest): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(position, _)| *position <= durable);
        self.server.waiting = rest;
        // Each append is answered by a task of its own, and one commit wakes many: which of them
        // comes first is not said. What one task does stays in its order.
        let mut turns: BTreeMap<usize, u64> = BTreeMap::new();
        for (position, _) in &ready {
            turns.entry(*position).or_insert_with(|| self.rng.below(u64::MAX));
        }
        ready.sort_by_key(|(position, _)| turns[position]);
        for (_, then) in ready {
            match then {
                Then::Answer { ask, records } => self.answer(&ask, records),
                Then::Durable { run, version, facts } => {
                    self.tell(Input::RunDurable { run: &run, version, facts: &facts });
                    if facts.iter().any(|fact| begins_the_end(&fact.event)) {
                        self.expect_cancels(&run);
                    }
                }
                Then::LeaseDurable { session, leased } => {
                    self.tell(Input::LeaseDurable { session, leased });
                }
                Then::Lost { attempt } => drop(self.tell(Input::Lost { attempt, ok: true })),
                Then::Reconciled { session, leased } => {
                    self.tell(Input::Reconciled { session, leased: Some(leased) });
                }
                Then::Void { session, attempt } => {
                    self.tell(Input::ReportVoid { session, attempt });
                }
                Then::Recorded { session, attempt, with_lease, leased, held: true } => {
                    self.server.uploads.forget(&attempt);
                    self.tell(Input::Recorded { session, attempt, with_lease, leased });
                }
                Then::Recorded { session, attempt, .. } => {
                    self.tell(Input::ReportVoid { session, attempt });
                }
            }
        }
    }

    /// Lets the scheduler pass time.
    pub(crate) fn look(&mut self, life: u64) {
        if life != self.server.life || !self.server.up {
            return;
        }
        self.tell(Input::Tick);
        self.check_cancels();
        let elapsed = Duration::from_millis(self.now - self.server.booted);
        let wake = self.server.scheduler.next_wake().map(|at| at.saturating_sub(elapsed));
        let wake = wake.and_then(|wait| u64::try_from(wait.as_millis()).ok());
        let wait = wake.map_or(LOOK_EVERY, |wait| wait.clamp(1, LOOK_EVERY));
        self.after(wait, Step::Look { life });
    }

    /// Does what is due by now.
    pub(crate) fn due(&mut self, life: u64) {
        // A look that was put forward has been had; one that a sleeping machine missed has not.
        let is_due = self.server.due_at.is_some_and(|at| at <= self.now);
        let current = life == self.server.life && is_due;
        if !current || !self.server.up {
            return;
        }
        self.server.due_at = None;
        let now = self.log_time();
        for run in self.server.due.due(now) {
            match self.queue_up(&run, &[Command::PassTime], &Actor::timer()) {
                Ok(_) => self.server.due.done(&run),
                Err(_) => drop(self.server.due.failed(&run, now)),
            }
        }
        self.set_timer();
    }

    /// The server dies. What was not safe is gone, but for what had just been written.
    pub(crate) fn server_dies(&mut self, down: Ms) {
        if !self.server.up {
            return;
        }
        self.tally.crashes += 1;
        let written = match self.server.committing.take() {
            Some(upto) if self.rng.chance(50) => {
                let from = self.server.disk.durable;
                from + self.rng.index(upto - from + 1)
            }
            Some(_) | None => self.server.disk.durable,
        };
        let mut after = std::mem::take(&mut self.server.disk);
        let safe_before = after.durable;
        after.cut(written);
        let kept = std::mem::replace(&mut after.durable, safe_before);
        self.server.disk = after;
        self.settle(kept);
        self.server.uploads.crash(&mut self.rng);
        self.server.up = false;
        self.server.life += 1;
        self.server.cells.clear();
        self.server.waiting.clear();
        self.server.due_at = None;
        self.ahead = self.settled.clone();
        self.shadows.clear();
        let lines: Vec<u64> = self.conns.keys().copied().collect();
        for conn in lines {
            self.cut(conn);
        }
        self.after(down, Step::ServerUp);
    }

    /// The server reads its log, and waits for the workers that the log speaks of.
    pub(crate) fn server_up(&mut self) {
        if self.server.up {
            return;
        }
        self.server.up = true;
        self.server.booted = self.now;
        let early = if self.plant == Plant::ExpireEarly { 4 } else { 1 };
        self.server.scheduler = Scheduler::new(Duration::from_millis(LEASE / early));
        self.server.checks = Checks::new(self.now);
        self.server.due = DueTimes::default();
        for worker in self.server.drained.clone() {
            self.drain(worker, true);
        }
        let mut newest_at = Timestamp(0);
        let mut book = Book::default();
        for position in 1..=self.server.disk.records.len() {
            let record = self.server.disk.records[position - 1].clone();
            match codec::decode(&record.bytes) {
                Ok(fact) => {
                    newest_at = newest_at.max(fact.at);
                    if let Err(broken) = book.take(&record.run, record.version, position, &fact) {
                        self.fail(broken);
                    }
                }
                Err(error) => self.fail(error.to_string()),
            }
        }
        self.server.log_clock = LogClock::new(newest_at, Duration::from_millis(self.now));
        for run in self.server.disk.runs() {
            self.load(&run);
            let Some(cell) = self.server.cells.get(&run) else { continue };
            self.shadows.insert(run.clone(), cell.run.clone());
        }
        let life = self.server.life;
        self.after(LOOK_EVERY, Step::Look { life });
    }
}
