//! How the files of a key-value database are found, created and opened, with the log over them.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{KvBackend, KvError};
use crate::{
    EventStore,
    backend::Directory,
    durable_fs,
    error::{StoreError, UrlFault},
    log::{Log, high_water::HighWaterMark},
    store_dir::{StoreDir, create_directory, sync_directory},
};

/// How the files of a key-value database are found and opened.
#[derive(Clone, Copy, Debug)]
pub struct KvFiles {
    /// The name of its directory within that of the store.
    pub directory: &'static str,
    /// A file that is there whenever the database was ever created in its directory.
    pub landmark: &'static str,
    /// Opens the database in a directory, or creates it. Blocks.
    pub open: fn(&Path) -> Result<Arc<dyn KvBackend>, KvError>,
}

impl KvFiles {
    /// Opens the log in `dir`, or creates it.
    pub fn open_log(&self, dir: &mut StoreDir) -> Result<Arc<dyn EventStore>, StoreError> {
        let directory = dir.path().join(self.directory);
        let high_water = dir.high_water();
        let acknowledged = HighWaterMark::read(&high_water)?;
        if acknowledged.is_none() && !dir.is_new() {
            // A person removed it to accept a loss. The base is durable before the new mark is
            // written: else a crash between the two would forget that positions come again.
            dir.raise_fence_base()?;
        }
        let acknowledged = acknowledged.map_or(0, |tail| tail.position);
        if acknowledged > 0 && !directory.join(self.landmark).exists() {
            // Before the backend creates an empty database in its place.
            return Err(StoreError::Rollback { high_water: acknowledged, tail: 0 });
        }
        // A directory under its own name was created to the end; anything else is begun again.
        if !directory.exists() {
            self.create(&directory)?;
        }
        let kv = self.open(&directory)?;
        // What the database created while it was opened must be found by name after a power cut.
        sync_directory(&directory)?;
        Ok(Arc::new(Log::open(kv, &high_water, dir.disk_space(), dir.owner())?))
    }

    fn open(&self, directory: &Path) -> Result<Arc<dyn KvBackend>, StoreError> {
        (self.open)(directory).map_err(|error| error.at(0, "opening the database"))
    }

    /// Creates an empty database aside and moves it into place, so that a database under its own
    /// name was always created to the end. sled writes its configuration in two steps, and one that
    /// is killed between them leaves what it cannot open again.
    fn create(&self, directory: &Path) -> Result<(), StoreError> {
        let doing = "creating the database";
        let aside = directory.with_extension("new");
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(StoreError::while_doing(doing)(error));
            }
            Ok(()) | Err(_) => {}
        }
        // Closed before it is synced: a database writes when it is closed too.
        create_directory(&aside)?;
        drop(self.open(&aside)?);
        durable_fs::sync_tree(&aside).map_err(StoreError::while_doing(doing))?;
        fs::rename(&aside, directory).map_err(StoreError::while_doing(doing))?;
        directory.parent().map_or(Ok(()), sync_directory)
    }
}

/// The directory of a store whose log is in it: the rest of its URL is the path.
pub fn directory_at(rest: &str) -> Result<Directory, UrlFault> {
    if rest.is_empty() {
        return Err(UrlFault::PathMissing);
    }
    Ok(Directory::Whole(PathBuf::from(rest)))
}

#[cfg(test)]
mod tests {
    use crate::{BACKENDS, Directory, open, store_dir::StoreDir};

    /// The schemes whose logs are in a directory.
    fn schemes() -> impl Iterator<Item = &'static str> {
        let whole = |rest| matches!(rest, Ok(Directory::Whole(_)));
        let backends = BACKENDS.iter().filter(move |backend| whole(backend.directory("x")));
        backends.map(|backend| backend.scheme())
    }

    #[test]
    fn a_database_whose_creation_was_cut_off_is_created_anew() {
        let folder = tempfile::tempdir().unwrap();
        for scheme in schemes() {
            let store = folder.path().join(scheme);
            drop(StoreDir::open(&store, scheme).unwrap());
            let aside = store.join(scheme).with_extension("new");
            std::fs::create_dir(&aside).unwrap();
            for half in ["conf", "version", "db"] {
                std::fs::write(aside.join(half), "half of it").unwrap();
            }

            open(&format!("{scheme}:{}", store.display())).unwrap();

            assert!(!aside.exists());
        }
    }

    #[test]
    fn fences_rise_whenever_the_high_water_mark_was_removed() {
        let folder = tempfile::tempdir().unwrap();
        for scheme in schemes() {
            let store = folder.path().join(scheme);
            let url = format!("{scheme}:{}", store.display());
            assert_eq!(open(&url).unwrap().dir.fence_base(), 0, "a new store");
            assert_eq!(open(&url).unwrap().dir.fence_base(), 0, "nothing was lost");
            let mut before = 0;
            for _ in 0..2 {
                std::fs::remove_file(store.join("high-water")).unwrap();
                let raised = open(&url).unwrap().dir.fence_base();
                assert!(raised > before, "{before}, then {raised}");
                assert_eq!(open(&url).unwrap().dir.fence_base(), raised);
                before = raised;
            }
        }
    }
}
