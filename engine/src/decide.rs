//! Commands, and how they are decided against the state of a run.
//!
//! One command per file. `decide` never changes the run; [`carry_out`] walks what was decided, and
//! what follows from it, so that only what can be replayed is ever written. An empty answer means
//! that what was asked for is so already.

mod approve;
mod cancel;
mod create;
#[cfg(test)]
mod edits;
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

pub use crate::aggregate::{CONSEQUENCES_BYTES_MAX, CarryOutError, Written, carry_out};
use crate::{
    event::RunEvent,
    ids::{Actor, JobName},
    refusal::Refusal,
    run::{Job, Run},
    time::Timestamp,
};

/// Longest comment or reason, in bytes.
pub const COMMENT_BYTES_MAX: usize = 4 * 1024;

/// What somebody wants of a run.
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
        Command::Resume(resume) => resume::decide(run, resume, by),
        Command::Retry(job) => retry_job::decide(run, job),
        Command::Import(import) => import::decide(run, import, now),
        Command::PassTime => pass_time::decide(run, now),
    }
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
