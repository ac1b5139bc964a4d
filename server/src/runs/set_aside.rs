//! Runs whose records cannot be replayed. They are named, and stop nobody else.

use towpath_engine::{ids::RunId, scheduler::Input};

use super::{CommandError, Runs, locked};

impl Runs {
    /// Sets the run aside if `error` says that its records cannot be replayed: nothing looks after
    /// it any more, so that it stops no other run, no worker and no start of the server.
    pub(super) fn set_aside_if_damaged(&self, id: &RunId, error: &CommandError) {
        let CommandError::Unreplayable { version, why, .. } = error else { return };
        if locked(&self.set_aside).insert(id.clone(), (*version, why.clone())).is_none() {
            tracing::error!(run = %id, version, why, "run set aside: it cannot be replayed");
        }
        self.scheduler.on(Input::RunSetAside { run: id });
        locked(&self.due).set(id, None);
    }

    /// Has the scheduler look at `run` again, although nothing was decided on it.
    pub(crate) async fn note_again(&self, run: &RunId) -> Result<(), CommandError> {
        let loaded = self.lock_latest(run).await?;
        self.note(run, &loaded, &[]);
        Ok(())
    }

    /// Whether there is such a run: it is in the log, or is just being created.
    pub(crate) fn is_known(&self, run: &RunId) -> bool {
        locked(&self.list).get(run).is_some() || locked(&self.cells).get(run).is_some()
    }

    /// Whether `run` has not ended and can be worked on.
    pub(crate) fn is_live(&self, run: &RunId) -> bool {
        !locked(&self.set_aside).contains_key(run) && locked(&self.list).is_live(run)
    }

    /// The runs that have not ended and can be worked on, oldest first.
    pub(crate) fn live(&self) -> Vec<RunId> {
        let set_aside = locked(&self.set_aside);
        let list = locked(&self.list);
        list.live().filter(|run| !set_aside.contains_key(*run)).cloned().collect()
    }
}
