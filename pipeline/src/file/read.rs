//! Typed values out of the tree. Whatever is wrong is written down with its place, and reading
//! continues, so that one look at a file finds all of it.

use std::{borrow::Cow, ops::Range};

use towpath_engine::ids::invisible_in;

use super::{
    duration::duration_ms,
    found::Found,
    tree::{Entry, Node, Shape},
};
use crate::{
    diagnostics::{Diagnostic, shown},
    schema::Key,
};

/// Longest name of a job, stage and the like, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 200;
/// Most unknown keys of one map that are reported.
const UNKNOWN_KEYS_MAX: usize = 100;
/// Most values that entries of `exclude` are compared with, over the whole file. Source: a fifth of
/// a second; 200,000 jobs of two axes take 50 entries that leave an axis out.
const MATCHED_MAX: usize = 20_000_000;
/// Most words that misspelt ones are compared with, over the whole file.
const COMPARED_MAX: usize = 100_000;

/// A value with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed<T> {
    /// The value.
    pub value: T,
    /// Its place, in bytes of the file.
    pub span: Range<usize>,
}

/// Reads values and collects what is wrong with them.
pub(super) struct Reader<'t> {
    /// The file.
    pub text: &'t str,
    /// What was found so far.
    pub found: Found,
    compared: usize,
    matched: usize,
}

/// The values of a map whose keys are known.
#[derive(Clone, Copy)]
pub(super) struct Fields<'n, 't> {
    entries: &'n [Entry<'t>],
}

impl<'n, 't> Fields<'n, 't> {
    /// The value of a key.
    pub(super) fn get(&self, name: &str) -> Option<&'n Node<'t>> {
        self.entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
    }

    /// The span of a key.
    pub(super) fn key_span(&self, name: &str) -> Option<Range<usize>> {
        self.entries.iter().find(|entry| entry.key == name).map(|entry| entry.key_span.clone())
    }
}

impl<'t> Reader<'t> {
    /// A reader of `text` that continues from what was found in it.
    pub(super) fn new(text: &'t str, found: Found) -> Self {
        Self { text, found, compared: 0, matched: 0 }
    }

    /// Writes down an error.
    pub(super) fn error(&mut self, code: &'static str, span: &Range<usize>, message: String) {
        self.found.push(Diagnostic::error(code, span, message));
    }

    /// Whether `values` more may be compared with entries of `exclude`; says so once if not. A file
    /// of 40 KiB can ask for hundreds of millions of comparisons.
    pub(super) fn may_match(&mut self, values: usize, span: &Range<usize>) -> bool {
        let before = self.matched;
        self.matched = self.matched.saturating_add(values);
        if self.matched > MATCHED_MAX && before <= MATCHED_MAX {
            let message = format!("`exclude` is compared with more than {MATCHED_MAX} values");
            let problem = Diagnostic::error("MATRIX_SHAPE", span, message);
            let help = "name a value of every axis in each entry, or make fewer combinations";
            self.found.push(problem.help(help));
        }
        self.matched <= MATCHED_MAX
    }

