//! The index of streams: which blocks hold the records of a stream.
//!
//! The log is the truth; the index is derived from it and written late. A stream that is busy would
//! cost one key per commit, so its extents gather in memory and are written as one entry when there
//! are [`EXTENTS_MAX`] of them, or when the log has moved [`UNINDEXED_COST_MAX`] past the oldest.
//! Every block says up to where the index is complete, and what follows is read again when the
//! store opens.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use super::record::{Position, Version};

/// Runs of one stream that are written as one index entry.
pub(crate) const EXTENTS_MAX: usize = 32;

/// How far the log may run ahead of the index, in bytes of blocks (see [`cost_of`]).
///
/// This is what opening a store reads again: a few milliseconds.
pub(crate) const UNINDEXED_COST_MAX: u64 = 2 * 1024 * 1024;

/// The cost of reading a block of `bytes` again: its bytes and its key.
pub(crate) fn cost_of(bytes: usize) -> u64 {
    bytes as u64 + 4096
}

const LOG_PREFIX: u8 = b'l';
const STREAM_PREFIX: u8 = b's';
const EXTENT_BYTES: usize = 8 + 8 + 4;

/// Consecutive versions of one stream that are in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Its first version.
    pub(crate) version: Version,
    /// How many records.
    pub(crate) count: u32,
    /// First position of the block that holds them.
    pub(crate) block: Position,
}

impl Extent {
    /// Its last version.
    pub(crate) fn last(&self) -> Version {
        self.version + u64::from(self.count) - 1
    }
}

/// The key of the block whose first record is at `position`.
pub(crate) fn block_key(position: Position) -> [u8; 9] {
    let mut key = [LOG_PREFIX; 9];
    key[1..].copy_from_slice(&position.to_be_bytes());
    key
}

/// The position in the key of a block.
pub(crate) fn position_of(key: &[u8]) -> Option<Position> {
    let (&prefix, rest) = key.split_first()?;
    let position = u64::from_be_bytes(rest.try_into().ok()?);
    (prefix == LOG_PREFIX).then_some(position)
}

/// The key of the index entry of `stream` that begins at `version`. The length before the name
/// keeps `run/a` and `run/ab` apart.
pub(crate) fn stream_key(stream: &str, version: Version) -> Vec<u8> {
    let len = u16::try_from(stream.len()).expect("BUG: stream names are bounded");
    let mut key = Vec::with_capacity(1 + 2 + stream.len() + 8);
    key.push(STREAM_PREFIX);
    key.extend_from_slice(&len.to_be_bytes());
    key.extend_from_slice(stream.as_bytes());
    key.extend_from_slice(&version.to_be_bytes());
    key
}

/// The value of an index entry.
pub(crate) fn entry_of(extents: &[Extent]) -> Vec<u8> {
    let mut value = Vec::with_capacity(extents.len() * EXTENT_BYTES);
    for extent in extents {
        value.extend_from_slice(&extent.version.to_be_bytes());
        value.extend_from_slice(&extent.block.to_be_bytes());
        value.extend_from_slice(&extent.count.to_be_bytes());
    }
    value
}

/// The extents of an index entry; `None` when the value is none.
pub(crate) fn extents_of(value: &[u8]) -> Option<Vec<Extent>> {
    let mut extents = Vec::with_capacity(value.len() / EXTENT_BYTES);
    let mut rest = value;
    while !rest.is_empty() {
        let (version, after) = rest.split_first_chunk::<8>()?;
        let (block, after) = after.split_first_chunk::<8>()?;
        let (count, after) = after.split_first_chunk::<4>()?;
        extents.push(Extent {
            version: u64::from_be_bytes(*version),
            count: u32::from_be_bytes(*count),
            block: u64::from_be_bytes(*block),
        });
        rest = after;
    }
    (!extents.is_empty() && extents.iter().all(|extent| extent.count > 0)).then_some(extents)
}

/// Runs that are durable in the log and not yet in the index.
#[derive(Debug, Default)]
pub(crate) struct UnindexedTail {
    streams: HashMap<Arc<str>, UnindexedStream>,
    /// Streams by the age of their oldest extent; entries of streams that were indexed since are
    /// stale.
    oldest_first: VecDeque<(Position, Arc<str>)>,
    /// Streams with enough extents for an entry.
    full: Vec<Arc<str>>,
    /// Cost of all blocks so far.
    cost: u64,
}

#[derive(Debug)]
struct UnindexedStream {
    extents: Vec<Extent>,
    /// `UnindexedTail::cost` when the first of them came.
    since: u64,
}

