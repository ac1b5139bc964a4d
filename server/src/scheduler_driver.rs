//! Carries out what the scheduler wants of the log, and tells it what came of that. Decides
//! nothing: the rules are in the engine's `scheduler`.

mod hello;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    decide::{Command, Ended, LeaseJob, LoseJob, ReportJob},
    event::FailureCause,
    ids::{Actor, AttemptId, Blob, JobName, RunId, WorkerName},
    refusal::Refusal,
    scheduler::{
        Blame, Effect, Hello, Input, LeaseStage, Leased, LossReason, SLOTS_MAX, SessionId,
    },
};
use towpath_proto::v1;
use towpath_storage::{AppendError, StoreError};

use crate::{
    command_error::CommandError,
    outbox::Outbox,
    runs::Runs,
    shared_scheduler::{Delivery, SharedScheduler, Work},
    streams::Loaded,
    streams::Recorded,
    wire,
};

/// Shortest time before a report that the store had no room for is tried again.
const REPORT_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest such time.
const REPORT_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The scheduler's hands.
#[derive(Debug)]
pub(crate) struct SchedulerDriver {
    runs: Arc<Runs>,
    pub(crate) scheduler: Arc<SharedScheduler>,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is in the log.
    Recorded,
    /// The attempt is no longer valid, by the durable log.
    Void,
    /// Nothing: the session has ended, or another report of the attempt is being recorded. The
    /// attempt may still count, so that what it left behind is not to be touched.
    Unanswered,
}

/// How an attempt ended, as its worker reports it; what it left is kept already.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// Nobody knows how; why.
    Lost(String),
    /// So.
    Ended {
        ended: Ended,
        /// How long it ran, in milliseconds by the worker's clock.
        ran_ms: u64,
        /// What it printed.
        captured_output: Option<Blob>,
    },
}

impl End {
    fn command(&self, attempt: &AttemptId, worker: WorkerName) -> Command {
        let AttemptId { job, attempt, .. } = attempt.clone();
        match self.clone() {
            Self::Lost(reason) => Command::Lose(LoseJob { job, attempt, reason }),
            Self::Ended { ended, ran_ms, captured_output } => {
                Command::Report(ReportJob { job, attempt, worker, ended, ran_ms, captured_output })
            }
        }
    }

    /// The same attempt, but it failed for this reason.
    fn failed(self, cause: FailureCause) -> Self {
        let ended = Ended::Failed(cause);
        match self {
            Self::Lost(_) => Self::Ended { ended, ran_ms: 0, captured_output: None },
            Self::Ended { ran_ms, captured_output, .. } => {
                Self::Ended { ended, ran_ms, captured_output }
            }
        }
    }
}

impl SchedulerDriver {
    pub(crate) fn new(runs: Arc<Runs>, scheduler: Arc<SharedScheduler>) -> Self {
        Self { runs, scheduler }
    }

