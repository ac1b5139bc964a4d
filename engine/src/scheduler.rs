//! Which worker is given which job, as a pure state machine: sessions, slots, turns, leases,
//! heartbeats, drains and reports.
//!
//! ```text
//!   what happened                 Scheduler::on                  what is to be done
//!   ─────────────                 ─────────────                  ──────────────────
//!   a run changed      ─┐    ┌───────────────────────┐    ┌─  lease a job of a run
//!   a worker's hello    │    │ sessions, free slots, │    │   record a report (and lease the next)
//!   a heartbeat         ├──▶ │ what runs want, locks,│ ──▶┤   lose an attempt
//!   a report            │    │ leases, absences      │    │   deliver messages to a session
//!   time passed        ─┘    └───────────────────────┘    └─  close a session, ask the log
//! ```
//!
//! Nothing here waits, reads a clock or knows a socket: time is an argument, measured from any
//! moment by a clock that never goes back. The driver of the scheduler carries the effects out and
//! feeds what came of them back as inputs; the server's driver does it against the log, the
//! simulation against a simulated disk, and both run this same code.
//!
//! Nothing here is state that matters: all of it follows from the log and from who is connected.
//!
//! Between two inputs no free slot could take a job that a run wants, unless a lease of that run is
//! just being decided or leasing is paused. So an input has to look only at the session or at the
//! run that it changed, and its cost does not depend on how many others there are.

mod absence;
mod demand;
mod due;
mod effect;
mod input;
mod locks;
mod matching;
mod opening;
mod reports;
mod runs;
mod session;
mod supply;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

pub use due::DueTimes;
pub use effect::{CloseReason, Effect, LossReason, Notice};
pub use input::{Blame, Input, LeaseStage, Leased};
pub use session::{Hello, Message, QUEUE_BYTES_MAX, SLOTS_MAX, SessionView};

use crate::{
    ids::{AttemptId, RunId, WorkerName},
    run::LockUsage,
    views::WorkerSupply,
};
use absence::Absences;
use demand::Demand;
use locks::Locks;
use matching::{Deciding, Pause};
use runs::{LeaseRecord, RunRecord};
use session::Session;
use supply::Supply;

/// How the names of workers begin that live in a `tow` on the store's own machine, one for each
/// run.
pub const LOCAL_WORKER_PREFIX: &str = "local/";

/// How long a lease, a loss or a run that could not be used is left alone before it is retried.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One connection of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Sessions, leases, and what runs want.
#[derive(Debug)]
pub struct Scheduler {
    lease: Duration,
    now: Duration,
    out: Vec<Effect>,
    sessions: BTreeMap<SessionId, Session>,
    workers: BTreeMap<WorkerName, WorkerRecord>,
    drained: BTreeSet<WorkerName>,
    supply: Supply,
    runs: BTreeMap<RunId, RunRecord>,
    demand: Demand,
    /// The runs whose kinds share what room they have: see `RunRecord`.
    sharing: BTreeSet<RunId>,
    locks: Locks,
    leases: BTreeMap<AttemptId, LeaseRecord>,
    /// Leases that are to be recorded as lost.
    losses: BTreeMap<AttemptId, Loss>,
    /// Losses that failed and are retried at that time.
    losses_due: BTreeSet<(Duration, AttemptId)>,
    absences: Absences,
    /// When sessions may have been without a heartbeat for too long. Looked at again when it is
    /// due, so that a heartbeat costs nothing here.
    expiries: BTreeSet<(Duration, SessionId)>,
    last_tick: Duration,
    /// Heartbeats before this moment count as of this moment: the server itself was not running.
    forgiven_at: Duration,
    /// The run that was last given a slot: others come first.
    turn: RunId,
    pause: Pause,
    /// Runs that are left alone until then, because a lease of theirs failed.
    held_back: BTreeSet<(Duration, RunId)>,
    /// The lease of each run that is being decided.
    deciding: BTreeMap<RunId, Deciding>,
    /// Sessions for which the log is being asked what their workers hold.
    reconciling: BTreeMap<SessionId, WorkerName>,
}

