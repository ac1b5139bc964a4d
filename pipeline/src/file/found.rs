//! The problems of one file while it is read, up to a bound.

use crate::diagnostics::{Diagnostic, Diagnostics};

/// Most problems that are held. Source: far more than are ever shown, and few enough that a file
/// of nothing but mistakes costs little memory.
const HELD_MAX: usize = 20_000;

/// A list of problems that stops growing.
#[derive(Default)]
pub(super) struct Found {
    list: Vec<Diagnostic>,
    left_off: usize,
}

impl Found {
    /// Adds a problem, or counts it if there are too many.
    pub(super) fn push(&mut self, problem: Diagnostic) {
        if self.list.len() < HELD_MAX {
            self.list.push(problem);
        } else {
            self.left_off += 1;
        }
    }

    /// Whether nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The problems so far.
    pub(super) fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// The problems in order.
    pub(super) fn sorted(self) -> Diagnostics {
        let mut sorted = Diagnostics::of(self.list);
        sorted.left_off += self.left_off;
        sorted
    }
}

impl Extend<Diagnostic> for Found {
    fn extend<I: IntoIterator<Item = Diagnostic>>(&mut self, problems: I) {
        problems.into_iter().for_each(|problem| self.push(problem));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_kept() {
        let mut found = Found::default();
        let problem = |at: usize| Diagnostic::error("CYCLE", &(at..at + 1), "x");

        found.extend((0..HELD_MAX + 7).map(problem));

        assert_eq!(found.list().len(), HELD_MAX);
        let sorted = found.sorted();
        assert_eq!(sorted.list.len() + sorted.left_off, HELD_MAX + 7);
    }
}
