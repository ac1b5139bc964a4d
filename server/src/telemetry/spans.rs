//! The spans of attempts and runs: made when they end, from what the log says, so that they are
//! whole however often the server restarted meanwhile.

use std::time::{Duration, SystemTime};

use opentelemetry::{
    Context, KeyValue, global,
    trace::{Span as _, SpanBuilder, Status, Tracer as _},
};
use towpath_engine::{
    decide::{Command, Written},
    event::{Fact, FailureCause, RunEvent, RunOutcome},
    ids::{Actor, Attempt, JobName},
    run::Run,
    time::Timestamp,
    trace::TraceContext,
};

use super::{SCOPE, below, is_on};

/// A span that has ended. It is exported once its event is durable.
#[derive(Debug)]
pub(crate) struct Ended {
    above: TraceContext,
    own: TraceContext,
    builder: SpanBuilder,
    end: SystemTime,
    status: Status,
}

/// The spans that end with what `command` meant for `run`. Nothing, while spans are not exported.
pub(crate) fn ended(run: &Run, command: &Command, written: &[Written]) -> Vec<Ended> {
    if !is_on() || run.asked_in().is_none() {
        return Vec::new();
    }
    // A lease that fails at once ends a job, and no attempt.
    let leases = matches!(command, Command::Lease(_));
    let ended = written.iter().filter_map(|(fact, _)| match attempt_end(&fact.event) {
        Some((job, attempt, ..)) if !leases => of_attempt(run, fact, job, attempt),
        Some(_) => None,
        None => of_run(run, fact),
    });
    ended.collect()
}

impl Ended {
    /// Hands the span to the exporter.
    pub(crate) fn export(self) {
        let Self { above, own, builder, end, status } = self;
        // The generator of ids finds this one in the context.
        let _known: opentelemetry::ContextGuard = Context::new().with_value(own).attach();
        let mut span = global::tracer(SCOPE).build_with_context(builder, &below(&above));
        span.set_status(status);
        span.end_with_timestamp(end);
    }
}

/// The attempt that `event` ends, how, and what went wrong.
fn attempt_end(event: &RunEvent) -> Option<(&JobName, Attempt, &'static str, Option<String>)> {
    let (attempt, outcome, wrong) = match event {
        RunEvent::JobSucceeded { attempt, .. } => (*attempt, "succeeded", None),
        RunEvent::JobAttemptFailed { attempt, cause, .. }
        | RunEvent::JobFailed { attempt, cause, .. } => {
            let (outcome, wrong) = failure(cause);
            (*attempt, outcome, Some(wrong))
        }
        RunEvent::JobCancelled { attempt, .. } => (*attempt, "cancelled", None),
        RunEvent::JobLost { attempt, .. } => (*attempt, "lost", Some("the worker was lost".into())),
        RunEvent::RunCreated { .. }
        | RunEvent::JobsPlanned { .. }
        | RunEvent::RunStarted {}
        | RunEvent::ConditionEvaluated { .. }
        | RunEvent::GateReached { .. }
        | RunEvent::GateApproved { .. }
        | RunEvent::GateVoided { .. }
        | RunEvent::GateRejected { .. }
        | RunEvent::JobLeased { .. }
        | RunEvent::JobSkipped { .. }
        | RunEvent::RunAborted { .. }
        | RunEvent::RunCancelRequested { .. }
        | RunEvent::RunTimedOut {}
        | RunEvent::RunFinished { .. }
        | RunEvent::RunResumed {}
        | RunEvent::JobsInvalidated { .. }
        | RunEvent::JobRetried { .. }
        | RunEvent::PlanReplaced { .. }
        | RunEvent::JobImported { .. } => return None,
    };
    event.job().map(|job| (job, attempt, outcome, wrong))
}

/// How the attempt ended in one word, and what went wrong. What a script or a system said stays in
/// the log.
fn failure(cause: &FailureCause) -> (&'static str, String) {
    let outcome = match cause {
        FailureCause::TimedOut(_) => "timed_out",
        FailureCause::Lost(_) => "lost",
        FailureCause::ExitCode(_)
        | FailureCause::Signal(_)
        | FailureCause::NotStarted(_)
        | FailureCause::OutputUnusable(_)
        | FailureCause::ReportInvalid(_) => "failed",
    };
    (outcome, cause.brief())
}