/// What is known of a worker name, as long as it is connected or holds leases.
#[derive(Debug, Default)]
struct WorkerRecord {
    /// The newest session; older ones are replaced.
    current: Option<SessionId>,
    /// The session whose hello is being reconciled.
    reconciling: Option<SessionId>,
    /// The session that is closed once all leases of the worker are lost.
    leaving: Option<SessionId>,
    /// What it holds, after everything that was decided.
    leases: BTreeSet<AttemptId>,
    /// How many of them are being recorded as lost.
    losing: u32,
    /// One of them could not be.
    failed: bool,
}

#[derive(Debug)]
struct Loss {
    worker: WorkerName,
    reason: LossReason,
    /// When it is retried; `None`: it is being recorded.
    retry_at: Option<Duration>,
}

impl Scheduler {
    /// A scheduler without sessions and runs. A worker may be without a heartbeat for as long as
    /// `lease`.
    pub fn new(lease: Duration) -> Self {
        Self {
            lease,
            now: Duration::ZERO,
            out: Vec::new(),
            sessions: BTreeMap::new(),
            workers: BTreeMap::new(),
            drained: BTreeSet::new(),
            supply: Supply::default(),
            runs: BTreeMap::new(),
            demand: Demand::default(),
            sharing: BTreeSet::new(),
            locks: Locks::default(),
            leases: BTreeMap::new(),
            losses: BTreeMap::new(),
            losses_due: BTreeSet::new(),
            absences: Absences::default(),
            expiries: BTreeSet::new(),
            last_tick: Duration::ZERO,
            forgiven_at: Duration::ZERO,
            turn: "".into(),
            pause: Pause::default(),
            held_back: BTreeSet::new(),
            deciding: BTreeMap::new(),
            reconciling: BTreeMap::new(),
        }
    }

    /// Applies what happened at `now` and adds what is to be done to `effects`, in order.
    pub fn on(&mut self, input: Input<'_>, now: Duration, effects: &mut Vec<Effect>) {
        // A caller may read its clock before it waits for the lock that guards this value.
        self.now = self.now.max(now);
        match input {
            Input::RunLoaded { run, state, at } => self.run_loaded(run, state, at),
            Input::RunDecided { run, state, version, facts, at } => {
                self.run_decided(run, (state, version), facts, at);
            }
            Input::RunDurable { run, version, facts } => self.run_durable(run, facts, version),
            Input::RunSetAside { run } => self.run_set_aside(run),
            Input::Hello { session, hello } => self.hello(session, hello),
            Input::Reconciled { session, leased } => self.reconciled(session, leased),
            Input::Heartbeat { session } => self.heartbeat(session),
            Input::DrainRequested { session } => self.drain_requested(session),
            Input::Goodbye { session } => self.goodbye(session),
            Input::Disconnected { session } => self.disconnected(session),
            Input::DrainChanged { worker, drained } => self.drain_changed(worker, drained),
            Input::Report { session, attempt } => self.report(session, attempt),
            Input::ReportVoid { session, attempt } => {
                self.queue(session, Message::Recorded(attempt));
            }
            Input::Recorded { session, attempt, with_lease, leased } => {
                self.recorded(session, attempt, with_lease, leased);
            }
            Input::RecordFailed { session, with_lease } => self.record_failed(session, with_lease),
            Input::LeaseDecided { session, run, recorded } => {
                self.lease_decided(session, &run, recorded);
            }
            Input::LeaseFailed { session, run, stage, blame } => {
                self.lease_failed(session, &run, stage, blame);
            }
            Input::LeaseDurable { session, leased } => self.lease_durable(session, leased),
            Input::Lost { attempt, ok } => self.lost(&attempt, ok),
            Input::Tick => self.tick(),
        }
        effects.append(&mut self.out);
    }

