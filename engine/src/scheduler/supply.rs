//! Sessions with free slots, by what they offer, the least busy first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::SessionId;
use crate::ids::RunId;

/// The least busy first; among equals, the one that came first.
pub(super) type Rank = (Reverse<u32>, SessionId);

/// Sessions with free slots.
#[derive(Debug, Default)]
pub(super) struct Supply {
    /// Of sessions that take jobs of any run.
    free: BTreeSet<Rank>,
    /// The same, for each tag that they offer.
    by_tag: BTreeMap<String, BTreeSet<Rank>>,
    /// How many sessions offer each tag, whether or not they have a free slot.
    offered: BTreeMap<String, usize>,
    /// Sessions that take jobs of one run only, whether or not they have a free slot.
    of_run: BTreeMap<RunId, BTreeSet<SessionId>>,
}

impl Supply {
    /// A session that offers `tags` and takes jobs of any run had `before` free slots and has
    /// `after` now.
    pub(super) fn update(&mut self, id: SessionId, tags: &[String], before: u32, after: u32) {
        // Most inputs do not change the free slots, and the sets need not be touched.
        if before == after {
            return;
        }
        let (old, new) = ((Reverse(before), id), (Reverse(after), id));
        if before > 0 {
            self.free.remove(&old);
            for tag in tags {
                if let Some(ranks) = self.by_tag.get_mut(tag) {
                    ranks.remove(&old);
                    if ranks.is_empty() {
                        self.by_tag.remove(tag);
                    }
                }
            }
        }
        if after > 0 {
            self.free.insert(new);
            for tag in tags {
                self.by_tag.entry(tag.clone()).or_default().insert(new);
            }
        }
    }

    /// A session takes jobs of `run` only.
    pub(super) fn join(&mut self, run: &RunId, id: SessionId) {
        self.of_run.entry(run.clone()).or_default().insert(id);
    }

    pub(super) fn leave(&mut self, run: &RunId, id: SessionId) {
        if let Some(sessions) = self.of_run.get_mut(run) {
            sessions.remove(&id);
            if sessions.is_empty() {
                self.of_run.remove(run);
            }
        }
    }

    /// Sessions that take jobs of `run` only.
    pub(super) fn of_run(&self, run: &RunId) -> impl Iterator<Item = SessionId> {
        self.of_run.get(run).into_iter().flatten().copied()
    }

    pub(super) fn note_tags(&mut self, tags: &[String]) {
        for tag in tags {
            *self.offered.entry(tag.clone()).or_default() += 1;
        }
    }

    pub(super) fn forget_tags(&mut self, tags: &[String]) {
        for tag in tags {
            if let Some(count) = self.offered.get_mut(tag) {
                *count -= 1;
                if *count == 0 {
                    self.offered.remove(tag);
                }
            }
        }
    }

    /// The tag of `tags` that the fewest sessions offer.
    pub(super) fn rarest<'t>(&self, tags: &'t [String]) -> Option<&'t String> {
        tags.iter().min_by_key(|tag| self.offered.get(*tag).copied().unwrap_or(0))
    }

    /// Sessions that may offer all of `tags`, the least busy first: those of the tag with the
    /// fewest of them. The caller looks at the other tags.
    pub(super) fn candidates(&self, tags: &[String]) -> impl Iterator<Item = Rank> {
        let ranks = |tag: &String| self.by_tag.get(tag);
        let fewest = tags.iter().min_by_key(|tag| ranks(tag).map_or(0, BTreeSet::len));
        let ranks = match fewest {
            Some(tag) => ranks(tag),
            None => Some(&self.free),
        };
        ranks.into_iter().flatten().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// The sessions with free slots that take jobs of any run.
    pub(super) fn free(&self) -> impl Iterator<Item = SessionId> {
        self.free.iter().map(|(_, id)| *id)
    }

    /// The runs of which some sessions take jobs and of no other.
    pub(super) fn runs(&self) -> impl Iterator<Item = &RunId> {
        self.of_run.keys()
    }

    /// The sessions that take jobs of one run only.
    pub(super) fn alone(&self) -> impl Iterator<Item = SessionId> {
        self.of_run.values().flatten().copied()
    }
}
