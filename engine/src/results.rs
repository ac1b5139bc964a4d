//! What a job may leave behind: outputs and artifacts, bounded so that they fit an event.
//! Worker and server share these rules. A worker that kept other rules would run a job whose
//! result no server can record.

use std::collections::{BTreeMap, BTreeSet};

use crate::{escape::shown, event::Artifact, source::path_problem};

/// Most bytes of all outputs of one attempt, names included: outputs are part of the event, which
/// is bounded too.
pub const OUTPUTS_BYTES_MAX: usize = 16 * 1024;
/// Largest value of one output, in bytes.
pub const OUTPUT_VALUE_BYTES_MAX: usize = 4 * 1024;
/// Longest name of an output, in bytes.
pub const OUTPUT_NAME_BYTES_MAX: usize = 100;
/// Most artifacts of one attempt.
pub const ARTIFACTS_MAX: usize = 1_000;
/// Largest artifact, in bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Why nothing can be recorded as an artifact under `path`. `None`: it can.
pub fn artifact_path_problem(path: &str) -> Option<&'static str> {
    path_problem(path)
}

/// Whether an output can be called `name`: a letter or `_`, then letters, digits, `_` and `-`.
pub fn is_output_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first
        && name.len() <= OUTPUT_NAME_BYTES_MAX
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// Why no output can have `value`. `None`: it can.
pub fn output_value_problem(value: &str) -> Option<&'static str> {
    if value.len() > OUTPUT_VALUE_BYTES_MAX {
        return Some("is too long");
    }
    // A terminal or a script that shows the value later would obey them.
    let steers = |c: char| c.is_control() && c != '\t' && c != '\n';
    value.contains(steers).then_some("holds a control character")
}

/// What is wrong with what a job left behind, as the end of a sentence. `None`: nothing.
///
/// Only the first problem is named, and names are shortened: the answer goes into an event.
pub fn problem(outputs: &BTreeMap<String, String>, artifacts: &[Artifact]) -> Option<String> {
    let mut bytes = 0;
    for (name, value) in outputs {
        if !is_output_name(name) {
            return Some(format!("`{}` is not a valid name of an output", shown(name)));
        }
        if let Some(why) = output_value_problem(value) {
            return Some(format!("the output `{name}` {why}"));
        }
        // Names count too: ten thousand empty values are still ten thousand names in the event.
        bytes += name.len() + value.len();
    }
    if bytes > OUTPUTS_BYTES_MAX {
        return Some(format!("the outputs have {bytes} bytes, more than {OUTPUTS_BYTES_MAX}"));
    }
    if artifacts.len() > ARTIFACTS_MAX {
        return Some(format!("{} artifacts are more than {ARTIFACTS_MAX}", artifacts.len()));
    }
    let mut paths = BTreeSet::new();
    for Artifact { path, blob } in artifacts {
        let path = path.as_str();
        if let Some(why) = artifact_path_problem(path) {
            return Some(format!("the path of the artifact `{}` {why}", shown(path)));
        }
        if blob.size > ARTIFACT_BYTES_MAX {
            let size = blob.size;
            return Some(format!("the artifact `{}` has {size} bytes", shown(path)));
        }
        // Two entries of one path would be installed over each other, in an order that no file
        // defines.
        if !paths.insert(path) {
            return Some(format!("the artifact `{}` is listed twice", shown(path)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Blob;

    fn outputs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn artifacts(paths: &[&str]) -> Vec<Artifact> {
        let artifact = |path: &&str| Artifact { path: (*path).to_owned(), blob: Blob::of(b"") };
        paths.iter().map(artifact).collect()
    }

    #[test]
    fn what_a_worker_may_send_has_no_problem() {
        let outputs = outputs(&[("rows", "1\t2\n3"), ("_a-b", "")]);
        assert_eq!(problem(&outputs, &artifacts(&["a b/é.sql", "c"])), None);
    }

    #[test]
    fn each_problem_is_named() {
        let long = "x".repeat(OUTPUT_VALUE_BYTES_MAX + 1);
        let most = "x".repeat(OUTPUT_VALUE_BYTES_MAX);
        let cases = [
            (outputs(&[("1", "")]), vec![], "is not a valid name of an output"),
            (outputs(&[("a", &long)]), vec![], "the output `a` is too long"),
            (outputs(&[("a", "\u{1b}[2J")]), vec![], "the output `a` holds a control character"),
            (
                outputs(&[("a", &most), ("b", &most), ("c", &most), ("d", &most)]),
                vec![],
                "the outputs have 16388 bytes",
            ),
            (outputs(&[]), vec!["a\tb"], "holds control characters"),
            (outputs(&[]), vec!["a\nb"], "holds control characters"),
            (outputs(&[]), vec!["../a"], "leads out of the folder"),
            (outputs(&[]), vec!["/a"], "leads out of the folder"),
            (outputs(&[]), vec![""], "leads out of the folder"),
            (outputs(&[]), vec!["a", "a"], "the artifact `a` is listed twice"),
        ];
        for (outputs, paths, expected) in cases {
            let found = problem(&outputs, &artifacts(&paths)).unwrap_or_default();
            assert!(found.contains(expected), "{found:?} instead of {expected:?}");
            assert!(!found.contains(char::is_control), "{found:?}");
        }
        let many: Vec<String> = (0..=ARTIFACTS_MAX).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let found = problem(&outputs(&[]), &artifacts(&many));
        assert_eq!(found.as_deref(), Some("1001 artifacts are more than 1000"));
    }
}
