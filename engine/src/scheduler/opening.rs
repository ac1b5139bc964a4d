//! How sessions begin and end. A worker's name belongs to one process at a time; what the log says
//! it holds and it does not name is lost before the session is given anything.
//!
//! ```text
//! hello ─▶ Opening ── reconciled ─▶ Settling ── all lost ─▶ Ready ── goodbye ─▶ Leaving ─▶ closed
//!               │                        │                      │
//!               └── log unreadable ──────┴──▶ closed ◀── no heartbeat, disconnected
//! ```
//!
//! One session of a worker at a time is opened, and none while leases of the worker are being
//! recorded as lost: a worker is either back or it is not.

use std::collections::BTreeSet;

use super::{
    CloseReason, Effect, Hello, LossReason, Message, Notice, Scheduler, SessionId,
    session::{Session, SessionStage},
};
use crate::ids::{AttemptId, RunId, WorkerName};

impl Scheduler {
    pub(super) fn hello(&mut self, id: SessionId, hello: Hello) {
        let worker = hello.worker.clone();
        let current = self.workers.get(&worker).and_then(|known| known.current);
        let old = current.and_then(|current| self.sessions.get(&current));
        // Two processes under one name would both run the jobs of that name. The same process
        // connects again after a lost connection.
        if old.is_some_and(|old| old.hello.worker_instance_id != hello.worker_instance_id) {
            let reason = CloseReason::NameTaken;
            return self.out.push(Effect::Close { session: id, reason });
        }
        // The old connection is half open at most; leases that are on their way to it are lost by
        // the reconciliation below.
        if let Some(old) = current {
            self.replace(old);
        }
        self.sessions.insert(id, Session::new(hello, self.now));
        self.expiries.insert((self.now + self.lease, id));
        self.workers.entry(worker.clone()).or_default().current = Some(id);
        self.reconcile(&worker);
    }

