//! Files that several processes change: a lock lets one change a file at a time, and a stamp tells
//! a reader that the file has changed. [`towpath_storage::durable_fs`] replaces the file itself.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Waits for the exclusive lock at `path`, which is held until the file is dropped.
pub(super) fn lock(path: &Path) -> io::Result<fs::File> {
    let lock =
        fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    lock.lock()?;
    Ok(lock)
}

/// What tells one state of a file from another.
pub(super) type Stamp = (u64, i64, i64, u64);

/// The state of the file at `path`, if there is one.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}
