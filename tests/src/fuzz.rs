//! The fuzzing targets: what reads bytes of others, and what it promises for any bytes.
//!
//! `tests/tests/fuzz.rs` runs them on their seeds and on mutations of them, on a stable compiler;
//! `fuzz/` runs the same functions under libFuzzer. Each panics when a promise is broken.

mod file;
mod script;
mod store;

/// A promise about any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of the folder of its seeds in `fuzz/seeds/`.
pub const TARGETS: [(&str, Target); 7] = [
    ("backup", store::backup),
    ("codec", store::codec),
    ("expression", file::expression),
    ("frame", store::frame),
    ("mask", script::mask),
    ("shell", script::shell),
    ("yaml", file::yaml),
];

/// Runs the target `name` on `bytes`.
///
/// # Panics
/// If there is no such target, or if a promise is broken.
pub fn fuzz(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("the target is one of the list").1(bytes);
}
