//! A whole store in one file, and back.
//!
//! ```text
//! towpath backup 1\n
//! R frame                    every record, in the order of the log
//! B size sha256 bytes        every blob, in the order of their digests
//! E records blobs hash       counts (u64) and the running hash after the last record
//! sha256                     of all bytes before
//! ```
//!
//! Numbers are big endian. A backup holds the log as it was when the backup began, and all blobs of
//! a moment after, so every blob that a record names is there. It may be made while the store is
//! in use. Both directions block their thread while they move bytes.

mod restore;

use std::{
    io::{BufWriter, ErrorKind, Write},
    path::Path,
};

use sha2::{Digest as _, Sha256};

pub use self::restore::{restore, restore_to};
use crate::{
    Blobs, EventStore, StoreError,
    durable_fs::parent_of,
    error::Damage,
    log::record::{CHAIN_START, RunningHash},
    store_dir::sync_directory,
    unfinished,
};

const HEADER: &[u8] = b"towpath backup 1\n";
const DIGEST_BYTES: u64 = 32;

/// Records fetched at once.
const PAGE_MAX: usize = 4096;

/// Bytes moved at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackedUp {
    /// How many records.
    pub records: u64,
    /// How many blobs.
    pub blobs: u64,
    /// The running hash after the last record.
    pub hash: RunningHash,
    /// Length of the file.
    pub bytes: u64,
}

/// Writes the log of `store` and all of `blobs` to the new file `out`.
///
/// The file appears whole or not at all, and never replaces another. Records and blobs are verified
/// on the way. Calls `progress` with the bytes written so far.
pub async fn backup(
    store: &dyn EventStore,
    blobs: &Blobs,
    out: &Path,
    mut progress: impl FnMut(u64),
) -> Result<BackedUp, StoreError> {
    let doing = "writing the backup";
    // For an early message; the rename below decides.
    if out.exists() {
        return Err(StoreError::BackupExists { path: out.to_owned() });
    }
    let directory = parent_of(out);
    let file = unfinished::backup_file(directory).map_err(StoreError::while_doing(doing))?;
    let mut digested = Digested::new(BufWriter::with_capacity(CHUNK_BYTES, file));
    digested.put(HEADER)?;
    let (records, hash) = records_into(&mut digested, store, &mut progress).await?;
    // After the log: a blob is kept before an event names it, so every blob that a record of this
    // backup names is in the list by now.
    let list = blobs.list()?;
    for blob in &list {
        digested.put(b"B")?;
        digested.put(&blob.size.to_be_bytes())?;
        digested.put(&blob.sha256)?;
        blobs.verify(&blob.sha256)?;
        let copied = std::io::copy(&mut blobs.open_read(&blob.sha256)?, &mut digested);
        if copied.map_err(StoreError::while_doing(doing))? != blob.size {
            return Err(StoreError::BlobDamaged { sha256: blob.sha256 });
        }
        progress(digested.bytes);
    }
    digested.put(b"E")?;
    digested.put(&records.to_be_bytes())?;
    digested.put(&(list.len() as u64).to_be_bytes())?;
    digested.put(&hash)?;
    let (mut out_file, digest, bytes) = digested.finish();
    out_file.write_all(&digest).map_err(StoreError::while_doing(doing))?;
    let file = out_file.into_inner().map_err(std::io::IntoInnerError::into_error);
    let file = file.map_err(StoreError::while_doing(doing))?;
    file.as_file().sync_all().map_err(StoreError::while_doing(doing))?;
    // Without replacing: another process may have written a file of this name since it was checked.
    file.persist_noclobber(out).map_err(|error| {
        if error.error.kind() == ErrorKind::AlreadyExists {
            return StoreError::BackupExists { path: out.to_owned() };
        }
        StoreError::while_doing(doing)(error.error)
    })?;
    // The name as well: after a power cut the file would otherwise exist without a name.
    sync_directory(directory)?;
    let bytes = bytes + DIGEST_BYTES;
    progress(bytes);
    Ok(BackedUp { records, blobs: list.len() as u64, hash, bytes })
}

async fn records_into<W: Write>(
    out: &mut Digested<W>,
    store: &dyn EventStore,
    progress: &mut impl FnMut(u64),
) -> Result<(u64, RunningHash), StoreError> {
    // The tail of this moment: what is appended meanwhile belongs to the next backup.
    let tail = *store.watch().borrow();
    let (mut position, mut hash) = (0, CHAIN_START);
    let mut frame = Vec::new();
    while position < tail {
        let page = store.read_all(position, PAGE_MAX).await?;
        // The tail was acknowledged, so records up to it must exist.
        if page.is_empty() {
            return Err(StoreError::Damaged { position: position + 1, what: Damage::Hole });
        }
        for record in page.iter().take_while(|record| record.position <= tail) {
            frame.clear();
            frame.push(b'R');
            record.frame_into(&mut frame);
            hash = record.hash_after(&hash);
            position += 1;
            // Every record is verified while it is copied: a backup of a damaged log would be found
            // out only when it is needed.
            if record.position != position || record.hash != hash {
                return Err(StoreError::Damaged { position, what: Damage::HashDiffers });
            }
            out.put(&frame)?;
        }
        progress(out.bytes);
    }
    Ok((position, hash))
}

