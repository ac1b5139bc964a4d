//! A whole store in one file, and back, for a store that no process has open: no run is loaded, no
//! timer ticks, nothing is dispatched.

use std::path::Path;

use towpath_storage::{BackedUp, open_existing};

use crate::{OpenError, server::open_store};

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupSummary {
    /// How many records.
    pub records: u64,
    /// How many blobs.
    pub blobs: u64,
    /// Length of the backup, in bytes.
    pub bytes: u64,
    /// The running hash after the last record: two stores with the same one hold the same log.
    pub hash: [u8; 32],
}

impl From<BackedUp> for BackupSummary {
    fn from(backed_up: BackedUp) -> Self {
        let BackedUp { records, blobs, hash, bytes } = backed_up;
        Self { records, blobs, bytes, hash }
    }
}

/// Writes the store at `url` to the new file `out`, and calls `progress` with the bytes written.
///
/// A store that does not exist is refused, not created.
pub async fn backup(
    url: &str,
    out: &Path,
    progress: impl FnMut(u64) + Send,
) -> Result<BackupSummary, OpenError> {
    let (opened, blobs) = open_store(url, open_existing).await?;
    Ok(towpath_storage::backup(opened.store.as_ref(), &blobs, out, progress).await?.into())
}

/// Makes a new store at `url` out of the backup `file`, and calls `progress` with the bytes read.
pub async fn restore(
    file: &Path,
    url: &str,
    progress: impl FnMut(u64) + Send,
) -> Result<BackupSummary, OpenError> {
    Ok(towpath_storage::restore(file, url, progress).await?.into())
}

#[cfg(test)]
mod tests {
    use towpath_engine::code::ErrorCode;
    use towpath_storage::open;

    use super::*;

    #[tokio::test]
    async fn a_store_that_is_open_is_not_backed_up_behind_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sled:{}", dir.path().join("store").display());
        let owner = open(&url).unwrap();

        let error = backup(&url, &dir.path().join("kept"), |_| {}).await.unwrap_err();

        assert_eq!(error.code(), ErrorCode::StoreOwned);
        drop(owner);
        let kept = backup(&url, &dir.path().join("kept"), |_| {}).await.unwrap();
        let there = format!("sled:{}", dir.path().join("there").display());
        let restored = restore(&dir.path().join("kept"), &there, |_| {}).await.unwrap();
        assert_eq!(restored, kept);
    }
}
