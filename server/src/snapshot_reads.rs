//! Snapshots of runs on their way to clients, within a bound of bytes however many clients read
//! them and however slowly.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex as SyncMutex, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use towpath_engine::ids::RunId;
use towpath_proto::v1;
use towpath_storage::Version;

use crate::{
    limits::Limit,
    runs::{CommandError, Loaded, Runs, locked},
    status,
};

/// Bytes of all snapshots that are being read. A larger one is read if it is the only one.
const BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes of a snapshot in one message. Small, because the transport holds one for each reader.
const PART_BYTES: usize = 64 * 1024;
/// How long a reader may leave the next part where it is.
const PART_WITHIN: Duration = Duration::from_secs(30);
/// What one permit of the semaphore stands for: permits are counted in 32 bits, bytes are not.
const PERMIT_BYTES: usize = 1024;

/// The snapshots that are being read.
#[derive(Debug)]
pub(crate) struct SnapshotReads {
    /// One copy for all readers of one version.
    shared: SyncMutex<HashMap<RunId, (Version, Weak<Shared>)>>,
    /// Held while a snapshot is made: until its size is known nothing bounds it.
    making: Mutex<()>,
    budget: Arc<Semaphore>,
    bytes_max: usize,
}

#[derive(Debug)]
struct Shared {
    bytes: Bytes,
    _budget: OwnedSemaphorePermit,
}

impl Default for SnapshotReads {
    fn default() -> Self {
        Self::new(BYTES_MAX)
    }
}

impl SnapshotReads {
    fn new(bytes_max: usize) -> Self {
        let budget = Arc::new(Semaphore::new(bytes_max.div_ceil(PERMIT_BYTES)));
        let (shared, making) = (SyncMutex::default(), Mutex::default());
        Self { shared, making, budget, bytes_max }
    }

    /// The state of run `id`, in parts.
    pub(crate) async fn read(&self, runs: &Runs, id: &RunId) -> Result<Parts, CommandError> {
        let _making = self.making.lock().await;
        let version = runs.read_durable(id, |loaded: &Loaded| loaded.version).await?;
        let known = locked(&self.shared).get(id).cloned();
        if let Some((_, shared)) = known.filter(|(known, _)| *known == version)
            && let Some(shared) = shared.upgrade()
        {
            return Ok(Parts::of(version, shared));
        }
        let snapshot = |loaded: &Loaded| (loaded.version, loaded.run.to_snapshot());
        let (version, bytes) = runs.read_durable(id, snapshot).await?;
        let shared = self.count(bytes.into())?;
        let mut all = locked(&self.shared);
        all.retain(|_, (_, shared)| shared.strong_count() > 0);
        all.insert(id.clone(), (version, Arc::downgrade(&shared)));
        Ok(Parts::of(version, shared))
    }

    fn count(&self, bytes: Bytes) -> Result<Arc<Shared>, CommandError> {
        let permits = bytes.len().min(self.bytes_max).div_ceil(PERMIT_BYTES);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let budget = Arc::clone(&self.budget).try_acquire_many_owned(permits);
        let bytes_max = self.bytes_max;
        let budget = budget.map_err(|_| Limit::SnapshotsTooMany { bytes_max })?;
        Ok(Arc::new(Shared { bytes, _budget: budget }))
    }
}

/// A snapshot, part by part. What nobody reads for [`PART_WITHIN`] is given up.
#[derive(Debug)]
pub(crate) struct Parts {
    version: Version,
    reading: Arc<SyncMutex<Reading>>,
}

#[derive(Debug)]
struct Reading {
    /// `None`: all of it was read, or the reader took too long.
    left: Option<Arc<Shared>>,
    offset: usize,
    read_at: Instant,
    stalled: bool,
}

impl Parts {
    fn of(version: Version, shared: Arc<Shared>) -> Self {
        let left = Some(shared);
        let reading = Reading { left, offset: 0, read_at: Instant::now(), stalled: false };
        let reading = Arc::new(SyncMutex::new(reading));
        tokio::spawn(watch(Arc::downgrade(&reading)));
        Self { version, reading }
    }
}

