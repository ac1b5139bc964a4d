//! Text that a person decides on: every character of it can be seen.
//!
//! Stricter than what logs are shown with: there a joiner inside a word or a tab is part of the
//! text, here it could hide what an approval covers.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthChar as _;

/// Columns of a tab, its sign included.
const TAB_COLUMNS: usize = 4;
/// Marks without a width of their own that may stand on one letter. Two are what living scripts
/// use; a hundred would cover the lines above.
const MARKS_MAX: usize = 2;

/// Characters that take no ink, beyond those that no text is shown with. Source: Unicode's
/// `Default_Ignorable_Code_Point`, and the blanks that are not U+0020.
const UNSEEN: [(char, char); 17] = [
    ('\u{a0}', '\u{a0}'),
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{2000}', '\u{200f}'),
    ('\u{2028}', '\u{202f}'),
    ('\u{205f}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3000}', '\u{3000}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// `text` with a sign for every character that steers a terminal or takes no ink.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut marks = 0;
    for next in text.chars() {
        let is_mark = next.width() == Some(0);
        marks = if is_mark { marks + 1 } else { 0 };
        let is_unseen = UNSEEN.iter().any(|(first, last)| (*first..=*last).contains(&next));
        if next == '\t' {
            // A width that no terminal and no tab stop can change.
            shown.push('\u{2409}');
            shown.extend(std::iter::repeat_n(' ', TAB_COLUMNS - 1));
        } else if next == '\r' {
            // Also at the end of a line, where logs drop it: to a shell it is part of the word.
            shown.push('\u{240d}');
        } else if is_unseen || (is_mark && marks > MARKS_MAX) {
            // A string takes whatever is written to it.
            let _ = write!(shown, "<U+{:04X}>", u32::from(next));
        } else {
            let mut buffer = [0; 4];
            let one = next.encode_utf8(&mut buffer);
            shown.push_str(&towpath_engine::captured_output::printable(one.as_bytes(), false));
        }
    }
    shown
}

/// `text` in rows of at most `columns` columns. Nothing is omitted, added or moved.
pub(crate) fn wrapped(text: &str, columns: usize) -> Vec<&str> {
    let (mut rows, mut begin, mut taken) = (Vec::new(), 0, 0);
    for (at, next) in text.char_indices() {
        let width = next.width().unwrap_or(0);
        // A character wider than the whole row still gets one of its own.
        if taken + width > columns && at > begin {
            rows.push(&text[begin..at]);
            (begin, taken) = (at, 0);
        }
        taken += width;
    }
    rows.push(&text[begin..]);
    rows
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    #[test]
    fn nothing_hides_and_nothing_steers() {
        assert_eq!(visible("a\u{1b}[8mb\u{7}\r"), "a␛[8mb␇␍");
        assert_eq!(visible("\tx"), "␉   x");
        assert_eq!(visible("rm\u{200d}-rf\u{a0}/"), "rm<U+200D>-rf<U+00A0>/");
        assert_eq!(visible("a\u{202e}b\u{e0041}\u{3164}"), "a<U+202E>b<U+E0041><U+3164>");
    }

    #[test]
    fn letters_with_their_marks_stay_and_towers_of_marks_do_not() {
        assert_eq!(visible("cafe\u{301} e\u{302}\u{301}"), "cafe\u{301} e\u{302}\u{301}");
        assert_eq!(visible("a\u{301}\u{301}\u{301}"), "a\u{301}\u{301}<U+0301>");
    }

    #[test]
    fn rows_hold_all_of_the_text_and_fit() {
        for text in ["", "abc", "abcdefgh", "顧客データ", "e\u{301}e\u{301}e\u{301}"] {
            for columns in 1..6 {
                let rows = wrapped(text, columns);
                assert_eq!(rows.concat(), text);
                assert!(rows.iter().all(|row| row.width() <= columns.max(2)), "{rows:?}");
            }
        }
        assert_eq!(wrapped("abcdef", 4), ["abcd", "ef"]);
    }
}
