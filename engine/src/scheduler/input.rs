//! The inputs of a scheduler.

use super::{Hello, SessionId};
use crate::{
    event::Fact,
    ids::{AttemptId, RunId, WorkerName},
    run::Run,
    time::Timestamp,
};

/// An attempt that was leased, and the log position of the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    /// The attempt.
    pub attempt: AttemptId,
    /// The position of its lease: a later lease has a greater one.
    pub fence: u64,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A run was read from the log: all that `state` says is durable.
    RunLoaded {
        /// Which run.
        run: &'a RunId,
        /// Its state.
        state: &'a Run,
        /// The moment by the log's clock.
        at: Timestamp,
    },
    /// Commands were decided on a run. What they recorded may not be durable yet.
    RunDecided {
        /// Which run.
        run: &'a RunId,
        /// Its state now.
        state: &'a Run,
        /// Its version once that is recorded. Of two decisions the later one has the greater.
        version: u64,
        /// What was recorded.
        facts: &'a [Fact],
        /// The moment by the log's clock.
        at: Timestamp,
    },
    /// What was decided on a run is durable. May be fed in any order: the answers to two appends
    /// that one commit made durable are two tasks.
    RunDurable {
        /// Which run.
        run: &'a RunId,
        /// Its version after the append.
        version: u64,
        /// What was recorded.
        facts: &'a [Fact],
    },
    /// The records of a run cannot be replayed: nothing of it is leased, lost or waited for.
    RunSetAside {
        /// Which run.
        run: &'a RunId,
    },
    /// A worker opened a session.
    Hello {
        /// The session, under a number that was never used before.
        session: SessionId,
        /// What the worker said of itself.
        hello: Hello,
    },
    /// The answer to [`super::Effect::Reconcile`]: what the worker holds by the durable log.
    Reconciled {
        /// The session.
        session: SessionId,
        /// Attempts that the log says the worker holds; `None`: the log cannot be read now.
        leased: Option<Vec<AttemptId>>,
    },
    /// A session's worker said anything at all.
    Heartbeat {
        /// The session.
        session: SessionId,
    },
    /// The worker of a session wants no more jobs.
    DrainRequested {
        /// The session.
        session: SessionId,
    },
    /// The worker of a session holds nothing and leaves.
    Goodbye {
        /// The session.
        session: SessionId,
    },
    /// The connection of a session has ended.
    Disconnected {
        /// The session.
        session: SessionId,
    },
    /// An operator wants a worker to be given nothing new, or jobs again. Remembered by name,
    /// whether or not the worker is connected; the driver of the scheduler feeds it again after a
    /// restart.
    DrainChanged {
        /// The worker.
        worker: WorkerName,
        /// Whether it is drained.
        drained: bool,
    },
    /// A session reports how an attempt ended, and all that the attempt left is kept.
    Report {
        /// The session.
        session: SessionId,
        /// The attempt.
        attempt: &'a AttemptId,
    },
    /// A session reported an attempt that it does not hold, and by the durable log its worker does
    /// not hold it either: it may forget the attempt.
    ReportVoid {
        /// The session.
        session: SessionId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// What came of [`super::Effect::Record`], once it is durable: the worker may forget the
    /// attempt.
    Recorded {
        /// The session.
        session: SessionId,
        /// The attempt that was reported.
        attempt: AttemptId,
        /// Whether the effect asked for another lease.
        with_lease: bool,
        /// What was leased with it.
        leased: Vec<Leased>,
    },
    /// [`super::Effect::Record`] failed: the driver that carried it out sends the error to the
    /// worker.
    RecordFailed {
        /// The session.
        session: SessionId,
        /// Whether the effect asked for another lease.
        with_lease: bool,
    },
    /// [`super::Effect::Lease`] was decided; what it recorded, if anything, is being written.
    LeaseDecided {
        /// The session.
        session: SessionId,
        /// The run.
        run: RunId,
        /// Whether anything was recorded: then [`Input::LeaseDurable`] follows.
        recorded: bool,
    },
    /// [`super::Effect::Lease`] could not be decided or written.
    LeaseFailed {
        /// The session.
        session: SessionId,
        /// The run.
        run: RunId,
        /// When it happened.
        stage: LeaseStage,
        /// Whose fault it was.
        blame: Blame,
    },
    /// What a lease recorded is durable.
    LeaseDurable {
        /// The session.
        session: SessionId,
        /// What was leased.
        leased: Vec<Leased>,
    },
    /// What came of [`super::Effect::Lose`], once it is durable.
    Lost {
        /// The attempt.
        attempt: AttemptId,
        /// Whether the log has it; else it is retried.
        ok: bool,
    },
    /// Time passed: to be fed often, at least four times within a lease, and when
    /// [`super::Scheduler::next_wake`] says so.
    Tick,
}

/// How far a lease came that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseStage {
    /// It was not decided.
    Decide,
    /// It was decided and could not be written.
    Write,
}

/// What made something fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The run: others are not concerned.
    Run,
    /// The store: nothing can be leased now.
    Store,
}
