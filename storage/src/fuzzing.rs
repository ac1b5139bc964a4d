//! What the fuzzing targets need of this crate's inside. Not part of its interface.

use crate::log::record::{RecordAddress, frame_at, frame_into};

/// Reads the frame at the start of `bytes`, if there is one.
///
/// # Panics
/// If it reaches beyond `bytes`, or would be written in another way.
pub fn read_frame(bytes: &[u8]) {
    let Some(frame) = frame_at(bytes) else { return };
    let read = bytes.get(..frame.len).expect("a frame ends within the bytes");
    let address =
        RecordAddress { position: frame.position, stream: frame.stream, version: frame.version };
    let mut written = Vec::new();
    frame_into(&mut written, &address, frame.kind, frame.bytes);
    assert_eq!(written, read, "the running hash is over what would be written");
}
