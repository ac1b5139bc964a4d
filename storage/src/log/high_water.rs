//! The high-water mark: a small file beside the database that remembers how far the log reached.
//!
//! A database that lost its tail opens without complaint, only shorter. The mark notices: it holds
//! the newest position and its running hash. It is written after every commit, into one of two
//! slots in turn, so a torn write spares the other.
//!
//! It is synced only every [`SYNC_EVERY`] commits and on close, because a second sync per commit
//! costs a lone client half of its appends (measured: 605 instead of 1,913 a second on a busy disk,
//! median of nine turns each). So after
//! `kill -9` the mark is exact, and notices the loss of a single record. After a power cut it may
//! unindexed by up to [`SYNC_EVERY`] commits: the loss of more is noticed, and against the loss of
//! less stands the sync of the database itself. It is never ahead of what is durable.
//!
//! A store whose mark is missing opens and writes a new one: that is how a person who knows that
//! records are lost accepts it.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::block::Tail;
use crate::{
    durable_fs::{self, OWNER_ONLY_FILE},
    error::{Damage, StoreError},
};

/// Commits between two syncs of the mark.
pub(crate) const SYNC_EVERY: u32 = 64;

/// Distance of the slots: no sector holds both.
const SLOT_DISTANCE: usize = 4096;
const SLOT_BYTES: usize = 8 + 8 + 32 + 16;
const MAGIC: &[u8; 8] = b"towhwm 1";

/// The mark of an open store.
#[derive(Debug)]
pub(crate) struct HighWaterMark {
    file: File,
    slot: usize,
    unsynced: u32,
}

impl HighWaterMark {
    /// The end of the log as the mark at `path` has it; `None` when there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Tail>, StoreError> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => file
                .take(4 * SLOT_DISTANCE as u64)
                .read_to_end(&mut bytes)
                .map_err(StoreError::while_doing("reading the high-water mark"))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(StoreError::while_doing("opening the high-water mark")(error));
            }
        };
        let slots =
            [0, SLOT_DISTANCE].map(|start| bytes.get(start..start + SLOT_BYTES).and_then(slot_of));
        // A torn slot fails its digest and is ignored; the other one is at most one commit older.
        let newest = slots.into_iter().flatten().max_by_key(|tail| tail.position);
        newest
            .map(Some)
            .ok_or(StoreError::Damaged { position: 0, what: Damage::HighWaterUnreadable })
    }

    /// Opens the mark at `path` for a log that ends at `tail`, and makes it say so.
    pub(crate) fn open(path: &Path, tail: &Tail) -> Result<Self, StoreError> {
        let doing = "writing the high-water mark";
        if !path.exists() {
            // Created with its content: a mark that a kill or a full disk left empty could not be
            // told from one that was damaged, and the store would be refused for ever.
            let mut bytes = vec![0; SLOT_DISTANCE + SLOT_BYTES];
            for start in [0, SLOT_DISTANCE] {
                bytes[start..start + SLOT_BYTES].copy_from_slice(&bytes_of(tail));
            }
            let created = durable_fs::replace_file(path, OWNER_ONLY_FILE, &bytes);
            created.map_err(StoreError::while_doing(doing))?;
        }
        let file = OpenOptions::new().write(true).open(path);
        let file = file.map_err(StoreError::while_doing(doing))?;
        let mut mark = Self { file, slot: 0, unsynced: 0 };
        // Both slots, in order and each synced: whatever they held, one is valid at any moment.
        for _ in 0..2 {
            mark.write(tail)?;
            mark.sync()?;
        }
        Ok(mark)
    }

    /// Remembers that the log is durable up to `tail`.
    pub(crate) fn advance(&mut self, tail: &Tail) -> Result<(), StoreError> {
        self.write(tail)?;
        if self.unsynced >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    /// Makes the mark itself durable.
    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        self.unsynced = 0;
        self.file.sync_data().map_err(StoreError::while_doing("syncing the high-water mark"))
    }

    fn write(&mut self, tail: &Tail) -> Result<(), StoreError> {
        // In turn: the newest slot is never the one that is written over.
        let offset = (self.slot * SLOT_DISTANCE) as u64;
        self.slot ^= 1;
        self.unsynced += 1;
        let written = self.file.write_all_at(&bytes_of(tail), offset);
        written.map_err(StoreError::while_doing("writing the high-water mark"))
    }
}

fn bytes_of(tail: &Tail) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&tail.position.to_be_bytes());
    bytes[16..48].copy_from_slice(&tail.hash);
    let digest = Sha256::digest(&bytes[..48]);
    bytes[48..].copy_from_slice(&digest[..16]);
    bytes
}

fn slot_of(bytes: &[u8]) -> Option<Tail> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (position, rest) = rest.split_first_chunk::<8>()?;
    let tail = Tail { position: u64::from_be_bytes(*position), hash: *rest.first_chunk()? };
    (bytes_of(&tail) == bytes).then_some(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StoreErrorKind;

    fn tail(position: u64) -> Tail {
        Tail { position, hash: [u8::try_from(position).unwrap(); 32] }
    }

    #[test]
    fn the_newest_slot_wins_and_a_torn_one_falls_back_to_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("high-water");
        let mut mark = HighWaterMark::open(&path, &tail(1)).unwrap();
        mark.advance(&tail(2)).unwrap();
        mark.advance(&tail(3)).unwrap();
        assert_eq!(HighWaterMark::read(&path).unwrap(), Some(tail(3)));

        // The third write went to the second slot; tear it.
        mark.file.write_all_at(&[0xff; 10], (SLOT_DISTANCE + 20) as u64).unwrap();

        assert_eq!(HighWaterMark::read(&path).unwrap(), Some(tail(2)));
    }

    /// Names the mark for the child; unset for every other process.
    const CHILD_MARK: &str = "TOWPATH_STORAGE_TEST_MARK";

    #[test]
    fn the_child_creates_a_mark_and_is_killed_at_its_first_byte() {
        let Ok(path) = std::env::var(CHILD_MARK) else { return };
        let _ = HighWaterMark::open(Path::new(&path), &tail(0));
    }

    #[test]
    fn a_mark_is_never_seen_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("high-water");
        let child = "the_child_creates_a_mark_and_is_killed_at_its_first_byte";

        // A file may have no byte: the system kills who writes one.
        let status = std::process::Command::new("sh")
            .args(["-c", "ulimit -f 0; exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{}::{child}", module_path!().split_once("::").unwrap().1)])
            .env(CHILD_MARK, &path)
            .stdout(std::process::Stdio::null())
            .status();

        assert!(status.unwrap().code().is_none(), "it was killed");
        assert_eq!(
            HighWaterMark::read(&path).unwrap(),
            None,
            "nothing was acknowledged, nothing is wrong"
        );
        HighWaterMark::open(&path, &tail(0)).unwrap();
        assert_eq!(HighWaterMark::read(&path).unwrap(), Some(tail(0)));
    }

    #[test]
    fn a_missing_mark_is_none_and_an_unreadable_one_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("high-water");
        assert_eq!(HighWaterMark::read(&path).unwrap(), None);

        std::fs::write(&path, [0; 5000]).unwrap();

        assert_eq!(HighWaterMark::read(&path).unwrap_err().kind(), StoreErrorKind::LogDamaged);
    }
}
