//! Options of a job that have a shape of their own: `retry`, `shell`, `resource`, paths.

use std::collections::BTreeMap;

use super::{
    read::{Reader, plain},
    tree::{Node, Shape},
};
use crate::{
    diagnostics::shown,
    schema::{RESOURCE_KEYS, RESOURCE_LIMIT_MAX, RETRY_KEYS, RETRY_ON},
};
use towpath_engine::plan::{RETRIES_MAX, Resource, RetryOn, RetryPolicy, WEIGHT_MAX};

/// The longest wait of a `retry` that names none, in milliseconds: an hour.
const BACKOFF_MAX_MS_DEFAULT: u64 = 3_600_000;
/// A wait doubles from retry to retry if nothing else is said.
const FACTOR_PERCENT_DEFAULT: u32 = 200;
/// Largest factor, in percent.
const FACTOR_PERCENT_MAX: f64 = 1_000.0;

/// How often a failed job is retried. 0 times is not at all.
pub(super) fn retry<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<RetryPolicy> {
    if !matches!(node.shape, Shape::Map(_)) {
        let max = reader.count(node, "`retry`", 0, RETRIES_MAX)?;
        // A number alone means retries without a wait, so the factor has nothing to multiply.
        return policy(max, 0, 100, 0, 0, Vec::new());
    }
    let fields = reader.fields(node, &RETRY_KEYS, "`retry`", &node.span)?;
    let max = fields.get("max").and_then(|n| reader.count(n, "`max`", 0, RETRIES_MAX));
    let backoff = fields.get("backoff").and_then(|n| reader.duration(n, "`backoff`", 0));
    let longest = fields.get("backoff_max").and_then(|n| reader.duration(n, "`backoff_max`", 1));
    let factor = fields.get("factor").and_then(|n| factor(reader, n));
    let jitter = fields.get("jitter").and_then(|n| reader.count(n, "`jitter`", 0, 100));
    let on = fields.get("on").map(|n| retry_on(reader, n)).unwrap_or_default();
    let backoff = backoff.unwrap_or(0);
    if let (Some(longest), Some(node)) = (longest, fields.get("backoff_max"))
        && longest < backoff
    {
        let message = "`backoff_max` is shorter than `backoff`".to_owned();
        reader.error("VALUE_RANGE", &node.span, message);
    }
    // A first wait of two hours must not be cut to the default of one.
    let longest = longest.unwrap_or(BACKOFF_MAX_MS_DEFAULT.max(backoff));
    let factor = factor.unwrap_or(FACTOR_PERCENT_DEFAULT);
    policy(max?, backoff, factor, longest, jitter.unwrap_or(0), on)
}

/// How much workers are preferred for the tags that they offer.
pub(super) fn weights<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> BTreeMap<String, u32> {
    let mut weights = BTreeMap::new();
    for entry in reader.entries(node, "`prefer`").unwrap_or_default() {
        let named = reader.check_name(&entry.key, &entry.key_span, "a tag");
        let weight = reader.count(&entry.value, "a weight", 1, WEIGHT_MAX);
        if let Some(weight) = weight.filter(|_| named) {
            weights.insert(entry.key.to_string(), weight);
        }
    }
    weights
}

fn policy(
    max: u32,
    backoff_ms: u64,
    factor_percent: u32,
    backoff_max_ms: u64,
    jitter_percent: u32,
    on: Vec<RetryOn>,
) -> Option<RetryPolicy> {
    let policy =
        RetryPolicy { max, backoff_ms, factor_percent, backoff_max_ms, jitter_percent, on };
    // No policy and not one with 0 retries: two plans that mean the same have the same digest.
    (max > 0).then_some(policy)
}

