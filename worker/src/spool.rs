//! What an attempt printed, in a file of this machine, for as long as the attempt is held: so that
//! it can be sent to any server, again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::fcntl::OFlag;
use tokio::sync::mpsc;
use towpath_engine::ids::AttemptId;

use crate::{
    Adopted, AttemptsDir, Ended, OutputChunk, attempt::Event, capture::LOG_BYTES_MAX,
    own_disk::OwnDisk,
};

/// Most bytes of one attempt's output that wait on disk. An attempt has less, unless workers were
/// killed over it: each begins to count anew.
pub(crate) const SPOOL_BYTES_MAX: u64 = 4 * LOG_BYTES_MAX as u64;

/// Bytes of one note about missing output. A line of output is never longer.
const MISSING_RECORD_BYTES: usize = 32 * 1024;
/// Bytes of such a note before its words, and one more for the end of the line.
const MISSING_HEAD_BYTES: u64 = 5;

/// Why not all of an attempt's output was kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpoolError {
    /// There is too much of it.
    #[error("there are more than {SPOOL_BYTES_MAX} bytes of it")]
    TooLong,
    /// It cannot be written here.
    #[error("{0}")]
    Unwritable(String),
}

/// The output of one attempt.
#[derive(Debug)]
pub(crate) struct Spool {
    attempt: AttemptId,
    path: PathBuf,
    disk: Arc<OwnDisk>,
    file: Mutex<Option<File>>,
    length: AtomicU64,
    events: mpsc::Sender<Event>,
}

impl Spool {
    /// The output of `attempt`, in its file among `attempts`, if it has any yet. How it grows is
    /// sent to `events`.
    pub(crate) fn new(
        attempts: &AttemptsDir,
        attempt: AttemptId,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let path = attempts.spool(&attempt.run, &attempt.job, attempt.attempt);
        // What an earlier worker process wrote counts: places in the output are places in this file,
        // also for the server, which may have some of it.
        let length = AtomicU64::new(fs::metadata(&path).map_or(0, |found| found.len()));
        let disk = Arc::clone(attempts.disk());
        Self { attempt, path, disk, file: Mutex::default(), length, events }
    }

    fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Sends how much there is by now.
    async fn grew(&self, length: u64) {
        self.length.store(length, Ordering::Release);
        // A worker that stops takes no events; the next process reads the file.
        drop(self.events.send(Event::OutputGrew { attempt: self.attempt.clone(), length }).await);
    }

    /// Continues output that an earlier process kept, of which the server has `known` bytes.
    ///
    /// The place of output that the server has, and that this machine has lost, is filled with
    /// notes that say so. They are sent only if the server loses its copy too. A file that is made
    /// longer would hold zeros there, which look like output of the job and end what a reader can
    /// read.
    pub(crate) async fn resume(&self, known: u64) {
        let mut length = self.length();
        if known > length && self.append(|file| write_missing(file, known - length)).is_ok() {
            length = known;
        }
        if length > 0 {
            self.grew(length).await;
        }
    }

    /// Keeps what comes out of the attempt, to its end.
    pub(crate) async fn keep(
        &self,
        mut chunks: mpsc::Receiver<OutputChunk>,
    ) -> Result<(), SpoolError> {
        let mut kept = Ok(());
        while let Some(OutputChunk { records }) = chunks.recv().await {
            let length = self.length() + records.len() as u64;
            if kept.is_err() {
                // What follows has no place any more. It is taken all the same: else the script
                // would wait for ever for a reader.
                continue;
            }
            if length > SPOOL_BYTES_MAX {
                kept = Err(SpoolError::TooLong);
                continue;
            }
            match self.append(|file| file.write_all(&records)) {
                Ok(()) => self.grew(length).await,
                Err(error) => {
                    self.disk.note(&error.to_string());
                    kept = Err(SpoolError::Unwritable(error.to_string()));
                }
            }
        }
        // Closed now, not when the report is recorded: while a server is away, ended attempts pile
        // up, and each would hold one of the files that this process may have open.
        *self.file() = None;
        kept
    }

