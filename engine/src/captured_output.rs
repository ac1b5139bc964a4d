//! What a job printed, as it is kept: one record per line, with the moment and the stream it came
//! from. Writes and reads that format, and makes bytes of unknown origin safe to show.
//!
//! A record is `<milliseconds since the start> <tag> <bytes>` and a newline. The tag is `o` for
//! standard output, `e` for standard error and `n` for a note of Towpath itself; an upper-case tag
//! means that the line continues in the next record of the same stream. The bytes are what the job
//! wrote, with secrets masked, and need not be UTF-8. Cutting output into lines is the worker's.

use std::fmt::Write as _;

/// Most bytes of a record besides the line itself: 20 digits, two blanks, a tag and a newline.
pub const RECORD_HEAD_BYTES_MAX: usize = 24;
/// Longest piece of a line in one record, so that any record fits in a chunk of 64 KiB.
pub const LINE_BYTES_MAX: usize = 64 * 1024 - RECORD_HEAD_BYTES_MAX;

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputSource {
    /// The job's standard output.
    Out,
    /// The job's standard error.
    Err,
    /// Towpath, about the capture itself: the job did not print this.
    Note,
}

/// One record: a line, or a piece of a long one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLine<'a> {
    /// Milliseconds from the start of the attempt to the end of the line, by the worker's clock.
    pub at_ms: u64,
    /// Where it comes from.
    pub source: OutputSource,
    /// `false`: the line continues in the next record of the same source.
    pub ends: bool,
    /// The bytes, without the newline. Never holds one.
    pub bytes: &'a [u8],
}

impl OutputLine<'_> {
    /// Appends this line to `captured` as a record.
    pub fn write(&self, captured: &mut Vec<u8>) {
        let tag = match (self.source, self.ends) {
            (OutputSource::Out, true) => b'o',
            (OutputSource::Out, false) => b'O',
            (OutputSource::Err, true) => b'e',
            (OutputSource::Err, false) => b'E',
            (OutputSource::Note, true) => b'n',
            (OutputSource::Note, false) => b'N',
        };
        captured.extend_from_slice(self.at_ms.to_string().as_bytes());
        captured.extend_from_slice(&[b' ', tag, b' ']);
        captured.extend_from_slice(self.bytes);
        captured.push(b'\n');
    }
}

/// Captured output that does not follow the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the captured output holds no record at byte {at}")]
pub struct RecordMalformed {
    /// Where the record should begin, in bytes from the start of what was read.
    pub at: usize,
}

/// The records of `captured`, in order. Ends after the first record that cannot be read.
pub fn lines(captured: &[u8]) -> OutputLines<'_> {
    OutputLines { captured, at: 0 }
}

/// See [`lines`].
#[derive(Clone, Debug)]
pub struct OutputLines<'a> {
    captured: &'a [u8],
    at: usize,
}

impl<'a> Iterator for OutputLines<'a> {
    type Item = Result<OutputLine<'a>, RecordMalformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.captured.get(self.at..).filter(|rest| !rest.is_empty())?;
        let read = rest.iter().position(|&byte| byte == b'\n').and_then(|end| {
            let line = read_record(&rest[..end])?;
            Some((line, self.at + end + 1))
        });
        match read {
            Some((line, next)) => {
                self.at = next;
                Some(Ok(line))
            }
            None => {
                // The iteration ends here: after a malformed record no boundary of a later one can
                // be trusted.
                let at = std::mem::replace(&mut self.at, self.captured.len());
                Some(Err(RecordMalformed { at }))
            }
        }
    }
}

fn read_record(record: &[u8]) -> Option<OutputLine<'_>> {
    // Bounded, or a damaged record of megabytes would be searched for each of its lines.
    let blank = record.iter().take(RECORD_HEAD_BYTES_MAX).position(|&byte| byte == b' ')?;
    let digits = &record[..blank];
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let at_ms = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let [tag, b' ', bytes @ ..] = &record[blank + 1..] else { return None };
    let source = match tag.to_ascii_lowercase() {
        b'o' => OutputSource::Out,
        b'e' => OutputSource::Err,
        b'n' => OutputSource::Note,
        _ => return None,
    };
    Some(OutputLine { at_ms, source, ends: tag.is_ascii_lowercase(), bytes })
}

/// `bytes` as text that cannot steer a terminal or deceive an eye.
///
/// What is not UTF-8 becomes U+FFFD. Control characters, escape sequences, marks that turn the
/// direction of text, line separators and invisible tags become visible signs; tabs stay, and a
/// carriage return at the end is dropped. With `keep_colour`, sequences that only set colour and
/// weight stay too, and the text ends with a reset when there was one.
pub fn printable(bytes: &[u8], keep_colour: bool) -> String {
    // Programs that write for Windows end lines so; shown as a symbol it would end every line.
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let mut text = String::with_capacity(bytes.len());
    let mut coloured = false;
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(next) = rest.chars().next() {
            let colour = if keep_colour { colour_bytes(rest) } else { 0 };
            if colour > 0 {
                coloured = true;
                text.push_str(&rest[..colour]);
                rest = &rest[colour..];
            } else {
                push_visible(&mut text, next);
                rest = &rest[next.len_utf8()..];
            }
        }
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    if coloured {
        // A job may leave its colour on, and the next line belongs to another job.
        text.push_str("\u{1b}[0m");
    }
    text
}

