//! libFuzzer on the target `shell` of `tests/src/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| towpath_tests::fuzz::fuzz("shell", bytes));
