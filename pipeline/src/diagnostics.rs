//! What is wrong with a pipeline file, and where: drawn for people, or as JSON for programs.
//!
//! All problems of a file travel together. What counts as a problem is decided in
//! `pipeline_file`; nothing here knows what a job is.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;
use towpath_engine::escape::shown_all;
pub(crate) use towpath_engine::escape::{is_obeyed, shown};

/// Most problems that are kept of one file. Source: people do not read more, and a broken generator
/// can make one per job.
pub const PROBLEMS_MAX: usize = 500;
/// Columns that a drawing takes by default.
const WIDTH_DEFAULT: usize = 140;
/// Lines shown before and after the marked ones.
const LINES_AROUND: usize = 1;

/// Every code that a pipeline file can earn, in alphabetical order.
pub const FILE_CODES: [&str; 42] = [
    "ALIAS_EXCESSIVE",
    "ARTIFACT_PATH",
    "CHARACTER_REFUSED",
    "COMMAND_TOO_LONG",
    "CYCLE",
    "DOCUMENTS_SEVERAL",
    "ENV_NAME",
    "EXPRESSION_QUOTED",
    "EXPRESSION_SHELL",
    "EXPRESSION_SYNTAX",
    "EXPRESSION_UNKNOWN",
    "FILE_EMPTY",
    "FILE_NOT_UTF8",
    "FILE_TOO_LARGE",
    "GATE_POINTLESS",
    "JOBS_NONE",
    "JOBS_TOO_MANY",
    "JOB_TOO_LARGE",
    "KEY_DUPLICATE",
    "KEY_MISSING",
    "KEY_UNKNOWN",
    "MATRIX_SHAPE",
    "NAME_DUPLICATE",
    "NAME_MALFORMED",
    "NEEDS_NOTHING",
    "NEEDS_TOO_MANY",
    "NEED_DUPLICATE",
    "NEED_LATER",
    "NEED_SELF",
    "NEED_UNKNOWN",
    "NESTING_TOO_DEEP",
    "PLAN_TOO_LARGE",
    "RESOURCE_LIMITS_DIFFER",
    "SECRET_NAME",
    "STAGE_EMPTY",
    "STAGE_UNKNOWN",
    "TAG_REFUSED",
    "UNDO_POINTLESS",
    "VALUE_RANGE",
    "VALUE_TYPE",
    "VALUE_UNKNOWN",
    "YAML_SYNTAX",
];

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The file cannot run.
    Error,
    /// The file can run, and probably means something else.
    Warning,
}

/// One problem of a pipeline file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// One of [`FILE_CODES`].
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// Where, in bytes of the file.
    pub span: Range<usize>,
    /// What to write beside the marked text. May be empty.
    pub label: String,
    /// Other places that play a part, with what to write beside them.
    pub also: Vec<(Range<usize>, String)>,
    /// What to do about it.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// An error at `span`.
    pub fn error(code: &'static str, span: &Range<usize>, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            span: span.clone(),
            label: String::new(),
            also: Vec::new(),
            help: Vec::new(),
        }
    }

    /// A warning at `span`.
    pub fn warning(code: &'static str, span: &Range<usize>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, span, message) }
    }

    /// The same with these words beside the marked text.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// The same with one more place marked.
    #[must_use]
    pub fn also(mut self, span: &Range<usize>, label: impl Into<String>) -> Self {
        self.also.push((span.clone(), label.into()));
        self
    }

    /// The same with one more line of advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// The same, with advice if there is any.
    #[must_use]
    pub fn help_if(self, help: Option<String>) -> Self {
        match help {
            Some(help) => self.help(help),
            None => self,
        }
    }

    /// A drawing of the problem within the file's own lines.
    ///
    /// `width` is the terminal's, in columns. Whatever the file holds, the result moves no cursor.
    pub fn render(
        &self,
        file_name: &str,
        text: &str,
        colour: bool,
        width: Option<usize>,
    ) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.term_width(width.unwrap_or(WIDTH_DEFAULT));
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        // Only the lines around the problem are given to the renderer, which would otherwise scan
        // the whole file for each of 500 problems.
        let window = Window::around(self, text);
        // The file may hold control characters; drawn as they are they would be obeyed by the
        // terminal of the person who checks it.
        let source = safe_source(&text[window.bytes.clone()]);
        let mut snippet = Snippet::source(source)
            .line_start(window.first_line)
            .path(shown_path(file_name))
            .annotation(
                AnnotationKind::Primary
                    .span(window.place(&self.span, text))
                    .label(some(&self.label)),
            );
        for (span, label) in &self.also {
            let place = window.place(span, text);
            snippet = snippet.annotation(AnnotationKind::Context.span(place).label(some(label)));
        }
        let mut group: Group<'_> =
            level.primary_title(shown_all(&self.message)).id(self.code).element(snippet);
        for help in &self.help {
            group = group.element(Level::HELP.message(shown_all(help)));
        }
        renderer.render(&[group])
    }
}

