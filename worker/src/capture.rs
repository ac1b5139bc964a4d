//! Turns what a job prints into chunks of records: masked, cut into lines, stamped, and bounded.
//!
//! The beginning of the output is kept, and its newest end; what is between is counted and left
//! out. Reading the pipes is not done here, nor is sending the chunks.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use towpath_engine::captured_output::{LINE_BYTES_MAX, OutputLine, OutputSource};

use crate::mask::{Mask, Masker};

/// Largest chunk, in bytes of records.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// A line waits for company no longer than this.
pub const CHUNK_AGE_MAX: Duration = Duration::from_millis(100);
/// How many bytes of records are kept from the start of the output.
pub const LOG_HEAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many bytes of records are kept from the end, once the head is full.
pub const LOG_TAIL_BYTES_MAX: usize = 1024 * 1024;
/// The most one attempt's log can have. Source: the head may be passed by one read of 64 KiB
/// of empty lines, each of which becomes a record.
pub const LOG_BYTES_MAX: usize = LOG_HEAD_BYTES_MAX + LOG_TAIL_BYTES_MAX + 2 * 1024 * 1024;
/// Most pieces that wait in the tail, so that output in drops cannot fill memory.
const TAIL_PIECES_MAX: usize = 16 * 1024;
/// After a gap, the beginning of a line is looked for in so many bytes.
const CUT_BYTES: usize = 4 * 1024;

/// Some records of an attempt's output, in order, in the format of
/// `towpath_engine::captured_output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputChunk {
    /// Whole records, [`CHUNK_BYTES_MAX`] at most.
    pub records: Bytes,
}

/// One of the two streams.
#[derive(Debug)]
struct Side {
    masker: Masker,
    /// Masked bytes of the line that has not ended.
    line: Vec<u8>,
    /// Part of the stream was omitted before what comes next.
    gap: bool,
}

/// The newest output, while it is unknown yet whether it is the end.
#[derive(Debug, Default)]
struct Tail {
    pieces: VecDeque<(u64, OutputSource, Vec<u8>)>,
    bytes: usize,
    left_out: u64,
}

/// The output of one attempt on its way out.
#[derive(Debug)]
pub(crate) struct Capture {
    out: Side,
    err: Side,
    longest_secret: usize,
    chunks: VecDeque<Bytes>,
    open: Vec<u8>,
    open_since: Option<Instant>,
    kept: usize,
    tail: Option<Tail>,
    /// Why nothing may be shown, if so.
    withheld: Option<String>,
    scratch: Vec<u8>,
}

impl Capture {
    pub(crate) fn new(mask: &Arc<Mask>) -> Self {
        let side = || Side { masker: Masker::new(Arc::clone(mask)), line: Vec::new(), gap: false };
        Self {
            out: side(),
            err: side(),
            longest_secret: mask.longest(),
            chunks: VecDeque::new(),
            open: Vec::new(),
            open_since: None,
            kept: 0,
            tail: None,
            withheld: None,
            scratch: Vec::new(),
        }
    }

    /// Shows nothing but a note that says `why`: the secrets to be masked are not known.
    pub(crate) fn withhold(&mut self, why: String) {
        self.withheld = Some(why);
    }

    /// Captures what was read from a stream, `at_ms` milliseconds after the start.
    pub(crate) fn feed(&mut self, source: OutputSource, at_ms: u64, bytes: &[u8]) {
        // An unknown secret could be anywhere in the output, so nothing of it is kept, not even
        // masked.
        if self.withheld.is_some() || bytes.is_empty() {
            return;
        }
        // Unmasked into the tail: masking what is dropped later would cost time for each byte of a
        // flood.
        if self.kept >= LOG_HEAD_BYTES_MAX {
            let tail = self.tail.get_or_insert_default();
            if let Some(dropped) = tail.push(at_ms, source, bytes) {
                self.out.gap |= dropped.0;
                self.err.gap |= dropped.1;
            }
            return;
        }
        self.mask_and_cut(source, at_ms, bytes);
    }

    /// A chunk that should be sent now.
    pub(crate) fn take(&mut self) -> Option<OutputChunk> {
        self.chunks.pop_front().map(|records| OutputChunk { records })
    }

    /// Whether a chunk waits to be sent; nothing more should be read until it is.
    pub(crate) fn is_full(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// When [`Capture::flush`] is due, if anything waits for it.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.open_since.map(|since| since + CHUNK_AGE_MAX)
    }

    /// Makes a chunk of the lines that wait.
    pub(crate) fn flush(&mut self) {
        self.open_since = None;
        if !self.open.is_empty() {
            self.chunks.push_back(Bytes::from(std::mem::take(&mut self.open)));
        }
    }

