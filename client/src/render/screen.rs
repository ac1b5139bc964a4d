//! The part of the terminal that moves: a block at the bottom that is drawn repeatedly, while
//! finished lines scroll up and stay.

use std::io::{self, Write};

/// Lines longer than the window are cut, and not continued on the next row (DECAWM). The window
/// may be narrowed between the moment its width is read and the moment the block reaches it: a
/// block that takes more rows than it has lines would leave its first rows behind.
const WRAP_OFF: &str = "\u{1b}[?7l";
const WRAP_ON: &str = "\u{1b}[?7h";

/// A block of lines at the bottom of the terminal.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    drawn: Vec<String>,
}

impl Screen {
    /// Prints `lines` above the block, for good, and draws `block` below them.
    pub(crate) fn draw(
        &mut self,
        out: &mut impl Write,
        lines: &[String],
        block: Vec<String>,
    ) -> io::Result<()> {
        // Ten times a second, most of them for nothing: a slow line to the terminal, or a person
        // who selects text in it, would suffer.
        if lines.is_empty() && block == self.drawn {
            return Ok(());
        }
        let mut text = self.erased();
        text.push_str(WRAP_OFF);
        for line in lines.iter().chain(&block) {
            text.push_str(line);
            // Erased to its end: the row may hold what a program typed over, or a key's echo.
            text.push_str("\u{1b}[K\n");
        }
        // In the same write: a process that is killed here must not leave a terminal that cuts.
        text.push_str(WRAP_ON);
        self.drawn = block;
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Removes the block.
    pub(crate) fn clear(&mut self, out: &mut impl Write) -> io::Result<()> {
        let text = self.erased();
        self.drawn.clear();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    // As many rows as lines were drawn, also if the window has another width by now. A terminal
    // that breaks long lines again shows more of them, and its surplus stays above; taking those
    // away too would erase lines of others in a terminal that cuts.
    /// The signs that put the cursor where the block began, and erase from there.
    fn erased(&self) -> String {
        match self.drawn.len() {
            0 => String::new(),
            lines => format!("\u{1b}[{lines}A\r\u{1b}[J"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(screen: &mut Screen, lines: &[&str], block: &[&str]) -> String {
        let own = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let mut out = Vec::new();
        screen.draw(&mut out, &own(lines), own(block)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_block_is_replaced_and_finished_lines_stay() {
        let mut screen = Screen::default();
        assert_eq!(
            drawn(&mut screen, &[], &["a", "b"]),
            "\u{1b}[?7la\u{1b}[K\nb\u{1b}[K\n\u{1b}[?7h"
        );
        assert_eq!(
            drawn(&mut screen, &["done"], &["b"]),
            "\u{1b}[2A\r\u{1b}[J\u{1b}[?7ldone\u{1b}[K\nb\u{1b}[K\n\u{1b}[?7h"
        );
    }

    #[test]
    fn an_unchanged_block_is_not_drawn_again() {
        let mut screen = Screen::default();
        drawn(&mut screen, &[], &["a"]);
        assert_eq!(drawn(&mut screen, &[], &["a"]), "");
    }
}
