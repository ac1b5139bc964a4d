//! What attempts printed and left behind, as far as it has arrived at the server. As in the real
//! one it is not synced: a crash may take some of it.

use std::collections::BTreeMap;

use towpath_engine::{ids::AttemptId, scheduler::SessionId};

use crate::{book::Key, driver::id_of, random::Rng, script::Outcome, world::World};

/// What a part is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Output,
    File,
}

/// Lengths, in bytes: what stands at a place follows from the place.
#[derive(Default)]
pub(crate) struct Uploads {
    lengths: BTreeMap<(AttemptId, Part), u64>,
}

impl Uploads {
    fn length(&self, attempt: &AttemptId, part: Part) -> u64 {
        self.lengths.get(&(attempt.clone(), part)).copied().unwrap_or_default()
    }

    /// How much of an attempt's output has arrived.
    pub(crate) fn output(&self, attempt: &AttemptId) -> u64 {
        self.length(attempt, Part::Output)
    }

    /// The attempt's end is recorded.
    pub(crate) fn forget(&mut self, attempt: &AttemptId) {
        for part in [Part::Output, Part::File] {
            self.lengths.remove(&(attempt.clone(), part));
        }
    }

    /// The server's machine loses what was on its way to the disk.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        for length in self.lengths.values_mut() {
            if rng.chance(30) {
                *length = rng.below(*length + 1);
            }
        }
    }
}

impl World {
    /// Takes in part of an attempt. There must be no hole before it.
    pub(crate) fn take_part(
        &mut self,
        session: SessionId,
        key: &Key,
        part: Part,
        offset: u64,
        length: u64,
    ) {
        let attempt = id_of(key);
        if !self.server.scheduler.holds(session, &attempt) {
            return;
        }
        let there = self.server.uploads.length(&attempt, part);
        // A file begins anew with its first part; of output, what is there already is passed over.
        let there = if part == Part::File && offset == 0 { 0 } else { there };
        if offset > there {
            self.fail(format!("{key:?} sends {part:?} from {offset} on, and {there} are there"));
        }
        let length = there.max(offset + length);
        self.server.uploads.lengths.insert((attempt, part), length);
    }

    /// A report of a valid attempt comes after all that the attempt left, and counts it.
    pub(crate) fn check_uploads(&mut self, key: &Key, outcome: Outcome, output_bytes: u64) {
        let attempt = id_of(key);
        let arrived = self.server.uploads.output(&attempt);
        if arrived != output_bytes {
            self.fail(format!("{key:?} counts {output_bytes} bytes, and {arrived} arrived"));
        }
        let Outcome::Succeeded { file: Some(size) } = outcome else { return };
        let arrived = self.server.uploads.length(&attempt, Part::File);
        if arrived != size {
            self.fail(format!("{key:?} left {size} bytes of a file, and {arrived} arrived"));
        }
    }
}
