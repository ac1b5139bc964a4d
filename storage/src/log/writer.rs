//! One group commit: who may append, what is written, in one atomic and durable write.
//!
//! The writer alone knows where every stream ends, so appends are decided here, in the order in
//! which they were queued, each seeing the ones before it.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use super::{
    block::{Filling, Tail},
    high_water::HighWaterMark,
    index::{Extent, block_key, cost_of, entry_of, stream_key},
    reader::Reader,
    record::{NewRecord, Position, Version},
};
use crate::{AppendError, Appended, error::StoreError, kv::Entry, recent::Recent};

/// Stream ends that one generation of the cache keeps; others are looked up in the index.
const HEADS_MAX: usize = 32 * 1024;

/// Most appends of one commit.
///
/// The ends that a commit has moved are in the cache only, until it is durable. One that was
/// forgotten before would be looked up in the index, as it was before the commit, and a second
/// append at the same version would be taken. What the cache got last it keeps for a generation.
pub(crate) const COMMIT_APPENDS_MAX: usize = HEADS_MAX;

/// An append that was queued.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) stream: Arc<str>,
    pub(crate) expected: Version,
    pub(crate) records: Vec<NewRecord>,
}

/// What became of a draft.
pub(crate) type Verdict = Result<Appended, AppendError>;

/// The one writer of a log.
#[derive(Debug)]
pub(crate) struct Writer {
    reader: Arc<Reader>,
    tail: Tail,
    heads: Recent<Arc<str>, Version>,
    high_water: HighWaterMark,
}

/// The blocks of a commit that is being put together.
struct Commit {
    blocks: Vec<Filling>,
    filling: Filling,
    extents: Vec<(Arc<str>, Extent)>,
    /// For each stream in the block that is being filled, its place in `extents`.
    extent_of: HashMap<Arc<str>, usize>,
}

impl Writer {
    /// A writer that continues at `tail`.
    pub(crate) fn new(reader: Arc<Reader>, tail: Tail, high_water: HighWaterMark) -> Self {
        Self { reader, tail, heads: Recent::new(HEADS_MAX), high_water }
    }

    /// Decides `drafts` in order and makes those that are in time durable, all together.
    ///
    /// After an error nothing is known about the disk, and the writer must not be used again.
    pub(crate) fn commit(&mut self, drafts: Vec<Draft>) -> Result<Vec<Verdict>, StoreError> {
        let mut commit = Commit::after(&self.tail);
        let verdicts: Vec<Verdict> =
            drafts.into_iter().map(|draft| self.decide(&mut commit, draft)).collect();
        let (blocks, extents) = commit.finish();
        // Every draft was refused: no write, no sync.
        let Some(last) = blocks.last() else { return Ok(verdicts) };
        let tail = last.tail();
        self.write(blocks, extents)?;
        self.tail = tail;
        // After the write, never before: a mark that is ahead of the log would report a rollback
        // that did not happen, and the store would be refused.
        self.high_water.advance(&tail)?;
        Ok(verdicts)
    }

    /// Newest position that is durable.
    pub(crate) fn position(&self) -> Position {
        self.tail.position
    }

    /// Makes the high-water mark durable, before the store closes.
    pub(crate) fn close(&mut self) -> Result<(), StoreError> {
        self.high_water.sync()
    }

    fn decide(&mut self, commit: &mut Commit, draft: Draft) -> Verdict {
        let Draft { stream, expected, records } = draft;
        // The cache holds the ends that earlier drafts of this same commit moved; the index does
        // not know them yet. See `COMMIT_APPENDS_MAX` for why none of them is forgotten meanwhile.
        let actual = match self.heads.get(&stream, |_| 1) {
            Some(head) => head,
            None => self.reader.head(&stream)?,
        };
        // A loser costs nothing: the others of the commit are written without it.
        if actual != expected {
            return Err(AppendError::Conflict { stream: stream.to_string(), expected, actual });
        }
        let first = commit.next_position();
        let mut version = expected;
        for record in &records {
            version += 1;
            commit.push(&stream, version, record);
        }
        // Before it is durable. If the commit fails the store stops, and no append follows.
        self.heads.insert(stream, version, 1);
        Ok(Appended { first, last: commit.next_position() - 1, version })
    }

    fn write(
        &self,
        blocks: Vec<Filling>,
        extents: Vec<(Arc<str>, Extent)>,
    ) -> Result<(), StoreError> {
        let first = blocks.first().map_or(self.tail.position + 1, Filling::first);
        // What this block says of the index must hold for what is written together with it: the
        // entries of `due` go into the same atomic write, so they count as indexed already.
        let (due, indexed_below) = {
            let unindexed = self.reader.unindexed();
            let due = unindexed.due();
            let oldest = unindexed.oldest_without(&due).unwrap_or(first);
            (due, oldest)
        };
        let mut entries: Vec<Entry> = Vec::with_capacity(blocks.len() + due.len());
        let (mut cost, mut written) = (0, Vec::with_capacity(blocks.len()));
        for block in blocks {
            let first = block.first();
            let value = block.seal(indexed_below);
            cost += cost_of(value.len());
            written.push((first, Bytes::copy_from_slice(&value)));
            entries.push((block_key(first).to_vec(), value));
        }
        for (stream, extents) in &due {
            let version = extents.first().map_or(0, |extent| extent.version);
            entries.push((stream_key(stream, version), entry_of(extents)));
        }
        // The only write of the log. All keys or none: an index entry without its block would be
        // damage, and a block without the entries that it calls written would hide records.
        let put = self.reader.kv.put(entries);
        put.map_err(|error| error.at(first, "committing records"))?;
        // Only now, when they are durable: no reader may see a record that a power cut can remove.
        for (first, value) in written {
            self.reader.remember(first, value);
        }
        // Readers look at this tail before the index, so what moves to the index between their two
        // looks is seen twice and never missed.
        let mut unindexed = self.reader.unindexed();
        unindexed.forget_indexed(due.iter().map(|(stream, _)| stream));
        for (stream, extent) in extents {
            unindexed.push(&stream, extent);
        }
        unindexed.add_cost(cost);
        Ok(())
    }
}

impl Commit {
    fn after(tail: &Tail) -> Self {
        Self {
            blocks: Vec::new(),
            filling: Filling::after(tail),
            extents: Vec::new(),
            extent_of: HashMap::new(),
        }
    }

    fn next_position(&self) -> Position {
        self.filling.next_position()
    }

    fn push(&mut self, stream: &Arc<str>, version: Version, record: &NewRecord) {
        if self.filling.is_full_for(record.frame_bytes(stream)) {
            // The next block begins with the hash this one ends with: the chain has no seam.
            let next = Filling::after(&self.filling.tail());
            self.blocks.push(std::mem::replace(&mut self.filling, next));
            // An extent is in one block, so every stream begins a new one here.
            self.extent_of.clear();
        }
        self.filling.push(stream, version, &record.kind, &record.bytes);
        if let Some(&index) = self.extent_of.get(stream) {
            self.extents[index].1.count += 1;
            return;
        }
        let extent = Extent { version, count: 1, block: self.filling.first() };
        self.extent_of.insert(Arc::clone(stream), self.extents.len());
        self.extents.push((Arc::clone(stream), extent));
    }

    fn finish(mut self) -> (Vec<Filling>, Vec<(Arc<str>, Extent)>) {
        if !self.filling.is_empty() {
            self.blocks.push(self.filling);
        }
        (self.blocks, self.extents)
    }
}
