//! Pins the layouts that `docs/formats.md` describes: whatever moves here makes old stores
//! unreadable.

use sha2::{Digest as _, Sha256};

use super::{
    block::{Filling, Tail},
    high_water::HighWaterMark,
    index::{Extent, block_key, entry_of, stream_key},
    record::{CHAIN_START, RecordAddress, chain, frame_into},
};

fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

#[test]
fn a_frame_is_length_position_version_stream_kind_payload() {
    let mut frame = Vec::new();
    frame_into(&mut frame, &RecordAddress { position: 7, stream: "ab", version: 3 }, "k", b"{}");

    let parts = [
        "00000019",         // 25 bytes follow
        "0000000000000007", // position
        "0000000000000003", // version
        "0002",
        "6162", // ab
        "0001",
        "6b",   // k
        "7b7d", // {}
    ];
    assert_eq!(hex(&frame), parts.concat());
}

#[test]
fn a_block_is_a_sealed_header_and_frames() {
    let mut filling = Filling::after(&Tail { position: 6, hash: CHAIN_START });
    filling.push("ab", 3, "k", b"{}");
    let value = filling.seal(5);

    let frame = &value[93..];
    let sealed = [
        "01",               // layout
        "0000000000000007", // first position
        "00000001",         // number of records
        "0000000000000005", // indexed below
        &hex(&CHAIN_START),
        &hex(&chain(&CHAIN_START, frame)),
    ]
    .concat();
    assert_eq!(hex(&value[..85]), sealed);
    assert_eq!(value[85..93], Sha256::digest(&value[..85])[..8]);
    assert_eq!(hex(&block_key(7)), "6c0000000000000007");
}

#[test]
fn an_index_entry_is_named_by_stream_and_version_and_holds_extents() {
    assert_eq!(hex(&stream_key("ab", 3)), "73000261620000000000000003");
    let extents = [Extent { version: 3, count: 9, block: 7 }];
    assert_eq!(hex(&entry_of(&extents)), "0000000000000003000000000000000700000009");
}

#[test]
fn a_high_water_mark_has_two_slots_of_64_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("high-water");
    HighWaterMark::open(&path, &Tail { position: 7, hash: [9; 32] }).unwrap();

    let bytes = std::fs::read(&path).unwrap();

    assert_eq!(bytes.len(), 4096 + 64);
    for slot in [&bytes[..64], &bytes[4096..]] {
        assert_eq!(&slot[..8], b"towhwm 1");
        assert_eq!(hex(&slot[8..16]), "0000000000000007");
        assert_eq!(slot[16..48], [9; 32]);
        assert_eq!(slot[48..], Sha256::digest(&slot[..48])[..16]);
    }
}
