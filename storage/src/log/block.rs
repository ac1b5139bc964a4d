//! A block: consecutive records as one value of the database underneath.
//!
//! A key costs sled about as much as forty records cost to hash, so a group commit is written as
//! few values as it fits in. A block carries the running hashes before and after it, and is
//! believed only after its hashes were computed again.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::record::{Position, Record, RecordAddress, RunningHash, chain, frame_at, frame_into};
use crate::error::Damage;

/// Body size after which a block takes no further record.
///
/// A larger record has a block of its own, so a value is never larger than the largest record and
/// its names.
pub(crate) const BLOCK_BYTES_TARGET: usize = 48 * 1024;

/// Layout of a block: the first byte of every value.
const BLOCK_FORMAT: u8 = 1;

/// Format (1), first position (8), count (4), indexed below (8), hashes before and after (64) and
/// the seal over all of these (8).
const HEADER_BYTES: usize = SEALED_BYTES + SEAL_BYTES;
const SEALED_BYTES: usize = 1 + 8 + 4 + 8 + 32 + 32;
const SEAL_BYTES: usize = 8;

/// Where a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Newest position.
    pub(crate) position: Position,
    /// The running hash after it.
    pub(crate) hash: RunningHash,
}

/// A block that is being filled.
#[derive(Debug)]
pub(crate) struct Filling {
    first: Position,
    before: RunningHash,
    count: u32,
    after: RunningHash,
    body: Vec<u8>,
}

impl Filling {
    /// An empty block that follows `tail`.
    pub(crate) fn after(tail: &Tail) -> Self {
        Self {
            first: tail.position + 1,
            before: tail.hash,
            count: 0,
            after: tail.hash,
            body: Vec::new(),
        }
    }

    /// Position of its first record.
    pub(crate) fn first(&self) -> Position {
        self.first
    }

    /// Position the next record will get.
    pub(crate) fn next_position(&self) -> Position {
        self.first + u64::from(self.count)
    }

    /// Says whether no record is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Says whether the next record of `bytes` should start another block.
    pub(crate) fn is_full_for(&self, bytes: usize) -> bool {
        !self.is_empty() && self.body.len() + bytes > BLOCK_BYTES_TARGET
    }

    /// The log's end, this block included.
    pub(crate) fn tail(&self) -> Tail {
        Tail { position: self.next_position() - 1, hash: self.after }
    }

    /// Adds the next record of `stream`; its position follows from the block.
    pub(crate) fn push(&mut self, stream: &str, version: u64, kind: &str, bytes: &[u8]) {
        let start = self.body.len();
        let address = RecordAddress { position: self.next_position(), stream, version };
        frame_into(&mut self.body, &address, kind, bytes);
        self.after = chain(&self.after, &self.body[start..]);
        self.count += 1;
    }

    /// The value to store. Every record before `indexed_below` is in the index of streams.
    pub(crate) fn seal(self, indexed_below: Position) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEADER_BYTES + self.body.len());
        value.push(BLOCK_FORMAT);
        value.extend_from_slice(&self.first.to_be_bytes());
        value.extend_from_slice(&self.count.to_be_bytes());
        value.extend_from_slice(&indexed_below.to_be_bytes());
        value.extend_from_slice(&self.before);
        value.extend_from_slice(&self.after);
        let seal = seal_of(&value);
        value.extend_from_slice(&seal);
        value.extend_from_slice(&self.body);
        value
    }
}

fn seal_of(header: &[u8]) -> [u8; SEAL_BYTES] {
    let digest = Sha256::digest(header);
    let mut seal = [0; SEAL_BYTES];
    seal.copy_from_slice(&digest[..SEAL_BYTES]);
    seal
}

/// A block that was read and verified: its hashes were computed again.
#[derive(Debug)]
pub(crate) struct Block {
    /// The running hash before it.
    pub(crate) before: RunningHash,
    /// Every record before this position is in the index of streams.
    pub(crate) indexed_below: Position,
    /// Its records, at least one.
    pub(crate) records: Vec<Record>,
    /// Bytes of the stored value.
    pub(crate) bytes: usize,
}

impl Block {
    /// Position of its first record.
    pub(crate) fn first(&self) -> Position {
        self.records.first().map_or(0, |record| record.position)
    }

    /// The log's end after this block.
    pub(crate) fn tail(&self) -> Tail {
        let last = self.records.last().expect("BUG: a verified block holds a record");
        Tail { position: last.position, hash: last.hash }
    }

