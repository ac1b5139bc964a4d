//! Who is given which job: sessions of workers, their free slots, and the runs that can move.
//!
//! Nothing here is state that matters: a session that ends takes its entry with it, and what it
//! held is in the log.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex as SyncMutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use towpath_engine::{
    decide::{Command, LeaseJob, LoseJob},
    event::{Fact, RunEvent},
    ids::{Actor, RunId, WorkerName},
    run::Job,
};
use towpath_proto::v1;

use crate::{
    LEASE_MS, LOCAL_WORKER_PREFIX,
    outputs::Key,
    runs::{Recorded, Runs, locked},
    wire,
};

/// Messages that may wait for one worker. More than its slots could ever cause.
pub(crate) const SESSION_QUEUE: usize = 4_096;
/// Most slots of one worker.
pub(crate) const SLOTS_MAX: u32 = 4_096;

/// A message on its way to a worker.
pub(crate) type Outgoing = Result<v1::ServerMessage, Status>;

/// A worker that is connected.
#[derive(Debug)]
struct Session {
    worker: WorkerName,
    slots: u32,
    tags: Vec<String>,
    /// Only jobs of this run.
    only: Option<RunId>,
    draining: bool,
    held: HashSet<Key>,
    /// Leases that were queued and are not durable yet.
    coming: u32,
    /// When it last said anything.
    heard: Instant,
    send: mpsc::Sender<Outgoing>,
}

impl Session {
    fn free(&self) -> u32 {
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        if self.draining { 0 } else { self.slots.saturating_sub(held).saturating_sub(self.coming) }
    }

    fn takes(&self, run: &RunId) -> bool {
        self.only.as_ref().is_none_or(|only| only == run)
    }
}

/// The sessions, and the loop that serves them.
#[derive(Debug)]
pub(crate) struct Dispatch {
    runs: Arc<Runs>,
    sessions: SyncMutex<BTreeMap<u64, Session>>,
    next_session: AtomicU64,
    /// Workers whose session ended, and when, until their leases lapse.
    gone: SyncMutex<BTreeMap<WorkerName, Instant>>,
}

impl Dispatch {
    pub(crate) fn new(runs: Arc<Runs>) -> Self {
        Self {
            runs,
            sessions: SyncMutex::default(),
            next_session: AtomicU64::new(1),
            gone: SyncMutex::default(),
        }
    }

