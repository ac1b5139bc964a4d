//! The default backend: sled 0.34, with its own sync replaced.
//!
//! On Linux sled's `flush` calls `sync_file_range`, which survives `kill -9` but not a power cut.
//! So every commit is followed by `fdatasync` of sled's `db` file through a descriptor of our own,
//! and sled's periodic flush is off. Values that do not fit a quarter of a segment are written by
//! sled to files of their own, which are never synced; the segment is therefore chosen so large
//! that no page of ours ever gets there.

use std::{
    fs::{self, File},
    io,
    ops::RangeInclusive,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sled::{Batch, Config, Db, Error, IVec};

use super::{
    Entry, Found, KvBackend, KvError,
    catch_panic::{catch_panic, drop_catching_panic},
    files::{KvFiles, directory_at},
};
use crate::{
    EventStore,
    backend::{Backend, Directory},
    durable_fs,
    error::{StoreError, UrlFault},
    store_dir::StoreDir,
};

/// sled splits a leaf after sixteen keys, so a page holds at most seventeen values of at most
/// 65 KiB, the largest record and its names. Two MiB, a quarter of this, hold them.
const SEGMENT_BYTES: usize = 8 * 1024 * 1024;

/// Pages sled keeps in memory, in bytes.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// How long a store that this process has just closed may take to let go of its files.
const LET_GO_MAX: Duration = Duration::from_secs(5);

/// `sled:PATH`.
#[derive(Debug)]
pub(crate) struct Sled;

impl Backend for Sled {
    fn scheme(&self) -> &'static str {
        "sled"
    }

    fn usage(&self) -> &'static str {
        "sled:PATH"
    }

    fn directory(&self, rest: &str) -> Result<Directory, UrlFault> {
        directory_at(rest)
    }

    fn open(&self, _rest: &str, dir: &mut StoreDir) -> Result<Arc<dyn EventStore>, StoreError> {
        let open = |path: &Path| Ok(Arc::new(SledBackend::open(path)?) as Arc<dyn KvBackend>);
        KvFiles { directory: "sled", landmark: "db", open }.open_log(dir)
    }
}

/// A sled database, and its file, which is synced through a descriptor of our own.
#[derive(Debug)]
struct SledBackend {
    db: GuardedDb,
    file: File,
}

/// A sled database whose panics are caught, also that of its destructor.
#[derive(Debug)]
struct GuardedDb {
    /// `None` only while being dropped.
    db: Option<Db>,
    /// A panic left locks of sled in an unknown state: never touch it again.
    panicked: AtomicBool,
}

impl SledBackend {
    /// Opens or creates the database in `directory`.
    fn open(directory: &Path) -> Result<Self, KvError> {
        remove_unusable_snapshots(directory).map_err(KvError::unavailable)?;
        // No periodic flush: it would sync data in the background that no caller waits for, and our
        // own sync after each commit is the one that makes it durable.
        let config = Config::new()
            .path(directory)
            .flush_every_ms(None)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES);
        let since = Instant::now();
        let db = loop {
            match catch_panic(|| config.open().map_err(kv_error)) {
                Ok(db) => break db,
                Err(KvError::Unavailable(cause))
                    if cause.to_string().contains("lock") && since.elapsed() < LET_GO_MAX =>
                {
                    // The owner's lock is ours, so this is our own past: threads of sled that end.
                    sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error),
            }
        };
        // Guarded from here on: if a sync below fails, sled's own in its destructor fails too.
        let db = GuardedDb { db: Some(db), panicked: AtomicBool::new(false) };
        let file = File::open(directory.join("db")).map_err(KvError::unavailable)?;
        // What a killed process wrote may be visible and not yet durable.
        file.sync_all().map_err(KvError::unavailable)?;
        for directory in [&directory.join("blobs"), directory] {
            durable_fs::sync_directory(directory).map_err(KvError::unavailable)?;
        }
        Ok(Self { db, file })
    }
}

impl GuardedDb {
    fn catch_panic<T>(&self, work: impl FnOnce(&Db) -> Result<T, Error>) -> Result<T, KvError> {
        let Some(db) = self.db.as_ref().filter(|_| !self.panicked.load(Ordering::Acquire)) else {
            return Err(KvError::Damaged("it panicked before".to_owned()));
        };
        // Told apart from an error that is returned: after one of those sled may be used on.
        let mut returned = false;
        let result = catch_panic(|| {
            let result = work(db);
            returned = true;
            result.map_err(kv_error)
        });
        if !returned {
            self.panicked.store(true, Ordering::Release);
        }
        result
    }
}

