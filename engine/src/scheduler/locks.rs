//! Which run holds which named locks, and how many places of each lock are taken over all runs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// After what is durable.
    durable: LockUsage,
    /// After each decision that is not known to be durable and that changed what is held, by the
    /// version of the run after it, oldest first. Bounded by the appends of a run that are queued.
    pending: VecDeque<(u64, LockUsage)>,
}

impl Held {
    /// The places that no other run may take: what was let go in memory alone may turn out to be
    /// held, and what was taken in memory alone will be.
    fn most(&self) -> LockUsage {
        let mut most = self.durable.clone();
        for (name, count) in self.pending.iter().flat_map(|(_, busy)| busy) {
            let place = most.entry(name.clone()).or_default();
            *place = (*place).max(*count);
        }
        most
    }

    /// What is held after everything that was decided.
    fn newest(&self) -> &LockUsage {
        self.pending.back().map_or(&self.durable, |(_, busy)| busy)
    }
}

impl Locks {
    /// What `run` holds after a decision that brings it to `version`. Answers the locks of which
    /// more or fewer places are taken now.
    pub(super) fn decided(&mut self, run: &RunId, version: u64, busy: &LockUsage) -> Vec<String> {
        self.change(run, |held| {
            if held.newest() != busy {
                held.pending.push_back((version, busy.clone()));
            }
        })
    }

    /// All that `run` recorded up to `version` is durable.
    ///
    /// Appends of one run are answered by tasks of their own, so that an older version may be heard
    /// of after a newer one. It changes nothing then: were what the run held after each version
    /// handed over with the answer, the older one would take a lock again for a run that has
    /// released it, for as long as the server lives.
    pub(super) fn durable(&mut self, run: &RunId, version: u64) -> Vec<String> {
        self.change(run, |held| {
            while let Some((_, busy)) = held.pending.pop_front_if(|(at, _)| *at <= version) {
                held.durable = busy;
            }
        })
    }

    /// What `run` holds by the log, whatever was known of it.
    pub(super) fn replaced(&mut self, run: &RunId, busy: &LockUsage) -> Vec<String> {
        self.change(run, |held| {
            held.pending.clear();
            held.durable.clone_from(busy);
        })
    }

    fn change(&mut self, run: &RunId, change: impl FnOnce(&mut Held)) -> Vec<String> {
        let mut held = self.runs.remove(run).unwrap_or_default();
        let before = held.most();
        change(&mut held);
        let after = held.most();
        // Nothing is pending then, or it would be part of `after`: a decision that releases
        // everything is pending only while something older holds a place.
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
        locks.decided(&run, 1, &held(1));
        assert_eq!(locks.of_others(&other, ["db"]), held(1), "taken as soon as it is decided");
        locks.durable(&run, 1);

        assert_eq!(locks.decided(&run, 2, &LockUsage::new()), [""; 0], "let go in memory alone");
        assert_eq!(locks.taken("db"), 1);
        assert_eq!(locks.durable(&run, 2), ["db"]);

        assert_eq!((locks.taken("db"), locks.of_others(&other, ["db"])), (0, LockUsage::new()));
        assert!(locks.runs.is_empty() && locks.taken.is_empty());
    }

    #[test]
    fn an_answer_that_comes_late_takes_no_lock_again() {
        let mut locks = Locks::default();
        let (run, other) = ("r".into(), "other".into());
        locks.decided(&run, 1, &held(1));
        locks.decided(&run, 2, &held(1));
        locks.decided(&run, 3, &LockUsage::new());

        assert_eq!(locks.durable(&run, 3), ["db"]);
        assert_eq!(locks.durable(&run, 1), [""; 0]);
        assert_eq!(locks.durable(&run, 2), [""; 0]);

        assert_eq!(locks.of_others(&other, ["db"]), LockUsage::new());
        assert!(locks.runs.is_empty() && locks.taken.is_empty());
    }

    #[test]
    fn a_place_that_was_taken_in_between_is_taken_until_the_log_says_otherwise() {
        let mut locks = Locks::default();
        let (run, other) = ("r".into(), "other".into());
        locks.decided(&run, 1, &held(2));
        locks.decided(&run, 2, &LockUsage::new());
        assert_eq!(locks.of_others(&other, ["db"]), held(2), "the log may end between the two");

        assert_eq!(locks.replaced(&run, &held(1)), ["db"]);
        assert_eq!(locks.durable(&run, 2), [""; 0], "that was given up");
        assert_eq!(locks.of_others(&other, ["db"]), held(1));
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
