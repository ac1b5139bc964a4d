//! The sources that a worker has by now: a bare repository for each, under a name that says what is
//! in it. Whole or not there at all, kept for the next attempt, and the longest unused go first.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::SystemTime,
};

use tempfile::{NamedTempFile, TempDir};
use tokio::sync::OwnedMutexGuard;

/// Most bytes of unused sources that are kept.
pub const SOURCES_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Begins the names of what is not whole yet.
const UNFINISHED_PREFIX: &str = ".part-";
/// The file of a source whose age says when it was last used.
const USED: &str = "used";

type InUse = Arc<Mutex<HashMap<String, u32>>>;

/// The folder of the sources.
#[derive(Debug)]
pub(crate) struct SourceCache {
    folder: PathBuf,
    bytes_max: u64,
    in_use: InUse,
    /// The locks of the sources that are being made or discarded, by name. One for all of them
    /// would let one remote that does not answer hold up every other source.
    making: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// A source that stays for as long as this lives.
#[derive(Debug)]
pub(crate) struct Borrowed {
    pub(crate) path: PathBuf,
    name: String,
    in_use: InUse,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let mut in_use = locked(&self.in_use);
        if let Some(count) = in_use.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                in_use.remove(&self.name);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SourceCache {
    /// The sources in `folder`. What a killed worker left unfinished is removed.
    pub(crate) fn open(folder: &Path, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if name_of(&path).starts_with(UNFINISHED_PREFIX) {
                remove(&path);
            }
        }
        let (folder, in_use) = (folder.to_owned(), InUse::default());
        Ok(Self { folder, bytes_max, in_use, making: Mutex::default() })
    }

    /// Locks the source called `name`: held while it is made or discarded.
    pub(crate) async fn lock(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut making = locked(&self.making);
            // As many stay as attempts are being prepared.
            making.retain(|_, lock| lock.strong_count() > 0);
            making.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
                let lock = Arc::default();
                making.insert(name.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    /// The source called `name`, if it is there.
    pub(crate) fn find(&self, name: &str) -> Option<Borrowed> {
        let mut in_use = locked(&self.in_use);
        // Under the lock: between this and the count below it must not be removed for another.
        self.folder.join(name).is_dir().then(|| self.borrow(&mut in_use, name))
    }

    fn borrow(&self, in_use: &mut HashMap<String, u32>, name: &str) -> Borrowed {
        // Counted, because several attempts may use one source at once.
        *in_use.entry(name.to_owned()).or_default() += 1;
        let path = self.folder.join(name);
        // Without it the source only looks older than it is.
        drop(File::create(path.join(USED)));
        Borrowed { path, name: name.to_owned(), in_use: Arc::clone(&self.in_use) }
    }

    /// A file that is gone again when its handle is.
    pub(crate) fn scratch_file(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().prefix(UNFINISHED_PREFIX).tempfile_in(&self.folder)
    }

    /// A folder that is gone again when its handle is, unless it is kept.
    pub(crate) fn scratch_folder(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix(UNFINISHED_PREFIX).tempdir_in(&self.folder)
    }

    /// Keeps what was made in `made` under `name`, and makes room.
    pub(crate) fn keep(&self, made: TempDir, name: &str) -> io::Result<Borrowed> {
        File::create(made.path().join(USED))?;
        let kept = {
            // Under the lock: another that makes room must not find it unused.
            let mut in_use = locked(&self.in_use);
            // A rename is atomic: a worker that is killed leaves a whole source or none under its
            // name.
            fs::rename(made.path(), self.folder.join(name))?;
            // Now it lies elsewhere: nothing is left to be removed.
            drop(made.keep());
            self.borrow(&mut in_use, name)
        };
        self.trim()?;
        Ok(kept)
    }

    /// Removes a source that turned out to be damaged.
    pub(crate) fn discard(&self, name: &str) {
        remove(&self.folder.join(name));
    }

    /// Removes the longest unused until the rest is within its bound.
    fn trim(&self) -> io::Result<()> {
        let mut all: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            // Without the file it is not a source, so it is not this function's to remove.
            let Ok(used) = fs::metadata(path.join(USED)).and_then(|used| used.modified()) else {
                continue;
            };
            if !name_of(&path).starts_with(UNFINISHED_PREFIX) {
                all.push((used, size(&path), path));
            }
        }
        all.sort();
        let mut bytes: u64 = all.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, own, path) in all {
            if bytes <= self.bytes_max {
                break;
            }
            if self.remove_unused(&path) {
                bytes -= own;
            }
        }
        Ok(())
    }

    /// Removes the source at `path` unless it is in use: it stays even beyond the bound, because a
    /// job reads from it. Answers whether it is removed.
    fn remove_unused(&self, path: &Path) -> bool {
        let name = name_of(path);
        let away = self.folder.join(format!("{UNFINISHED_PREFIX}{name}"));
        {
            let in_use = locked(&self.in_use);
            // Out of the way under the lock, and removed after it: half of a source must not be
            // found, nor be where the next one of the name is to lie.
            if in_use.contains_key(name) || fs::rename(path, &away).is_err() {
                return false;
            }
        }
        remove(&away);
        true
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// A leftover costs space and nothing else.
fn remove(path: &Path) {
    drop(if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) });
}

/// The bytes of all files below `folder`, as far as they can be seen.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => size(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn make(sources: &SourceCache, name: &str, age: u64) -> Borrowed {
        let made = sources.scratch_folder().unwrap();
        fs::write(made.path().join("pack"), [0; 100]).unwrap();
        let kept = sources.keep(made, name).unwrap();
        let used = File::options().write(true).open(kept.path.join(USED)).unwrap();
        used.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        kept
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_longest_unused_go_first_and_what_is_in_use_stays() {
        let folder = tempfile::tempdir().unwrap();
        let sources = SourceCache::open(folder.path(), 250).unwrap();
        let oldest = make(&sources, "a", 300);
        drop(make(&sources, "b", 200));
        drop(make(&sources, "c", 100));
        assert_eq!(names(folder.path()), ["a", "c"]);

        drop(oldest);
        drop(make(&sources, "d", 50));
        assert_eq!(names(folder.path()), ["c", "d"]);
        assert!(sources.find("a").is_none() && sources.find("c").is_some());
    }

    #[test]
    fn what_is_not_whole_is_never_found_and_removed_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let sources = SourceCache::open(folder.path(), 1_000).unwrap();
        drop(sources.scratch_folder().unwrap());
        assert_eq!(names(folder.path()), [""; 0]);

        // The worker was killed and could not remove them.
        fs::create_dir(folder.path().join(".part-1")).unwrap();
        fs::write(folder.path().join(".part-2"), "half").unwrap();
        drop(make(&sources, "whole", 0));
        SourceCache::open(folder.path(), 1_000).unwrap();
        assert_eq!(names(folder.path()), ["whole"]);
    }
}
