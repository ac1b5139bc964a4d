//! Who is given which job: sessions of workers, their free slots, and the runs that can move.
//!
//! Nothing here is state that matters: a session that ends takes its entry with it, and what it
//! held is in the log.

mod acquiring;
mod connected;
mod silence;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
    sync::{
        Arc, Mutex as SyncMutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    decide::{Command, LeaseJob, LoseJob},
    event::{Fact, RunEvent},
    ids::{Actor, RunId, WorkerName},
};
use towpath_proto::v1;

use crate::{
    outputs::Key,
    runs::{CommandError, Loaded, Recorded, Runs, locked},
    sessions::{self, Outgoing, Session},
    wire,
};

/// The sessions, and the loop that serves them.
#[derive(Debug)]
pub(crate) struct Dispatch {
    runs: Arc<Runs>,
    /// How long a worker may be silent before its leases lapse.
    lease: Duration,
    sessions: SyncMutex<BTreeMap<u64, Session>>,
    next_session: AtomicU64,
    /// Held while a session is opened or leases lapse: a worker is either back or it is not.
    opening: Mutex<()>,
    /// Workers whose session ended, and when, until their leases lapse.
    gone: SyncMutex<BTreeMap<WorkerName, Instant>>,
    /// Workers that are given nothing new, because somebody said so.
    drained: SyncMutex<BTreeSet<WorkerName>>,
    /// The run that was last given a slot: others come first.
    turn: SyncMutex<RunId>,
}

impl Dispatch {
    pub(crate) fn new(runs: Arc<Runs>, lease_ms: u64) -> Self {
        Self {
            runs,
            lease: Duration::from_millis(lease_ms),
            sessions: SyncMutex::default(),
            next_session: AtomicU64::new(1),
            opening: Mutex::default(),
            gone: SyncMutex::default(),
            drained: SyncMutex::default(),
            turn: SyncMutex::new("".into()),
        }
    }

