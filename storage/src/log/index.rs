//! The index of streams: which blocks hold the records of a stream.
//!
//! The log is the truth; the index is derived from it and written late. A stream that is busy would
//! cost one key per commit, so its runs gather in memory and are written as one entry when there
//! are [`RUNS_MAX`] of them, or when the log has moved [`TRAIL_COST_MAX`] past the oldest. Every
//! block says up to where the index is complete, and what follows is read again when the store
//! opens.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use super::record::{Position, Version};

/// Runs of one stream that are written as one index entry.
pub(crate) const RUNS_MAX: usize = 32;

/// How far the log may run ahead of the index, in bytes of blocks (see [`cost_of`]).
///
/// This is what opening a store reads again: a few milliseconds.
pub(crate) const TRAIL_COST_MAX: u64 = 2 * 1024 * 1024;

/// The cost of reading a block of `bytes` again: its bytes and its key.
pub(crate) fn cost_of(bytes: usize) -> u64 {
    bytes as u64 + 4096
}

const LOG_PREFIX: u8 = b'l';
const STREAM_PREFIX: u8 = b's';
const RUN_BYTES: usize = 8 + 8 + 4;

/// Consecutive versions of one stream that lie in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Its first version.
    pub(crate) version: Version,
    /// How many records.
    pub(crate) count: u32,
    /// First position of the block that holds them.
    pub(crate) block: Position,
}

impl Run {
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
pub(crate) fn entry_of(runs: &[Run]) -> Vec<u8> {
    let mut value = Vec::with_capacity(runs.len() * RUN_BYTES);
    for run in runs {
        value.extend_from_slice(&run.version.to_be_bytes());
        value.extend_from_slice(&run.block.to_be_bytes());
        value.extend_from_slice(&run.count.to_be_bytes());
    }
    value
}

/// The runs of an index entry; `None` when the value is none.
pub(crate) fn runs_of(value: &[u8]) -> Option<Vec<Run>> {
    let mut runs = Vec::with_capacity(value.len() / RUN_BYTES);
    let mut rest = value;
    while !rest.is_empty() {
        let (version, after) = rest.split_first_chunk::<8>()?;
        let (block, after) = after.split_first_chunk::<8>()?;
        let (count, after) = after.split_first_chunk::<4>()?;
        runs.push(Run {
            version: u64::from_be_bytes(*version),
            count: u32::from_be_bytes(*count),
            block: u64::from_be_bytes(*block),
        });
        rest = after;
    }
    (!runs.is_empty() && runs.iter().all(|run| run.count > 0)).then_some(runs)
}

/// Runs that are durable in the log and not yet in the index.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    streams: HashMap<Arc<str>, Waiting>,
    /// Streams by the age of their oldest run; entries of streams that were indexed since are
    /// stale.
    oldest_first: VecDeque<(Position, Arc<str>)>,
    /// Streams with enough runs for an entry.
    full: Vec<Arc<str>>,
    /// Cost of all blocks so far.
    cost: u64,
}

#[derive(Debug)]
struct Waiting {
    runs: Vec<Run>,
    /// `Trail::cost` when the first of them came.
    since: u64,
}

impl Trail {
    /// Adds a run of `stream`, the newest of all.
    pub(crate) fn push(&mut self, stream: &Arc<str>, run: Run) {
        if let Some(waiting) = self.streams.get_mut(stream) {
            waiting.runs.push(run);
            if waiting.runs.len() == RUNS_MAX {
                self.full.push(Arc::clone(stream));
            }
            return;
        }
        let waiting = Waiting { runs: vec![run], since: self.cost };
        self.streams.insert(Arc::clone(stream), waiting);
        self.oldest_first.push_back((run.block, Arc::clone(stream)));
    }

    /// Counts a block towards the age of what waits.
    pub(crate) fn count(&mut self, cost: u64) {
        self.cost += cost;
    }

