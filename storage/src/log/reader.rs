//! Reading: every block is verified before a record of it is believed, and a gap is damage.
//!
//! Verified blocks are kept for a while, because streams that are written side by side are in the
//! same blocks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{
    block::Block,
    index::{Extent, UnindexedTail, block_key, extents_of, position_of, stream_key},
    record::{Position, Record, Version},
};
use crate::{
    READ_BYTES_MAX, STREAM_BYTES_MAX,
    error::{Damage, StoreError},
    kv::KvBackend,
    recent::Recent,
};

/// Bytes of verified blocks that one generation of the cache keeps.
const BLOCKS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of blocks, as they were written, that one generation of the cache keeps.
const WRITTEN_BYTES_MAX: usize = 512 * 1024;

/// Extents that are read on a thread that must not block: at most as many blocks are verified, and
/// each takes less than a millisecond.
const NEWEST_EXTENTS_MAX: usize = 4;

/// Blocks, or index entries, that are fetched from the backend at once.
const FETCH_MAX: usize = 16;

/// What readers and the writer share.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) kv: Arc<dyn KvBackend>,
    /// Runs the index does not know yet.
    pub(crate) unindexed: Mutex<UnindexedTail>,
    blocks: Mutex<Recent<Position, Arc<Block>>>,
    /// Blocks as the writer has just made them durable. Kept apart from those that were verified:
    /// most are never read, and verifying them would cost every commit.
    written: Mutex<Recent<Position, Bytes>>,
}

/// A page that is being filled.
struct Page {
    records: Vec<Record>,
    limit: usize,
    bytes: usize,
}

impl Page {
    fn new(limit: usize) -> Self {
        Self { records: Vec::new(), limit, bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.records.len() >= self.limit
    }

    /// Takes `record` if it fits; says whether it did.
    fn takes(&mut self, record: &Record) -> bool {
        let full = self.is_full()
            || (!self.records.is_empty() && self.bytes + record.bytes.len() > READ_BYTES_MAX);
        if !full {
            self.bytes += record.bytes.len();
            self.records.push(record.clone());
        }
        !full
    }
}

impl Reader {
    /// A reader of `kv` with nothing waiting for the index.
    pub(crate) fn new(kv: Arc<dyn KvBackend>) -> Self {
        let blocks = Mutex::new(Recent::new(BLOCKS_BYTES_MAX));
        let written = Mutex::new(Recent::new(WRITTEN_BYTES_MAX));
        Self { kv, unindexed: Mutex::default(), blocks, written }
    }

    /// Remembers a block that has just become durable, as it was written.
    pub(crate) fn remember(&self, first: Position, value: Bytes) {
        let bytes = value.len();
        self.written().insert(first, value, bytes);
    }

    /// As [`Reader::read`], if that needs nothing of the backend and little time. `None`: it does.
    ///
    /// Followers ask for what was written a moment ago, and then whether there is more. Without
    /// this each commit would cost each of them two rounds through a thread that may block.
    pub(crate) fn read_newest(
        &self,
        stream: &str,
        after: Version,
        limit: usize,
    ) -> Option<Result<Vec<Record>, StoreError>> {
        let mut next = after.checked_add(1)?;
        let extents: Vec<Extent> = {
            let unindexed = self.unindexed();
            let waiting = unindexed.extents(stream);
            // What is indexed lies before the first that waits, and nothing lies between.
            if next < waiting.first()?.version {
                return None;
            }
            let newer = waiting.iter().filter(|extent| extent.last() >= next);
            newer.take(NEWEST_EXTENTS_MAX + 1).copied().collect()
        };
        if extents.len() > NEWEST_EXTENTS_MAX || !extents.iter().all(|it| self.is_known(it.block)) {
            return None;
        }
        let mut page = Page::new(limit);
        for extent in extents {
            match self.extent_into(&mut page, stream, extent, &mut next) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(page.records))
    }

    /// Whether the block that begins at `first` is in memory.
    fn is_known(&self, first: Position) -> bool {
        self.cached(first).is_some() || self.written().get(&first, Bytes::len).is_some()
    }

