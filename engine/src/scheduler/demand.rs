//! What runs want of workers, by kind: same tags, same lock, same preferences. A kind knows the
//! runs that have such a job to lease now, so that a free slot finds the next run by its tags, and
//! a lock that becomes free opens a kind and not each run that waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use super::{locks::Locks, supply::Supply};
use crate::{ids::RunId, run::Want};

/// A kind of job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WantId(u64);

#[derive(Debug)]
struct Kind {
    want: Arc<Want>,
    /// Runs that have such a job and can be given a slot.
    runs: BTreeSet<RunId>,
    /// How many runs want it: it is removed with the last.
    references: u32,
    /// How many such jobs could begin now, but for the lock.
    pending: u64,
    /// Under which tag it is to be found, while it has runs and its lock has a free place. A kind
    /// without tags is filed under `None`.
    filed: Option<Option<String>>,
}

/// What all runs want.
#[derive(Debug, Default)]
pub(super) struct Demand {
    kinds: BTreeMap<WantId, Kind>,
    ids: BTreeMap<Arc<Want>, WantId>,
    newest: u64,
    open: BTreeMap<Option<String>, BTreeSet<WantId>>,
    by_lock: BTreeMap<String, BTreeSet<WantId>>,
    /// How many jobs are leased, by their tags.
    leased: BTreeMap<Arc<[String]>, u64>,
    version: u64,
}

impl Demand {
    /// The kind of `want`, with one more run that wants it.
    pub(super) fn refer(&mut self, want: &Arc<Want>) -> WantId {
        // Equal wants of all runs share one kind: 3,000 runs that wait for one tag are then one
        // comparison for each worker.
        if let Some(id) = self.ids.get(want) {
            if let Some(kind) = self.kinds.get_mut(id) {
                kind.references += 1;
            }
            return *id;
        }
        self.newest += 1;
        let id = WantId(self.newest);
        let (runs, want) = (BTreeSet::new(), Arc::clone(want));
        if let Some((name, _)) = &want.lock {
            self.by_lock.entry(name.clone()).or_default().insert(id);
        }
        self.ids.insert(Arc::clone(&want), id);
        self.kinds.insert(id, Kind { want, runs, references: 1, pending: 0, filed: None });
        id
    }

