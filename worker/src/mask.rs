//! Hides secrets in what leaves the worker: output, outputs, messages.
//!
//! A secret is looked for as it is, line by line, and in the forms in which tools repeat it:
//! base64 at every alignment, hexadecimal, percent-encoded, as a JSON string, quoted for a shell.
//! What a script does to a secret beyond that (reversed, one letter a line) is not found.

use std::{cmp::Ordering, collections::BTreeSet, fmt::Write as _, sync::Arc};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;

/// Shortest secret, and shortest form of one, that is masked. A shorter one would turn half the
/// output into stars and still be easy to guess, so such a secret is refused.
pub const SECRET_BYTES_MIN: usize = 4;
/// Longest secret, in bytes: room for keys and certificates, and a bound on what is searched for.
pub const SECRET_BYTES_MAX: usize = 16 * 1024;
/// The text that replaces a secret.
pub const STARS: &str = "***";
/// `base64` breaks its lines after 76 characters, `openssl` after 64.
const BASE64_COLUMNS: [usize; 2] = [64, 76];

/// Shortest line of a longer secret of which base64 and hex are masked: those of shorter ones are
/// found by chance.
const ENCODED_BYTES_MIN: usize = 8;

/// A secret that cannot be masked. Names it and never holds its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretUnusable {
    /// The worker's environment has no such variable.
    #[error("the worker's environment has no secret `{name}`")]
    Absent {
        /// The variable.
        name: String,
    },
    /// Shorter than [`SECRET_BYTES_MIN`] or longer than [`SECRET_BYTES_MAX`].
    #[error(
        "the secret `{name}` cannot be masked: it must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes"
    )]
    Size {
        /// The variable.
        name: String,
    },
    /// Together they are more than can be searched for.
    #[error("the secrets cannot be masked: together they are too long")]
    TooMany,
}

/// All forms of an attempt's secrets.
#[derive(Debug)]
pub(crate) struct Mask {
    /// Sorted, each once.
    forms: Vec<Vec<u8>>,
    /// Which bytes a form begins with.
    first: [bool; 256],
    longest: usize,
    searcher: Option<AhoCorasick>,
}

impl Mask {
    /// Masks these secrets, given as name and value.
    pub(crate) fn of<'a>(
        secrets: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, SecretUnusable> {
        let mut forms = BTreeSet::new();
        for (name, value) in secrets {
            let usable = SECRET_BYTES_MIN..=SECRET_BYTES_MAX;
            if !usable.contains(&value.len()) {
                // The job is refused, not the mask: a job must never run with a secret that would
                // be printed.
                return Err(SecretUnusable::Size { name: name.to_owned() });
            }
            collect_forms(value, &mut forms);
        }
        // Forms of several lines are covered by those of their lines, which the output may
        // interleave.
        forms.retain(|form| form.len() >= SECRET_BYTES_MIN && !form.contains(&b'\n'));
        let longest = forms.iter().map(Vec::len).max().unwrap_or(0);
        let searcher = if forms.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&forms);
            Some(built.map_err(|_| SecretUnusable::TooMany)?)
        };
        let mut first = [false; 256];
        for form in &forms {
            first[usize::from(form[0])] = true;
        }
        // A set is in order, which the search for beginnings relies on.
        Ok(Self { forms: forms.into_iter().collect(), first, longest, searcher })
    }

    /// Masks nothing.
    pub(crate) fn none() -> Self {
        Self { forms: Vec::new(), first: [false; 256], longest: 0, searcher: None }
    }

    /// Length of the longest form, in bytes; 0: nothing to mask.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// `text` without secrets.
    pub(crate) fn text(self: &Arc<Self>, text: &str) -> String {
        if self.searcher.is_none() {
            return text.to_owned();
        }
        let mut masker = Masker::new(Arc::clone(self));
        let mut masked = Vec::with_capacity(text.len());
        masker.feed(text.as_bytes(), &mut masked);
        masker.finish(&mut masked);
        String::from_utf8(masked)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// The parts of `bytes` that are secret, in order and apart from each other.
    fn secret_parts(&self, bytes: &[u8]) -> Vec<(usize, usize)> {
        let mut parts: Vec<(usize, usize)> = Vec::new();
        let Some(searcher) = &self.searcher else { return parts };
        // Overlapping, because forms contain each other: hiding only the first would show the rest
        // of a longer one.
        for found in searcher.find_overlapping_iter(bytes) {
            let (mut start, end) = (found.start(), found.end());
            // Parts that overlap become one, or the stars between them would tell how long each is.
            while let Some(&(before, _)) = parts.last().filter(|part| part.1 > start) {
                start = start.min(before);
                parts.pop();
            }
            parts.push((start, end));
        }
        parts
    }

    /// Length of the longest end of `bytes` that a secret may begin with.
    fn undecided(&self, bytes: &[u8]) -> usize {
        self.undecided_by(bytes, <[u8]>::cmp)
    }

    /// As [`Mask::undecided`]; `compare` orders a form and an end, and is called for every step.
    ///
    /// This runs for every piece of output and looks at as many ends as the longest form has
    /// bytes: 48 KiB for a long secret, which has hundreds of forms. So a form is searched for
    /// among the sorted forms, and only for ends whose first byte begins a form at all.
    fn undecided_by(
        &self,
        bytes: &[u8],
        mut compare: impl FnMut(&[u8], &[u8]) -> Ordering,
    ) -> usize {
        let most = self.longest.saturating_sub(1).min(bytes.len());
        (1..=most)
            .rev()
            .find(|&length| {
                let end = &bytes[bytes.len() - length..];
                if !self.first[usize::from(end[0])] {
                    return false;
                }
                // Forms that begin with `end` follow it; `end` itself is no beginning of more.
                let next =
                    self.forms.partition_point(|form| compare(form, end) != Ordering::Greater);
                self.forms.get(next).is_some_and(|form| form.starts_with(end))
            })
            .unwrap_or(0)
    }
}