    /// The output is over: makes chunks of everything that is left.
    pub(crate) fn finish(&mut self, at_ms: u64) {
        if let Some(why) = self.withheld.take() {
            self.record(OutputLine {
                at_ms,
                source: OutputSource::Note,
                ends: true,
                bytes: why.as_bytes(),
            });
        }
        if let Some(tail) = self.tail.take() {
            self.finish_tail(tail, at_ms);
        }
        for source in [OutputSource::Out, OutputSource::Err] {
            self.end_stream(source, at_ms);
        }
        self.flush();
    }

    fn side(&mut self, source: OutputSource) -> &mut Side {
        match source {
            OutputSource::Err => &mut self.err,
            OutputSource::Out | OutputSource::Note => &mut self.out,
        }
    }

    fn mask_and_cut(&mut self, source: OutputSource, at_ms: u64, bytes: &[u8]) {
        // One buffer for all reads: an allocation for each of them costs more than the masking.
        let mut masked = std::mem::take(&mut self.scratch);
        self.side(source).masker.feed(bytes, &mut masked);
        self.cut(source, at_ms, &masked);
        masked.clear();
        self.scratch = masked;
    }

    /// Cuts masked bytes into lines, and lines that are too long into pieces.
    fn cut(&mut self, source: OutputSource, at_ms: u64, mut masked: &[u8]) {
        let mut line = std::mem::take(&mut self.side(source).line);
        while !masked.is_empty() {
            // A job may print gigabytes without a newline; a line in memory is bounded.
            let room = LINE_BYTES_MAX - line.len();
            // One byte more than fits, because a newline there ends a line of exactly the longest
            // length.
            let window = &masked[..masked.len().min(room + 1)];
            let newline = window.iter().position(|&byte| byte == b'\n');
            let (ends, taken) = match newline {
                Some(end) => (true, end),
                None if window.len() > room => (false, room),
                None => {
                    line.extend_from_slice(masked);
                    break;
                }
            };
            // Most lines arrive whole, and are written without a copy.
            if line.is_empty() {
                self.record(OutputLine { at_ms, source, ends, bytes: &masked[..taken] });
            } else {
                line.extend_from_slice(&masked[..taken]);
                self.record(OutputLine { at_ms, source, ends, bytes: &line });
                line.clear();
            }
            masked = &masked[taken + usize::from(ends)..];
        }
        self.side(source).line = line;
    }

    fn end_stream(&mut self, source: OutputSource, at_ms: u64) {
        let mut masked = Vec::new();
        self.side(source).masker.finish(&mut masked);
        self.cut(source, at_ms, &masked);
        let line = std::mem::take(&mut self.side(source).line);
        if !line.is_empty() {
            self.record(OutputLine { at_ms, source, ends: true, bytes: &line });
        }
    }

    fn record(&mut self, line: OutputLine<'_>) {
        let before = self.open.len();
        line.write(&mut self.open);
        self.kept += self.open.len() - before;
        // A record is never split: readers of a chunk decode it without the one before.
        if self.open.len() > CHUNK_BYTES_MAX {
            let last = self.open.split_off(before);
            self.flush();
            self.open = last;
        }
        // The time of the first line, or a steady trickle of lines would delay a chunk forever.
        self.open_since.get_or_insert_with(Instant::now);
    }

    /// Says what was omitted, then shows the newest lines.
    fn finish_tail(&mut self, tail: Tail, at_ms: u64) {
        let mut left_out = tail.left_out;
        let longest = self.longest_secret;
        // Bytes that waited for the rest of a secret are dropped: that rest was omitted.
        let mut cuts = [OutputSource::Out, OutputSource::Err].map(|source| {
            if self.side(source).gap {
                left_out += self.side(source).masker.drop_held() as u64;
                self.end_stream(source, at_ms);
            }
            Cut { fed: 0, enough: longest.max(CUT_BYTES), done: !self.side(source).gap }
        });
        // Into records of its own first: only then is it known how many bytes of lines fit.
        let mut newest = self.continued();
        for (at_ms, source, bytes) in &tail.pieces {
            let mut masked = Vec::with_capacity(bytes.len());
            newest.side(*source).masker.feed(bytes, &mut masked);
            let cut = match source {
                OutputSource::Err => &mut cuts[1],
                OutputSource::Out | OutputSource::Note => &mut cuts[0],
            };
            let skipped = cut.skip(bytes.len(), &masked);
            left_out += skipped as u64;
            newest.cut(*source, *at_ms, &masked[skipped..]);
        }
        newest.end_stream(OutputSource::Out, at_ms);
        newest.end_stream(OutputSource::Err, at_ms);
        newest.flush();
        let mut records: Vec<u8> = Vec::with_capacity(newest.kept);
        newest.chunks.iter().for_each(|chunk| records.extend_from_slice(chunk));
        let first = first_kept(&records, &mut left_out);
        if left_out > 0 {
            let note = format!("{left_out} bytes of output omitted");
            self.record(OutputLine {
                at_ms,
                source: OutputSource::Note,
                ends: true,
                bytes: note.as_bytes(),
            });
        }
        self.flush();
        let mut rest = &records[first..];
        while !rest.is_empty() {
            let most = &rest[..rest.len().min(CHUNK_BYTES_MAX)];
            // Records end with a newline, so a chunk ends with one as well.
            let end = most.iter().rposition(|&byte| byte == b'\n').map_or(rest.len(), |at| at + 1);
            self.chunks.push_back(Bytes::copy_from_slice(&rest[..end]));
            rest = &rest[end..];
        }
    }

