//! What jobs print and leave behind: growing files while a job runs, blobs once it has ended.
//!
//! ```text
//! spool/RUN/ATTEMPT/output          ATTEMPT: a digest of job and attempt number
//! spool/RUN/ATTEMPT/artifact-PATH   PATH: a digest of the path
//! ```

pub(crate) mod sweep;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex as SyncMutex},
};

use tokio::sync::watch;
use towpath_engine::ids::{Attempt, AttemptId, Blob, Digest, JobName};
use towpath_storage::{BlobRef, Blobs, StoreError};

use crate::sync::locked;

/// Longest output or artifact of one attempt that is taken, in bytes. Workers bound themselves to
/// less; this bounds a worker that does not.
pub(crate) const BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;

/// Most outputs that are remembered to be sound.
const SOUND_MAX: usize = 100_000;

/// The part of an attempt that is what it printed.
const OUTPUT: &str = "output";

/// What is left of an output that could not be read. Goes with its attempt.
const UNREADABLE: &str = "output-unreadable";

/// How often a directory is made for a file that is about to be opened. The sweep removes empty
/// ones at the same time, so once may not do.
const OPEN_TRIES_MAX: u32 = 3;

/// The part of an attempt that is the artifact at `path`. No artifact is named like [`OUTPUT`]
/// here: one at the path `output` would take the place of what the job printed.
fn artifact_part(path: &str) -> String {
    format!("artifact-{}", Digest::of(path.as_bytes()))
}

/// What the directory of an attempt is called. A digest is a name that any file system takes,
/// whatever the job is called.
fn directory_name(job: &JobName, attempt: Attempt) -> String {
    // Job names may contain slashes and be longer than a file name; a digest is neither.
    Digest::of(format!("{job}\n{attempt}").as_bytes()).to_string()
}

/// Whose output it is.
pub(crate) type Key = AttemptId;

/// The growing and the kept outputs.
#[derive(Debug)]
pub(crate) struct Outputs {
    spool: PathBuf,
    pub(crate) blobs: Arc<Blobs>,
    growing: Arc<SyncMutex<Followed>>,
    /// Outputs that this process has read to the end, or that it began: what it wrote since is what
    /// its worker sent. At most [`SOUND_MAX`].
    sound: SyncMutex<HashSet<Key>>,
}

/// The outputs that are being followed, with how many bytes of each are there. An output that
/// nobody follows has no entry: entries last as long as their followers.
type Followed = HashMap<Key, watch::Sender<u64>>;

/// Tells when an output grows. Closed when it is kept.
#[derive(Debug)]
pub(crate) struct OutputGrowth {
    key: Key,
    length: watch::Receiver<u64>,
    /// It is kept, and [`OutputGrowth::changed`] has said so.
    kept: bool,
    followed: Arc<SyncMutex<Followed>>,
}

impl OutputGrowth {
    /// Takes note of how much there is now; growth after this is told by [`OutputGrowth::changed`].
    pub(crate) fn read_durable(&mut self) {
        self.length.borrow_and_update();
    }

    /// Comes back when the output has grown, and once when it is kept: after that nothing changes
    /// any more, and a task that waits in a loop would never sleep.
    pub(crate) async fn changed(&mut self) {
        if self.kept {
            return std::future::pending().await;
        }
        // An error means that nothing will be written any more.
        self.kept = self.length.changed().await.is_err();
    }
}

impl Drop for OutputGrowth {
    fn drop(&mut self) {
        let mut followed = locked(&self.followed);
        // The last follower takes the entry along. A later one of the same output, begun after it
        // was kept, has a sender of its own.
        // Removed with its last follower, or the map would grow with every attempt that anyone ever
        // followed.
        let last = followed.get(&self.key).is_some_and(|sender| {
            sender.receiver_count() == 1 && sender.subscribe().same_channel(&self.length)
        });
        if last {
            followed.remove(&self.key);
        }
    }
}

impl Outputs {
    pub(crate) fn new(spool: PathBuf, blobs: Arc<Blobs>) -> Self {
        Self { spool, blobs, growing: Arc::default(), sound: SyncMutex::default() }
    }

    /// The directory of everything that is growing of one attempt.
    fn directory(&self, key: &Key) -> PathBuf {
        self.spool.join(key.run.as_str()).join(directory_name(&key.job, key.attempt))
    }

    fn path(&self, key: &Key, part: &str) -> PathBuf {
        self.directory(key).join(part)
    }

