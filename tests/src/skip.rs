//! Tests that cannot run on this machine, or are too slow for `./check`, say so.
//!
//! A test that returns early looks like one that passed. So it calls [`skip`], which writes a line
//! for the summary of `check`, and fails where the test was required.

use std::{
    env,
    fs::File,
    io::{self, Write as _, stderr},
    thread,
};

/// The file that takes one line for each skipped test. `check` names it and prints it at its end.
const SKIPPED: &str = "TOW_SKIPPED";
/// The names that must not be skipped, separated by commas.
const REQUIRE: &str = "TOW_REQUIRE";
/// Set to `1` by `check --all`: slow tests run too.
const SLOW: &str = "TOW_SLOW";

/// Records that the running test is skipped, because `what` is missing: `why` says in which way.
///
/// # Panics
/// If `TOW_REQUIRE` names `what`, so that CI notices when a suite stops running.
pub fn skip(what: &str, why: &str) {
    let required = env::var(REQUIRE).unwrap_or_default();
    assert!(!is_required(&required, what), "`{what}` is required here, but: {why}");
    // A test runs on a thread of its name. The harness would capture `eprintln!` of a test that
    // passes, so the line goes to the stream itself.
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("{what}: {test}: {why}\n");
    let told = stderr().write_all(format!("skipped: {line}").as_bytes());
    told.and_then(|()| note(&line)).expect("a skipped test can be recorded");
}

/// Whether slow tests run. If not, the running test is skipped and must return.
pub fn is_slow_run() -> bool {
    let slow = env::var(SLOW).is_ok_and(|value| value == "1");
    if !slow {
        skip("slow", "`./check --all` runs it, and so does TOW_SLOW=1");
    }
    slow
}

fn is_required(required: &str, what: &str) -> bool {
    required.split(',').any(|name| name.trim() == what)
}

/// Appends `line` in one write: several test programs may do so at once.
fn note(line: &str) -> io::Result<()> {
    match env::var_os(SKIPPED) {
        Some(path) => {
            File::options().create(true).append(true).open(path)?.write_all(line.as_bytes())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::is_required;

    #[test]
    fn only_what_is_named_is_required() {
        assert!(is_required("python3, postgres", "postgres"));
        assert!(is_required("slow", "slow"));
        assert!(!is_required("postgres", "post"));
        assert!(!is_required("", "slow"));
    }
}
