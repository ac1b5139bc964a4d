//! Content-addressed files: logs, plans, artifacts, named by the SHA-256 of their bytes.
//!
//! A blob appears whole and durable or not at all, and never changes. Everything here blocks, so
//! call it where blocking is allowed. Not here: deleting blobs, and knowing who refers to one.

use std::{
    fs::{self, File, Metadata},
    io::{self, ErrorKind, Read, Write as _},
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::{
    READ_BYTES_MAX, StoreError,
    disk_space::DiskSpace,
    durable_fs::{self, OWNER_ONLY_DIRECTORY},
    recent::Recent,
};

/// Name prefix of blobs that are still being written.
pub(crate) const UNFINISHED_PREFIX: &str = ".put-";

/// What is being done when a blob cannot be written.
const WRITING: &str = "writing a blob";
/// Bytes moved at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// After so many bytes of a blob the space on the disk is looked at again: a fraction of what is
/// kept free.
const CHECKED_EVERY_BYTES: u64 = 4 * 1024 * 1024;

/// Blobs remembered as verified, per generation.
const VERIFIED_MAX: usize = 4096;

/// The name of a blob, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobRef {
    /// Its bytes.
    pub size: u64,
    /// Their digest.
    pub sha256: [u8; 32],
}

/// A blob on its way in, in a file that goes when this does.
#[derive(Debug)]
pub struct UnfinishedBlob {
    file: NamedTempFile,
    digest: Sha256,
    size: u64,
    disk_space: DiskSpace,
}

impl UnfinishedBlob {
    /// Reads the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let before = self.size / CHECKED_EVERY_BYTES;
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        // A commit that began while there was room must not meet a disk that a copy has filled
        // since: the store would stop for good.
        if self.size / CHECKED_EVERY_BYTES > before {
            self.disk_space.check(0)?;
        }
        self.file.write_all(bytes).map_err(StoreError::while_doing(WRITING))
    }

    /// The name of what was written so far.
    pub fn name(&self) -> BlobRef {
        BlobRef { size: self.size, sha256: self.digest.clone().finalize().into() }
    }
}

/// A directory of blobs.
#[derive(Debug)]
pub struct Blobs {
    directory: PathBuf,
    disk_space: DiskSpace,
    /// Files whose digest this process found right, as they were then.
    verified: Mutex<Recent<[u8; 32], Stamp>>,
}

