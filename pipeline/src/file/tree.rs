//! YAML as a tree in which every node knows its place.
//!
//! The tree is built from the parser's events, so that one pass finds every problem a reader of
//! the tree can find, and so that what a hostile file can cost is counted here: nodes, nesting,
//! and what aliases unfold to. Scalars stay text; what a text means is up to the reader of the
//! value.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, ScanError, Tag};

use super::{characters, found::Found};
use crate::diagnostics::{Diagnostic, is_obeyed, shown};

/// Most nodes of a file, aliases unfolded. Source: 10,000 jobs have about 200,000.
const NODES_MAX: usize = 1_500_000;
/// Deepest nesting. Source: a pipeline needs six.
const DEPTH_MAX: usize = 64;
/// Most nodes that anchors keep and aliases unfold to, together. Source: every job of a large
/// file may share its options; an alias bomb passes this within a millisecond.
const ALIASED_NODES_MAX: usize = 100_000;
/// Longest key that YAML reads on one line with its value, in characters. Source: YAML 1.2, 7.4.2.
const KEY_CHARS_MAX: usize = 1_024;
/// Up to this many keys are compared with each other; more go through a table.
const KEYS_COMPARED_MAX: usize = 16;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node<'t> {
    /// In bytes of the file. For an alias: the span of the alias.
    pub span: Range<usize>,
    /// The value.
    pub shape: Shape<'t>,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Shape<'t> {
    /// A text. Only a plain one, without quotes, may stand for a number and the like.
    Scalar { text: Cow<'t, str>, is_plain: bool },
    /// A list.
    List(Vec<Node<'t>>),
    /// Keys with values, in file order, each key once.
    Map(Vec<Entry<'t>>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry<'t> {
    /// The key's text.
    pub key: Cow<'t, str>,
    /// The span of the key.
    pub key_span: Range<usize>,
    /// The value.
    pub value: Node<'t>,
}

impl Node<'_> {
    fn nodes(&self) -> usize {
        1 + match &self.shape {
            Shape::Scalar { .. } => 0,
            Shape::List(items) => items.iter().map(Node::nodes).sum(),
            Shape::Map(entries) => entries.iter().map(|entry| 1 + entry.value.nodes()).sum(),
        }
    }
}

/// The tree of `text`, or `None` when it has none or reading had to stop.
pub(super) fn tree<'t>(text: &'t str, found: &mut Found) -> Option<Node<'t>> {
    let (base, body) = match text.strip_prefix('\u{feff}') {
        // The parser does not accept a byte order mark; all spans are moved by its length.
        Some(body) => ('\u{feff}'.len_utf8(), body),
        None => (0, text),
    };
    let options = granit_parser::options! {
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
        emit_comments: false,
    };
    let mut builder = Builder {
        text,
        open: Vec::new(),
        root: None,
        anchors: HashMap::new(),
        nodes: 0,
        aliased: 0,
        documents: 0,
        found,
    };
    // Events, not the parser's own tree: that one unfolds aliases without a bound and has no
    // places.
    for event in Parser::new_from_str_with_options(body, options) {
        let outcome = match event {
            Ok((event, span)) => {
                let place = |marker: granit_parser::Marker| {
                    base + marker.byte_offset().unwrap_or(0).min(body.len())
                };
                // Some events of the parser end before they begin; a range must not.
                let (start, end) = (place(span.start), place(span.end));
                builder.take(event, start..end.max(start))
            }
            Err(error) => Err(syntax(&error, base, body).into()),
        };
        if let Err(problem) = outcome {
            builder.found.push(*problem);
            // A tree that ends in the middle would report every key after it as missing.
            return None;
        }
    }
    builder.root
}

/// A collection that is not closed yet.
struct Open<'t> {
    start: usize,
    anchor: usize,
    content: Content<'t>,
}

enum Content<'t> {
    List(Vec<Node<'t>>),
    Map { entries: Vec<Entry<'t>>, merged: Vec<Node<'t>>, key: Option<Key<'t>> },
}

struct Key<'t> {
    text: Cow<'t, str>,
    span: Range<usize>,
    is_merge: bool,
}

struct Builder<'t, 'f> {
    text: &'t str,
    open: Vec<Open<'t>>,
    root: Option<Node<'t>>,
    anchors: HashMap<usize, Node<'t>>,
    nodes: usize,
    aliased: usize,
    documents: usize,
    found: &'f mut Found,
}

