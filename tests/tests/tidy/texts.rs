//! Rules about source files: how files begin and how long they are, and words that say nothing.

use towpath_tests::{Source, sources};

use crate::none;

const CRATES: [&str; 9] =
    ["engine", "pipeline", "storage", "proto", "wire", "server", "worker", "client", "tests"];

/// Longest source file without its own tests, in lines.
const LINES_MAX: usize = 500;

/// Names that say nothing about what a file is for.
const FILE_BANS: [&str; 8] =
    ["utils", "util", "helpers", "common", "misc", "manager", "service", "types"];

/// Parts of type names that say nothing about what a type is.
const TYPE_BANS: [&str; 10] =
    ["Manager", "Service", "Helper", "Util", "Impl", "Dto", "Info", "Data", "Handler", "Processor"];

/// Every source file of ours.
fn all() -> Vec<Source> {
    let mut all = Vec::new();
    for folder in CRATES {
        all.extend(sources(folder));
    }
    all
}

#[test]
fn there_is_one_way_into_the_log() {
    let mut calls = Vec::new();
    for source in sources("server/src") {
        for (number, line) in source.code() {
            // Files that are opened for appending are another matter: `.append(true)`.
            let is_test = source.path.ends_with("/tests.rs");
            if !is_test && line.contains(".append(") && !line.contains(".append(true)") {
                calls.push((source.path.clone(), number, line.trim().to_owned()));
            }
        }
    }
    let store: Vec<_> = calls.iter().filter(|(.., line)| line.contains("store")).collect();
    assert_eq!(store.len(), 1, "calls of `EventStore::append`: {store:?}");
    assert_eq!(store[0].0, "server/src/streams/append.rs");
    let others = sources("client/src").into_iter().chain(sources("worker/src"));
    let others = others.filter(|source| source.text.contains("towpath_storage"));
    none("the log is the server's", others.map(|source| source.path).collect());
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let broken = all().into_iter().filter(|source| !source.text.starts_with("//! "));
    none("a source file begins with `//!`", broken.map(|source| source.path).collect());
}

#[test]
fn no_file_is_named_after_nothing() {
    let broken = all().into_iter().filter(|source| {
        let parts = source.path.split('/').map(|part| part.trim_end_matches(".rs"));
        parts.into_iter().any(|part| FILE_BANS.contains(&part))
    });
    none("a file is named after its subject", broken.map(|source| source.path).collect());
}

#[test]
fn no_file_is_too_long() {
    let broken = all().into_iter().filter_map(|source| {
        let lines = source.without_tests().lines().count();
        (lines > LINES_MAX).then(|| format!("{}: {lines} lines", source.path))
    });
    none("a source file has at most 500 lines without its tests", broken.collect());
}

#[test]
fn nothing_is_put_off_or_silenced() {
    // Put together here, so that this file does not break its own rule.
    let banned = ["TO".to_owned() + "DO", "FIX".to_owned() + "ME", "XX".to_owned() + "X"];
    let attributes = ["#[ign".to_owned() + "ore", "[al".to_owned() + "low("];
    let panics = ["#[should_".to_owned() + "panic", "unimplemen".to_owned() + "ted!("];
    let banned: Vec<String> = banned.into_iter().chain(attributes).chain(panics).collect();
    let mut broken = Vec::new();
    for source in all() {
        for (line, number) in source.text.lines().zip(1..) {
            for ban in banned.iter().filter(|ban| has_word(line, ban)) {
                broken.push(format!("{}:{number}: `{ban}`", source.path));
            }
        }
    }
    none("nothing is put off, skipped or silenced", broken);
}

/// Whether `line` has `word` on its own, and not as a part of a longer word.
fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let shouted = word.chars().all(|c| c.is_ascii_uppercase());
        !shouted || (!before.is_some_and(inside) && !after.is_some_and(inside))
    })
}

#[test]
fn no_type_is_named_after_nothing() {
    let mut broken = Vec::new();
    for source in all() {
        for (number, line) in source.code() {
            let Some(name) = declared(line) else { continue };
            for ban in words(name).into_iter().filter(|word| TYPE_BANS.contains(word)) {
                broken.push(format!("{}:{number}: `{ban}` in `{name}`", source.path));
            }
        }
    }
    none("a type is named after what it is", broken);
}

/// The name of the struct, enum, trait or type that `line` declares. An indented `type` belongs to
/// a trait, which may be of another crate.
fn declared(line: &str) -> Option<&str> {
    if line.starts_with(' ') && line.trim_start().starts_with("type ") {
        return None;
    }
    let line = line.trim_start();
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.trim_start(),
        None => line,
    };
    let name =
        ["struct ", "enum ", "trait ", "type "].iter().find_map(|word| line.strip_prefix(word))?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
    Some(&name[..end])
}

/// `JobNameList` is made of `Job`, `Name` and `List`.
fn words(name: &str) -> Vec<&str> {
    let mut starts: Vec<usize> =
        name.char_indices().filter(|(_, c)| c.is_uppercase()).map(|(at, _)| at).collect();
    starts.push(name.len());
    starts.windows(2).filter_map(|pair| name.get(pair[0]..pair[1])).collect()
}

#[test]
fn the_rules_see_what_they_look_for() {
    assert_eq!(declared("pub(crate) struct JobManager<'a> {"), Some("JobManager"));
    assert_eq!(declared("    enum Cause;"), Some("Cause"));
    assert_eq!(declared("let structure = 1;"), None);
    assert_eq!(words("HttpDataView"), ["Http", "Data", "View"]);
    assert!(has_word("// LATER: tidy this", "LATER"));
    assert!(!has_word("let TRANSLATER = 1;", "LATER"));
    let source = Source { path: String::new(), text: "//! x\nlet a = 1; // std::fs\n".to_owned() };
    assert_eq!(source.code().collect::<Vec<_>>(), [(2, "let a = 1; ")]);
}
