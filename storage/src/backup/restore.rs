//! A backup becomes a store again.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{ErrorKind, Read, Seek as _},
    path::{Path, PathBuf},
};

use futures_util::future::BoxFuture;

use super::{BackedUp, CHUNK_BYTES, DIGEST_BYTES, Digested, HEADER};
use crate::{
    AppendError, Appended, Blobs, EventStore, RECORD_BYTES_MAX, StoreError,
    backend::Directory,
    durable_fs::{self, parent_of},
    error::{BackupDamage, UrlFault},
    log::record::{
        CHAIN_START, FRAME_FIXED_BYTES, NewRecord, Position, RunningHash, Version, frame_at,
    },
    open::Opened,
    store_dir::sync_directory,
    store_url::StoreUrl,
    unfinished,
};

/// Longest frame: the bounds of its parts, which are lengths of two bytes and a payload.
const FRAME_BYTES_MAX: usize = FRAME_FIXED_BYTES + 2 * 65_535 + RECORD_BYTES_MAX;

/// Bytes of consecutive records of a stream that are restored as one append, and how many such
/// appends may wait: together far below what the queue takes.
const APPEND_BYTES: usize = 512 * 1024;
const APPENDS_WAITING_MAX: usize = 32;

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
            // Before the backup is read, which may take minutes.
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
    // All of it is read twice: half a store made of a file that turns out to be damaged would have
    // to be explained to a user in an emergency.
    let mut source = Source::verified(file)?;
    let directory = parent_of(target);
    durable_fs::create_directory(directory, 0o777).map_err(StoreError::while_doing(doing))?;
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
                // Records after blobs, or with a gap, were not written by `backup`.
                if found > 0 || position != appends.next {
                    return Err(source.damaged(BackupDamage::Malformed));
                }
                appends.push(source, stream, version, record).await?;
            }
            Part::Blob { size, sha256 } => {
                let blob = blobs.put_read(source.by_ref().take(size))?;
                // The digest of the file covers it, so this is a backup that was made wrong.
                if blob.size != size || blob.sha256 != sha256 {
                    return Err(source.damaged(BackupDamage::Malformed));
                }
                found += 1;
            }
            Part::End { records, blobs, hash } => {
                // All of them are answered before the hash is read: it must be that of the last.
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
        // Neighbours only: the records of another stream in between have positions of their own.
        let fits = self.gathered.as_ref().is_some_and(|gathered| {
            gathered.stream == stream
                && gathered.expected + gathered.records.len() as Version + 1 == version
                && gathered.bytes < APPEND_BYTES
        });
        // Records of one stream in a row become one append, because a sync for each record would
        // take hours for a large log.
        if !fits {
            self.queue();
            // A few at once share a sync; all at once would be refused as busy.
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
            // A position that differs means that the backup has records in an order that no store
            // could have written.
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
            // Later versions may add parts. They would have another header, so this byte is damage.
            _ => Err(self.damaged(BackupDamage::Malformed)),
        }
    }

    fn record(&mut self) -> Result<Part, StoreError> {
        let len: [u8; 4] = self.array()?;
        let rest = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
        // Before memory is asked for: a length of four bytes can say four gigabytes.
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
