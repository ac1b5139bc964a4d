//! The directory of a store: its lock, its format, and the places beside the log.
//!
//! All of it is for its owner alone: records and output may hold what a script printed.
//!
//! ```text
//! owner       the pid of the process that has the store open; locked, so a dead one never blocks
//! format      version and backend; the base of the fences
//! high-water  how far the log reached
//! sled/       the log, in a directory named after its backend
//! blobs/      content-addressed files
//! spool/      output on its way to a blob
//! snapshots/  deletable shortcuts to a state
//! tow.sock    where the owner listens
//! ```

use std::{
    fmt::Debug,
    fs::{File, OpenOptions, Permissions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use crate::{
    blobs::remove_unfinished,
    disk_space::DiskSpace,
    durable_fs::{self, OWNER_ONLY_DIRECTORY, OWNER_ONLY_FILE},
    error::{Exposure, StoreError},
};

/// What the `format` file says before the name of the backend.
const FORMAT: &str = "towpath store 2 ";

/// The file of the high-water mark.
const HIGH_WATER: &str = "high-water";

/// What its second line says before the base of the fences.
const FENCES: &str = "fences above ";

/// The least by which the base of the fences grows: more than any store can have lost.
///
/// It counts only on a machine whose clock is wrong; fences stay below 2^53, the largest integer
/// that every program reads exactly.
const FENCE_STEP: u64 = 1 << 32;

/// Permission bits that let a group or others change a directory.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Permission bits that let a group or others look into a directory, or change it.
const OPEN_TO_OTHERS: u32 = 0o077;

/// The directory of a store. It stays locked while this, or the store itself, lives.
#[derive(Debug)]
pub struct StoreDir {
    root: PathBuf,
    owner: OwnerLock,
    backend: &'static str,
    fence_base: u64,
    is_new: bool,
}

/// Keeps a second process out of a store's directory, and a temporary directory alive, as long as a
/// clone of it lives.
pub type OwnerLock = Arc<dyn Debug + Send + Sync>;

#[derive(Debug)]
struct Owner {
    _lock: Option<Flock<File>>,
    _temporary: Option<TempDir>,
}

/// Says whether there is a store in `root`: the file `format` is the first that a store gets.
pub(crate) fn exists(root: &Path) -> bool {
    root.join("format").exists()
}

impl StoreDir {
    /// Creates what is missing of the directory `root`, and locks it.
    pub(crate) fn open(root: &Path, backend: &'static str) -> Result<Self, StoreError> {
        create_directory(root)?;
        let root = root.canonicalize().map_err(StoreError::while_doing("finding the store"))?;
        // Before the lock, because even the file `owner` must not be written into a directory of
        // another user.
        make_private(&root)?;
        // Before anything is read or written: a second process must change nothing here.
        let lock = lock(&root)?;
        let is_new = !exists(&root);
        let fence_base = fence_base(&root, backend, SystemTime::now())?;
        let owner = Arc::new(Owner { _lock: Some(lock), _temporary: None });
        Self { root, owner, backend, fence_base, is_new }.with_subdirectories()
    }

    /// A directory of our own that vanishes with its last user.
    pub(crate) fn temporary(backend: &'static str) -> Result<Self, StoreError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("tow-").permissions(Permissions::from_mode(OWNER_ONLY_DIRECTORY));
        let temporary = builder.tempdir();
        let temporary = temporary.map_err(StoreError::while_doing("creating a directory"))?;
        let root = temporary.path().to_owned();
        let owner = Arc::new(Owner { _lock: None, _temporary: Some(temporary) });
        Self { root, owner, backend, fence_base: 0, is_new: true }.with_subdirectories()
    }

    fn with_subdirectories(self) -> Result<Self, StoreError> {
        for place in [self.blobs(), self.spool(), self.snapshots()] {
            create_directory(&place)?;
        }
        // Safe only under the lock: another owner's unfinished blobs are being written.
        remove_unfinished(&self.blobs())?;
        sync_directory(&self.root)?;
        Ok(self)
    }

    /// What keeps the directory locked, for the store to hold as well.
    pub fn owner(&self) -> OwnerLock {
        Arc::clone(&self.owner)
    }

    /// Says whether it was created just now.
    pub fn is_new(&self) -> bool {
        self.is_new
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
        socket_in(&self.root)
    }

    /// What is added to a position in the log to get a fence: a number that never comes twice.
    ///
    /// Positions do come twice: after a person accepted that records are lost, and in a store that
    /// was restored from a backup. So the base is raised whenever that may be the case, to the
    /// microseconds since 1970. A store cannot have written a record in each of them, so every new
    /// fence is greater than every old one.
    pub fn fence_base(&self) -> u64 {
        self.fence_base
    }

    /// Raises the base of the fences, because positions that were given out may come again.
    pub fn raise_fence_base(&mut self) -> Result<(), StoreError> {
        self.fence_base = raised(self.fence_base, SystemTime::now());
        write_format(&self.root, self.backend, self.fence_base)
    }

    /// The space on its disk.
    pub fn disk_space(&self) -> DiskSpace {
        DiskSpace::of(&self.root)
    }

    /// Where the high-water mark of the log lies.
    pub(crate) fn high_water(&self) -> PathBuf {
        self.root.join(HIGH_WATER)
    }
}

/// Where the owner of the store in the directory `root` listens for local clients.
pub fn socket_in(root: &Path) -> PathBuf {
    root.join("tow.sock")
}

/// Closes the directory `root` to other users, who could read what the database underneath writes:
/// scripts, their output, comments.
///
/// Refuses one that others can change: who can replace its files, or its socket, owns the store, and
/// may have done so. One that others can only look into, as `mkdir` and service managers make it, is
/// closed; but not if it holds other files than a store, which others may have to read.
fn make_private(root: &Path) -> Result<(), StoreError> {
    let found = std::fs::metadata(root).map_err(StoreError::while_doing("finding the store"))?;
    let (owner, own) = (found.uid(), nix::unistd::geteuid().as_raw());
    let mode = found.mode() & 0o7777;
    let why = if owner != own {
        Exposure::Owner { owner, own }
    } else if mode & WRITABLE_BY_OTHERS != 0 {
        Exposure::Mode { mode }
    } else if mode & OPEN_TO_OTHERS == 0 {
        return Ok(());
    } else if exists(root) || is_empty(root) {
        let closed = Permissions::from_mode(mode & !OPEN_TO_OTHERS);
        let closing = StoreError::while_doing("closing the store's directory to other users");
        return std::fs::set_permissions(root, closed).map_err(closing);
    } else {
        Exposure::Readable { mode }
    };
    Err(StoreError::Exposed { path: root.to_owned(), why })
}

/// Whether nothing is in the directory `root`.
fn is_empty(root: &Path) -> bool {
    std::fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_none())
}

fn lock(root: &Path) -> Result<Flock<File>, StoreError> {
    let doing = "locking the store";
    let mut options = OpenOptions::new();
    // Not truncated: until the lock is held the file belongs to another owner, whose pid is in it.
    options.create(true).truncate(false).read(true).write(true).mode(OWNER_ONLY_FILE);
    let file = options.open(root.join("owner")).map_err(StoreError::while_doing(doing))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            let pid = format!("{}\n", std::process::id());
            // Written after the lock: only its owner may say who the owner is.
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

/// Reads the base of the fences from the file `format`, or writes the file into a directory that
/// has none and no log either.
///
/// Refuses a directory that another backend or version wrote.
fn fence_base(root: &Path, backend: &'static str, now: SystemTime) -> Result<u64, StoreError> {
    let doing = "reading the format";
    let unknown = |found: &str| {
        let found = found.trim_end().chars().take(80).collect();
        StoreError::FormatUnknown { path: root.to_owned(), found }
    };
    let mut bytes = Vec::new();
    match File::open(root.join("format")) {
        Ok(file) => {
            file.take(4096).read_to_end(&mut bytes).map_err(StoreError::while_doing(doing))?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // A log without its format is not taken for an empty directory: what is in it could be
            // of any version.
            if [HIGH_WATER, backend].iter().any(|part| root.join(part).exists()) {
                return Err(unknown(""));
            }
            write_format(root, backend, 0)?;
            return Ok(0);
        }
        Err(error) => return Err(StoreError::while_doing(doing)(error)),
    }
    let found = String::from_utf8_lossy(&bytes);
    let (first, rest) = found.split_once('\n').unwrap_or((&found, ""));
    match first.strip_prefix(FORMAT) {
        Some(word) if word == backend => {}
        // Also one that this program was built without.
        Some(word) if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase()) => {
            let (path, found) = (root.to_owned(), word.to_owned());
            return Err(StoreError::BackendDiffers { path, found, asked: backend });
        }
        Some(_) | None => return Err(unknown(&found)),
    }
    match rest.strip_prefix(FENCES).and_then(|base| base.trim_end().parse().ok()) {
        Some(base) => Ok(base),
        // A person wrote the file again by hand: it is unknown how far the fences had come.
        None => {
            let base = raised(0, now);
            write_format(root, backend, base)?;
            Ok(base)
        }
    }
}

fn write_format(root: &Path, backend: &str, fence_base: u64) -> Result<(), StoreError> {
    // The version first, so that any future version can tell what it has before it.
    let text = format!("{FORMAT}{backend}\n{FENCES}{fence_base}\n");
    let written = durable_fs::replace_file(&root.join("format"), OWNER_ONLY_FILE, text.as_bytes());
    written.map_err(StoreError::while_doing("writing the format"))
}

/// The base of the fences that follows `base` at `now`.
fn raised(base: u64, now: SystemTime) -> u64 {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    // The time is a bound that needs no memory: no store writes a record in every microsecond. The
    // step covers a clock that was set back.
    u64::try_from(now).unwrap_or(u64::MAX).max(base.saturating_add(FENCE_STEP))
}

/// Creates the directory `path`, and its parents, if they are missing.
pub(crate) fn create_directory(path: &Path) -> Result<(), StoreError> {
    let created = durable_fs::create_directory(path, OWNER_ONLY_DIRECTORY);
    created.map_err(StoreError::while_doing("creating a directory"))
}

/// Makes the names in the directory `path` durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    durable_fs::sync_directory(path).map_err(StoreError::while_doing("syncing a directory"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StoreErrorKind;

    #[test]
    fn a_second_opener_gets_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = StoreDir::open(dir.path(), "sled").unwrap();

        let error = StoreDir::open(dir.path(), "sled").unwrap_err();

        assert_eq!(error.kind(), StoreErrorKind::Owned);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        StoreDir::open(dir.path(), "sled").unwrap();
    }

    #[test]
    fn the_owner_file_of_an_ended_process_never_blocks() {
        let dir = tempfile::tempdir().unwrap();
        // As the first start has left it: it closes the folder before it writes anything.
        drop(StoreDir::open(dir.path(), "sled").unwrap());
        std::fs::write(dir.path().join("owner"), "999999999\n").unwrap();

        StoreDir::open(dir.path(), "sled").unwrap();

        let owner = std::fs::read_to_string(dir.path().join("owner")).unwrap();
        assert_eq!(owner, format!("{}\n", std::process::id()));
    }

    #[test]
    fn another_backend_and_another_version_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        drop(StoreDir::open(dir.path(), "fjall").unwrap());
        let error = StoreDir::open(dir.path(), "sled").unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::BackendDiffers);
        assert!(error.to_string().contains("is a fjall store, not a sled one"), "{error}");

        for other in ["towpath store 1 sled\n", "towpath store 3 sled\n", "towpath store 2 SLED\n"]
        {
            std::fs::write(dir.path().join("format"), other).unwrap();
            let error = StoreDir::open(dir.path(), "sled").unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::FormatUnknown);
            assert!(error.to_string().contains(other.trim_end()), "{error}");
        }

        std::fs::remove_file(dir.path().join("format")).unwrap();
        std::fs::create_dir(dir.path().join("sled")).unwrap();
        assert_eq!(
            StoreDir::open(dir.path(), "sled").unwrap_err().kind(),
            StoreErrorKind::FormatUnknown
        );
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
    }

    #[test]
    fn the_base_of_the_fences_rises_also_when_the_clock_is_wrong() {
        let bases: Vec<u64> = [at(1_800_000_000), at(1_800_000_001), at(5)]
            .into_iter()
            .scan(0, |base, now| {
                *base = raised(*base, now);
                Some(*base)
            })
            .collect();

        assert_eq!(bases[0], 1_800_000_000_000_000);
        assert!(bases.is_sorted_by(|a, b| a + 1_000_000 <= *b), "{bases:?}");
        assert!(bases.iter().all(|base| *base < 1 << 53), "every program reads them exactly");
    }

    #[test]
    fn a_format_that_was_written_again_by_hand_raises_the_fences() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(HIGH_WATER), "").unwrap();
        std::fs::write(dir.path().join("format"), "towpath store 2 sled\n").unwrap();

        assert_eq!(
            fence_base(dir.path(), "sled", at(1_800_000_000)).unwrap(),
            1_800_000_000_000_000
        );
    }

    #[test]
    fn a_store_directory_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = StoreDir::open(&dir.path().join("deep/er"), "sled").unwrap();

        for place in [dir.path().to_owned(), dir.blobs(), dir.spool(), dir.snapshots()] {
            let mode = std::fs::metadata(&place).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", place.display());
        }
    }

    #[test]
    fn a_store_that_others_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o775, 0o770, 0o702, 0o720, 0o777] {
            std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            let error = StoreDir::open(dir.path(), "sled").unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Exposed, "{mode:o}");
            assert!(error.to_string().contains("chmod go="), "{error}");
            assert!(!dir.path().join("owner").exists(), "nothing was written");
        }
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        StoreDir::open(dir.path(), "sled").unwrap();
    }

    #[test]
    fn a_store_that_others_can_read_is_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let set = |mode| {
            std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        };
        let mode = || std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777;
        // First an empty directory, then a store.
        for before in [0o755, 0o750, 0o711] {
            set(before);
            drop(StoreDir::open(dir.path(), "sled").unwrap());
            assert_eq!(mode(), 0o700, "{before:o}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("index.html"), "for all").unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let error = StoreDir::open(dir.path(), "sled").unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Exposed);
        assert!(!dir.path().join("owner").exists(), "nothing was written");
        assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn a_store_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        if nix::unistd::chown(dir.path(), Some(nix::unistd::Uid::from_raw(65_534)), None).is_err() {
            eprintln!("skipped: only root can give a directory to another user");
            return;
        }
        let error = StoreDir::open(dir.path(), "sled").unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Exposed);
        assert!(error.to_string().contains("belongs to the user with the number 65534"), "{error}");
    }

    #[test]
    fn a_temporary_directory_vanishes_with_its_last_user() {
        let dir = StoreDir::temporary("memory").unwrap();
        let path = dir.path().to_owned();
        let owner = dir.owner();
        drop(dir);
        assert!(path.exists());

        drop(owner);

        assert!(!path.exists());
    }
}