    /// Reads `length` bytes of the output from `offset` on.
    pub(crate) fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        read_part(&self.path, offset, length)
    }

    /// Writes to the output's file, which is made when there is something to write.
    fn append(&self, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        let mut file = self.file();
        if file.is_none() {
            *file = Some(OpenOptions::new().append(true).create(true).open(&self.path)?);
        }
        file.as_mut().map_or(Ok(()), write)
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads `length` bytes of the file at `path` from `offset` on, or none at all.
///
/// What a job left may have been replaced since it was looked at. A named pipe would be waited for
/// without end, and a link could lead to a file of another job.
pub(crate) fn read_part(path: &std::path::Path, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file any more"));
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut part = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.take(length).read_to_end(&mut part)?;
    if part.len() as u64 == length {
        Ok(part)
    } else {
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was"))
    }
}

/// How an attempt ended, of whose output `kept` says whether all is there; and why not.
///
/// A success whose output this worker could not write is lost. To fail it would be to blame the
/// job, and to let it succeed would be to say that this is all that it printed.
pub(crate) fn outcome(outcome: Adopted, kept: Result<(), SpoolError>) -> (Adopted, Option<String>) {
    match (outcome, kept) {
        (Adopted::Ended(Ended::Succeeded { .. }), Err(SpoolError::Unwritable(why))) => {
            (Adopted::Lost(format!("its worker cannot keep its output: {why}")), None)
        }
        (outcome, kept) => (outcome, kept.err().map(|error| error.to_string())),
    }
}

/// Writes `missing` bytes of notes: records of the form that output has, so that every reader of
/// it understands them.
fn write_missing(file: &mut File, missing: u64) -> io::Result<()> {
    let mut left = missing;
    while left > 0 {
        let mut length = usize::try_from(left).unwrap_or(usize::MAX).min(MISSING_RECORD_BYTES);
        if (1..MISSING_HEAD_BYTES).contains(&(left - length as u64)) {
            // What is left over must be long enough for a record.
            length -= MISSING_RECORD_BYTES / 2;
        }
        let mut record = format!("0 n {missing} bytes of output are missing here ").into_bytes();
        // A rest that is too short for the words is as long as it must be all the same: what
        // follows is addressed by its place.
        record.resize(length - 1, b'.');
        record.push(b'\n');
        file.write_all(&record)?;
        left -= length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use towpath_engine::{captured_output, ids::Attempt};

    use super::*;
    use crate::Environment;

    fn attempts() -> (tempfile::TempDir, AttemptsDir) {
        let folder = tempfile::tempdir().unwrap();
        let attempts = AttemptsDir::open(folder.path(), Environment::default()).unwrap();
        (folder, attempts)
    }

    fn spool(attempts: &AttemptsDir) -> (Spool, mpsc::Receiver<Event>) {
        let (events, heard) = mpsc::channel(64);
        let attempt = AttemptId { run: "r".into(), job: "a: b/c".into(), attempt: Attempt(1) };
        (Spool::new(attempts, attempt, events), heard)
    }

    async fn print(spool: &Spool, texts: &[&'static str]) -> Result<(), SpoolError> {
        let (send, chunks) = mpsc::channel(8);
        for text in texts {
            send.send(OutputChunk { records: text.as_bytes().into() }).await.unwrap();
        }
        drop(send);
        spool.keep(chunks).await
    }

    fn lengths(events: &mut mpsc::Receiver<Event>) -> Vec<u64> {
        let mut lengths = Vec::new();
        while let Ok(event) = events.try_recv() {
            let Event::OutputGrew { length, .. } = event else { panic!("another event") };
            lengths.push(length);
        }
        lengths
    }

    #[tokio::test]
    async fn output_waits_and_can_be_read_from_anywhere() {
        let (_folder, attempts) = attempts();
        let (spool, mut events) = spool(&attempts);

        print(&spool, &["1 o one\n", "2 o two\n"]).await.unwrap();

        assert_eq!(lengths(&mut events), [8, 16]);
        assert_eq!(spool.read(8, 8).unwrap(), b"2 o two\n");
        assert!(spool.read(8, 9).is_err(), "what is not there is not made up");
    }

    #[tokio::test]
    async fn what_a_killed_worker_kept_is_there_for_the_next() {
        let (_folder, attempts) = attempts();
        print(&spool(&attempts).0, &["1 o one\n"]).await.unwrap();

        let (next, mut events) = spool(&attempts);
        next.resume(3).await;
        print(&next, &["2 o two\n"]).await.unwrap();

        assert_eq!(lengths(&mut events), [8, 16]);
        assert_eq!(next.read(0, 16).unwrap(), b"1 o one\n2 o two\n");
    }

    #[tokio::test]
    async fn what_only_the_server_has_keeps_its_place_and_is_marked() {
        for missing in [5, 100, 100_000, 32 * 1024 + 3] {
            let (_folder, attempts) = attempts();
            let (spool, mut events) = spool(&attempts);

            spool.resume(missing).await;
            print(&spool, &["2 o two\n"]).await.unwrap();

            assert_eq!(lengths(&mut events), [missing, missing + 8]);
            assert_eq!(spool.read(missing, 8).unwrap(), b"2 o two\n");
            let all = spool.read(0, missing + 8).unwrap();
            let lines: Vec<_> = captured_output::lines(&all).map(Result::unwrap).collect();
            let (last, notes) = lines.split_last().unwrap();
            assert_eq!(last.bytes, b"two");
            assert!(notes.iter().all(|line| line.source == captured_output::OutputSource::Note));
            let words = format!("{missing} bytes of output are missing here ");
            assert!(missing < 50 || notes[0].bytes.starts_with(words.as_bytes()));
        }
    }

    #[tokio::test]
    async fn output_that_finds_no_space_is_the_fault_of_the_worker() {
        let (_folder, attempts) = attempts();
        let (spool, _events) = spool(&attempts);
        std::os::unix::fs::symlink("/dev/full", &spool.path).unwrap();

        let kept = print(&spool, &["1 o one\n", "2 o two\n"]).await;
        let succeeded = Ended::Succeeded {
            ran_ms: 1,
            outputs: std::collections::BTreeMap::new(),
            artifacts: Vec::new(),
        };
        let (ended, incomplete) = outcome(Adopted::Ended(succeeded), kept);

        let Adopted::Lost(why) = ended else { panic!("{ended:?}") };
        assert!(why.contains("No space left on device"), "{why}");
        assert_eq!(incomplete, None);
        assert!(attempts.disk().trouble().is_some());
    }

    #[tokio::test]
    async fn a_job_without_output_leaves_no_file() {
        let (folder, attempts) = attempts();
        let (spool, mut events) = spool(&attempts);
        spool.resume(0).await;
        print(&spool, &[]).await.unwrap();
        assert_eq!(lengths(&mut events), [0; 0]);
        assert_eq!(fs::read_dir(folder.path().join("spool")).unwrap().count(), 0);
    }
}
