//! Load, decide, append, once for streams of every kind.
//!
//! ```text
//!  command ─▶ lock of the stream ─▶ decide, walk ─▶ queue the append ─▶ unlock
//!                 ▲                                        │
//!    loaded from snapshot and log                     durable │ refused
//!                                                        ▼    ▼
//!                         answer, list, followers, hooks      read the log again
//! ```
//!
//! What only one kind has (the scheduler and the timer of runs, the drains of settings) is in its
//! [`StreamHooks`].

mod append;
mod cells;
mod check;
mod decide_all;
pub(crate) mod load;
mod set_aside;
mod snapshots;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex as SyncMutex},
};

use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use towpath_engine::{
    aggregate::{Aggregate, Written},
    event::{Fact, RunEvent},
    ids::Actor,
    run::Run,
    time::Timestamp,
    views::List,
};
use towpath_storage::{AppendError, Position, Version};
use tracing::Instrument as _;

use crate::{command_error::CommandError, open_log::OpenLog, sync::locked};
use cells::Cells;
use load::Replayed;

/// How often a lost race is decided again before the caller is told to come back.
const TRIES_MAX: usize = 8;
/// A snapshot is written when a stream has grown by this many events since the last.
const SNAPSHOT_EVERY: Version = 20_000;

/// What one kind of streams does beside the log. The answers of all of these are derived: a server
/// that starts again has them from [`StreamHooks::loaded`] alone.
pub(crate) trait StreamHooks<A: Aggregate>: Debug + Send + Sync + 'static {
    /// What is kept of a decision until it is durable.
    type Pending: Default + Send + 'static;

    /// What is held while `commands` are decided, so that no two streams take the last of something.
    fn exclusive(&self, _state: &A, _commands: &[A::Command]) -> Option<&SyncMutex<()>> {
        None
    }

    /// The command with what the server knows beyond the stream, or why it cannot be decided now.
    fn prepare<'c>(
        &self,
        _id: &A::Id,
        _state: &A,
        command: &'c A::Command,
    ) -> Result<Cow<'c, A::Command>, CommandError> {
        Ok(Cow::Borrowed(command))
    }

    /// One command was carried out, with what it recorded.
    fn carried_out(
        &self,
        _state: &A,
        _command: &A::Command,
        _written: &[Written<A::Event>],
        _pending: &mut Self::Pending,
    ) {
    }

    /// Whether `commands` are given again by themselves until they are carried out. Their refusal
    /// is answered at once, although what it rests on may not be durable yet: nobody believes it,
    /// and it must not hold up others.
    fn is_asked_again(&self, _commands: &[A::Command]) -> bool {
        false
    }

    /// A stream was read from the log, which has it up to `version`.
    fn loaded(&self, _id: &A::Id, _state: &A, _version: Version, _at: Timestamp) {}

    /// Facts were decided, and the stream has `version` once they are durable. They may never be.
    fn decided(
        &self,
        _id: &A::Id,
        _state: &A,
        _version: Version,
        _facts: &[Fact<A::Event>],
        _at: Timestamp,
    ) {
    }

    /// Facts are durable, after which the stream has `version`. Called in any order: the answers to
    /// two appends that one commit made durable are two tasks.
    fn durable(
        &self,
        _id: &A::Id,
        _version: Version,
        _facts: &[Fact<A::Event>],
        _pending: Self::Pending,
    ) {
    }

    /// The records of a stream cannot be replayed.
    fn set_aside(&self, _id: &A::Id) {}
}

/// For kinds that are nothing but their streams.
impl<A: Aggregate> StreamHooks<A> for () {
    type Pending = ();
}