/// Masks a stream, in whatever pieces it arrives: bytes that may be the beginning of a secret wait
/// until it is clear, at most as many as the longest form has.
#[derive(Debug)]
pub(crate) struct Masker {
    mask: Arc<Mask>,
    held: Vec<u8>,
    /// How many of the held bytes are already shown as stars.
    covered: usize,
}

impl Masker {
    pub(crate) fn new(mask: Arc<Mask>) -> Self {
        Self { mask, held: Vec::new(), covered: 0 }
    }

    /// Masks more of the stream and appends to `masked` what is clear by now.
    pub(crate) fn feed(&mut self, bytes: &[u8], masked: &mut Vec<u8>) {
        if self.mask.searcher.is_none() {
            masked.extend_from_slice(bytes);
            return;
        }
        self.held.extend_from_slice(bytes);
        let clear = self.held.len() - self.mask.undecided(&self.held);
        self.release(clear, masked);
    }

    /// The stream is over: what waited was no secret.
    pub(crate) fn finish(&mut self, masked: &mut Vec<u8>) {
        self.release(self.held.len(), masked);
    }

    /// Forgets what waits, because what follows it in the stream is missing. Returns how much.
    pub(crate) fn drop_held(&mut self) -> usize {
        let dropped = self.held.len() - self.covered;
        self.held.clear();
        self.covered = 0;
        dropped
    }

    fn release(&mut self, clear: usize, masked: &mut Vec<u8>) {
        let mut shown = self.covered;
        for (start, end) in self.mask.secret_parts(&self.held) {
            if start >= clear {
                break;
            }
            if start > shown {
                masked.extend_from_slice(&self.held[shown..start]);
            }
            // A secret that began in the previous piece already has its stars.
            if start >= self.covered {
                masked.extend_from_slice(STARS.as_bytes());
            }
            shown = shown.max(end);
        }
        if shown < clear {
            masked.extend_from_slice(&self.held[shown..clear]);
            shown = clear;
        }
        self.held.drain(..clear);
        // The last part may end behind what is released: its rest must not be shown with the next
        // piece.
        self.covered = shown - clear;
    }
}