fn of_attempt(run: &Run, fact: &Fact, name: &JobName, attempt: Attempt) -> Option<Ended> {
    let (_, _, outcome, wrong) = attempt_end(&fact.event)?;
    let (header, job) = (run.header()?, run.job(name.as_str())?);
    let mut attributes = vec![
        KeyValue::new("towpath.run", header.run.to_string()),
        KeyValue::new("towpath.pipeline", header.pipeline.clone()),
        KeyValue::new("towpath.stage", job.plan.stage.to_string()),
        KeyValue::new("towpath.job", name.to_string()),
        KeyValue::new("towpath.attempt", i64::from(attempt.0)),
        KeyValue::new("towpath.outcome", outcome),
    ];
    let worker = if let RunEvent::JobLost { worker, .. } = &fact.event {
        Some(worker.to_string())
    } else {
        of_worker(&fact.by)
    };
    attributes.extend(worker.map(|worker| KeyValue::new("towpath.worker", worker)));
    Some(Ended {
        above: run.span()?,
        own: run.attempt_span(name, attempt)?,
        builder: SpanBuilder::from_name(format!("attempt {name}"))
            .with_start_time(moment(job.leased_at?))
            .with_attributes(attributes),
        end: moment(fact.at),
        status: wrong.map_or(Status::Unset, Status::error),
    })
}

/// The worker that reported, if it was one.
fn of_worker(by: &Actor) -> Option<String> {
    by.to_string().strip_prefix("worker:").map(str::to_owned)
}

fn of_run(run: &Run, fact: &Fact) -> Option<Ended> {
    let RunEvent::RunFinished { outcome, succeeded, failed, skipped, cancelled, rejected: _ } =
        &fact.event
    else {
        return None;
    };
    let header = run.header()?;
    let count = |name: &'static str, jobs: &u32| KeyValue::new(name, i64::from(*jobs));
    let went_wrong = match outcome {
        RunOutcome::Succeeded | RunOutcome::Rejected | RunOutcome::Cancelled => false,
        RunOutcome::Partial | RunOutcome::Failed | RunOutcome::TimedOut => true,
    };
    Some(Ended {
        above: run.above_span()?,
        own: run.span()?,
        builder: SpanBuilder::from_name(format!("run {}", header.pipeline))
            .with_start_time(moment(run.reopened_at().unwrap_or(header.created_at)))
            .with_attributes([
                KeyValue::new("towpath.run", header.run.to_string()),
                KeyValue::new("towpath.pipeline", header.pipeline.clone()),
                KeyValue::new("towpath.outcome", outcome.word()),
                count("towpath.jobs.succeeded", succeeded),
                count("towpath.jobs.failed", failed),
                count("towpath.jobs.skipped", skipped),
                count("towpath.jobs.cancelled", cancelled),
            ]),
        end: moment(fact.at),
        status: if went_wrong { Status::error(outcome.word()) } else { Status::Unset },
    })
}

fn moment(at: Timestamp) -> SystemTime {
    let since = Duration::from_millis(u64::try_from(at.0).unwrap_or_default());
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_or_a_system_said_is_in_no_span() {
        let said = || "no such folder /srv/hunter2".to_owned();
        for cause in [FailureCause::NotStarted(said()), FailureCause::OutputUnusable(said())] {
            let (outcome, wrong) = failure(&cause);
            assert_eq!(outcome, "failed");
            assert!(!wrong.contains("hunter2"), "{wrong}");
        }
    }

    #[test]
    fn no_span_is_built_without_a_subscriber() {
        let fact = Fact {
            at: Timestamp(1),
            by: Actor::timer(),
            event: RunEvent::JobCancelled {
                job: "a".into(),
                attempt: Attempt::FIRST,
                ran_ms: 1,
                captured_output: None,
            },
        };
        assert!(attempt_end(&fact.event).is_some());
        let written = [(fact, Vec::new())];
        assert!(ended(&Run::default(), &Command::PassTime, &written).is_empty());
    }
}
