//! A URL becomes a store: `sled:PATH`, `fjall:PATH`, `memory:`; a bare path means sled.

use std::{
    fmt::Debug,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    EventStore,
    disk_space::{DiskSpace, FREE_BYTES_MIN, OPEN_BYTES_MIN},
    durable_fs,
    error::{StoreError, UrlFault},
    kv::{KvBackend, fjall::FjallBackend, sled::SledBackend},
    log::{Log, high_water::HighWaterMark},
    memory::MemoryStore,
    store_dir::{StoreDir, create_directory, sync_directory},
};

/// An open store and the directory around it.
#[derive(Debug)]
pub struct Opened {
    /// The log.
    pub store: Arc<dyn EventStore>,
    /// Its directory, locked as long as this or `store` lives.
    pub dir: StoreDir,
}

/// Where a URL points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Gone with the process.
    Memory,
    /// A directory that the named backend writes.
    Directory(Backend, PathBuf),
}

/// A backend that keeps records on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Sled,
    Fjall,
}

impl Backend {
    /// Its word in URLs, in the `format` file, and the name of its directory.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Fjall => "fjall",
        }
    }

    /// A file that is there whenever this backend ever wrote to its directory.
    fn landmark(self) -> &'static str {
        match self {
            Self::Sled => "db",
            Self::Fjall => "version",
        }
    }

    fn shelf(self, directory: &Path) -> Result<Arc<dyn KvBackend>, StoreError> {
        match self {
            Self::Sled => Ok(Arc::new(SledBackend::open(directory)?)),
            Self::Fjall => Ok(Arc::new(FjallBackend::open(directory)?)),
        }
    }
}

/// Opens the store at `url`, creating it if it is not there. Blocks: it reads the disk.
///
/// Refuses a store that another process has open, that another backend or version wrote, or that
/// came back with less or other than was acknowledged.
pub fn open(url: &str) -> Result<Opened, StoreError> {
    match place_of(url)? {
        Place::Memory => {
            let dir = StoreDir::temporary()?;
            Ok(Opened { store: Arc::new(MemoryStore::keeping(dir.owner())), dir })
        }
        Place::Directory(backend, path) => open_directory(backend, &path),
    }
}

/// Opens the store at `url` as [`open`] does, and refuses if there is none: nothing is created.
pub fn open_existing(url: &str) -> Result<Opened, StoreError> {
    match place_of(url)? {
        Place::Memory => {
            let why = UrlFault::NotDurable;
            Err(StoreError::UrlInvalid { url: url.to_owned(), why })
        }
        // The first file that a store gets.
        Place::Directory(_, path) if !path.join("format").exists() => {
            Err(StoreError::Missing { path })
        }
        Place::Directory(backend, path) => open_directory(backend, &path),
    }
}

fn open_directory(backend: Backend, path: &Path) -> Result<Opened, StoreError> {
    check_disk_space(path)?;
    let dir = StoreDir::open(path, backend.name())?;
    let directory = dir.path().join(backend.name());
    let acknowledged = HighWaterMark::read(&dir.high_water())?.map_or(0, |tail| tail.position);
    if acknowledged > 0 && !directory.join(backend.landmark()).exists() {
        // Before the backend creates an empty database in its place.
        return Err(StoreError::Rollback { high_water: acknowledged, tail: 0 });
    }
    if !directory.exists() {
        create_whole(backend, &directory).map_err(|error| full_if_so(error, &dir.disk_space()))?;
    }
    let kv = backend.shelf(&directory).map_err(|error| full_if_so(error, &dir.disk_space()))?;
    sync_directory(&directory)?;
    let store = Log::open(kv, &dir.high_water(), dir.disk_space(), dir.owner())?;
    Ok(Opened { store: Arc::new(store), dir })
}

/// Refuses to open a store at `path` on a disk that is too full for it.
///
/// Before anything is touched: opening writes, and what a database could not write to the end it
/// may refuse to read at its next start.
fn check_disk_space(path: &Path) -> Result<(), StoreError> {
    let there = path.ancestors().find(|ancestor| ancestor.exists());
    let space = DiskSpace::of(there.unwrap_or(Path::new(".")));
    let is_new = !path.join("format").exists();
    Ok(space.check_free(if is_new { FREE_BYTES_MIN } else { OPEN_BYTES_MIN })?)
}

