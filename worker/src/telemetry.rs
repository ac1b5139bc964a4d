//! The span of one execution of a script: below the span of its attempt, and above whatever the
//! script makes of its `TRACEPARENT`.
//!
//! Its id follows from the attempt's, so that a worker that takes a script up from another one
//! ends the span that the other one began. Nothing happens before [`switch_on`].

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use opentelemetry::{
    Context, ContextGuard, KeyValue, global,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags,
        TraceId, TraceState, Tracer as _,
    },
};
use towpath_engine::{event::FailureCause, ids::AttemptId, trace::TraceContext};

use crate::{Adopted, Ended};

/// What the spans of workers are said to come from.
const SCOPE: &str = "towpath-worker";

static ON: AtomicBool = AtomicBool::new(false);

/// From here on spans are made, for all of this process.
pub fn switch_on() {
    ON.store(true, Ordering::Relaxed);
}

fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

fn execution(attempt: &TraceContext) -> TraceContext {
    attempt.child(&["execution"])
}

/// What a script is given as `TRACEPARENT`: its execution, or, if that is not exported, its
/// attempt, as `attempt` says it.
pub(crate) fn of_script(attempt: &str) -> String {
    let known = attempt.parse().ok().filter(|_| is_on());
    known.map_or_else(|| attempt.to_owned(), |attempt| execution(&attempt).to_string())
}

/// What a span that has this remote one above it begins with.
pub fn below(place: &TraceContext) -> Context {
    let (trace, span) = (place.trace_id(), place.span_id());
    let flags = TraceFlags::default().with_sampled(place.is_sampled());
    let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
    let parent = SpanContext::new(trace, span, flags, true, TraceState::default());
    Context::new().with_remote_span_context(parent)
}

/// Hands the span of an execution that has just ended to the exporter.
pub(crate) fn executed(
    AttemptId { run, job, attempt }: &AttemptId,
    traceparent: Option<&str>,
    began: SystemTime,
    adopted: &Adopted,
) {
    let known = traceparent.filter(|_| is_on()).and_then(|text| text.parse().ok());
    let Some(above) = known else { return };
    let (outcome, wrong, code) = outcome(adopted);
    let mut attributes = vec![
        KeyValue::new("towpath.run", run.to_string()),
        KeyValue::new("towpath.job", job.to_string()),
        KeyValue::new("towpath.attempt", i64::from(attempt.0)),
        KeyValue::new("towpath.outcome", outcome),
    ];
    attributes.extend(code.map(|code| KeyValue::new("process.exit.code", i64::from(code))));
    let builder = SpanBuilder::from_name(format!("execute {job}"))
        .with_start_time(began)
        .with_attributes(attributes);
    // The generator of ids finds this one in the context.
    let _known: ContextGuard = Context::new().with_value(execution(&above)).attach();
    let mut span = global::tracer(SCOPE).build_with_context(builder, &below(&above));
    if wrong {
        span.set_status(Status::error(outcome));
    }
    span.end();
}

/// How it ended in one word, whether that is an error, and the exit code if there is one. What
/// went wrong in words is for the log: it may name what should not be seen here.
fn outcome(adopted: &Adopted) -> (&'static str, bool, Option<i32>) {
    match adopted {
        Adopted::Ended(Ended::Succeeded { .. }) => ("succeeded", false, Some(0)),
        Adopted::Ended(Ended::Cancelled { .. }) => ("cancelled", false, None),
        Adopted::Ended(Ended::Failed { cause, .. }) => match cause {
            FailureCause::ExitCode(code) => ("failed", true, Some(*code)),
            FailureCause::TimedOut(_) => ("timed_out", true, None),
            FailureCause::Lost(_) => ("lost", true, None),
            FailureCause::Signal(_)
            | FailureCause::NotStarted(_)
            | FailureCause::OutputUnusable(_)
            | FailureCause::ReportInvalid(_) => ("failed", true, None),
        },
        Adopted::Lost(_) => ("lost", true, None),
        Adopted::NeverStarted => ("never_started", true, None),
    }
}
