//! Files that are changed as a whole: whoever reads sees all of a change or nothing of it, and of two
//! who change a file one waits for the other.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Waits until nobody else changes what the lock at `path` is for; until the file is dropped.
pub(super) fn lock(path: &Path) -> io::Result<fs::File> {
    let lock =
        fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    lock.lock()?;
    Ok(lock)
}

/// Puts `text` in the place of what the file at `path` says, by way of a file beside it.
pub(super) fn replace(path: &Path, mode: u32, text: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    // What a writer left that was killed may have another mode.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    new.write_all(text)?;
    new.sync_all()?;
    fs::rename(&beside, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// What tells one state of a file from another.
pub(super) type Stamp = (u64, i64, i64, u64);

/// The state of the file at `path`, if there is one.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}