/// The error for a database that could not be opened: others may have filled the disk meanwhile.
fn full_if_so(error: StoreError, space: &DiskSpace) -> StoreError {
    match space.check_free(OPEN_BYTES_MIN) {
        Err(full) if matches!(error, StoreError::Unavailable { .. }) => full.into(),
        Ok(()) | Err(_) => error,
    }
}

/// Creates an empty database aside and moves it into place, so that a database under its own name
/// was always created to the end. sled writes its configuration in two steps, and one that is
/// killed between them leaves what it cannot open again.
fn create_whole(backend: Backend, directory: &Path) -> Result<(), StoreError> {
    let doing = "creating the database";
    let aside = directory.with_extension("new");
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(StoreError::while_doing(doing)(error));
        }
        Ok(()) | Err(_) => {}
    }
    create_directory(&aside)?;
    drop(backend.shelf(&aside)?);
    durable_fs::sync_tree(&aside).map_err(StoreError::while_doing(doing))?;
    fs::rename(&aside, directory).map_err(StoreError::while_doing(doing))?;
    directory.parent().map_or(Ok(()), sync_directory)
}

/// Where `url` points.
pub(crate) fn place_of(url: &str) -> Result<Place, StoreError> {
    let invalid = |why| StoreError::UrlInvalid { url: url.to_owned(), why };
    let directory = |backend, path: &str| {
        if path.is_empty() {
            return Err(invalid(UrlFault::PathMissing));
        }
        Ok(Place::Directory(backend, PathBuf::from(path)))
    };
    match url.split_once(':') {
        Some(("sled", path)) => directory(Backend::Sled, path),
        Some(("fjall", path)) => directory(Backend::Fjall, path),
        Some(("memory", "")) => Ok(Place::Memory),
        Some(("memory", _)) => Err(invalid(UrlFault::PathUnexpected)),
        // A word before a colon that is no path asks for a backend we do not have.
        Some((word, _)) if !word.contains(['/', '.']) => Err(invalid(UrlFault::BackendUnknown)),
        Some(_) | None => directory(Backend::Sled, url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_backend_and_a_bare_path_means_sled() {
        let sled = |path: &str| Place::Directory(Backend::Sled, path.into());
        assert_eq!(place_of("sled:/a/b").unwrap(), sled("/a/b"));
        assert_eq!(place_of(".tow").unwrap(), sled(".tow"));
        assert_eq!(place_of("./odd:name").unwrap(), sled("./odd:name"));
        assert_eq!(place_of("fjall:x").unwrap(), Place::Directory(Backend::Fjall, "x".into()));
        assert_eq!(place_of("memory:").unwrap(), Place::Memory);
    }

    #[test]
    fn a_database_whose_making_was_cut_off_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        for backend in [Backend::Sled, Backend::Fjall] {
            let store = folder.path().join(backend.name());
            drop(StoreDir::open(&store, backend.name()).unwrap());
            let aside = store.join(backend.name()).with_extension("new");
            fs::create_dir(&aside).unwrap();
            for half in ["conf", "version", "db"] {
                fs::write(aside.join(half), "half of it").unwrap();
            }

            open(&format!("{}:{}", backend.name(), store.display())).unwrap();

            assert!(!aside.exists());
        }
    }

    #[test]
    fn a_store_that_must_exist_is_not_created() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        let url = format!("sled:{}", store.display());

        assert_eq!(open_existing(&url).unwrap_err().code(), "STORE_MISSING");
        assert!(!store.exists());
        assert_eq!(open_existing("memory:").unwrap_err().code(), "STORE_URL_INVALID");

        drop(open(&url).unwrap());
        open_existing(&url).unwrap();
    }

    #[test]
    fn a_url_that_names_no_store_is_refused() {
        for url in ["", "sled:", "fjall:", "memory:x", "postgres://host/db"] {
            assert_eq!(open(url).unwrap_err().code(), "STORE_URL_INVALID", "{url}");
        }
    }
}
