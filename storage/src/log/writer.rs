//! One group commit: who may append, what is written, in one atomic and durable write.
//!
//! The writer alone knows where every stream ends, so appends are decided here, in the order in
//! which they were queued, each seeing the ones before it.

use std::{collections::HashMap, sync::Arc};

use super::{
    block::{Filling, Tail},
    high_water::Mark,
    index::{Run, block_key, cost_of, entry_of, stream_key},
    reader::Reader,
    record::{NewRecord, Position, Version},
};
use crate::{AppendError, Appended, error::StoreError, kv::Entry, recent::Recent};

/// Stream ends that one generation of the cache keeps; others are looked up in the index.
const HEADS_MAX: usize = 32 * 1024;

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
    mark: Mark,
}

/// The blocks of a commit that is being put together.
struct Commit {
    blocks: Vec<Filling>,
    filling: Filling,
    runs: Vec<(Arc<str>, Run)>,
    /// For each stream in the block that is being filled, its place in `runs`.
    run_of: HashMap<Arc<str>, usize>,
}

impl Writer {
    /// A writer that goes on at `tail`.
    pub(crate) fn new(reader: Arc<Reader>, tail: Tail, mark: Mark) -> Self {
        Self { reader, tail, heads: Recent::new(HEADS_MAX), mark }
    }

    /// Decides `drafts` in order and makes those that are in time durable, all together.
    ///
    /// After an error nothing is known about the disk, and the writer must not be used again.
    pub(crate) fn commit(&mut self, drafts: Vec<Draft>) -> Result<Vec<Verdict>, StoreError> {
        let mut commit = Commit::after(&self.tail);
        let verdicts: Vec<Verdict> =
            drafts.into_iter().map(|draft| self.decide(&mut commit, draft)).collect();
        let (blocks, runs) = commit.finish();
        let Some(last) = blocks.last() else { return Ok(verdicts) };
        let tail = last.tail();
        self.write(blocks, runs)?;
        self.tail = tail;
        self.mark.advance(&tail)?;
        Ok(verdicts)
    }

    /// Newest position that is durable.
    pub(crate) fn position(&self) -> Position {
        self.tail.position
    }

    /// Makes the mark durable, before the store closes.
    pub(crate) fn close(&mut self) -> Result<(), StoreError> {
        self.mark.sync()
    }

    fn decide(&mut self, commit: &mut Commit, draft: Draft) -> Verdict {
        let Draft { stream, expected, records } = draft;
        let actual = match self.heads.get(&stream, |_| 1) {
            Some(head) => head,
            None => self.reader.head(&stream)?,
        };
        if actual != expected {
            return Err(AppendError::Conflict { stream: stream.to_string(), expected, actual });
        }
        let first = commit.next_position();
        let mut version = expected;
        for record in &records {
            version += 1;
            commit.push(&stream, version, record);
        }
        self.heads.insert(stream, version, 1);
        Ok(Appended { first, last: commit.next_position() - 1, version })
    }

    fn write(&self, blocks: Vec<Filling>, runs: Vec<(Arc<str>, Run)>) -> Result<(), StoreError> {
        let first = blocks.first().map_or(self.tail.position + 1, Filling::first);
        let (due, indexed_below) = {
            let trail = self.reader.trail();
            let due = trail.due();
            let oldest = trail.oldest_without(&due).unwrap_or(first);
            (due, oldest)
        };
        let mut entries: Vec<Entry> = Vec::with_capacity(blocks.len() + due.len());
        let mut cost = 0;
        for block in blocks {
            let key = block_key(block.first()).to_vec();
            let value = block.seal(indexed_below);
            cost += cost_of(value.len());
            entries.push((key, value));
        }
        for (stream, runs) in &due {
            let version = runs.first().map_or(0, |run| run.version);
            entries.push((stream_key(stream, version), entry_of(runs)));
        }
        let put = self.reader.shelf.put(entries);
        put.map_err(|error| error.at(first, "committing records"))?;
        let mut trail = self.reader.trail();
        trail.indexed(due.iter().map(|(stream, _)| stream));
        for (stream, run) in runs {
            trail.push(&stream, run);
        }
        trail.count(cost);
        Ok(())
    }
}

impl Commit {
    fn after(tail: &Tail) -> Self {
        Self {
            blocks: Vec::new(),
            filling: Filling::after(tail),
            runs: Vec::new(),
            run_of: HashMap::new(),
        }
    }

    fn next_position(&self) -> Position {
        self.filling.next_position()
    }

    fn push(&mut self, stream: &Arc<str>, version: Version, record: &NewRecord) {
        if self.filling.is_full_for(record.frame_bytes(stream)) {
            let next = Filling::after(&self.filling.tail());
            self.blocks.push(std::mem::replace(&mut self.filling, next));
            self.run_of.clear();
        }
        self.filling.push(stream, version, &record.kind, &record.bytes);
        if let Some(&index) = self.run_of.get(stream) {
            self.runs[index].1.count += 1;
            return;
        }
        let run = Run { version, count: 1, block: self.filling.first() };
        self.run_of.insert(Arc::clone(stream), self.runs.len());
        self.runs.push((Arc::clone(stream), run));
    }

    fn finish(mut self) -> (Vec<Filling>, Vec<(Arc<str>, Run)>) {
        if !self.filling.is_empty() {
            self.blocks.push(self.filling);
        }
        (self.blocks, self.runs)
    }
}
