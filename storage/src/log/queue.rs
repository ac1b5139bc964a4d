//! The queue of a log, and its one writer thread.
//!
//! The writer takes whatever waits as one commit; there is no timer. While it is at the disk the
//! next commit gathers, so the price of a sync is shared by as many clients as there are. An append
//! is answered, and the tail moves, only after the backend said that the commit is durable. After a
//! commit that failed the store stops for good: a failed sync may have lost what a second one would
//! claim to have written. A disk that is nearly full is therefore not written to at all.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::yield_now,
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

use super::{
    reader::Reader,
    record::{NewRecord, Position, Version},
    writer::{COMMIT_APPENDS_MAX, Draft, Verdict, Writer},
};
use crate::{
    APPEND_BYTES_MAX, AppendError, KIND_BYTES_MAX, QUEUE_BYTES_MAX, RECORD_BYTES_MAX,
    STREAM_BYTES_MAX, StoreError, disk_space::DiskSpace, store_dir::OwnerLock,
};

/// Bytes after which a commit takes no further append.
///
/// It bounds how long an append waits for the ones before it: at 100 MB/s, 40 ms.
const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long the writer stays awake after a commit. Longer would burn a core that readers need.
const LINGER: Duration = Duration::from_micros(100);

/// What the handle, the writer thread and reads that are under way share. The owner's lock is
/// dropped last.
#[derive(Debug)]
pub(super) struct Shared {
    reader: Arc<Reader>,
    queue: Mutex<Queue>,
    wake: Condvar,
    tail: watch::Sender<Position>,
    disk_space: DiskSpace,
    _owner: OwnerLock,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<QueuedAppend>,
    bytes: usize,
    closing: bool,
    stopped: Option<StoreError>,
}

#[derive(Debug)]
struct QueuedAppend {
    draft: Draft,
    bytes: usize,
    reply: oneshot::Sender<Verdict>,
}

impl Shared {
    /// An empty queue behind a log that ends at `tail`.
    pub(super) fn new(
        reader: Arc<Reader>,
        tail: Position,
        disk_space: DiskSpace,
        owner: OwnerLock,
    ) -> Self {
        Self {
            reader,
            queue: Mutex::default(),
            wake: Condvar::new(),
            tail: watch::Sender::new(tail),
            disk_space,
            _owner: owner,
        }
    }

    /// What reads go through.
    pub(super) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Newest position that is durable.
    pub(super) fn tail(&self) -> Position {
        *self.tail.borrow()
    }

    /// The newest durable position, whenever it moves.
    pub(super) fn watch(&self) -> watch::Receiver<Position> {
        self.tail.subscribe()
    }

    /// Refuses once the store has stopped.
    pub(super) fn check_running(&self) -> Result<(), StoreError> {
        self.queue().stopped.clone().map_or(Ok(()), Err)
    }

    /// Lets the writer end once everything that waits is written.
    pub(super) fn close(&self) {
        self.queue().closing = true;
        self.wake.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enqueue(
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
        // Refused, not waited for: a caller that waits here would hold the lock of its stream, and
        // everything else that needs the stream would wait with it.
        if queue.bytes + bytes > QUEUE_BYTES_MAX {
            return Err(AppendError::Busy { bytes: queue.bytes, bytes_max: QUEUE_BYTES_MAX });
        }
        queue.bytes += bytes;
        queue.waiting.push_back(QueuedAppend { draft, bytes, reply });
        // Woken without the lock: else the writer would wake only to wait for it.
        drop(queue);
        self.wake.notify_one();
        Ok(receiver)
    }

    /// The life of the writer thread.
    pub(super) fn write(&self, mut writer: Writer) {
        let _stop = StopOnExit(self);
        while let Some((drafts, replies)) = self.take() {
            // Before the commit, not during it: a write that fails in the middle leaves a database
            // whose state is unknown, and stops the store. This refusal stops nothing.
            if let Err(full) = self.disk_space.check(0) {
                for reply in replies {
                    let _ = reply.send(Err(full.into()));
                }
                continue;
            }
            match writer.commit(drafts) {
                Ok(verdicts) => {
                    // The tail first: a caller that gets its answer must find its records when it
                    // reads.
                    self.advance(writer.position());
                    for (reply, verdict) in replies.into_iter().zip(verdicts) {
                        // Who no longer waits does not need the answer.
                        let _ = reply.send(verdict);
                    }
                    self.linger();
                }
                Err(cause) => {
                    // Never tried again. After a failed sync the system may have dropped the dirty
                    // pages and report the next sync as a success, so a retry would acknowledge
                    // what is not on the disk. Opening the store again reads what really is there.
                    let stopped = StoreError::Stopped { cause: Arc::new(cause) };
                    self.stop(&stopped, replies);
                    return;
                }
            }
        }
        // Only the high-water mark is left to sync; every commit was durable when it was answered.
        if let Err(cause) = writer.close() {
            self.stop(&StoreError::Stopped { cause: Arc::new(cause) }, Vec::new());
        }
    }

    /// Stays awake for a moment, because a caller that was just answered often appends again:
    /// waking a thread takes longer than that, and a lone client would pay it with every append.
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
            // The first always fits: one append may be larger than a commit should be.
            let is_full =
                bytes + next.bytes > COMMIT_BYTES_MAX || drafts.len() == COMMIT_APPENDS_MAX;
            if bytes > 0 && is_full {
                break;
            }
            bytes += next.bytes;
            if let Some(QueuedAppend { draft, reply, .. }) = queue.waiting.pop_front() {
                drafts.push(draft);
                replies.push(reply);
            }
        }
        // From here on these bytes are the writer's. The bound is on what waits, so that a slow
        // disk leaves room for one commit in flight beside a full queue.
        queue.bytes -= bytes;
        Some((drafts, replies))
    }

    fn advance(&self, position: Position) {
        // A commit in which every append was refused moves nothing and must wake no reader.
        self.tail.send_if_modified(|tail| {
            let moved = *tail < position;
            *tail = position;
            moved
        });
    }

    /// Refuses everything from now on, and answers who waits.
    fn stop(&self, error: &StoreError, replies: Vec<oneshot::Sender<Verdict>>) {
        // The lock is released before the answers: a caller that gets one may append again at once.
        let waiting = {
            let mut queue = self.queue();
            // The first reason is the true one; `Closed` from the end of the thread comes after it.
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
        // Also when the writer panicked: an append that is never answered would hang its caller.
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