fn collect_forms(value: &[u8], forms: &mut BTreeSet<Vec<u8>>) {
    for line in value.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        collect_text_forms(line, forms);
    }
    collect_text_forms(value, forms);
    // Programs encode a line of a secret, or all of it but the newline at its end, which a file has
    // and a header of HTTP has not.
    let lines = value.split(|&byte| byte == b'\n').filter(|line| line.len() >= ENCODED_BYTES_MIN);
    let trimmed = value.strip_suffix(b"\n").unwrap_or(value);
    let without_return = |text: &[u8]| text.strip_suffix(b"\r").unwrap_or(text).to_vec();
    let parts: BTreeSet<Vec<u8>> = [value.to_vec(), trimmed.to_vec(), without_return(trimmed)]
        .into_iter()
        .chain(lines.map(without_return))
        .collect();
    for part in parts {
        collect_base64(&part, forms);
        let lower = hex::encode(&part);
        forms.insert(lower.to_uppercase().into_bytes());
        forms.insert(lower.into_bytes());
    }
}

fn collect_text_forms(value: &[u8], forms: &mut BTreeSet<Vec<u8>>) {
    forms.insert(value.to_vec());
    for kept in [&b"-_.~"[..], b"-_.~!*'()", b"-_.~/", b"-_.*"] {
        // Encoders differ in the characters that they keep, in the case of digits and in the space.
        for upper in [true, false] {
            for plus in [true, false] {
                forms.insert(percent_encoded(value, kept, upper, plus));
            }
        }
    }
    forms.insert(shell_quoted(value));
    forms.insert(backslashed(value));
    let Ok(text) = std::str::from_utf8(value) else { return };
    let json = serde_json::Value::from(text).to_string();
    // Without the quotes: the secret may be a part of a longer string.
    let json = json[1..json.len() - 1].to_owned();
    forms.insert(json.replace('/', "\\/").into_bytes());
    forms.insert(ascii_json(&json).into_bytes());
    // As Go writes JSON, and with it `kubectl`, `terraform` and `docker`.
    let go = json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e");
    forms.insert(go.into_bytes());
    for (quote, apostrophe) in [("&quot;", "&#39;"), ("&#34;", "&#39;"), ("&quot;", "&apos;")] {
        let html = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        forms.insert(html.replace('"', quote).replace('\'', apostrophe).into_bytes());
    }
    forms.insert(json.into_bytes());
}

fn percent_encoded(value: &[u8], kept: &[u8], upper: bool, plus: bool) -> Vec<u8> {
    let mut encoded = String::with_capacity(value.len() * 3);
    for &byte in value {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            encoded.push(char::from(byte));
        } else if plus && byte == b' ' {
            encoded.push('+');
        } else if upper {
            let _ = write!(encoded, "%{byte:02X}");
        } else {
            let _ = write!(encoded, "%{byte:02x}");
        }
    }
    encoded.into_bytes()
}

fn shell_quoted(value: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(value.len());
    for &byte in value {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            other => quoted.push(other),
        }
    }
    quoted
}

/// A word as `printf %q` writes it: a backslash before whatever means something to a shell.
fn backslashed(value: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(value.len() * 2);
    for &byte in value {
        if byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"-_./:@%+=".contains(&byte) {
            quoted.push(b'\\');
        }
        quoted.push(byte);
    }
    quoted
}

/// A JSON text with everything beyond ASCII escaped, as some writers do.
fn ascii_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
    }
    escaped
}

/// What base64 makes of `value` wherever it stands in a longer text: only the characters that do
/// not depend on its neighbours.
fn collect_base64(value: &[u8], forms: &mut BTreeSet<Vec<u8>>) {
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    // Base64 works on groups of three bytes, so a secret has three forms, one for each alignment.
    for before in 0..3 {
        let mut padded = vec![0; before];
        padded.extend_from_slice(value);
        let first = (before * 8).div_ceil(6);
        let last = padded.len() * 8 / 6;
        for alphabet in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let encoded = alphabet.encode(&padded).into_bytes();
            // The characters at both ends share bits with what is next to the secret.
            if let Some(own) = encoded.get(first..last) {
                forms.insert(own.to_vec());
            }
            if before == 0 {
                // Alone in its text, it is broken into lines; a short rest would hit by chance.
                for columns in BASE64_COLUMNS {
                    let lines = encoded.chunks(columns).filter(|line| line.len() >= 8);
                    forms.extend(lines.map(<[u8]>::to_vec));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
