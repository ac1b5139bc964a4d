//! Every code that a user can meet has a page, and every page a code.

use std::{collections::BTreeSet, fs};

use towpath_engine::code::ErrorCode;
use towpath_pipeline::diagnostics::FILE_CODES;
use towpath_tests::root;

use crate::none;

fn is_code(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_uppercase());
    first && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

/// The codes of commands, and those of the problems of a pipeline file.
fn codes() -> BTreeSet<String> {
    let commands = ErrorCode::ALL.iter().map(|code| code.as_str());
    commands.chain(FILE_CODES).map(str::to_owned).collect()
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
}
