//! How much space is free on the disk of a store.
//!
//! A commit that runs out of space in the middle would stop the store for good. So a share of the
//! disk is kept free: below it no append is accepted, nothing is lost, and the store continues as
//! before once there is space again.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::sys::statvfs::statvfs;

/// Bytes that are kept free: several times what one commit and the database's own files take at
/// once.
pub const FREE_BYTES_MIN: u64 = 32 * 1024 * 1024;

/// Bytes that must be free before an existing store is opened: its database writes a snapshot and
/// may begin a file of its own, and what it cannot finish it may not be able to read again.
pub(crate) const OPEN_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// The disk is too full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{free} bytes are free on the disk of the store; {needed} must stay free")]
pub struct DiskFull {
    /// Bytes that are left.
    pub free: u64,
    /// Bytes that must be left.
    pub needed: u64,
}

/// The space on the disk that holds a directory.
#[derive(Clone, Debug)]
pub struct DiskSpace {
    directory: PathBuf,
    /// Bytes that count as used although they are free; shared by clones.
    reserved: Arc<AtomicU64>,
}

impl DiskSpace {
    /// The space on the disk that holds `directory`.
    pub fn of(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), reserved: Arc::default() }
    }

    /// From now on `bytes` bytes count as used although they are free, here and in all clones: how
    /// tests fill a disk that others use as well.
    pub fn reserve(&self, bytes: u64) {
        self.reserved.store(bytes, Ordering::Relaxed);
    }

    /// Refuses unless [`FREE_BYTES_MIN`], and `more` bytes on top, are free. A disk that does not
    /// say how much it has passes.
    pub fn check(&self, more: u64) -> Result<(), DiskFull> {
        self.check_free(FREE_BYTES_MIN.saturating_add(more))
    }

    /// Refuses unless `needed` bytes are free.
    pub(crate) fn check_free(&self, needed: u64) -> Result<(), DiskFull> {
        // Refusing because a file system does not answer would stop stores that work; a commit that
        // then fails is still an error.
        let Ok(disk) = statvfs(&self.directory) else { return Ok(()) };
        // The types differ from system to system.
        #[expect(clippy::useless_conversion, reason = "blocks are 32 bits wide elsewhere")]
        let free = u64::from(disk.blocks_available()).saturating_mul(disk.fragment_size());
        let free = free.saturating_sub(self.reserved.load(Ordering::Relaxed));
        if free < needed { Err(DiskFull { free, needed }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_space_passes_and_no_disk_has_space_for_everything() {
        let directory = tempfile::tempdir().unwrap();
        let space = DiskSpace::of(directory.path());

        assert_eq!(space.check(0), Ok(()), "the tests themselves need space");
        let full = space.check(u64::MAX).unwrap_err();
        assert_eq!(full.needed, u64::MAX);
        assert!(full.free > 0);
    }

    #[test]
    fn a_disk_that_does_not_say_is_not_in_the_way() {
        assert_eq!(DiskSpace::of(Path::new("/nowhere/at/all")).check(u64::MAX), Ok(()));
    }
}
