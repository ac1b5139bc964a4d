//! Reads parts of attempts to be sent, several at once, each for a limited time.
//!
//! A file of a job may be on a disk that does not answer, and what waits for a disk cannot be given
//! up: its thread waits for as long as the disk does. So each part is read on a thread of its own,
//! one attempt waits for its own files alone, and there are bounds for parts that are read at once,
//! for the time of one, and for threads that may be left waiting.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Semaphore, mpsc::OwnedPermit},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use towpath_engine::ids::AttemptId;
use towpath_proto::v1;

use crate::protocol::{Part, UploadKind};

/// Parts of one kind that are read at once: output, which is on the worker's own disk, does not
/// wait for the files of jobs. Each keeps a place among the outgoing messages, and heartbeats need
/// some as well.
const AT_ONCE_MAX: usize = 4;
/// How long one part, of 64 KiB at most, may take.
pub(crate) const READ_WITHIN: Duration = Duration::from_secs(60);
/// Threads that read or still wait for a disk, in all. The runtime has 512 for everything that
/// blocks.
const THREADS_MAX: usize = 64;

/// The place of a message among those that wait for the connection.
type Place = OwnedPermit<v1::SessionRequest>;

/// A part that was read, or not.
pub(crate) struct ReadDone {
    pub(crate) attempt: AttemptId,
    pub(crate) part: Part,
    /// Its place among the outgoing messages, kept so that nothing is read that could not be sent.
    pub(crate) place: Place,
    pub(crate) content: io::Result<Vec<u8>>,
}

/// Parts of attempts that are being read for one connection after the other.
pub(crate) struct Reads {
    within: Duration,
    under_way: JoinSet<ReadDone>,
    output: usize,
    files: usize,
    /// Held by the thread that reads of an attempt: one that a connection has left behind must be
    /// done before the next one reads of the attempt, or each connection would leave one.
    threads: HashMap<AttemptId, Arc<Mutex<()>>>,
    all_threads: Arc<Semaphore>,
}

impl Reads {
    pub(crate) fn new(within: Duration) -> Self {
        Self {
            within,
            under_way: JoinSet::new(),
            output: 0,
            files: 0,
            threads: HashMap::new(),
            all_threads: Arc::new(Semaphore::new(THREADS_MAX)),
        }
    }

    /// Whether something of `kind` may be sent now.
    pub(crate) fn have_room(&self, kind: UploadKind) -> bool {
        match kind {
            UploadKind::Output => self.output < AT_ONCE_MAX,
            UploadKind::File => self.files < AT_ONCE_MAX,
            UploadKind::Report => true,
        }
    }

    /// Begins to `read` a part. Within a runtime.
    pub(crate) fn begin(
        &mut self,
        (attempt, part, place): (AttemptId, Part, Place),
        read: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
    ) {
        *self.count(&part) += 1;
        let thread = Arc::clone(self.threads.entry(attempt.clone()).or_default());
        let (within, all) = (self.within, Arc::clone(&self.all_threads));
        self.under_way.spawn(async move {
            let reading = async {
                let one = thread.lock_owned().await;
                let any = all.acquire_owned().await.map_err(io::Error::other)?;
                // Kept by the thread, for as long as it waits.
                let reading = spawn_blocking(move || {
                    let content = read();
                    drop((one, any));
                    content
                });
                reading.await.map_err(io::Error::other)?
            };
            let late = |_| {
                let seconds = within.as_secs();
                let why = format!("it could not be read within {seconds} s");
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            };
            let content = timeout(within, reading).await.unwrap_or_else(late);
            ReadDone { attempt, part, place, content }
        });
    }

    /// The next part that was read. Waits without end if there is none.
    pub(crate) async fn next(&mut self) -> ReadDone {
        loop {
            match self.under_way.join_next().await {
                Some(Ok(done)) => {
                    let count = self.count(&done.part);
                    *count = count.saturating_sub(1);
                    self.threads.retain(|_, thread| Arc::strong_count(thread) > 1);
                    return done;
                }
                // It was given up with its connection.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Gives up what is being read: its connection has ended.
    pub(crate) fn clear(&mut self) {
        self.under_way = JoinSet::new();
        (self.output, self.files) = (0, 0);
    }

    fn count(&mut self, part: &Part) -> &mut usize {
        match part {
            Part::Output { .. } => &mut self.output,
            Part::Artifact { .. } => &mut self.files,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;

    use tokio::sync::mpsc;

    use super::*;

    fn id(attempt: u32) -> AttemptId {
        let attempt = towpath_engine::ids::Attempt(attempt);
        AttemptId { run: "r".into(), job: "a".into(), attempt }
    }

    /// What is to be read of an attempt.
    fn part_of(attempt: u32) -> (AttemptId, Part, Place) {
        let (outgoing, incoming) = mpsc::channel(1);
        let place = outgoing.try_reserve_owned().unwrap();
        drop(incoming);
        (id(attempt), Part::Output { offset: 0, length: 1 }, place)
    }

    /// A read that lasts until the answer is dropped.
    fn slow() -> (impl FnOnce() -> io::Result<Vec<u8>>, blocking::Sender<()>) {
        let (ends, waits) = blocking::channel::<()>();
        (move || waits.recv().map_or(Ok(b"late".to_vec()), |()| Ok(Vec::new())), ends)
    }

    #[tokio::test]
    async fn a_part_that_cannot_be_read_holds_up_no_other_and_is_given_up() {
        let mut reads = Reads::new(Duration::from_millis(50));
        let (never, _ends) = slow();
        reads.begin(part_of(1), never);
        reads.begin(part_of(2), || Ok(b"2".to_vec()));

        let first = reads.next().await;
        assert_eq!((first.attempt, first.content.unwrap()), (id(2), b"2".to_vec()));
        let second = reads.next().await;
        assert_eq!(second.attempt, id(1));
        assert_eq!(second.content.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!((0..AT_ONCE_MAX).all(|_| reads.have_room(UploadKind::Output)));
    }

    #[tokio::test]
    async fn an_attempt_leaves_one_thread_behind_however_often_its_connection_ends() {
        let mut reads = Reads::new(Duration::from_secs(60));
        let (never, ends) = slow();
        reads.begin(part_of(1), never);
        // It has the thread before the connection ends.
        while reads.all_threads.available_permits() == THREADS_MAX {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            reads.clear();
            reads.begin(part_of(1), || Ok(b"again".to_vec()));
            tokio::task::yield_now().await;
            assert_eq!(reads.all_threads.available_permits(), THREADS_MAX - 1);
        }
        drop(ends);
        assert_eq!(reads.next().await.content.unwrap(), b"again");
    }

    #[tokio::test]
    async fn a_few_parts_of_a_kind_are_read_at_once() {
        let mut reads = Reads::new(Duration::from_secs(60));
        let mut all = Vec::new();
        for attempt in 1..=4 {
            assert!(reads.have_room(UploadKind::Output));
            let (never, ends) = slow();
            reads.begin(part_of(attempt), never);
            all.push(ends);
        }
        assert!(!reads.have_room(UploadKind::Output));
        assert!(reads.have_room(UploadKind::File) && reads.have_room(UploadKind::Report));
        drop(all.pop());
        reads.next().await;
        assert!(reads.have_room(UploadKind::Output));
        reads.clear();
        drop(all);
    }
}