    /// A capture that continues where this one stopped, with nothing to send.
    fn continued(&mut self) -> Self {
        let mask = Arc::new(Mask::none());
        let mut next = Self::new(&mask);
        std::mem::swap(&mut next.out, &mut self.out);
        std::mem::swap(&mut next.err, &mut self.err);
        next.longest_secret = self.longest_secret;
        next
    }
}

impl Tail {
    /// Keeps `bytes` and lets go of the oldest; says of which streams (out, err) something went.
    fn push(&mut self, at_ms: u64, source: OutputSource, bytes: &[u8]) -> Option<(bool, bool)> {
        self.bytes += bytes.len();
        // Pieces of one moment are joined, or a job that prints single bytes would fill the tail
        // with entries.
        match self.pieces.back_mut() {
            Some((at, from, piece))
                if (*at, *from) == (at_ms, source) && piece.len() < CHUNK_BYTES_MAX =>
            {
                piece.extend_from_slice(bytes);
            }
            Some(_) | None => self.pieces.push_back((at_ms, source, bytes.to_vec())),
        }
        let mut gone = None;
        while let Some((_, source, oldest)) = self.pieces.front() {
            let enough = self.bytes - oldest.len() >= LOG_TAIL_BYTES_MAX;
            if !enough && self.pieces.len() <= TAIL_PIECES_MAX {
                break;
            }
            let (out, err) = gone.unwrap_or_default();
            gone = Some((out || *source == OutputSource::Out, err || *source == OutputSource::Err));
            self.bytes -= oldest.len();
            self.left_out += oldest.len() as u64;
            self.pieces.pop_front();
        }
        gone
    }
}

/// Finds where a stream with a gap may be shown again: where a line begins, or after so many bytes
/// that the rest of a secret whose beginning was omitted must have passed. Such a rest would not
/// be recognised. What is skipped has gone through the mask, or a secret would be cut a second
/// time.
struct Cut {
    fed: usize,
    enough: usize,
    done: bool,
}

impl Cut {
    /// How many of the `masked` bytes, made of `raw` bytes, are not shown.
    fn skip(&mut self, raw: usize, masked: &[u8]) -> usize {
        if self.done {
            return 0;
        }
        self.fed += raw;
        if let Some(newline) = masked.iter().position(|&byte| byte == b'\n') {
            self.done = true;
            return newline + 1;
        }
        self.done = self.fed >= self.enough;
        masked.len()
    }
}

/// Where the newest [`LOG_TAIL_BYTES_MAX`] of `records` begin; counts the lines before.
fn first_kept(records: &[u8], left_out: &mut u64) -> usize {
    let over = records.len().saturating_sub(LOG_TAIL_BYTES_MAX);
    if over == 0 {
        return 0;
    }
    let first =
        records[over - 1..].iter().position(|&byte| byte == b'\n').map_or(0, |at| over + at);
    for line in towpath_engine::captured_output::lines(&records[..first]).flatten() {
        *left_out += line.bytes.len() as u64 + u64::from(line.ends);
    }
    first
}

#[cfg(test)]
mod tests {
    use towpath_engine::captured_output::lines;

    use super::*;

    fn capture(secrets: &[&str]) -> Capture {
        let secrets = secrets.iter().map(|secret| ("TOKEN", secret.as_bytes()));
        Capture::new(&Arc::new(Mask::of(secrets).unwrap()))
    }

