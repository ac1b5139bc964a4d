//! Where the server's time comes from: the machine, or a test.

use std::{
    fmt::Debug,
    sync::{
        LazyLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use towpath_engine::{log_clock::Reading, time::Timestamp};

/// A source of time. Read once per command.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The moment it is, by the wall clock: it may be set, in both directions.
    fn now(&self) -> Timestamp;

    /// The time since a moment that stays the same for as long as the process lives. It never goes
    /// back.
    fn elapsed(&self) -> Duration;

    /// Both clocks.
    fn read(&self) -> Reading {
        Reading { wall: self.now(), elapsed: self.elapsed() }
    }
}

/// When the monotonic clock of this process was first read. One for the whole process, so that any
/// two `SystemClock`s agree.
static FIRST_READ: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The machine's clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn elapsed(&self) -> Duration {
        FIRST_READ.elapsed()
    }
}

/// A clock that only moves when it is set.
#[derive(Debug, Default)]
pub struct SetClock {
    wall: AtomicI64,
    elapsed_ms: AtomicU64,
}

impl SetClock {
    /// A clock that shows `now`.
    pub fn at(now: Timestamp) -> Self {
        Self { wall: AtomicI64::new(now.0), elapsed_ms: AtomicU64::new(0) }
    }

    /// Lets `ms` milliseconds pass.
    pub fn advance(&self, ms: u64) {
        self.wall.fetch_add(i64::try_from(ms).unwrap_or(i64::MAX), Ordering::SeqCst);
        self.elapsed_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the wall clock by `ms` milliseconds, in either direction. No time passes.
    pub fn jump(&self, ms: i64) {
        self.wall.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.wall.load(Ordering::SeqCst))
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(Ordering::SeqCst))
    }
}
