//! The directory of a store: its lock, its format, and the places beside the log.
//!
//! ```text
//! owner       the pid of the process that has the store open; locked, so a dead one never blocks
//! format      version and backend
//! mark        how far the log reached
//! sled/       or fjall/: the log
//! blobs/      content-addressed files
//! spool/      output on its way to a blob
//! snapshots/  deletable shortcuts to a state
//! tow.sock    where the owner listens
//! ```

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use crate::{blobs::remove_unfinished, durable_fs, error::StoreError, room::Room};

/// What the `format` file says before the name of the backend.
const FORMAT: &str = "towpath store 1 ";

/// Directories are the owner's alone: records and output may hold what a script printed.
const DIRECTORY_MODE: u32 = 0o700;

/// And so are files.
pub(crate) const FILE_MODE: u32 = 0o600;

/// The directory of a store. It stays locked while this, or the store itself, lives.
#[derive(Debug)]
pub struct Home {
    root: PathBuf,
    owner: Arc<Owner>,
}

/// What keeps a second process out, and a private directory alive.
#[derive(Debug)]
pub(crate) struct Owner {
    _lock: Option<Flock<File>>,
    _private: Option<TempDir>,
}

impl Home {
    /// Creates what is missing of the home in `root`, and locks it.
    pub(crate) fn open(root: &Path, backend: &'static str) -> Result<Self, StoreError> {
        create_directory(root)?;
        let root = root.canonicalize().map_err(StoreError::while_doing("finding the store"))?;
        let lock = lock(&root)?;
        check_format(&root, backend)?;
        let owner = Arc::new(Owner { _lock: Some(lock), _private: None });
        Self { root, owner }.with_places()
    }

    /// A home of our own that vanishes with its last user.
    pub(crate) fn private() -> Result<Self, StoreError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("tow-").permissions(Permissions::from_mode(DIRECTORY_MODE));
        let private = builder.tempdir();
        let private = private.map_err(StoreError::while_doing("creating a directory"))?;
        let root = private.path().to_owned();
        let owner = Arc::new(Owner { _lock: None, _private: Some(private) });
        Self { root, owner }.with_places()
    }

    fn with_places(self) -> Result<Self, StoreError> {
        for place in [self.blobs(), self.spool(), self.snapshots()] {
            create_directory(&place)?;
        }
        remove_unfinished(&self.blobs())?;
        sync_directory(&self.root)?;
        Ok(self)
    }

    /// What keeps the home locked, for the store to hold as well.
    pub(crate) fn owner(&self) -> Arc<Owner> {
        Arc::clone(&self.owner)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where blobs lie; see [`crate::Blobs`].
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Where output gathers until it is a blob.
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// Where deletable shortcuts to a state lie.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Where the owner listens for local clients.
    pub fn socket(&self) -> PathBuf {
        self.root.join("tow.sock")
    }

    /// The room on its disk.
    pub fn room(&self) -> Room {
        Room::around(&self.root)
    }

    /// Where the mark of the log lies.
    pub(crate) fn mark(&self) -> PathBuf {
        self.root.join("mark")
    }
}

fn lock(root: &Path) -> Result<Flock<File>, StoreError> {
    let doing = "locking the store";
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(FILE_MODE);
    let file = options.open(root.join("owner")).map_err(StoreError::while_doing(doing))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            let pid = format!("{}\n", std::process::id());
            lock.set_len(0).map_err(StoreError::while_doing(doing))?;
            (&*lock).write_all(pid.as_bytes()).map_err(StoreError::while_doing(doing))?;
            Ok(lock)
        }
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut says = String::new();
            // An owner that is just starting may not have written its pid yet.
            let pid = file.take(32).read_to_string(&mut says).ok();
            let pid = pid.and_then(|_| says.trim().parse().ok());
            Err(StoreError::Owned { pid, path: root.to_owned() })
        }
        Err((_, error)) => Err(StoreError::while_doing(doing)(error)),
    }
}