    /// The record at `position`, when it is in this block.
    pub(crate) fn at(&self, position: Position) -> Option<&Record> {
        let index = usize::try_from(position.checked_sub(self.first())?).ok()?;
        self.records.get(index)
    }

    /// Reads and verifies `value`, stored under the position `first`.
    pub(crate) fn verified(first: Position, value: &Bytes) -> Result<Self, Damage> {
        // The header has a seal of its own, because the hash chain covers the records only: a
        // changed `indexed below` would make recovery skip records of the index, silently.
        let header = Header::of(value).ok_or(Damage::Malformed)?;
        // The key of the block says the first position: a block under a wrong key was copied or
        // moved.
        if header.first != first || header.count == 0 {
            return Err(Damage::Malformed);
        }
        // The count is not trusted before its records are read: it could request any amount of
        // memory.
        let mut records = Vec::with_capacity(header.count.min(4096) as usize);
        let mut hash = header.before;
        let mut start = HEADER_BYTES;
        let mut names = Names::default();
        for position in first..first + u64::from(header.count) {
            let frame = frame_at(&value[start..]).ok_or(Damage::Malformed)?;
            let end = start + frame.len;
            // Over the stored bytes as they are, and before they are used.
            hash = chain(&hash, &value[start..end]);
            if frame.position != position {
                return Err(Damage::HashDiffers);
            }
            records.push(Record {
                position,
                stream: names.shared(frame.stream),
                version: frame.version,
                kind: names.shared(frame.kind),
                // Shares the block's memory: stored bytes are never copied or encoded again.
                bytes: value.slice(end - frame.bytes.len()..end),
                hash,
            });
            start = end;
        }
        // Also bytes behind the last record: no hash would cover them.
        if start != value.len() || hash != header.after {
            return Err(Damage::HashDiffers);
        }
        let Header { before, indexed_below, .. } = header;
        Ok(Self { before, indexed_below, records, bytes: value.len() })
    }
}

struct Header {
    first: Position,
    count: u32,
    indexed_below: Position,
    before: RunningHash,
    after: RunningHash,
}

impl Header {
    fn of(value: &[u8]) -> Option<Self> {
        let (sealed, rest) = value.split_at_checked(SEALED_BYTES)?;
        if rest.get(..SEAL_BYTES)? != seal_of(sealed) {
            return None;
        }
        let (&format, rest) = sealed.split_first()?;
        let (first, rest) = rest.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let (indexed_below, rest) = rest.split_first_chunk::<8>()?;
        let (before, rest) = rest.split_first_chunk::<32>()?;
        let after = rest.first_chunk::<32>()?;
        (format == BLOCK_FORMAT).then_some(Self {
            first: u64::from_be_bytes(*first),
            count: u32::from_be_bytes(*count),
            indexed_below: u64::from_be_bytes(*indexed_below),
            before: *before,
            after: *after,
        })
    }
}

/// Names seen lately in a block, so that its records share them.
#[derive(Default)]
struct Names(Vec<Arc<str>>);

/// Names remembered; more would cost longer searches than they save allocations.
const NAMES_MAX: usize = 16;

impl Names {
    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.iter().find(|known| &***known == name) {
            return Arc::clone(known);
        }
        if self.0.len() == NAMES_MAX {
            self.0.clear();
        }
        let name: Arc<str> = name.into();
        self.0.push(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::CHAIN_START;
    use super::*;

    fn value() -> Bytes {
        let mut filling = Filling::after(&Tail { position: 0, hash: CHAIN_START });
        filling.push("run/a", 1, "started", b"{}");
        filling.push("run/b", 1, "started", b"{\"n\":1}");
        filling.seal(1).into()
    }

    #[test]
    fn a_block_reads_back_with_its_hashes() {
        let block = Block::verified(1, &value()).unwrap();

        assert_eq!(block.before, CHAIN_START);
        assert_eq!(block.records.len(), 2);
        assert_eq!(block.records[1].hash, block.records[1].hash_after(&block.records[0].hash));
        assert_eq!(block.at(2), block.records.get(1));
        assert!(block.at(3).is_none());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let value = value();

        for bit in 0..value.len() * 8 {
            let mut flipped = value.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Block::verified(1, &flipped.into()).is_err(), "bit {bit}");
        }
        for len in 0..value.len() {
            assert!(Block::verified(1, &value.slice(..len)).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_block_under_another_key_is_damage() {
        assert_eq!(Block::verified(2, &value()).unwrap_err(), Damage::Malformed);
    }
}
