//! What an expression reads: finds the dotted names, and puts plain ones in their place.
//!
//! Names of jobs hold hyphens and worse, which the expression language would take for a minus.
//! So every dotted name is replaced by a plain variable of the same length before the language
//! sees it, and places in the text stay what they were.

use std::{fmt, ops::Range};

use super::{EXPRESSION_BYTES_MAX, ExprError, FILTERS, TESTS};

/// Something that an expression can read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// `needs.JOB.outcome`.
    Outcome {
        /// The job.
        job: String,
    },
    /// `needs.JOB.outputs.KEY`.
    Output {
        /// The job.
        job: String,
        /// The output.
        key: String,
    },
    /// `matrix.AXIS`.
    Matrix {
        /// The axis.
        axis: String,
    },
    /// `env.NAME`.
    Env {
        /// The variable.
        name: String,
    },
    /// `run.id`.
    RunId,
    /// `run.pipeline`.
    RunPipeline,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = |f: &mut fmt::Formatter<'_>, name: &str| {
            if is_plain(name) { write!(f, ".{name}") } else { write!(f, "[{name:?}]") }
        };
        match self {
            Self::Outcome { job } => {
                f.write_str("needs")?;
                step(f, job)?;
                f.write_str(".outcome")
            }
            Self::Output { job, key } => {
                f.write_str("needs")?;
                step(f, job)?;
                f.write_str(".outputs")?;
                step(f, key)
            }
            Self::Matrix { axis } => {
                f.write_str("matrix")?;
                step(f, axis)
            }
            Self::Env { name } => {
                f.write_str("env")?;
                step(f, name)
            }
            Self::RunId => f.write_str("run.id"),
            Self::RunPipeline => f.write_str("run.pipeline"),
        }
    }
}

fn is_plain(name: &str) -> bool {
    let mut cursor = Cursor { text: name, at: 0 };
    cursor.hyphenated() == name && !name.is_empty()
}

/// One dotted name of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// What it reads.
    pub path: Path,
    /// Where it is in the text, in bytes.
    pub range: Range<usize>,
    /// The variable in its place.
    pub variable: String,
}

/// An expression with its dotted names taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    /// The names, from left to right.
    pub references: Vec<Reference>,
    /// The expression with variables in their place, of the same length.
    pub flat: String,
}

const WORDS: [&str; 13] = [
    "and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None",
];
const ROOTS: [&str; 4] = ["needs", "matrix", "env", "run"];

/// What the next name means, by the text before it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Anything,
    Pipe,
    Is,
}

/// Takes the names out of `expr`, and refuses what the language does not have.
pub(super) fn parse(expr: &str) -> Result<Parsed, ExprError> {
    if expr.len() > EXPRESSION_BYTES_MAX {
        let message = format!("an expression has at most {EXPRESSION_BYTES_MAX} bytes");
        return Err(ExprError::syntax(0..expr.floor_char_boundary(60), message));
    }
    if expr.trim().is_empty() {
        return Err(ExprError::syntax(0..expr.len(), "the expression is empty"));
    }
    let mut cursor = Cursor { text: expr, at: 0 };
    let mut references = Vec::new();
    let mut flat = String::with_capacity(expr.len());
    let mut before = Before::Anything;
    while let Some(c) = cursor.peek() {
        let start = cursor.at;
        let mut next = Before::Anything;
        match c {
            // A text is skipped as a whole: a dotted name within it is not a name.
            '"' | '\'' => drop(cursor.string()?),
            // `*` repeats texts: a result could be far larger than what it reads. The others begin
            // maps and template blocks.
            '*' | '{' | '}' | '%' => {
                let message = format!("`{c}` is not part of the expression language");
                return Err(ExprError::syntax(start..start + 1, message));
            }
            '|' => {
                cursor.bump();
                next = Before::Pipe;
            }
            c if c.is_whitespace() => {
                cursor.bump();
                next = before;
            }
            // With its letters, so that `1e5` does not contain the name `e5`.
            c if c.is_ascii_digit() => drop(cursor.plain()),
            c if c.is_alphabetic() || c == '_' => {
                let word = cursor.plain();
                // After `|` and `is` the same words would be filters and tests.
                if before == Before::Anything && ROOTS.contains(&word) {
                    let path = cursor.path(word, start)?;
                    let range = start..cursor.at;
                    let variable = variable(references.len(), range.len());
                    flat.push_str(&variable);
                    references.push(Reference { path, range, variable });
                    before = next;
                    continue;
                }
                next = word_allowed(word, start, before, cursor.peek_past_space())?;
            }
            _ => drop(cursor.bump()),
        }
        flat.push_str(&expr[start..cursor.at]);
        before = next;
    }
    Ok(Parsed { references, flat })
}

