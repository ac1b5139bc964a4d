//! What a backup or a restore writes beside its target, and what a killed one left there.
//!
//! Each takes the form of a whole store, so it must not stay for ever. Its name says what it is,
//! and a lock says that its process lives: the system releases the lock when the process ends,
//! however it ends. Whatever has such a name and no lock is removed by the next backup or restore
//! into the same directory.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use tempfile::{Builder, NamedTempFile, TempDir};

/// How the file of an unfinished backup is called, before six characters of chance.
const BACKUP_PREFIX: &str = ".tow-backup-";

/// How the directory of an unfinished restore is called, before six characters of chance.
const RESTORE_PREFIX: &str = ".tow-restore-";

/// Characters after the prefix.
const CHANCE_CHARS: usize = 6;

/// How often something is created again because another process took it for a dead one's: it can
/// be removed only in the moment between its creation and its lock.
const TRIES_MAX: usize = 16;

/// An empty file in `directory` for a backup. It is removed unless it gets its name.
pub(crate) fn backup_file(directory: &Path) -> io::Result<NamedTempFile> {
    // Here and not at the start of the program: only who writes into a folder may clean it.
    remove_stale(directory);
    // Between creating and locking, another process may take the file for a leftover and remove it.
    // It is made again.
    for _ in 1..TRIES_MAX {
        let file = Builder::new().prefix(BACKUP_PREFIX).tempfile_in(directory)?;
        if lock_if_there(file.path(), file.as_file())? {
            return Ok(file);
        }
    }
    Err(io::Error::other("what is created is removed at once"))
}

/// An empty directory in `directory` for a restore, and its lock. It is removed unless it is kept.
pub(crate) fn restore_directory(directory: &Path) -> io::Result<(TempDir, File)> {
    remove_stale(directory);
    let mode = Permissions::from_mode(0o700);
    for _ in 1..TRIES_MAX {
        let mut builder = Builder::new();
        let unfinished =
            builder.prefix(RESTORE_PREFIX).permissions(mode.clone()).tempdir_in(directory)?;
        // A directory can be locked like a file, and keeps its lock when it is renamed.
        let lock = File::open(unfinished.path())?;
        if lock_if_there(unfinished.path(), &lock)? {
            return Ok((unfinished, lock));
        }
    }
    Err(io::Error::other("what is created is removed at once"))
}

/// Locks `file`, which was just created at `path`. Says whether it is still there.
fn lock_if_there(path: &Path, file: &File) -> io::Result<bool> {
    match file.try_lock() {
        // Another process looks at it, and removes it.
        Err(TryLockError::WouldBlock) => return Ok(false),
        // A file system without locks: then nothing is ever removed on it either.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    is_at(path, file)
}

fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let ours = file.metadata()?;
    // A lock is on the file, and the name may belong to another one by now.
    Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino()))
}

/// Removes what killed backups and restores left in `directory`. What cannot be removed stays: it
/// may be another user's, and it does no harm.
fn remove_stale(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        // A link is none of ours, and opening a pipe would wait for its other end.
        let Ok(kind) = entry.file_type() else { continue };
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let ours = (kind.is_file() && is_unfinished(name, BACKUP_PREFIX))
            || (kind.is_dir() && is_unfinished(name, RESTORE_PREFIX));
        if !ours {
            continue;
        }
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        // The lock is held until it is removed: no other process can adopt it meanwhile. What got
        // its name since it was listed is at another path by now.
        if file.try_lock().is_ok() && is_at(&path, &file).unwrap_or(false) {
            let _ = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

fn is_unfinished(name: &str, prefix: &str) -> bool {
    let Some(chance) = name.strip_prefix(prefix) else { return false };
    chance.len() == CHANCE_CHARS && chance.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_living_one_writes_stays() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let living = (backup_file(directory.path()).unwrap(), restore_directory(directory.path()));
        fs::write(at(".tow-backup-AAAA00"), "half").unwrap();
        fs::create_dir(at(".tow-restore-BBBB11")).unwrap();
        fs::write(at(".tow-restore-BBBB11/owner"), "1\n").unwrap();
        // None of these is ours.
        fs::write(at(".tow-backup-of-monday"), "kept").unwrap();
        fs::write(at(".tow-restore-CCCC22"), "kept").unwrap();
        std::os::unix::fs::symlink("/", at(".tow-restore-DDDD33")).unwrap();

        let next = backup_file(directory.path()).unwrap();

        assert!(!at(".tow-backup-AAAA00").exists());
        assert!(!at(".tow-restore-BBBB11").exists());
        let (file, restoring) = living;
        assert!(file.path().exists() && restoring.unwrap().0.path().exists());
        for other in [".tow-backup-of-monday", ".tow-restore-CCCC22", ".tow-restore-DDDD33"] {
            assert!(at(other).exists(), "{other}");
        }
        drop(next);
    }

    #[test]
    fn what_was_removed_before_it_was_locked_is_created_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = Builder::new().prefix(BACKUP_PREFIX).tempfile_in(directory.path()).unwrap();
        remove_stale(directory.path());

        assert!(!lock_if_there(file.path(), file.as_file()).unwrap());
    }
}
