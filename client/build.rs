//! Tells `tow version` which commit the program is built from.
//!
//! Release builds alone ask git: otherwise every commit would compile the program again for the
//! next test. `TOW_COMMIT` answers for those who build from an archive, without git.

use std::{env, fs, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=TOW_COMMIT");
    let given = env::var("TOW_COMMIT").ok().filter(|commit| !commit.is_empty());
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = given.or_else(|| if is_release { commit_of_git() } else { None });
    println!("cargo::rustc-env=TOW_BUILT_FROM={}", commit.unwrap_or_default());
}

/// The commit that is checked out, if the sources are in a repository of their own.
fn commit_of_git() -> Option<String> {
    // An archive unpacked below some other repository must not be named after that one's commit.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let own = Path::new(&env::var_os("CARGO_MANIFEST_DIR")?).parent()?.canonicalize().ok()?;
    if Path::new(&top).canonicalize().ok()? != own {
        return None;
    }
    // Every commit and every checkout adds a line to it; an edit of any crate makes it untrue.
    if let Some(moves) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={moves}");
    }
    for folder in fs::read_dir(&own).ok()?.flatten() {
        let sources = folder.path().join("src");
        if sources.is_dir() {
            println!("cargo::rerun-if-changed={}", sources.display());
        }
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_changed = git(&["status", "--porcelain", "--untracked-files=no"])
        .is_none_or(|files| !files.is_empty());
    Some(if is_changed { format!("{commit}, changed") } else { commit })
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