/// All problems of one file, in the order of their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// The problems, errors and warnings mixed.
    pub list: Vec<Diagnostic>,
    /// How many more there were, beyond [`PROBLEMS_MAX`].
    pub left_off: usize,
}

impl Diagnostics {
    /// These problems, sorted by place. Of those that differ in nothing but their wording, as
    /// the jobs of one matrix make them, the first is kept.
    pub fn of(mut list: Vec<Diagnostic>) -> Self {
        list.sort_by(|a, b| {
            let key = |d: &Diagnostic| (d.span.start, d.span.end, d.severity, d.code);
            key(a).cmp(&key(b))
        });
        // The same fault of a template is found once for each job of its matrix.
        list.dedup_by(|a, b| (&a.span, a.code, &a.label) == (&b.span, b.code, &b.label));
        let left_off = list.len().saturating_sub(PROBLEMS_MAX);
        // A generated file can have a million faults; people read the first ones, and the count
        // says that there are more.
        if left_off > 0 {
            // Errors are kept before warnings.
            list.sort_by_key(|d| d.severity);
            list.truncate(PROBLEMS_MAX);
            list.sort_by_key(|d| (d.span.start, d.severity));
        }
        Self { list, left_off }
    }

    /// How many errors are listed.
    pub fn errors(&self) -> usize {
        self.list.iter().filter(|d| d.severity == Severity::Error).count()
    }

    /// How many warnings are listed.
    pub fn warnings(&self) -> usize {
        self.list.len() - self.errors()
    }

    /// The count in words, such as `3 errors, 1 warning`.
    pub fn summary(&self) -> String {
        let count = |n: usize, word: &str| match n {
            0 => None,
            1 => Some(format!("1 {word}")),
            n => Some(format!("{n} {word}s")),
        };
        let left_off = (self.left_off > 0).then(|| format!("{} more left off", self.left_off));
        let parts: Vec<String> =
            [count(self.errors(), "error"), count(self.warnings(), "warning"), left_off]
                .into_iter()
                .flatten()
                .collect();
        if parts.is_empty() { "no problems".to_owned() } else { parts.join(", ") }
    }

    /// Every problem drawn, and the count below.
    pub fn render(
        &self,
        file_name: &str,
        text: &str,
        colour: bool,
        width: Option<usize>,
    ) -> String {
        let mut drawn = String::new();
        for diagnostic in &self.list {
            drawn.push_str(&diagnostic.render(file_name, text, colour, width));
            drawn.push_str("\n\n");
        }
        drawn.push_str(&self.summary());
        drawn
    }

    /// Every problem for a program. Lines and columns count from 1, columns in characters.
    pub fn json(&self, text: &str) -> Vec<DiagnosticJson> {
        let lines = LineIndex::of(text);
        self.list.iter().map(|diagnostic| lines.json(diagnostic)).collect()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.list.iter().find(|d| d.severity == Severity::Error);
        match first {
            Some(first) => write!(f, "{}: {}", self.summary(), shown_all(&first.message)),
            None => f.write_str(&self.summary()),
        }
    }
}

impl std::error::Error for Diagnostics {}

