//! What a scheduler wants to be done.

use std::collections::BTreeSet;

use super::SessionId;
use crate::{
    decide::LeaseJob,
    ids::{AttemptId, JobName, RunId, WorkerName},
};

/// Something that is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Decide a lease of `run`, then say [`super::Input::LeaseDecided`] or
    /// [`super::Input::LeaseFailed`].
    Lease {
        /// The session that has a slot reserved for it.
        session: SessionId,
        /// The run whose turn it is.
        run: RunId,
        /// The command; who holds which locks is filled in when it is decided.
        lease: LeaseJob,
    },
    /// Record the report that was just fed, and `lease` in the same append, then say
    /// [`super::Input::Recorded`].
    Record {
        /// The worker that reports.
        worker: WorkerName,
        /// The next job for the slot that is free now.
        lease: Option<LeaseJob>,
    },
    /// Record that an attempt is lost, then say [`super::Input::Lost`].
    Lose {
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        reason: LossReason,
    },
    /// Ask the durable log what `worker` holds in `runs`, then say [`super::Input::Reconciled`].
    Reconcile {
        /// The session that waits for it.
        session: SessionId,
        /// The worker.
        worker: WorkerName,
        /// Runs in which it holds something, or says so. Those that are not live are ignored.
        runs: BTreeSet<RunId>,
    },
    /// The session's first message, its welcome, waits to be delivered: it is open.
    Opened {
        /// The session.
        session: SessionId,
    },
    /// Messages wait: take them with [`super::Scheduler::next_message`] as the connection takes
    /// them.
    Deliver {
        /// The session.
        session: SessionId,
    },
    /// The session waits for this one job. Ask the durable log whether it has ended without the
    /// session: then say [`super::Input::Disconnected`] and end the connection. Else feed the run
    /// again ([`super::Input::RunDecided`] without facts): whether the job is ready is kept only of
    /// jobs that a session waits for, and was not when this one was not there.
    CheckJob {
        /// The session.
        session: SessionId,
        /// The run of the job.
        run: RunId,
        /// The job.
        job: JobName,
    },
    /// End the connection of a session, which is forgotten already.
    Close {
        /// The session.
        session: SessionId,
        /// Why.
        reason: CloseReason,
    },
    /// Something that an operator may want to read.
    Notice(Notice),
}

/// Why an attempt is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// The worker was not there any more when the lease was durable.
    Unsent,
    /// The worker opened a new session and did not name the attempt.
    NotHeld,
    /// The worker sent no heartbeat for as long as a lease lasts.
    NoHeartbeat,
    /// The worker said goodbye before the assignment reached it.
    Left,
}

impl LossReason {
    /// The reason, as the event says it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Unsent => "the worker disconnected before it was given the job",
            Self::NotHeld => "the worker reconnected without it",
            Self::NoHeartbeat => "no heartbeat from the worker",
            Self::Left => "the worker left",
        }
    }
}

/// Why a session is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Another process of the same worker name is connected.
    NameTaken,
    /// What the worker holds could not be read or recorded.
    Unavailable,
    /// No heartbeat: the worker must open another session and say what it holds.
    Expired,
    /// The worker said goodbye.
    Left,
}

/// Something that an operator may want to read; each is said once for each change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A worker is connected and holds `held` attempts.
    WorkerConnected {
        /// Which.
        worker: WorkerName,
        /// How many attempts it holds.
        held: usize,
    },
    /// A session was expired for want of a heartbeat.
    SessionExpired {
        /// Of which worker.
        worker: WorkerName,
    },
    /// The leases of a worker expire.
    LeasesExpired {
        /// Which worker.
        worker: WorkerName,
        /// How many.
        leases: usize,
    },
    /// A lease of a run failed: the run is retried every now and then.
    RunHeldBack {
        /// Which run.
        run: RunId,
    },
    /// The store takes no leases: nothing is leased until it does.
    LeasingPaused,
    /// The store takes leases again.
    LeasingResumed,
}
