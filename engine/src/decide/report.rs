//! A worker says how a job ended.

use std::collections::BTreeMap;

use super::LoseJob;
use crate::{
    codec::FACT_BYTES_MAX,
    event::{Artifact, FailureCause, RunEvent},
    ids::{Attempt, Blob, JobName, WorkerName},
    refusal::Refusal,
    results,
    retry::{backoff_ms, retries},
    run::{Job, Run},
    time::Timestamp,
};

/// Room for the envelope of a fact beside its event, in bytes: when, and by which worker.
const ENVELOPE_BYTES: usize = 1_024;

/// How a job ended, as its worker saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It did what it should.
    Succeeded {
        /// What it wrote to `$TOW_OUTPUT`.
        outputs: BTreeMap<String, String>,
        /// The files it left behind.
        artifacts: Vec<Artifact>,
    },
    /// It went wrong.
    Failed(FailureCause),
    /// It was ended on request.
    Cancelled,
}

/// Take in how a job ended.
#[derive(Clone, Debug)]
pub struct ReportJob {
    /// The job.
    pub job: JobName,
    /// Which attempt.
    pub attempt: Attempt,
    /// Who reports.
    pub worker: WorkerName,
    /// How it ended.
    pub ended: Ended,
    /// How long the script ran, in milliseconds by the worker's clock.
    pub ran_ms: u64,
    /// What it printed.
    pub captured_output: Option<Blob>,
}

pub(super) fn decide(
    run: &Run,
    report: &ReportJob,
    now: Timestamp,
) -> Result<Vec<RunEvent>, Refusal> {
    let job = super::known(run, &report.job)?;
    if job.state.lease() != Some((report.attempt, &report.worker)) {
        // Heard twice: the first time counted.
        // Workers repeat a report until they receive that it is recorded. A refusal of the
        // repetition would look like a void attempt.
        if job.state.is_over() && job.attempt == report.attempt {
            return Ok(Vec::new());
        }
        let ReportJob { job, attempt, worker, .. } = report.clone();
        return Err(Refusal::AttemptStale { job, attempt, worker });
    }
    let ReportJob { job: name, attempt, ended, ran_ms, captured_output, worker: _ } =
        report.clone();
    Ok(vec![match usable(ended) {
        Ended::Succeeded { outputs, artifacts } => {
            let event = RunEvent::JobSucceeded {
                job: name,
                attempt,
                ran_ms,
                outputs,
                captured_output,
                artifacts,
            };
            match too_long(&event) {
                // The rules above bound outputs and artifacts one by one. Together, and with the
                // escapes of JSON, they can still be more than an event holds.
                Some(why) => failure(run, job, (report, FailureCause::OutputUnusable(why)), now),
                None => event,
            }
        }
        Ended::Cancelled if run.phase().is_ending() => {
            RunEvent::JobCancelled { job: name, attempt, ran_ms, captured_output }
        }
        // The worker was told to stop, not the run: the job goes back, as often as lost ones do. A
        // worker that says so of everything it is given would else be given it for ever.
        Ended::Cancelled => {
            let reason = "the worker was stopped".to_owned();
            return super::lose::decide(run, &LoseJob { job: name, attempt, reason });
        }
        Ended::Failed(cause) => failure(run, job, (report, cause), now),
    }])
}

/// The end that can be recorded: what is wrong with a report fails its job.
///
/// A refusal instead would leave the job leased for ever, since its worker could only repeat the
/// same report.
fn usable(ended: Ended) -> Ended {
    match ended {
        Ended::Succeeded { outputs, artifacts } => match results::problem(&outputs, &artifacts) {
            Some(why) => Ended::Failed(FailureCause::OutputUnusable(why)),
            None => Ended::Succeeded { outputs, artifacts },
        },
        // Exit code 0 of a failure, or one that no process can have, would pass `retry.on` and the
        // display as a real one.
        Ended::Failed(FailureCause::ExitCode(code)) if !(1..=255).contains(&code) => {
            let why = format!("it names the exit code {code} for a failure");
            Ended::Failed(FailureCause::ReportInvalid(why))
        }
        Ended::Failed(FailureCause::Signal(signal)) if !(1..=64).contains(&signal) => {
            let why = format!("it names the signal {signal}, which does not exist");
            Ended::Failed(FailureCause::ReportInvalid(why))
        }
        Ended::Failed(cause) => Ended::Failed(cause.bounded()),
        Ended::Cancelled => Ended::Cancelled,
    }
}

/// Why `event` does not fit a record. `None`: it does.
fn too_long(event: &RunEvent) -> Option<String> {
    let bytes = serde_json::to_vec(event).expect("BUG: an event is always JSON").len();
    let bytes_max = FACT_BYTES_MAX - ENVELOPE_BYTES;
    (bytes > bytes_max).then(|| {
        format!("its outputs and artifacts take {bytes} bytes in an event that holds {bytes_max}")
    })
}

fn failure(
    run: &Run,
    job: &Job,
    (report, cause): (&ReportJob, FailureCause),
    now: Timestamp,
) -> RunEvent {
    let ReportJob { job: name, attempt, ran_ms, captured_output, .. } = report.clone();
    match retry_due(run, job, &cause, now) {
        Some(retry_due) => RunEvent::JobAttemptFailed {
            job: name,
            attempt,
            cause,
            ran_ms,
            captured_output,
            retry_due,
        },
        None => RunEvent::JobFailed { job: name, attempt, cause, ran_ms, captured_output },
    }
}

fn retry_due(run: &Run, job: &Job, cause: &FailureCause, now: Timestamp) -> Option<Timestamp> {
    let policy = job.plan.retry.as_ref()?;
    // This failure included: it is recorded by the event that is being decided.
    let failures = job.failures + 1;
    // A run that is being ended starts nothing, also no attempt that it would have to cancel at
    // once.
    if !run.phase().is_running() || !retries(policy, cause, failures) {
        return None;
    }
    let run = &run.header()?.run;
    Some(now.plus_ms(backoff_ms(policy, failures, run, &job.plan.name, job.attempt)))
}

#[cfg(test)]
mod tests;
