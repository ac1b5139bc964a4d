//! The files of the repository, for the tests that read them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A source file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path below the repository, with `/`.
    pub path: String,
    /// What it says.
    pub text: String,
}

impl Source {
    /// The lines without the file's own tests, which stand at its end.
    pub fn without_tests(&self) -> &str {
        let tests = self.text.find("\n#[cfg(test)]\nmod tests {");
        tests.map_or(&self.text[..], |at| &self.text[..at])
    }

    /// The lines without tests and without comments, each with its number from 1.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.without_tests().lines().zip(1..);
        lines
            .map(|(line, number)| (number, line.split("//").next().unwrap_or(line)))
            .filter(|(_, line)| !line.trim().is_empty())
    }
}

/// The folder of the repository.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("this crate lies in the repository").to_owned()
}

/// The Rust files below `folder` of the repository, in the order of their paths.
pub fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no Rust file below `{folder}`");
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a folder can be listed").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file is text");
            let below = path.strip_prefix(root()).expect("it lies in the repository");
            found.push(Source { path: below.display().to_string(), text });
        }
    }
}
