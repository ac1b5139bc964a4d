//! Load, decide, append: the only way into the log.

mod decide_all;
mod set_aside;
mod snapshots;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    decide::{Command, Written},
    event::Fact,
    ids::{Actor, RunId},
    log_clock::{Jump, LogClock},
    run::Run,
    scheduler::{DueTimes, Input},
    time::Timestamp,
};
use towpath_storage::{
    AppendError, DiskSpace, EventStore, NewRecord, Position, StoreError, Version,
};
use tracing::Instrument as _;

pub use crate::command_error::CommandError;
use crate::{
    Clock,
    followers::Followers,
    load::{self, LoadedRun},
    metric_values::EventCounters,
    run_cells::{RunCells, changes_idle},
    run_list::RunList,
    shared_scheduler::SharedScheduler,
    telemetry::spans::Ended,
};
use decide_all::NotDecided;

/// How often a lost race is decided again before the caller is told to come back.
const TRIES_MAX: usize = 8;
/// A snapshot is written when a run has grown by this many events since the last.
const SNAPSHOT_EVERY: Version = 20_000;

/// A run in memory.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) run: Run,
    /// The version that the next append expects.
    pub(crate) version: Version,
    /// The position of the newest record whose append was acknowledged.
    pub(crate) position: Position,
    pub(crate) snapshot_version: Version,
    /// The newest version known to be durable; closed when what memory held was given up.
    durable: watch::Sender<Version>,
    /// Appends that are queued and not answered.
    outstanding: usize,
    /// An append failed: memory holds what the log does not.
    broken: bool,
}

impl From<LoadedRun> for Loaded {
    fn from(loaded: LoadedRun) -> Self {
        let LoadedRun { run, version, position, snapshot_version } = loaded;
        let durable = watch::Sender::new(version);
        Self { run, version, position, snapshot_version, durable, outstanding: 0, broken: false }
    }
}

/// What a queued command recorded, and where it will stand.
pub(crate) struct Recorded {
    pub(crate) facts: Vec<Fact>,
    /// The position of the first fact; 0 if there is none.
    pub(crate) first: Position,
}

/// A command that is decided, and whose append has its place in the queue.
pub(crate) struct Queued {
    /// How many facts it records.
    pub(crate) facts: Version,
    /// Resolves when they are durable.
    pub(crate) done: BoxFuture<'static, Result<Recorded, AppendError>>,
}

pub(crate) type Cell = Arc<Mutex<Loaded>>;

/// The runs of a store.
#[derive(Debug)]
pub(crate) struct Runs {
    pub(crate) store: Arc<dyn EventStore>,
    clock: Arc<dyn Clock>,
    pub(crate) snapshots: PathBuf,
    pub(crate) cells: SyncMutex<RunCells>,
    pub(crate) list: SyncMutex<RunList>,
    /// Told of everything that is decided, and of everything that is durable.
    pub(crate) scheduler: Arc<SharedScheduler>,
    pub(crate) followers: Arc<Followers>,
    /// The space on the store's disk.
    disk_space: DiskSpace,
    /// What is added to the position of a lease to get its fence.
    pub(crate) fence_base: u64,
    /// Set when the store takes nothing any more: only opening it anew helps.
    pub(crate) stopped: CancellationToken,
    /// When time itself next changes something, by run.
    pub(crate) due: SyncMutex<DueTimes>,
    /// Runs whose records cannot be replayed, with the version where it fails and the reason.
    /// Noticed whenever a run is read; kept until the server ends, since records do not change.
    pub(crate) set_aside: SyncMutex<BTreeMap<RunId, (Version, String)>>,
    /// Held while a lease is decided, so that no two runs take the last place of one lock.
    leasing: Mutex<()>,
    /// The time of the log, on top of `clock`.
    log_clock: SyncMutex<LogClock>,
    pub(crate) counters: EventCounters,
    /// The timer is to look again.
    pub(crate) due_changed: Notify,
}