impl KvBackend for SledBackend {
    fn put(&self, mut entries: Vec<Entry>) -> Result<(), KvError> {
        self.db.catch_panic(|db| {
            if entries.len() == 1 {
                // One key is atomic by itself. A batch is announced by a write of its own, which
                // costs a lone client a third of its appends.
                for (key, value) in entries.drain(..) {
                    db.insert(key, value)?;
                }
            } else {
                let mut batch = Batch::default();
                for (key, value) in entries.drain(..) {
                    batch.insert(key, value);
                }
                db.apply_batch(batch)?;
            }
            // Writes sled's buffers to the file. Its own sync of them does not survive a power cut,
            // so the one below follows.
            db.flush().map(drop)
        })?;
        self.file.sync_data().map_err(KvError::unavailable)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.db.catch_panic(|db| db.get(key))?.map(Bytes::from_owner))
    }

    fn last_in(&self, keys: RangeInclusive<&[u8]>) -> Result<Option<Found>, KvError> {
        let found = self.db.catch_panic(|db| db.range(keys).next_back().transpose())?;
        Ok(found.map(found_entry))
    }

    fn first_in(&self, keys: RangeInclusive<&[u8]>, limit: usize) -> Result<Vec<Found>, KvError> {
        self.db.catch_panic(|db| {
            db.range(keys).take(limit).map(|found| found.map(found_entry)).collect()
        })
    }
}

impl Drop for GuardedDb {
    fn drop(&mut self) {
        let db = self.db.take();
        if self.panicked.load(Ordering::Acquire) {
            // Closing would take the locks the panic may have left.
            std::mem::forget(db);
            return;
        }
        // sled syncs its file when it is dropped, and panics if that fails. Nothing depends on that
        // sync: what was acknowledged was made durable by our own, and the rest was never promised.
        let _ = drop_catching_panic(db);
    }
}

/// Removes snapshots of sled's page table that cannot be used.
///
/// Whenever sled 0.34.7 opens a log that has grown, it writes `snap.LSN.generating`, syncs it and
/// renames it. At the next start it reads the newest file whose name begins with `snap.`, and
/// ignores names with an ending that it no longer uses. So half a snapshot, which a kill or a
/// full disk leaves, would be read, fail its checksum, and make the store unusable for ever,
/// although nothing of the log is wrong. A snapshot only shortens the start: without one sled reads
/// its whole log. What it then comes back with is checked against our own mark and hashes as
/// always.
fn remove_unusable_snapshots(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(rest) = name.strip_prefix("snap.") else { continue };
        if rest.ends_with(".generating") || !has_its_checksum(&fs::read(&path)?) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Says whether a snapshot of sled is what sled wrote: a body, the length of it before compression
/// (8 bytes), and the CRC-32 of the body (4 bytes, little endian).
fn has_its_checksum(snapshot: &[u8]) -> bool {
    let Some((rest, checksum)) = snapshot.split_last_chunk::<4>() else { return false };
    let Some((body, _length)) = rest.split_last_chunk::<8>() else { return false };
    !body.is_empty() && crc32fast::hash(body) == u32::from_le_bytes(*checksum)
}

fn found_entry((key, value): (IVec, IVec)) -> Found {
    (Bytes::from_owner(key), Bytes::from_owner(value))
}

fn kv_error(error: Error) -> KvError {
    match error {
        Error::Io(error) => KvError::of_io(error),
        Error::Unsupported(says) | Error::ReportableBug(says) => KvError::Damaged(says),
        Error::Corruption { .. } | Error::CollectionNotFound(_) => {
            KvError::Damaged(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{NewRecord, open};

    crate::event_store_contract! {
        durable |directory| open(&format!("sled:{}", directory.display())).unwrap().store
    }

    /// What sled writes beside its file is never synced.
    #[tokio::test]
    async fn no_page_is_ever_written_beside_the_file_that_is_synced() {
        let directory = tempfile::tempdir().unwrap();
        let opened = open(&format!("sled:{}", directory.path().display())).unwrap();
        let store = &opened.store;
        // Blocks as large as they get.
        for n in 0..200_u64 {
            let largest = NewRecord::new("k", vec![b'x'; crate::RECORD_BYTES_MAX]);
            store.append("run/a", n, vec![largest]).await.unwrap();
        }
        // Many streams, so that the index grows and is consolidated too.
        let long = "n".repeat(crate::STREAM_BYTES_MAX - 8);
        let many = (0..3000_u64).map(|n| {
            store.append(&format!("{long}{n:08}"), 0, vec![NewRecord::new("k", vec![b'x'; 500])])
        });
        for append in many.collect::<Vec<_>>() {
            append.await.unwrap();
        }

        let beside = std::fs::read_dir(directory.path().join("sled/blobs")).unwrap();
        assert_eq!(beside.count(), 0);
    }
}
