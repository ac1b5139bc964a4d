//! The server rules that no compiler checks. Each test names every file that breaks its rule.

mod circles;
mod codes;
mod decisions;
mod events;
mod manifests;
mod purity;
mod texts;
mod words;

/// Fails with all of `broken`, if there is anything.
fn none(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}