fn word_allowed(
    word: &str,
    start: usize,
    before: Before,
    after: Option<char>,
) -> Result<Before, ExprError> {
    let range = start..start + word.len();
    let listed = |list: &[&str]| list.join("`, `");
    match before {
        Before::Pipe if FILTERS.contains(&word) => Ok(Before::Anything),
        Before::Pipe => {
            let message = format!("there is no filter `{word}`, only `{}`", listed(&FILTERS));
            Err(ExprError::unknown(range, message))
        }
        Before::Is if word == "not" => Ok(Before::Is),
        Before::Is if TESTS.contains(&word) => Ok(Before::Anything),
        Before::Is => {
            let message = format!("there is no test `{word}`, only `{}`", listed(&TESTS));
            Err(ExprError::unknown(range, message))
        }
        Before::Anything if word == "is" => Ok(Before::Is),
        // `default=` and its like, within a filter's parentheses.
        Before::Anything if WORDS.contains(&word) || after == Some('=') => Ok(Before::Anything),
        Before::Anything if after == Some('(') => {
            Err(ExprError::unknown(range, format!("there is no function `{word}`, nor any other")))
        }
        Before::Anything => {
            let message = format!("nothing is called `{word}`; there are `{}`", listed(&ROOTS));
            Err(ExprError::unknown(range, message))
        }
    }
}

/// A variable as long as what it replaces, which is at least five bytes long: `env.X`.
fn variable(number: usize, len: usize) -> String {
    let name = format!("p{number:03x}");
    format!("{name:_<len$}")
}

struct Cursor<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Cursor<'t> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    /// The next character that is not space, unless it begins `==`.
    fn peek_past_space(&self) -> Option<char> {
        let rest = self.text[self.at..].trim_start();
        if rest.starts_with("==") { None } else { rest.chars().next() }
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.bump();
        }
    }

    fn plain(&mut self) -> &'t str {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            self.bump();
        }
        &self.text[start..self.at]
    }

    /// A name that may have hyphens between other characters.
    fn hyphenated(&mut self) -> &'t str {
        let start = self.at;
        loop {
            self.plain();
            let mut ahead = self.text[self.at..].chars();
            // Only between characters of a name: `needs.a.outcome - 1` is a subtraction.
            let hyphen = ahead.next() == Some('-') && self.at > start;
            if !hyphen || !ahead.next().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                return &self.text[start..self.at];
            }
            self.bump();
        }
    }

    /// A quoted text; a backslash takes the next character as it is.
    fn string(&mut self) -> Result<String, ExprError> {
        let start = self.at;
        let quote = self.bump();
        let mut text = String::new();
        loop {
            match self.bump() {
                None => {
                    let message = "the quoted text is never closed";
                    return Err(ExprError::syntax(start..self.text.len(), message));
                }
                Some('\\') => text.extend(self.bump()),
                end if end == quote => return Ok(text),
                Some(c) => text.push(c),
            }
        }
    }

    /// The rest of a dotted name that began with `root` at `start`.
    fn path(&mut self, root: &str, start: usize) -> Result<Path, ExprError> {
        let mut steps = Vec::new();
        loop {
            let end = self.at;
            self.space();
            match self.peek() {
                Some('.') => {
                    self.bump();
                    let name = self.hyphenated();
                    if name.is_empty() {
                        let message = "a name is missing after the dot";
                        return Err(ExprError::syntax(start..self.at, message));
                    }
                    steps.push(name.to_owned());
                }
                Some('[') => {
                    self.bump();
                    self.space();
                    if !matches!(self.peek(), Some('"' | '\'')) {
                        let message = "only a quoted name is allowed in these brackets";
                        return Err(ExprError::syntax(start..self.at, message));
                    }
                    steps.push(self.string()?);
                    self.space();
                    if self.bump() != Some(']') {
                        let message = "`]` is missing after the name";
                        return Err(ExprError::syntax(start..end, message));
                    }
                }
                Some('(') => {
                    let message = "nothing here can be called";
                    return Err(ExprError::syntax(start..end, message));
                }
                _ => {
                    // The spaces after the name are not part of it.
                    self.at = end;
                    break;
                }
            }
        }
        of_steps(root, steps)
            .map_err(|message| ExprError::unknown(start..self.at, message.to_owned()))
    }
}

fn of_steps(root: &str, steps: Vec<String>) -> Result<Path, &'static str> {
    let mut steps = steps.into_iter();
    // Four, one more than the longest path has: a longer one must not pass for its beginning.
    let steps = [steps.next(), steps.next(), steps.next(), steps.next()];
    match (root, steps) {
        ("needs", [Some(job), Some(field), None, None]) if field == "outcome" => {
            Ok(Path::Outcome { job })
        }
        ("needs", [Some(job), Some(field), Some(key), None]) if field == "outputs" => {
            Ok(Path::Output { job, key })
        }
        ("needs", _) => {
            Err("of a job, `needs.JOB.outcome` and `needs.JOB.outputs.KEY` can be read")
        }
        ("matrix", [Some(axis), None, None, None]) => Ok(Path::Matrix { axis }),
        ("matrix", _) => Err("of the matrix, `matrix.AXIS` can be read"),
        ("env", [Some(name), None, None, None]) => Ok(Path::Env { name }),
        ("env", _) => Err("of the environment, `env.NAME` can be read"),
        (_, [Some(field), None, None, None]) if field == "id" => Ok(Path::RunId),
        (_, [Some(field), None, None, None]) if field == "pipeline" => Ok(Path::RunPipeline),
        (_, _) => Err("of the run, `run.id` and `run.pipeline` can be read"),
    }
}
