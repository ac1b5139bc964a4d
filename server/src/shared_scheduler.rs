//! The scheduler of the engine, shared by all tasks that feed it inputs, and the connections of its
//! sessions.
//!
//! Whatever it wants to be done that needs no log is done here and at once; the rest goes to the
//! driver (`scheduler_driver`).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex as SyncMutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    decide::LeaseJob,
    event::Fact,
    ids::{RunId, WorkerName},
    run::LockUsage,
    scheduler::{CloseReason, Effect, Input, Message, Notice, Scheduler, SessionId},
    views::{LifecycleStep, lifecycle_step},
};
use towpath_proto::v1;

use crate::{command_error::CommandError, outbox::Outbox, status, sync::locked};

/// Shortest time that a worker may send no heartbeat.
const LEASE_MIN: Duration = Duration::from_millis(4);

/// A connection that the scheduler knows as a session.
#[derive(Debug)]
struct Connection {
    outbox: Outbox,
    /// Messages wait for it.
    wake: Arc<Notify>,
    /// Cancelled when the session has ended.
    closed: CancellationToken,
    /// Who waits for the session to be open.
    opening: Option<oneshot::Sender<Result<(), CommandError>>>,
    /// Why it could not be opened.
    error: Option<CommandError>,
}

/// What the task that delivers the messages of a session waits for.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) wake: Arc<Notify>,
    /// A message was taken to be delivered.
    pub(crate) taken: Arc<Notify>,
    pub(crate) closed: CancellationToken,
}

/// The scheduler and its connections.
#[derive(Debug)]
pub(crate) struct SharedScheduler {
    scheduler: SyncMutex<Scheduler>,
    /// The zero of the scheduler's time.
    started: Instant,
    connections: SyncMutex<HashMap<SessionId, Connection>>,
    next_session: AtomicU64,
    /// Bounded by what the scheduler asks for: one lease of each run, one loss of each lease, one
    /// reconciliation of each session at a time.
    work: mpsc::UnboundedSender<Effect>,
    /// Whether no lease is being decided.
    settled: watch::Sender<bool>,
    /// The scheduler wants to be woken at another time.
    alarm: Notify,
    /// The version of what wants a worker.
    wanted: watch::Sender<u64>,
    /// Why the store takes no leases.
    store_error: SyncMutex<String>,
}

/// What the report of an attempt is to be recorded with.
#[derive(Debug)]
pub(crate) struct Record {
    /// Who reports.
    pub(crate) worker: WorkerName,
    /// The next lease for the slot that is free now, in the same append.
    pub(crate) lease: Option<LeaseJob>,
}

impl SharedScheduler {
    /// A scheduler of leases that expire after `lease`, and what it wants its driver to do.
    pub(crate) fn new(lease: Duration) -> (Arc<Self>, mpsc::UnboundedReceiver<Effect>) {
        let (work, receive) = mpsc::unbounded_channel();
        let shared = Self {
            // At least a moment, or time would never be passed.
            scheduler: SyncMutex::new(Scheduler::new(lease.max(LEASE_MIN))),
            started: Instant::now(),
            connections: SyncMutex::default(),
            next_session: AtomicU64::new(1),
            work,
            settled: watch::Sender::new(true),
            alarm: Notify::new(),
            wanted: watch::Sender::new(0),
            store_error: SyncMutex::default(),
        };
        (Arc::new(shared), receive)
    }

    /// Tells the scheduler what happened, and has done what it wants to be done. Answers what a
    /// report is to be recorded with, if that was one.
    pub(crate) fn on(&self, input: Input<'_>) -> Option<Record> {
        if let Input::RunDurable { run, facts, .. } = &input {
            log_lifecycle(run, facts);
        }
        let mut effects = Vec::new();
        let (alarm, wanted) = {
            let mut scheduler = locked(&self.scheduler);
            let before = scheduler.next_wake();
            scheduler.on(input, self.started.elapsed(), &mut effects);
            // Routed under the lock: else effects of two inputs could change places.
            let record = self.route(effects);
            if scheduler.next_wake() != before {
                self.alarm.notify_one();
            }
            self.note_settled(&scheduler);
            (record, scheduler.wanted_version())
        };
        self.wanted.send_if_modified(|version| std::mem::replace(version, wanted) != wanted);
        alarm
    }