    /// The runs of `stream` that wait, oldest first.
    pub(crate) fn runs(&self, stream: &str) -> &[Run] {
        self.streams.get(stream).map_or(&[], |waiting| &waiting.runs)
    }

    /// The streams whose runs should be written now, with those runs.
    pub(crate) fn due(&self) -> Vec<(Arc<str>, Vec<Run>)> {
        let old = self.oldest_first.iter().filter_map(|(block, stream)| {
            let waiting = self.waiting_since(*block, stream)?;
            Some((stream, waiting))
        });
        let old = old.take_while(|(_, waiting)| waiting.since + TRAIL_COST_MAX < self.cost);
        let mut due: HashMap<&Arc<str>, &Waiting> = old.collect();
        due.extend(self.full.iter().filter_map(|stream| self.streams.get_key_value(stream)));
        due.into_iter()
            .map(|(stream, waiting)| (Arc::clone(stream), waiting.runs.clone()))
            .collect()
    }

    /// Forgets the runs of streams that were written.
    pub(crate) fn indexed<'a>(&mut self, streams: impl Iterator<Item = &'a Arc<str>>) {
        for stream in streams {
            self.streams.remove(stream);
        }
        self.full.retain(|stream| self.streams.contains_key(stream));
        while let Some((block, stream)) = self.oldest_first.front() {
            if self.waiting_since(*block, stream).is_some() {
                break;
            }
            self.oldest_first.pop_front();
        }
    }

    /// The block of the oldest run that would wait if those of `without` were written.
    pub(crate) fn oldest_without(&self, without: &[(Arc<str>, Vec<Run>)]) -> Option<Position> {
        let written: HashSet<&Arc<str>> = without.iter().map(|(stream, _)| stream).collect();
        let mut waiting = self.oldest_first.iter().filter(|(block, stream)| {
            self.waiting_since(*block, stream).is_some() && !written.contains(stream)
        });
        waiting.next().map(|(block, _)| *block)
    }

    fn waiting_since(&self, block: Position, stream: &Arc<str>) -> Option<&Waiting> {
        let waiting = self.streams.get(stream)?;
        (waiting.runs.first()?.block == block).then_some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(version: Version, block: Position) -> Run {
        Run { version, count: 1, block }
    }

    #[test]
    fn an_entry_reads_back_and_a_cut_one_does_not() {
        let runs = [run(1, 1), Run { version: 2, count: 7, block: 9 }];
        let value = entry_of(&runs);

        assert_eq!(runs_of(&value).unwrap(), runs);
        assert!(runs_of(&value[..value.len() - 1]).is_none());
        assert!(runs_of(&[]).is_none());
    }

    #[test]
    fn a_busy_stream_is_due_after_enough_runs() {
        let mut trail = Trail::default();
        let (busy, calm): (Arc<str>, Arc<str>) = ("busy".into(), "calm".into());
        trail.push(&calm, run(1, 1));
        for n in 1..=RUNS_MAX as u64 {
            trail.push(&busy, run(n, n + 1));
        }

        let due = trail.due();

        assert_eq!(due.len(), 1);
        assert_eq!((&due[0].0, due[0].1.len()), (&busy, RUNS_MAX));
        assert_eq!(trail.oldest_without(&due), Some(1));
    }

    #[test]
    fn a_calm_stream_is_due_when_the_log_has_moved_on() {
        let mut trail = Trail::default();
        let calm: Arc<str> = "calm".into();
        trail.push(&calm, run(1, 1));
        assert!(trail.due().is_empty());

        trail.count(TRAIL_COST_MAX + 1);
        let due = trail.due();
        assert_eq!(due, [(Arc::clone(&calm), vec![run(1, 1)])]);
        assert_eq!(trail.oldest_without(&due), None);

        trail.indexed([&calm].into_iter());
        assert!(trail.runs("calm").is_empty());
        assert!(trail.oldest_first.is_empty());
    }
}