/// A factor in percent.
fn factor<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<u32> {
    // Rust's parser also reads `inf`, `nan` and `1e3`.
    let is_decimal = |text: &&str| text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number: Option<f64> = plain(node).filter(is_decimal).and_then(|text| text.parse().ok());
    let Some(number) = number else {
        reader.mismatch(node, "`factor` is a number, such as `2` or `1.5`");
        return None;
    };
    // Kept as a whole number of percent, so that the back-off is computed without floating point
    // and is equal on every machine.
    let percent = (number * 100.0).round();
    if !(100.0..=FACTOR_PERCENT_MAX).contains(&percent) {
        reader.error("VALUE_RANGE", &node.span, "`factor` is 1 to 10".to_owned());
        return None;
    }
    // In range, so that nothing is cut off.
    Some(percent as u32)
}

fn retry_on<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Vec<RetryOn> {
    let nodes = match &node.shape {
        Shape::List(items) => items.as_slice(),
        Shape::Scalar { .. } | Shape::Map(_) => std::slice::from_ref(node),
    };
    let mut on = Vec::new();
    for node in nodes {
        let is_number =
            plain(node).is_some_and(|t| t.starts_with(|c: char| c == '-' || c.is_ascii_digit()));
        let reason = if is_number {
            let code = reader.count(node, "an exit code to retry on", 1, 255);
            code.and_then(|code| i32::try_from(code).ok()).map(RetryOn::ExitCode)
        } else {
            match reader.choice(node, "a reason to retry", &RETRY_ON) {
                Some("timeout") => Some(RetryOn::Timeout),
                Some("signal") => Some(RetryOn::Signal),
                Some(_) => Some(RetryOn::Spawn),
                None => None,
            }
        };
        // A reason that is listed twice has no effect, and would change the digest of the plan.
        on.extend(reason.filter(|reason| !on.contains(reason)));
    }
    on
}

/// The program that reads a script. A single word gets the flag that makes it read one.
pub(super) fn shell<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Vec<String> {
    let is_list = matches!(node.shape, Shape::List(_));
    let words: Vec<String> =
        reader.names(node, "`shell`").into_iter().map(|word| word.value).collect();
    match words.as_slice() {
        [] if is_list => {
            reader.error("KEY_MISSING", &node.span, "`shell` names no program".to_owned());
            words
        }
        [line] if !is_list => {
            let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            // One word is a program; several are a command line that has its own flags.
            if let [program] = words.as_slice() {
                // By its name, so that `/usr/bin/perl` gets the flag of `perl`.
                let program = program.rsplit('/').next().unwrap_or(program);
                let flag = match program {
                    "perl" | "ruby" | "node" => "-e",
                    "pwsh" | "powershell" => "-Command",
                    _ => "-c",
                };
                words.push(flag.to_owned());
            }
            words
        }
        _ => words,
    }
}

/// A lock by name, or by name and limit.
pub(super) fn resource<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Resource> {
    if !matches!(node.shape, Shape::Map(_)) {
        let name = reader.name(node, "`resource`")?;
        return Some(Resource { name: name.value, limit: 1 });
    }
    let fields = reader.fields(node, &RESOURCE_KEYS, "`resource`", &node.span)?;
    let name = fields.get("name").and_then(|n| reader.name(n, "the name of a resource"));
    let limit = match fields.get("limit") {
        Some(node) => reader.count(node, "`limit`", 1, RESOURCE_LIMIT_MAX),
        None => Some(1),
    };
    Some(Resource { name: name?.value, limit: limit? })
}

/// Why a path of `artifacts` cannot be one, if it cannot.
pub(super) fn path_fault(path: &str) -> Option<String> {
    // Paths of Windows too: a file is checked where it is written, and run elsewhere.
    let is_drive = path.as_bytes().get(1) == Some(&b':');
    if path.starts_with(['/', '\\', '~']) || is_drive {
        return Some(format!("`{}` does not begin in the working folder", shown(path)));
    }
    if path.split(['/', '\\']).any(|part| part == "..") {
        return Some(format!("`{}` leads out of the working folder", shown(path)));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_below_the_working_folder() {
        for path in ["out/a.csv", "**/*.sql", "a..b/c", "x", ".hidden"] {
            assert_eq!(path_fault(path), None, "{path}");
        }
        for path in
            ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "C:\\x", "~/x", "\\\\host\\x", ".."]
        {
            assert!(path_fault(path).is_some(), "{path}");
        }
    }
}
