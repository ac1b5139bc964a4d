//! The log in memory: for tests, for trying things out, and as the model of the durable ones.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::{oneshot, watch};

use crate::{
    AppendError, Appended, EventStore, READ_BYTES_MAX, StoreError, UrlFault,
    backend::{Backend, Directory},
    log::{
        record::{CHAIN_START, NewRecord, Position, Record, Version},
        size_within_bounds,
    },
    store_dir::{OwnerLock, StoreDir},
};

/// `memory:`.
#[derive(Debug)]
pub(crate) struct Memory;

impl Backend for Memory {
    fn scheme(&self) -> &'static str {
        "memory"
    }

    fn usage(&self) -> &'static str {
        "memory:"
    }

    fn is_durable(&self) -> bool {
        false
    }

    fn directory(&self, rest: &str) -> Result<Directory, UrlFault> {
        if rest.is_empty() { Ok(Directory::Temporary) } else { Err(UrlFault::PathUnexpected) }
    }

    fn open(&self, _rest: &str, dir: &mut StoreDir) -> Result<Arc<dyn EventStore>, StoreError> {
        Ok(Arc::new(MemoryStore::keeping(dir.owner())))
    }
}

/// A log that ends with the process. "Durable" means nothing here but "appended".
#[derive(Debug)]
pub struct MemoryStore {
    log: Mutex<MemoryLog>,
    tail: watch::Sender<Position>,
    _owner: OwnerLock,
}

#[derive(Debug, Default)]
struct MemoryLog {
    records: Vec<Record>,
    /// For each stream, the places of its records in `records`.
    streams: HashMap<Arc<str>, Vec<usize>>,
    /// The appends that wait while the store is paused.
    waiting: Option<VecDeque<StalledAppend>>,
    /// How many appends may wait.
    waiting_max: usize,
    /// Streams whose end cannot be found.
    endless: HashSet<String>,
}

#[derive(Debug)]
struct StalledAppend {
    stream: String,
    expected: Version,
    records: Vec<NewRecord>,
    reply: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::keeping(Arc::new(()))
    }
}

impl MemoryStore {
    /// An empty log that keeps `owner` alive.
    pub(crate) fn keeping(owner: OwnerLock) -> Self {
        Self { log: Mutex::default(), tail: watch::Sender::new(0), _owner: owner }
    }

    /// Stands still from now on, as a slow disk does: at most `waiting_max` appends wait, and more
    /// are refused as busy.
    pub fn stand_still(&self, waiting_max: usize) {
        let mut log = self.log();
        log.waiting_max = waiting_max;
        log.waiting.get_or_insert_default();
    }

    /// Appends what waits, in order, and continues.
    ///
    /// The newest append is answered first: one commit answers many appends at once, and which of
    /// their callers continues first is unspecified. A caller that counts on an order fails its tests.
    pub fn go_on(&self) {
        let waiting = self.log().waiting.take().unwrap_or_default();
        let appended: Vec<_> = waiting
            .into_iter()
            .map(|StalledAppend { stream, expected, records, reply }| {
                (reply, self.append_now(&stream, expected, records))
            })
            .collect();
        for (reply, appended) in appended.into_iter().rev() {
            // Who no longer waits does not need the answer.
            // The caller may have dropped its future. The append is done all the same.
            let _ = reply.send(appended);
        }
    }

    /// Fails to find the end of `stream` from now on, as with a damaged disk: no append to it is taken.
    pub fn fail_appends_to(&self, stream: &str) {
        self.log().endless.insert(stream.to_owned());
    }

    fn log(&self) -> MutexGuard<'_, MemoryLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append_now(
        &self,
        stream: &str,
        expected: Version,
        records: Vec<NewRecord>,
    ) -> Result<Appended, AppendError> {
        size_within_bounds(stream, &records)?;
        let mut log = self.log();
        if log.endless.contains(stream) {
            let cause = std::io::Error::other("the disk of this store fails");
            return Err(StoreError::while_doing("finding the end of a stream")(cause).into());
        }
        let actual = log.streams.get(stream).map_or(0, Vec::len) as Version;
        if actual != expected {
            return Err(AppendError::Conflict { stream: stream.to_owned(), expected, actual });
        }
        let first = log.records.len() as Position + 1;
        let stream: Arc<str> = stream.into();
        for (record, version) in records.into_iter().zip(expected + 1..) {
            log.push(&stream, version, record);
        }
        let last = log.records.len() as Position;
        let version = expected + (last - first + 1);
        // Under the lock: the tail never steps back.
        self.tail.send_replace(last);
        Ok(Appended { first, last, version })
    }
}

impl MemoryLog {
    fn push(&mut self, stream: &Arc<str>, version: Version, new: NewRecord) {
        let index = self.records.len();
        // The same chain as on disk: an audit or an export cannot distinguish the two.
        let previous = self.records.last().map_or(CHAIN_START, |record| record.hash);
        let mut record = Record {
            position: index as Position + 1,
            stream: Arc::clone(stream),
            version,
            kind: new.kind,
            bytes: new.bytes,
            hash: previous,
        };
        record.hash = record.hash_after(&previous);
        self.records.push(record);
        self.streams.entry(Arc::clone(stream)).or_default().push(index);
    }
}

/// As many of `records` as one page takes.
fn page<'a>(records: impl Iterator<Item = &'a Record>, limit: usize) -> Vec<Record> {
    let mut bytes = 0;
    let within = |(index, record): &(usize, &Record)| {
        bytes += record.bytes.len();
        *index == 0 || bytes <= READ_BYTES_MAX
    };
    records.take(limit).enumerate().take_while(within).map(|(_, record)| record.clone()).collect()
}

fn index_after(after: u64, len: usize) -> usize {
    usize::try_from(after).map_or(len, |after| after.min(len))
}

impl EventStore for MemoryStore {
    fn append(
        &self,
        stream: &str,
        expected: Version,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let mut log = self.log();
        let waiting_max = log.waiting_max;
        let Some(waiting) = &mut log.waiting else {
            drop(log);
            return std::future::ready(self.append_now(stream, expected, records)).boxed();
        };
        // As the queue of the durable log does, so that callers can be tested against it.
        if waiting.len() >= waiting_max {
            let busy = AppendError::Busy { bytes: waiting.len(), bytes_max: waiting_max };
            return std::future::ready(Err(busy)).boxed();
        }
        let (reply, receiver) = oneshot::channel();
        waiting.push_back(StalledAppend { stream: stream.to_owned(), expected, records, reply });
        async { receiver.await.unwrap_or(Err(AppendError::Store(StoreError::Closed))) }.boxed()
    }

    fn read(
        &self,
        stream: &str,
        after: Version,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        let log = self.log();
        let places = log.streams.get(stream).map_or(&[][..], Vec::as_slice);
        let places = &places[index_after(after, places.len())..];
        let records = page(places.iter().map(|&index| &log.records[index]), limit);
        std::future::ready(Ok(records)).boxed()
    }

    fn read_all(
        &self,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        let log = self.log();
        let records = &log.records[index_after(after, log.records.len())..];
        std::future::ready(Ok(page(records.iter(), limit))).boxed()
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.tail.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::event_store_contract! { |_directory| Arc::new(MemoryStore::default()) }
}