    /// The advice to write what is nearest to `word`, if anything is near.
    pub(super) fn did_you_mean<'c>(
        &mut self,
        word: &str,
        candidates: impl IntoIterator<Item = &'c str>,
    ) -> Option<String> {
        let compared = &mut self.compared;
        let candidates = candidates.into_iter().take_while(|_| {
            *compared += 1;
            // One budget for all suggestions of a file: 100,000 unknown names compared with 100,000
            // jobs would take minutes.
            *compared <= COMPARED_MAX
        });
        nearest(word, candidates).map(|near| format!("did you mean `{}`?", shown(near)))
    }

    /// The map at `node`, whose keys are those of the table. `place` is blamed for missing ones.
    pub(super) fn fields<'n>(
        &mut self,
        node: &'n Node<'t>,
        keys: &[Key],
        what: &str,
        place: &Range<usize>,
    ) -> Option<Fields<'n, 't>> {
        // `None` and not an empty map, so that the caller does not report each required key as
        // missing on top.
        let Shape::Map(entries) = &node.shape else {
            self.mismatch(node, &format!("{what} is a map"));
            return None;
        };
        let mut meant: Vec<&str> = Vec::new();
        let unknown = entries.iter().filter(|entry| keys.iter().all(|key| key.name != entry.key));
        // More of one map are repetitions of one mistake, such as a list of jobs at the wrong
        // level.
        for entry in unknown.take(UNKNOWN_KEYS_MAX) {
            let names: Vec<&'static str> = keys.iter().map(|key| key.name).collect();
            let near = nearest(&entry.key, names.iter().copied());
            // A misspelt required key would otherwise be reported twice: as unknown and as missing.
            meant.extend(near);
            let help = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("{what} takes `{}`", names.join("`, `")),
            };
            let message = format!("{what} has no key `{}`", shown(&entry.key));
            let problem = Diagnostic::error("KEY_UNKNOWN", &entry.key_span, message);
            self.found.push(problem.label("not a key").help(help));
        }
        let is_missing = |key: &&Key| {
            // A misspelt key is reported once, as misspelt.
            let is_given = entries.iter().any(|entry| entry.key == key.name);
            key.is_required && !is_given && !meant.contains(&key.name)
        };
        for key in keys.iter().filter(is_missing) {
            let message = format!("{what} has no `{}`", key.name);
            let problem = Diagnostic::error("KEY_MISSING", place, message);
            let label = format!("`{}` is missing", key.name);
            self.found.push(problem.label(label).help(key.doc));
        }
        Some(Fields { entries })
    }

    /// Writes down that the value is of another kind.
    pub(super) fn mismatch(&mut self, node: &Node<'t>, expected: &str) {
        let is = match &node.shape {
            Shape::List(_) => "a list".to_owned(),
            Shape::Map(_) => "a map".to_owned(),
            Shape::Scalar { .. } if is_null(node) => "nothing".to_owned(),
            Shape::Scalar { text, .. } => format!("`{}`", shown(text)),
        };
        let problem = Diagnostic::error("VALUE_TYPE", &node.span, format!("{expected}, not {is}"));
        // The most frequent cause of a wrong type, and one that the message alone does not explain.
        let is_number = matches!(&node.shape, Shape::Scalar { text, is_plain: false }
            if text.parse::<f64>().is_ok());
        let help = is_number.then(|| "remove the quotes: a quoted number is text".to_owned());
        self.found.push(problem.help_if(help));
    }

    /// A text as it is written, be it a number or a boolean elsewhere.
    pub(super) fn text<'n>(&mut self, node: &'n Node<'t>, what: &str) -> Option<&'n str> {
        match &node.shape {
            Shape::Scalar { text, .. } if !is_null(node) => Some(text),
            Shape::Scalar { .. } | Shape::List(_) | Shape::Map(_) => {
                self.mismatch(node, &format!("{what} is a text"));
                None
            }
        }
    }

    /// A text that people and programs can tell apart from others: printable and not too long.
    pub(super) fn name(&mut self, node: &Node<'t>, what: &str) -> Option<Placed<String>> {
        let text = self.text(node, what)?;
        self.check_name(text, &node.span, what)
            .then(|| Placed { value: text.to_owned(), span: node.span.clone() })
    }

    /// Whether `name` is a name. If not, that is written down.
    pub(super) fn check_name(&mut self, name: &str, span: &Range<usize>, what: &str) -> bool {
        let fault = match name {
            "" => "is empty".to_owned(),
            _ if name.len() > NAME_BYTES_MAX => format!("is longer than {NAME_BYTES_MAX} bytes"),
            // Two names that differ in white space only look the same in every list.
            _ if name.trim() != name => "begins or ends with white space".to_owned(),
            _ => match invisible_in(name) {
                Some(c) => format!("holds a character that cannot be seen, U+{:04X}", u32::from(c)),
                None => return true,
            },
        };
        self.error("NAME_MALFORMED", span, format!("{what} {fault}"));
        false
    }

    /// One text or a list of texts.
    pub(super) fn texts(&mut self, node: &Node<'t>, what: &str) -> Vec<Placed<String>> {
        let nodes = match &node.shape {
            Shape::List(items) => items.as_slice(),
            // A single text stands for a list of one; a map is then reported by `text` below with
            // its place.
            Shape::Scalar { .. } | Shape::Map(_) => std::slice::from_ref(node),
        };
        let mut texts = Vec::with_capacity(nodes.len());
        for node in nodes {
            if let Some(text) = self.text(node, what) {
                texts.push(Placed { value: text.to_owned(), span: node.span.clone() });
            }
        }
        texts
    }

    /// One name or a list of names.
    pub(super) fn names(&mut self, node: &Node<'t>, what: &str) -> Vec<Placed<String>> {
        let mut names = self.texts(node, what);
        names.retain(|name| self.check_name(&name.value, &name.span, what));
        names
    }

    /// Exactly `true` or `false`.
    pub(super) fn flag(&mut self, node: &Node<'t>, what: &str) -> Option<bool> {
        match plain(node) {
            // Only these two: YAML 1.1 reads `yes`, `on` and `y` as true and YAML 1.2 does not, so
            // a file would change its meaning with the parser.
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some(_) | None => {
                self.mismatch(node, &format!("{what} is `true` or `false`"));
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(super) fn count(&mut self, node: &Node<'t>, what: &str, min: u32, max: u32) -> Option<u32> {
        // A negative number is a number out of bounds, and not a value of the wrong type.
        let digits = plain(node).map(|text| text.strip_prefix('-').unwrap_or(text));
        let is_number =
            digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
        let Some(text) = plain(node).filter(|_| is_number) else {
            self.mismatch(node, &format!("{what} is a whole number"));
            return None;
        };
        match text.parse::<u32>() {
            Ok(number) if (min..=max).contains(&number) => Some(number),
            Ok(_) | Err(_) => {
                let message = format!("{what} is {min} to {max}, not {}", shown(text));
                self.error("VALUE_RANGE", &node.span, message);
                None
            }
        }
    }

    /// A duration in milliseconds.
    pub(super) fn duration(&mut self, node: &Node<'t>, what: &str, min_ms: u64) -> Option<u64> {
        let text = self.text(node, what)?;
        match duration_ms(text) {
            Ok(ms) if ms >= min_ms => Some(ms),
            Ok(_) => {
                self.error("VALUE_RANGE", &node.span, format!("{what} is longer than zero"));
                None
            }
            Err(why) => {
                let message = format!("{what} is not a valid duration: `{}`", shown(text));
                self.found.push(Diagnostic::error("VALUE_RANGE", &node.span, message).help(why));
                None
            }
        }
    }

    /// One word out of a few.
    pub(super) fn choice(
        &mut self,
        node: &Node<'t>,
        what: &str,
        words: &[&'static str],
    ) -> Option<&'static str> {
        let text = self.text(node, what)?;
        let chosen = words.iter().copied().find(|word| *word == text);
        if chosen.is_none() {
            let message = format!("{what} cannot be `{}`", shown(text));
            let help = self.did_you_mean(text, words.iter().copied());
            let help = help.unwrap_or_else(|| format!("{what} is `{}`", words.join("`, `")));
            self.found.push(Diagnostic::error("VALUE_UNKNOWN", &node.span, message).help(help));
        }
        chosen
    }

    /// The items of a list.
    pub(super) fn list<'n>(&mut self, node: &'n Node<'t>, what: &str) -> Option<&'n [Node<'t>]> {
        match &node.shape {
            Shape::List(items) => Some(items),
            Shape::Scalar { .. } | Shape::Map(_) => {
                self.mismatch(node, &format!("{what} is a list"));
                None
            }
        }
    }

    /// The entries of a map with keys of the author's choice.
    pub(super) fn entries<'n>(
        &mut self,
        node: &'n Node<'t>,
        what: &str,
    ) -> Option<&'n [Entry<'t>]> {
        match &node.shape {
            Shape::Map(entries) => Some(entries),
            Shape::Scalar { .. } | Shape::List(_) => {
                self.mismatch(node, &format!("{what} is a map"));
                None
            }
        }
    }

    /// Where a part of a value is in the file, or else the whole value.
    ///
    /// The value may be escaped, folded or filled in; so its part is looked for by its text, and
    /// if that is there several times, by which of them it is.
    pub(super) fn part(
        &self,
        span: &Range<usize>,
        value: &str,
        part: Range<usize>,
    ) -> Range<usize> {
        let source = self.text.get(span.clone()).unwrap_or_default();
        let (before, words) = (value.get(..part.start), value.get(part).unwrap_or_default());
        if words.is_empty() {
            return span.clone();
        }
        // The value may be shorter than its source (folded lines, escapes), so the part is found by
        // its text and by how often it came before.
        let earlier = before.map_or(0, |before| before.matches(words).count());
        let places: Vec<usize> =
            source.match_indices(words).map(|(at, _)| at).take(earlier + 1).collect();
        match places.last() {
            Some(at) => span.start + at..span.start + at + words.len(),
            None => span.clone(),
        }
    }
}

