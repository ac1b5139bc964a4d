//! Carries out what the scheduler wants of the log, and tells it what came of that. Decides
//! nothing: the rules are in the engine's `scheduler`.

mod hello;
mod opening;
mod reports;

use std::{collections::BTreeSet, sync::Arc};

use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    decide::{Command, LeaseJob, LoseJob},
    ids::{Actor, AttemptId, JobName, RunId, WorkerName},
    refusal::Refusal,
    scheduler::{Blame, Effect, Input, LeaseStage, Leased, LossReason, SessionId},
};
use towpath_storage::{AppendError, StoreError};

use crate::{
    command_error::CommandError,
    runs::Runs,
    shared_scheduler::SharedScheduler,
    streams::{Loaded, Recorded},
};

pub(crate) use reports::{Answer, End};

/// Carries out what the scheduler wants.
#[derive(Debug)]
pub(crate) struct SchedulerDriver {
    runs: Arc<Runs>,
    pub(crate) scheduler: Arc<SharedScheduler>,
}

impl SchedulerDriver {
    pub(crate) fn new(runs: Arc<Runs>, scheduler: Arc<SharedScheduler>) -> Self {
        Self { runs, scheduler }
    }

    /// Carries out what the scheduler wants, until the server stops.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut work: mpsc::UnboundedReceiver<Effect>,
        stop: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(self.scheduler.inspect(|all| all.lease() / 4));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                next = work.recv() => match next {
                    // Nothing is waited for here: while one run waits for its lock or for the disk,
                    // the others are leased, and time passes for all.
                    Some(effect) => self.carry_out(effect),
                    None => return,
                },
                _ = ticks.tick() => drop(self.scheduler.on(Input::Tick)),
                () = self.scheduler.wait_for_alarm() => drop(self.scheduler.on(Input::Tick)),
            }
        }
    }

    fn carry_out(self: &Arc<Self>, effect: Effect) {
        match effect {
            // In order all the same: the scheduler asks for the next lease of a run when this one
            // is decided, and for no more leases than there are free slots.
            Effect::Lease { session, run, lease } => {
                let driver = Arc::clone(self);
                tokio::spawn(async move { driver.lease(session, run, lease).await });
            }
            Effect::Lose { attempt, reason } => {
                let driver = Arc::clone(self);
                tokio::spawn(async move { driver.lose(attempt, reason).await });
            }
            Effect::Reconcile { session, worker, runs } => {
                let driver = Arc::clone(self);
                tokio::spawn(async move { driver.reconcile(session, &worker, runs).await });
            }
            Effect::CheckJob { session, run, job } => {
                let driver = Arc::clone(self);
                tokio::spawn(async move {
                    let open = async {
                        driver.still_open(&run, &job).await?;
                        driver.runs.note_again(&run).await
                    };
                    if let Err(error) = open.await {
                        driver.scheduler.disconnect(session, Some(error));
                    }
                });
            }
            Effect::Record { .. }
            | Effect::Opened { .. }
            | Effect::Deliver { .. }
            | Effect::Close { .. }
            | Effect::Notice(_) => {}
        }
    }

    /// Decides a lease; the next one may be decided while this one is being written.
    async fn lease(&self, session: SessionId, run: RunId, lease: LeaseJob) {
        let by = Actor::worker(lease.worker.as_str());
        let queued = match self.runs.queue(&run, &[Command::Lease(lease)], &by).await {
            Ok(queued) => queued,
            Err(error) => {
                let blame = self.blame(&error);
                let stage = LeaseStage::Decide;
                self.scheduler.on(Input::LeaseFailed { session, run, stage, blame });
                return;
            }
        };
        let recorded = queued.facts > 0;
        self.scheduler.on(Input::LeaseDecided { session, run: run.clone(), recorded });
        if !recorded {
            return;
        }
        match queued.done.await {
            Ok(recorded) => {
                let leased = self.leased(&run, &recorded);
                self.scheduler.on(Input::LeaseDurable { session, leased });
            }
            Err(error) => {
                let blame = self.blame_append(&error);
                let stage = LeaseStage::Write;
                self.scheduler.on(Input::LeaseFailed { session, run, stage, blame });
            }
        }
    }

    async fn lose(&self, attempt: AttemptId, reason: LossReason) {
        let lose = Command::Lose(LoseJob {
            job: attempt.job.clone(),
            attempt: attempt.attempt,
            reason: reason.words().to_owned(),
        });
        let lost = self.runs.execute(&attempt.run, lose, &Actor::timer()).await;
        // A refusal says that it is lost already.
        let ok = matches!(lost, Ok(_) | Err(CommandError::Refused(_)));
        if let Err(error) = lost {
            let AttemptId { run, job, attempt } = &attempt;
            tracing::debug!(%run, %job, %attempt, %error, "attempt not recorded as lost");
        }
        self.scheduler.on(Input::Lost { attempt, ok });
    }

    /// What `worker` holds, as far as the disk knows: what it is told, it acts on.
    async fn reconcile(&self, session: SessionId, worker: &WorkerName, runs: BTreeSet<RunId>) {
        let mut leased = Vec::new();
        for run in runs {
            if !self.runs.is_live(&run) {
                continue;
            }
            let of_worker = |loaded: &Loaded| -> Vec<AttemptId> {
                let leases = loaded.state.leased().filter_map(|job| {
                    let (attempt, by) = job.state.lease()?;
                    let id = || AttemptId { run: run.clone(), job: job.plan.name.clone(), attempt };
                    (by == worker).then(id)
                });
                leases.collect()
            };
            match self.runs.read_durable(&run, of_worker).await {
                Ok(more) => leased.extend(more),
                Err(error) if self.blame(&error) == Blame::Run => {
                    // One run that cannot be read keeps no worker from all the others.
                    tracing::warn!(%run, %worker, %error, "run not read for a worker's hello");
                }
                Err(error) => {
                    self.scheduler.note_error(session, error);
                    self.scheduler.on(Input::Reconciled { session, leased: None });
                    return;
                }
            }
        }
        self.scheduler.on(Input::Reconciled { session, leased: Some(leased) });
    }

    /// Refuses a worker that is there for a job that no worker will be given any more.
    async fn still_open(&self, run: &RunId, job: &JobName) -> Result<(), CommandError> {
        let state = |loaded: &Loaded| {
            let known = loaded.state.job(job.as_str());
            known.map(|job| job.state.is_over().then(|| job.state.word()))
        };
        match self.runs.read_durable(run, state).await? {
            Some(None) => Ok(()),
            Some(Some(state)) => Err(CommandError::JobEnded { job: job.clone(), state }),
            None => Err(Refusal::JobUnknown { job: job.clone() }.into()),
        }
    }

    /// The leases among what was recorded.
    fn leased(&self, run: &RunId, recorded: &Recorded) -> Vec<Leased> {
        let mut all = Vec::new();
        for (fact, position) in recorded.facts.iter().zip(recorded.first..) {
            if let Some((job, attempt)) = fact.event.leased() {
                let attempt = AttemptId { run: run.clone(), job: job.clone(), attempt };
                all.push(Leased { attempt, fence: self.runs.log.fence_base + position });
            }
        }
        all
    }

    /// Whose fault it is that something could not be done: of one run, or of the store.
    fn blame(&self, error: &CommandError) -> Blame {
        let store = matches!(error, CommandError::StoreBusy)
            || matches!(error, CommandError::Store(error) if is_of_store(error));
        if store {
            self.scheduler.note_store_error(error.to_string());
        }
        if store { Blame::Store } else { Blame::Run }
    }

    fn blame_append(&self, error: &AppendError) -> Blame {
        let store = match error {
            AppendError::Store(error) => is_of_store(error),
            AppendError::Busy { .. } | AppendError::Full(_) => true,
            AppendError::Conflict { .. } | AppendError::TooLarge { .. } | AppendError::Empty => {
                false
            }
        };
        if store {
            self.scheduler.note_store_error(error.to_string());
        }
        if store { Blame::Store } else { Blame::Run }
    }
}

/// Whether nothing can be written or read now. Damage concerns the run that was read.
fn is_of_store(error: &StoreError) -> bool {
    !matches!(error, StoreError::Damaged { .. })
}

#[cfg(test)]
mod tests;
