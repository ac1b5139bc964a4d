//! Every code that a user can meet has a page, and every page a code.

use std::{collections::BTreeSet, fs};

use towpath_engine::refusal::Refusal;
use towpath_pipeline::diagnostics::FILE_CODES;
use towpath_server::{FAILURE_CODES, Limit};
use towpath_tests::{Source, root, sources};

use crate::none;

/// Codes of the store, as its source names them: `AppendError` and `StoreError` have no list.
fn store_codes() -> BTreeSet<String> {
    let errors =
        sources("storage/src").into_iter().find(|source| source.path.ends_with("error.rs"));
    let errors: Source = errors.expect("the errors of the store");
    errors.code().filter_map(|(_, line)| arm_code(line)).collect()
}

/// The code in an arm such as `Self::Owned { .. } => "STORE_OWNED",`.
fn arm_code(line: &str) -> Option<String> {
    let (_, literal) = line.split_once("=> \"")?;
    let code = literal.split('"').next()?;
    is_code(code).then(|| code.to_owned())
}

/// Codes of the client itself: what it makes a failure of.
fn client_codes() -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    for source in sources("client/src") {
        let text = source.without_tests();
        for maker in ["Failure::new(", "Self::new("] {
            let calls = text.match_indices(maker).map(|(at, _)| &text[at + maker.len()..]);
            let literals = calls.filter_map(|rest| rest.trim_start().strip_prefix('"'));
            let codes_here = literals.filter_map(|rest| rest.split('"').next());
            codes.extend(codes_here.filter(|code| is_code(code)).map(str::to_owned));
        }
    }
    // Nobody is left to be told.
    codes.remove("BROKEN_PIPE");
    codes
}

fn is_code(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_uppercase());
    first && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

fn codes() -> BTreeSet<String> {
    let known =
        Refusal::CODES.into_iter().chain(FAILURE_CODES).chain(Limit::CODES).chain(FILE_CODES);
    known.map(str::to_owned).chain(store_codes()).chain(client_codes()).collect()
}

fn pages() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("docs/errors")).expect("the pages of the codes");
    let names = entries.map(|entry| entry.expect("a folder can be listed").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name != "README.md").collect()
}

#[test]
fn every_code_has_its_page() {
    let pages = pages();
    let missing = codes().into_iter().map(|code| format!("{code}.md"));
    none("codes without a page", missing.filter(|page| !pages.contains(page)).collect());
}

#[test]
fn every_page_has_its_code() {
    let codes: BTreeSet<String> = codes().iter().map(|code| format!("{code}.md")).collect();
    let stray = pages().into_iter().filter(|page| !codes.contains(page)).collect();
    none("pages in docs/errors without a code", stray);
}

#[test]
fn every_page_names_its_code_first() {
    let broken = pages().into_iter().filter(|page| {
        let text = fs::read_to_string(root().join("docs/errors").join(page)).unwrap_or_default();
        let code = page.trim_end_matches(".md");
        !text.lines().next().is_some_and(|first| first.starts_with("# ") && first.contains(code))
    });
    none("pages that do not begin with `# CODE`", broken.collect());
}

#[test]
fn codes_look_like_codes() {
    let broken = codes().into_iter().filter(|code| !is_code(code));
    none("codes that are not SHOUTED_IN_WORDS", broken.collect());
    assert!(store_codes().contains("LOG_ROLLBACK"), "the codes of the store were found");
    assert!(client_codes().contains("USAGE"), "the codes of the client were found");
}