    /// One run less wants a kind.
    pub(super) fn unrefer(&mut self, id: WantId) {
        let Some(kind) = self.kinds.get_mut(&id) else { return };
        kind.references -= 1;
        if kind.references > 0 {
            return;
        }
        self.dequeue(id);
        let Some(kind) = self.kinds.remove(&id) else { return };
        self.ids.remove(&kind.want);
        if let Some((name, _)) = &kind.want.lock
            && let Some(ids) = self.by_lock.get_mut(name)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_lock.remove(name);
            }
        }
    }

    /// How many jobs of a kind some run wants to begin has changed.
    pub(super) fn count(&mut self, id: WantId, before: u32, after: u32) {
        if let Some(kind) = self.kinds.get_mut(&id)
            && before != after
        {
            // Added first, so that the unsigned sum does not go below zero in between.
            kind.pending = (kind.pending + u64::from(after)).saturating_sub(u64::from(before));
            self.version = self.version.wrapping_add(1);
        }
    }

    /// `run` has a job of this kind, and can be given a slot.
    pub(super) fn add_run(&mut self, id: WantId, run: &RunId, supply: &Supply, locks: &Locks) {
        if let Some(kind) = self.kinds.get_mut(&id) {
            kind.runs.insert(run.clone());
            self.file(id, supply, locks);
        }
    }

    pub(super) fn remove_run(&mut self, id: WantId, run: &RunId) {
        if let Some(kind) = self.kinds.get_mut(&id) {
            kind.runs.remove(run);
            if kind.runs.is_empty() {
                self.dequeue(id);
            }
        }
    }

    /// Another number of places of lock `name` is taken. Answers the kinds that this has opened.
    pub(super) fn lock_changed(
        &mut self,
        name: &str,
        supply: &Supply,
        locks: &Locks,
    ) -> Vec<WantId> {
        // Only the kinds of this lock: a lock that is taken and given back a thousand times a
        // second must not touch the others.
        let ids: Vec<WantId> = self.by_lock.get(name).into_iter().flatten().copied().collect();
        let mut opened = Vec::new();
        for id in ids {
            if !self.is_free(id, locks) {
                self.dequeue(id);
            } else if self.file(id, supply, locks) {
                opened.push(id);
            }
        }
        opened
    }

    /// Whether `run` has a job of this kind, and can be given a slot.
    pub(super) fn has_run(&self, id: WantId, run: &RunId) -> bool {
        self.kinds.get(&id).is_some_and(|kind| kind.runs.contains(run))
    }

    /// Whether a lock keeps back no job of this kind.
    pub(super) fn is_free(&self, id: WantId, locks: &Locks) -> bool {
        self.kinds.get(&id).is_none_or(|kind| kind.want.is_free(|name| locks.taken(name)))
    }

    /// Makes a kind to be found by its tags, if it has runs and its lock is free.
    fn file(&mut self, id: WantId, supply: &Supply, locks: &Locks) -> bool {
        let free = self.is_free(id, locks);
        let Some(kind) = self.kinds.get_mut(&id) else { return false };
        if kind.filed.is_some() || kind.runs.is_empty() || !free {
            return false;
        }
        // Under the tag that the fewest sessions offer: those that lack it never look at the kind.
        let under = supply.rarest(&kind.want.tags).cloned();
        self.open.entry(under.clone()).or_default().insert(id);
        kind.filed = Some(under);
        true
    }

    fn dequeue(&mut self, id: WantId) {
        let Some(under) = self.kinds.get_mut(&id).and_then(|kind| kind.filed.take()) else {
            return;
        };
        if let Some(ids) = self.open.get_mut(&under) {
            ids.remove(&id);
            if ids.is_empty() {
                self.open.remove(&under);
            }
        }
    }

    /// The run whose turn it is after `last`, of those that have a job for a worker with `tags`.
    pub(super) fn next_run(&self, tags: &[String], last: &RunId) -> Option<&RunId> {
        // Kinds are filed under one of their tags, so a worker looks under each tag that it offers,
        // and under none.
        let mut under: Vec<Option<&String>> = tags.iter().map(Some).collect();
        under.push(None);
        let kinds = under.into_iter().filter_map(|tag| self.open.get(&tag.cloned())).flatten();
        let fitting = kinds.filter_map(|id| self.kinds.get(id)).filter(|kind| kind.want.fits(tags));
        fitting
            .filter_map(|kind| {
                // The first run after the last one served, else from the beginning: this is the
                // turn.
                let after = kind.runs.range::<RunId, _>((Excluded(last), Unbounded)).next();
                after.or_else(|| kind.runs.first())
            })
            .min_by_key(|run| turn_of(run, last))
    }

    /// The run whose turn it is after `last`, of those that have a job of this kind.
    pub(super) fn next_of(&self, id: WantId, last: &RunId) -> Option<&RunId> {
        let runs = &self.kinds.get(&id).filter(|kind| kind.filed.is_some())?.runs;
        runs.range::<RunId, _>((Excluded(last), Unbounded)).next().or_else(|| runs.first())
    }

    pub(super) fn leased(&mut self, tags: &Arc<[String]>, more: bool) {
        self.version = self.version.wrapping_add(1);
        if more {
            *self.leased.entry(Arc::clone(tags)).or_default() += 1;
        } else if let Some(count) = self.leased.get_mut(tags) {
            *count -= 1;
            if *count == 0 {
                self.leased.remove(tags);
            }
        }
    }

    /// For each set of tags, how many jobs a worker could begin at once, and how many one holds.
    /// `shared`: jobs by kind that are not counted yet.
    pub(super) fn wanted(
        &self,
        locks: &Locks,
        shared: &BTreeMap<WantId, u64>,
    ) -> BTreeMap<Arc<[String]>, (u64, u64)> {
        let mut all: BTreeMap<Arc<[String]>, (u64, u64)> = BTreeMap::new();
        let mut places: BTreeMap<&str, u64> = BTreeMap::new();
        for (id, kind) in &self.kinds {
            let mut pending = kind.pending + shared.get(id).copied().unwrap_or_default();
            if let Some((name, limit)) = &kind.want.lock {
                let taken = places.entry(name).or_insert_with(|| u64::from(locks.taken(name)));
                pending = pending.min(u64::from(*limit).saturating_sub(*taken));
                // Kinds that share a lock share its places, or the demand would ask for more
                // workers than could work.
                *taken += pending;
            }
            if pending > 0 {
                all.entry(kind.want.tags.as_slice().into()).or_default().0 += pending;
            }
        }
        for (tags, count) in &self.leased {
            all.entry(Arc::clone(tags)).or_default().1 += count;
        }
        all
    }

    /// What is wanted may have changed, without a change of what is counted here.
    pub(super) fn touch(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }
}

/// The order of turns: first the runs after `last`, then from the beginning.
pub(super) fn turn_of<'a>(run: &'a RunId, last: &RunId) -> (bool, &'a RunId) {
    (run <= last, run)
}
