//! What lies on disks: events, records and backups.

use std::fs;

use sha2::{Digest as _, Sha256};
use towpath_engine::{
    codec::{decode, encode},
    event::RunEvent,
};
use towpath_storage::{StoreError, open, restore, verify};

use crate::on_a_runtime;

/// An event that can be read can be written, and means the same when it is read again.
pub(super) fn codec(bytes: &[u8]) {
    let Ok(fact) = decode::<RunEvent>(bytes) else { return };
    let Ok(written) = encode(&fact) else { return };
    assert_eq!(decode(&written).expect("what was written can be read"), fact);
}

/// A record lies within the bytes, and would be written as it was read.
pub(super) fn frame(bytes: &[u8]) {
    towpath_storage::fuzzing::read_frame(bytes);
}

/// A backup with the right digest is restored whole, or refused as damaged; then nothing is left.
pub(super) fn backup(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backup");
    // The digest would stop nearly every mutation before anything else is read.
    let digest = Sha256::digest(bytes);
    fs::write(&file, [bytes, &digest].concat()).expect("a file");
    let target = folder.path().join("store");
    let url = format!("fjall:{}", target.display());
    on_a_runtime(async {
        match restore(&file, &url, |_| {}).await {
            Ok(restored) => {
                let opened = open(&url).expect("what was restored can be opened");
                let verified = verify(opened.store.as_ref(), |_| {}).await.expect("it is whole");
                assert_eq!(verified.records, restored.records);
            }
            Err(error) => {
                let damaged = matches!(error, StoreError::BackupDamaged { .. });
                assert!(damaged, "a damaged backup is {:?}: {error}", error.kind());
                assert!(!target.exists(), "a part of a damaged backup was restored");
            }
        }
    });
}
