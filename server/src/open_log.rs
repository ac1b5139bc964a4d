//! The log of a store, and what the streams of all kinds share: its time, the folder of snapshots,
//! followers, counters, and which kinds there are.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex as SyncMutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    log_clock::{Jump, LogClock},
    time::Timestamp,
};
use towpath_storage::{EventStore, Position, Record, StoreError};

use crate::{Clock, command_error::CommandError, followers::Followers, sync::locked};

/// What a check of one kind of streams found.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// How many streams could be replayed.
    pub(crate) streams: u64,
    /// What does not agree, in sentences.
    pub(crate) findings: Vec<String>,
    /// The blobs that events name: which stream, what of it, and the blob.
    pub(crate) blobs: Vec<(String, towpath_engine::ids::Blob)>,
}

/// A check of the streams of one kind: it is shown every record of the log, in order.
pub(crate) trait StreamCheck: Send {
    /// Takes in the next record, of whatever kind its stream is.
    fn take(&mut self, record: &Record);

    /// Compares the streams of which all records were shown with what the server shows, and holds
    /// their states no longer: after every few records, so that a check needs the memory of the
    /// streams that go on at one time, and not of all that there ever were.
    fn settle(&mut self) -> BoxFuture<'_, Result<Checked, CommandError>>;

    /// Compares the rest.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<Checked, CommandError>>;
}

/// The streams of one kind, as the log knows them.
pub(crate) trait StreamKind: fmt::Debug + Send + Sync {
    /// The first part of the names of its streams.
    fn kind(&self) -> &'static str;

    /// Takes note that the records from `first` to `last` are of streams of another kind.
    fn pass(&self, first: Position, last: Position);

    /// A check that has seen no record yet.
    fn begin_check(self: Arc<Self>) -> Box<dyn StreamCheck>;

    /// Writes snapshots, for a quick next start.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// See the module.
#[derive(Debug)]
pub(crate) struct OpenLog {
    pub(crate) store: Arc<dyn EventStore>,
    clock: Arc<dyn Clock>,
    pub(crate) snapshots: PathBuf,
    /// What is added to the position of a lease to get its fence.
    pub(crate) fence_base: u64,
    /// Set when the store takes nothing any more: only opening it anew helps.
    pub(crate) stopped: CancellationToken,
    pub(crate) followers: Arc<Followers>,
    /// The time of the log, on top of `clock`.
    log_clock: SyncMutex<LogClock>,
    /// Not owned: each kind holds the log, and a store whose log is held is never closed.
    kinds: SyncMutex<Vec<Weak<dyn StreamKind>>>,
    appends: AtomicU64,
    events: AtomicU64,
}

impl OpenLog {
    /// The log in `store`, whose snapshots lie in `snapshots`.
    pub(crate) fn new(
        store: Arc<dyn EventStore>,
        clock: Arc<dyn Clock>,
        snapshots: PathBuf,
        fence_base: u64,
    ) -> Self {
        let log_clock = SyncMutex::new(LogClock::new(Timestamp(0), clock.elapsed()));
        Self {
            store,
            clock,
            snapshots,
            fence_base,
            stopped: CancellationToken::new(),
            followers: Arc::default(),
            log_clock,
            kinds: SyncMutex::default(),
            appends: AtomicU64::new(0),
            events: AtomicU64::new(0),
        }
    }

    /// Has the log know a kind of streams, whose newest event is from `newest`. Before any of them
    /// decides anything: the time of the log goes on from its newest event of any kind.
    pub(crate) fn register(&self, kind: Weak<dyn StreamKind>, newest: Timestamp) {
        locked(&self.kinds).push(kind);
        locked(&self.log_clock).go_on_from(newest, self.clock.elapsed());
    }

    /// The kinds of streams that there are.
    pub(crate) fn kinds(&self) -> Vec<Arc<dyn StreamKind>> {
        locked(&self.kinds).iter().filter_map(Weak::upgrade).collect()
    }

    /// Takes note of an append of `kind` that is durable, with its first and last position.
    pub(crate) fn appended(&self, kind: &'static str, first: Position, last: Position) {
        self.appends.fetch_add(1, Ordering::Relaxed);
        // Relaxed: the counters are for metrics, and nothing is decided by them.
        self.events.fetch_add(last - first + 1, Ordering::Relaxed);
        // The lists of the other kinds would else wait for these positions for ever.
        for other in self.kinds().iter().filter(|other| other.kind() != kind) {
            other.pass(first, last);
        }
    }

    /// Appends since the server began.
    pub(crate) fn appends(&self) -> u64 {
        self.appends.load(Ordering::Relaxed)
    }

    /// Events recorded since the server began.
    pub(crate) fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// The position of the newest durable record.
    pub(crate) fn position(&self) -> Position {
        // The tail of the store moves after the sync, so that this is never a record that a power
        // cut takes back.
        *self.store.watch().borrow()
    }

    /// Why the store takes nothing any more, after [`OpenLog::stopped`] was cancelled.
    pub(crate) async fn why_stopped(&self) -> CommandError {
        // A store that stopped answers every read with the cause.
        let asked = self.store.read_all(0, 1).await;
        asked.err().unwrap_or(StoreError::Closed).into()
    }

    /// The moment it is in the log. Never goes backwards and never stands still, whatever the
    /// machine's wall clock does.
    pub(crate) fn now(&self) -> Timestamp {
        // Read under the lock: two commands that read the clock outside could stamp in the other
        // order.
        let stamp = locked(&self.log_clock).stamp(self.clock.read());
        match stamp.jump {
            Some(Jump::Ahead(ms)) => {
                tracing::warn!(ms, "the wall clock jumped ahead; the log's time follows it");
            }
            Some(Jump::Behind(ms)) => {
                tracing::warn!(
                    ms,
                    "the wall clock is behind the log; the time of the log continues"
                );
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
}
