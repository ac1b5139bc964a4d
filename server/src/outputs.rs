//! What jobs print and leave behind: growing files while a job runs, blobs once it has ended.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    sync::Mutex as SyncMutex,
};

use tokio::sync::watch;
use towpath_engine::ids::{Attempt, Blob, Digest, JobName, RunId};
use towpath_storage::{Blobs, StoreError};

use crate::runs::locked;

/// Longest output or artifact of one attempt that is taken, in bytes. Workers bound themselves to
/// less; this bounds a worker that does not.
pub(crate) const BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// One attempt of one job of one run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) run: RunId,
    pub(crate) job: JobName,
    pub(crate) attempt: Attempt,
}

/// The growing and the kept outputs.
#[derive(Debug)]
pub(crate) struct Outputs {
    spool: PathBuf,
    pub(crate) blobs: Blobs,
    growing: SyncMutex<HashMap<Key, watch::Sender<u64>>>,
}

impl Outputs {
    pub(crate) fn new(spool: PathBuf, blobs: Blobs) -> Self {
        Self { spool, blobs, growing: SyncMutex::default() }
    }

    fn path(&self, key: &Key, part: &str) -> PathBuf {
        // A digest is a name that any file system takes, whatever the job is called.
        let name = Digest::of(format!("{}\n{}\n{part}", key.job, key.attempt).as_bytes());
        self.spool.join(key.run.as_str()).join(format!("{name}"))
    }

    /// How much of an attempt's output is there.
    pub(crate) fn length(&self, key: &Key) -> u64 {
        fs::metadata(self.path(key, "output")).map_or(0, |found| found.len())
    }

    /// Takes in `content`, whose first byte is number `offset` of the output. What is there
    /// already is passed over, so that a worker may say it again.
    pub(crate) fn write(&self, key: &Key, offset: u64, content: &[u8]) -> io::Result<()> {
        self.append(key, "output", offset, content)?;
        let length = self.length(key);
        let mut growing = locked(&self.growing);
        growing.entry(key.clone()).or_insert_with(|| watch::Sender::new(0)).send_replace(length);
        Ok(())
    }

    /// Takes in a piece of a file that the attempt left behind. A piece at the beginning begins the
    /// file anew.
    pub(crate) fn write_artifact(
        &self,
        key: &Key,
        path: &str,
        offset: u64,
        content: &[u8],
    ) -> io::Result<()> {
        if offset == 0 {
            match fs::remove_file(self.path(key, path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.append(key, path, offset, content)
    }

    fn append(&self, key: &Key, part: &str, offset: u64, content: &[u8]) -> io::Result<()> {
        self.blobs
            .room()
            .check(0)
            .map_err(|full| io::Error::new(io::ErrorKind::StorageFull, full))?;
        let path = self.path(key, part);
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        let mut file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(self.spool.join(key.run.as_str()))?;
                options.open(&path)?
            }
            opened => opened?,
        };
        let there = file.seek(SeekFrom::End(0))?;
        let known = there.saturating_sub(offset);
        if offset > there || offset + content.len() as u64 > BYTES_MAX {
            let what = "output with a hole in it, or too much of it";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let new = usize::try_from(known).ok().and_then(|known| content.get(known..));
        file.write_all(new.unwrap_or_default())
    }

    /// Keeps an attempt's output for good. Blocks; durable when it returns.
    pub(crate) fn keep(&self, key: &Key) -> Result<Option<Blob>, StoreError> {
        self.keep_part(key, "output")
    }

    /// Keeps a file that an attempt left behind.
    pub(crate) fn keep_artifact(&self, key: &Key, path: &str) -> Result<Option<Blob>, StoreError> {
        self.keep_part(key, path)
    }

    fn keep_part(&self, key: &Key, part: &str) -> Result<Option<Blob>, StoreError> {
        let path = self.path(key, part);
        if !path.exists() {
            return Ok(None);
        }
        let kept = self.blobs.put_file(&path)?;
        Ok(Some(Blob { size: kept.size, sha256: Digest(kept.sha256) }))
    }

    /// Removes what an attempt had growing; its events now name the blobs.
    pub(crate) fn forget<'a>(&self, key: &Key, artifacts: impl Iterator<Item = &'a str>) {
        locked(&self.growing).remove(key);
        for part in std::iter::once("output").chain(artifacts) {
            // A leftover costs space and nothing else.
            drop(fs::remove_file(self.path(key, part)));
        }
    }

    /// At most 64 KiB of a growing output after byte `offset`.
    pub(crate) fn read(&self, key: &Key, offset: u64) -> io::Result<Vec<u8>> {
        let mut file = match File::open(self.path(key, "output")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut piece = Vec::new();
        file.take(64 * 1024).read_to_end(&mut piece)?;
        Ok(piece)
    }

    /// Tells when an output grows; closed when it is kept.
    pub(crate) fn watch(&self, key: &Key) -> watch::Receiver<u64> {
        let mut growing = locked(&self.growing);
        let length = self.length(key);
        growing.entry(key.clone()).or_insert_with(|| watch::Sender::new(length)).subscribe()
    }
}