    /// How long a worker may send no heartbeat.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// When a tick is due at the latest, beyond the regular ones.
    pub fn next_wake(&self) -> Option<Duration> {
        let retry = self.losses_due.first().map(|(due, _)| *due);
        let held_back = self.held_back.first().map(|(due, _)| *due);
        [retry, held_back, self.pause.until()].into_iter().flatten().min()
    }

    /// Whether no lease is being decided.
    pub fn is_settled(&self) -> bool {
        self.deciding.is_empty()
    }

    /// Whether `session` was given `attempt` and has not reported it. No session may report about
    /// what another one holds, and a session that its worker has replaced holds nothing: the newer
    /// one sends the same output and the same report, and the two would write into one file.
    pub fn holds(&self, session: SessionId, attempt: &AttemptId) -> bool {
        let known = self.sessions.get(&session).filter(|session| !session.replaced);
        known.is_some_and(|session| session.held.contains_key(attempt))
    }

    /// Whether so much waits to be delivered to `session` that nothing more is to be read from it:
    /// a worker that says much and reads little must not fill the server.
    pub fn is_backed_up(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(Session::is_backed_up)
    }

    /// Whether `session` has not ended.
    pub fn is_open(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// The worker of `session`.
    pub fn worker_of(&self, session: SessionId) -> Option<&WorkerName> {
        self.sessions.get(&session).map(|session| &session.hello.worker)
    }

    /// The newest session of `worker`.
    pub fn session_of(&self, worker: &WorkerName) -> Option<SessionId> {
        self.workers.get(worker)?.current
    }

    /// The workers that are connected, by name.
    pub fn workers(&self) -> impl Iterator<Item = SessionView<'_>> {
        let current = |worker: &WorkerRecord| self.sessions.get(&worker.current?);
        let ready = self.workers.values().filter_map(current).filter(|session| session.is_ready());
        ready.map(|session| session.view(self.drained.contains(&session.hello.worker)))
    }

    /// The worker of this name, if it is connected.
    pub fn worker(&self, name: &WorkerName) -> Option<SessionView<'_>> {
        let session = self.sessions.get(&self.session_of(name)?)?;
        session.is_ready().then(|| session.view(self.drained.contains(name)))
    }

    /// Which workers there are for a job of `run` that asks for `tags`.
    pub fn worker_supply(&self, run: &RunId, tags: &[String]) -> WorkerSupply {
        let mut supply = WorkerSupply::Absent;
        for session in self.sessions.values().filter(|it| it.is_ready() && it.takes(run)) {
            if session.draining || self.drained.contains(&session.hello.worker) {
                supply = supply.max(WorkerSupply::Drained);
            } else if tags.iter().all(|tag| session.hello.tags.contains(tag)) {
                return WorkerSupply::Fitting;
            } else {
                supply = supply.max(WorkerSupply::WithoutTags);
            }
        }
        supply
    }

    /// Whether the store takes no leases now, so that none is decided.
    pub fn is_leasing_paused(&self) -> bool {
        self.pause.until().is_some()
    }

    /// How many jobs of runs other than `run` hold each of the locks `names`.
    pub fn locks_of_others<'n>(
        &self,
        run: &RunId,
        names: impl IntoIterator<Item = &'n str>,
    ) -> LockUsage {
        self.locks.of_others(run, names)
    }

    /// What wants a worker: for each set of tags, how many jobs a worker could begin at once, and
    /// how many one holds.
    pub fn wanted(&self) -> BTreeMap<Arc<[String]>, (u64, u64)> {
        self.demand.wanted(&self.locks, &self.shared_pending())
    }

    /// A number that changes whenever [`Scheduler::wanted`] may have.
    pub fn wanted_version(&self) -> u64 {
        self.demand.version().wrapping_add(self.locks.version())
    }
}
