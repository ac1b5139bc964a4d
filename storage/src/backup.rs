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

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{BufWriter, ErrorKind, Read, Seek as _, Write},
    path::{Path, PathBuf},
};

use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};

use crate::{
    AppendError, Appended, Blobs, EventStore, RECORD_BYTES_MAX, StoreError,
    backend::Directory,
    durable_fs::parent_of,
    error::{BackupDamage, Damage, UrlFault},
    log::record::{
        CHAIN_START, FRAME_FIXED_BYTES, NewRecord, Position, RunningHash, Version, frame_at,
    },
    open::Opened,
    store_dir::sync_directory,
    store_url::StoreUrl,
    unfinished,
};

const HEADER: &[u8] = b"towpath backup 1\n";
const DIGEST_BYTES: u64 = 32;

/// Records fetched at once.
const PAGE_MAX: usize = 4096;

/// Bytes moved at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Longest frame: the bounds of its parts, which are lengths of two bytes and a payload.
const FRAME_BYTES_MAX: usize = FRAME_FIXED_BYTES + 2 * 65_535 + RECORD_BYTES_MAX;

/// Bytes of consecutive records of a stream that are restored as one append, and how many such
/// appends may wait: together far below what the queue takes.
const APPEND_BYTES: usize = 512 * 1024;
const APPENDS_WAITING_MAX: usize = 32;

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
    if out.exists() {
        return Err(StoreError::BackupExists { path: out.to_owned() });
    }
    let directory = parent_of(out);
    let file = unfinished::backup_file(directory).map_err(StoreError::while_doing(doing))?;
    let mut digested = Digested::new(BufWriter::with_capacity(CHUNK_BYTES, file));
    digested.put(HEADER)?;
    let (records, hash) = records_into(&mut digested, store, &mut progress).await?;
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
    file.persist_noclobber(out).map_err(|error| {
        if error.error.kind() == ErrorKind::AlreadyExists {
            return StoreError::BackupExists { path: out.to_owned() };
        }
        StoreError::while_doing(doing)(error.error)
    })?;
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
    let tail = *store.watch().borrow();
    let (mut position, mut hash) = (0, CHAIN_START);
    let mut frame = Vec::new();
    while position < tail {
        let page = store.read_all(position, PAGE_MAX).await?;
        if page.is_empty() {
            return Err(StoreError::Damaged { position: position + 1, what: Damage::Hole });
        }
        for record in page.iter().take_while(|record| record.position <= tail) {
            frame.clear();
            frame.push(b'R');
            record.frame_into(&mut frame);
            hash = record.hash_after(&hash);
            position += 1;
            if record.position != position || record.hash != hash {
                return Err(StoreError::Damaged { position, what: Damage::HashDiffers });
            }
            out.put(&frame)?;
        }
        progress(out.bytes);
    }
    Ok((position, hash))
}

/// Restores the backup `file` into a new store at `url`, through the normal way of appending.
///
/// The whole file is verified first. The store appears at `url` only when it is complete and its
/// running hash is that of the backup; after an error nothing is left there. Calls `progress` with
/// the bytes of the backup that are restored.
pub async fn restore(
    file: &Path,
    url: &str,
    mut progress: impl FnMut(u64),
) -> Result<BackedUp, StoreError> {
    restore_to(file, &StoreUrl::parse(url)?, &mut progress).await
}

/// [`restore`], to a URL that was read.
///
/// Only a store that lies whole in its directory can be completed aside and renamed. One whose log
/// lies elsewhere is restored in place, if that log is empty; after an error a part of it is there,
/// and the next restore is refused.
pub async fn restore_to(
    file: &Path,
    url: &StoreUrl,
    progress: &mut impl FnMut(u64),
) -> Result<BackedUp, StoreError> {
    match url.directory()? {
        Directory::Whole(target) => restore_aside(file, url, &target, progress).await,
        Directory::Beside(target) => {
            refuse_unless_empty(&target)?;
            let mut source = Source::verified(file)?;
            let mut opened = url.open()?;
            if *opened.store.watch().borrow() > 0 {
                return Err(StoreError::RestoreTargetNotEmpty { path: target });
            }
            fill(&mut opened, &mut source, progress).await
        }
        Directory::Temporary => Err(url.invalid(UrlFault::NotDurable)),
    }
}

