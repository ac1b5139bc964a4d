//! Workers without a heartbeat: their sessions expire, and so do their leases unless they come
//! back. Attempts that are to be lost, until the log has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    CloseReason, Effect, LOCAL_WORKER_PREFIX, Loss, LossReason, Notice, RETRY_AFTER, Scheduler,
    SessionId,
};
use crate::ids::{AttemptId, WorkerName};

/// Workers that are not connected and whose leases expire.
#[derive(Debug, Default)]
pub(super) struct Absences {
    /// Time of their last heartbeat, and when it is checked next.
    since: BTreeMap<WorkerName, (Duration, Duration)>,
    due: BTreeSet<(Duration, WorkerName)>,
}

impl Absences {
    fn arm(&mut self, worker: &WorkerName, since: Duration, due: Duration) {
        self.disarm(worker);
        self.since.insert(worker.clone(), (since, due));
        self.due.insert((due, worker.clone()));
    }

    pub(super) fn disarm(&mut self, worker: &WorkerName) {
        if let Some((_, due)) = self.since.remove(worker) {
            self.due.remove(&(due, worker.clone()));
        }
    }

    /// A worker whose heartbeat is to be checked by `now`, and the time of the last one.
    fn take_due(&mut self, now: Duration) -> Option<(WorkerName, Duration)> {
        let (_, worker) = self.due.first().filter(|(due, _)| *due <= now)?.clone();
        let (since, _) = self.since.get(&worker).copied()?;
        self.disarm(&worker);
        Some((worker, since))
    }
}

impl Scheduler {
    pub(super) fn heartbeat(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.heard = self.now;
        }
    }

    pub(super) fn tick(&mut self) {
        if self.now.saturating_sub(self.last_tick) > self.lease / 2 {
            // The server itself was suspended: no heartbeat could have arrived.
            self.forgiven_at = self.now;
        }
        self.last_tick = self.now;
        self.expire_sessions();
        self.expire_leases();
        self.retry_losses();
        self.end_pauses();
    }

    /// Closes sessions without a heartbeat for as long as a lease lasts.
    fn expire_sessions(&mut self) {
        while let Some((due, id)) = self.expiries.first().copied()
            && due <= self.now
        {
            self.expiries.remove(&(due, id));
            let Some(session) = self.sessions.get(&id) else { continue };
            let heard = session.heard.max(self.forgiven_at);
            // A heartbeat only stores its time. Moving the deadline with each one would cost a tree
            // operation for every message of every worker.
            if heard + self.lease > self.now {
                self.expiries.insert((heard + self.lease, id));
                continue;
            }
            // The session first and the leases later: a worker that connects again within the lease
            // keeps its jobs.
            let Some(session) = self.remove_session(id) else { continue };
            let worker = session.hello.worker.clone();
            self.out.push(Effect::Notice(Notice::SessionExpired { worker }));
            self.out.push(Effect::Close { session: id, reason: CloseReason::Expired });
            self.end_session(id, &session, heard);
        }
    }

    /// Begins to wait for a worker that is not connected. Leases of a worker of this machine do not
    /// expire: the process that resumes its run finds the state of its jobs.
    pub(super) fn await_reconnect(&mut self, worker: &WorkerName, since: Duration) {
        // The worker of a `tow run` that was killed: its scripts still run, and only the next `tow
        // resume` can adopt them.
        if !worker.as_str().starts_with(LOCAL_WORKER_PREFIX) {
            self.absences.arm(worker, since, since + self.lease);
        }
    }

    fn expire_leases(&mut self) {
        while let Some((worker, since)) = self.absences.take_due(self.now) {
            let since = since.max(self.forgiven_at);
            if since + self.lease > self.now {
                self.absences.arm(&worker, since, since + self.lease);
                continue;
            }
            let Some(known) = self.workers.get(&worker) else { continue };
            if known.current.is_some() || known.reconciling.is_some() {
                // It is just coming back. If that fails it is looked at again.
                self.absences.arm(&worker, since, self.now + RETRY_AFTER);
                continue;
            }
            let leases: Vec<AttemptId> = known.leases.iter().cloned().collect();
            if leases.is_empty() {
                continue;
            }
            let (worker, count) = (worker.clone(), leases.len());
            self.out.push(Effect::Notice(Notice::LeasesExpired { worker, leases: count }));
            for attempt in leases {
                self.lose(&attempt, LossReason::NoHeartbeat);
            }
        }
    }

    /// Has an attempt recorded as lost, now and until the log has it.
    pub(super) fn lose(&mut self, attempt: &AttemptId, reason: LossReason) {
        let Some(lease) = self.leases.get(attempt) else { return };
        let worker = lease.worker.clone();
        let known = self.losses.get(attempt);
        // Being recorded already; a second effect would append the loss twice.
        if known.is_some_and(|loss| loss.retry_at.is_none()) {
            return;
        }
        self.drop_loss(attempt);
        self.workers.entry(worker.clone()).or_default().losing += 1;
        self.losses.insert(attempt.clone(), Loss { worker, reason, retry_at: None });
        self.out.push(Effect::Lose { attempt: attempt.clone(), reason });
    }

    /// Forgets a loss that failed and is to be retried.
    pub(super) fn drop_loss(&mut self, attempt: &AttemptId) {
        if let Some(at) = self.losses.get(attempt).and_then(|loss| loss.retry_at) {
            self.losses_due.remove(&(at, attempt.clone()));
            self.losses.remove(attempt);
        }
    }

    pub(super) fn lost(&mut self, attempt: &AttemptId, ok: bool) {
        let Some(loss) = self.losses.get_mut(attempt) else { return };
        let worker = loss.worker.clone();
        if ok {
            self.losses.remove(attempt);
        } else {
            // The others of the same worker are lost all the same.
            let at = self.now + RETRY_AFTER;
            loss.retry_at = Some(at);
            self.losses_due.insert((at, attempt.clone()));
        }
        if let Some(known) = self.workers.get_mut(&worker) {
            known.losing = known.losing.saturating_sub(1);
            known.failed |= !ok;
        }
        self.settle(&worker);
    }

    fn retry_losses(&mut self) {
        while let Some((at, attempt)) = self.losses_due.first().cloned()
            && at <= self.now
        {
            let reason = self.losses.get(&attempt).map(|loss| loss.reason);
            self.drop_loss(&attempt);
            self.losses_due.remove(&(at, attempt.clone()));
            // A session that holds it now holds it according to the log.
            let held = self.leases.get(&attempt).is_none_or(|lease| lease.session.is_some());
            if let Some(reason) = reason.filter(|_| !held) {
                self.lose(&attempt, reason);
            }
        }
    }

    /// Forgets a worker that is not connected and holds nothing.
    pub(super) fn forget_worker(&mut self, worker: &WorkerName) {
        let idle = |id: Option<SessionId>| id.is_none();
        let forgotten = self.workers.get(worker).is_some_and(|known| {
            let sessions = [known.current, known.reconciling, known.leaving];
            sessions.into_iter().all(idle) && known.leases.is_empty() && known.losing == 0
        });
        if forgotten {
            self.workers.remove(worker);
            self.absences.disarm(worker);
        }
    }
}