    /// At most `limit` records after `after`, up to the durable `tail`.
    pub(crate) fn read_all(
        &self,
        after: Position,
        limit: usize,
        tail: Position,
    ) -> Result<Vec<Record>, StoreError> {
        let mut page = Page::new(limit);
        if after >= tail || limit == 0 {
            return Ok(page.records);
        }
        // Up to the durable tail as the caller saw it: blocks of a commit that is being synced may
        // be visible already, and no reader may see a record that a power cut can remove.
        let mut block = self.block_holding(after + 1)?;
        let mut ahead = Vec::new().into_iter();
        loop {
            for record in block.records.iter().filter(|record| record.position > after) {
                if record.position > tail || !page.takes(record) {
                    return Ok(page.records);
                }
            }
            let end = block.tail();
            if end.position >= tail || page.is_full() {
                return Ok(page.records);
            }
            if ahead.len() == 0 {
                ahead = self.blocks_from(end.position + 1)?.into_iter();
            }
            let damaged = |what| StoreError::Damaged { position: end.position + 1, what };
            let next = ahead.next().ok_or_else(|| damaged(Damage::Hole))?;
            if next.first() != end.position + 1 {
                return Err(damaged(Damage::Hole));
            }
            // Both blocks are sound by themselves; only this shows that they belong together.
            if next.before != end.hash {
                return Err(damaged(Damage::HashDiffers));
            }
            block = next;
        }
    }

    /// At most `limit` records of `stream` after `after`.
    pub(crate) fn read(
        &self,
        stream: &str,
        after: Version,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut page = Page::new(limit);
        if after == Version::MAX || limit == 0 {
            return Ok(page.records);
        }
        // The unindexed tail first: what moves to the index meanwhile is then seen twice, not
        // never.
        let waiting = self.unindexed().extents(stream).to_vec();
        let mut next = after + 1;
        loop {
            let indexed = self.indexed_extents(stream, next)?;
            let at_end = indexed.is_empty();
            let before = next;
            let extents = if at_end { &waiting } else { &indexed };
            for extent in extents {
                if extent.last() >= next
                    && !self.extent_into(&mut page, stream, *extent, &mut next)?
                {
                    return Ok(page.records);
                }
            }
            if at_end {
                return Ok(page.records);
            }
            if next == before {
                // Entries that lead nowhere; without this they would be followed for ever.
                let what = Damage::IndexDiffers { stream: stream.to_owned() };
                return Err(StoreError::Damaged { position: 0, what });
            }
        }
    }

    /// The version `stream` ends at.
    pub(crate) fn head(&self, stream: &str) -> Result<Version, StoreError> {
        if let Some(extent) = self.unindexed().extents(stream).last() {
            return Ok(extent.last());
        }
        self.indexed_head(stream)
    }

    /// The version the index of `stream` ends at.
    pub(crate) fn indexed_head(&self, stream: &str) -> Result<Version, StoreError> {
        let extents = self.last_entry(stream, Version::MAX)?;
        Ok(extents.last().map_or(0, Extent::last))
    }

    /// The last block of the log.
    pub(crate) fn last_block(&self) -> Result<Option<Arc<Block>>, StoreError> {
        self.block_at_or_before(Position::MAX)
    }

    /// The block that holds `position`.
    pub(crate) fn block_holding(&self, position: Position) -> Result<Arc<Block>, StoreError> {
        let block = self.block_at_or_before(position)?;
        // The block before a hole is found instead of the missing one.
        let block = block.filter(|block| block.at(position).is_some());
        block.ok_or(StoreError::Damaged { position, what: Damage::Hole })
    }

    /// Some blocks from the one that begins at `first` on.
    pub(crate) fn blocks_from(&self, first: Position) -> Result<Vec<Arc<Block>>, StoreError> {
        let keys = (block_key(first), block_key(Position::MAX));
        let found = self.kv.first_in(&keys.0..=&keys.1, FETCH_MAX);
        let found = found.map_err(|error| error.at(first, "reading the log"))?;
        let verified = found.into_iter().map(|(key, value)| {
            let position = position_of(&key).unwrap_or(first);
            let verified = Block::verified(position, &value);
            verified.map(Arc::new).map_err(|what| StoreError::Damaged { position, what })
        });
        verified.collect()
    }

    fn block_at_or_before(&self, position: Position) -> Result<Option<Arc<Block>>, StoreError> {
        let keys = (block_key(0), block_key(position));
        let found = self.kv.last_in(&keys.0..=&keys.1);
        let Some((key, value)) = found.map_err(|error| error.at(position, "reading the log"))?
        else {
            return Ok(None);
        };
        let first =
            position_of(&key).ok_or(StoreError::Damaged { position, what: Damage::Malformed })?;
        if let Some(block) = self.cached(first) {
            return Ok(Some(block));
        }
        self.verified(first, &value).map(Some)
    }

