//! What can be said about a file before anyone reads it as YAML: its size and its characters.

use std::ops::Range;

use super::FILE_BYTES_MAX;
use crate::diagnostics::{Diagnostic, is_obeyed};

/// Most refused characters that are listed. Source: a binary file holds nothing else.
const LISTED_MAX: usize = 20;

/// The text of `bytes`, unless they are too many or no text.
pub(super) fn text(bytes: &[u8]) -> Result<&str, Box<Diagnostic>> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(too_large(bytes.len()).into());
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let message = format!("the file is not UTF-8 text: byte {at} begins no character");
        let help = "save the file as UTF-8";
        Diagnostic::error("FILE_NOT_UTF8", &(at..at), message).help(help).into()
    })
}

/// The problem of a file of this many bytes.
pub(super) fn too_large(bytes: usize) -> Diagnostic {
    let message = format!("the file has {bytes} bytes; at most {FILE_BYTES_MAX} are read");
    Diagnostic::error("FILE_TOO_LARGE", &(0..0), message)
}

/// The characters of `text` that a terminal would obey, or that would make it read differently
/// from what it says.
pub(super) fn refused(text: &str) -> Vec<Diagnostic> {
    // Nearly every file is free of them, and bytes are quick to look through.
    if text.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut characters = text.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        let is_fine = match c {
            '\n' | '\t' => true,
            // A carriage return alone moves the cursor to the start of the line, where the text
            // after it hides what is before.
            '\r' => characters.peek().is_some_and(|(_, next)| *next == '\n'),
            // Editors put a byte order mark at the beginning. Elsewhere it is an invisible
            // character.
            '\u{feff}' => at == 0,
            c => !is_obeyed(c),
        };
        if is_fine {
            continue;
        }
        // A binary file would otherwise have a message for nearly every byte.
        if found.len() == LISTED_MAX {
            break;
        }
        found.push(refusal(c, &(at..at + c.len_utf8())));
    }
    found
}

/// The problem of the character `c` at `span`.
pub(super) fn refusal(c: char, span: &Range<usize>) -> Diagnostic {
    let (what, help) = match c {
        '\r' => ("a carriage return without a line feed", "end lines with a line feed"),
        '\u{61c}' | '\u{200e}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            ("a character that reorders text", "such text reads differently from what it does")
        }
        '\u{feff}' => ("a byte order mark within the text", "remove it"),
        _ => ("a control character", "remove it; a script can write it with `printf`"),
    };
    let message = format!("{what}, U+{:04X}, is not accepted", u32::from(c));
    Diagnostic::error("CHARACTER_REFUSED", span, message).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_passes_in_any_script_and_with_any_line_end() {
        for text in ["a: b\r\nc:\td\n", "\u{feff}a: ü 日本 🚀 ←", ""] {
            assert_eq!(refused(text), []);
        }
    }

    #[test]
    fn controls_are_located() {
        let found = refused("a\0b\u{1b}c\u{9b}d\u{202e}e\rf\u{feff}");
        let spans: Vec<_> = found.iter().map(|d| d.span.clone()).collect();
        assert_eq!(spans, [1..2, 3..4, 5..7, 8..11, 12..13, 14..17]);
        assert!(found.iter().all(|d| d.code == "CHARACTER_REFUSED"));
        assert_eq!(refused(&"\u{1}".repeat(99)).len(), LISTED_MAX);
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(text(b"a: \xff").unwrap_err().code, "FILE_NOT_UTF8");
        assert_eq!(text(&vec![b' '; FILE_BYTES_MAX + 1]).unwrap_err().code, "FILE_TOO_LARGE");
        assert_eq!(text("é".as_bytes()), Ok("é"));
    }
}
