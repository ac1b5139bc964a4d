//! What runs have beyond their streams: a scheduler that leases their jobs, moments at which time
//! itself changes something, spans, and disk space that new work needs.

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex as SyncMutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;
use towpath_engine::{
    aggregate::Written,
    decide::{Command, LeaseJob},
    event::{Fact, RunEvent},
    ids::RunId,
    run::Run,
    scheduler::{DueTimes, Input},
    time::Timestamp,
    views::{EndedSpan, EventCounters},
};
use towpath_storage::{DiskFull, DiskSpace, FREE_BYTES_MIN, Version};

use crate::{
    command_error::CommandError,
    shared_scheduler::SharedScheduler,
    streams::{StreamHooks, Streams},
    sync::locked,
    telemetry::spans,
};

/// The runs of a store.
pub(crate) type Runs = Streams<Run, RunHooks>;

impl Runs {
    /// The one run that `asked` names: by its id, or by the beginning of it.
    pub(crate) fn find(&self, asked: &str) -> Result<RunId, CommandError> {
        Ok(locked(&self.list).find(asked)?)
    }
}

/// Bytes that are to be free, beyond what the store keeps free, for anything new to begin.
const NEW_WORK_BYTES_MIN: u64 = FREE_BYTES_MIN;

/// See the module.
#[derive(Debug)]
pub(crate) struct RunHooks {
    /// Told of everything that is decided, and of everything that is durable.
    pub(crate) scheduler: Arc<SharedScheduler>,
    /// When time itself next changes something, by run.
    pub(crate) due: SyncMutex<DueTimes>,
    /// The timer is to look again.
    pub(crate) due_changed: Notify,
    /// Held while a lease is decided, so that no two runs take the last place of one lock.
    leasing: SyncMutex<()>,
    /// The space on the store's disk.
    disk_space: DiskSpace,
    /// Leases that were lost since the server began.
    leases_lost: AtomicU64,
}

impl RunHooks {
    pub(crate) fn new(scheduler: Arc<SharedScheduler>, disk_space: DiskSpace) -> Self {
        Self {
            scheduler,
            due: SyncMutex::default(),
            due_changed: Notify::new(),
            leasing: SyncMutex::default(),
            disk_space,
            leases_lost: AtomicU64::new(0),
        }
    }

    /// Leases that were lost since the server began.
    pub(crate) fn leases_lost(&self) -> u64 {
        self.leases_lost.load(Ordering::Relaxed)
    }

    /// New work needs more disk space than the end of what has begun.
    fn check_disk_space(&self, command: &Command) -> Result<(), DiskFull> {
        match command {
            Command::Create(_)
            | Command::Import(_)
            | Command::Lease(_)
            | Command::Resume(_)
            | Command::Retry(_) => self.disk_space.check(NEW_WORK_BYTES_MIN),
            Command::Approve(_)
            | Command::Reject(_)
            | Command::Cancel(_)
            | Command::Report(_)
            | Command::Lose(_)
            | Command::PassTime => Ok(()),
        }
    }

    fn note_due(&self, id: &RunId, run: &Run, now: Timestamp) {
        if locked(&self.due).set(id, run.next_due(now)) {
            self.due_changed.notify_one();
        }
    }
}

impl StreamHooks<Run> for RunHooks {
    /// The spans that end with what was decided.
    type Pending = Vec<EndedSpan>;

    fn exclusive(&self, run: &Run, commands: &[Command]) -> Option<&SyncMutex<()>> {
        let leases = commands.iter().any(|command| matches!(command, Command::Lease(_)));
        // Runs without locks need not wait for one another.
        (leases && !run.locks().is_empty()).then_some(&self.leasing)
    }

    fn prepare<'c>(
        &self,
        id: &RunId,
        run: &Run,
        command: &'c Command,
    ) -> Result<Cow<'c, Command>, CommandError> {
        self.check_disk_space(command).map_err(|full| CommandError::Store(full.into()))?;
        // A lease needs to know which locks other runs hold at the moment when it is decided.
        let Command::Lease(lease) = command else { return Ok(Cow::Borrowed(command)) };
        let busy = self.scheduler.locks_of_others(id, run.locks());
        Ok(Cow::Owned(Command::Lease(LeaseJob { busy, ..lease.clone() })))
    }

    fn carried_out(
        &self,
        run: &Run,
        command: &Command,
        written: &[Written<RunEvent>],
        pending: &mut Vec<EndedSpan>,
    ) {
        // Now: a lease that follows in the same append changes what the run says of its attempts.
        pending.extend(spans::ended(run, command, written));
    }

    fn is_asked_again(&self, commands: &[Command]) -> bool {
        commands.iter().any(|command| matches!(command, Command::Lease(_)))
    }

    fn loaded(&self, id: &RunId, run: &Run, _version: Version, at: Timestamp) {
        self.scheduler.on(Input::RunLoaded { run: id, state: run, at });
        self.note_due(id, run, at);
    }

    fn decided(&self, id: &RunId, run: &Run, version: Version, facts: &[Fact], at: Timestamp) {
        self.scheduler.on(Input::RunDecided { run: id, state: run, version, facts, at });
        self.note_due(id, run, at);
    }

    fn durable(&self, id: &RunId, version: Version, facts: &[Fact], ended: Vec<EndedSpan>) {
        ended.into_iter().for_each(spans::export);
        let EventCounters { leases_lost } = EventCounters::of(facts);
        self.leases_lost.fetch_add(leases_lost, Ordering::Relaxed);
        self.scheduler.on(Input::RunDurable { run: id, version, facts });
    }

    fn set_aside(&self, id: &RunId) {
        self.scheduler.on(Input::RunSetAside { run: id });
        locked(&self.due).set(id, None);
    }
}
