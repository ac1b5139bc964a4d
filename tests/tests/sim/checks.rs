//! What the scheduler may not do, held against what the world knows by itself.

use std::collections::BTreeMap;

use towpath_engine::{
    decide::LeaseJob,
    event::RunEvent,
    ids::{AttemptId, RunId, WorkerName},
    scheduler::{LossReason, SessionId},
};

use crate::{
    driver::id_of,
    server::{LEASE, Server},
    worker,
    world::{Ms, World},
};

/// How often others may be given a slot that a run could use, before it is its turn.
const PASSES_MAX: u32 = 5;
/// How long a cancel may take to leave the server.
const CANCEL_WITHIN: Ms = 5_000;

#[derive(Default)]
pub(crate) struct Checks {
    /// When the server last had a message of each worker, or began.
    pub(crate) heard: Vec<Ms>,
    /// How often each run was passed over.
    passes: BTreeMap<RunId, u32>,
    /// Cancels that must leave the server, and since when.
    cancels: BTreeMap<(u64, AttemptId), Ms>,
}

impl Checks {
    pub(crate) fn new(now: Ms) -> Self {
        Self { heard: vec![now; 3], ..Self::default() }
    }

    pub(crate) fn cancelled(&mut self, conn: u64, attempt: &AttemptId) {
        self.cancels.remove(&(conn, attempt.clone()));
    }
}

impl World {
    pub(crate) fn check_drained(&mut self, worker: &WorkerName) {
        let drained = worker::number(worker.as_str())
            .is_some_and(|number| self.server.drained.contains(&number));
        if drained {
            self.fail(format!("{worker} is drained and is given a job"));
        }
    }

    pub(crate) fn check_expiry(&mut self, attempt: &AttemptId, reason: LossReason) {
        let lease = self.ahead.lease(&attempt.run, &attempt.job);
        let holder = lease.and_then(|(_, by, _)| worker::number(by));
        if let (LossReason::NoHeartbeat, Some(holder)) = (reason, holder) {
            let silent = self.now - self.server.checks.heard[holder];
            if silent < LEASE {
                self.fail(format!("{attempt:?} expires after {silent} ms of silence"));
            }
        }
    }

    /// `run` is given a slot. Others that could have used it wait for at most so many turns.
    pub(crate) fn check_turn(&mut self, run: &RunId, lease: &LeaseJob) {
        let holder = worker::number(lease.worker.as_str());
        if holder.is_some_and(|number| self.workers[number].only.is_some()) {
            // No other run could have used the slot.
            return;
        }
        let now = self.log_time();
        let Server { scheduler, cells, checks, .. } = &mut self.server;
        checks.passes.insert(run.clone(), 0);
        let mut unfair = None;
        for (other, cell) in cells.iter().filter(|(other, _)| *other != run) {
            let busy = scheduler.locks_of_others(other, cell.run.locks());
            let passes = checks.passes.entry(other.clone()).or_default();
            let could = cell.run.next_for(&lease.tags, &busy, now).is_some();
            *passes = if could { *passes + 1 } else { 0 };
            if *passes > PASSES_MAX {
                unfair = Some(other.clone());
            }
        }
        if let Some(other) = unfair {
            self.fail(format!("{other} waits for its turn while {run} is given another slot"));
        }
    }

    /// `run` is ending, and that is safe: whoever holds something of it must be told.
    pub(crate) fn expect_cancels(&mut self, run: &RunId) {
        let Some(cell) = self.server.cells.get(run) else { return };
        if !cell.run.phase().is_ending() {
            return;
        }
        let leased = cell.run.leased().filter_map(|job| {
            let (attempt, by) = job.state.lease()?;
            let number = worker::number(by.as_str())?;
            Some((number, id_of(&(run.clone(), job.plan.name.clone(), attempt.0))))
        });
        let leased: Vec<(usize, AttemptId)> = leased.collect();
        for (number, attempt) in leased {
            let session = self.server.scheduler.session_of(&worker::name(number).into());
            if let Some(session) = session
                && self.server.scheduler.holds(session, &attempt)
            {
                self.server.checks.cancels.insert((session.0, attempt), self.now);
            }
        }
    }

    pub(crate) fn check_cancels(&mut self) {
        let now = self.now;
        let Server { scheduler, checks, .. } = &mut self.server;
        checks.cancels.retain(|(conn, attempt), _| scheduler.holds(SessionId(*conn), attempt));
        let lost = checks.cancels.iter().find(|(_, since)| now > **since + CANCEL_WITHIN);
        let lost = lost.map(|((_, attempt), _)| attempt.clone());
        if let Some(attempt) = lost {
            self.fail(format!("nobody was told to end {attempt:?}"));
        }
    }
}

/// Whether a run ends from this event on.
pub(crate) fn begins_the_end(event: &RunEvent) -> bool {
    matches!(
        event,
        RunEvent::RunAborted { .. }
            | RunEvent::RunCancelRequested { .. }
            | RunEvent::RunTimedOut {}
    )
}
