//! Reads what a script wrote to `$TOW_OUTPUT`.
//!
//! A line is `name=value`. A value of several lines is `name<<WORD`, the lines, and `WORD` alone
//! on a line. Empty lines mean nothing. A name that comes twice has the later value.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{ErrorKind, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::fcntl::OFlag;

/// Largest `$TOW_OUTPUT`, in bytes: outputs are in the event, which is bounded too.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024;
/// Largest value of one output, in bytes.
pub const OUTPUT_VALUE_BYTES_MAX: usize = 4 * 1024;
/// Longest name of an output, in bytes.
pub const OUTPUT_NAME_BYTES_MAX: usize = 100;

/// What is wrong with a script's outputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputsUnusable {
    /// The file is there and cannot be read.
    #[error("`$TOW_OUTPUT` cannot be read: {reason}")]
    Unreadable {
        /// The system's words.
        reason: String,
    },
    /// The path names something else than a file.
    #[error("`$TOW_OUTPUT` is no longer a file")]
    NotAFile,
    /// More than [`OUTPUT_BYTES_MAX`].
    #[error("`$TOW_OUTPUT` has more than {OUTPUT_BYTES_MAX} bytes")]
    TooLarge,
    /// Bytes that are no text.
    #[error("`$TOW_OUTPUT` is not UTF-8")]
    NotText,
    /// A line of no known form.
    #[error("line {line} of `$TOW_OUTPUT` is neither `name=value` nor `name<<WORD`")]
    LineMalformed {
        /// From 1.
        line: usize,
    },
    /// A name that is not a letter or `_`, then letters, digits, `_` and `-`.
    #[error("line {line} of `$TOW_OUTPUT` names no output: a name is letters, digits, `_` and `-`")]
    NameMalformed {
        /// From 1.
        line: usize,
    },
    /// The file ends before the word does.
    #[error("the value that begins in line {line} of `$TOW_OUTPUT` has no end")]
    ValueUnended {
        /// From 1.
        line: usize,
    },
    /// More than [`OUTPUT_VALUE_BYTES_MAX`].
    #[error("the output `{name}` has more than {OUTPUT_VALUE_BYTES_MAX} bytes")]
    ValueTooLarge {
        /// The output.
        name: String,
    },
    /// A control character other than tab and newline.
    #[error("the output `{name}` holds a control character")]
    ValueControl {
        /// The output.
        name: String,
    },
}

/// The outputs in the file at `path`; none if there is no file.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, String>, OutputsUnusable> {
    let unreadable =
        |error: std::io::Error| OutputsUnusable::Unreadable { reason: error.to_string() };
    // Whatever the script put in its place, opening it neither waits nor leads elsewhere.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(unreadable(error)),
    };
    // Asked of the open file and not of the path, which the script could replace in between.
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(OutputsUnusable::NotAFile);
    }
    let mut bytes = Vec::new();
    // One byte more than allowed shows that there is more, without reading a file of any size.
    file.take(OUTPUT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > OUTPUT_BYTES_MAX {
        return Err(OutputsUnusable::TooLarge);
    }
    parse(std::str::from_utf8(&bytes).map_err(|_| OutputsUnusable::NotText)?)
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, OutputsUnusable> {
    let mut outputs = BTreeMap::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let number = index + 1;
        let (name, value) = match (line.find('='), line.find("<<")) {
            // The sign that comes first counts: a value may contain the other one.
            (equals, Some(word)) if equals.is_none_or(|equals| word < equals) => {
                let value = lines_until(&line[word + 2..], lines.by_ref().map(|(_, line)| line));
                (&line[..word], value.ok_or(OutputsUnusable::ValueUnended { line: number })?)
            }
            (Some(equals), _) => (&line[..equals], line[equals + 1..].to_owned()),
            (None, _) => return Err(OutputsUnusable::LineMalformed { line: number }),
        };
        if !is_name(name) {
            return Err(OutputsUnusable::NameMalformed { line: number });
        }
        if value.len() > OUTPUT_VALUE_BYTES_MAX {
            return Err(OutputsUnusable::ValueTooLarge { name: name.to_owned() });
        }
        // Outputs are shown in terminals, where an escape sequence could change what people see.
        if value.chars().any(|c| c.is_control() && c != '\t' && c != '\n') {
            return Err(OutputsUnusable::ValueControl { name: name.to_owned() });
        }
        outputs.insert(name.to_owned(), value);
    }
    Ok(outputs)
}

/// The lines up to one that is `word`; `None`: there is none, or the word is empty.
fn lines_until<'a>(word: &str, lines: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut value: Vec<&str> = Vec::new();
    for line in lines {
        // An empty word would be ended by the first empty line of the value.
        if line == word && !word.is_empty() {
            return Some(value.join("\n"));
        }
        value.push(line);
    }
    None
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first
        && name.len() <= OUTPUT_NAME_BYTES_MAX
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().into_iter().collect()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn lines_and_blocks_become_outputs() {
        assert_eq!(
            parsed("rows=12\n\n_a-b=x=y<<z\nnote<<END\none\n\ntwo=2\nEND\nempty=\nrows=13"),
            [
                pair("_a-b", "x=y<<z"),
                pair("empty", ""),
                pair("note", "one\n\ntwo=2"),
                pair("rows", "13")
            ],
        );
        assert_eq!(parsed(""), []);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let malformed = OutputsUnusable::LineMalformed { line: 2 };
        assert_eq!(parse("a=1\nhello"), Err(malformed));
        for name in ["", "1a", "a b", "é", " a", "a.b"] {
            let error = parse(&format!("{name}=1"));
            assert_eq!(error, Err(OutputsUnusable::NameMalformed { line: 1 }), "{name:?}");
        }
        assert_eq!(parse("a<<END\nx"), Err(OutputsUnusable::ValueUnended { line: 1 }));
        assert_eq!(parse("a<<\nx\n\n"), Err(OutputsUnusable::ValueUnended { line: 1 }));
        let control = OutputsUnusable::ValueControl { name: "a".to_owned() };
        assert_eq!(parse("a=\u{1b}[2J"), Err(control));
        let large = OutputsUnusable::ValueTooLarge { name: "a".to_owned() };
        assert_eq!(parse(&format!("a={}", "x".repeat(OUTPUT_VALUE_BYTES_MAX + 1))), Err(large));
    }

    #[test]
    fn a_file_that_is_none_too_large_or_no_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output");
        assert_eq!(read(&path), Ok(BTreeMap::new()));

        std::fs::write(&path, "x=1\n".repeat(OUTPUT_BYTES_MAX)).unwrap();
        assert_eq!(read(&path), Err(OutputsUnusable::TooLarge));
        std::fs::write(&path, b"x=\xff\n").unwrap();
        assert_eq!(read(&path), Err(OutputsUnusable::NotText));

        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&path), Err(OutputsUnusable::NotAFile));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(read(&path), Err(OutputsUnusable::Unreadable { .. })));
    }
}
