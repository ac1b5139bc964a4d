//! Who is connected, for people; and whom they want to be given nothing new.

use towpath_engine::ids::WorkerName;
use towpath_proto::v1;

use super::Dispatch;
use crate::runs::{CommandError, locked};

impl Dispatch {
    /// The workers that are connected, by name.
    pub(crate) fn workers(&self) -> Vec<v1::Worker> {
        let drained = locked(&self.drained).clone();
        let sessions = locked(&self.sessions);
        let current = sessions.values().filter(|session| !session.replaced);
        let mut all: Vec<_> =
            current.map(|session| session.view(drained.contains(&session.worker))).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Gives the worker of this name nothing new, or jobs again.
    pub(crate) fn drain_worker(&self, name: &str, drain: bool) -> Result<v1::Worker, CommandError> {
        let named = |worker: &v1::Worker| worker.name == name;
        let unknown = || CommandError::WorkerUnknown { name: name.to_owned() };
        self.workers().into_iter().find(named).ok_or_else(unknown)?;
        if drain {
            locked(&self.drained).insert(name.into());
        } else {
            locked(&self.drained).remove(&WorkerName::from(name));
            self.runs.changed.notify_one();
        }
        self.workers().into_iter().find(named).ok_or_else(unknown)
    }
}
