//! The handle of an open log: it queues appends, reads beside the writer, and closes.

use std::{
    fmt::Debug,
    path::Path,
    sync::Arc,
    thread::{Builder, JoinHandle},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;

use super::{
    block::Tail,
    high_water::HighWaterMark,
    queue::Shared,
    reader::Reader,
    record::{CHAIN_START, NewRecord, Position, Record, Version},
    recovery::{check_high_water, recover_unindexed},
    writer::Writer,
};
use crate::{
    AppendError, Appended, EventStore, StoreError, disk_space::DiskSpace, kv::KvBackend,
    store_dir::OwnerLock,
};

/// A durable log.
#[derive(Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl Log {
    /// Opens the log in `kv`, if it matches the high-water mark in the file `high_water`.
    pub(crate) fn open(
        kv: Arc<dyn KvBackend>,
        high_water: &Path,
        disk_space: DiskSpace,
        owner: OwnerLock,
    ) -> Result<Self, StoreError> {
        // In this order: an unreadable mark, a log shorter than it, and a log with another record
        // at its position must each be refused before anything is written.
        // Read before it is opened for writing: opening would replace it with the tail that it is
        // to be compared with.
        let remembered = HighWaterMark::read(high_water)?;
        let reader = Arc::new(Reader::new(kv));
        let last = reader.last_block()?;
        let empty = Tail { position: 0, hash: CHAIN_START };
        let tail = last.as_ref().map_or(empty, |block| block.tail());
        if let Some(remembered) = remembered {
            check_high_water(&reader, &remembered, &tail)?;
        }
        if let Some(last) = last {
            recover_unindexed(&reader, &last)?;
        }
        // Only a log that passed moves the mark: from here on its own tail is the truth.
        let high_water = HighWaterMark::open(high_water, &tail)?;
        let writer = Writer::new(Arc::clone(&reader), tail, high_water);
        let shared = Arc::new(Shared::new(reader, tail.position, disk_space, owner));
        let thread = Builder::new().name("tow-log".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.write(writer)
        });
        let thread = thread.map_err(StoreError::while_doing("starting the writer"))?;
        Ok(Self { shared, writer: Some(thread) })
    }

    fn reading(
        &self,
        read: impl FnOnce(&Shared) -> Result<Vec<Record>, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        let shared = Arc::clone(&self.shared);
        let read = move || {
            shared.check_running()?;
            read(&shared)
        };
        async move {
            // The disk may be slow, and a runtime has few threads.
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => runtime
                    .spawn_blocking(read)
                    .await
                    .map_err(StoreError::while_doing("waiting for a read"))?,
                Err(_no_runtime) => read(),
            }
        }
        .boxed()
    }
}

impl EventStore for Log {
    fn append(
        &self,
        stream: &str,
        expected: Version,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        // Queued now and not when the future is polled: callers queue under the lock of a stream
        // and await after releasing it, and their order must be that of the calls.
        match self.shared.enqueue(stream, expected, records) {
            Ok(reply) => async {
                let gone = |_| Err(AppendError::Store(StoreError::Closed));
                reply.await.unwrap_or_else(gone)
            }
            .boxed(),
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }

    fn read(
        &self,
        stream: &str,
        after: Version,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        if let Err(stopped) = self.shared.check_running() {
            return std::future::ready(Err(stopped)).boxed();
        }
        if let Some(newest) = self.shared.reader().read_newest(stream, after, limit) {
            return std::future::ready(newest).boxed();
        }
        let stream = stream.to_owned();
        self.reading(move |shared| shared.reader().read(&stream, after, limit))
    }

    fn read_all(
        &self,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        self.reading(move |shared| shared.reader().read_all(after, limit, shared.tail()))
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.shared.watch()
    }
}

impl Drop for Log {
    /// Writes what waits, then closes.
    fn drop(&mut self) {
        self.shared.close();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has reported it, and its appends were answered.
            let _ = writer.join();
        }
    }
}