    fn taken(capture: &mut Capture) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(chunk) = capture.take() {
            assert!(chunk.records.len() <= CHUNK_BYTES_MAX);
            assert_eq!(chunk.records.last(), Some(&b'\n'));
            all.extend_from_slice(&chunk.records);
        }
        all
    }

    fn finished(mut capture: Capture, at_ms: u64) -> Vec<u8> {
        capture.finish(at_ms);
        taken(&mut capture)
    }

    #[test]
    fn both_streams_become_records_in_order() {
        let mut capture = capture(&[]);
        capture.feed(OutputSource::Out, 1, b"one\ntw");
        capture.feed(OutputSource::Err, 2, b"bad \xff\n");
        capture.feed(OutputSource::Out, 3, b"o\n\nrest");
        assert_eq!(finished(capture, 9), b"1 o one\n2 e bad \xff\n3 o two\n3 o \n9 o rest\n");
    }

    #[test]
    fn lines_wait_for_company_but_not_for_long() {
        let mut capture = capture(&[]);
        assert_eq!(capture.due(), None);
        capture.feed(OutputSource::Out, 1, b"unfinished");
        assert_eq!(capture.due(), None);
        capture.feed(OutputSource::Out, 1, b"\n");
        assert!(capture.due().is_some() && !capture.is_full());
        capture.flush();
        assert!(capture.is_full());
        assert_eq!(capture.due(), None);
    }

    #[test]
    fn a_long_line_continues_in_further_records() {
        let mut capture = capture(&[]);
        let long = vec![b'x'; LINE_BYTES_MAX * 2 + 5];
        for piece in long.chunks(50_000) {
            capture.feed(OutputSource::Out, 1, piece);
        }
        capture.feed(OutputSource::Out, 2, b"\nshort\n");
        let all = finished(capture, 3);
        let read: Vec<_> = lines(&all).map(Result::unwrap).collect();
        let shapes: Vec<_> = read.iter().map(|line| (line.ends, line.bytes.len())).collect();
        let full = LINE_BYTES_MAX;
        assert_eq!(shapes, [(false, full), (false, full), (true, 5), (true, 5)]);
    }

    #[test]
    fn a_line_of_exactly_the_longest_length_is_one_record() {
        let mut capture = capture(&[]);
        capture.feed(OutputSource::Out, 1, &vec![b'x'; LINE_BYTES_MAX]);
        capture.feed(OutputSource::Out, 1, b"\n");
        let all = finished(capture, 1);
        let read: Vec<_> = lines(&all).map(Result::unwrap).collect();
        assert_eq!((read.len(), read[0].ends, read[0].bytes.len()), (1, true, LINE_BYTES_MAX));
    }

    #[test]
    fn the_head_and_the_newest_tail_are_kept_and_the_middle_is_counted() {
        let mut capture = capture(&[]);
        let mut fed = 0;
        let mut kept = Vec::new();
        for at_ms in 0..2_000 {
            let block = format!("line of block {at_ms:05}\n").repeat(1_000);
            fed += block.len();
            capture.feed(OutputSource::Out, at_ms, block.as_bytes());
            kept.extend(taken(&mut capture));
        }
        capture.feed(OutputSource::Err, 2_000, b"the very last\n");
        fed += 14;
        capture.finish(2_001);
        kept.extend(taken(&mut capture));

        assert!(kept.len() > LOG_HEAD_BYTES_MAX && kept.len() <= LOG_BYTES_MAX, "{}", kept.len());
        assert!(kept.ends_with(b"1999 o line of block 01999\n2000 e the very last\n"));
        let mut shown = 0;
        let mut left_out = 0;
        for line in lines(&kept).map(Result::unwrap) {
            if line.source == OutputSource::Note {
                let note = std::str::from_utf8(line.bytes).unwrap();
                left_out = note.split(' ').next().unwrap().parse().unwrap();
            } else {
                shown += line.bytes.len() + 1;
            }
        }
        assert_eq!(shown + left_out, fed);
        assert!(left_out > 0);
    }

    #[test]
    fn the_cut_never_shows_the_rest_of_a_secret() {
        for shift in 0..40 {
            let mut capture = capture(&["correct-horse-battery"]);
            let block = "correct-horse-battery ".repeat(3_000);
            capture.feed(OutputSource::Out, 0, &vec![b'.'; shift]);
            for at_ms in 0..320 {
                capture.feed(OutputSource::Out, at_ms, block.as_bytes());
                while capture.take().is_some() {}
                // Only the passage into the tail matters here.
                capture.kept = LOG_HEAD_BYTES_MAX;
            }
            let all = finished(capture, 400);
            let text = String::from_utf8(all).unwrap();
            assert!(text.contains("omitted"));
            for part in ["correct", "horse", "battery", "attery "] {
                assert!(!text.contains(part), "{shift}: {part}");
            }
        }
    }

    #[test]
    fn output_in_drops_cannot_fill_memory() {
        let mut capture = capture(&[]);
        capture.kept = LOG_HEAD_BYTES_MAX;
        for at_ms in 0..100_000 {
            capture.feed(OutputSource::Out, at_ms, b"x");
        }
        assert!(capture.tail.as_ref().unwrap().pieces.len() <= TAIL_PIECES_MAX);
        assert!(finished(capture, 100_001).starts_with(b"100001 n 87712 bytes"));
    }

    #[test]
    fn withheld_output_is_only_a_note() {
        let mut capture = capture(&[]);
        capture.withhold("not shown".to_owned());
        capture.feed(OutputSource::Out, 1, b"secret\n");
        assert_eq!(finished(capture, 2), b"2 n not shown\n");
    }
}
