//! Which run holds which named locks.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Mutex,
};

use towpath_engine::{ids::RunId, run::Busy};

use crate::runs::locked;

/// The locks that runs hold.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<HashMap<RunId, Held>>);

#[derive(Debug, Default)]
struct Held {
    /// After what was decided.
    decided: Busy,
    /// After what is durable: what was let go in memory alone may turn out to be held.
    durable: Busy,
}

impl Locks {
    /// What run `id` holds after everything that was decided.
    pub(crate) fn decided(&self, id: &RunId, busy: Busy) {
        self.change(id, |held| held.decided = busy);
    }

    /// What run `id` holds after everything that is durable.
    pub(crate) fn durable(&self, id: &RunId, busy: Busy) {
        self.change(id, |held| held.durable = busy);
    }

    fn change(&self, id: &RunId, change: impl FnOnce(&mut Held)) {
        let mut all = locked(&self.0);
        let mut held = all.remove(id).unwrap_or_default();
        change(&mut held);
        if !held.decided.is_empty() || !held.durable.is_empty() {
            all.insert(id.clone(), held);
        }
    }

    /// How many jobs of runs other than `id` hold each lock.
    pub(crate) fn of_others(&self, id: &RunId) -> Busy {
        let mut all = Busy::new();
        for (_, held) in locked(&self.0).iter().filter(|(other, _)| *other != id) {
            let names: BTreeSet<_> = held.decided.keys().chain(held.durable.keys()).collect();
            for name in names {
                let count = |busy: &Busy| busy.get(name).copied().unwrap_or_default();
                let most = count(&held.decided).max(count(&held.durable));
                *all.entry(name.clone()).or_default() += most;
            }
        }
        all
    }
}
