//! A record, its frame (the bytes that are stored and hashed) and the running hash of the log.
//!
//! The frame is the only encoding of a record: blocks, backups and the chain hash see the same
//! bytes. This crate does not interpret payloads.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// RecordAddress of a record in the log, from 1, without gaps. 0 means "before the first".
pub type Position = u64;

/// RecordAddress of a record in its stream, from 1, without gaps. 0 means "before the first".
pub type Version = u64;

/// SHA-256 over the previous running hash and the frame of a record.
pub type RunningHash = [u8; 32];

/// The running hash of an empty log.
pub const CHAIN_START: RunningHash = [0; 32];

/// Bytes of a frame besides stream, kind and payload: its length, position, version and two
/// lengths.
pub(crate) const FRAME_FIXED_BYTES: usize = 4 + 8 + 8 + 2 + 2;

/// A record that has no place yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// What sort of record, for readers that skip by kind.
    pub kind: Arc<str>,
    /// The payload, stored and returned as it is.
    pub bytes: Bytes,
}

impl NewRecord {
    /// A record of `kind` that carries `bytes`.
    pub fn new(kind: impl Into<Arc<str>>, bytes: impl Into<Bytes>) -> Self {
        Self { kind: kind.into(), bytes: bytes.into() }
    }

    /// Bytes that this record takes in the log of `stream`.
    pub(crate) fn frame_bytes(&self, stream: &str) -> usize {
        FRAME_FIXED_BYTES + stream.len() + self.kind.len() + self.bytes.len()
    }
}

/// A record as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// RecordAddress in the log.
    pub position: Position,
    /// The stream it belongs to.
    pub stream: Arc<str>,
    /// RecordAddress in the stream.
    pub version: Version,
    /// What sort of record.
    pub kind: Arc<str>,
    /// The payload. Shares memory with its neighbours; copy it to keep it for long.
    pub bytes: Bytes,
    /// The running hash of the log after this record.
    pub hash: RunningHash,
}

impl Record {
    /// The running hash after this record when it follows `previous`.
    ///
    /// Equal to `self.hash` in a sound log; [`crate::verify`] checks a whole log with it.
    pub fn hash_after(&self, previous: &RunningHash) -> RunningHash {
        let mut frame = Vec::with_capacity(self.frame_bytes());
        self.frame_into(&mut frame);
        chain(previous, &frame)
    }

    /// Bytes of this record's frame.
    pub(crate) fn frame_bytes(&self) -> usize {
        FRAME_FIXED_BYTES + self.stream.len() + self.kind.len() + self.bytes.len()
    }

    /// Appends this record's frame to `out`.
    pub(crate) fn frame_into(&self, out: &mut Vec<u8>) {
        let address =
            RecordAddress { position: self.position, stream: &self.stream, version: self.version };
        frame_into(out, &address, &self.kind, &self.bytes);
    }
}

/// The address of a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordAddress<'a> {
    /// RecordAddress in the log.
    pub(crate) position: Position,
    /// The stream.
    pub(crate) stream: &'a str,
    /// RecordAddress in the stream.
    pub(crate) version: Version,
}

/// Appends the frame of a record to `out`: the length of what follows (u32), position and version
/// (u64), stream and kind each after their length (u16), payload. Numbers are big endian.
pub(crate) fn frame_into(out: &mut Vec<u8>, address: &RecordAddress<'_>, kind: &str, bytes: &[u8]) {
    let rest = FRAME_FIXED_BYTES - 4 + address.stream.len() + kind.len() + bytes.len();
    // The length first, so that frames can be told apart without knowing what is in them, and big
    // endian everywhere: keys that hold positions must sort as the positions do.
    out.extend_from_slice(&u32_of(rest).to_be_bytes());
    out.extend_from_slice(&address.position.to_be_bytes());
    out.extend_from_slice(&address.version.to_be_bytes());
    for text in [address.stream, kind] {
        out.extend_from_slice(&u16_of(text.len()).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(bytes);
}

/// The running hash after `frame` when it follows `previous`.
pub(crate) fn chain(previous: &RunningHash, frame: &[u8]) -> RunningHash {
    Sha256::new().chain_update(previous).chain_update(frame).finalize().into()
}

fn u32_of(len: usize) -> u32 {
    u32::try_from(len).expect("BUG: a frame is bounded far below 4 GiB")
}

fn u16_of(len: usize) -> u16 {
    u16::try_from(len).expect("BUG: names are bounded far below 64 KiB")
}

/// The frame at the start of `bytes`, and its length.
pub(crate) struct Frame<'a> {
    /// RecordAddress in the log.
    pub(crate) position: Position,
    /// RecordAddress in the stream.
    pub(crate) version: Version,
    /// The stream.
    pub(crate) stream: &'a str,
    /// What sort of record.
    pub(crate) kind: &'a str,
    /// The payload.
    pub(crate) bytes: &'a [u8],
    /// Length of the whole frame.
    pub(crate) len: usize,
}

/// Reads the frame at the start of `bytes`; `None` when there is no well-formed one.
pub(crate) fn frame_at(bytes: &[u8]) -> Option<Frame<'_>> {
    let (rest_len, after) = bytes.split_first_chunk::<4>()?;
    let rest_len = usize::try_from(u32::from_be_bytes(*rest_len)).ok()?;
    // Nothing is read beyond the length, and nothing is allocated by it: it may be any number.
    let rest = after.get(..rest_len)?;
    let (position, rest) = rest.split_first_chunk::<8>()?;
    let (version, rest) = rest.split_first_chunk::<8>()?;
    let (stream, rest) = text_at(rest)?;
    let (kind, payload) = text_at(rest)?;
    Some(Frame {
        position: u64::from_be_bytes(*position),
        version: u64::from_be_bytes(*version),
        stream,
        kind,
        bytes: payload,
        len: 4 + rest_len,
    })
}

fn text_at(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            position: 7,
            stream: "run/ü".into(),
            version: 3,
            kind: "k".into(),
            bytes: Bytes::from_static(b"payload"),
            hash: CHAIN_START,
        }
    }

    #[test]
    fn a_frame_reads_back_as_it_was_written() {
        let mut bytes = Vec::new();
        record().frame_into(&mut bytes);
        bytes.extend_from_slice(b"what follows");

        let frame = frame_at(&bytes).unwrap();

        assert_eq!((frame.position, frame.version), (7, 3));
        assert_eq!((frame.stream, frame.kind, frame.bytes), ("run/ü", "k", b"payload".as_slice()));
        assert_eq!(frame.len, record().frame_bytes());
    }

    #[test]
    fn a_cut_frame_is_none_at_every_length() {
        let mut bytes = Vec::new();
        record().frame_into(&mut bytes);

        for len in 0..bytes.len() {
            assert!(frame_at(&bytes[..len]).is_none(), "{len} bytes");
        }
    }

    #[test]
    fn the_running_hash_of_a_known_record_never_changes() {
        assert_eq!(
            hex::encode(record().hash_after(&CHAIN_START)),
            "77106fae1e955e582ad18b2c27b250b6feac2424ef638c435414ae659132aa9b",
        );
    }
}