/// Restores into a directory beside `target` and renames it.
async fn restore_aside(
    file: &Path,
    url: &StoreUrl,
    target: &Path,
    progress: &mut impl FnMut(u64),
) -> Result<BackedUp, StoreError> {
    let doing = "restoring a backup";
    refuse_unless_empty(target)?;
    let mut source = Source::verified(file)?;
    let directory = parent_of(target);
    fs::create_dir_all(directory).map_err(StoreError::while_doing(doing))?;
    // Locked until it has its name: the store's own lock is released before.
    let unfinished = unfinished::restore_directory(directory);
    let (unfinished, _lock) = unfinished.map_err(StoreError::while_doing(doing))?;
    let mut opened = url.moved_to(unfinished.path()).open()?;
    let restored = fill(&mut opened, &mut source, progress).await?;
    drop(opened);
    fs::rename(unfinished.path(), target).map_err(|error| {
        let in_the_way =
            [ErrorKind::DirectoryNotEmpty, ErrorKind::AlreadyExists, ErrorKind::NotADirectory];
        if in_the_way.contains(&error.kind()) {
            return StoreError::RestoreTargetNotEmpty { path: target.to_owned() };
        }
        StoreError::while_doing(doing)(error)
    })?;
    // It has its name now: nothing to remove.
    let _ = unfinished.keep();
    sync_directory(directory)?;
    Ok(restored)
}

fn refuse_unless_empty(target: &Path) -> Result<(), StoreError> {
    match fs::read_dir(target).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(false) | Err(_) => Err(StoreError::RestoreTargetNotEmpty { path: target.to_owned() }),
    }
}

async fn fill(
    opened: &mut Opened,
    source: &mut Source,
    progress: &mut impl FnMut(u64),
) -> Result<BackedUp, StoreError> {
    // The store that was backed up went on: the positions after these were given out before.
    opened.dir.raise_fence_base()?;
    let blobs = Blobs::open(&opened.dir.blobs())?;
    let mut appends = Appends { store: opened, gathered: None, waiting: VecDeque::new(), next: 1 };
    let mut found = 0;
    loop {
        match source.part()? {
            Part::Record { position, stream, version, record } => {
                if found > 0 || position != appends.next {
                    return Err(source.damaged(BackupDamage::Malformed));
                }
                appends.push(source, stream, version, record).await?;
            }
            Part::Blob { size, sha256 } => {
                let blob = blobs.put_read(source.by_ref().take(size))?;
                if blob.size != size || blob.sha256 != sha256 {
                    return Err(source.damaged(BackupDamage::Malformed));
                }
                found += 1;
            }
            Part::End { records, blobs, hash } => {
                appends.finish(source).await?;
                let restored = last_hash(opened.store.as_ref()).await?;
                if (records, blobs, hash) != (appends.next - 1, found, restored) {
                    return Err(source.damaged(BackupDamage::Malformed));
                }
                progress(source.len);
                return Ok(BackedUp { records, blobs, hash, bytes: source.len });
            }
        }
        progress(source.read);
    }
}

async fn last_hash(store: &dyn EventStore) -> Result<RunningHash, StoreError> {
    let tail = *store.watch().borrow();
    let last = store.read_all(tail.saturating_sub(1), 1).await?;
    Ok(last.first().map_or(CHAIN_START, |record| record.hash))
}

/// Records on their way into a store: neighbours of one stream go as one append.
struct Appends<'a> {
    store: &'a Opened,
    gathered: Option<Gathered>,
    waiting: VecDeque<(Position, BoxFuture<'static, Result<Appended, AppendError>>)>,
    /// Position the next record must have.
    next: Position,
}

struct Gathered {
    stream: String,
    expected: Version,
    first: Position,
    bytes: usize,
    records: Vec<NewRecord>,
}

impl Appends<'_> {
    async fn push(
        &mut self,
        source: &Source,
        stream: String,
        version: Version,
        record: NewRecord,
    ) -> Result<(), StoreError> {
        let fits = self.gathered.as_ref().is_some_and(|gathered| {
            gathered.stream == stream
                && gathered.expected + gathered.records.len() as Version + 1 == version
                && gathered.bytes < APPEND_BYTES
        });
        if !fits {
            self.queue();
            while self.waiting.len() > APPENDS_WAITING_MAX {
                self.settle(source).await?;
            }
        }
        let (expected, first) = (version.saturating_sub(1), self.next);
        let gathered = self.gathered.get_or_insert_with(|| Gathered {
            stream,
            expected,
            first,
            bytes: 0,
            records: Vec::new(),
        });
        gathered.bytes += record.frame_bytes(&gathered.stream);
        gathered.records.push(record);
        self.next += 1;
        Ok(())
    }

    fn queue(&mut self) {
        if let Some(Gathered { stream, expected, first, records, .. }) = self.gathered.take() {
            let append = self.store.store.append(&stream, expected, records);
            self.waiting.push_back((first, append));
        }
    }

    async fn settle(&mut self, source: &Source) -> Result<(), StoreError> {
        let Some((first, append)) = self.waiting.pop_front() else { return Ok(()) };
        match append.await {
            Ok(appended) if appended.first == first => Ok(()),
            Err(AppendError::Store(error)) => Err(error),
            Err(AppendError::Full(full)) => Err(full.into()),
            Ok(_)
            | Err(
                AppendError::Conflict { .. }
                | AppendError::TooLarge { .. }
                | AppendError::Empty
                | AppendError::Busy { .. },
            ) => Err(source.damaged(BackupDamage::Malformed)),
        }
    }

    async fn finish(&mut self, source: &Source) -> Result<(), StoreError> {
        self.queue();
        while !self.waiting.is_empty() {
            self.settle(source).await?;
        }
        Ok(())
    }
}