/// The lock, whether or not another thread died holding it: every value behind these locks is
/// derived and is replaced whole.
pub(crate) fn locked<T>(lock: &SyncMutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stream of run `id`.
pub(crate) fn stream(id: &RunId) -> String {
    format!("run/{id}")
}

impl Runs {
    pub(crate) fn new(
        store: Arc<dyn EventStore>,
        clock: Arc<dyn Clock>,
        snapshots: PathBuf,
        disk_space: DiskSpace,
        list: RunList,
        scheduler: Arc<SharedScheduler>,
    ) -> Self {
        let log_clock = SyncMutex::new(LogClock::new(list.newest_at(), clock.elapsed()));
        Self {
            store,
            clock,
            snapshots,
            cells: SyncMutex::default(),
            list: SyncMutex::new(list),
            scheduler,
            followers: Arc::default(),
            disk_space,
            fence_base: 0,
            stopped: CancellationToken::new(),
            due: SyncMutex::default(),
            set_aside: SyncMutex::default(),
            leasing: Mutex::default(),
            log_clock,
            counters: EventCounters::default(),
            due_changed: Notify::new(),
        }
    }

    /// The moment it is in the log. Never goes backwards and never stands still, whatever the
    /// machine's wall clock does.
    pub(crate) fn now(&self) -> Timestamp {
        let stamp = locked(&self.log_clock).stamp(self.clock.read());
        match stamp.jump {
            Some(Jump::Ahead(ms)) => {
                tracing::warn!(ms, "the wall clock jumped ahead; the log's time follows it");
            }
            Some(Jump::Behind(ms)) => {
                tracing::warn!(ms, "the wall clock is behind the log; the log's time goes on");
            }
            None => {}
        }
        stamp.at
    }

    /// The moment it is by the wall clock. Tokens and certificates are valid by it, because those
    /// who issue them know nothing of the log.
    pub(crate) fn wall_clock(&self) -> Timestamp {
        self.clock.now()
    }

    /// How far the log's time is ahead of the wall clock, in milliseconds.
    pub(crate) fn clock_ahead_ms(&self) -> u64 {
        locked(&self.log_clock).ahead_ms(self.clock.read())
    }

    /// The run in memory, loaded if need be.
    async fn cell(&self, id: &RunId) -> Result<Cell, CommandError> {
        if let Some(cell) = locked(&self.cells).get(id) {
            return Ok(cell);
        }
        let loaded = load::run(&*self.store, &self.snapshots, id).await;
        let loaded = loaded.inspect_err(|error| self.set_aside_if_damaged(id, error))?;
        let mut cells = locked(&self.cells);
        // Another may have been faster, and may have decided something since.
        if let Some(cell) = cells.get(id) {
            return Ok(cell);
        }
        self.note_loaded(id, &loaded.run);
        let (bytes, idle) = (loaded.run.memory_bytes(), !loaded.run.phase().is_live());
        let cell = Arc::new(Mutex::new(Loaded::from(loaded)));
        cells.insert(id, &cell, bytes, idle);
        Ok(cell)
    }

    /// The run as it is decided on: what it shows may not be durable yet.
    pub(crate) async fn lock_latest(
        &self,
        id: &RunId,
    ) -> Result<OwnedMutexGuard<Loaded>, CommandError> {
        loop {
            let loaded = self.cell(id).await?.lock_owned().await;
            if !loaded.broken {
                return Ok(loaded);
            }
            let mut mended = loaded.durable.subscribe();
            drop(loaded);
            while mended.changed().await.is_ok() {}
        }
    }

    /// What `look` sees of a run, answered once all that it rests on is durable.
    pub(crate) async fn read_durable<T>(
        &self,
        id: &RunId,
        look: impl Fn(&Loaded) -> T,
    ) -> Result<T, CommandError> {
        for _ in 0..TRIES_MAX {
            // What memory shows may still be refused by the disk. It is answered only once it is
            // durable: a power cut must not take back what a client was told.
            let loaded = self.lock_latest(id).await?;
            let seen = look(&loaded);
            if wait_until_durable(loaded).await {
                return Ok(seen);
            }
        }
        Err(CommandError::Contended)
    }

    /// Carries out `command` and waits until what it recorded is durable.
    pub(crate) async fn execute(
        self: &Arc<Self>,
        id: &RunId,
        command: Command,
        by: &Actor,
    ) -> Result<Recorded, CommandError> {
        self.execute_all(id, &[command], by).await
    }

    /// As [`Runs::execute`], for several commands of one append: see [`Runs::queue`].
    pub(crate) async fn execute_all(
        self: &Arc<Self>,
        id: &RunId,
        commands: &[Command],
        by: &Actor,
    ) -> Result<Recorded, CommandError> {
        let span = tracing::debug_span!("command", run = %id);
        async {
            for _ in 0..TRIES_MAX {
                match self.queue(id, commands, by).await?.done.await {
                    Err(AppendError::Conflict { .. }) => {}
                    Err(error) => return Err(store_error(error)),
                    Ok(recorded) => return Ok(recorded),
                }
            }
            Err(CommandError::Contended)
        }
        .instrument(span)
        .await
    }

    /// Decides `commands` one after the other and queues all they record as one append. The answer
    /// resolves when that is durable. Only a refusal of the first command is reported: the others
    /// ask for something that may well not be there.
    pub(crate) async fn queue(
        self: &Arc<Self>,
        id: &RunId,
        commands: &[Command],
        by: &Actor,
    ) -> Result<Queued, CommandError> {
        let (mut commands, mut tries) = (commands, 0);
        let (mut loaded, leasing, (written, spans)) = loop {
            let mut loaded = self.lock_latest(id).await?;
            let leases = commands.iter().any(|command| matches!(command, Command::Lease(_)));
            // Runs without locks need not wait for one another.
            let leasing = if leases && !loaded.run.locks().is_empty() {
                Some(self.leasing.lock().await)
            } else {
                None
            };
            match self.decide_all(id, &mut loaded.run, commands, by) {
                Ok(decided) => break (loaded, leasing, decided),
                Err(NotDecided { nth, error, spoiled }) => {
                    if spoiled {
                        self.give_up(id, &mut loaded).await;
                    } else if nth == 0 && !leases && matches!(error, CommandError::Refused(_)) {
                        tries += 1;
                        // What it was decided on may still be refused by the disk, and a refusal
                        // that a client is told is believed. A lease is asked for again anyway, and
                        // must not hold up those of other runs.
                        let is_durable = wait_until_durable(loaded).await;
                        if !is_durable && tries < TRIES_MAX {
                            continue;
                        }
                        return Err(if is_durable { error } else { CommandError::Contended });
                    }
                    if nth == 0 {
                        return Err(error);
                    }
                    tracing::error!(run = %id, %error, "failed to decide a command: it is left out of its append");
                    // What came before it is good, and went with the memory that was given up. It
                    // is decided again alone; else a lease that fails would keep out, for ever, the
                    // report that freed its slot.
                    commands = &commands[..nth];
                }
            }
        };
        let (facts, records) = split(written);
        let expected = loaded.version;
        loaded.version += records.len() as Version;
        let version = loaded.version;
        // Before `leasing` is let go: the next lease, of another run, must see these locks taken.
        self.note(id, &loaded, &facts);
        drop(leasing);
        let (mut durable, id) = (loaded.durable.subscribe(), id.clone());
        // Queued under the lock, so appends of one run stand in the order they were decided in.
        let append =
            (!records.is_empty()).then(|| self.store.append(&stream(&id), expected, records));
        loaded.outstanding += usize::from(append.is_some());
        let cell = Arc::clone(OwnedMutexGuard::mutex(&loaded));
        drop(loaded);
        let finished = append.map(|append| {
            let runs = Arc::clone(self);
            let id = id.clone();
            // A task of its own: what is queued is finished even if the caller goes away.
            tokio::spawn(async move { runs.finish(&id, &cell, (facts, spans), append.await).await })
        });
        let done = async move {
            match finished {
                Some(task) => task.await.unwrap_or_else(|_| Err(AppendError::Store(gone()))),
                // Nothing new: but what this answer rests on must be durable too.
                None => match durable.wait_for(|durable| *durable >= version).await {
                    Ok(_) => Ok(Recorded { facts: Vec::new(), first: 0 }),
                    Err(_) => Err(given_up(&id, version)),
                },
            }
        };
        Ok(Queued { facts: version - expected, done: Box::pin(done) })
    }

    async fn finish(
        self: &Arc<Self>,
        id: &RunId,
        cell: &Cell,
        (facts, spans): (Vec<Fact>, Vec<Ended>),
        appended: Result<towpath_storage::Appended, AppendError>,
    ) -> Result<Recorded, AppendError> {
        let mut loaded = cell.lock().await;
        loaded.outstanding -= 1;
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) => {
                if matches!(error, AppendError::Store(_)) {
                    self.stopped.cancel();
                }
                self.give_up(id, &mut loaded).await;
                return Err(error);
            }
        };
        for fact in &facts {
            tracing::debug!(run = %id, kind = fact.event.kind(), by = %fact.by, "recorded");
        }
        if facts.iter().any(|fact| changes_idle(&fact.event)) {
            // By its state, not by these facts: those of a newer append may have been told already.
            let idle = !loaded.run.phase().is_live();
            locked(&self.cells).weigh(id, loaded.run.memory_bytes(), idle);
        }
        spans.into_iter().for_each(Ended::export);
        self.counters.take(&facts);
        let before = appended.version - facts.len() as Version;
        locked(&self.list).apply_all(id, appended.first, before, &facts);
        loaded.position = loaded.position.max(appended.last);
        loaded.durable.send_if_modified(|durable| {
            let newer = appended.version > *durable;
            *durable = appended.version.max(*durable);
            newer
        });
        let version = appended.version;
        self.scheduler.on(Input::RunDurable { run: id, version, facts: &facts });
        self.followers.recorded(id);
        if loaded.broken {
            self.give_up(id, &mut loaded).await;
        } else if loaded.version == appended.version
            && loaded.version >= loaded.snapshot_version + SNAPSHOT_EVERY
        {
            self.snapshot(id, &mut loaded).await;
        }
        drop(loaded);
        Ok(Recorded { facts, first: appended.first })
    }

    /// What memory holds was not written: forgets it and reads the log again. While appends are
    /// still on their way that would miss them, so the last of them does it.
    async fn give_up(&self, id: &RunId, loaded: &mut Loaded) {
        loaded.broken = true;
        if loaded.outstanding > 0 {
            return;
        }
        match load::run(&*self.store, &self.snapshots, id).await {
            Ok(again) => {
                self.note_loaded(id, &again.run);
                *loaded = Loaded::from(again);
            }
            Err(error) => {
                tracing::warn!(run = %id, %error, "run could not be read again");
                self.set_aside_if_damaged(id, &error);
                locked(&self.cells).remove(id);
                loaded.durable = watch::Sender::new(0);
            }
        }
    }

    fn note_loaded(&self, id: &RunId, run: &Run) {
        let at = self.now();
        self.scheduler.on(Input::RunLoaded { run: id, state: run, at });
        self.note_due(id, run, at);
    }

    /// Keeps what the scheduler and the timer know in step with a run.
    fn note(&self, id: &RunId, loaded: &Loaded, facts: &[Fact]) {
        let (at, state, version) = (self.now(), &loaded.run, loaded.version);
        self.scheduler.on(Input::RunDecided { run: id, state, version, facts, at });
        self.note_due(id, state, at);
    }

    fn note_due(&self, id: &RunId, run: &Run, now: Timestamp) {
        if locked(&self.due).set(id, run.next_due(now)) {
            self.due_changed.notify_one();
        }
    }
}

