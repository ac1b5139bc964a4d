//! The spans of attempts and runs as data. They are made when they end, from what the log says, so
//! that they are whole however often the server restarted meanwhile; exporting them is up to the
//! server.

use crate::{
    aggregate::Written,
    decide::Command,
    event::{Fact, FailureCause, RunEvent, RunOutcome},
    ids::{Actor, ActorKind, Attempt, JobName},
    run::Run,
    time::Timestamp,
    trace::TraceContext,
};

/// The value of an attribute of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanValue {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

/// A span that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedSpan {
    /// The span that it is part of.
    pub parent: TraceContext,
    /// Its own place in the trace.
    pub own: TraceContext,
    /// Its name, such as `attempt orders`.
    pub name: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// What is known about it, by name.
    pub attributes: Vec<(&'static str, SpanValue)>,
    /// What went wrong, if something did. What a script or a system printed stays in the log.
    pub error: Option<String>,
}

/// The spans that end with `written`, which `command` meant for `run` and `run` has taken in. None
/// if the run was requested outside of any trace.
pub fn ended_spans(run: &Run, command: &Command, written: &[Written]) -> Vec<EndedSpan> {
    if run.asked_in().is_none() {
        return Vec::new();
    }
    // A lease that fails at once ends a job, and no attempt: that one never had a span.
    let leases = matches!(command, Command::Lease(_));
    let ended = written.iter().filter_map(|(fact, _)| match attempt_end(&fact.event) {
        Some(end) if !leases => of_attempt(run, fact, end),
        Some(_) => None,
        None => of_run(run, fact),
    });
    ended.collect()
}

/// How an attempt ended.
struct AttemptEnd<'a> {
    job: &'a JobName,
    attempt: Attempt,
    outcome: &'static str,
    error: Option<String>,
    /// Who ran it, if the event says so. Else it is the one that reported.
    worker: Option<String>,
}

/// The attempt that `event` ends, if it ends one.
fn attempt_end(event: &RunEvent) -> Option<AttemptEnd<'_>> {
    let end = |job, attempt: &Attempt, outcome, error| {
        Some(AttemptEnd { job, attempt: *attempt, outcome, error, worker: None })
    };
    match event {
        RunEvent::JobSucceeded { job, attempt, .. } => end(job, attempt, "succeeded", None),
        RunEvent::JobAttemptFailed { job, attempt, cause, .. }
        | RunEvent::JobFailed { job, attempt, cause, .. } => {
            let (outcome, error) = failure(cause);
            end(job, attempt, outcome, Some(error))
        }
        RunEvent::JobCancelled { job, attempt, .. } => end(job, attempt, "cancelled", None),
        RunEvent::JobLost { job, attempt, worker, .. } => {
            let error = Some("the worker was lost".to_owned());
            let end = end(job, attempt, "lost", error)?;
            // The server decides a loss, so the actor of the fact is not the worker.
            Some(AttemptEnd { worker: Some(worker.to_string()), ..end })
        }
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
        | RunEvent::JobImported { .. } => None,
    }
}

/// How an attempt ended in one word, and what went wrong. What a script or a system said is not
/// part of it: collectors are read by people who may not read the log.
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

fn text(text: impl ToString) -> SpanValue {
    SpanValue::Text(text.to_string())
}

fn of_attempt(run: &Run, fact: &Fact, end: AttemptEnd<'_>) -> Option<EndedSpan> {
    let AttemptEnd { job: name, attempt, outcome, error, worker } = end;
    let (header, job) = (run.header()?, run.job(name.as_str())?);
    let mut attributes = vec![
        ("towpath.run", text(&header.run)),
        ("towpath.pipeline", text(&header.pipeline)),
        ("towpath.stage", text(&job.plan.stage)),
        ("towpath.job", text(name)),
        ("towpath.attempt", SpanValue::Number(i64::from(attempt.0))),
        ("towpath.outcome", text(outcome)),
    ];
    let worker = worker.or_else(|| reporting_worker(&fact.by));
    attributes.extend(worker.map(|worker| ("towpath.worker", SpanValue::Text(worker))));
    Some(EndedSpan {
        parent: run.span()?,
        own: run.attempt_span(name, attempt)?,
        name: format!("attempt {name}"),
        // The lease, and not the start of the script: a slow checkout is part of the attempt.
        started_at: job.leased_at?,
        ended_at: fact.at,
        attributes,
        error,
    })
}