    /// How long a worker may be silent, in milliseconds.
    pub(crate) fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// Gives out jobs whenever something changed, until told to stop.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut looked = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.runs.changed.notified() => {}
                () = tokio::time::sleep(self.lease / 4) => {}
            }
            self.cancel_ending();
            if looked.elapsed() > self.lease / 2 {
                // It was us who slept: nobody could have been heard.
                self.forgive_silence();
            }
            looked = Instant::now();
            self.end_the_silent();
            self.turn_away().await;
            self.lose_the_gone().await;
            self.give_out().await;
        }
    }

    /// Gives out what can be given out now, in turn: one job of each run, and again from the
    /// beginning, so that a long run does not keep a short one waiting.
    pub(crate) async fn give_out(self: &Arc<Self>) {
        let last = locked(&self.turn).clone();
        let mut turns: std::collections::VecDeque<RunId> = {
            let movable = locked(&self.runs.movable);
            in_turn(&movable, &last).cloned().collect()
        };
        while let Some(run) = turns.pop_front() {
            let mut free: Vec<(u32, u64)> = locked(&self.sessions)
                .iter()
                .filter(|(_, session)| session.takes(&run))
                .map(|(id, session)| (self.free(session), *id))
                .filter(|(free, _)| *free > 0)
                .collect();
            // The least busy first; among equals, the one that came first.
            free.sort_by_key(|(free, id)| (Reverse(*free), *id));
            self.put_preferred_first(&run, &mut free).await;
            for (_, session) in free {
                if self.lease_one(session, &run).await {
                    *locked(&self.turn) = run.clone();
                    turns.push_back(run);
                    break;
                }
            }
        }
    }

    /// Reorders free sessions by how much the job that each would be given prefers them.
    async fn put_preferred_first(&self, run: &RunId, free: &mut [(u32, u64)]) {
        let Ok(loaded) = self.runs.ahead(run).await else { return };
        if !loaded.run.is_choosy() {
            return;
        }
        let (busy, now) = (self.runs.locks.of_others(run), self.runs.now());
        let sessions = locked(&self.sessions);
        free.sort_by_cached_key(|(_, id)| {
            let weight = sessions.get(id).and_then(|session| {
                let job = loaded.run.next_for(&session.tags, &busy, now)?;
                Some(job.plan.preference(&session.tags))
            });
            Reverse(weight)
        });
    }

    /// Whether the next job for `session` should be one of `run`, and then notes that it is.
    pub(crate) async fn take_turn(&self, session: u64, run: &RunId) -> bool {
        match self.runs.ahead(run).await {
            Ok(loaded) if !loaded.run.is_choosy() => {}
            Ok(_) | Err(_) => return false,
        }
        let last = locked(&self.turn).clone();
        let next = {
            let movable = locked(&self.runs.movable);
            let sessions = locked(&self.sessions);
            let Some(session) = sessions.get(&session) else { return false };
            in_turn(&movable, &last).find(|run| session.takes(run)).cloned()
        };
        let taken = next.as_ref().is_none_or(|next| next == run);
        if taken {
            *locked(&self.turn) = run.clone();
        }
        taken
    }

    /// How many jobs more `session` can be given.
    fn free(&self, session: &Session) -> u32 {
        if locked(&self.drained).contains(&session.worker) { 0 } else { session.free() }
    }

    /// Leases one job of `run` to `session`; says whether there was one.
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
            // At once, so that the slot is there for the next run.
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
        if self.free(session) < count {
            return None;
        }
        session.coming += count;
        let lease = Command::Lease(LeaseJob {
            worker: session.worker.clone(),
            tags: session.tags.clone(),
            lease_ms: self.lease_ms(),
            busy: BTreeMap::new(),
            only: session.job.clone(),
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
            && let Ok(loaded) = self.runs.ahead(run).await
        {
            for (fact, position) in recorded.facts.iter().zip(recorded.first..) {
                let fence = self.runs.fence_base + position;
                let assignment = wire::assignment(run, fact, fence, &loaded.run);
                messages.extend(assignment.map(|(key, message)| {
                    // Decided after the lease, but before it was durable.
                    let cancel = loaded.run.phase().is_ending().then(|| wire::cancel(&key));
                    (key, message, cancel)
                }));
            }
        }
        for key in self.send(session, messages, reserved) {
            // Nobody was told, so nobody runs it. A refusal says that it is lost already.
            drop(self.lose(&key, "its worker had gone").await);
        }
    }

    /// Gives back `reserved` slots and sends assignments; answers those that nobody is there for.
    fn send(
        &self,
        session: u64,
        messages: Vec<(Key, v1::ServerMessage, Option<v1::ServerMessage>)>,
        reserved: u32,
    ) -> Vec<Key> {
        let mut sessions = locked(&self.sessions);
        let Some(session) = sessions.get_mut(&session).filter(|session| !session.replaced) else {
            return messages.into_iter().map(|(key, ..)| key).collect();
        };
        session.coming = session.coming.saturating_sub(reserved);
        if reserved > 0 && messages.is_empty() {
            // A slot was kept for a run that had nothing for it: others may have.
            self.runs.changed.notify_one();
        }
        for (key, message, cancel) in messages {
            session.hold(key);
            for message in std::iter::once(message).chain(cancel) {
                // The queue is longer than the slots: full means that the session is dead.
                drop(session.send.try_send(Ok(message)));
            }
        }
        Vec::new()
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

    /// Opens a session. What the worker held before and does not name any more is lost. A worker
    /// whose name belongs to another process that is connected is refused.
    pub(crate) async fn open(
        self: &Arc<Self>,
        mut hello: v1::Hello,
        send: mpsc::Sender<Outgoing>,
    ) -> Result<(u64, Vec<Key>), CommandError> {
        sessions::check(&hello)?;
        let _opening = self.opening.lock().await;
        if locked(&self.sessions).values().any(|session| session.keeps_out(&hello)) {
            return Err(CommandError::WorkerNameTaken { name: hello.worker });
        }
        let only = match hello.run.as_str() {
            "" => None,
            asked => Some(locked(&self.runs.list).find(asked)?),
        };
        self.check_job(&hello, only.as_ref()).await?;
        let worker = WorkerName::from(hello.worker.as_str());
        // From here on nothing is leased to what went before.
        for session in locked(&self.sessions).values_mut() {
            session.replaced |= session.worker == worker;
        }
        let holding: Vec<Key> =
            std::mem::take(&mut hello.holding).into_iter().map(wire::key).collect();
        let held = match self.reconcile(&worker, only.as_ref(), &holding).await {
            Ok(held) => held,
            Err(error) => {
                // It is neither back nor connected as before.
                self.await_return(worker, Instant::now());
                return Err(error);
            }
        };
        locked(&self.gone).remove(&worker);
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        let mut session = Session::new(hello, only, self.runs.now(), send);
        session.held.extend(held.iter().cloned());
        locked(&self.sessions).insert(id, session);
        Ok((id, held))
    }

    /// Of what `worker` holds, what still counts. What it was given and does not name is lost.
    async fn reconcile(
        &self,
        worker: &WorkerName,
        only: Option<&RunId>,
        holding: &[Key],
    ) -> Result<Vec<Key>, CommandError> {
        let mut held = Vec::new();
        for run in self.runs_of(only) {
            for key in self.leased_by(&run, worker).await? {
                if holding.contains(&key) {
                    held.push(key);
                } else {
                    self.lose(&key, "its worker came back without it").await?;
                }
            }
        }
        Ok(held)
    }

    /// Lets a session begin: until then it is given nothing, so that its welcome comes first.
    pub(crate) async fn begin(&self, session: u64, keys: &[Key]) {
        if let Some(session) = locked(&self.sessions).get_mut(&session) {
            session.begun = true;
        }
        for key in keys {
            if let Ok(loaded) = self.runs.ahead(&key.run).await
                && loaded.run.phase().is_ending()
                && let Some(session) = locked(&self.sessions).get(&session)
            {
                drop(session.send.try_send(Ok(wire::cancel(key))));
            }
        }
        self.runs.changed.notify_one();
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

    /// Closes a session. Its leases lapse after a while, unless the worker comes back.
    pub(crate) fn close(&self, session: u64) {
        let closed = locked(&self.sessions).remove(&session);
        if let Some(mut session) = closed {
            session.heard = Instant::now();
            self.miss_session(session);
        }
    }

    /// The worker of `session` goes and holds nothing: what was on its way to it is lost.
    pub(crate) async fn leave(&self, session: u64) -> Result<(), CommandError> {
        let _opening = self.opening.lock().await;
        let Some(session) = locked(&self.sessions).remove(&session) else { return Ok(()) };
        if session.replaced {
            return Ok(());
        }
        for run in self.runs_of(None).into_iter().filter(|run| session.takes(run)) {
            for key in self.leased_by(&run, &session.worker).await? {
                self.lose(&key, "its worker left").await?;
            }
        }
        Ok(())
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

    fn runs_of(&self, only: Option<&RunId>) -> Vec<RunId> {
        match only {
            Some(run) => vec![run.clone()],
            None => self.runs.live(),
        }
    }

    /// What `worker` holds, as far as the disk knows: what it is told, it acts on.
    async fn leased_by(&self, run: &RunId, worker: &WorkerName) -> Result<Vec<Key>, CommandError> {
        let leased = |loaded: &Loaded| {
            let leased = loaded.run.leased().filter_map(|job| {
                let (attempt, by) = job.state.lease()?;
                let key = || Key { run: run.clone(), job: job.plan.name.clone(), attempt };
                (by == worker).then(key)
            });
            leased.collect()
        };
        self.runs.look(run, leased).await
    }

    /// Takes in that the holder of `key` is gone.
    pub(crate) async fn lose(&self, key: &Key, reason: &str) -> Result<(), CommandError> {
        let (job, attempt, reason) = (key.job.clone(), key.attempt, reason.to_owned());
        let lose = Command::Lose(LoseJob { job, attempt, reason });
        self.runs.execute(&key.run, lose, &Actor::timer()).await.map(drop)
    }
}

/// The runs from the one after `last` on, and then from the beginning.
fn in_turn<'a>(runs: &'a BTreeSet<RunId>, last: &'a RunId) -> impl Iterator<Item = &'a RunId> {
    let after = runs.range::<RunId, _>((Excluded(last), Unbounded));
    after.chain(runs.range::<RunId, _>(..=last))
}

#[cfg(test)]
mod tests {
    use towpath_engine::{ids::Attempt, job::JobState};

    use super::*;
    use crate::desk::{Desk, WORKER, job, success};

    fn hello(holding: &[&Key]) -> v1::Hello {
        let holding = holding.iter().map(|key| wire::holding(key)).collect();
        v1::Hello { worker: WORKER.into(), slots: 4, holding, ..Default::default() }
    }

    #[tokio::test]
    async fn a_worker_that_comes_back_is_told_what_the_disk_knows() {
        for (waiting_max, kept) in [(1, false), (0, true)] {
            let desk = Desk::new();
            let run = desk.begins("r", vec![job("a", &[])]).await;
            let key = Key { run: run.clone(), job: "a".into(), attempt: Attempt(1) };
            let dispatch = Arc::new(Dispatch::new(Arc::clone(&desk.runs), 1_000));
            desk.store.stand_still(waiting_max);
            drop(desk.queues(&run, success("a")).await);

            let back = dispatch.open(hello(&[&key]), mpsc::channel(1).0);
            let (welcome, ()) = tokio::join!(back, async { desk.store.go_on() });

            assert_eq!(welcome.unwrap().1.contains(&key), kept);
        }
    }

    #[tokio::test]
    async fn a_worker_whose_return_failed_is_waited_for() {
        let desk = Desk::new();
        let run = desk.begins("r", vec![job("a", &[])]).await;
        let dispatch = Arc::new(Dispatch::new(Arc::clone(&desk.runs), 0));
        desk.store.stand_still(0);

        let back = dispatch.open(hello(&[]), mpsc::channel(1).0).await;
        assert!(matches!(back, Err(CommandError::StoreBusy)));
        desk.store.go_on();
        dispatch.lose_the_gone().await;

        assert_eq!(desk.state(&run, "a").await, JobState::Requeued);
    }
}
