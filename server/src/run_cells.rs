//! The runs in memory, and which of them are forgotten when they take too much of it.
//!
//! A run that goes on stays: it is asked about at every step. A run that has ended stays for as
//! long as there is room, because it is read again from the log when somebody asks.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use towpath_engine::{event::RunEvent, ids::RunId};

use crate::runs::Cell;

/// Most memory of runs, in bytes, beyond which those that have ended are forgotten. A run that goes
/// on is never forgotten, so that the runs that go on may take more. Source: a run of 50,000 small
/// jobs is about as large.
const RUN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct RunCells {
    by_run: HashMap<RunId, Entry>,
    /// The runs that may be forgotten, least recently used first.
    idle: BTreeMap<u64, RunId>,
    bytes: usize,
    bytes_max: usize,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    cell: Cell,
    /// About how much memory it takes.
    bytes: usize,
    /// Its place in `idle`, if it may be forgotten.
    idle_since: Option<u64>,
}

impl Default for RunCells {
    fn default() -> Self {
        Self::new(RUN_BYTES_MAX)
    }
}

impl RunCells {
    fn new(bytes_max: usize) -> Self {
        Self { by_run: HashMap::new(), idle: BTreeMap::new(), bytes: 0, bytes_max, uses: 0 }
    }

    /// The cell of run `id`, if it is in memory.
    pub(crate) fn get(&mut self, id: &RunId) -> Option<Cell> {
        let idle = self.by_run.get(id)?.idle_since.is_some();
        if idle {
            self.set_idle(id, true);
        }
        self.by_run.get(id).map(|entry| Arc::clone(&entry.cell))
    }

    /// Keeps the cell of run `id`, which takes about `bytes` of memory.
    pub(crate) fn insert(&mut self, id: &RunId, cell: &Cell, bytes: usize, idle: bool) {
        self.remove(id);
        let entry = Entry { cell: Arc::clone(cell), bytes: 0, idle_since: None };
        self.by_run.insert(id.clone(), entry);
        self.weigh(id, bytes, idle);
    }

    /// Notes how much memory run `id` takes now, and whether it may be forgotten.
    pub(crate) fn weigh(&mut self, id: &RunId, bytes: usize, idle: bool) {
        let Some(entry) = self.by_run.get_mut(id) else { return };
        self.bytes = self.bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        self.set_idle(id, idle);
        self.forget_idle();
    }

    /// Forgets run `id`.
    pub(crate) fn remove(&mut self, id: &RunId) {
        let Some(entry) = self.by_run.remove(id) else { return };
        self.bytes -= entry.bytes;
        if let Some(since) = entry.idle_since {
            self.idle.remove(&since);
        }
    }

    /// Every run in memory.
    pub(crate) fn all(&self) -> Vec<(RunId, Cell)> {
        self.by_run.iter().map(|(id, entry)| (id.clone(), Arc::clone(&entry.cell))).collect()
    }

    fn set_idle(&mut self, id: &RunId, idle: bool) {
        let Some(entry) = self.by_run.get_mut(id) else { return };
        if let Some(since) = entry.idle_since.take() {
            self.idle.remove(&since);
        }
        if idle {
            self.uses += 1;
            entry.idle_since = Some(self.uses);
            self.idle.insert(self.uses, id.clone());
        }
    }

    fn forget_idle(&mut self) {
        let newest = self.uses;
        let mut after = 0;
        while self.bytes > self.bytes_max {
            let oldest = self.idle.range(after + 1..newest).next();
            let Some((since, id)) = oldest.map(|(since, id)| (*since, id.clone())) else { return };
            after = since;
            // A cell that another task holds would be loaded a second time beside it, and the two
            // would not know of each other's appends.
            let held = self.by_run.get(&id).is_some_and(|entry| Arc::strong_count(&entry.cell) > 1);
            if !held {
                self.remove(&id);
            }
        }
    }
}

/// Whether `event` may change whether anything of the run happens by itself.
pub(crate) fn changes_idle(event: &RunEvent) -> bool {
    match event {
        RunEvent::RunFinished { .. }
        | RunEvent::RunStarted {}
        | RunEvent::RunResumed {}
        | RunEvent::JobsInvalidated { .. }
        | RunEvent::JobRetried { .. }
        | RunEvent::PlanReplaced { .. } => true,
        RunEvent::RunCreated { .. }
        | RunEvent::JobsPlanned { .. }
        | RunEvent::ConditionEvaluated { .. }
        | RunEvent::GateReached { .. }
        | RunEvent::GateApproved { .. }
        | RunEvent::GateVoided { .. }
        | RunEvent::GateRejected { .. }
        | RunEvent::JobLeased { .. }
        | RunEvent::JobSucceeded { .. }
        | RunEvent::JobAttemptFailed { .. }
        | RunEvent::JobFailed { .. }
        | RunEvent::JobCancelled { .. }
        | RunEvent::JobLost { .. }
        | RunEvent::JobSkipped { .. }
        | RunEvent::RunAborted { .. }
        | RunEvent::RunCancelRequested { .. }
        | RunEvent::RunTimedOut {}
        | RunEvent::JobImported { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Mutex;
    use towpath_engine::run::Run;

    use super::*;
    use crate::{load::LoadedRun, runs::Loaded};

    fn cell() -> Cell {
        let run = Run::default();
        let loaded = LoadedRun { run, version: 0, position: 0, snapshot_version: 0 };
        Arc::new(Mutex::new(Loaded::from(loaded)))
    }

    fn in_memory(cells: &RunCells) -> Vec<String> {
        let mut ids: Vec<_> = cells.by_run.keys().map(ToString::to_string).collect();
        ids.sort();
        ids
    }

    #[test]
    fn the_least_recently_used_runs_are_forgotten_by_their_bytes() {
        let mut cells = RunCells::new(100);
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
        let mut cells = RunCells::new(100);
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