    /// The block that begins at `first`.
    fn block(&self, first: Position) -> Result<Arc<Block>, StoreError> {
        if let Some(block) = self.cached(first) {
            return Ok(block);
        }
        if let Some(value) = self.written().get(&first, Bytes::len) {
            return self.verified(first, &value);
        }
        let value = self.kv.get(&block_key(first));
        let value = value.map_err(|error| error.at(first, "reading the log"))?;
        let hole = StoreError::Damaged { position: first, what: Damage::Hole };
        self.verified(first, &value.ok_or(hole)?)
    }

    fn cached(&self, first: Position) -> Option<Arc<Block>> {
        self.blocks().get(&first, |block| block.bytes)
    }

    fn verified(&self, first: Position, value: &Bytes) -> Result<Arc<Block>, StoreError> {
        let block = Block::verified(first, value);
        let block = Arc::new(block.map_err(|what| StoreError::Damaged { position: first, what })?);
        self.blocks().insert(first, Arc::clone(&block), block.bytes);
        Ok(block)
    }

    /// Takes the records of `extent` from `next` on; says whether the page can take more.
    fn extent_into(
        &self,
        page: &mut Page,
        stream: &str,
        extent: Extent,
        next: &mut Version,
    ) -> Result<bool, StoreError> {
        let differs = || StoreError::Damaged {
            position: extent.block,
            what: Damage::IndexDiffers { stream: stream.to_owned() },
        };
        if page.is_full() {
            return Ok(false);
        }
        if extent.version > *next {
            return Err(differs());
        }
        let block = self.block(extent.block)?;
        let versions = *next..=extent.last();
        // By stream and version, never by place in the block: what the index says is checked
        // against the records themselves, which the hash chain covers and the index is not.
        let mut records = block
            .records
            .iter()
            .filter(|record| &*record.stream == stream && versions.contains(&record.version));
        for version in versions.clone() {
            let record = records.next().filter(|record| record.version == version);
            if !page.takes(record.ok_or_else(differs)?) {
                return Ok(false);
            }
            *next = version + 1;
        }
        Ok(true)
    }

    /// Runs of the index that reach `next` or lie behind it; empty when the index ends before.
    fn indexed_extents(&self, stream: &str, next: Version) -> Result<Vec<Extent>, StoreError> {
        // Keys are first versions, so the version that is looked for is in the last entry that
        // begins at or before it, or in no entry at all.
        let mut extents = self.last_entry(stream, next)?;
        extents.retain(|extent| extent.last() >= next);
        // A name that no append takes has no key either.
        if !extents.is_empty() || stream.len() > STREAM_BYTES_MAX {
            return Ok(extents);
        }
        let keys = (stream_key(stream, next), stream_key(stream, Version::MAX));
        let found = self.kv.first_in(&keys.0..=&keys.1, FETCH_MAX);
        let found = found.map_err(|error| error.at(0, "reading the index"))?;
        for (_, value) in found {
            extents.extend(entry(stream, &value)?);
        }
        Ok(extents)
    }

    /// The extents of the last index entry that begins at `version` or before.
    fn last_entry(&self, stream: &str, version: Version) -> Result<Vec<Extent>, StoreError> {
        if stream.len() > STREAM_BYTES_MAX {
            return Ok(Vec::new());
        }
        let keys = (stream_key(stream, 0), stream_key(stream, version));
        let found = self.kv.last_in(&keys.0..=&keys.1);
        let found = found.map_err(|error| error.at(0, "reading the index"))?;
        found.map_or_else(|| Ok(Vec::new()), |(_, value)| entry(stream, &value))
    }

    /// The extents that wait for the index.
    pub(crate) fn unindexed(&self) -> MutexGuard<'_, UnindexedTail> {
        self.unindexed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, Recent<Position, Bytes>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocks(&self) -> MutexGuard<'_, Recent<Position, Arc<Block>>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry(stream: &str, value: &[u8]) -> Result<Vec<Extent>, StoreError> {
    let what = Damage::IndexDiffers { stream: stream.to_owned() };
    extents_of(value).ok_or(StoreError::Damaged { position: 0, what })
}
