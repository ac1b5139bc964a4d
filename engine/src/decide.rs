//! Commands, and how they are decided against the state of a run.
//!
//! One command per file. `decide` never changes the run; `carry_out` walks what was decided, and
//! what follows from it, so that only what can be replayed is ever written. An empty answer means
//! that what was asked for is so already.

mod approve;
mod cancel;
mod create;
#[cfg(test)]
mod four_eyes;
mod import;
mod lease;
mod lose;
mod pass_time;
#[cfg(test)]
mod properties;
mod reject;
mod report;
mod resume;
mod retry_job;
#[cfg(test)]
pub(crate) mod testing;

pub use approve::ApproveGate;
pub use create::{CreateRun, IDEMPOTENCY_KEY_BYTES_MAX, PARALLELISM_MAX, plan_chunks};
pub use import::{ImportRun, ImportedJob};
pub use lease::LeaseJob;
pub use lose::LoseJob;
pub use reject::RejectGate;
pub use report::{Ended, ReportJob};
pub use resume::{EditedPlan, ResumeRun};

use crate::{
    codec::{EncodeError, FACT_BYTES_MAX, encode},
    event::{Fact, RunEvent},
    ids::{Actor, JobName},
    job::IllegalEvent,
    refusal::Refusal,
    run::{Job, Run},
    time::Timestamp,
};

/// Longest comment or reason, in bytes.
pub const COMMENT_BYTES_MAX: usize = 4 * 1024;

/// Bytes of one command's events after which what follows from it waits for the next command.
/// Source: an append holds 32 MiB, and carries what at most two commands recorded; the failure of
/// one job can skip 200,000.
pub const CONSEQUENCES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A command on a run.
#[derive(Clone, Debug)]
pub enum Command {
    /// Begin.
    Create(CreateRun),
    /// Give a job to a worker.
    Lease(LeaseJob),
    /// Take in how a job ended.
    Report(ReportJob),
    /// Take in that a worker is gone.
    Lose(LoseJob),
    /// Open a gate.
    Approve(ApproveGate),
    /// Reject the gate of a job.
    Reject(RejectGate),
    /// End the run, for this reason.
    Cancel(String),
    /// Let the run go on.
    Resume(ResumeRun),
    /// Run a failed or skipped job again.
    Retry(JobName),
    /// Take over another tool's record.
    Import(ImportRun),
    /// Do what is due by now.
    PassTime,
}

/// Why a command was not carried out. Nothing is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CarryOutError {
    /// The engine said no. The run is as it was.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What follows from the command cannot be written. The run has changed already and is ahead
    /// of any log: it is not to be used.
    #[error(transparent)]
    Unwritable(Refusal),
    /// The engine decided on something that cannot be replayed: a bug. The run is not to be used.
    #[error("a bug in the engine: {0}")]
    Bug(#[from] IllegalEvent),
}

impl CarryOutError {
    /// Whether the run has changed without a record of it. Whoever holds it must give it up and
    /// read it again: the next command would be decided, and appended, on what never happened, and
    /// no replay would reach that state.
    pub fn spoils_the_run(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Unwritable(_) | Self::Bug(_) => true,
        }
    }
}

/// The events that `command` of `by` means for `run` at `now`, before what follows from them.
pub fn decide(
    run: &Run,
    command: &Command,
    by: &Actor,
    now: Timestamp,
) -> Result<Vec<RunEvent>, Refusal> {
    match command {
        Command::Create(create) => create::decide(run, create, now),
        Command::Lease(lease) => lease::decide(run, lease, now),
        Command::Report(report) => report::decide(run, report, now),
        Command::Lose(lose) => lose::decide(run, lose),
        Command::Approve(approve) => approve::decide(run, approve, by, now),
        Command::Reject(reject) => reject::decide(run, reject),
        Command::Cancel(reason) => cancel::decide(run, reason),
        Command::Resume(resume) => resume::decide(run, resume),
        Command::Retry(job) => retry_job::decide(run, job),
        Command::Import(import) => import::decide(run, import, now),
        Command::PassTime => pass_time::decide(run, now),
    }
}

/// A fact and its bytes, walked and ready to be appended.
pub type Written = (Fact, Vec<u8>);

/// Decides `command`, walks what was decided, and walks what follows from it.
///
/// What follows is bounded by [`CONSEQUENCES_BYTES_MAX`]; the rest follows from the next command,
/// and [`Run::next_due`] says that [`Command::PassTime`] is due at once. Nothing else is kept of
/// it: the events recorded so far say what is left, also after a crash.
///
/// After a refusal the run is as it was. After any other error it must be thrown away
/// ([`CarryOutError::spoils_the_run`]). Deciding on a copy would spare the caller that, and would
/// cost every command a copy of up to 200,000 jobs; a consequence that cannot be written is a bug,
/// since all of them are bounded.
pub fn carry_out(
    run: &mut Run,
    command: &Command,
    by: &Actor,
    now: Timestamp,
) -> Result<Vec<Written>, CarryOutError> {
    let at = now.max(run.newest_at());
    let mut written = Vec::new();
    let mut decided = Vec::new();
    for event in decide(run, command, by, at)? {
        let fact = Fact { at, by: by.clone(), event };
        let bytes = encode(&fact).map_err(too_long(&fact.event))?;
        decided.push((fact, bytes));
    }
    let mut bytes_written = 0;
    for (fact, bytes) in decided {
        bytes_written += bytes.len();
        run.evolve(&fact)?;
        written.push((fact, bytes));
    }
    // Bounded: an append that is too large is refused whole, so that the command itself could
    // never be recorded, whoever gives it and however often.
    while bytes_written < CONSEQUENCES_BYTES_MAX
        && let Some(event) = run.consequence()
    {
        let fact = Fact { at, by: by.clone(), event };
        let unwritable = |error| CarryOutError::Unwritable(too_long(&fact.event)(error));
        let bytes = encode(&fact).map_err(unwritable)?;
        bytes_written += bytes.len();
        run.evolve(&fact)?;
        written.push((fact, bytes));
    }
    Ok(written)
}

fn too_long(event: &RunEvent) -> impl Fn(EncodeError) -> Refusal {
    let what = event.job().map_or_else(|| event.kind().to_owned(), |job| format!("job `{job}`"));
    move |_| Refusal::EventTooLong { what: what.clone(), bytes_max: FACT_BYTES_MAX }
}

fn known<'a>(run: &'a Run, job: &JobName) -> Result<&'a Job, Refusal> {
    if run.header().is_none() {
        return Err(Refusal::RunUnknown);
    }
    run.job(job.as_str()).ok_or_else(|| Refusal::JobUnknown { job: job.clone() })
}

fn bounded_comment(comment: &str) -> Result<String, Refusal> {
    if comment.len() > COMMENT_BYTES_MAX {
        let bounds = format!("at most {COMMENT_BYTES_MAX} bytes long");
        return Err(Refusal::ArgumentOutOfBounds { what: "the comment", bounds });
    }
    Ok(comment.to_owned())
}
