//! The durable log over any shelf: a queue, one writer thread, readers beside it.
//!
//! The writer takes whatever waits as one commit; there is no timer. While it is at the disk the
//! next commit gathers, so the price of a sync is shared by as many clients as there are. An append
//! is answered, and the tail moves, only after the shelf said that the commit is durable. After a
//! commit that failed the store stops for good: a failed sync may have lost what a second one would
//! claim to have written. A disk that is nearly full is therefore not written to at all.

use std::{
    collections::VecDeque,
    fmt::Debug,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{Builder, JoinHandle, yield_now},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::{oneshot, watch};

use crate::{
    APPEND_BYTES_MAX, AppendError, Appended, EventStore, KIND_BYTES_MAX, QUEUE_BYTES_MAX,
    RECORD_BYTES_MAX, STREAM_BYTES_MAX, StoreError,
    block::{Block, Tail},
    error::Damage,
    index::{Run, cost_of},
    mark::Mark,
    reader::Reader,
    record::{CHAIN_START, NewRecord, Position, Record, Version},
    room::Room,
    shelf::Shelf,
    writer::{Draft, Verdict, Writer},
};

/// Bytes after which a commit takes no further append: what a reader of the tail may have to wait.
const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long the writer stays awake after a commit.
const LINGER: Duration = Duration::from_micros(100);

/// What must outlive the files of a store: the lock of its owner.
pub(crate) type Guard = Arc<dyn Debug + Send + Sync>;

/// A durable log.
#[derive(Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// What the handle, the writer thread and reads that are under way share. The guard goes last.
#[derive(Debug)]
struct Shared {
    reader: Arc<Reader>,
    queue: Mutex<Queue>,
    wake: Condvar,
    tail: watch::Sender<Position>,
    room: Room,
    _guard: Guard,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    closing: bool,
    stopped: Option<StoreError>,
}

#[derive(Debug)]
struct Waiting {
    draft: Draft,
    bytes: usize,
    reply: oneshot::Sender<Verdict>,
}

impl Log {
    /// Opens the log on `shelf`, if it is what the mark at `mark` remembers.
    pub(crate) fn open(
        shelf: Arc<dyn Shelf>,
        mark: PathBuf,
        room: Room,
        guard: Guard,
    ) -> Result<Self, StoreError> {
        let remembered = Mark::read(&mark)?;
        let reader = Arc::new(Reader::new(shelf));
        let last = reader.last_block()?;
        let empty = Tail { position: 0, hash: CHAIN_START };
        let tail = last.as_ref().map_or(empty, |block| block.tail());
        if let Some(remembered) = remembered {
            check(&reader, &remembered, &tail)?;
        }
        if let Some(last) = last {
            recover_trail(&reader, &last)?;
        }
        let mark = Mark::open(&mark, &tail)?;
        let writer = Writer::new(Arc::clone(&reader), tail, mark);
        let shared = Arc::new(Shared {
            reader,
            queue: Mutex::default(),
            wake: Condvar::new(),
            tail: watch::Sender::new(tail.position),
            room,
            _guard: guard,
        });
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
            let stopped = shared.queue().stopped.clone();
            stopped.map_or_else(|| read(&shared), Err)
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
        let stream = stream.to_owned();
        self.reading(move |shared| shared.reader.read(&stream, after, limit))
    }

    fn read_all(
        &self,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        self.reading(move |shared| {
            let tail = *shared.tail.borrow();
            shared.reader.read_all(after, limit, tail)
        })
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.shared.tail.subscribe()
    }
}

impl Drop for Log {
    /// Writes what waits, then closes.
    fn drop(&mut self) {
        self.shared.queue().closing = true;
        self.shared.wake.notify_one();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has reported it, and its appends were answered.
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(
        &self,
        stream: &str,
        expected: Version,
        records: Vec<NewRecord>,
    ) -> Result<oneshot::Receiver<Verdict>, AppendError> {
        let bytes = size_within_bounds(stream, &records)?;
        let (reply, receiver) = oneshot::channel();
        let draft = Draft { stream: stream.into(), expected, records };
        let mut queue = self.queue();
        if let Some(stopped) = &queue.stopped {
            return Err(AppendError::Store(stopped.clone()));
        }
        if queue.bytes + bytes > QUEUE_BYTES_MAX {
            return Err(AppendError::Busy { bytes: queue.bytes, bytes_max: QUEUE_BYTES_MAX });
        }
        queue.bytes += bytes;
        queue.waiting.push_back(Waiting { draft, bytes, reply });
        drop(queue);
        self.wake.notify_one();
        Ok(receiver)
    }

    /// The life of the writer thread.
    fn write(&self, mut writer: Writer) {
        let _stop = StopOnExit(self);
        while let Some((drafts, replies)) = self.take() {
            if let Err(full) = self.room.check(0) {
                for reply in replies {
                    let _ = reply.send(Err(full.into()));
                }
                continue;
            }
            match writer.commit(drafts) {
                Ok(verdicts) => {
                    self.advance(writer.position());
                    for (reply, verdict) in replies.into_iter().zip(verdicts) {
                        // Who no longer waits does not need the answer.
                        let _ = reply.send(verdict);
                    }
                    self.linger();
                }
                Err(cause) => {
                    let stopped = StoreError::Stopped { cause: Arc::new(cause) };
                    self.stop(&stopped, replies);
                    return;
                }
            }
        }
        if let Err(cause) = writer.close() {
            self.stop(&StoreError::Stopped { cause: Arc::new(cause) }, Vec::new());
        }
    }

    /// Stays awake for a moment, because whoever was just answered often asks again: waking a
    /// thread takes longer than that, and a lone client would pay it with every append.
    fn linger(&self) {
        let since = Instant::now();
        while since.elapsed() < LINGER {
            let queue = self.queue();
            if !queue.waiting.is_empty() || queue.closing {
                return;
            }
            drop(queue);
            yield_now();
        }
    }

    /// Everything that waits, up to the bound of a commit; waits for it. `None` at the end.
    fn take(&self) -> Option<(Vec<Draft>, Vec<oneshot::Sender<Verdict>>)> {
        let mut queue = self.queue();
        while queue.waiting.is_empty() {
            if queue.closing {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let (mut drafts, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = queue.waiting.front() {
            if bytes > 0 && bytes + next.bytes > COMMIT_BYTES_MAX {
                break;
            }
            bytes += next.bytes;
            if let Some(Waiting { draft, reply, .. }) = queue.waiting.pop_front() {
                drafts.push(draft);
                replies.push(reply);
            }
        }
        queue.bytes -= bytes;
        Some((drafts, replies))
    }

    fn advance(&self, position: Position) {
        self.tail.send_if_modified(|tail| {
            let moved = *tail < position;
            *tail = position;
            moved
        });
    }

    /// Refuses everything from now on, and answers who waits.
    fn stop(&self, error: &StoreError, replies: Vec<oneshot::Sender<Verdict>>) {
        let waiting = {
            let mut queue = self.queue();
            queue.stopped.get_or_insert_with(|| error.clone());
            queue.bytes = 0;
            std::mem::take(&mut queue.waiting)
        };
        for reply in replies.into_iter().chain(waiting.into_iter().map(|waiting| waiting.reply)) {
            let _ = reply.send(Err(AppendError::Store(error.clone())));
        }
    }
}

/// Answers who still waits when the writer ends, however it ends.
struct StopOnExit<'a>(&'a Shared);

impl Drop for StopOnExit<'_> {
    fn drop(&mut self) {
        self.0.stop(&StoreError::Closed, Vec::new());
    }
}

/// The bytes of an append, when every part of it is within its bound.
pub(crate) fn size_within_bounds(
    stream: &str,
    records: &[NewRecord],
) -> Result<usize, AppendError> {
    let within = |what, bytes: usize, bytes_max: usize| {
        let large = AppendError::TooLarge { what, bytes, bytes_max };
        if bytes <= bytes_max { Ok(()) } else { Err(large) }
    };
    if records.is_empty() {
        return Err(AppendError::Empty);
    }
    within("stream name", stream.len(), STREAM_BYTES_MAX)?;
    for record in records {
        within("record", record.bytes.len(), RECORD_BYTES_MAX)?;
        within("kind", record.kind.len(), KIND_BYTES_MAX)?;
    }
    let bytes = records.iter().map(|record| record.frame_bytes(stream)).sum();
    within("append", bytes, APPEND_BYTES_MAX)?;
    Ok(bytes)
}

/// Compares the log with what its mark remembers.
fn check(reader: &Reader, remembered: &Tail, tail: &Tail) -> Result<(), StoreError> {
    if remembered.position > tail.position {
        let (mark, tail) = (remembered.position, tail.position);
        return Err(StoreError::Rollback { mark, tail });
    }
    if remembered.position == 0 {
        return Ok(());
    }
    let block = reader.block_holding(remembered.position)?;
    let found = block.at(remembered.position).map(|record| record.hash);
    if found == Some(remembered.hash) {
        return Ok(());
    }
    Err(StoreError::Damaged { position: remembered.position, what: Damage::MarkDiffers })
}

/// Reads again what the index does not know, up to the `last` block, and verifies it on the way.
fn recover_trail(reader: &Reader, last: &Block) -> Result<(), StoreError> {
    let mut before: Option<Tail> = None;
    let mut next = last.indexed_below;
    while next <= last.first() {
        let blocks = reader.blocks_from(next)?;
        let hole = || StoreError::Damaged { position: next, what: Damage::Hole };
        let newest = blocks.last().ok_or_else(hole)?.tail().position;
        for block in blocks {
            let position = before.map_or(last.indexed_below, |tail| tail.position + 1);
            if block.first() != position {
                return Err(StoreError::Damaged { position, what: Damage::Hole });
            }
            if before.is_some_and(|tail| tail.hash != block.before) {
                return Err(StoreError::Damaged { position, what: Damage::HashDiffers });
            }
            before = Some(block.tail());
            trail_block(reader, &block)?;
        }
        next = newest + 1;
    }
    Ok(())
}

/// Adds the runs of `block` to the trail, save those the index knows.
fn trail_block(reader: &Reader, block: &Block) -> Result<(), StoreError> {
    let mut runs: Vec<(&Arc<str>, Run)> = Vec::new();
    let mut run_of = std::collections::HashMap::new();
    for record in &block.records {
        let index = *run_of.entry(&record.stream).or_insert_with(|| {
            let run = Run { version: record.version, count: 0, block: block.first() };
            runs.push((&record.stream, run));
            runs.len() - 1
        });
        runs[index].1.count += 1;
    }
    for (stream, run) in runs {
        if run.last() > reader.indexed_head(stream)? {
            reader.trail().push(stream, run);
        }
    }
    reader.trail().count(cost_of(block.bytes));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        ops::RangeInclusive,
        sync::mpsc,
        task::{Context, Poll, Waker},
    };

    use bytes::Bytes;

    use super::*;
    use crate::{
        contract::fact,
        shelf::{Entry, Found, ShelfError},
    };

    /// A shelf in memory whose every write waits for a word: `true` lets it through, `false` fails
    /// it as a failed sync would, after the values became visible.
    #[derive(Debug)]
    struct Gated {
        map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
        puts: Mutex<Vec<usize>>,
        gate: Mutex<mpsc::Receiver<bool>>,
    }

    impl Shelf for Gated {
        fn put(&self, entries: Vec<Entry>) -> Result<(), ShelfError> {
            self.puts.lock().unwrap().push(entries.len());
            self.map.lock().unwrap().extend(entries);
            if self.gate.lock().unwrap().recv().unwrap() {
                return Ok(());
            }
            Err(ShelfError::Unavailable(Arc::new(std::io::Error::other("the sync failed"))))
        }

        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ShelfError> {
            Ok(self.map.lock().unwrap().get(key).map(|value| value.clone().into()))
        }

        fn last_in(&self, keys: RangeInclusive<&[u8]>) -> Result<Option<Found>, ShelfError> {
            let map = self.map.lock().unwrap();
            let bounds = (keys.start().to_vec(), keys.end().to_vec());
            let found = map.range(bounds.0..=bounds.1).next_back();
            Ok(found.map(|(key, value)| (key.clone().into(), value.clone().into())))
        }

        fn first_in(
            &self,
            keys: RangeInclusive<&[u8]>,
            limit: usize,
        ) -> Result<Vec<Found>, ShelfError> {
            let map = self.map.lock().unwrap();
            let bounds = (keys.start().to_vec(), keys.end().to_vec());
            let found = map.range(bounds.0..=bounds.1).take(limit);
            Ok(found.map(|(key, value)| (key.clone().into(), value.clone().into())).collect())
        }
    }

    struct Rig {
        log: Option<Log>,
        shelf: Arc<Gated>,
        gate: mpsc::Sender<bool>,
        directory: tempfile::TempDir,
    }

    impl Rig {
        fn new() -> Self {
            let (gate, gated) = mpsc::channel();
            let (map, puts, gated) = (Mutex::default(), Mutex::default(), Mutex::new(gated));
            let shelf = Arc::new(Gated { map, puts, gate: gated });
            let directory = tempfile::tempdir().unwrap();
            let mut rig = Self { log: None, shelf, gate, directory };
            rig.reopen().unwrap();
            rig
        }

        fn reopen(&mut self) -> Result<(), StoreError> {
            self.log = None;
            let mark = self.directory.path().join("mark");
            let shelf: Arc<dyn Shelf> = Arc::<Gated>::clone(&self.shelf);
            self.log =
                Some(Log::open(shelf, mark, Room::around(self.directory.path()), Arc::new(()))?);
            Ok(())
        }

        fn log(&self) -> &Log {
            self.log.as_ref().unwrap()
        }

        /// Waits until the shelf has been asked to write `count` times.
        fn until_puts(&self, count: usize) {
            while self.shelf.puts.lock().unwrap().len() < count {
                yield_now();
            }
        }
    }

    fn pending<T>(future: &mut BoxFuture<'_, T>) -> bool {
        matches!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
    }

    #[tokio::test]
    async fn nothing_is_acknowledged_or_seen_before_the_shelf_says_durable() {
        let rig = Rig::new();
        let mut append = rig.log().append("run/a", 0, vec![fact("1")]);
        rig.until_puts(1);

        assert!(pending(&mut append));
        assert_eq!(*rig.log().watch().borrow(), 0);
        assert!(rig.log().read_all(0, 10).await.unwrap().is_empty());
        assert!(rig.log().read("run/a", 0, 10).await.unwrap().is_empty());

        rig.gate.send(true).unwrap();
        append.await.unwrap();
        assert_eq!(*rig.log().watch().borrow(), 1);
        assert_eq!(rig.log().read("run/a", 0, 10).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn what_waits_while_the_disk_is_busy_is_one_commit() {
        let rig = Rig::new();
        let first = rig.log().append("run/a", 0, vec![fact("1")]);
        rig.until_puts(1);
        let waiting: Vec<_> = (0..50)
            .map(|n| rig.log().append(&format!("run/{n}"), 0, vec![fact("1"), fact("2")]))
            .collect();
        let late = rig.log().append("run/7", 0, vec![fact("late")]);
        let next = rig.log().append("run/7", 2, vec![fact("3")]);

        rig.gate.send(true).unwrap();
        rig.gate.send(true).unwrap();

        first.await.unwrap();
        for append in waiting {
            append.await.unwrap();
        }
        let conflict = late.await.unwrap_err();
        assert!(matches!(conflict, AppendError::Conflict { expected: 0, actual: 2, .. }));
        assert_eq!(next.await.unwrap().version, 3);
        assert_eq!(*rig.shelf.puts.lock().unwrap(), [1, 1], "one key each");
    }

    #[tokio::test]
    async fn after_a_failed_commit_the_store_stops_and_never_tries_again() {
        let rig = Rig::new();
        let first = rig.log().append("run/a", 0, vec![fact("1")]);
        rig.until_puts(1);
        let second = rig.log().append("run/b", 0, vec![fact("1")]);

        rig.gate.send(false).unwrap();

        assert_eq!(first.await.unwrap_err().code(), "STORE_UNAVAILABLE");
        assert_eq!(second.await.unwrap_err().code(), "STORE_UNAVAILABLE");
        let later = rig.log().append("run/c", 0, vec![fact("1")]).await.unwrap_err();
        assert_eq!(later.code(), "STORE_UNAVAILABLE");
        let cause = std::error::Error::source(&later).unwrap().source().unwrap().to_string();
        assert_eq!(cause, "the sync failed");
        assert_eq!(rig.log().read_all(0, 1).await.unwrap_err().code(), "STORE_UNAVAILABLE");
        assert_eq!(rig.log().read("run/a", 0, 1).await.unwrap_err().code(), "STORE_UNAVAILABLE");
        assert_eq!(*rig.log().watch().borrow(), 0);
        assert_eq!(rig.shelf.puts.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn more_than_may_wait_is_refused_as_busy() {
        let rig = Rig::new();
        let first = rig.log().append("run/a", 0, vec![fact("1")]);
        rig.until_puts(1);
        let large = || vec![NewRecord::new("large", vec![0; 60_000]); 500];
        let mut waiting: Vec<_> =
            (0..2).map(|n| rig.log().append(&format!("run/{n}"), 0, large())).collect();
        assert!(waiting.iter_mut().all(pending));

        let error = rig.log().append("run/z", 0, large()).await.unwrap_err();

        assert_eq!(error.code(), "STORE_BUSY");
        drop(waiting);
        for _ in 0..100 {
            rig.gate.send(true).unwrap();
        }
        first.await.unwrap();
        // What was queued is written, though nobody waits for it any more.
        let mut tail = rig.log().watch();
        tail.wait_for(|tail| *tail == 1001).await.unwrap();
    }

    /// Three hundred small commits to eight streams, so that the index is written in between.
    async fn filled() -> Rig {
        let rig = Rig::new();
        for n in 0..300_u64 {
            rig.gate.send(true).unwrap();
            let stream = format!("run/{}", n % 8);
            rig.log().append(&stream, n / 8, vec![fact(&n.to_string())]).await.unwrap();
        }
        rig
    }

    #[tokio::test]
    async fn a_shortened_log_is_a_rollback_and_another_one_is_damage() {
        let mut rig = filled().await;
        rig.log = None;
        let last = crate::index::block_key(300).to_vec();
        let removed = rig.shelf.map.lock().unwrap().remove(&last).unwrap();
        let error = rig.reopen().unwrap_err();
        assert!(matches!(error, StoreError::Rollback { mark: 300, tail: 299 }), "{error}");

        // A sound block with another record in the place of the last.
        let shelf: Arc<dyn Shelf> = Arc::<Gated>::clone(&rig.shelf);
        let tail = Reader::new(shelf).last_block().unwrap().unwrap().tail();
        let mut other = crate::block::Filling::after(&tail);
        other.push("run/3", 38, "forged", b"");
        rig.shelf.map.lock().unwrap().insert(last.clone(), other.seal(1));
        let error = rig.reopen().unwrap_err();
        assert!(
            matches!(error, StoreError::Damaged { position: 300, what: Damage::MarkDiffers }),
            "{error}"
        );

        rig.shelf.map.lock().unwrap().insert(last, removed);
        rig.reopen().unwrap();
    }

    #[tokio::test]
    async fn a_missing_mark_is_written_again() {
        let mut rig = filled().await;
        rig.log = None;
        let mark = rig.directory.path().join("mark");
        std::fs::remove_file(&mark).unwrap();

        rig.reopen().unwrap();

        assert_eq!(Mark::read(&mark).unwrap().unwrap().position, 300);
    }

    #[tokio::test]
    async fn a_hole_stops_every_reader_at_its_position() {
        let mut rig = filled().await;
        rig.log = None;
        rig.shelf.map.lock().unwrap().remove(crate::index::block_key(20).as_slice());
        rig.reopen().unwrap_or_else(|error| assert_eq!(error.code(), "LOG_DAMAGED"));
        let Some(log) = &rig.log else { return };

        for (after, limit) in [(0, 1000), (19, 1), (10, 50)] {
            let error = log.read_all(after, limit).await.unwrap_err();
            assert!(matches!(error, StoreError::Damaged { position: 20, .. }), "{error}");
        }
        assert_eq!(log.read_all(0, 19).await.unwrap().len(), 19);
        let error = log.read("run/3", 0, 100).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { position: 20, .. }), "{error}");
        assert_eq!(crate::verify(log, |_| {}).await.unwrap_err().code(), "LOG_DAMAGED");
    }

    #[tokio::test]
    async fn any_lost_entry_of_the_index_is_noticed_by_the_audit() {
        let mut rig = filled().await;
        rig.log = None;
        let before = rig.shelf.map.lock().unwrap().clone();
        let entries: Vec<_> = before.keys().filter(|key| key[0] == b's').cloned().collect();
        assert!(!entries.is_empty(), "the index was written");
        let last = before.keys().rfind(|key| key[0] == b'l').unwrap().clone();

        for key in entries.iter().chain([&last]) {
            rig.shelf.map.lock().unwrap().remove(key);
            let verdict = match rig.reopen() {
                Ok(()) => crate::verify(rig.log(), |_| {}).await.map(drop),
                Err(error) => Err(error),
            };
            assert!(verdict.is_err(), "{key:?}");
            rig.log = None;
            *rig.shelf.map.lock().unwrap() = before.clone();
        }
        rig.reopen().unwrap();
        assert_eq!(crate::verify(rig.log(), |_| {}).await.unwrap().records, 300);
    }
}
