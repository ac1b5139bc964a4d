//! Workers that are not heard any more, and the leases that lapse with them.

use std::time::Instant;

use towpath_engine::{ids::WorkerName, run::Job};

use super::Dispatch;
use crate::{
    LOCAL_WORKER_PREFIX,
    runs::{CommandError, locked},
    sessions::Session,
};

impl Dispatch {
    /// Begins to wait for the workers that hold `leased`: the server has only just begun.
    pub(crate) fn miss<'a>(&self, leased: impl Iterator<Item = &'a Job>) {
        for (_, worker) in leased.filter_map(|job| job.state.lease()) {
            self.await_return(worker.clone(), Instant::now());
        }
    }

    /// The worker of `session` said something; says whether the session still stands.
    pub(crate) fn hear(&self, session: u64) -> bool {
        let mut sessions = locked(&self.sessions);
        let session = sessions.get_mut(&session);
        session.map(|session| session.heard = Instant::now()).is_some()
    }

    pub(super) fn forgive_silence(&self) {
        let now = Instant::now();
        locked(&self.sessions).values_mut().for_each(|session| session.heard = now);
        locked(&self.gone).values_mut().for_each(|since| *since = now);
    }

    /// Ends the sessions of workers that have been silent for as long as a lease lasts.
    pub(super) fn end_the_silent(&self) {
        let silent: Vec<u64> = locked(&self.sessions)
            .iter()
            .filter(|(_, session)| session.heard.elapsed() >= self.lease)
            .map(|(id, _)| *id)
            .collect();
        for id in silent {
            if let Some(session) = locked(&self.sessions).remove(&id) {
                tracing::warn!(worker = %session.worker, "silent for too long");
                self.miss_session(session);
            }
        }
    }

    /// Begins to wait for a worker that is not there. Its leases lapse unless it comes back; those
    /// of a worker of this machine do not: whoever resumes its run finds what became of its jobs.
    pub(super) fn await_return(&self, worker: WorkerName, since: Instant) {
        if !worker.as_str().starts_with(LOCAL_WORKER_PREFIX) {
            locked(&self.gone).insert(worker, since);
        }
    }

    pub(super) fn miss_session(&self, session: Session) {
        if !session.replaced {
            self.await_return(session.worker, session.heard);
        }
    }

    pub(super) async fn lose_the_gone(&self) {
        let lapsed: Vec<WorkerName> = locked(&self.gone)
            .iter()
            .filter(|(_, since)| since.elapsed() >= self.lease)
            .map(|(worker, _)| worker.clone())
            .collect();
        for worker in lapsed {
            let _opening = self.opening.lock().await;
            if !locked(&self.gone).contains_key(&worker) {
                continue;
            }
            match self.lose_all(&worker).await {
                Ok(()) => drop(locked(&self.gone).remove(&worker)),
                // Tried again at the next look: a lease that nobody holds must not stay.
                Err(error) => tracing::warn!(%worker, %error, "not lost yet"),
            }
        }
    }

    async fn lose_all(&self, worker: &WorkerName) -> Result<(), CommandError> {
        for run in self.runs_of(None) {
            for key in self.leased_by(&run, worker).await? {
                self.lose(&key, "its worker has been silent").await?;
            }
        }
        Ok(())
    }
}
