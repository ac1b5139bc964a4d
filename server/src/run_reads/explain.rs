//! Why a job is in its state.

use towpath_engine::{
    ids::RunId,
    run::{Job, LockUsage},
    views::{self, Surroundings, WaitReason, WorkerSupply},
};
use towpath_proto::v1;

use super::{Dated, RunReads, Seen, unknown};
use crate::{command_error::CommandError, past_reads::Point, wire};

/// A job, its run, and the reason for which it waits.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) run: v1::Run,
    pub(crate) job: v1::Job,
    pub(crate) explanation: v1::Explanation,
}

impl RunReads {
    /// Why job `name` of the run that `asked` names waits, or waited at `point`.
    pub(crate) async fn explain(
        &self,
        asked: &str,
        name: &str,
        point: Option<Point>,
    ) -> Result<Dated<Explained>, CommandError> {
        let id = self.runs.find(asked)?;
        let explained = |seen: Seen<'_>| {
            let job = seen.run.job(name)?;
            let reason = match point {
                Some(point) => reason_then(&seen, job, point),
                None => self.reason_now(&id, &seen, job),
            };
            let mut explanation = wire::explanation(seen.run, &reason);
            if reason == WaitReason::LeasingPaused {
                explanation.store_error = self.scheduler.store_error();
            }
            let job = wire::job(seen.run, job, v1::JobView::Basic);
            Some(Explained { run: self.view_of(&id, seen), job, explanation })
        };
        let (explained, as_of) = self.read(&id, point, explained).await?;
        Ok((explained.ok_or_else(|| unknown(name))?, as_of))
    }

    fn reason_now(&self, id: &RunId, seen: &Seen<'_>, job: &Job) -> WaitReason {
        let lock = job.plan.resource.as_ref().map(|lock| lock.name.as_str());
        let holder = job.state.lease().map(|(_, worker)| worker);
        let locks_of_others = self.scheduler.locks_of_others(id, lock);
        let around = self.scheduler.inspect(|all| Surroundings {
            now: self.runs.log.now(),
            locks_of_others: &locks_of_others,
            holder_connected: holder.is_some_and(|worker| all.worker(worker).is_some()),
            workers: all.worker_supply(id, &job.plan.tags),
            leasing_paused: all.is_leasing_paused(),
        });
        views::explain(seen.run, job, &around)
    }
}

/// What a job waited for, as far as its own run tells: neither workers nor other runs are in its
/// records, so that it is said to wait for a slot where it was ready.
fn reason_then(seen: &Seen<'_>, job: &Job, point: Point) -> WaitReason {
    let around = Surroundings {
        now: match point {
            Point::Position(_) => seen.run.newest_at(),
            Point::Time(time) => time,
        },
        locks_of_others: &LockUsage::default(),
        holder_connected: true,
        workers: WorkerSupply::Fitting,
        leasing_paused: false,
    };
    views::explain(seen.run, job, &around)
}
