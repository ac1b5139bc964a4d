//! The worker of this process while a run is followed: how it begins, is interrupted, and ends.

use std::{path::PathBuf, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Interval, MissedTickBehavior},
};
use towpath_engine::code::ErrorCode;
use towpath_engine::scheduler::LOCAL_WORKER_PREFIX;
use towpath_worker::{
    AttemptsDir, SessionLimits, Stop, WorkResult, WorkerError, WorkerOptions, work,
};

use super::{Follow, screen::Show};
use crate::{commands::CommandResult, connect::ServerConnection, failure::Failure};

/// How often it is tried whether another process still works on the run. A process that is killed
/// says nothing, and the lock that it held is all that shows it.
const TAKE_OVER_EVERY: Duration = Duration::from_secs(1);

/// The worker of this process, while it has one.
pub(super) struct Host {
    task: Option<JoinHandle<WorkResult>>,
    stop: Stop,
    /// It was stopped: by a signal, or because the reader of the output has closed it any
    /// more.
    pub(super) interrupted: bool,
    /// The run is worked on elsewhere on this machine.
    others_work: bool,
    try_others: Interval,
}

/// What [`Host::next`] waits for.
pub(super) enum HostNews {
    /// The worker of this process ended.
    Ended(WorkResult),
    /// The process that worked on the run does so no more.
    OthersLeft,
}

impl Host {
    pub(super) fn begin(server: &ServerConnection, follow: &Follow, slots: Option<u32>) -> Self {
        let stop = Stop::default();
        let task = slots.map(|slots| begin_work(server, follow, slots, stop.clone()));
        let mut try_others = tokio::time::interval(TAKE_OVER_EVERY);
        // After a suspended laptop one check is enough; the default would make up for every missed
        // second.
        try_others.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { task, stop, interrupted: false, others_work: false, try_others }
    }

    /// Another process has the attempts of the run: watches it.
    pub(super) fn leave_to_others(&mut self, show: &mut Show<'_>) {
        self.others_work = true;
        show.say("Another process is working on this run; watching it.");
    }

    /// Begins to work on the run that another process worked on: no other process would, and the
    /// client that resumed it would wait without end.
    pub(super) fn take_over(
        &mut self,
        server: &ServerConnection,
        follow: &Follow,
        show: &mut Show<'_>,
    ) {
        let Some(slots) = follow.slots else { return };
        show.say("The process that worked on this run has ended; this one continues.");
        self.others_work = false;
        self.task = Some(begin_work(server, follow, slots, self.stop.clone()));
    }

    pub(super) fn works(&self) -> bool {
        self.task.is_some()
    }

    /// Whether the run continues without this process.
    pub(super) fn is_of_others(&self, server: &ServerConnection) -> bool {
        self.others_work || server.is_remote()
    }

    /// Stops a step further: first what runs may finish, then it is ended. `true`: there is
    /// nothing to wait for.
    pub(super) fn interrupt(&mut self, show: &mut Show<'_>, why: Option<&str>) -> bool {
        // A process that only watches, or whose run another process works on, just ends.
        if self.task.is_none() {
            return true;
        }
        if self.interrupted {
            show.say("Ending the running jobs.");
            self.stop.kill.cancel();
        } else {
            let running = match show.run.counts().running {
                1 => "1 running job finishes".to_owned(),
                count => format!("{count} running jobs finish"),
            };
            let why = why.map(|why| format!("{why}. ")).unwrap_or_default();
            show.say(&format!("{why}Stopping: {running} first. Ctrl-C again ends what runs."));
            self.stop.drain.cancel();
            show.stopping = true;
        }
        self.interrupted = true;
        false
    }

    /// What becomes of the worker of this process, or of the process that it leaves the run to.
    /// Never comes back if there is neither.
    pub(super) async fn next(&mut self, server: &ServerConnection, follow: &Follow) -> HostNews {
        if let Some(task) = &mut self.task {
            let worked = task.await;
            self.task = None;
            // A panic of the worker's task. It is reported as an error, because the run would
            // otherwise be followed without a worker.
            let broke = |_| Err(Box::new(tonic::Status::internal("the worker failed")).into());
            return HostNews::Ended(worked.unwrap_or_else(broke));
        }
        // Without a task and without others there is nothing to wait for; a future that ends would
        // make the caller's loop spin.
        if !self.others_work {
            return std::future::pending().await;
        }
        let folder = attempts_folder(server, follow);
        loop {
            // Not a sleep: this future is dropped and made again with every drawing, ten times a
            // second, and a sleep would begin again each time.
            self.try_others.tick().await;
            if !AttemptsDir::is_in_use(&folder) {
                return HostNews::OthersLeft;
            }
        }
    }

    /// Ends the worker, whatever `finished` the run for this process.
    pub(super) async fn end(&mut self, finished: &CommandResult) {
        self.stop.drain.cancel();
        let Some(mut worker) = self.task.take() else { return };
        let stopped =
            finished.as_ref().is_err_and(|failure| failure.is(ErrorCode::StoreUnavailable));
        if stopped {
            // It would wait for its reports to be recorded, which a stopped store never does. Its
            // jobs continue as after a kill, and the next worker adopts them.
            worker.abort();
            return;
        }
        // Everything has ended or waits for a person: the worker holds nothing any more.
        // Bounded all the same: an exit that hangs is worse than a worker that is cut off, whose
        // jobs are adopted later.
        drop(tokio::time::timeout(Duration::from_secs(30), &mut worker).await);
    }
}

fn attempts_folder(server: &ServerConnection, follow: &Follow) -> PathBuf {
    server.folder().join("attempts").join(follow.run.as_str())
}

fn begin_work(
    server: &ServerConnection,
    follow: &Follow,
    slots: u32,
    stop: Stop,
) -> JoinHandle<WorkResult> {
    let options = WorkerOptions {
        job: None,
        name: format!("{LOCAL_WORKER_PREFIX}{}", follow.run),
        slots,
        tags: follow.tags.clone(),
        run: Some(follow.run.to_string()),
        attempts: attempts_folder(server, follow),
        // The pipe inside the process belongs to the owner of the store and needs no token.
        bearer: None,
        file_remotes: false,
        keep_work: false,
        stay: SessionLimits::default(),
    };
    tokio::spawn(work(server.channel(), options, stop))
}

pub(super) fn worker_failure(error: &WorkerError) -> Failure {
    match error {
        WorkerError::Session(status) | WorkerError::Unreported { status, .. } => {
            Failure::from((**status).clone())
        }
        WorkerError::Attempts(error) => Failure::new(
            ErrorCode::StoreUnavailable,
            error.to_string(),
            "The store's folder must be writable, and its disk needs free space.",
        ),
    }
}
