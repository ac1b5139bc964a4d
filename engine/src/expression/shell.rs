//! Values as words of a POSIX shell, and the places of a script where a word is allowed.
//!
//! A quoted word stays one word only outside of other quotes. Reading a script precisely enough
//! to be sure is the work of a shell, so whatever looks intricate is refused: the way around,
//! through `env`, is always open and always safe.

use std::{borrow::Cow, ops::Range};

use super::{ExprError, placeholders};

/// A `${{ }}` in a place where its value would not stay one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// The `${{ }}`, in bytes of the script.
    pub range: Range<usize>,
    /// What is wrong with the place.
    pub place: &'static str,
    /// Whether taking quotes away is all there is to do.
    pub in_quotes: bool,
}

/// `value` as one word: as it is if no shell could misread it, else in single quotes.
pub fn quoted(value: &str) -> Cow<'_, str> {
    // A short list of what no shell treats specially, instead of a long one of what some do.
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "_./:@%+,-".contains(c);
    if !value.is_empty() && value.chars().all(is_safe) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(format!("'{}'", value.replace('\'', r"'\''")))
}

/// The `${{ }}` of a script within quotes, comments and the like.
pub fn misplaced(script: &str) -> Result<Vec<Misplaced>, ExprError> {
    let places = placeholders(script)?;
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let mut reader = Reader { script, at: 0, within: vec![], heredocs: vec![], lost: false };
    let mut misplaced = Vec::new();
    for place in places {
        reader.read_to(place.outer.start);
        if let Some((words, in_quotes)) = reader.objection() {
            misplaced.push(Misplaced { range: place.outer.clone(), place: words, in_quotes });
        }
        // The placeholder is one word to the shell, so the reader continues behind it in the same
        // state.
        reader.at = place.outer.end;
    }
    Ok(misplaced)
}

/// What the reader of a script is inside of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Single,
    /// `$'…'`, in which a backslash escapes.
    Ansi,
    Double,
    Backtick,
    Comment,
    /// `$(…)` or `(…)`.
    Paren,
    /// `${…}`, reading quotes as its surroundings do.
    Brace,
    /// `$((…))` or `((…))`, and how many parentheses are open in it.
    Arithmetic(u32),
    Heredoc,
    /// `[[…]]`, in which some shells evaluate what they compare.
    Test,
    /// The rest of an `eval`, `let` or `trap`.
    Evaluated,
}

struct Heredoc<'t> {
    end: &'t str,
    /// Its text is taken as it is: no substitution, no line that a backslash joins to the next.
    quoted: bool,
    tabs_stripped: bool,
}