    /// The worker has opened another session: from here on nothing is leased to this one.
    fn replace(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.replaced = true;
        }
        self.count_tags(id);
        self.index_session(id);
    }

    /// Asks what the newest session of `worker` still holds, as soon as nothing of it is being
    /// lost or asked.
    pub(super) fn reconcile(&mut self, worker: &WorkerName) {
        let Some(known) = self.workers.get_mut(worker) else { return };
        let Some(id) = known.current.filter(|_| known.losing == 0 && known.reconciling.is_none())
        else {
            return;
        };
        let Some(session) = self.sessions.get(&id).filter(|it| it.stage == SessionStage::Opening)
        else {
            return;
        };
        // One at a time for each worker: two reconciliations would decide on each other's losses.
        known.reconciling = Some(id);
        self.reconciling.insert(id, worker.clone());
        let named = known.leases.iter().chain(&session.hello.held);
        let runs: BTreeSet<RunId> = named.map(|attempt| attempt.run.clone()).collect();
        // Losses that failed are decided again, by what the worker says that it holds.
        let leases: Vec<AttemptId> = known.leases.iter().cloned().collect();
        for attempt in leases {
            self.drop_loss(&attempt);
        }
        let worker = worker.clone();
        self.out.push(Effect::Reconcile { session: id, worker, runs });
    }

    pub(super) fn reconciled(&mut self, id: SessionId, leased: Option<Vec<AttemptId>>) {
        let Some(worker) = self.reconciling.remove(&id) else { return };
        let is_current = self.session_of(&worker) == Some(id);
        let Some(session) = self.sessions.get_mut(&id).filter(|_| is_current) else {
            return self.end_reconciling(&worker);
        };
        let Some(leased) = leased else {
            self.end_reconciling(&worker);
            return self.fail_opening(id);
        };
        let named = &session.hello.held;
        // By the log and not by memory: leases that are recorded and not held were assigned while
        // the worker was away.
        let (held, lost): (Vec<_>, Vec<_>) =
            leased.into_iter().partition(|attempt| named.contains(attempt));
        // Not ready yet: the losses must be durable before the worker gets new jobs, or one of them
        // could be the job that is being lost.
        session.stage = SessionStage::Settling;
        session.held = held.into_iter().map(|attempt| (attempt, false)).collect();
        for attempt in lost {
            self.lose(&attempt, LossReason::NotHeld);
        }
        self.settle(&worker);
    }

    fn end_reconciling(&mut self, worker: &WorkerName) {
        if let Some(known) = self.workers.get_mut(worker) {
            known.reconciling = None;
        }
        // A newer session may wait.
        self.reconcile(worker);
        self.forget_worker(worker);
    }

    /// Nothing of `worker` is being lost any more: what waited for it continues.
    pub(super) fn settle(&mut self, worker: &WorkerName) {
        let Some(known) = self.workers.get_mut(worker).filter(|known| known.losing == 0) else {
            return;
        };
        let failed = std::mem::take(&mut known.failed);
        if let Some(id) = known.leaving.take()
            && self.remove_session(id).is_some()
        {
            self.out.push(Effect::Close { session: id, reason: CloseReason::Left });
        }
        let Some(known) = self.workers.get_mut(worker) else { return };
        let Some(id) = known.reconciling else {
            self.reconcile(worker);
            return self.forget_worker(worker);
        };
        if self.reconciling.contains_key(&id) {
            // The log has not answered yet.
            return;
        }
        let is_current = known.current == Some(id);
        known.reconciling = None;
        if is_current && failed {
            self.fail_opening(id);
        } else if is_current {
            self.begin(id);
        } else {
            self.reconcile(worker);
        }
        self.forget_worker(worker);
    }

    /// It is neither back nor connected as before.
    fn fail_opening(&mut self, id: SessionId) {
        self.disconnected(id);
        let reason = CloseReason::Unavailable;
        self.out.push(Effect::Close { session: id, reason });
    }

    /// Lets a session begin: its welcome is the first message to the worker.
    fn begin(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.stage = SessionStage::Ready;
        // The answer names what is valid; the worker ends everything else that it holds.
        let held: BTreeSet<AttemptId> = session.held.keys().cloned().collect();
        let (worker, hello) = (session.hello.worker.clone(), session.hello.clone());
        self.absences.disarm(&worker);
        if let Some(run) = &hello.only {
            self.supply.join(run, id);
        }
        self.count_tags(id);
        let notice = Notice::WorkerConnected { worker, held: held.len() };
        self.out.push(Effect::Notice(notice));
        self.queue(id, Message::Welcome { held: held.clone() });
        self.out.push(Effect::Opened { session: id });
        for attempt in held {
            if let Some(lease) = self.leases.get_mut(&attempt) {
                lease.session = Some(id);
            }
            // The run was cancelled while the worker was away, and the message about it is lost.
            if self.runs.get(&attempt.run).is_some_and(|run| run.cancels) {
                self.cancel(id, &attempt);
            }
        }
        if let Some((run, job)) = hello.only.zip(hello.job) {
            // It may have ended since it was checked.
            self.out.push(Effect::CheckJob { session: id, run, job });
        }
        self.index_session(id);
        self.match_session(id);
    }

    pub(super) fn goodbye(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let worker = session.hello.worker.clone();
        if !session.is_ready() {
            self.disconnected(id);
            return self.out.push(Effect::Close { session: id, reason: CloseReason::Left });
        }
        session.stage = SessionStage::Leaving;
        self.count_tags(id);
        self.index_session(id);
        let leases: Vec<AttemptId> = match self.workers.get_mut(&worker) {
            Some(known) => {
                (known.current, known.leaving) = (None, Some(id));
                known.leases.iter().cloned().collect()
            }
            None => Vec::new(),
        };
        // The worker has said that it holds nothing any more: waiting for the expiry would only
        // delay its jobs.
        for attempt in leases {
            self.lose(&attempt, LossReason::Left);
        }
        self.settle(&worker);
    }

    /// Leases of the worker expire after a while, unless it comes back.
    pub(super) fn disconnected(&mut self, id: SessionId) {
        let Some(session) = self.remove_session(id) else { return };
        self.end_session(id, &session, self.now);
    }

    /// A session has been taken out; its worker's last heartbeat was at `heard`.
    pub(super) fn end_session(
        &mut self,
        id: SessionId,
        session: &Session,
        heard: std::time::Duration,
    ) {
        let worker = &session.hello.worker;
        let Some(known) = self.workers.get_mut(worker) else { return };
        if known.leaving == Some(id) {
            known.leaving = None;
        }
        if known.current == Some(id) {
            known.current = None;
            // From the last heartbeat and not from now: a connection that was dead for 20 seconds
            // must not add to the lease.
            self.await_reconnect(worker, heard);
        }
        self.forget_worker(worker);
    }

    pub(super) fn drain_requested(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.draining = true;
            self.index_session(id);
        }
    }

    pub(super) fn drain_changed(&mut self, worker: WorkerName, drained: bool) {
        let session = self.session_of(&worker);
        if drained {
            self.drained.insert(worker);
        } else {
            self.drained.remove(&worker);
        }
        if let Some(id) = session {
            self.index_session(id);
            self.match_session(id);
        }
    }
}