    /// Carries out what the scheduler wants, until the server stops.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut work: mpsc::UnboundedReceiver<Work>,
        stop: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(self.scheduler.inspect(|all| all.lease() / 4));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                next = work.recv() => match next {
                    Some(Work::Effect(effect)) => self.carry_out(effect).await,
                    Some(Work::Reached(reached)) => drop(reached.send(())),
                    None => return,
                },
                _ = ticks.tick() => drop(self.scheduler.on(Input::Tick)),
                () = self.scheduler.wait_for_alarm() => drop(self.scheduler.on(Input::Tick)),
            }
        }
    }

    async fn carry_out(self: &Arc<Self>, effect: Effect) {
        match effect {
            // In turn: what is leased next depends on what was leased before.
            Effect::Lease { session, run, lease } => self.lease(session, run, lease).await,
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
    async fn lease(self: &Arc<Self>, session: SessionId, run: RunId, lease: LeaseJob) {
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
        let driver = Arc::clone(self);
        tokio::spawn(async move {
            match queued.done.await {
                Ok(recorded) => {
                    let leased = driver.leased(&run, &recorded);
                    driver.scheduler.on(Input::LeaseDurable { session, leased });
                }
                Err(error) => {
                    let blame = driver.blame_append(&error);
                    let stage = LeaseStage::Write;
                    driver.scheduler.on(Input::LeaseFailed { session, run, stage, blame });
                }
            }
        });
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

    /// Records how an attempt ended, and uses its slot again in the same append.
    pub(crate) async fn record(
        &self,
        session: SessionId,
        attempt: &AttemptId,
        end: End,
    ) -> Result<Answer, CommandError> {
        let Some(record) = self.scheduler.on(Input::Report { session, attempt }) else {
            // Another report of the same attempt came first, or the session has ended.
            return self.answer_unheld(session, attempt).await;
        };
        let with_lease = record.lease.is_some();
        let by = Actor::worker(record.worker.as_str());
        let mut commands = vec![end.command(attempt, record.worker.clone())];
        commands.extend(record.lease.map(Command::Lease));
        let executed = match self.execute_patiently(session, &attempt.run, &commands, &by).await {
            Err(error) if is_refusal_of_report(&error) => {
                // Whatever the rules turn down is no success. To end here would leave the job
                // leased for ever: its worker has nothing else to report.
                let cause = FailureCause::ReportInvalid(error.to_string()).bounded();
                commands[0] = end.failed(cause).command(attempt, record.worker);
                self.execute_patiently(session, &attempt.run, &commands, &by).await
            }
            executed => executed,
        };
        match executed {
            Ok(recorded) => {
                let leased = self.leased(&attempt.run, &recorded);
                let attempt = attempt.clone();
                self.scheduler.on(Input::Recorded { session, attempt, with_lease, leased });
                Ok(Answer::Recorded)
            }
            Err(error) => {
                self.scheduler.on(Input::RecordFailed { session, with_lease });
                if !is_stale(&error) {
                    return Err(error);
                }
                // It does not count any more: it may be forgotten once that is durable, and not
                // before. If it counts again because that was not written, it is reported again.
                match self.answer_unheld(session, attempt).await? {
                    Answer::Void => Ok(Answer::Void),
                    Answer::Recorded | Answer::Unanswered => Err(error),
                }
            }
        }
    }

    /// Executes the commands of a report, again and again while the store has no room for them and
    /// the session lives. To end the session instead would have the worker open another and tell
    /// everything anew of everything that it runs, when the store can take it least.
    async fn execute_patiently(
        &self,
        session: SessionId,
        run: &RunId,
        commands: &[Command],
        by: &Actor,
    ) -> Result<Recorded, CommandError> {
        let mut pause = REPORT_PAUSE_MIN;
        loop {
            let executed = self.runs.execute_all(run, commands, by).await;
            let has_no_room = matches!(
                executed,
                Err(CommandError::StoreBusy
                    | CommandError::Contended
                    | CommandError::Store(StoreError::Full(_)))
            );
            if !has_no_room || !self.scheduler.inspect(|all| all.is_open(session)) {
                return executed;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REPORT_PAUSE_MAX);
        }
    }

    /// Answers a report of an attempt that this session does not hold.
    ///
    /// Either the attempt is no longer valid, and its worker may forget it. Or its report came
    /// twice and the first is still being written: that one is answered once it is durable, and to
    /// answer the second now would promise what may yet fail.
    pub(crate) async fn answer_unheld(
        &self,
        session: SessionId,
        attempt: &AttemptId,
    ) -> Result<Answer, CommandError> {
        if !self.is_void(session, attempt).await? {
            return Ok(Answer::Unanswered);
        }
        self.scheduler.on(Input::ReportVoid { session, attempt: attempt.clone() });
        Ok(Answer::Void)
    }

    /// Whether the worker of `session` does not hold `attempt`, by the durable log.
    async fn is_void(&self, session: SessionId, attempt: &AttemptId) -> Result<bool, CommandError> {
        let worker = self.scheduler.inspect(|scheduler| scheduler.worker_of(session).cloned());
        // A session that has ended is not answered.
        let Some(worker) = worker else { return Ok(false) };
        // Only the worker says that there is such a run. One that nobody created is not looked for:
        // each made-up name would be read from disk and kept in memory.
        if !self.runs.is_known(&attempt.run) {
            return Ok(true);
        }
        let counts = |loaded: &Loaded| {
            let job = loaded.state.job(attempt.job.as_str());
            job.is_some_and(|job| job.state.lease() == Some((attempt.attempt, &worker)))
        };
        match self.runs.read_durable(&attempt.run, counts).await {
            Ok(counts) => Ok(!counts),
            Err(error) if is_stale(&error) => Ok(true),
            Err(error) => Err(error),
        }
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

/// Whether a report was not recorded because its attempt is no longer valid.
fn is_stale(error: &CommandError) -> bool {
    use Refusal as R;
    let CommandError::Refused(refusal) = error else { return false };
    matches!(refusal, R::AttemptStale { .. } | R::RunUnknown | R::JobUnknown { .. })
}

/// Whether `error` says no to a report that counts, and would say so every time.
fn is_refusal_of_report(error: &CommandError) -> bool {
    let refused = matches!(
        error,
        CommandError::Refused(_) | CommandError::TooMuch { .. } | CommandError::Bug(_)
    );
    refused && !is_stale(error)
}

#[cfg(test)]
mod tests {
    use towpath_engine::{ids::Attempt, job::JobState};

    use super::*;
    use crate::{
        outbox::outbox,
        sync::locked,
        testing::{Fixture, WORKER, job, success},
    };

    fn hello(held: &[&AttemptId]) -> v1::Hello {
        let held = held.iter().map(|id| wire::attempt_message(id)).collect();
        v1::Hello { worker: WORKER.into(), slots: 4, held, ..Default::default() }
    }

    #[tokio::test]
    async fn a_worker_that_comes_back_is_told_what_the_disk_knows() {
        for (waiting_max, kept) in [(1, false), (0, true)] {
            let (fixture, driver) = Fixture::driven(Duration::from_secs(30));
            let run = fixture.begins("r", vec![job("a", &[])]).await;
            let id = AttemptId { run: run.clone(), job: "a".into(), attempt: Attempt(1) };
            fixture.store.stand_still(waiting_max);
            drop(fixture.queues(&run, success("a")).await);

            let (outbox, _outgoing) = outbox();
            let back = driver.open(hello(&[&id]), &outbox);
            let (opened, ()) = tokio::join!(back, async { fixture.store.go_on() });

            let session = opened.unwrap().0;
            assert_eq!(driver.scheduler.inspect(|all| all.holds(session, &id)), kept);
        }
    }

    /// A fixture whose worker holds an attempt in a session.
    async fn holding() -> (Fixture, Arc<SchedulerDriver>, AttemptId, SessionId) {
        let (fixture, driver) = Fixture::driven(Duration::from_secs(30));
        let run = fixture.begins("r", vec![job("a", &[])]).await;
        let id = AttemptId { run, job: "a".into(), attempt: Attempt(1) };
        let (outbox, _outgoing) = outbox();
        let (session, _) = driver.open(hello(&[&id]), &outbox).await.unwrap();
        (fixture, driver, id, session)
    }

    fn end() -> End {
        End::Lost("the machine stopped".to_owned())
    }

    #[tokio::test]
    async fn a_report_of_a_session_that_has_ended_is_not_answered() {
        let (fixture, driver, id, session) = holding().await;
        driver.scheduler.disconnect(session, None);

        let answer = driver.record(session, &id, end()).await.unwrap();

        assert_eq!(answer, Answer::Unanswered, "what the attempt printed is still wanted");
        assert!(matches!(fixture.state(&id.run, "a").await, JobState::Leased(..)));
    }

    #[tokio::test]
    async fn a_report_that_the_store_has_no_room_for_is_recorded_later_in_the_same_session() {
        let (fixture, driver, id, session) = holding().await;
        fixture.store.stand_still(0);

        let recorded = driver.record(session, &id, end());
        let (recorded, ()) = tokio::join!(recorded, async { fixture.store.go_on() });

        assert_eq!(recorded.unwrap(), Answer::Recorded);
        assert!(driver.scheduler.inspect(|all| all.is_open(session)));
    }

    #[tokio::test]
    async fn a_report_of_a_session_that_is_replaced_is_left_to_the_newer_one() {
        let (fixture, driver, id, old) = holding().await;
        let (outbox, _outgoing) = outbox();
        let (newer, _) = driver.open(hello(&[&id]), &outbox).await.unwrap();

        assert_eq!(driver.record(old, &id, end()).await.unwrap(), Answer::Unanswered);
        assert!(matches!(fixture.state(&id.run, "a").await, JobState::Leased(..)));
        assert_eq!(driver.record(newer, &id, end()).await.unwrap(), Answer::Recorded);
        assert_eq!(driver.record(newer, &id, end()).await.unwrap(), Answer::Void);
    }

    #[tokio::test]
    async fn runs_that_a_worker_makes_up_are_not_looked_for() {
        let (fixture, driver, id, session) = holding().await;
        let before = locked(&fixture.runs.cells).all().len();

        for n in 0..1_000 {
            let run = RunId::from(format!("made-up-{n}"));
            let made_up = AttemptId { run, ..id.clone() };
            let answer = driver.answer_unheld(session, &made_up).await.unwrap();
            assert_eq!(answer, Answer::Void);
        }

        assert_eq!(locked(&fixture.runs.cells).all().len(), before);
    }

    #[tokio::test]
    async fn a_worker_that_comes_for_a_job_that_is_ready_is_given_it() {
        let (fixture, driver) = Fixture::driven(Duration::from_secs(30));
        let mut special = job("a", &[]);
        special.tags = vec!["special".to_owned()];
        let run = fixture.begins("r", vec![special]).await;
        assert_eq!(fixture.state(&run, "a").await, JobState::Waiting);

        let (outbox, _outgoing) = outbox();
        let only = v1::Hello { run: "r".into(), job: "a".into(), ..hello(&[]) };
        drop(driver.open(only, &outbox).await.unwrap());

        let leased = async {
            while !matches!(fixture.state(&run, "a").await, JobState::Leased(..)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), leased).await.expect("it waits for that job");
    }

    #[tokio::test]
    async fn a_worker_whose_return_failed_is_waited_for() {
        let (fixture, driver) = Fixture::driven(Duration::from_millis(4));
        let run = fixture.begins("r", vec![job("a", &[])]).await;
        fixture.store.stand_still(0);

        let (outbox, _outgoing) = outbox();
        let back = driver.open(hello(&[]), &outbox).await;
        assert!(matches!(back, Err(CommandError::StoreBusy)));
        fixture.store.go_on();

        let lost = async {
            while fixture.state(&run, "a").await != JobState::Requeued {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), lost).await.expect("its lease expires");
    }
}
