//! What a worker holds: attempts that run, or have ended and are not known to be recorded. Their
//! output waits on disk for as long as they are held, so that it can be said to any server, again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use towpath_engine::ids::{Attempt, JobName, RunId};
use towpath_proto::v1;

use crate::{Adopted, AttemptsDir, Ended, OutputChunk, capture::LOG_BYTES_MAX, own_disk::OwnDisk};

/// Most bytes of one attempt's output that wait on disk. An attempt has less, unless workers were
/// killed over it: each begins to count anew.
pub(crate) const SPOOL_BYTES_MAX: u64 = 4 * LOG_BYTES_MAX as u64;

/// Bytes of one note about missing output. A line of output is never longer.
const MISSING_RECORD_BYTES: usize = 32 * 1024;
/// Bytes of such a note before its words, and one more for the end of the line.
const MISSING_HEAD_BYTES: u64 = 5;

/// Which attempt.
pub(crate) type AttemptKey = (RunId, JobName, Attempt);

/// The attempt that a message is about.
pub(crate) fn key(of: v1::AttemptId) -> AttemptKey {
    let v1::AttemptId { run, job, attempt } = of;
    (run.into(), job.into(), Attempt(attempt))
}

/// The attempt, as a message names it.
pub(crate) fn attempt_message((run, job, attempt): &AttemptKey) -> v1::AttemptId {
    v1::AttemptId { run: run.to_string(), job: job.to_string(), attempt: attempt.0 }
}

/// Why not all of an attempt's output was kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutputNotKept {
    /// There is too much of it.
    #[error("there are more than {SPOOL_BYTES_MAX} bytes of it")]
    TooLong,
    /// It cannot be written here.
    #[error("{0}")]
    Unwritable(String),
}

/// What there is to say about an attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// How long its output is by now.
    pub(crate) length: u64,
    /// What became of it, and whether all of its output was kept.
    pub(crate) ended: Option<(Adopted, Result<(), String>)>,
}

/// An attempt that is held.
#[derive(Debug)]
pub(crate) struct HeldAttempt {
    pub(crate) key: AttemptKey,
    /// Ends it.
    pub(crate) cancel: CancellationToken,
    spool: PathBuf,
    disk: Arc<OwnDisk>,
    file: Mutex<Option<File>>,
    progress: watch::Sender<Progress>,
}

impl HeldAttempt {
    /// An attempt whose output waits in its file among `attempts`, if it has any yet.
    pub(crate) fn new(attempts: &AttemptsDir, key: AttemptKey, cancel: CancellationToken) -> Self {
        let spool = attempts.spool(&key.0, &key.1, key.2);
        // What an earlier worker process wrote counts: places in the output are places in this file,
        // also for the server, which may have some of it.
        let length = fs::metadata(&spool).map_or(0, |found| found.len());
        let progress = watch::Sender::new(Progress { length, ended: None });
        let disk = Arc::clone(attempts.disk());
        Self { key, cancel, spool, disk, file: Mutex::default(), progress }
    }