impl UnindexedTail {
    /// Adds an extent of `stream`, the newest of all.
    pub(crate) fn push(&mut self, stream: &Arc<str>, extent: Extent) {
        if let Some(waiting) = self.streams.get_mut(stream) {
            waiting.extents.push(extent);
            if waiting.extents.len() == EXTENTS_MAX {
                self.full.push(Arc::clone(stream));
            }
            return;
        }
        let waiting = UnindexedStream { extents: vec![extent], since: self.cost };
        self.streams.insert(Arc::clone(stream), waiting);
        self.oldest_first.push_back((extent.block, Arc::clone(stream)));
    }

    /// Counts a block towards the age of what waits.
    pub(crate) fn add_cost(&mut self, cost: u64) {
        self.cost += cost;
    }

    /// The extents of `stream` that wait, oldest first.
    pub(crate) fn extents(&self, stream: &str) -> &[Extent] {
        self.streams.get(stream).map_or(&[], |waiting| &waiting.extents)
    }

    /// The streams whose extents should be written now, with those extents.
    pub(crate) fn due(&self) -> Vec<(Arc<str>, Vec<Extent>)> {
        // Age is measured in bytes of log, not in time: it is what a start has to read again.
        let old = self.oldest_first.iter().filter_map(|(block, stream)| {
            let waiting = self.waiting_since(*block, stream)?;
            Some((stream, waiting))
        });
        let old = old.take_while(|(_, waiting)| waiting.since + UNINDEXED_COST_MAX < self.cost);
        // A map, because a stream can be due for both reasons and must be written once.
        let mut due: HashMap<&Arc<str>, &UnindexedStream> = old.collect();
        due.extend(self.full.iter().filter_map(|stream| self.streams.get_key_value(stream)));
        due.into_iter()
            .map(|(stream, waiting)| (Arc::clone(stream), waiting.extents.clone()))
            .collect()
    }

    /// Forgets the extents of streams that were written.
    pub(crate) fn forget_indexed<'a>(&mut self, streams: impl Iterator<Item = &'a Arc<str>>) {
        for stream in streams {
            self.streams.remove(stream);
        }
        self.full.retain(|stream| self.streams.contains_key(stream));
        // Stale entries are dropped from the front only. Those in the middle are ignored when
        // they are met: finding them here would cost the length of the queue with every commit.
        while let Some((block, stream)) = self.oldest_first.front() {
            if self.waiting_since(*block, stream).is_some() {
                break;
            }
            self.oldest_first.pop_front();
        }
    }

    /// The block of the oldest extent that would wait if those of `without` were written.
    pub(crate) fn oldest_without(&self, without: &[(Arc<str>, Vec<Extent>)]) -> Option<Position> {
        let written: HashSet<&Arc<str>> = without.iter().map(|(stream, _)| stream).collect();
        let mut waiting = self.oldest_first.iter().filter(|(block, stream)| {
            self.waiting_since(*block, stream).is_some() && !written.contains(stream)
        });
        waiting.next().map(|(block, _)| *block)
    }

    fn waiting_since(&self, block: Position, stream: &Arc<str>) -> Option<&UnindexedStream> {
        let waiting = self.streams.get(stream)?;
        (waiting.extents.first()?.block == block).then_some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(version: Version, block: Position) -> Extent {
        Extent { version, count: 1, block }
    }

    #[test]
    fn an_entry_reads_back_and_a_cut_one_does_not() {
        let extents = [extent(1, 1), Extent { version: 2, count: 7, block: 9 }];
        let value = entry_of(&extents);

        assert_eq!(extents_of(&value).unwrap(), extents);
        assert!(extents_of(&value[..value.len() - 1]).is_none());
        assert!(extents_of(&[]).is_none());
    }

    #[test]
    fn a_busy_stream_is_due_after_enough_runs() {
        let mut unindexed = UnindexedTail::default();
        let (busy, calm): (Arc<str>, Arc<str>) = ("busy".into(), "calm".into());
        unindexed.push(&calm, extent(1, 1));
        for n in 1..=EXTENTS_MAX as u64 {
            unindexed.push(&busy, extent(n, n + 1));
        }

        let due = unindexed.due();

        assert_eq!(due.len(), 1);
        assert_eq!((&due[0].0, due[0].1.len()), (&busy, EXTENTS_MAX));
        assert_eq!(unindexed.oldest_without(&due), Some(1));
    }

    #[test]
    fn a_calm_stream_is_due_when_the_log_has_moved_on() {
        let mut unindexed = UnindexedTail::default();
        let calm: Arc<str> = "calm".into();
        unindexed.push(&calm, extent(1, 1));
        assert!(unindexed.due().is_empty());

        unindexed.add_cost(UNINDEXED_COST_MAX + 1);
        let due = unindexed.due();
        assert_eq!(due, [(Arc::clone(&calm), vec![extent(1, 1)])]);
        assert_eq!(unindexed.oldest_without(&due), None);

        unindexed.forget_indexed([&calm].into_iter());
        assert!(unindexed.extents("calm").is_empty());
        assert!(unindexed.oldest_first.is_empty());
    }
}