/// A problem as programs read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiagnosticJson {
    /// One of [`FILE_CODES`].
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// The line it begins in, from 1.
    pub line: usize,
    /// The character of that line it begins at, from 1.
    pub column: usize,
    /// The line it ends in, from 1.
    pub end_line: usize,
    /// The character after its last, from 1.
    pub end_column: usize,
    /// The label beside the marked text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// What to do about it.
    pub help: Vec<String>,
}

/// Where the lines of a text begin.
pub struct LineIndex<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> LineIndex<'t> {
    /// The lines of `text`.
    pub fn of(text: &'t str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self { text, starts: std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect() }
    }

    /// Line and column of a byte, both from 1, the column in characters.
    pub fn place(&self, offset: usize) -> (usize, usize) {
        // Offsets come from parsers that may count into a character, and slicing there would panic.
        let offset = on_boundary(self.text, offset);
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts[line - 1];
        // Editors do not count a byte order mark as a column.
        (line, self.text[start..offset].trim_start_matches('\u{feff}').chars().count() + 1)
    }

    fn json(&self, diagnostic: &Diagnostic) -> DiagnosticJson {
        let (line, column) = self.place(diagnostic.span.start);
        let (end_line, end_column) = self.place(diagnostic.span.end);
        DiagnosticJson {
            code: diagnostic.code,
            severity: diagnostic.severity,
            message: shown_all(&diagnostic.message),
            line,
            column,
            end_line,
            end_column,
            label: shown_all(&diagnostic.label),
            help: diagnostic.help.iter().map(|help| shown_all(help)).collect(),
        }
    }
}

/// The lines of a file that one drawing needs, so that a drawing costs the same in any file.
struct Window {
    bytes: Range<usize>,
    first_line: usize,
}

impl Window {
    fn around(diagnostic: &Diagnostic, text: &str) -> Self {
        let spans =
            || std::iter::once(&diagnostic.span).chain(diagnostic.also.iter().map(|a| &a.0));
        let from = spans().map(|span| span.start).min().unwrap_or(0);
        let to = spans().map(|span| span.end).max().unwrap_or(0);
        let (from, to) = (on_boundary(text, from), on_boundary(text, to));
        let mut start = text[..from].rfind('\n').map_or(0, |at| at + 1);
        let mut end = text[to..].find('\n').map_or(text.len(), |at| to + at);
        // One line of context before and after, as compilers do: enough to find the place without
        // its number.
        for _ in 0..LINES_AROUND {
            start = text[..start.saturating_sub(1)].rfind('\n').map_or(0, |at| at + 1);
            let next = (end + 1).min(text.len());
            end = text[next..].find('\n').map_or(text.len(), |at| next + at);
        }
        // The mark is not drawn. A problem at offset 0 keeps it, because its span begins there.
        if text[..start].is_empty() && text.starts_with('\u{feff}') && from > 0 {
            start = '\u{feff}'.len_utf8();
        }
        let first_line = text[..start].bytes().filter(|byte| *byte == b'\n').count() + 1;
        Self { bytes: start..end, first_line }
    }

    /// `span` within the window's neutralised source, in which every character keeps its length.
    fn place(&self, span: &Range<usize>, text: &str) -> Range<usize> {
        let clamp = |at: usize| {
            on_boundary(text, at).clamp(self.bytes.start, self.bytes.end) - self.bytes.start
        };
        // A related place may be far away; it is clamped to the window instead of drawing
        // everything between.
        let (start, end) = (clamp(span.start), clamp(span.end));
        start..end.max(start)
    }
}

fn on_boundary(text: &str, offset: usize) -> usize {
    text.floor_char_boundary(offset.min(text.len()))
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| shown_all(text))
}

/// The source with everything that a terminal would obey replaced by text of the same length.
fn safe_source(text: &str) -> String {
    text.chars()
        // Replaced by characters of the same length in bytes, so that all spans still fit.
        .map(|c| match (is_obeyed(c), c.len_utf8()) {
            (false, _) => c,
            (true, 1) if c == '\n' || c == '\t' => c,
            (true, 1) if c == '\r' => ' ',
            (true, 1) => '?',
            (true, 2) => '\u{b7}',
            (true, _) => '\u{fffd}',
        })
        .collect()
}

