//! Workers that are there for one job: let in while somebody may still be given it.

use towpath_engine::{
    ids::{JobName, RunId},
    refusal::Refusal,
};
use towpath_proto::v1;

use super::Dispatch;
use crate::{
    runs::{CommandError, Loaded, locked},
    status,
};

impl Dispatch {
    /// Refuses a hello for a job that cannot be waited for.
    pub(super) async fn check_job(
        &self,
        hello: &v1::Hello,
        run: Option<&RunId>,
    ) -> Result<(), CommandError> {
        if hello.job.is_empty() || hello.draining || !hello.holding.is_empty() {
            return Ok(());
        }
        let Some(run) = run else {
            let what = "a worker for one job names its run".to_owned();
            return Err(CommandError::MessageInvalid { what });
        };
        self.still_open(run, &hello.job.as_str().into()).await
    }

    /// Refuses a worker that is there for a job that nobody will be given any more.
    async fn still_open(&self, run: &RunId, job: &JobName) -> Result<(), CommandError> {
        let state = |loaded: &Loaded| {
            let known = loaded.run.job(job.as_str());
            known.map(|job| job.state.is_over().then(|| job.state.word()))
        };
        match self.runs.look(run, state).await? {
            Some(None) => Ok(()),
            Some(Some(state)) => Err(CommandError::JobEnded { job: job.clone(), state }),
            None => Err(Refusal::JobUnknown { job: job.clone() }.into()),
        }
    }

    /// Sends away workers that wait for a job that has ended without them.
    pub(super) async fn turn_away(&self) {
        let waiting: Vec<_> = locked(&self.sessions)
            .iter()
            .filter_map(|(id, session)| Some((*id, session.awaited()?)))
            .collect();
        for (id, (run, job)) in waiting {
            if let Err(error) = self.still_open(&run, &job).await
                && let Some(session) = locked(&self.sessions).remove(&id)
            {
                drop(session.send.try_send(Err(status::of(error))));
            }
        }
    }
}
