//! Which run holds which named locks, and how many places of each lock are taken over all runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ids::RunId, run::LockUsage};

/// The locks that runs hold. Every change costs what it changes, however many runs there are.
#[derive(Debug, Default)]
pub(super) struct Locks {
    runs: BTreeMap<RunId, Held>,
    /// What all runs hold together.
    taken: LockUsage,
    /// What leases that are just being decided may take.
    kept: LockUsage,
    version: u64,
}

#[derive(Debug, Default)]
struct Held {
    /// After what was decided.
    decided: LockUsage,
    /// After what is durable.
    durable: LockUsage,
}

impl Held {
    /// The places that no other run may take: what was let go in memory alone may turn out to be
    /// held, and what was taken in memory alone will be.
    fn most(&self) -> LockUsage {
        let mut most = self.decided.clone();
        for (name, count) in &self.durable {
            let place = most.entry(name.clone()).or_default();
            *place = (*place).max(*count);
        }
        most
    }
}

impl Locks {
    /// What `run` holds after everything that was decided. Answers the locks of which more or
    /// fewer places are taken now.
    pub(super) fn decided(&mut self, run: &RunId, busy: &LockUsage) -> Vec<String> {
        self.change(run, |held| held.decided.clone_from(busy))
    }

    /// What `run` holds after everything that is durable.
    pub(super) fn durable(&mut self, run: &RunId, busy: &LockUsage) -> Vec<String> {
        self.change(run, |held| held.durable.clone_from(busy))
    }

    fn change(&mut self, run: &RunId, change: impl FnOnce(&mut Held)) -> Vec<String> {
        let mut held = self.runs.remove(run).unwrap_or_default();
        let before = held.most();
        change(&mut held);
        let after = held.most();
        if !after.is_empty() {
            self.runs.insert(run.clone(), held);
        }
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let mut changed = Vec::new();
        for name in names {
            let count = |busy: &LockUsage| busy.get(name).copied().unwrap_or_default();
            let (was, is) = (count(&before), count(&after));
            if was != is {
                let taken = self.taken.entry(name.clone()).or_default();
                *taken = (*taken + is).saturating_sub(was);
                if *taken == 0 {
                    self.taken.remove(name);
                }
                self.version = self.version.wrapping_add(1);
                changed.push(name.clone());
            }
        }
        changed
    }

    /// Keeps a place of lock `name` for a lease that is being decided: without that, every run
    /// that waits for the lock would be asked for a lease when one place of it becomes free.
    pub(super) fn keep(&mut self, name: &str) {
        *self.kept.entry(name.to_owned()).or_default() += 1;
    }

    /// That lease has been decided.
    pub(super) fn unkeep(&mut self, name: &str) {
        if let Some(kept) = self.kept.get_mut(name) {
            *kept -= 1;
            if *kept == 0 {
                self.kept.remove(name);
            }
        }
    }

    /// How many places of lock `name` are taken, or kept.
    pub(super) fn taken(&self, name: &str) -> u32 {
        let count = |busy: &LockUsage| busy.get(name).copied().unwrap_or_default();
        count(&self.taken) + count(&self.kept)
    }

    /// How many jobs of runs other than `run` hold each of the locks `names`.
    pub(super) fn of_others<'n>(
        &self,
        run: &RunId,
        names: impl IntoIterator<Item = &'n str>,
    ) -> LockUsage {
        let own = self.runs.get(run).map(Held::most).unwrap_or_default();
        let others = |name: &str| {
            let count = |busy: &LockUsage| busy.get(name).copied().unwrap_or_default();
            count(&self.taken).saturating_sub(count(&own))
        };
        let all = names.into_iter().map(|name| (name.to_owned(), others(name)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(count: u32) -> LockUsage {
        LockUsage::from([("db".to_owned(), count)])
    }

    #[test]
    fn a_place_is_free_for_others_once_that_is_durable() {
        let mut locks = Locks::default();
        let (run, other) = ("r".into(), "other".into());
        locks.decided(&run, &held(1));
        assert_eq!(locks.of_others(&other, ["db"]), held(1), "taken as soon as it is decided");
        locks.durable(&run, &held(1));

        assert_eq!(locks.decided(&run, &LockUsage::new()), [""; 0], "let go in memory alone");
        assert_eq!(locks.taken("db"), 1);
        assert_eq!(locks.durable(&run, &LockUsage::new()), ["db"]);

        assert_eq!((locks.taken("db"), locks.of_others(&other, ["db"])), (0, LockUsage::new()));
        assert!(locks.runs.is_empty() && locks.taken.is_empty());
    }

    #[test]
    fn a_kept_place_is_taken_for_the_search_and_not_for_the_decision() {
        let mut locks = Locks::default();
        locks.keep("db");
        assert_eq!(
            (locks.taken("db"), locks.of_others(&"r".into(), ["db"])),
            (1, LockUsage::new())
        );
        locks.unkeep("db");
        assert_eq!(locks.taken("db"), 0);
    }
}
