//! Text from outside, made safe to print: what a terminal would act on is escaped.

/// Most characters of a quoted text in a message.
const QUOTE_CHARS_MAX: usize = 80;

/// Whether a terminal acts on the character, or changes the order of others because of it, instead
/// of showing it.
pub fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text as a message may quote it: escaped and cut to a bearable length.
pub fn shown(text: &str) -> String {
    let mut quoted = shown_all(&text.chars().take(QUOTE_CHARS_MAX).collect::<String>());
    if text.chars().nth(QUOTE_CHARS_MAX).is_some() {
        // Cut by characters: a quoted name of megabytes would otherwise fill the message.
        quoted.push('…');
    }
    quoted
}

/// The whole text, escaped.
pub fn shown_all(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_escaped_and_long_text_is_cut() {
        assert_eq!(shown("a\u{1b}[2Jb\u{202e}c"), "a\\u{1b}[2Jb\\u{202e}c");
        assert_eq!(shown(&"x".repeat(QUOTE_CHARS_MAX + 1)).chars().count(), QUOTE_CHARS_MAX + 1);
    }
}