/// Waits until all that `loaded` shows is durable. Answers whether it is: `false` if it was given
/// up, because the disk did not take it.
async fn wait_until_durable(loaded: OwnedMutexGuard<Loaded>) -> bool {
    let (version, mut durable) = (loaded.version, loaded.durable.subscribe());
    drop(loaded);
    durable.wait_for(|durable| *durable >= version).await.is_ok()
}

fn split(written: Vec<Written>) -> (Vec<Fact>, Vec<NewRecord>) {
    written
        .into_iter()
        .map(|(fact, bytes)| {
            let record = NewRecord::new(fact.event.kind(), bytes);
            (fact, record)
        })
        .unzip()
}

/// What somebody waited for was decided on what is not in the log: to be decided again.
fn given_up(id: &RunId, expected: Version) -> AppendError {
    AppendError::Conflict { stream: stream(id), expected, actual: 0 }
}

fn gone() -> StoreError {
    StoreError::Closed
}

pub(crate) fn store_error(error: AppendError) -> CommandError {
    match error {
        AppendError::Conflict { .. } => CommandError::Contended,
        AppendError::Store(error) => CommandError::Store(error),
        AppendError::Busy { .. } => CommandError::StoreBusy,
        AppendError::Full(full) => CommandError::Store(full.into()),
        error @ (AppendError::TooLarge { .. } | AppendError::Empty) => {
            CommandError::TooMuch { what: error.to_string() }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use towpath_engine::{job::JobState, plan::Resource};

    use super::*;
    use crate::testing::{Fixture, job, lease, success};

    #[tokio::test]
    async fn nobody_is_told_what_is_not_durable() {
        let fixture = Fixture::new();
        let run = fixture.begins("r", vec![job("a", &[])]).await;
        fixture.store.stand_still(8);

        let report = fixture.queues(&run, success("a")).await;
        let mut told = Box::pin(fixture.state(&run, "a"));

        tokio::task::yield_now().await;
        assert_eq!(told.as_mut().now_or_never(), None);
        fixture.store.go_on();
        report.done.await.unwrap();
        assert_eq!(told.await, JobState::Succeeded);
    }

    #[tokio::test]
    async fn after_a_refused_append_what_waited_for_the_disk_is_not_forgotten() {
        let fixture = Fixture::new();
        let jobs = vec![job("a", &[]), job("b", &["a"]), job("c", &[])];
        let run = fixture.begins("r", jobs).await;
        fixture.store.stand_still(1);

        let waits = fixture.queues(&run, success("a")).await;
        let refused = fixture.queues(&run, success("c")).await;
        assert!(matches!(refused.done.await, Err(AppendError::Busy { .. })));
        assert!(fixture.state(&run, "a").now_or_never().is_none());
        fixture.store.go_on();

        waits.done.await.unwrap();
        assert_eq!(fixture.state(&run, "a").await, JobState::Succeeded);
        assert!(matches!(fixture.state(&run, "c").await, JobState::Leased(..)));
        assert_eq!(fixture.wanted(), 1, "b can be leased");
        assert_eq!(fixture.queues(&run, success("c")).await.done.await.unwrap().facts.len(), 1);
    }

    #[tokio::test]
    async fn a_refusal_is_told_once_what_it_rests_on_is_durable() {
        let fixture = Fixture::new();
        let run = fixture.begins("r", vec![job("a", &[])]).await;
        fixture.store.stand_still(8);
        let (cancel, ana) = ([Command::Cancel(String::new())], Actor::human("ana"));

        let report = fixture.queues(&run, success("a")).await;
        let mut refused = Box::pin(fixture.runs.queue(&run, &cancel, &ana));
        assert!(refused.as_mut().now_or_never().is_none(), "the disk may refuse the success");

        fixture.store.go_on();
        report.done.await.unwrap();
        assert!(matches!(refused.await, Err(CommandError::Refused(_))));
    }

    #[tokio::test]
    async fn a_refusal_that_rests_on_a_refused_append_is_decided_again() {
        let fixture = Fixture::new();
        let run = RunId::from("twice");
        fixture.store.stand_still(0);
        let create = || [fixture.creation("twice", vec![job("a", &[])])];
        let ana = Actor::human("ana");

        let (first, second) = (create(), create());
        let refused = fixture.runs.queue(&run, &first, &ana).await.unwrap();
        let again = async {
            let again = fixture.runs.queue(&run, &second, &ana).await;
            again.map(|queued| queued.facts)
        };
        let (refused, again) = tokio::join!(refused.done, again);

        assert!(matches!(refused, Err(AppendError::Busy { .. })));
        assert!(again.unwrap() > 0, "there is no such run yet");
    }

    #[tokio::test]
    async fn what_rests_on_a_refused_append_is_to_be_decided_again() {
        let fixture = Fixture::new();
        let run = fixture.begins("r", vec![job("a", &[])]).await;
        fixture.store.stand_still(0);

        let refused = fixture.queues(&run, success("a")).await;
        let again = fixture.queues(&run, success("a")).await;
        assert_eq!(again.facts, 0, "in memory it is so already");

        assert!(matches!(refused.done.await, Err(AppendError::Busy { .. })));
        assert!(matches!(again.done.await, Err(AppendError::Conflict { .. })));
    }

    /// What the log says of a run, beside what memory holds.
    async fn memory_and_log(fixture: &Fixture, run: &RunId) -> (Run, Run) {
        let replayed = load::run(&*fixture.store, &fixture.runs.snapshots, run).await.unwrap();
        let loaded = fixture.runs.lock_latest(run).await.unwrap();
        assert_eq!(loaded.version, replayed.version);
        (loaded.run.clone(), replayed.run)
    }

    #[tokio::test]
    async fn a_run_whose_consequence_cannot_be_written_is_as_its_log_says() {
        let fixture = Fixture::new();
        // No pipeline file makes names of this length: together they do not fit an event.
        let (root, long) = ("r".repeat(25_000), "l".repeat(25_000));
        let jobs = vec![job("other", &[]), job(&root, &[]), job(&long, &[&root])];
        let run = fixture.begins("r", jobs).await;

        let Command::Report(report) = success(&root) else { unreachable!() };
        let cause = towpath_engine::event::FailureCause::ExitCode(1);
        let ended = towpath_engine::decide::Ended::Failed(cause);
        let failure = Command::Report(towpath_engine::decide::ReportJob { ended, ..report });
        let alone = std::slice::from_ref(&failure);
        let refused = fixture.runs.queue(&run, alone, &Actor::worker("w")).await;
        assert!(matches!(refused, Err(CommandError::Refused(_))));

        let (memory, log) = memory_and_log(&fixture, &run).await;
        assert!(memory == log, "memory is ahead of the log");
        assert!(matches!(fixture.state(&run, &root).await, JobState::Leased(..)));

        // As the second of two commands it takes nothing with it.
        let both = [success("other"), failure];
        let queued = fixture.runs.queue(&run, &both, &Actor::worker("w")).await.unwrap();
        queued.done.await.unwrap();
        let (memory, log) = memory_and_log(&fixture, &run).await;
        assert!(memory == log, "memory is ahead of the log");
        assert_eq!(fixture.state(&run, "other").await, JobState::Succeeded);
    }

    #[tokio::test]
    async fn a_failure_that_skips_more_than_an_append_holds_is_recorded() {
        let fixture = Fixture::new();
        // Names as long as these stand for as many jobs as it takes to pass 32 MiB.
        let long = |n: usize| format!("{n:0>15000}");
        let mut jobs = vec![job("root", &[])];
        jobs.push(job(&long(0), &["root"]));
        jobs.extend((1..800).map(|n| job(&long(n), &[&long(0)])));
        let run = fixture.begins("r", jobs).await;
        let Command::Report(report) = success("root") else { unreachable!() };
        let cause = towpath_engine::event::FailureCause::ExitCode(1);
        let ended = towpath_engine::decide::Ended::Failed(cause);
        let failure = Command::Report(towpath_engine::decide::ReportJob { ended, ..report });

        fixture.queues(&run, failure).await.done.await.unwrap();

        assert_eq!(fixture.state(&run, "root").await, JobState::Failed);
        assert!(fixture.runs.lock_latest(&run).await.unwrap().run.phase().is_live());
        // A server that ends here is followed by one that knows the run from its log alone.
        locked(&fixture.runs.cells).remove(&run);
        locked(&fixture.runs.due).set(&run, None);
        drop(fixture.runs.lock_latest(&run).await.unwrap());
        for _ in 0..10 {
            crate::timers::tick(&fixture.runs).await;
        }
        let loaded = fixture.runs.lock_latest(&run).await.unwrap();
        assert!(!loaded.run.phase().is_live());
        assert_eq!(loaded.run.counts().skipped, 800);
    }

    #[tokio::test]
    async fn a_lock_is_free_for_others_once_that_is_durable() {
        let fixture = Fixture::new();
        let mut locking = job("a", &[]);
        locking.resource = Some(Resource { name: "target".into(), limit: 1 });
        let run = fixture.begins("r", vec![locking]).await;
        let others = || {
            let all = fixture.runs.scheduler.locks_of_others(&"other".into(), ["target"]);
            all.into_values().sum::<u32>()
        };
        assert_eq!(others(), 1);
        fixture.store.stand_still(8);

        let report = fixture.queues(&run, success("a")).await;
        assert_eq!(others(), 1, "let go in memory alone");
        fixture.store.go_on();
        report.done.await.unwrap();
        assert_eq!(others(), 0);
    }

    #[tokio::test]
    async fn a_lock_that_was_released_stays_so_in_whatever_order_appends_are_told() {
        let fixture = Fixture::new();
        let mut locking = job("a", &[]);
        locking.resource = Some(Resource { name: "target".into(), limit: 1 });
        let run = fixture.begins("r", vec![locking, job("b", &[])]).await;
        fixture.store.stand_still(8);
        let of_b = fixture.queues(&run, success("b")).await;
        let of_a = fixture.queues(&run, success("a")).await;

        // The newest append is answered first, as two threads of the server may do it.
        fixture.store.go_on();
        of_b.done.await.unwrap();
        of_a.done.await.unwrap();

        let others = fixture.runs.scheduler.locks_of_others(&"other".into(), ["target"]);
        assert!(others.is_empty(), "{others:?} for a run that has ended");
    }

    #[tokio::test]
    async fn a_lock_that_could_not_be_taken_is_given_back() {
        let fixture = Fixture::new();
        let mut locking = job("b", &["a"]);
        locking.resource = Some(Resource { name: "target".into(), limit: 1 });
        let run = fixture.begins("r", vec![job("a", &[]), locking]).await;
        fixture.queues(&run, success("a")).await.done.await.unwrap();
        fixture.store.stand_still(0);

        let refused = fixture.queues(&run, lease()).await;
        assert!(matches!(refused.done.await, Err(AppendError::Busy { .. })));

        let others = fixture.runs.scheduler.locks_of_others(&"other".into(), ["target"]);
        assert_eq!((others.len(), fixture.wanted()), (0, 1));
    }
}