/// The state of a stream in memory.
#[derive(Debug)]
pub(crate) struct Loaded<A = Run> {
    pub(crate) state: A,
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

impl<A> From<Replayed<A>> for Loaded<A> {
    fn from(replayed: Replayed<A>) -> Self {
        let Replayed { state, version, position, snapshot_version } = replayed;
        let durable = watch::Sender::new(version);
        Self { state, version, position, snapshot_version, durable, outstanding: 0, broken: false }
    }
}

/// What a queued command recorded, and where it will stand.
#[derive(Debug)]
pub(crate) struct Recorded<E = RunEvent> {
    pub(crate) facts: Vec<Fact<E>>,
    /// The position of the first fact; 0 if there is none.
    pub(crate) first: Position,
}

/// A command that is decided, and whose append has its place in the queue.
pub(crate) struct Queued<E = RunEvent> {
    /// How many facts it records.
    pub(crate) facts: Version,
    /// Resolves when they are durable.
    pub(crate) done: BoxFuture<'static, Result<Recorded<E>, AppendError>>,
}

/// Waits until all that `loaded` shows is durable. Answers whether it is: `false` if it was given
/// up, because the disk did not take it.
async fn wait_until_durable<A>(loaded: OwnedMutexGuard<Loaded<A>>) -> bool {
    let (version, mut durable) = (loaded.version, loaded.durable.subscribe());
    drop(loaded);
    durable.wait_for(|durable| *durable >= version).await.is_ok()
}

/// The state of a stream, under its lock.
pub(crate) type Cell<A> = Arc<Mutex<Loaded<A>>>;

/// The streams of one kind.
#[derive(Debug)]
pub(crate) struct Streams<A: Aggregate, H> {
    pub(crate) log: Arc<OpenLog>,
    pub(crate) hooks: H,
    pub(crate) cells: SyncMutex<Cells<A>>,
    pub(crate) list: SyncMutex<List<A>>,
    /// Streams whose records cannot be replayed, or that can record nothing more, with the version where it fails and the reason.
    /// Noticed whenever one is read; kept until the server ends, since records do not change.
    pub(crate) set_aside: SyncMutex<BTreeMap<A::Id, (Version, String)>>,
}

impl<A: Aggregate, H: StreamHooks<A>> Streams<A, H> {
    /// The streams of this kind in `log`, which knows of them from now on. Nothing but their list is
    /// read: see [`Streams::load_live`].
    pub(crate) async fn open(log: &Arc<OpenLog>, hooks: H) -> Result<Arc<Self>, CommandError> {
        let list = load::list(&*log.store, &log.snapshots).await?;
        Ok(Self::with_list(log, hooks, list))
    }

    /// As [`Streams::open`], with a list that is read already.
    pub(crate) fn with_list(log: &Arc<OpenLog>, hooks: H, list: List<A>) -> Arc<Self> {
        let newest = list.newest_at();
        let streams = Arc::new(Self {
            log: Arc::clone(log),
            hooks,
            cells: SyncMutex::default(),
            list: SyncMutex::new(list),
            set_aside: SyncMutex::default(),
        });
        log.register(Arc::<Self>::downgrade(&streams), newest);
        streams
    }

    /// Reads every live stream, so that its hooks know of it. A stream that cannot be replayed is
    /// set aside: the others are served.
    pub(crate) async fn load_live(&self) -> Result<(), CommandError> {
        for id in self.live() {
            match self.lock_latest(&id).await {
                Ok(_) | Err(CommandError::Unreplayable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The stream in memory, loaded if need be.
    async fn cell(&self, id: &A::Id) -> Result<Cell<A>, CommandError> {
        // The lock of the cells is not held while the log is read: a long stream would stop all
        // others.
        if let Some(cell) = locked(&self.cells).get(id) {
            return Ok(cell);
        }
        let replayed = load::stream::<A>(&*self.log.store, &self.log.snapshots, id).await;
        let replayed = replayed.inspect_err(|error| self.set_aside_if_damaged(id, error))?;
        let mut cells = locked(&self.cells);
        // Another may have been faster, and may have decided something since.
        if let Some(cell) = cells.get(id) {
            return Ok(cell);
        }
        // Before the cell is visible, and under the lock of the cells: a decision must not reach
        // the hooks before the state that it rests on.
        self.hooks.loaded(id, &replayed.state, replayed.version, self.log.now());
        let (bytes, idle) = (replayed.state.memory_bytes(), replayed.state.is_idle());
        let cell = Arc::new(Mutex::new(Loaded::from(replayed)));
        cells.insert(id, &cell, bytes, idle);
        Ok(cell)
    }

    /// The stream as it is decided on: what it shows may not be durable yet.
    pub(crate) async fn lock_latest(
        &self,
        id: &A::Id,
    ) -> Result<OwnedMutexGuard<Loaded<A>>, CommandError> {
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

    /// What `look` sees of a stream, answered once all that it rests on is durable.
    pub(crate) async fn read_durable<T>(
        &self,
        id: &A::Id,
        look: impl Fn(&Loaded<A>) -> T,
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
        id: &A::Id,
        command: A::Command,
        by: &Actor,
    ) -> Result<Recorded<A::Event>, CommandError> {
        self.execute_all(id, &[command], by).await
    }

    /// As [`Streams::execute`], for several commands of one append: see [`Streams::queue`].
    pub(crate) async fn execute_all(
        self: &Arc<Self>,
        id: &A::Id,
        commands: &[A::Command],
        by: &Actor,
    ) -> Result<Recorded<A::Event>, CommandError> {
        let span = tracing::debug_span!("command", kind = A::KIND, %id);
        async {
            for _ in 0..TRIES_MAX {
                match self.queue(id, commands, by).await?.done.await {
                    Err(AppendError::Conflict { .. }) => {}
                    Err(error) => return Err(append::store_error(error)),
                    Ok(recorded) => return Ok(recorded),
                }
            }
            Err(CommandError::Contended)
        }
        .instrument(span)
        .await
    }
}