struct Reader<'t> {
    script: &'t str,
    at: usize,
    within: Vec<Within>,
    /// Announced in this line; their text begins in the next.
    heredocs: Vec<Heredoc<'t>>,
    /// Something was met that only a shell can read.
    lost: bool,
}

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t str {
        &self.script[self.at..]
    }

    fn is_in_double(&self) -> bool {
        self.within.contains(&Within::Double)
    }

    /// Why no word is allowed here, and whether only the quotes are wrong.
    fn objection(&self) -> Option<(&'static str, bool)> {
        // Checked first: a backslash or a dollar sign before the word changes its first character
        // in every state.
        let words = match self.script[..self.at].chars().next_back() {
            Some('\\') => return Some(("comes after a backslash", false)),
            Some('$') => return Some(("comes after a dollar sign", false)),
            Some(_) | None => "is in a place where only a shell can determine whether it is quoted",
        };
        if self.lost {
            return Some((words, false));
        }
        if self.within.last() == Some(&Within::Brace) && self.is_in_name() {
            return Some(("is in the name of a variable", false));
        }
        self.within.iter().find_map(|within| match within {
            Within::Single | Within::Ansi => Some(("is within single quotes", true)),
            Within::Double => Some(("is within double quotes", true)),
            Within::Backtick => Some(("is within backticks", false)),
            Within::Comment => Some(("is in a comment", false)),
            Within::Arithmetic(_) => Some(("is in an arithmetic expression", false)),
            Within::Heredoc => Some(("is in a here-document", false)),
            Within::Test => Some(("is within `[[ ]]`, which may evaluate it", false)),
            Within::Evaluated => Some(("is in a place where it is evaluated a second time", false)),
            Within::Paren | Within::Brace => None,
        })
    }

    /// Whether nothing but a name stands between the last `${` and here. A quoted word in it would
    /// be an error to every shell, and to some of them one that ends elsewhere.
    fn is_in_name(&self) -> bool {
        let before = self.script[..self.at].rsplit_once("${").map_or("", |(_, name)| name);
        let name = before.strip_prefix(['#', '!']).unwrap_or(before);
        name.chars().all(|c| c.is_alphanumeric() || c == '_')
    }

    fn read_to(&mut self, end: usize) {
        while self.at < end {
            let before = self.at;
            self.step();
            // A step never passes the place that was asked for: it stops at every `$`.
            self.at = self.at.clamp(before + 1, end.max(before + 1));
            while !self.script.is_char_boundary(self.at) {
                self.at += 1;
            }
        }
    }

    fn step(&mut self) {
        let Some(c) = self.rest().chars().next() else { return };
        match self.within.last().copied() {
            Some(Within::Single) if c == '\'' => self.leave(),
            Some(Within::Ansi) if c == '\'' => self.leave(),
            // Only some shells know `$'…'`. To a dash, which is the `/bin/sh` of many machines, it
            // is a plain quote after a dollar sign, and `\'` ends it. From there on the two
            // disagree about what is quoted, and a value in quotes of its own would stand outside
            // of them.
            Some(Within::Ansi) if c == '\\' => {
                self.lost |= self.rest().starts_with("\\'");
                self.at += 2;
            }
            Some(Within::Single | Within::Ansi) => self.at += 1,
            Some(Within::Comment) if c == '\n' => {
                self.within.pop();
            }
            Some(Within::Comment) => self.at += 1,
            // Never left again: everything after the first placeholder in a here-document is
            // refused.
            Some(Within::Heredoc) => self.at += 1,
            Some(Within::Arithmetic(open)) => self.arithmetic(c, open),
            Some(Within::Backtick) if c == '`' => self.leave(),
            Some(Within::Double) => self.double(c),
            Some(Within::Evaluated) if ";)\n".contains(c) => {
                self.within.pop();
            }
            Some(Within::Test) if self.rest().starts_with("]]") => {
                self.within.pop();
                self.at += 2;
            }
            Some(
                Within::Backtick | Within::Paren | Within::Brace | Within::Test | Within::Evaluated,
            )
            | None => self.code(c),
        }
    }

    fn leave(&mut self) {
        self.within.pop();
        self.at += 1;
    }

    fn enter(&mut self, within: Within, length: usize) {
        self.within.push(within);
        self.at += length;
    }

    fn arithmetic(&mut self, c: char, open: u32) {
        // A bash reads two subshells where it finds no arithmetic, and a dash does so at once. Then
        // parentheses in quotes and comments are none, and the end is another than the one that is
        // looked for here.
        self.lost |= "'\"\\`\n".contains(c) || (c == '#' && self.begins_word());
        let depth = match c {
            '(' => open + 1,
            ')' if open > 0 => open - 1,
            ')' if self.rest().starts_with("))") => {
                self.within.pop();
                self.at += 2;
                return;
            }
            _ => open,
        };
        self.within.pop();
        self.enter(Within::Arithmetic(depth), 1);
    }

    fn double(&mut self, c: char) {
        match c {
            '"' => self.leave(),
            '\\' => self.escape(),
            '`' => self.enter(Within::Backtick, 1),
            '$' => self.dollar(),
            _ => self.at += 1,
        }
    }

    /// A backslash and what it escapes. One at the end of a line joins the lines, and so may join
    /// what was read as two signs into one.
    fn escape(&mut self) {
        let joins = self.rest().starts_with("\\\n") || self.rest().starts_with("\\\r");
        let before = self.script[..self.at].chars().next_back();
        // After white space the joined lines are still two words. Within a word they may become an
        // operator.
        self.lost |= joins && !before.is_none_or(char::is_whitespace);
        self.at += 2;
    }

    fn dollar(&mut self) {
        let rest = self.rest();
        let is_text = match self.within.last() {
            Some(Within::Double) => true,
            Some(Within::Brace) => self.is_in_double(),
            Some(_) | None => false,
        };
        // An old spelling of arithmetic, whose end only a shell can find.
        self.lost |= rest.starts_with("$[");
        if rest.starts_with("$$") {
            // The number of the shell. The second sign begins nothing, as in `$${`.
            self.at += 2;
        } else if rest.starts_with("$((") {
            self.enter(Within::Arithmetic(0), 3);
        } else if rest.starts_with("$(") {
            self.enter(Within::Paren, 2);
        } else if rest.starts_with("${") {
            self.enter(Within::Brace, 2);
        } else if rest.starts_with("$'") && !is_text {
            self.enter(Within::Ansi, 2);
        } else {
            self.at += 1;
        }
    }

    /// One character where commands and words are read.
    fn code(&mut self, c: char) {
        let in_brace = self.within.last() == Some(&Within::Brace);
        let nested = in_brace && self.is_in_double();
        match c {
            '\\' => self.escape(),
            // Shells differ in how quotes within `"${…}"` are read.
            '"' | '\'' if nested => {
                self.lost = true;
                self.at += 1;
            }
            '\'' => self.enter(Within::Single, 1),
            '"' => self.enter(Within::Double, 1),
            '`' => self.enter(Within::Backtick, 1),
            '$' => self.dollar(),
            '}' if in_brace => self.leave(),
            _ if in_brace => self.at += 1,
            '(' if self.rest().starts_with("((") => {
                // To a dash these are two subshells, in which `<<` begins a here-document. What it
                // reads alike to its end has nothing but names and operators.
                let inner = self.rest().split("))").next().unwrap_or_default();
                let is_plain = |c: char| c.is_alphanumeric() || "_ \t$+-*/%=!?:,<>&|()".contains(c);
                self.lost |= inner.contains("<<") || !inner.chars().all(is_plain);
                self.enter(Within::Arithmetic(0), 2);
            }
            '(' => self.enter(Within::Paren, 1),
            ')' if self.within.last() == Some(&Within::Paren) => self.leave(),
            '#' if self.begins_word() => self.enter(Within::Comment, 1),
            'c' if self.begins_word() && self.rest().starts_with("case") => {
                // A pattern's lone `)` cannot be distinguished from the end of a substitution.
                self.lost |= !self.within.is_empty();
                self.at += 1;
            }
            '[' if self.begins_with("[[") => self.enter(Within::Test, 2),
            'e' if self.begins_with("eval") => self.enter(Within::Evaluated, 4),
            't' if self.begins_with("trap") => self.enter(Within::Evaluated, 4),
            'l' if self.begins_with("let") => self.enter(Within::Evaluated, 3),
            '<' => self.redirection(),
            '\n' => self.line_end(),
            _ => self.at += 1,
        }
    }

    /// Whether `word` is here, alone.
    fn begins_with(&self, word: &str) -> bool {
        let after = self.rest().strip_prefix(word);
        let is_alone = |rest: &str| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\\']);
        self.begins_word() && after.is_some_and(is_alone)
    }

    fn begins_word(&self) -> bool {
        let before = self.script[..self.at].chars().next_back();
        // Every operator ends the word before it, so that one begins after it.
        before.is_none_or(|c| c.is_whitespace() || ";&|()<>`".contains(c))
    }

    fn redirection(&mut self) {
        let rest = self.rest();
        if !rest.starts_with("<<") || rest.starts_with("<<<") {
            self.at += if rest.starts_with("<<<") { 3 } else { 1 };
            return;
        }
        self.lost |= !self.within.is_empty();
        let tabs_stripped = rest.starts_with("<<-");
        let word = rest[if tabs_stripped { 3 } else { 2 }..].trim_start_matches([' ', '\t']);
        let end = word.find(|c: char| " \t\n;&|<>()".contains(c));
        let word = &word[..end.unwrap_or(word.len())];
        let quote = word.chars().next().filter(|c| "'\"".contains(*c));
        let end = match quote {
            // A quoted end with a space in it was cut at the space, and has no second quote.
            Some(quote) => word[1..].strip_suffix(quote).unwrap_or(""),
            None => word,
        };
        // Shells read on through quotes, escapes and control characters; a plain name ends alike.
        let is_plain = |c: char| c.is_alphanumeric() || "_-.+!".contains(c);
        self.lost |= end.is_empty() || !end.chars().all(is_plain);
        self.heredocs.push(Heredoc { end, quoted: quote.is_some(), tabs_stripped });
        self.at += 2;
    }

    /// Begins the text of the here-documents that the line announced.
    fn line_end(&mut self) {
        self.at += 1;
        for heredoc in std::mem::take(&mut self.heredocs) {
            let mut line_start = self.at;
            let is_end = |line: &str| {
                let line = if heredoc.tabs_stripped { line.trim_start_matches('\t') } else { line };
                line == heredoc.end
            };
            let end = self.script[self.at..].split_inclusive('\n').find_map(|line| {
                line_start += line.len();
                is_end(line.strip_suffix('\n').unwrap_or(line)).then_some(line_start)
            });
            let text = &self.script[self.at..end.unwrap_or(self.script.len())];
            // Where lines are joined, what looks like the end may be the rest of the line before.
            self.lost |= !heredoc.quoted && text.contains("\\\n");
            if text.contains("${{") {
                // Everything from here on is refused, which is simpler than it is kind.
                self.within.push(Within::Heredoc);
                return;
            }
            self.at += text.len();
        }
    }
}