/// How many bytes at the start of `text` are one sequence that sets colour or weight; 0: none.
fn colour_bytes(text: &str) -> usize {
    let Some(parameters) = text.strip_prefix("\u{1b}[") else { return 0 };
    // Only colours are kept. Every other sequence can move the cursor, set the title or ask the
    // terminal for an answer.
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';' && c != ':');
    match end {
        Some(end) if parameters[end..].starts_with('m') => end + 3,
        Some(_) | None => 0,
    }
}

fn push_visible(text: &mut String, next: char) {
    match next {
        '\t' => text.push('\t'),
        '\u{7f}' => text.push('\u{2421}'),
        // Unicode has a picture for each of these, in the same order.
        '\0'..='\u{1f}' => {
            text.push(char::from_u32(0x2400 + u32::from(next)).unwrap_or('\u{fffd}'));
        }
        '\u{80}'..='\u{9f}'
        | '\u{61c}'
        | '\u{200b}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}'
        | '\u{e0000}'..='\u{e007f}' => {
            let _ = write!(text, "<U+{:04X}>", u32::from(next));
        }
        visible => text.push(visible),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_ms: u64, source: OutputSource, ends: bool, bytes: &[u8]) -> OutputLine<'_> {
        OutputLine { at_ms, source, ends, bytes }
    }

    #[test]
    fn records_read_back_as_written() {
        let written = [
            line(0, OutputSource::Out, true, b"hello"),
            line(7, OutputSource::Err, false, b"\xff\x00 n 3 o "),
            line(7, OutputSource::Err, true, b""),
            line(u64::MAX, OutputSource::Note, true, b"9 bytes omitted"),
        ];
        let mut captured = Vec::new();
        for line in &written {
            line.write(&mut captured);
        }
        let read: Result<Vec<_>, _> = lines(&captured).collect();
        assert_eq!(read, Ok(written.to_vec()));
        assert!(captured.starts_with(b"0 o hello\n7 E \xff"));
    }

    #[test]
    fn the_longest_record_fits_in_64_kib() {
        let mut captured = Vec::new();
        line(u64::MAX, OutputSource::Out, true, &vec![b'x'; LINE_BYTES_MAX]).write(&mut captured);
        assert_eq!(captured.len(), 64 * 1024);
    }

    #[test]
    fn a_record_that_cannot_be_read_ends_the_reading_and_tells_where() {
        for bad in ["x o a\n", "1 q a\n", "1  o a\n", " o a\n", "1 o", "\n", "+1 o a\n", "1 oa\n"] {
            let captured = format!("5 o good\n{bad}6 o after\n");
            let captured = if bad.ends_with('\n') { &captured[..] } else { &captured[..12] };
            let read: Vec<_> = lines(captured.as_bytes()).collect();
            assert_eq!(read.len(), 2, "{bad:?}");
            assert_eq!(read[1], Err(RecordMalformed { at: 9 }), "{bad:?}");
        }
    }

    #[test]
    fn nothing_captured_is_no_line() {
        assert_eq!(lines(b"").count(), 0);
    }

    #[test]
    fn shown_text_cannot_steer_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\x07\x08\0", false), "a␛[2Jb␇␈␀");
        assert_eq!(printable("\u{9b}2J\u{7f}".as_bytes(), true), "<U+009B>2J␡");
        assert_eq!(printable(b"\x1b]0;title\x07", true), "␛]0;title␇");
    }

    #[test]
    fn shown_text_cannot_hide_or_turn_around() {
        assert_eq!(printable("a\u{202e}b\u{2066}".as_bytes(), false), "a<U+202E>b<U+2066>");
        assert_eq!(printable("\u{e0041}\u{2028}".as_bytes(), false), "<U+E0041><U+2028>");
        assert_eq!(printable(b"safe\rDROP\r", false), "safe␍DROP");
    }

    #[test]
    fn what_is_not_text_is_marked_and_the_rest_stays() {
        assert_eq!(printable(b"caf\xc3\xa9 \xff\xfe ok\t!", false), "café \u{fffd}\u{fffd} ok\t!");
    }

    #[test]
    fn colours_stay_only_when_asked_for() {
        let red = b"\x1b[1;31mred\x1b[m\x1b[5A";
        assert_eq!(printable(red, false), "␛[1;31mred␛[m␛[5A");
        assert_eq!(printable(red, true), "\x1b[1;31mred\x1b[m␛[5A\x1b[0m");
        assert_eq!(printable(b"\x1b[31", true), "␛[31");
    }
}
