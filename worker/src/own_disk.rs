//! Whether this worker can write its own files: journals, and output on its way to the server.
//!
//! A full disk is not the fault of a job. Its attempt is reported as lost, and the worker takes
//! nothing new until its disk takes bytes again. If it did not pause it would be given the same job
//! at once, and lose it again until no loss is left to the job.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, sys::statvfs::statvfs};
use tokio::sync::watch;

/// Bytes that are to be free before a paused worker takes jobs again: what a job that prints much
/// needs, several times. On a disk of less than four times as much, a quarter of the disk.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Bytes that are written to see whether the disk takes any. How much is free does not tell: there
/// are quotas, disks that have become read-only, and disks without a free inode.
const PROBE_BYTES: usize = 64 * 1024;
/// The disk of the attempts' own files.
#[derive(Debug)]
pub(crate) struct OwnDisk {
    folder: PathBuf,
    /// Why it could not be written to. `None`: it could, as far as is known.
    trouble: watch::Sender<Option<String>>,
}

impl OwnDisk {
    /// The disk that `folder` is on.
    pub(crate) fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), trouble: watch::Sender::default() }
    }

    /// Notes that a file of the worker could not be written, or that it has no keeper: it takes no
    /// jobs until [`crate::AttemptsDir::can_run_again`].
    pub(crate) fn note(&self, why: &str) {
        self.trouble.send_if_modified(|trouble| {
            // The first is the cause of those that follow.
            let first = trouble.is_none();
            if first {
                *trouble = Some(why.to_owned());
            }
            first
        });
    }

    /// Notes that the disk takes bytes again.
    fn clear(&self) {
        self.trouble.send_replace(None);
    }

    /// Why it cannot be written to.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// Waits until a file cannot be written.
    pub(crate) async fn fails(&self) {
        let mut trouble = self.trouble.subscribe();
        drop(trouble.wait_for(Option::is_some).await);
    }

    /// Whether `why` something went wrong is this disk, and not the job.
    pub(crate) fn is_to_blame(&self, why: &str) -> bool {
        let full = [Errno::ENOSPC, Errno::EDQUOT].map(Errno::desc);
        // What git and libgit2 say ends with the words of the system; nothing else is left of the
        // error there. A job's own names stand in quotation marks, so none of them ends it so.
        let why = why.trim_end();
        let why = why.rsplit_once(" (os error ").map_or(why, |(words, _)| words);
        full.iter().any(|words| why.ends_with(words)) || self.write_probe().is_err()
    }

    /// Looks whether a paused worker may take jobs again, and notes it.
    pub(crate) fn look_again(&self) -> bool {
        let takes_bytes = self.has_space() && self.write_probe().is_ok();
        if takes_bytes {
            self.clear();
        }
        takes_bytes
    }

    fn has_space(&self) -> bool {
        // A disk that does not say how much it has is tried all the same.
        let Ok(disk) = statvfs(&self.folder) else { return true };
        #[expect(clippy::useless_conversion, reason = "blocks are 32 bits wide elsewhere")]
        let bytes = |blocks| u64::from(blocks).saturating_mul(disk.fragment_size());
        bytes(disk.blocks_available()) >= FREE_BYTES_MIN.min(bytes(disk.blocks()) / 4)
    }

    fn write_probe(&self) -> io::Result<()> {
        let path = self.folder.join("probe");
        let written = File::create(&path).and_then(|mut file| file.write_all(&[0; PROBE_BYTES]));
        // Whatever of it is there takes space that is missed.
        let removed = fs::remove_file(&path);
        written.and(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_blamed_for_what_the_system_says_of_it_and_for_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let disk = OwnDisk::of(folder.path());
        let full = io::Error::from_raw_os_error(Errno::ENOSPC as i32);
        assert!(disk.is_to_blame(&format!("`a.sql` cannot be written: {full}")));
        assert!(disk.is_to_blame("failed to write pack: No space left on device"));
        assert!(!disk.is_to_blame("the commit has no folder `No space left on device`"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the probe is removed");

        let away = OwnDisk::of(Path::new("/nowhere/at/all"));
        assert!(away.is_to_blame("the commit has no folder `x`"), "nothing can be written there");
        away.note("the first");
        away.note("the second");
        assert_eq!(away.trouble().as_deref(), Some("the first"));
        assert!(!away.look_again());
        assert!(away.trouble().is_some());
        disk.note("full");
        assert!(disk.look_again() && disk.trouble().is_none());
    }
}
