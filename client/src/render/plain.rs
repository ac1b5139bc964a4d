//! One line for each transition: for files, CI and eyes that cannot follow a moving picture.

use towpath_engine::{
    event::{Fact, FailureCause, RunEvent, SkipCause},
    run::Run,
    time::duration_words,
};

use super::{safe, worker_word};

/// The line for `fact` at `position`; `run` has taken it in. `None`: nothing a reader needs.
pub(crate) fn line(position: u64, fact: &Fact, run: &Run) -> Option<String> {
    let about = about(fact, run)?;
    // `job.failed` and not `job_failed`: the dot lets `grep ' job\.'` select one kind of record.
    let kind = fact.event.kind().replacen('_', ".", 1);
    let subject = match fact.event.job().and_then(|job| run.job(job.as_str())) {
        Some(job) => format!(" {}/{}", safe(job.plan.stage.as_str()), safe(job.plan.name.as_str())),
        None => String::new(),
    };
    let about = if about.is_empty() { about } else { format!(" {about}") };
    Some(format!("{} {position:08} {kind}{subject}{about}", fact.at))
}

#[expect(clippy::too_many_lines, reason = "one table: what is said of each kind of event")]
fn about(fact: &Fact, run: &Run) -> Option<String> {
    Some(match &fact.event {
        RunEvent::RunCreated { run, pipeline, jobs, parallelism, source, .. } => {
            let pipeline = safe(pipeline);
            format!(
                "run={run} pipeline={pipeline} jobs={jobs} parallelism={parallelism} by={}{}",
                fact.by,
                source
                    .as_ref()
                    .map(|source| format!(" commit={}", source.commit))
                    .unwrap_or_default()
            )
        }
        // Both always follow the creation, whose line has the numbers.
        RunEvent::JobsPlanned { .. } | RunEvent::RunStarted {} => return None,
        RunEvent::ConditionEvaluated { holds, .. } => format!("holds={holds}"),
        RunEvent::GateReached { approval_digest, .. } => {
            format!("approval_digest={}", approval_digest.short())
        }
        RunEvent::GateApproved { comment, approvals_remaining, .. } => {
            let more = if *approvals_remaining > 0 {
                format!(" approvals_remaining={approvals_remaining}")
            } else {
                String::new()
            };
            format!("by={}{more}{}", run.approver(fact), said(comment))
        }
        RunEvent::GateVoided { approval_digest, cause, .. } => {
            format!("approval_digest={} cause={:?}", approval_digest.short(), safe(&cause.words()))
        }
        RunEvent::GateRejected { comment, .. } => format!("by={}{}", fact.by, said(comment)),
        RunEvent::JobLeased { attempt, worker, .. } => {
            format!("attempt={attempt} worker={}", worker_word(worker.as_str()))
        }
        RunEvent::JobSucceeded { attempt, ran_ms, .. } => {
            format!("attempt={attempt} dur={}", duration_words(*ran_ms))
        }
        RunEvent::JobAttemptFailed { attempt, cause, ran_ms, retry_due, .. } => format!(
            "attempt={attempt} dur={} cause={} retry_due={retry_due}",
            duration_words(*ran_ms),
            cause_words(cause)
        ),
        RunEvent::JobFailed { attempt, cause, ran_ms, .. } => {
            let took = duration_words(*ran_ms);
            format!("attempt={attempt} dur={took} cause={}", cause_words(cause))
        }
        RunEvent::JobCancelled { attempt, ran_ms, .. } => {
            format!("attempt={attempt} dur={}", duration_words(*ran_ms))
        }
        RunEvent::JobLost { attempt, reason, .. } => {
            format!("attempt={attempt} reason={:?}", safe(reason))
        }
        RunEvent::JobSkipped { cause, .. } => match cause {
            SkipCause::NeedUnmet { need, root } => {
                format!("need={:?} root={:?}", need.as_str(), root.as_str())
            }
            SkipCause::ConditionFalse => "if=false".to_owned(),
        },
        RunEvent::RunAborted { root } => format!("root={:?}", root.as_str()),
        RunEvent::RunCancelRequested { reason } => format!("by={}{}", fact.by, said(reason)),
        RunEvent::RunTimedOut {} => String::new(),
        RunEvent::RunFinished { outcome, succeeded, failed, skipped, cancelled, rejected: _ } => {
            let took = run.header().map(|header| fact.at.ms_since(header.created_at));
            format!(
                "outcome={} succeeded={succeeded} failed={failed} skipped={skipped} \
                 cancelled={cancelled} dur={}",
                outcome.word(),
                duration_words(took.unwrap_or(0))
            )
        }
        RunEvent::RunResumed {} | RunEvent::JobRetried { .. } => format!("by={}", fact.by),
        RunEvent::JobsInvalidated { from } => format!("from={:?} by={}", from.as_str(), fact.by),
        RunEvent::PlanReplaced { plan_sha256, jobs, .. } => {
            format!("plan={} jobs={jobs} by={}", plan_sha256.short(), fact.by)
        }
        RunEvent::JobImported { result, .. } => {
            format!("status={}", towpath_pipeline::pulsaride_jsonl::status_word(*result))
        }
    })
}

fn said(comment: &str) -> String {
    if comment.is_empty() { String::new() } else { format!(" comment={:?}", safe(comment)) }
}

/// A cause in one word or a quoted sentence.
pub(crate) fn cause_words(cause: &FailureCause) -> String {
    let value = match cause {
        FailureCause::ExitCode(number) | FailureCause::Signal(number) => number.to_string(),
        FailureCause::TimedOut(ms) => duration_words(*ms),
        FailureCause::Lost(times) => times.to_string(),
        FailureCause::NotStarted(why)
        | FailureCause::OutputUnusable(why)
        // Quoted and escaped: a line of this format is split at spaces by scripts.
        | FailureCause::ReportInvalid(why) => format!("{:?}", safe(why)),
    };
    format!("{}:{value}", cause.class())
}

#[cfg(test)]
mod tests {
    use towpath_engine::{ids::Actor, test_events::one_of_each_kind, time::Timestamp};

    use super::*;

    #[test]
    fn every_kind_is_one_line_without_control_characters() {
        for event in one_of_each_kind() {
            let fact = Fact { at: Timestamp(0), by: Actor::human("ana"), event };
            let Some(line) = line(7, &fact, &Run::default()) else { continue };
            assert!(line.starts_with("1970-01-01T00:00:00.000Z 00000007 "), "{line}");
            assert!(!line.contains(char::is_control), "{line}");
        }
    }

    #[test]
    fn a_success_says_attempt_and_duration() {
        let mut all = one_of_each_kind().into_iter();
        let event = all.find(|event| event.kind() == "job_succeeded").unwrap();
        let fact = Fact { at: Timestamp(0), by: Actor::human("ana"), event };
        let line = line(18_234, &fact, &Run::default()).unwrap();
        assert_eq!(line, "1970-01-01T00:00:00.000Z 00018234 job.succeeded attempt=2 dur=6.0s");
    }
}