    fn route(&self, effects: Vec<Effect>) -> Option<Record> {
        let mut record = None;
        for effect in effects {
            match effect {
                Effect::Record { worker, lease } => record = Some(Record { worker, lease }),
                Effect::Opened { session } => self.opened(session),
                Effect::Deliver { session } => {
                    if let Some(connection) = locked(&self.connections).get(&session) {
                        connection.wake.notify_one();
                    }
                }
                Effect::Close { session, reason } => self.close(session, reason),
                Effect::Notice(notice) => self.log(&notice),
                work @ (Effect::Lease { .. }
                | Effect::Lose { .. }
                | Effect::Reconcile { .. }
                | Effect::CheckJob { .. }) => {
                    // The driver is missing only while the server is closing.
                    // The driver has ended, and the log takes nothing any more.
                    let _ = self.work.send(work);
                }
            }
        }
        record
    }

    /// A connection under a new number, and how it is known whether the session was opened.
    pub(crate) fn connect(
        &self,
        outbox: Outbox,
    ) -> (SessionId, Delivery, oneshot::Receiver<Result<(), CommandError>>) {
        let session = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let (tell, told) = oneshot::channel();
        let (wake, closed) = (Arc::new(Notify::new()), CancellationToken::new());
        let taken = Arc::new(Notify::new());
        let delivery = Delivery { wake: Arc::clone(&wake), taken, closed: closed.clone() };
        let connection = Connection { outbox, wake, closed, opening: Some(tell), error: None };
        locked(&self.connections).insert(session, connection);
        (session, delivery, told)
    }

    fn opened(&self, session: SessionId) {
        let mut connections = locked(&self.connections);
        let connection = connections.get_mut(&session);
        if let Some(opening) = connection.and_then(|connection| connection.opening.take()) {
            // No task waits any more if the connection was lost meanwhile.
            let _ = opening.send(Ok(()));
        }
    }

    /// Keeps why a session could not be opened until the scheduler has closed it.
    pub(crate) fn note_error(&self, session: SessionId, error: CommandError) {
        if let Some(connection) = locked(&self.connections).get_mut(&session) {
            connection.error = Some(error);
        }
    }

    fn close(&self, session: SessionId, reason: CloseReason) {
        let connection = locked(&self.connections).remove(&session);
        let Some(Connection { outbox, closed, opening, error, .. }) = connection else { return };
        if reason == CloseReason::Left && opening.is_none() {
            tracing::info!(worker = %outbox.worker(), "worker disconnected: it stops");
        }
        let error = match reason {
            CloseReason::NameTaken => Some(CommandError::WorkerNameTaken { name: outbox.worker() }),
            CloseReason::Unavailable => Some(error.unwrap_or(CommandError::StoreBusy)),
            // It opens another session and says what it holds.
            CloseReason::Expired | CloseReason::Left => None,
        };
        match (opening, error) {
            (Some(opening), Some(error)) => drop(opening.send(Err(error))),
            (_, Some(error)) => outbox.end(Some(status::of(error))),
            (_, None) => outbox.end(None),
        }
        closed.cancel();
    }

    /// The connection of a session has ended: on `error`, if there is one to be told.
    pub(crate) fn disconnect(&self, session: SessionId, error: Option<CommandError>) {
        let connection = locked(&self.connections).remove(&session);
        if let Some(Connection { outbox, closed, opening, .. }) = connection {
            // A session that was refused was never connected, and has no line of its own.
            if opening.is_none() {
                tracing::info!(worker = %outbox.worker(), "worker disconnected");
            }
            outbox.end(error.map(status::of));
            closed.cancel();
        }
        self.on(Input::Disconnected { session });
    }

    /// Ends the session of `worker` if its connection is broken and this was not noticed yet: else
    /// a process that was just ended would keep its name from the next.
    pub(crate) fn disconnect_broken(&self, worker: &WorkerName) {
        let Some(session) = locked(&self.scheduler).session_of(worker) else { return };
        let broken = |connection: &Connection| connection.outbox.is_closed();
        if locked(&self.connections).get(&session).is_none_or(broken) {
            self.disconnect(session, None);
        }
    }