/// A writer that knows the digest of what went through it.
struct Digested<W> {
    out: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> Digested<W> {
    fn new(out: W) -> Self {
        Self { out, digest: Sha256::new(), bytes: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_all(bytes).map_err(StoreError::while_doing("writing the backup"))
    }

    fn finish(self) -> (W, [u8; 32], u64) {
        (self.out, self.digest.finalize().into(), self.bytes)
    }
}

impl<W: Write> Write for Digested<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::{BACKENDS, Opened, contract::fact, open, verify};

    async fn filled(url: &str) -> Opened {
        let opened = open(url).unwrap();
        for n in 0..40_u64 {
            let records = (0..5).map(|m| fact(&format!("{n}-{m}"))).collect();
            opened.store.append(&format!("run/{}", n % 4), n / 4 * 5, records).await.unwrap();
        }
        let blobs = Blobs::open(&opened.dir.blobs()).unwrap();
        blobs.put(b"").unwrap();
        blobs.put(b"a plan").unwrap();
        blobs.put(&vec![7; 300_000]).unwrap();
        opened
    }

    async fn backed_up(dir: &Path) -> (PathBuf, Opened, BackedUp) {
        let opened = filled("memory:").await;
        let blobs = Blobs::open(&opened.dir.blobs()).unwrap();
        let out = dir.join("backup");
        let done = backup(opened.store.as_ref(), &blobs, &out, |_| {}).await.unwrap();
        (out, opened, done)
    }

    #[tokio::test]
    async fn a_restored_store_holds_the_same_records_and_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let (out, opened, done) = backed_up(dir.path()).await;
        assert_eq!((done.records, done.blobs), (200, 3));
        assert_eq!(done.bytes, fs::metadata(&out).unwrap().len());

        for backend in BACKENDS.iter().filter(|backend| backend.is_durable()) {
            let backend = backend.scheme();
            let url = format!("{backend}:{}", dir.path().join(backend).display());
            let mut moved = 0;
            assert_eq!(restore(&out, &url, |bytes| moved = bytes).await.unwrap(), done);
            assert_eq!(moved, done.bytes);

            let restored = open(&url).unwrap();
            assert!(restored.dir.fence_base() > done.records, "old fences do not come again");
            let all = restored.store.read_all(0, 1000).await.unwrap();
            assert_eq!(all, opened.store.read_all(0, 1000).await.unwrap());
            assert_eq!(verify(restored.store.as_ref(), |_| {}).await.unwrap().hash, done.hash);
            let blobs = Blobs::open(&restored.dir.blobs()).unwrap();
            for blob in blobs.list().unwrap() {
                blobs.verify(&blob.sha256).unwrap();
            }
            assert_eq!(blobs.list().unwrap().len(), 3);
        }
    }

    #[tokio::test]
    async fn a_backup_overwrites_nothing_and_neither_does_a_restore() {
        let dir = tempfile::tempdir().unwrap();
        let (out, opened, _) = backed_up(dir.path()).await;
        let blobs = Blobs::open(&opened.dir.blobs()).unwrap();
        let error = backup(opened.store.as_ref(), &blobs, &out, |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), crate::StoreErrorKind::BackupExists);

        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        let url = format!("sled:{}", target.display());
        fs::write(target.join("precious"), "x").unwrap();
        let error = restore(&out, &url, |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), crate::StoreErrorKind::RestoreTargetNotEmpty);

        fs::remove_file(target.join("precious")).unwrap();
        restore(&out, &url, |_| {}).await.unwrap();
        let error = restore(&out, "memory:", |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), crate::StoreErrorKind::UrlInvalid);
    }

    #[tokio::test]
    async fn any_flipped_bit_and_any_cut_is_damage_that_leaves_no_target() {
        let dir = tempfile::tempdir().unwrap();
        let (out, _, _) = backed_up(dir.path()).await;
        let sound = fs::read(&out).unwrap();
        let target = dir.path().join("target");
        let url = format!("sled:{}", target.display());
        let edges = (0..64).chain(sound.len() - 128..sound.len());
        let places: Vec<usize> = edges.chain((64..sound.len() - 128).step_by(4001)).collect();

        for &place in &places {
            let mut flipped = sound.clone();
            flipped[place] ^= 1 << (place % 8);
            for bytes in [&flipped[..], &sound[..place]] {
                fs::write(&out, bytes).unwrap();
                let error = restore(&out, &url, |_| {}).await.unwrap_err();
                assert_eq!(
                    error.kind(),
                    crate::StoreErrorKind::BackupDamaged,
                    "at {place}: {error}"
                );
            }
        }

        let longer: Vec<u8> = sound.iter().copied().chain([0]).collect();
        fs::write(&out, longer).unwrap();
        assert_eq!(
            restore(&out, &url, |_| {}).await.unwrap_err().kind(),
            crate::StoreErrorKind::BackupDamaged
        );
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [out]);
    }

    #[tokio::test]
    async fn a_backup_of_a_damaged_blob_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let opened = filled("memory:").await;
        let blobs = Blobs::open(&opened.dir.blobs()).unwrap();
        let blob = blobs.put(b"a plan").unwrap();
        let name = hex::encode(blob.sha256);
        fs::write(opened.dir.blobs().join(&name[..2]).join(name), b"a plot").unwrap();

        let out = dir.path().join("backup");
        let error = backup(opened.store.as_ref(), &blobs, &out, |_| {}).await.unwrap_err();

        assert_eq!(error.kind(), crate::StoreErrorKind::BlobDamaged);
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
    }
}
