//! A URL becomes an open store.

use std::{path::Path, sync::Arc};

use crate::{
    EventStore,
    backend::Directory,
    disk_space::{DiskSpace, FREE_BYTES_MIN, OPEN_BYTES_MIN},
    error::{StoreError, UrlFault},
    store_dir::{self, StoreDir},
    store_url::StoreUrl,
};

/// An open store and the directory around it.
#[derive(Debug)]
pub struct Opened {
    /// The log.
    pub store: Arc<dyn EventStore>,
    /// Its directory, locked as long as this or `store` lives.
    pub dir: StoreDir,
    /// Where it is.
    pub url: StoreUrl,
}

/// Opens the store at `url`, creating it if it is not there. Blocks: it reads the disk.
///
/// Refuses a store that another process has open, that another backend or version wrote, or that
/// came back with less or other than was acknowledged.
pub fn open(url: &str) -> Result<Opened, StoreError> {
    StoreUrl::parse(url)?.open()
}

/// Opens the store at `url` as [`open`] does, and refuses if there is none: nothing is created.
pub fn open_existing(url: &str) -> Result<Opened, StoreError> {
    let url = StoreUrl::parse(url)?;
    match url.directory()? {
        Directory::Whole(path) | Directory::Beside(path) if store_dir::exists(&path) => url.open(),
        Directory::Whole(path) | Directory::Beside(path) => Err(StoreError::Missing { path }),
        Directory::Temporary => Err(url.invalid(UrlFault::NotDurable)),
    }
}

impl StoreUrl {
    /// Opens the store here, creating it if it is not there. See [`open`].
    pub fn open(&self) -> Result<Opened, StoreError> {
        let backend = self.backend();
        let mut dir = match self.directory()? {
            Directory::Whole(path) | Directory::Beside(path) => {
                check_disk_space(&path)?;
                StoreDir::open(&path, backend.scheme())?
            }
            Directory::Temporary => StoreDir::temporary(backend.scheme())?,
        };
        let opened = backend.open(self.rest(), &mut dir);
        let store = opened.map_err(|error| full_if_so(error, &dir.disk_space()))?;
        Ok(Opened { store, dir, url: self.clone() })
    }
}

/// Refuses to open a store at `path` on a disk that is too full for it.
///
/// Before anything is touched: opening writes, and what a database could not write to the end it
/// may refuse to read at its next start.
fn check_disk_space(path: &Path) -> Result<(), StoreError> {
    // The directory may not exist yet; the disk it will lie on is that of the nearest that does.
    let there = path.ancestors().find(|ancestor| ancestor.exists());
    let space = DiskSpace::of(there.unwrap_or(Path::new(".")));
    // Opening an existing store writes little; creating one writes the first files of the database
    // as well.
    let needed = if store_dir::exists(path) { OPEN_BYTES_MIN } else { FREE_BYTES_MIN };
    Ok(space.check_free(needed)?)
}

/// The error for a store that could not be opened: another program may have filled the disk since
/// it was checked, and then "no space left" is the answer, not what the database made of it.
fn full_if_so(error: StoreError, space: &DiskSpace) -> StoreError {
    match space.check_free(OPEN_BYTES_MIN) {
        // Databases report a full disk in many ways; the free space itself is a more precise
        // reason.
        Err(full) if matches!(error, StoreError::Unavailable { .. }) => full.into(),
        Ok(()) | Err(_) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StoreErrorKind;

    #[test]
    fn a_store_that_must_exist_is_not_created() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        let url = format!("sled:{}", store.display());

        assert_eq!(open_existing(&url).unwrap_err().kind(), StoreErrorKind::Missing);
        assert!(!store.exists());
        assert_eq!(open_existing("memory:").unwrap_err().kind(), StoreErrorKind::UrlInvalid);

        drop(open(&url).unwrap());
        open_existing(&url).unwrap();
    }
}
