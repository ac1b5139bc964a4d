//! What a job may leave behind: outputs and artifacts, bounded so that they fit an event.
//! Worker and server share these rules. A worker that kept other rules would run a job whose
//! result no server can record.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    escape::shown,
    event::{Artifact, RunEvent},
    ids::{Attempt, Blob, Digest, JobName},
    source::path_problem,
};

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

/// What the rest of a fact may take beside its event, in bytes: its time and its actor.
const ENVELOPE_BYTES_MAX: usize = 1024;

/// How many bytes a fact takes at most that records this success; `artifacts` are paths with their
/// sizes.
///
/// Each part has a bound of its own, but what JSON makes of them has not: a quotation mark takes two
/// bytes. So the event is written as a server would, with the longest numbers.
pub fn success_bytes<'a>(
    (job, attempt): (&JobName, Attempt),
    outputs: &BTreeMap<String, String>,
    artifacts: impl Iterator<Item = (&'a str, u64)>,
) -> Result<usize, serde_json::Error> {
    let blob = |size| Blob { size, sha256: Digest::of(b"") };
    let artifact = |(path, size): (&str, u64)| Artifact { path: path.to_owned(), blob: blob(size) };
    let event = RunEvent::JobSucceeded {
        job: job.clone(),
        attempt,
        ran_ms: u64::MAX,
        outputs: outputs.clone(),
        captured_output: Some(blob(u64::MAX)),
        artifacts: artifacts.map(artifact).collect(),
    };
    Ok(serde_json::to_vec(&event)?.len() + ENVELOPE_BYTES_MAX)
}

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
    use crate::{codec::encode, event::Fact, ids::Actor, time::Timestamp};

    fn outputs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn artifacts(paths: &[&str]) -> Vec<Artifact> {
        let artifact = |path: &&str| Artifact { path: (*path).to_owned(), blob: Blob::of(b"") };
        paths.iter().map(artifact).collect()
    }

    #[test]
    fn a_success_is_never_larger_than_it_is_said_to_be() {
        let (outputs, paths) = (outputs(&[("quoted", "\"\"\"\t"), ("b", "ü")]), ["a b", "\"c\""]);
        let (job, attempt) = (JobName::from("copy \"x\""), Attempt(7));
        let sizes = paths.iter().map(|path| (*path, ARTIFACT_BYTES_MAX));
        let most = success_bytes((&job, attempt), &outputs, sizes).unwrap();

        let artifacts = artifacts(&paths);
        let captured_output = Some(Blob::of(b"x"));
        let event =
            RunEvent::JobSucceeded { job, attempt, ran_ms: 5, outputs, captured_output, artifacts };
        let by = Actor::worker(&"w".repeat(Actor::NAME_BYTES_MAX));
        let written = encode(&Fact { at: Timestamp(i64::MAX), by, event }).unwrap().len();

        assert!(written <= most, "{written} bytes, and at most {most} were expected");
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