impl<'t> Builder<'t, '_> {
    fn take(&mut self, event: Event<'t>, span: Range<usize>) -> Result<(), Box<Diagnostic>> {
        if event.is_node() {
            // Before the node is built: the bound is on memory, and a tree is much larger than its
            // text.
            self.count(1, &span)?;
        }
        if let Some(tag) = event.tag() {
            self.tag(tag, &span);
        }
        match event {
            Event::DocumentStart(..) => self.document(&span),
            Event::Scalar(text, style, anchor, tag) => {
                // Only a plain scalar can be a number or a boolean; `"1"` and `!!str 1` are texts.
                let is_plain = style == ScalarStyle::Plain && tag.is_none();
                self.characters(&text, style, &span);
                let span = self.trimmed(span);
                self.done(Node { span, shape: Shape::Scalar { text, is_plain } }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.begin(span.start, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, _) => {
                let content = Content::Map { entries: Vec::new(), merged: Vec::new(), key: None };
                self.begin(span.start, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(span.end),
            Event::Alias(anchor) => self.alias(anchor, span),
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentEnd
            | Event::Anchor(..)
            | Event::UnresolvedAlias(_)
            | _ => Ok(()),
        }
    }

    fn count(&mut self, nodes: usize, span: &Range<usize>) -> Result<(), Box<Diagnostic>> {
        self.nodes += nodes;
        if self.nodes <= NODES_MAX {
            return Ok(());
        }
        let message = format!("the file has more than {NODES_MAX} values");
        Err(Diagnostic::error("FILE_TOO_LARGE", span, message).into())
    }

    /// Counts what anchors and aliases copy.
    fn copied(&mut self, node: &Node<'t>, span: &Range<usize>) -> Result<(), Box<Diagnostic>> {
        // Counted as often as it is copied: ten aliases of ten aliases are a hundred copies, in any
        // file of this form.
        let nodes = node.nodes();
        self.aliased += nodes;
        if self.aliased > ALIASED_NODES_MAX {
            let message = format!("aliases unfold to more than {ALIASED_NODES_MAX} values");
            return Err(Diagnostic::error("ALIAS_EXCESSIVE", span, message).into());
        }
        self.count(nodes, span)
    }

    fn document(&mut self, span: &Range<usize>) -> Result<(), Box<Diagnostic>> {
        self.documents += 1;
        if self.documents == 1 {
            return Ok(());
        }
        let message = "a second document begins here; a pipeline file has one";
        Err(Diagnostic::error("DOCUMENTS_SEVERAL", span, message).into())
    }

    fn tag(&mut self, tag: &Tag, span: &Range<usize>) {
        if tag.is_yaml_core_schema_tag("str") {
            return;
        }
        let message = format!("the tag `{}` is not accepted", shown(&tag.original()));
        let help = "remove it; no key needs a tag";
        self.found.push(Diagnostic::error("TAG_REFUSED", span, message).help(help));
    }

    /// Only between double quotes can an escape make a character that the file does not hold.
    fn characters(&mut self, text: &str, style: ScalarStyle, span: &Range<usize>) {
        let is_refused = |c: &char| is_obeyed(*c) && !matches!(c, '\n' | '\t');
        // Only double quotes have escapes; what is written as it is was checked with the text.
        if style == ScalarStyle::DoubleQuoted
            && let Some(c) = text.chars().find(is_refused)
        {
            self.found.push(characters::refusal(c, span));
        }
    }

    /// The span without the white space at its end, which the parser counts for block texts.
    fn trimmed(&self, span: Range<usize>) -> Range<usize> {
        let kept = self.text.get(span.clone()).map_or(0, |text| text.trim_end().len());
        span.start..span.start + kept
    }

    fn begin(
        &mut self,
        start: usize,
        anchor: usize,
        content: Content<'t>,
    ) -> Result<(), Box<Diagnostic>> {
        // The parser has the same limit. This one does not depend on its version.
        if self.open.len() >= DEPTH_MAX {
            return Err(too_deep(&(start..start)).into());
        }
        self.open.push(Open { start, anchor, content });
        Ok(())
    }

    fn end(&mut self, end: usize) -> Result<(), Box<Diagnostic>> {
        let Some(Open { start, anchor, content }) = self.open.pop() else { return Ok(()) };
        let shape = match content {
            Content::List(items) => Shape::List(items),
            Content::Map { entries, merged, key: _ } => Shape::Map(self.map(entries, merged)),
        };
        let span = self.trimmed(start..end.max(start));
        self.done(Node { span, shape }, anchor)
    }

    fn alias(&mut self, anchor: usize, span: Range<usize>) -> Result<(), Box<Diagnostic>> {
        // Taken out while it is copied, and not yet there while it is built: an alias inside its
        // own anchor finds nothing and is reported instead of followed for ever.
        let Some(node) = self.anchors.remove(&anchor) else {
            let message = "an alias cannot refer to a value that contains it";
            return Err(Diagnostic::error("YAML_SYNTAX", &span, message).into());
        };
        self.copied(&node, &span)?;
        let copy = Node { span, shape: node.shape.clone() };
        self.anchors.insert(anchor, node);
        self.done(copy, 0)
    }

    /// Puts a finished node where it belongs.
    fn done(&mut self, node: Node<'t>, anchor: usize) -> Result<(), Box<Diagnostic>> {
        if anchor != 0 {
            // The copy that is kept for aliases takes memory as well, even if no alias follows.
            self.copied(&node, &node.span.clone())?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            // The first root: a second document is an error, and must not replace what the spans
            // refer to.
            self.root.get_or_insert(node);
            return Ok(());
        };
        match &mut open.content {
            Content::List(items) => items.push(node),
            Content::Map { entries, merged, key: held } => match held.take() {
                None => *held = Some(key(node)?),
                Some(key) if key.is_merge => merged.push(node),
                Some(Key { text, span, .. }) => {
                    entries.push(Entry { key: text, key_span: span, value: node });
                }
            },
        }
        Ok(())
    }

    /// The entries, each key once, and behind them what `<<` adds.
    fn map(&mut self, entries: Vec<Entry<'t>>, merged: Vec<Node<'t>>) -> Vec<Entry<'t>> {
        // Before the merge: a key of the map itself may repeat a merged one, and goes before it.
        let mut entries = self.without_duplicates(entries);
        for node in merged {
            let sources = match node.shape {
                Shape::Map(entries) => vec![entries],
                Shape::List(items) if items.iter().all(|i| matches!(i.shape, Shape::Map(_))) => {
                    let maps = items.into_iter().filter_map(|item| match item.shape {
                        Shape::Map(entries) => Some(entries),
                        Shape::List(_) | Shape::Scalar { .. } => None,
                    });
                    maps.collect()
                }
                Shape::List(_) | Shape::Scalar { .. } => {
                    let message = "`<<` takes a map, or a list of maps";
                    self.found.push(Diagnostic::error("VALUE_TYPE", &node.span, message));
                    continue;
                }
            };
            for entry in sources.into_iter().flatten() {
                // Earlier sources go before later ones, as YAML 1.1 says of `<<`.
                if entries.iter().all(|held| held.key != entry.key) {
                    entries.push(entry);
                }
            }
        }
        entries
    }

    fn without_duplicates(&mut self, entries: Vec<Entry<'t>>) -> Vec<Entry<'t>> {
        let mut first: HashMap<Cow<'t, str>, Range<usize>> = HashMap::new();
        let mut kept: Vec<Entry<'t>> = Vec::with_capacity(entries.len());
        // Most maps have few keys, and a hash map for each would cost more than all comparisons;
        // with 100,000 jobs the comparisons would be quadratic.
        let is_large = entries.len() > KEYS_COMPARED_MAX;
        for entry in entries {
            let before = if is_large {
                first.get(&entry.key).cloned()
            } else {
                kept.iter().find(|held| held.key == entry.key).map(|held| held.key_span.clone())
            };
            match before {
                None => {
                    if is_large {
                        first.insert(entry.key.clone(), entry.key_span.clone());
                    }
                    kept.push(entry);
                }
                Some(before) => {
                    let message = format!("the key `{}` is given twice", shown(&entry.key));
                    let problem = Diagnostic::error("KEY_DUPLICATE", &entry.key_span, message);
                    let problem = problem.label("again here").also(&before, "first here");
                    self.found.push(problem);
                }
            }
        }
        kept
    }
}

fn key(node: Node<'_>) -> Result<Key<'_>, Box<Diagnostic>> {
    match node.shape {
        Shape::Scalar { text, is_plain } => {
            let is_merge = is_plain && text == "<<";
            Ok(Key { text, span: node.span, is_merge })
        }
        Shape::List(_) | Shape::Map(_) => {
            let message = "a key is a text, not a list or a map";
            Err(Diagnostic::error("YAML_SYNTAX", &node.span, message).into())
        }
    }
}

fn too_deep(span: &Range<usize>) -> Diagnostic {
    let message = format!("values are nested more than {DEPTH_MAX} deep");
    Diagnostic::error("NESTING_TOO_DEEP", span, message)
}

/// The first key before `at`, or on its line, that is longer than YAML reads. The parser only says
/// that it expected a `:`, at a place that does not show why.
fn long_key(body: &str, at: usize) -> Option<Range<usize>> {
    let end = body[at..].find('\n').map_or(body.len(), |newline| at + newline);
    let mut start = 0;
    body[..end].split_inclusive('\n').find_map(|line| {
        let key = line.trim_start_matches([' ', '-', '{', '?']);
        let indent = line.len() - key.len();
        let length = key.find(": ").or_else(|| key.trim_end().strip_suffix(':').map(str::len));
        let found = start + indent..start + indent + length.unwrap_or_default();
        start += line.len();
        (body[found.clone()].chars().count() > KEY_CHARS_MAX).then_some(found)
    })
}

/// What the parser could not read.
fn syntax(error: &ScanError, base: usize, body: &str) -> Diagnostic {
    let at = error.marker().byte_offset().unwrap_or(0).min(body.len());
    let at = body.floor_char_boundary(at);
    let c = body[at..].chars().next();
    let span = base + at..base + at + c.filter(|c| *c != '\n').map_or(0, char::len_utf8);
    let why = error.info();
    // The parser has no codes for its errors, only texts. A test fails if they change.
    if why.contains("nesting") || why.contains("recursion") || why.contains("nested") {
        return too_deep(&span);
    }
    // A key longer than 1,024 characters is not a key to the parser, whose message then names
    // something else far away.
    if let Some(key) = long_key(body, at) {
        let length = key.len();
        let message = format!(
            "a name or key has {length} bytes; YAML reads at most {KEY_CHARS_MAX} characters"
        );
        return Diagnostic::error("NAME_MALFORMED", &(base + key.start..base + key.end), message);
    }
    let message = format!("cannot read the file: {why}");
    let line_start = body[..at].rfind('\n').map_or(0, |newline| newline + 1);
    match tab(&body[line_start..]).filter(|_| why.contains("tab") || c == Some('\t')) {
        Some(tab) => {
            let tab = base + line_start + tab;
            Diagnostic::error("YAML_SYNTAX", &(tab..tab + 1), message)
                .label("a tab")
                .help("YAML is indented with spaces")
        }
        None => Diagnostic::error("YAML_SYNTAX", &span, message),
    }
}

/// The first tab among the white space at the beginning of a line.
fn tab(text: &str) -> Option<usize> {
    let mut start = 0;
    text.split_inclusive('\n').find_map(|line| {
        let spaces = line.len() - line.trim_start_matches(' ').len();
        let tab = line[spaces..].starts_with('\t').then_some(start + spaces);
        start += line.len();
        tab
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<Node<'_>>, Vec<Diagnostic>) {
        let mut found = Found::default();
        let tree = tree(text, &mut found);
        (tree, found.list().to_vec())
    }

    fn code(text: &str) -> &'static str {
        read(text).1.first().map_or("none", |problem| problem.code)
    }

    /// Every scalar with the text of the file at its place.
    fn places(node: &Node<'_>, text: &str, into: &mut Vec<(String, String)>) {
        match &node.shape {
            Shape::Scalar { text: value, .. } => {
                into.push((value.to_string(), text[node.span.clone()].to_owned()));
            }
            Shape::List(items) => items.iter().for_each(|item| places(item, text, into)),
            Shape::Map(entries) => {
                for entry in entries {
                    into.push((entry.key.to_string(), text[entry.key_span.clone()].to_owned()));
                    places(&entry.value, text, into);
                }
            }
        }
    }

    #[test]
    fn every_value_knows_its_place() {
        for start in ["", "\u{feff}", "# ä 日本\r\n"] {
            let text = format!(
                "{start}a: b c   # x\r\nä: [1, \"d e\", 'f']\nk: |\n  one\n  two\n\nl: >-\n  x\nm:\n"
            );
            let (tree, found) = read(&text);
            assert_eq!(found, []);
            let mut all = Vec::new();
            places(&tree.unwrap(), &text, &mut all);
            let plain = [
                ("a", "a"),
                ("b c", "b c"),
                ("ä", "ä"),
                ("1", "1"),
                ("d e", "\"d e\""),
                ("f", "'f'"),
                ("k", "k"),
            ];
            for (at, (value, source)) in plain.iter().enumerate() {
                assert_eq!((&*all[at].0, &*all[at].1), (*value, *source));
            }
            assert_eq!(all[7].0, "one\ntwo\n");
            assert!(all[7].1.ends_with("two"), "{:?}", all[7].1);
        }
    }

    #[test]
    fn a_duplicate_key_is_reported_with_both_places() {
        let (tree, found) = read("a: 1\nb: 2\na: 3\n");
        assert!(tree.is_some());
        assert_eq!((found[0].code, found[0].span.clone()), ("KEY_DUPLICATE", 10..11));
        assert_eq!(found[0].also[0].0, 0..1);
        let many: String = (0..50).map(|n| format!("k{}: 1\n", n % 49)).collect();
        assert_eq!(read(&many).1.len(), 1);
    }

    #[test]
    fn aliases_and_merges_are_unfolded_and_own_keys_win() {
        let text = "x: &x {a: 1, b: 2}\ny: {b: 3, <<: *x}\nz: {<<: [*x, {c: 4}]}\nw: *x\n";
        let (tree, found) = read(text);
        assert_eq!(found, []);
        let mut all = Vec::new();
        let Shape::Map(entries) = &tree.as_ref().unwrap().shape else { panic!("a map") };
        places(&entries[1].value, text, &mut all);
        let values: Vec<&str> = all.iter().map(|(value, _)| value.as_str()).collect();
        assert_eq!(values, ["b", "3", "a", "1"]);
        assert_eq!(entries[3].value.span, text.len() - 3..text.len() - 1);
        assert_eq!(code("<<: 1"), "VALUE_TYPE");
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..10 {
            let refs = vec![format!("*a{}", n - 1); 9].join(", ");
            bomb.push_str(&format!("a{n}: &a{n} [{refs}]\n"));
        }
        assert_eq!(code(&bomb), "ALIAS_EXCESSIVE");
        assert_eq!(code(&"[".repeat(200_000)), "NESTING_TOO_DEEP");
        assert_eq!(code(&"{a: ".repeat(200_000)), "NESTING_TOO_DEEP");
        assert_eq!(code(&"- ".repeat(200_000)), "NESTING_TOO_DEEP");
        let steps: String = (0..70).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        assert_eq!(code(&steps), "NESTING_TOO_DEEP");
        let anchored: String = (0..60).map(|n| format!("&a{n} [")).collect();
        let anchored = format!("{anchored}{}", vec!["x"; 9_000].join(","));
        assert_ne!(code(&format!("{anchored}{}", "]".repeat(60))), "none");
        assert_eq!(code("a: &a [*a]"), "YAML_SYNTAX");
    }

    #[test]
    fn unsupported_yaml_is_refused_with_its_place() {
        assert_eq!(code("a: 1\n---\nb: 2\n"), "DOCUMENTS_SEVERAL");
        assert_eq!(code("a: !!python/object x"), "TAG_REFUSED");
        assert_eq!(code("a: !!str 5"), "none");
        assert_eq!(code("a: \"x\\e[2J\""), "CHARACTER_REFUSED");
        assert_eq!(code("[a]: 1"), "YAML_SYNTAX");
        assert_eq!(code("a: b: c"), "YAML_SYNTAX");
        let long = format!("a:\n  {}: 1\n", "k".repeat(10_000));
        let (_, found) = read(&long);
        assert_eq!(found[0].code, "NAME_MALFORMED");
        assert_eq!(found[0].span, 5..10_005);
        let (_, found) = read("a:\n\tb: 1\n");
        assert_eq!(found[0].code, "YAML_SYNTAX");
        assert_eq!(found[0].help, ["YAML is indented with spaces"]);
        assert_eq!(found[0].span, 3..4);
        let (_, found) = read("a:\n  b: x\n\tc: 1\n");
        assert_eq!((found[0].span.clone(), &*found[0].label), (10..11, "a tab"));
    }
}
