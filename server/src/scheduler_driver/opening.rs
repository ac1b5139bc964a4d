//! How a session opens: what is checked of a hello before the scheduler learns of it.

use towpath_engine::{
    ids::{RunId, WorkerName},
    scheduler::{Hello, Input, SLOTS_MAX, SessionId},
};
use towpath_proto::v1;
use towpath_storage::StoreError;

use super::{SchedulerDriver, hello};
use crate::{command_error::CommandError, outbox::Outbox, shared_scheduler::Delivery, wire};

impl SchedulerDriver {
    /// Opens a session, or says why not.
    pub(crate) async fn open(
        &self,
        mut hello: v1::Hello,
        outbox: &Outbox,
    ) -> Result<(SessionId, Delivery), CommandError> {
        hello::check(&hello)?;
        let only = match hello.run.as_str() {
            "" => None,
            asked => Some(self.runs.find(asked)?),
        };
        self.check_job(&hello, only.as_ref()).await?;
        let worker = WorkerName::from(hello.worker.as_str());
        self.scheduler.disconnect_broken(&worker);
        let held = std::mem::take(&mut hello.held).into_iter().map(wire::key).collect();
        let hello = Hello {
            worker,
            worker_instance_id: hello.worker_instance_id,
            version: hello.version,
            slots: hello.slots.clamp(1, SLOTS_MAX),
            tags: hello.tags,
            only,
            job: (!hello.job.is_empty()).then(|| hello.job.as_str().into()),
            jobs_max: (hello.jobs_max > 0).then_some(hello.jobs_max),
            draining: hello.draining,
            held,
            since: self.runs.log.now(),
        };
        let (session, delivery, opened) = self.scheduler.connect(outbox.clone());
        self.scheduler.on(Input::Hello { session, hello });
        tokio::select! {
            opened = opened => opened.unwrap_or(Err(CommandError::Store(StoreError::Closed)))?,
            () = outbox.closed() => {}
        }
        Ok((session, delivery))
    }

    /// Refuses a hello for a job that cannot be waited for.
    async fn check_job(&self, hello: &v1::Hello, run: Option<&RunId>) -> Result<(), CommandError> {
        if hello.job.is_empty() || hello.draining || !hello.held.is_empty() {
            return Ok(());
        }
        let Some(run) = run else {
            let what = "a worker for one job names its run".to_owned();
            return Err(CommandError::MessageInvalid { what });
        };
        self.still_open(run, &hello.job.as_str().into()).await
    }
}