/// The text of a value that is not quoted.
pub(super) fn plain<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    match &node.shape {
        Shape::Scalar { text, is_plain: true } => Some(text),
        Shape::Scalar { .. } | Shape::List(_) | Shape::Map(_) => None,
    }
}

/// Whether nothing is given: an empty value, `~` or `null`.
pub(super) fn is_null(node: &Node<'_>) -> bool {
    matches!(plain(node), Some("" | "~" | "null" | "Null" | "NULL"))
}

/// Whether a script can read a variable of this name.
pub(super) fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next();
    first.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether an expression can read `name` without brackets.
pub(super) fn is_key(name: &str) -> bool {
    is_variable(&name.replace('-', "_")) && !name.starts_with('-') && !name.ends_with('-')
}

/// The candidate most like `word`, if one is alike.
pub(super) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let length = word.chars().count();
    // Short words need one typo at most, or every word would be near every other.
    let allowed = (length / 3).clamp(1, 4);
    let lower: Cow<'_, str> = word.to_lowercase().into();
    candidates
        .into_iter()
        // The difference in length is a lower bound of the distance and much cheaper to compute.
        .filter(|candidate| candidate.chars().count().abs_diff(length) <= allowed)
        .map(|candidate| {
            (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate)
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested_and_no_far_one() {
        assert_eq!(nearest("maunal", ["always", "manual"]), Some("manual"));
        assert_eq!(nearest("neeeds", ["stage", "needs"]), Some("needs"));
        assert_eq!(nearest("Stage", ["stage", "needs"]), Some("stage"));
        assert_eq!(nearest("migrate-product", ["migrate-products", "x"]), Some("migrate-products"));
        assert_eq!(nearest("foo", ["stage", "needs"]), None);
        assert_eq!(nearest("", ["stage"]), None);
    }

    #[test]
    fn variables_and_keys_are_distinguished_from_other_names() {
        assert!(is_variable("A_1") && is_variable("_x") && is_key("n-rows"));
        for name in ["", "1A", "A=B", "A B", "A\0", "Ä"] {
            assert!(!is_variable(name) && !is_key(name), "{name:?}");
        }
        assert!(!is_key("-a") && !is_key("a-") && !is_variable("a-b"));
    }
}