/// A backup whose digest was found right.
struct Source {
    path: PathBuf,
    file: std::io::BufReader<File>,
    len: u64,
    read: u64,
}

enum Part {
    Record { position: Position, stream: String, version: Version, record: NewRecord },
    Blob { size: u64, sha256: [u8; 32] },
    End { records: u64, blobs: u64, hash: RunningHash },
}

impl Source {
    fn verified(path: &Path) -> Result<Self, StoreError> {
        let doing = "reading the backup";
        let file = File::open(path).map_err(StoreError::while_doing(doing))?;
        let len = file.metadata().map_err(StoreError::while_doing(doing))?.len();
        let file = std::io::BufReader::with_capacity(CHUNK_BYTES, file);
        let mut source = Self { path: path.to_owned(), file, len, read: 0 };
        let mut header = vec![0; HEADER.len()];
        source.fill(&mut header)?;
        if header != HEADER {
            return Err(source.damaged(BackupDamage::Header));
        }
        let body = len.checked_sub(HEADER.len() as u64 + DIGEST_BYTES);
        let body = body.ok_or_else(|| source.damaged(BackupDamage::Cut))?;
        let mut digest = Digested::new(std::io::sink());
        digest.put(HEADER)?;
        let copied = std::io::copy(&mut source.by_ref().take(body), &mut digest);
        copied.map_err(StoreError::while_doing(doing))?;
        let mut expected = [0; 32];
        source.fill(&mut expected)?;
        if digest.finish().1 != expected {
            return Err(source.damaged(BackupDamage::Digest));
        }
        let start = HEADER.len() as u64;
        source
            .file
            .seek(std::io::SeekFrom::Start(start))
            .map_err(StoreError::while_doing(doing))?;
        source.read = start;
        Ok(source)
    }

    fn damaged(&self, what: BackupDamage) -> StoreError {
        StoreError::BackupDamaged { path: self.path.clone(), what }
    }

    fn part(&mut self) -> Result<Part, StoreError> {
        let [tag] = self.array()?;
        match tag {
            b'R' => self.record(),
            b'B' => {
                Ok(Part::Blob { size: u64::from_be_bytes(self.array()?), sha256: self.array()? })
            }
            b'E' => Ok(Part::End {
                records: u64::from_be_bytes(self.array()?),
                blobs: u64::from_be_bytes(self.array()?),
                hash: self.array()?,
            }),
            _ => Err(self.damaged(BackupDamage::Malformed)),
        }
    }

    fn record(&mut self) -> Result<Part, StoreError> {
        let len: [u8; 4] = self.array()?;
        let rest = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
        if rest > FRAME_BYTES_MAX {
            return Err(self.damaged(BackupDamage::Malformed));
        }
        let mut bytes = len.to_vec();
        bytes.resize(4 + rest, 0);
        self.fill(&mut bytes[4..])?;
        let frame = frame_at(&bytes).ok_or_else(|| self.damaged(BackupDamage::Malformed))?;
        Ok(Part::Record {
            position: frame.position,
            stream: frame.stream.to_owned(),
            version: frame.version,
            record: NewRecord::new(frame.kind, frame.bytes.to_vec()),
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), StoreError> {
        self.read_exact(bytes).map_err(|error| {
            if error.kind() == ErrorKind::UnexpectedEof {
                return self.damaged(BackupDamage::Cut);
            }
            StoreError::while_doing("reading the backup")(error)
        })
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
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
    use super::*;
    use crate::{BACKENDS, contract::fact, open, verify};

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
        assert_eq!(error.code(), "BACKUP_EXISTS");

        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        let url = format!("sled:{}", target.display());
        fs::write(target.join("precious"), "x").unwrap();
        let error = restore(&out, &url, |_| {}).await.unwrap_err();
        assert_eq!(error.code(), "RESTORE_TARGET_NOT_EMPTY");

        fs::remove_file(target.join("precious")).unwrap();
        restore(&out, &url, |_| {}).await.unwrap();
        let error = restore(&out, "memory:", |_| {}).await.unwrap_err();
        assert_eq!(error.code(), "STORE_URL_INVALID");
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
                assert_eq!(error.code(), "BACKUP_DAMAGED", "at {place}: {error}");
            }
        }

        let longer: Vec<u8> = sound.iter().copied().chain([0]).collect();
        fs::write(&out, longer).unwrap();
        assert_eq!(restore(&out, &url, |_| {}).await.unwrap_err().code(), "BACKUP_DAMAGED");
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

        assert_eq!(error.code(), "BLOB_DAMAGED");
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
    }
}