    /// The session lives, although nothing is read from it now: `heartbeat` says so to its worker.
    pub(crate) fn keep_alive(&self, session: SessionId, heartbeat: v1::SessionResponse) {
        self.on(Input::Heartbeat { session });
        let outbox = locked(&self.connections).get(&session).map(|found| found.outbox.clone());
        if let Some(outbox) = outbox {
            outbox.try_send(heartbeat);
        }
    }

    /// The next message for a session.
    pub(crate) fn next_message(&self, session: SessionId) -> Option<Message> {
        let mut effects = Vec::new();
        let mut scheduler = locked(&self.scheduler);
        let message = scheduler.next_message(session, &mut effects);
        self.route(effects);
        self.note_settled(&scheduler);
        message
    }

    /// Called under the lock of `scheduler`: an older answer must not replace a newer one.
    fn note_settled(&self, scheduler: &Scheduler) {
        let settled = scheduler.is_settled();
        self.settled.send_if_modified(|known| std::mem::replace(known, settled) != settled);
    }

    /// Looks at the scheduler.
    pub(crate) fn inspect<T>(&self, look: impl FnOnce(&Scheduler) -> T) -> T {
        look(&locked(&self.scheduler))
    }

    /// How many jobs of other runs hold each of the locks that `names` says.
    pub(crate) fn locks_of_others<'n>(
        &self,
        run: &RunId,
        names: impl IntoIterator<Item = &'n str>,
    ) -> LockUsage {
        self.inspect(|scheduler| scheduler.locks_of_others(run, names))
    }

    /// How long a worker may send no heartbeat, in milliseconds.
    pub(crate) fn lease_ms(&self) -> u64 {
        self.inspect(|scheduler| u64::try_from(scheduler.lease().as_millis()).unwrap_or(u64::MAX))
    }

    /// Tells when what wants a worker changes.
    pub(crate) fn watch_wanted(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    /// Waits until the scheduler wants time to be passed, beyond the regular ticks.
    pub(crate) async fn wait_for_alarm(&self) {
        loop {
            let wait =
                self.inspect(|all| Some(all.next_wake()?.saturating_sub(self.started.elapsed())));
            let passed = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = passed => return,
                () = self.alarm.notified() => {}
            }
        }
    }

    /// Waits until every lease that could be given out now has been decided.
    pub(crate) async fn settle(&self) {
        let mut settled = self.settled.subscribe();
        tokio::select! {
            // The sender lives as long as this.
            _ = settled.wait_for(|settled| *settled) => {}
            // There is no driver any more, and nothing is decided.
            () = self.work.closed() => {}
        }
    }

    /// Why the store took no lease the last time, in words.
    pub(crate) fn store_error(&self) -> String {
        locked(&self.store_error).clone()
    }

    /// Keeps why the store took no lease, for the log line about it.
    pub(crate) fn note_store_error(&self, error: String) {
        *locked(&self.store_error) = error;
    }

    fn log(&self, notice: &Notice) {
        match notice {
            Notice::WorkerConnected { worker, held } => {
                tracing::info!(%worker, held, "worker connected");
            }
            Notice::SessionExpired { worker } => {
                tracing::warn!(%worker, "worker session expired: no heartbeat");
            }
            Notice::LeasesExpired { worker, leases } => {
                tracing::warn!(%worker, leases, "worker lost: its leases expire");
            }
            Notice::RunHeldBack { run } => {
                tracing::warn!(%run, "run not leased: a lease failed, it is tried every second");
            }
            Notice::LeasingPaused => {
                let error = locked(&self.store_error).clone();
                tracing::warn!(error, "leasing paused: the store takes no leases");
            }
            Notice::LeasingResumed => tracing::info!("leasing resumed"),
        }
    }
}

/// One line for each step of a run's life that is durable: what happened in between is in the log
/// of the store, and a line for each lease would hide these.
fn log_lifecycle(run: &RunId, facts: &[Fact]) {
    for fact in facts {
        let by = &fact.by;
        match lifecycle_step(&fact.event) {
            Some(LifecycleStep::Created { pipeline, jobs }) => {
                tracing::info!(%run, pipeline, jobs, %by, "run created");
            }
            Some(LifecycleStep::Resumed) => tracing::info!(%run, %by, "run resumed"),
            Some(LifecycleStep::Finished { outcome }) => {
                tracing::info!(%run, outcome = outcome.word(), "run finished");
            }
            None => {}
        }
    }
}