/// The worker that reported, if it was one.
fn reporting_worker(by: &Actor) -> Option<String> {
    (by.kind == ActorKind::Worker).then(|| by.name.clone())
}

fn of_run(run: &Run, fact: &Fact) -> Option<EndedSpan> {
    let RunEvent::RunFinished { outcome, succeeded, failed, skipped, cancelled, rejected: _ } =
        &fact.event
    else {
        return None;
    };
    let header = run.header()?;
    let count = |jobs: &u32| SpanValue::Number(i64::from(*jobs));
    let went_wrong = match outcome {
        // What a person decided is no fault, and must not raise an alert about failed spans.
        RunOutcome::Succeeded | RunOutcome::Rejected | RunOutcome::Cancelled => false,
        RunOutcome::Partial | RunOutcome::Failed | RunOutcome::TimedOut => true,
    };
    Some(EndedSpan {
        parent: run.above_span()?,
        own: run.span()?,
        name: format!("run {}", header.pipeline),
        // A run that continued after its end has a span of its own for that.
        started_at: run.reopened_at().unwrap_or(header.created_at),
        ended_at: fact.at,
        attributes: vec![
            ("towpath.run", text(&header.run)),
            ("towpath.pipeline", text(&header.pipeline)),
            ("towpath.outcome", text(outcome.word())),
            ("towpath.jobs.succeeded", count(succeeded)),
            ("towpath.jobs.failed", count(failed)),
            ("towpath.jobs.skipped", count(skipped)),
            ("towpath.jobs.cancelled", count(cancelled)),
        ],
        error: went_wrong.then(|| outcome.word().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{
        Ended,
        testing::{Fixture, job},
    };

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// Lets the worker report that `a` succeeded; answers the spans that end with it.
    fn ended(fixture: &mut Fixture) -> Vec<EndedSpan> {
        let ended = Ended::Succeeded { outputs: Default::default(), artifacts: Vec::new() };
        let (report, by) = (fixture.report("a", ended), Actor::worker("w1"));
        let run = &mut fixture.run;
        let written = crate::decide::carry_out(run, &report, &by, fixture.now).unwrap();
        ended_spans(run, &report, &written)
    }

    fn begun(traceparent: Option<&str>) -> Fixture {
        let traceparent = traceparent.map(str::to_owned);
        let mut fixture =
            Fixture::begin_with(vec![job("a")], |create| create.traceparent = traceparent);
        assert_eq!(fixture.leases().as_deref(), Some("a"));
        fixture.passes(500);
        fixture
    }

    #[test]
    fn the_last_report_ends_the_attempt_and_the_run() {
        let mut fixture = begun(Some(TRACE));

        let spans = ended(&mut fixture);

        let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["attempt a", "run shop"]);
        let (attempt, run) = (&spans[0], &spans[1]);
        assert_eq!(Some(attempt.parent), fixture.run.span());
        assert_eq!(Some(run.parent), TRACE.parse().ok());
        assert_eq!((attempt.started_at, attempt.ended_at), (Timestamp(1_000), fixture.now));
        assert!(attempt.attributes.contains(&("towpath.outcome", text("succeeded"))));
        assert!(attempt.attributes.contains(&("towpath.worker", text("w1"))));
        assert!(run.attributes.contains(&("towpath.jobs.succeeded", SpanValue::Number(1))));
        assert_eq!((&attempt.error, &run.error), (&None, &None));
    }

    #[test]
    fn a_run_outside_of_any_trace_has_no_spans() {
        let mut fixture = begun(None);
        assert!(ended(&mut fixture).is_empty());
    }

    #[test]
    fn what_a_script_or_a_system_said_is_in_no_span() {
        let said = || "no such folder /srv/hunter2".to_owned();
        for cause in [FailureCause::NotStarted(said()), FailureCause::OutputUnusable(said())] {
            let (outcome, wrong) = failure(&cause);
            assert_eq!(outcome, "failed");
            assert!(!wrong.contains("hunter2"), "{wrong}");
        }
    }
}