    /// How far it is, now and later.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.progress.borrow().ended.is_some()
    }

    /// Whether the worker takes no jobs, because it cannot write its own files.
    pub(crate) fn is_worker_paused(&self) -> bool {
        self.disk.trouble().is_some()
    }

    /// Whether it has ended, and badly.
    pub(crate) fn has_failed(&self) -> bool {
        let ended = &self.progress.borrow().ended;
        matches!(ended, Some((Adopted::Ended(Ended::Failed { .. }), _)))
    }

    /// Fills the place of output that the server has, and that this machine has lost, with notes
    /// that say so.
    ///
    /// They are sent only if the server loses its copy too. A file that is made longer would hold
    /// zeros there, which look like output of the job and end what a reader can read.
    pub(crate) fn begin_at(&self, length: u64) {
        let here = self.progress.borrow().length;
        if length > here && self.append(|file| write_missing(file, length - here)).is_ok() {
            self.progress.send_modify(|progress| progress.length = length);
        }
    }

    /// Keeps what comes out of the attempt, to its end.
    pub(crate) async fn keep(
        &self,
        mut chunks: mpsc::Receiver<OutputChunk>,
    ) -> Result<(), OutputNotKept> {
        let mut kept = Ok(());
        while let Some(OutputChunk { records }) = chunks.recv().await {
            let length = self.progress.borrow().length + records.len() as u64;
            if kept.is_err() {
                // What follows has no place any more. It is taken all the same: else the script
                // would wait for ever for a reader.
                continue;
            }
            if length > SPOOL_BYTES_MAX {
                kept = Err(OutputNotKept::TooLong);
                continue;
            }
            match self.append(|file| file.write_all(&records)) {
                Ok(()) => self.progress.send_modify(|progress| progress.length = length),
                Err(error) => {
                    self.disk.note(&error.to_string());
                    kept = Err(OutputNotKept::Unwritable(error.to_string()));
                }
            }
        }
        kept
    }

    /// Notes what became of the attempt.
    ///
    /// A success whose output this worker could not write is lost. To fail it would be to blame
    /// the job, and to let it succeed would be to say that this is all that it printed.
    pub(crate) fn end(&self, adopted: Adopted, kept: Result<(), OutputNotKept>) {
        // Closed now, not when the report is recorded: while a server is away, ended attempts pile
        // up, and each would hold one of the files that this process may have open.
        *self.file() = None;
        let (adopted, kept) = match (adopted, kept) {
            (Adopted::Ended(Ended::Succeeded { .. }), Err(OutputNotKept::Unwritable(why))) => {
                (Adopted::Lost(format!("its worker cannot keep its output: {why}")), Ok(()))
            }
            (adopted, kept) => (adopted, kept.map_err(|unkept| unkept.to_string())),
        };
        self.progress.send_modify(|progress| progress.ended = Some((adopted, kept)));
    }

    /// Reads `length` bytes of the output from `offset` on.
    pub(crate) fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.spool)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut piece = Vec::new();
        file.take(length).read_to_end(&mut piece)?;
        if piece.len() as u64 == length {
            Ok(piece)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// Writes to the output's file, which is made when there is something to write.
    fn append(&self, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        let mut file = self.file();
        if file.is_none() {
            *file = Some(OpenOptions::new().append(true).create(true).open(&self.spool)?);
        }
        file.as_mut().map_or(Ok(()), write)
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
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
    use towpath_engine::captured_output;

    use super::*;
    use crate::Environment;

    fn attempts() -> (tempfile::TempDir, AttemptsDir) {
        let folder = tempfile::tempdir().unwrap();
        let attempts = AttemptsDir::open(folder.path(), Environment::default()).unwrap();
        (folder, attempts)
    }

    fn held(attempts: &AttemptsDir) -> HeldAttempt {
        let key = ("r".into(), "a: b/c".into(), Attempt(1));
        HeldAttempt::new(attempts, key, CancellationToken::new())
    }

    async fn print(held: &HeldAttempt, texts: &[&'static str]) -> Result<(), OutputNotKept> {
        let (send, chunks) = mpsc::channel(8);
        for text in texts {
            send.send(OutputChunk { records: text.as_bytes().into() }).await.unwrap();
        }
        drop(send);
        held.keep(chunks).await
    }

    #[tokio::test]
    async fn output_waits_and_can_be_read_from_anywhere() {
        let (_folder, attempts) = attempts();
        let held = held(&attempts);

        print(&held, &["1 o one\n", "2 o two\n"]).await.unwrap();

        assert_eq!(held.progress().borrow().length, 16);
        assert_eq!(held.read(8, 8).unwrap(), b"2 o two\n");
        assert!(held.read(8, 9).is_err(), "what is not there is not made up");
    }

    #[tokio::test]
    async fn what_a_killed_worker_kept_is_there_for_the_next() {
        let (_folder, attempts) = attempts();
        print(&held(&attempts), &["1 o one\n"]).await.unwrap();

        let next = held(&attempts);
        print(&next, &["2 o two\n"]).await.unwrap();

        assert_eq!(next.read(0, 16).unwrap(), b"1 o one\n2 o two\n");
    }

    #[tokio::test]
    async fn what_only_the_server_has_keeps_its_place_and_is_marked() {
        for missing in [5, 100, 100_000, 32 * 1024 + 3] {
            let (_folder, attempts) = attempts();
            let held = held(&attempts);

            held.begin_at(missing);
            print(&held, &["2 o two\n"]).await.unwrap();

            assert_eq!(held.progress().borrow().length, missing + 8);
            assert_eq!(held.read(missing, 8).unwrap(), b"2 o two\n");
            let all = held.read(0, missing + 8).unwrap();
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
        let held = held(&attempts);
        std::os::unix::fs::symlink("/dev/full", &held.spool).unwrap();

        let kept = print(&held, &["1 o one\n", "2 o two\n"]).await;
        let succeeded = Ended::Succeeded {
            ran_ms: 1,
            outputs: std::collections::BTreeMap::new(),
            artifacts: Vec::new(),
        };
        held.end(Adopted::Ended(succeeded), kept);

        let ended = held.progress().borrow().ended.clone();
        let Some((Adopted::Lost(why), Ok(()))) = ended else { panic!("{ended:?}") };
        assert!(why.contains("No space left on device"), "{why}");
        assert!(held.is_worker_paused());
    }

    #[tokio::test]
    async fn a_job_without_output_leaves_no_file() {
        let (folder, attempts) = attempts();
        print(&held(&attempts), &[]).await.unwrap();
        assert_eq!(fs::read_dir(folder.path().join("spool")).unwrap().count(), 0);
    }
}