    /// How much of an attempt's output is there.
    pub(crate) fn length(&self, key: &Key) -> u64 {
        fs::metadata(self.path(key, OUTPUT)).map_or(0, |found| found.len())
    }

    /// Stores `content`, whose first byte is number `offset` of the output. What is there
    /// already is ignored, so that a worker may say it again.
    pub(crate) fn write(&self, key: &Key, offset: u64, content: &[u8]) -> io::Result<()> {
        self.append(key, OUTPUT, offset, content)?;
        if let Some(growing) = locked(&self.growing).get(key) {
            growing.send_replace(self.length(key));
        }
        Ok(())
    }

    /// Stores a part of an artifact of the attempt. A piece at the beginning begins the
    /// file again.
    pub(crate) fn write_artifact(
        &self,
        key: &Key,
        path: &str,
        offset: u64,
        content: &[u8],
    ) -> io::Result<()> {
        let part = &artifact_part(path);
        if offset == 0 {
            match fs::remove_file(self.path(key, part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.append(key, part, offset, content)
    }

    fn append(&self, key: &Key, part: &str, offset: u64, content: &[u8]) -> io::Result<()> {
        self.blobs
            .disk_space()
            .check(0)
            .map_err(|full| io::Error::new(io::ErrorKind::StorageFull, full))?;
        let path = self.path(key, part);
        let mut file = open_growing(&path, &self.directory(key))?;
        let there = file.seek(SeekFrom::End(0))?;
        let known = there.saturating_sub(offset);
        // A gap would be filled with zero bytes by the file system, and be read as output.
        if offset > there || offset + content.len() as u64 > BYTES_MAX {
            let what = "output with a hole in it, or too much of it";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        // The part that is new: a worker that was disconnected sends from an offset that the server
        // may have passed.
        let new = usize::try_from(known).ok().and_then(|known| content.get(known..));
        file.write_all(new.unwrap_or_default())
    }

    /// Keeps an attempt's output for good. Blocks; durable when it returns.
    pub(crate) fn keep(&self, key: &Key) -> Result<Option<Blob>, StoreError> {
        self.keep_part(key, OUTPUT)
    }

    /// Keeps a file that an attempt left behind, if it has the bytes that `expected` names. Answers
    /// whether it has; else nothing is kept.
    pub(crate) fn keep_artifact(
        &self,
        key: &Key,
        path: &str,
        expected: &Blob,
    ) -> Result<bool, StoreError> {
        let path = self.path(key, &artifact_part(path));
        if path.exists() {
            let expected = BlobRef { size: expected.size, sha256: expected.sha256.0 };
            return self.blobs.put_file_as(&path, &expected);
        }
        // Nothing is sent of an empty file.
        if *expected != Blob::of(b"") {
            return Ok(false);
        }
        self.blobs.put(b"").map(|_| true)
    }

    fn keep_part(&self, key: &Key, part: &str) -> Result<Option<Blob>, StoreError> {
        let path = self.path(key, part);
        if !path.exists() {
            return Ok(None);
        }
        let kept = self.blobs.put_file(&path)?;
        Ok(Some(Blob { size: kept.size, sha256: Digest(kept.sha256) }))
    }

    /// Removes all that an attempt had growing, also what its report did not name: its events now
    /// name the blobs, or say that it is lost.
    pub(crate) fn forget(&self, key: &Key) {
        locked(&self.growing).remove(key);
        locked(&self.sound).remove(key);
        // A leftover goes with the next sweep.
        drop(fs::remove_dir_all(self.directory(key)));
    }

    /// How much of an attempt's output can be relied on; the rest is cut off, and its worker sends
    /// it again.
    ///
    /// What grows is not synced. A power cut may leave a file at its full length with zeros where
    /// bytes had not reached the disk: to tell the worker that length would keep the zeros for
    /// output of the job. A job that prints zeros itself only has some of its output sent twice.
    ///
    /// Read once in each process: no power was cut since. A worker with much output connects again
    /// for many reasons, and would have all of it read each time.
    pub(crate) fn recover(&self, key: &Key) -> io::Result<u64> {
        if locked(&self.sound).contains(key) {
            return Ok(self.length(key));
        }
        let length = self.read_sound(key)?;
        let mut sound = locked(&self.sound);
        if sound.len() >= SOUND_MAX {
            // Attempts that were lost are not forgotten one by one; they are only read again.
            sound.clear();
        }
        sound.insert(key.clone());
        Ok(length)
    }

    fn read_sound(&self, key: &Key) -> io::Result<u64> {
        let mut file = match OpenOptions::new().read(true).write(true).open(self.path(key, OUTPUT))
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            opened => opened?,
        };
        let (mut length, mut lines_end) = (0, 0);
        let mut piece = vec![0; READ_BYTES];
        loop {
            let read = file.read(&mut piece)?;
            // After a power cut the end of a file may read as zero bytes. The format has none, so
            // the first one marks the damage.
            let zero = piece[..read].iter().position(|byte| *byte == 0);
            let sound = &piece[..zero.unwrap_or(read)];
            if let Some(newline) = sound.iter().rposition(|byte| *byte == b'\n') {
                lines_end = length + newline as u64 + 1;
            }
            if zero.is_some() {
                tracing::warn!(run = %key.run, job = %key.job, kept = lines_end, "output cut off");
                file.set_len(lines_end)?;
                return Ok(lines_end);
            }
            if read == 0 {
                return Ok(length);
            }
            length += read as u64;
        }
    }

    /// As [`Outputs::recover`]. Output that cannot be read is set aside, and its worker sends all of
    /// it again: what is wrong with one file must not end the session of all the other attempts.
    pub(crate) fn recover_or_set_aside(&self, key: &Key) -> u64 {
        let error = match self.recover(key) {
            Ok(length) => return length,
            Err(error) => error,
        };
        let (run, job) = (&key.run, &key.job);
        tracing::warn!(%run, %job, %error, "output cannot be read: it is sent again");
        let set_aside = fs::rename(self.path(key, OUTPUT), self.path(key, UNREADABLE));
        if let Err(error) = set_aside {
            tracing::warn!(%run, %job, %error, "output cannot be set aside");
        }
        0
    }

    /// At most 64 KiB of a growing output after byte `offset`.
    pub(crate) fn read(&self, key: &Key, offset: u64) -> io::Result<Vec<u8>> {
        let mut file = match File::open(self.path(key, OUTPUT)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut piece = Vec::new();
        file.take(READ_BYTES as u64).read_to_end(&mut piece)?;
        Ok(piece)
    }

    /// Tells when an output grows; closed when it is kept.
    pub(crate) fn watch(&self, key: &Key) -> OutputGrowth {
        let mut growing = locked(&self.growing);
        // Under the lock: between the length and the subscription no write may be missed.
        let length = self.length(key);
        let sender = growing.entry(key.clone()).or_insert_with(|| watch::Sender::new(length));
        let followed = Arc::clone(&self.growing);
        OutputGrowth { key: key.clone(), length: sender.subscribe(), kept: false, followed }
    }
}

/// Opens the file at `path` below `directory`, and makes both if need be.
fn open_growing(path: &Path, directory: &Path) -> io::Result<File> {
    let mut tries = 1;
    loop {
        match OpenOptions::new().append(true).create(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries <= OPEN_TRIES_MAX => {
                tries += 1;
                fs::create_dir_all(directory)?;
            }
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_output_is_known_only_while_it_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Arc::new(Blobs::open(&folder.path().join("blobs")).unwrap());
        let outputs = Outputs::new(folder.path().join("spool"), blobs);
        let key = Key { run: "r".into(), job: "a".into(), attempt: Attempt(1) };
        outputs.write(&key, 0, b"one").unwrap();
        assert_eq!(locked(&outputs.growing).len(), 0);

        let (mut first, second) = (outputs.watch(&key), outputs.watch(&key));
        first.read_durable();
        outputs.write(&key, 3, b"two").unwrap();
        first.changed().await;
        drop(first);
        assert_eq!(locked(&outputs.growing).len(), 1, "the second follows on");

        outputs.forget(&key);
        let mut second = second;
        // It grew; then it is kept.
        second.changed().await;
        second.changed().await;
        let again = futures_util::FutureExt::now_or_never(second.changed());
        assert_eq!(again, None, "it is kept once");
        let later = outputs.watch(&key);
        drop(second);
        assert_eq!(locked(&outputs.growing).len(), 1, "that was of the one before");
        drop(later);
        assert_eq!(locked(&outputs.growing).len(), 0);
    }

    #[test]
    fn an_artifact_of_any_path_leaves_the_output_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Arc::new(Blobs::open(&folder.path().join("blobs")).unwrap());
        let outputs = Outputs::new(folder.path().join("spool"), blobs);
        let key = Key { run: "r".into(), job: "j".into(), attempt: Attempt::FIRST };
        outputs.write(&key, 0, b"1 o printed\n").unwrap();

        outputs.write_artifact(&key, "output", 0, b"left behind").unwrap();

        assert_eq!(outputs.keep(&key).unwrap(), Some(Blob::of(b"1 o printed\n")));
        assert!(outputs.keep_artifact(&key, "output", &Blob::of(b"left behind")).unwrap());
    }

    fn growing() -> (tempfile::TempDir, Outputs, Key) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Arc::new(Blobs::open(&folder.path().join("blobs")).unwrap());
        let outputs = Outputs::new(folder.path().join("spool"), blobs);
        (folder, outputs, Key { run: "r".into(), job: "j".into(), attempt: Attempt::FIRST })
    }

    #[test]
    fn what_a_report_did_not_name_goes_with_its_attempt() {
        let (folder, outputs, key) = growing();
        outputs.write(&key, 0, b"1 o printed\n").unwrap();
        outputs.write_artifact(&key, "named.csv", 0, b"1").unwrap();
        outputs.write_artifact(&key, "never/reported.csv", 0, b"2").unwrap();
        let other = Key { attempt: Attempt(2), ..key.clone() };
        outputs.write(&other, 0, b"1 o again\n").unwrap();

        outputs.forget(&key);

        assert_eq!(fs::read_dir(folder.path().join("spool/r")).unwrap().count(), 1);
        assert_eq!(outputs.length(&other), 10);
    }

    #[test]
    fn output_that_cannot_be_read_is_sent_again() {
        let (_folder, outputs, key) = growing();
        fs::create_dir_all(outputs.path(&key, OUTPUT)).unwrap();
        assert!(outputs.recover(&key).is_err());

        assert_eq!(outputs.recover_or_set_aside(&key), 0);

        outputs.write(&key, 0, b"1 o again\n").unwrap();
        assert_eq!(outputs.keep(&key).unwrap(), Some(Blob::of(b"1 o again\n")));
    }

    #[test]
    fn an_output_is_read_once_in_each_process() {
        let (folder, outputs, key) = growing();
        let lines = b"1 o whole\n".repeat(3);
        outputs.write(&key, 0, &lines).unwrap();
        assert_eq!(outputs.recover(&key).unwrap(), 30);
        outputs.write(&key, 30, b"2 o more\n").unwrap();
        // Were it read, it would be cut off.
        fs::write(outputs.path(&key, OUTPUT), [0; 39]).unwrap();
        assert_eq!(outputs.recover(&key).unwrap(), 39);

        outputs.forget(&key);
        assert_eq!(outputs.recover(&key).unwrap(), 0);

        fs::create_dir_all(outputs.directory(&key)).unwrap();
        fs::write(outputs.path(&key, OUTPUT), [0; 39]).unwrap();
        assert_eq!(restarted(&folder).recover(&key).unwrap(), 0, "another process reads it");
    }

    /// The outputs in `folder`, as the next process has them.
    fn restarted(folder: &tempfile::TempDir) -> Outputs {
        let blobs = Arc::new(Blobs::open(&folder.path().join("blobs")).unwrap());
        Outputs::new(folder.path().join("spool"), blobs)
    }

    #[test]
    fn output_that_a_power_cut_left_as_zeros_is_sent_again() {
        let (folder, outputs, key) = growing();
        assert_eq!(outputs.recover(&key).unwrap(), 0, "there is none yet");
        let lines = b"1 o whole\n2 o broken off".repeat(4_000);
        outputs.write(&key, 0, &lines).unwrap();
        assert_eq!(outputs.recover(&key).unwrap(), lines.len() as u64, "all of it is sound");

        let whole = lines.len() as u64 - "2 o broken off".len() as u64;
        let file = OpenOptions::new().write(true).open(outputs.path(&key, OUTPUT)).unwrap();
        file.set_len(lines.len() as u64 + 100_000).unwrap();
        let outputs = restarted(&folder);

        assert_eq!(outputs.recover(&key).unwrap(), whole);
        assert_eq!(outputs.length(&key), whole);
        outputs.write(&key, whole, b"2 o told again\n").unwrap();
        assert_eq!(outputs.read(&key, whole).unwrap(), b"2 o told again\n");
    }
}