/// Tells a file from what is put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Blobs {
    /// The blobs in `directory`, which is created if it is missing.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        create_directory(directory)?;
        let verified = Mutex::new(Recent::new(VERIFIED_MAX));
        let disk_space = DiskSpace::of(directory);
        Ok(Self { directory: directory.to_owned(), disk_space, verified })
    }

    /// The space on their disk.
    pub fn disk_space(&self) -> &DiskSpace {
        &self.disk_space
    }

    /// Keeps `bytes`. Does nothing but say their name when they are there already.
    pub fn put(&self, bytes: &[u8]) -> Result<BlobRef, StoreError> {
        let sha256 = Sha256::digest(bytes).into();
        let blob = BlobRef { size: bytes.len() as u64, sha256 };
        if self.is_sound(&blob) {
            // Another thread may have renamed it a moment ago and not have synced the name yet. An
            // event that names the blob is written as soon as this returns.
            self.sync_names(&sha256)?;
            return Ok(blob);
        }
        self.put_read(bytes)
    }

    /// Keeps a copy of the file at `path`, without ever holding it in memory.
    pub fn put_file(&self, path: &Path) -> Result<BlobRef, StoreError> {
        let (file, bytes) = self.open_to_keep(path)?;
        let unfinished = self.copied(file, bytes)?;
        self.keep(unfinished)
    }

    /// As [`Blobs::put_file`], if the file has the bytes that `expected` names. Answers whether it
    /// has; else nothing is kept, so that wrong files do not stay where nothing removes them.
    pub fn put_file_as(&self, path: &Path, expected: &BlobRef) -> Result<bool, StoreError> {
        let (file, bytes) = self.open_to_keep(path)?;
        if bytes != expected.size {
            return Ok(false);
        }
        let unfinished = self.copied(file, bytes)?;
        if unfinished.name() != *expected {
            return Ok(false);
        }
        self.keep(unfinished).map(|_| true)
    }

    fn open_to_keep(&self, path: &Path) -> Result<(File, u64), StoreError> {
        let opening = StoreError::while_doing("opening a file to keep");
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        opened.map(|(bytes, file)| (file, bytes)).map_err(opening)
    }

    /// Keeps what `source` yields, without ever holding it in memory.
    pub fn put_read(&self, source: impl Read) -> Result<BlobRef, StoreError> {
        let unfinished = self.copied(source, 0)?;
        self.keep(unfinished)
    }

    /// What `source` yields, about `bytes` bytes if that is known, not kept yet.
    fn copied(&self, mut source: impl Read, bytes: u64) -> Result<UnfinishedBlob, StoreError> {
        let mut unfinished = self.begin(bytes)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = match source.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(StoreError::while_doing("reading a blob to keep")(error)),
            };
            unfinished.write(&chunk[..read])?;
        }
        Ok(unfinished)
    }

    /// A blob to be written piece by piece, of about `bytes` bytes if that is known. It is gone
    /// again unless it is kept.
    pub fn begin(&self, bytes: u64) -> Result<UnfinishedBlob, StoreError> {
        self.disk_space.check(bytes)?;
        let mut builder = tempfile::Builder::new();
        // In the same directory as the blobs: a rename across file systems would be a copy.
        let file = builder.prefix(UNFINISHED_PREFIX).tempfile_in(&self.directory);
        let file = file.map_err(StoreError::while_doing(WRITING))?;
        let disk_space = self.disk_space.clone();
        Ok(UnfinishedBlob { file, digest: Sha256::new(), size: 0, disk_space })
    }

    /// Keeps what was written of a blob as the whole of it.
    pub fn keep(&self, unfinished: UnfinishedBlob) -> Result<BlobRef, StoreError> {
        let blob = unfinished.name();
        // A damaged one is replaced: the right bytes are at hand.
        if !self.is_sound(&blob) {
            let file = unfinished.file;
            // Bytes, then name: a name without its bytes would be a damaged blob after a power cut.
            file.as_file().sync_data().map_err(StoreError::while_doing(WRITING))?;
            let path = self.path(&blob.sha256);
            create_directory(path.parent().unwrap_or(&self.directory))?;
            file.persist(path).map_err(StoreError::while_doing(WRITING))?;
        }
        self.sync_names(&blob.sha256)?;
        Ok(blob)
    }

    /// A reader of a whole blob. It fails at the end if the bytes were not those of `sha256`.
    pub fn open_read(&self, sha256: &[u8; 32]) -> Result<BlobReader, StoreError> {
        let file = self.file(sha256)?;
        Ok(BlobReader { file, expected: *sha256, digest: Sha256::new(), ended: false })
    }

    /// The bytes of a blob in `range`, cut to its end and to [`READ_BYTES_MAX`].
    ///
    /// The whole blob is verified when this process first reads it, and again when its file was
    /// replaced or written since.
    pub fn get(&self, sha256: &[u8; 32], range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let size = self.verify(sha256)?;
        let start = range.start.min(size);
        let len = range.end.min(size).saturating_sub(start).min(READ_BYTES_MAX as u64);
        let len = usize::try_from(len).expect("BUG: a page is bounded");
        let mut bytes = vec![0; len];
        let read = self.file(sha256)?.read_exact_at(&mut bytes, start);
        read.map_err(StoreError::while_doing("reading a blob"))?;
        Ok(bytes)
    }

    /// Computes the digest of a blob again, unless this process did; says how long it is.
    pub fn verify(&self, sha256: &[u8; 32]) -> Result<u64, StoreError> {
        let doing = "reading a blob";
        let file = self.file(sha256)?;
        let stamp = Stamp::of(&file.metadata().map_err(StoreError::while_doing(doing))?);
        // A digest of a large log for every page of it would make reading quadratic. What is put in
        // its place, or written into it, has another stamp.
        if self.verified().get(sha256, |_| 1) == Some(stamp) {
            return Ok(stamp.size);
        }
        let mut reader =
            BlobReader { file, expected: *sha256, digest: Sha256::new(), ended: false };
        match io::copy(&mut reader, &mut io::sink()) {
            Ok(_) => {
                self.verified().insert(*sha256, stamp, 1);
                Ok(stamp.size)
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(StoreError::BlobDamaged { sha256: *sha256 })
            }
            Err(error) => Err(StoreError::while_doing(doing)(error)),
        }
    }

    /// All blobs, in the order of their digests.
    pub fn list(&self) -> Result<Vec<BlobRef>, StoreError> {
        let mut blobs = Vec::new();
        for directory in names_in(&self.directory)? {
            // Unfinished blobs and other people's files are not blobs.
            if directory.file_name().is_none_or(|name| name.len() != 2) {
                continue;
            }
            for path in names_in(&directory)? {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let mut sha256 = [0; 32];
                if hex::decode_to_slice(name, &mut sha256).is_err() {
                    continue;
                }
                let metadata = fs::metadata(&path);
                let size = metadata.map_err(StoreError::while_doing("listing blobs"))?.len();
                blobs.push(BlobRef { size, sha256 });
            }
        }
        blobs.sort_by_key(|blob| blob.sha256);
        Ok(blobs)
    }

    /// Says whether the blob is there with the right bytes.
    pub fn is_sound(&self, blob: &BlobRef) -> bool {
        self.verify(&blob.sha256).is_ok_and(|size| size == blob.size)
    }

    /// `ab/ab…`, so that no directory grows too long.
    fn path(&self, sha256: &[u8; 32]) -> PathBuf {
        let name = hex::encode(sha256);
        self.directory.join(&name[..2]).join(name)
    }

    fn file(&self, sha256: &[u8; 32]) -> Result<File, StoreError> {
        File::open(self.path(sha256)).map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                return StoreError::BlobMissing { sha256: *sha256 };
            }
            StoreError::while_doing("opening a blob")(error)
        })
    }

    /// Makes the name of a blob durable; a blob that was there may have been put just before.
    fn sync_names(&self, sha256: &[u8; 32]) -> Result<(), StoreError> {
        self.path(sha256)
            .parent()
            .map_or(Ok(()), durable_fs::sync_directory)
            .map_err(StoreError::while_doing(WRITING))
    }

    fn verified(&self) -> std::sync::MutexGuard<'_, Recent<[u8; 32], Stamp>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn create_directory(path: &Path) -> Result<(), StoreError> {
    let created = durable_fs::create_directory(path, OWNER_ONLY_DIRECTORY);
    created.map_err(StoreError::while_doing(WRITING))
}