    /// Gives out jobs whenever something changed, until told to stop.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut looked = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.runs.changed.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(LEASE_MS / 4)) => {}
            }
            self.cancel_ending();
            if looked.elapsed() > Duration::from_millis(LEASE_MS / 2) {
                // It was us who slept: nobody could have been heard.
                self.forgive_silence();
            }
            looked = Instant::now();
            self.end_the_silent();
            self.lose_the_gone().await;
            self.give_out().await;
        }
    }

    /// Gives out what can be given out now.
    pub(crate) async fn give_out(self: &Arc<Self>) {
        let mut movable: Vec<RunId> = locked(&self.runs.movable).iter().cloned().collect();
        movable.sort();
        for run in movable {
            let sessions: Vec<u64> = locked(&self.sessions)
                .iter()
                .filter(|(_, session)| session.free() > 0 && session.takes(&run))
                .map(|(id, _)| *id)
                .collect();
            for session in sessions {
                while self.lease_one(session, &run).await {}
            }
        }
    }

    /// Leases one job of `run` to `session`; says whether to ask again.
    async fn lease_one(self: &Arc<Self>, session: u64, run: &RunId) -> bool {
        let Some((lease, by)) = self.reserve(session, 1) else { return false };
        let queued = self.runs.queue(run, &[lease], &by).await;
        let queued = match queued {
            Ok(queued) => queued,
            Err(error) => {
                self.release(session, 1);
                tracing::warn!(%run, %error, "no lease");
                return false;
            }
        };
        if queued.facts == 0 {
            self.release(session, 1);
            return false;
        }
        let (dispatch, run) = (Arc::clone(self), run.clone());
        tokio::spawn(async move {
            match queued.done.await {
                Ok(recorded) => dispatch.assign(session, &run, &recorded, 1).await,
                Err(error) => {
                    dispatch.release(session, 1);
                    tracing::warn!(%run, %error, "no lease");
                }
            }
        });
        true
    }

    /// Takes `count` free slots of `session` for leases that are being decided.
    pub(crate) fn reserve(&self, session: u64, count: u32) -> Option<(Command, Actor)> {
        let mut sessions = locked(&self.sessions);
        let session = sessions.get_mut(&session)?;
        if session.free() < count {
            return None;
        }
        session.coming += count;
        let lease = Command::Lease(LeaseJob {
            worker: session.worker.clone(),
            tags: session.tags.clone(),
            lease_ms: LEASE_MS,
            busy: BTreeMap::new(),
        });
        Some((lease, Actor::worker(session.worker.as_str())))
    }

    pub(crate) fn release(&self, session: u64, count: u32) {
        if let Some(session) = locked(&self.sessions).get_mut(&session) {
            session.coming = session.coming.saturating_sub(count);
        }
    }

    /// Gives back `reserved` slots, and sends the leases among what was recorded, which is durable
    /// by now, to their worker.
    pub(crate) async fn assign(
        &self,
        session: u64,
        run: &RunId,
        recorded: &Recorded,
        reserved: u32,
    ) {
        let mut messages = Vec::new();
        let leased = |fact: &Fact| matches!(fact.event, RunEvent::JobLeased { .. });
        if recorded.facts.iter().any(leased)
            && let Ok(cell) = self.runs.cell(run).await
        {
            let loaded = cell.lock().await;
            for (fact, position) in recorded.facts.iter().zip(recorded.first..) {
                let assignment = wire::assignment(run, fact, position, &loaded.run);
                messages.extend(assignment.map(|(key, message)| {
                    // Decided after the lease, but before it was durable.
                    let cancel = loaded.run.phase().is_ending().then(|| wire::cancel(&key));
                    (key, message, cancel)
                }));
            }
        }
        let mut sessions = locked(&self.sessions);
        let Some(session) = sessions.get_mut(&session) else { return };
        session.coming = session.coming.saturating_sub(reserved);
        for (key, message, cancel) in messages {
            session.held.insert(key);
            for message in std::iter::once(message).chain(cancel) {
                // The queue is longer than the slots: full means that the session is dead.
                drop(session.send.try_send(Ok(message)));
            }
        }
    }

    /// Tells workers to end what runs of the runs that are ending.
    fn cancel_ending(&self) {
        let ending = std::mem::take(&mut *locked(&self.runs.ending));
        for session in locked(&self.sessions).values() {
            for key in session.held.iter().filter(|key| ending.contains(&key.run)) {
                drop(session.send.try_send(Ok(wire::cancel(key))));
            }
        }
    }

    /// Opens a session. What the worker held before and does not name any more is lost.
    pub(crate) async fn open(
        self: &Arc<Self>,
        hello: v1::Hello,
        send: mpsc::Sender<Outgoing>,
    ) -> Result<(u64, Vec<Key>), crate::CommandError> {
        let worker = WorkerName::from(hello.worker);
        let only = match hello.run.as_str() {
            "" => None,
            asked => Some(locked(&self.runs.list).find(asked)?),
        };
        let holding: Vec<Key> = hello.holding.into_iter().map(wire::key).collect();
        let mut held = Vec::new();
        for run in self.runs_of(only.as_ref()) {
            for key in self.leased_by(&run, &worker).await? {
                if holding.contains(&key) {
                    held.push(key);
                } else {
                    self.lose(&key, "its worker came back without it").await?;
                }
            }
        }
        locked(&self.gone).remove(&worker);
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        let session = Session {
            worker,
            slots: hello.slots.clamp(1, SLOTS_MAX),
            tags: hello.tags,
            only,
            draining: false,
            held: held.iter().cloned().collect(),
            coming: 0,
            heard: Instant::now(),
            send,
        };
        locked(&self.sessions).insert(id, session);
        Ok((id, held))
    }

    /// Lets a session begin: until then it is given nothing, so that its welcome comes first.
    pub(crate) async fn begin(&self, session: u64, keys: &[Key]) {
        for key in keys {
            if let Ok(cell) = self.runs.cell(&key.run).await
                && cell.lock().await.run.phase().is_ending()
                && let Some(session) = locked(&self.sessions).get(&session)
            {
                drop(session.send.try_send(Ok(wire::cancel(key))));
            }
        }
        self.runs.changed.notify_one();
    }

    /// Begins to wait for the workers that hold `leased`: the server has only just begun.
    pub(crate) fn miss<'a>(&self, leased: impl Iterator<Item = &'a Job>) {
        for (_, worker) in leased.filter_map(|job| job.state.lease()) {
            self.await_return(worker.clone(), Instant::now());
        }
    }

    /// The worker wants nothing more.
    pub(crate) fn drain(&self, session: u64) {
        if let Some(session) = locked(&self.sessions).get_mut(&session) {
            session.draining = true;
        }
    }

    /// The report of an attempt came in: its slot is free.
    pub(crate) fn free_slot(&self, session: u64, key: &Key) {
        if let Some(session) = locked(&self.sessions).get_mut(&session) {
            session.held.remove(key);
        }
    }

    /// Whether `session` was given this attempt: nobody reports about what others hold.
    pub(crate) fn holds(&self, session: u64, key: &Key) -> bool {
        locked(&self.sessions).get(&session).is_some_and(|session| session.held.contains(key))
    }

    /// The name that `session` goes by.
    pub(crate) fn worker(&self, session: u64) -> Option<WorkerName> {
        locked(&self.sessions).get(&session).map(|session| session.worker.clone())
    }

    /// The worker of `session` said something.
    pub(crate) fn hear(&self, session: u64) {
        if let Some(session) = locked(&self.sessions).get_mut(&session) {
            session.heard = Instant::now();
        }
    }

    fn forgive_silence(&self) {
        let now = Instant::now();
        locked(&self.sessions).values_mut().for_each(|session| session.heard = now);
        locked(&self.gone).values_mut().for_each(|since| *since = now);
    }

    /// Ends the sessions of workers that have been silent for as long as a lease lasts.
    fn end_the_silent(&self) {
        let silent: Vec<u64> = locked(&self.sessions)
            .iter()
            .filter(|(_, session)| session.heard.elapsed() >= Duration::from_millis(LEASE_MS))
            .map(|(id, _)| *id)
            .collect();
        for id in silent {
            if let Some(session) = locked(&self.sessions).remove(&id) {
                tracing::warn!(worker = %session.worker, "silent for too long");
                self.await_return(session.worker, session.heard);
            }
        }
    }

    /// Begins to wait for a worker that is not there. Its leases lapse unless it comes back; those
    /// of a worker of this machine do not: whoever resumes its run finds what became of its jobs.
    fn await_return(&self, worker: WorkerName, since: Instant) {
        if !worker.as_str().starts_with(LOCAL_WORKER_PREFIX) {
            locked(&self.gone).insert(worker, since);
        }
    }

    /// Closes a session. Its leases lapse after a while, unless the worker comes back.
    pub(crate) fn close(&self, session: u64) {
        let closed = locked(&self.sessions).remove(&session);
        let named = |session: &Session, worker: &WorkerName| session.worker == *worker;
        // Not if it is back already, under a newer session.
        let closed = closed.filter(|closed| {
            !locked(&self.sessions).values().any(|session| named(session, &closed.worker))
        });
        if let Some(session) = closed {
            self.await_return(session.worker, Instant::now());
        }
    }

    /// What a job waits for in a worker, if nobody connected offers it.
    pub(crate) fn offers(&self, run: &RunId, tags: &[String]) -> bool {
        locked(&self.sessions)
            .values()
            .any(|session| session.takes(run) && tags.iter().all(|tag| session.tags.contains(tag)))
    }

    /// Whether any worker is there for `run`.
    pub(crate) fn has_worker(&self, run: &RunId) -> bool {
        locked(&self.sessions).values().any(|session| !session.draining && session.takes(run))
    }

    async fn lose_the_gone(&self) {
        let lapsed: Vec<WorkerName> = locked(&self.gone)
            .iter()
            .filter(|(_, since)| since.elapsed() >= Duration::from_millis(LEASE_MS))
            .map(|(worker, _)| worker.clone())
            .collect();
        for worker in lapsed {
            for run in self.runs_of(None) {
                let Ok(keys) = self.leased_by(&run, &worker).await else { continue };
                for key in keys {
                    if let Err(error) = self.lose(&key, "its worker has been silent").await {
                        tracing::warn!(run = %key.run, job = %key.job, %error, "not lost yet");
                    }
                }
            }
            locked(&self.gone).remove(&worker);
        }
    }

    fn runs_of(&self, only: Option<&RunId>) -> Vec<RunId> {
        match only {
            Some(run) => vec![run.clone()],
            None => locked(&self.runs.list).live().cloned().collect(),
        }
    }

    async fn leased_by(
        &self,
        run: &RunId,
        worker: &WorkerName,
    ) -> Result<Vec<Key>, crate::CommandError> {
        let cell = self.runs.cell(run).await?;
        let loaded = cell.lock().await;
        let leased = loaded.run.leased().filter_map(|job| {
            let (attempt, by) = job.state.lease()?;
            let key = || Key { run: run.clone(), job: job.plan.name.clone(), attempt };
            (by == worker).then(key)
        });
        Ok(leased.collect())
    }

    /// Takes in that the holder of `key` is gone.
    pub(crate) async fn lose(&self, key: &Key, reason: &str) -> Result<(), crate::CommandError> {
        let (job, attempt, reason) = (key.job.clone(), key.attempt, reason.to_owned());
        let lose = Command::Lose(LoseJob { job, attempt, reason });
        self.runs.execute(&key.run, lose, &Actor::timer()).await.map(drop)
    }
}
