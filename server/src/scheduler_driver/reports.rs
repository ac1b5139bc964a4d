//! Reports on their way into the log: recorded once, patiently, and answered only when that is durable.

use towpath_engine::{
    decide::{Command, Ended, LoseJob, ReportJob},
    event::FailureCause,
    ids::{Actor, AttemptId, Blob, RunId, WorkerName},
    refusal::Refusal,
    scheduler::{Input, SessionId},
};
use towpath_storage::StoreError;

use super::SchedulerDriver;
use crate::{
    command_error::CommandError,
    pauses::Pauses,
    streams::{Loaded, Recorded},
};

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
                match self.execute_patiently(session, &attempt.run, &commands, &by).await {
                    Err(error) if is_refusal_of_report(&error) => {
                        self.set_aside(session, attempt, with_lease, &error).await;
                        return Ok(Answer::Unanswered);
                    }
                    executed => executed,
                }
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

    /// Sets the run of `attempt` aside, of which no report can be recorded, and has its worker forget
    /// it. To end the session instead would cost all other jobs of the worker, again at each return.
    async fn set_aside(
        &self,
        session: SessionId,
        attempt: &AttemptId,
        with_lease: bool,
        error: &CommandError,
    ) {
        let run = &attempt.run;
        let version = self.runs.lock_latest(run).await.map_or(0, |loaded| loaded.version);
        let why = format!("no report of job `{}` can be recorded: {error}", attempt.job);
        self.runs.set_aside_for(run, version, &why);
        self.scheduler.on(Input::RecordFailed { session, with_lease });
        self.scheduler.on(Input::ReportVoid { session, attempt: attempt.clone() });
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
        let mut pauses = Pauses::default();
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
            pauses.wait().await;
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