fn names_in(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(directory).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()
    });
    entries.map_err(StoreError::while_doing("listing blobs"))
}

/// Removes what a process that died left half put. Only the owner of the store directory may.
pub(crate) fn remove_unfinished(directory: &Path) -> Result<(), StoreError> {
    for path in names_in(directory)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(UNFINISHED_PREFIX) {
            fs::remove_file(&path).map_err(StoreError::while_doing("removing half a blob"))?;
        }
    }
    Ok(())
}

/// Reads a blob from its start, and checks the digest at its end.
#[derive(Debug)]
pub struct BlobReader {
    file: File,
    expected: [u8; 32],
    digest: Sha256,
    ended: bool,
}

impl Read for BlobReader {
    /// Fails with [`ErrorKind::InvalidData`] at the end of a damaged blob.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        let read = self.file.read(buffer)?;
        self.digest.update(&buffer[..read]);
        if read == 0 {
            self.ended = true;
            let found: [u8; 32] = self.digest.clone().finalize().into();
            if found != self.expected {
                let damaged = StoreError::BlobDamaged { sha256: self.expected };
                return Err(io::Error::new(ErrorKind::InvalidData, damaged));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StoreErrorKind;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&dir.path().join("blobs")).unwrap();
        (dir, blobs)
    }

    #[test]
    fn a_file_that_does_not_fit_the_disk_is_refused_before_it_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&folder.path().join("blobs")).unwrap();
        let path = folder.path().join("large");
        // Without bytes of its own: a hole takes no space where it stands, and would in a copy.
        File::create(&path).unwrap().set_len(1 << 42).unwrap();

        assert!(matches!(blobs.put_file(&path), Err(StoreError::Full(_))));

        assert_eq!(fs::read_dir(folder.path().join("blobs")).unwrap().count(), 0);
    }

    #[test]
    fn a_file_of_other_bytes_than_were_said_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&folder.path().join("blobs")).unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "right").unwrap();
        let named = |bytes: &[u8]| BlobRef {
            size: bytes.len() as u64,
            sha256: Sha256::digest(bytes).into(),
        };

        for other in [&b"wrong"[..], b"longer"] {
            assert!(!blobs.put_file_as(&path, &named(other)).unwrap());
        }
        assert_eq!(blobs.list().unwrap(), []);
        assert!(blobs.put_file_as(&path, &named(b"right")).unwrap());
        assert_eq!(blobs.list().unwrap(), [named(b"right")]);
    }

    #[test]
    fn what_was_put_is_read_back_whole_and_in_parts() {
        let (_dir, blobs) = blobs();

        let blob = blobs.put(b"0123456789").unwrap();

        assert_eq!(blob.size, 10);
        assert_eq!(blob.sha256, <[u8; 32]>::from(Sha256::digest(b"0123456789")));
        assert_eq!(blobs.get(&blob.sha256, 0..u64::MAX).unwrap(), b"0123456789");
        assert_eq!(blobs.get(&blob.sha256, 3..6).unwrap(), b"345");
        assert_eq!(blobs.get(&blob.sha256, 8..99).unwrap(), b"89");
        assert_eq!(blobs.get(&blob.sha256, 50..60).unwrap(), b"");
        let mut whole = String::new();
        blobs.open_read(&blob.sha256).unwrap().read_to_string(&mut whole).unwrap();
        assert_eq!(whole, "0123456789");
    }

    #[test]
    fn putting_twice_keeps_one_file_and_leaves_no_half() {
        let (dir, blobs) = blobs();
        let file = dir.path().join("big");
        let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::write(&file, &bytes).unwrap();

        let first = blobs.put_file(&file).unwrap();
        let inode = fs::metadata(blobs.path(&first.sha256)).unwrap().ino();
        assert_eq!(blobs.put_file(&file).unwrap(), first);
        assert_eq!(blobs.put(&bytes).unwrap(), first);

        assert_eq!(fs::metadata(blobs.path(&first.sha256)).unwrap().ino(), inode);
        assert_eq!(blobs.list().unwrap(), [first]);
        assert_eq!(names_in(&blobs.directory).unwrap().len(), 1, "only the fan-out directory");
    }

    #[test]
    fn a_missing_blob_is_named() {
        let (_dir, blobs) = blobs();

        let error = blobs.get(&[0xab; 32], 0..1).unwrap_err();

        assert_eq!(error.kind(), StoreErrorKind::BlobMissing);
        assert!(error.to_string().contains("abababab"), "{error}");
        assert_eq!(blobs.open_read(&[0xab; 32]).unwrap_err().kind(), StoreErrorKind::BlobMissing);
    }

    #[test]
    fn a_damaged_blob_is_noticed_on_every_way_and_healed_by_putting_it_again() {
        let (_dir, blobs) = blobs();
        let blob = blobs.put(b"the plan").unwrap();
        blobs.verify(&blob.sha256).unwrap();
        fs::write(blobs.path(&blob.sha256), b"the pla!").unwrap();

        assert_eq!(blobs.verify(&blob.sha256).unwrap_err().kind(), StoreErrorKind::BlobDamaged);
        assert_eq!(blobs.get(&blob.sha256, 0..2).unwrap_err().kind(), StoreErrorKind::BlobDamaged);
        let read = io::copy(&mut blobs.open_read(&blob.sha256).unwrap(), &mut io::sink());
        assert_eq!(read.unwrap_err().kind(), ErrorKind::InvalidData);

        blobs.put(b"the plan").unwrap();
        assert_eq!(blobs.get(&blob.sha256, 0..99).unwrap(), b"the plan");
    }

    #[test]
    fn half_a_blob_is_removed_by_the_next_owner() {
        let (_dir, blobs) = blobs();
        let kept = blobs.put(b"kept").unwrap();
        fs::write(blobs.directory.join(".put-x"), b"half").unwrap();

        remove_unfinished(&blobs.directory).unwrap();

        assert!(!blobs.directory.join(".put-x").exists());
        assert_eq!(blobs.list().unwrap(), [kept]);
    }
}