/// Reads the `format` file, or writes it into a home that has none and no log either.
fn check_format(root: &Path, backend: &'static str) -> Result<(), StoreError> {
    let doing = "reading the format";
    let path = root.join("format");
    let unknown = |found: &str| {
        let found = found.trim_end().chars().take(80).collect();
        StoreError::FormatUnknown { path: root.to_owned(), found }
    };
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => {
            file.take(4096).read_to_end(&mut bytes).map_err(StoreError::while_doing(doing))?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if ["mark", "sled", "fjall"].iter().any(|part| root.join(part).exists()) {
                return Err(unknown(""));
            }
            let text = format!("{FORMAT}{backend}\n");
            let written = durable_fs::replace_file(&path, FILE_MODE, text.as_bytes());
            return written.map_err(StoreError::while_doing("writing the format"));
        }
        Err(error) => return Err(StoreError::while_doing(doing)(error)),
    }
    let found = String::from_utf8_lossy(&bytes);
    let word = found.strip_prefix(FORMAT).and_then(|rest| rest.strip_suffix('\n'));
    match word {
        Some(word) if word == backend => Ok(()),
        Some("sled" | "fjall") => Err(StoreError::BackendDiffers {
            path: root.to_owned(),
            found: word.unwrap_or_default().to_owned(),
            asked: backend,
        }),
        Some(_) | None => Err(unknown(&found)),
    }
}

/// Creates the directory `path`, and its parents, if they are missing.
pub(crate) fn create_directory(path: &Path) -> Result<(), StoreError> {
    let created = durable_fs::create_directory(path, DIRECTORY_MODE);
    created.map_err(StoreError::while_doing("creating a directory"))
}

/// Makes the names in the directory `path` durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    durable_fs::sync_directory(path).map_err(StoreError::while_doing("syncing a directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_is_told_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Home::open(dir.path(), "sled").unwrap();

        let error = Home::open(dir.path(), "sled").unwrap_err();

        assert_eq!(error.code(), "STORE_OWNED");
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        Home::open(dir.path(), "sled").unwrap();
    }

    #[test]
    fn the_owner_file_of_a_dead_process_never_blocks() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("owner"), "999999999\n").unwrap();

        Home::open(dir.path(), "sled").unwrap();

        let owner = std::fs::read_to_string(dir.path().join("owner")).unwrap();
        assert_eq!(owner, format!("{}\n", std::process::id()));
    }

    #[test]
    fn another_backend_and_another_version_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        drop(Home::open(dir.path(), "fjall").unwrap());
        let error = Home::open(dir.path(), "sled").unwrap_err();
        assert_eq!(error.code(), "STORE_BACKEND_DIFFERS");
        assert!(error.to_string().contains("is a fjall store, not a sled one"), "{error}");

        std::fs::write(dir.path().join("format"), "towpath store 2 sled\n").unwrap();
        let error = Home::open(dir.path(), "sled").unwrap_err();
        assert_eq!(error.code(), "STORE_FORMAT_UNKNOWN");
        assert!(error.to_string().contains("towpath store 2 sled"), "{error}");

        std::fs::remove_file(dir.path().join("format")).unwrap();
        std::fs::create_dir(dir.path().join("sled")).unwrap();
        assert_eq!(Home::open(dir.path(), "sled").unwrap_err().code(), "STORE_FORMAT_UNKNOWN");
    }

    #[test]
    fn a_home_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("deep/er"), "sled").unwrap();

        for place in [home.path().to_owned(), home.blobs(), home.spool(), home.snapshots()] {
            let mode = std::fs::metadata(&place).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", place.display());
        }
    }

    #[test]
    fn a_private_home_vanishes_with_its_last_user() {
        let home = Home::private().unwrap();
        let path = home.path().to_owned();
        let owner = home.owner();
        drop(home);
        assert!(path.exists());

        drop(owner);

        assert!(!path.exists());
    }
}
