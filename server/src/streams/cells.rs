//! The streams of one kind in memory, and which of them are evicted when they take too much of it.
//!
//! A stream that is live stays: it is asked about at every step. An idle one stays for as long as
//! the bytes of all are below the bound, because the log has it when it is asked for again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use towpath_engine::aggregate::Aggregate;

use super::Cell;

/// Most memory of the streams of one kind, in bytes, beyond which idle ones are evicted. A live one
/// is never evicted, so that the live ones may take more. Source: a run of 50,000 small jobs is
/// about as large.
const STREAM_BYTES_MAX: usize = 64 * 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Cells<A: Aggregate> {
    by_id: HashMap<A::Id, Entry<A>>,
    /// The streams that may be evicted, least recently used first.
    idle: BTreeMap<u64, A::Id>,
    bytes: usize,
    bytes_max: usize,
    uses: u64,
}

#[derive(Debug)]
struct Entry<A> {
    cell: Cell<A>,
    /// About how much memory it takes.
    bytes: usize,
    /// Its place in `idle`, if it may be evicted.
    idle_since: Option<u64>,
}

impl<A: Aggregate> Default for Cells<A> {
    fn default() -> Self {
        Self::new(STREAM_BYTES_MAX)
    }
}

impl<A: Aggregate> Cells<A> {
    fn new(bytes_max: usize) -> Self {
        Self { by_id: HashMap::new(), idle: BTreeMap::new(), bytes: 0, bytes_max, uses: 0 }
    }

    /// The cell of stream `id`, if it is in memory.
    pub(crate) fn get(&mut self, id: &A::Id) -> Option<Cell<A>> {
        let idle = self.by_id.get(id)?.idle_since.is_some();
        if idle {
            self.set_idle(id, true);
        }
        self.by_id.get(id).map(|entry| Arc::clone(&entry.cell))
    }

    /// Keeps the cell of stream `id`, which takes about `bytes` of memory.
    pub(crate) fn insert(&mut self, id: &A::Id, cell: &Cell<A>, bytes: usize, idle: bool) {
        self.remove(id);
        let entry = Entry { cell: Arc::clone(cell), bytes: 0, idle_since: None };
        self.by_id.insert(id.clone(), entry);
        self.weigh(id, bytes, idle);
    }

    /// Notes how much memory stream `id` takes now, and whether it may be evicted.
    pub(crate) fn weigh(&mut self, id: &A::Id, bytes: usize, idle: bool) {
        let Some(entry) = self.by_id.get_mut(id) else { return };
        self.bytes = self.bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        self.set_idle(id, idle);
        self.evict_idle();
    }

    /// Evicts stream `id`.
    pub(crate) fn remove(&mut self, id: &A::Id) {
        let Some(entry) = self.by_id.remove(id) else { return };
        self.bytes -= entry.bytes;
        if let Some(since) = entry.idle_since {
            self.idle.remove(&since);
        }
    }

    /// Every stream in memory.
    pub(crate) fn all(&self) -> Vec<(A::Id, Cell<A>)> {
        self.by_id.iter().map(|(id, entry)| (id.clone(), Arc::clone(&entry.cell))).collect()
    }

    fn set_idle(&mut self, id: &A::Id, idle: bool) {
        let Some(entry) = self.by_id.get_mut(id) else { return };
        if let Some(since) = entry.idle_since.take() {
            self.idle.remove(&since);
        }
        if idle {
            self.uses += 1;
            entry.idle_since = Some(self.uses);
            self.idle.insert(self.uses, id.clone());
        }
    }

    fn evict_idle(&mut self) {
        let newest = self.uses;
        let mut after = 0;
        while self.bytes > self.bytes_max {
            let oldest = self.idle.range(after + 1..newest).next();
            let Some((since, id)) = oldest.map(|(since, id)| (*since, id.clone())) else { return };
            after = since;
            // A cell that another task holds would be loaded a second time beside it, and the two
            // would not know of each other's appends.
            let held = self.by_id.get(&id).is_some_and(|entry| Arc::strong_count(&entry.cell) > 1);
            if !held {
                self.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Mutex;
    use towpath_engine::run::Run;

    use super::*;
    use crate::streams::{Loaded, load::Replayed};

    fn cell() -> Cell<Run> {
        Arc::new(Mutex::new(Loaded::from(Replayed::default())))
    }

    fn in_memory(cells: &Cells<Run>) -> Vec<String> {
        let mut ids: Vec<_> = cells.by_id.keys().map(ToString::to_string).collect();
        ids.sort();
        ids
    }

    #[test]
    fn the_least_recently_used_streams_are_evicted_by_their_bytes() {
        let mut cells = Cells::new(100);
        for id in ["a", "b", "c"] {
            cells.insert(&id.into(), &cell(), 30, true);
        }
        assert!(cells.get(&"a".into()).is_some());

        cells.insert(&"d".into(), &cell(), 60, true);

        assert_eq!(in_memory(&cells), ["a", "d"]);
        assert_eq!(cells.bytes, 90);
    }

    #[test]
    fn what_goes_on_and_what_is_held_stays() {
        let mut cells = Cells::new(100);
        let held = cell();
        cells.insert(&"live".into(), &cell(), 90, false);
        cells.insert(&"held".into(), &held, 90, true);
        cells.insert(&"idle".into(), &cell(), 90, true);
        cells.insert(&"new".into(), &cell(), 500, true);
        assert_eq!(in_memory(&cells), ["held", "live", "new"]);

        drop(held);
        cells.weigh(&"live".into(), 200, true);
        assert_eq!(in_memory(&cells), ["live"], "the newest stays, even if it is too large");
        cells.weigh(&"live".into(), 200, false);
        cells.insert(&"next".into(), &cell(), 1, true);
        assert_eq!(in_memory(&cells), ["live", "next"]);
        assert_eq!((cells.bytes, cells.idle.len()), (201, 1));
    }
}