fn shown_path(path: &str) -> String {
    shown_all(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "stages: [a]\njobs:\n  x:\n    stage: b\n    command: go\n";

    fn unknown_stage() -> Diagnostic {
        Diagnostic::error("STAGE_UNKNOWN", &(34..35), "there is no stage `b`")
            .label("not among the stages")
            .also(&(8..11), "the stages")
            .help("did you mean `a`?")
    }

    #[test]
    fn a_problem_is_drawn_within_its_lines() {
        let drawn = unknown_stage().render("towpath.yml", TEXT, false, None);

        assert!(drawn.starts_with("error[STAGE_UNKNOWN]: there is no stage `b`"), "{drawn}");
        assert!(drawn.contains("towpath.yml:4:12"), "{drawn}");
        assert!(drawn.contains("not among the stages"), "{drawn}");
        assert!(drawn.contains("help: did you mean `a`?"), "{drawn}");
    }

    #[test]
    fn a_drawing_moves_no_cursor_whatever_the_file_holds() {
        let text = "a: \u{1b}[2J\u{9b}2J\u{202e}x\r\nb: \u{7}\n";
        let nasty = "\u{1b}]0;x\u{7}";
        let problem = Diagnostic::error("YAML_SYNTAX", &(3..4), nasty).label(nasty).help(nasty);

        let drawn = problem.render(nasty, text, false, None);

        assert!(!drawn.chars().any(|c| is_obeyed(c) && c != '\n'), "{drawn:?}");
    }

    #[test]
    fn spans_outside_the_text_or_inside_a_character_do_no_harm() {
        for text in ["", "é", "\u{feff}", "a\n", "\n\n\n"] {
            for start in 0..6 {
                for end in start..8 {
                    let problem = Diagnostic::error("YAML_SYNTAX", &(start..end), "x")
                        .also(&(end..end + 9), "y");
                    assert!(problem.render("f", text, true, Some(20)).contains("YAML_SYNTAX"));
                    let all = Diagnostics::of(vec![problem]);
                    assert_eq!(all.json(text).len(), 1);
                }
            }
        }
    }

    #[test]
    fn the_summary_counts_in_words() {
        let warning = Diagnostic::warning("STAGE_EMPTY", &(0..1), "w");
        let at = |start: usize| Diagnostic::error("CYCLE", &(start..start + 1), "e");

        assert_eq!(Diagnostics::default().summary(), "no problems");
        assert_eq!(Diagnostics::of(vec![warning.clone()]).summary(), "1 warning");
        let all = Diagnostics::of(vec![at(5), at(3), at(3), warning, at(9)]);
        assert_eq!(all.summary(), "3 errors, 1 warning");
        assert_eq!(all.to_string(), "3 errors, 1 warning: e");
    }

    #[test]
    fn a_flood_is_cut_and_counted_and_errors_stay() {
        let warnings = (0..400).map(|at| Diagnostic::warning("STAGE_EMPTY", &(at..at + 1), "w"));
        let errors = (400..800).map(|at| Diagnostic::error("CYCLE", &(at..at + 1), "e"));

        let all = Diagnostics::of(warnings.chain(errors).collect());

        assert_eq!((all.errors(), all.warnings(), all.left_off), (400, 100, 300));
        assert!(all.summary().ends_with("300 more left off"));
    }

    #[test]
    fn programs_get_lines_and_columns() {
        let json = Diagnostics::of(vec![unknown_stage()]).json(TEXT);

        assert_eq!((json[0].line, json[0].column), (4, 12));
        assert_eq!((json[0].end_line, json[0].end_column), (4, 13));
        assert_eq!(json[0].help, ["did you mean `a`?"]);
    }

    #[test]
    fn columns_count_characters_and_no_byte_order_mark() {
        let lines = LineIndex::of("\u{feff}äb\nc");
        assert_eq!(lines.place(3), (1, 1));
        assert_eq!(lines.place(5), (1, 2));
        assert_eq!(lines.place(7), (2, 1));
    }

    #[test]
    fn codes_are_sorted_and_once() {
        assert!(FILE_CODES.is_sorted_by(|a, b| a < b));
        let plain = |c: char| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit();
        assert!(FILE_CODES.iter().all(|code| code.chars().all(plain)));
    }
}