/// Gives `reading` up when its reader has stopped reading. A reader that is not polled cannot do
/// that by itself.
async fn watch(reading: Weak<SyncMutex<Reading>>) {
    loop {
        tokio::time::sleep(PART_WITHIN / 2).await;
        let Some(reading) = reading.upgrade() else { return };
        let mut reading = locked(&reading);
        reading.give_up_at(Instant::now());
        if reading.left.is_none() {
            return;
        }
    }
}

impl Reading {
    fn give_up_at(&mut self, now: Instant) {
        let waited = now.saturating_duration_since(self.read_at);
        if self.left.is_some() && waited >= PART_WITHIN {
            (self.left, self.stalled) = (None, true);
        }
    }

    /// The next part. `None`: there is none.
    fn next(&mut self, now: Instant) -> Option<Result<Bytes, Limit>> {
        if std::mem::take(&mut self.stalled) {
            return Some(Err(Limit::ReaderStalled { within: PART_WITHIN }));
        }
        let bytes = &self.left.as_ref()?.bytes;
        let end = bytes.len().min(self.offset + PART_BYTES);
        // A copy: a slice would keep all of the snapshot for as long as the transport has it.
        let part = Bytes::copy_from_slice(bytes.get(self.offset..end)?);
        (self.offset, self.read_at) = (end, now);
        if end == bytes.len() {
            self.left = None;
        }
        Some(Ok(part))
    }
}

impl Stream for Parts {
    type Item = Result<v1::ReadSnapshotResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = locked(&self.reading).next(Instant::now());
        let version = self.version;
        Poll::Ready(next.map(|part| match part {
            Ok(content) => Ok(v1::ReadSnapshotResponse { version, content }),
            Err(limit) => Err(status::of(limit.into())),
        }))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;
    use crate::testing::{Fixture, job};

    #[tokio::test]
    async fn readers_of_one_version_share_its_bytes() {
        let fixture = Fixture::new();
        let run = fixture.begins("r", vec![job("a", &[])]).await;
        let reads = SnapshotReads::default();

        let mut all = Vec::new();
        for _ in 0..60 {
            all.push(reads.read(&fixture.runs, &run).await.unwrap());
        }
        let used = BYTES_MAX / PERMIT_BYTES - reads.budget.available_permits();
        assert!(used <= 4, "one copy: {used} KiB");

        let mut bytes = Vec::new();
        while let Some(part) = all[0].next().await {
            bytes.extend_from_slice(&part.unwrap().content);
        }
        let read = towpath_engine::run::Run::from_snapshot(&bytes).unwrap();
        assert_eq!(read.jobs().len(), 1);
        drop(all);
        assert_eq!(reads.budget.available_permits(), BYTES_MAX / PERMIT_BYTES, "given back");
    }

    #[tokio::test]
    async fn more_bytes_than_may_be_read_at_once_are_refused() {
        let reads = SnapshotReads::new(10 * PERMIT_BYTES);
        let bytes = |len: usize| Bytes::from(vec![0; len]);

        let first = reads.count(bytes(8 * PERMIT_BYTES)).unwrap();
        let refused = reads.count(bytes(3 * PERMIT_BYTES)).unwrap_err();
        assert_eq!(refused.code().as_str(), "SNAPSHOTS_TOO_MANY");
        drop(first);
        let huge = reads.count(bytes(50 * PERMIT_BYTES)).unwrap();
        assert!(reads.count(bytes(1)).is_err(), "a very large one is read alone");
        drop(huge);
        reads.count(bytes(1)).unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_is_given_up() {
        let reads = SnapshotReads::new(10 * PART_BYTES);
        let parts = Parts::of(1, reads.count(vec![0; 3 * PART_BYTES].into()).unwrap());
        let begun = Instant::now();
        let reading = || locked(&parts.reading);
        assert!(matches!(reading().next(begun + PART_WITHIN / 2), Some(Ok(_))));
        reading().give_up_at(begun + PART_WITHIN);
        assert!(reading().left.is_some(), "it has read since");

        reading().give_up_at(begun + PART_WITHIN * 2);
        assert_eq!(reads.budget.available_permits(), 10 * PART_BYTES / PERMIT_BYTES);
        assert!(matches!(reading().next(begun), Some(Err(Limit::ReaderStalled { .. }))));
        assert!(reading().next(begun).is_none());
    }
}
