//! Spans of requests, runs and attempts, and the metrics, for collectors.
//!
//! The program that runs the server decides whether they go anywhere, and calls [`switch_on`]
//! once it has set up the exporter. Until then nothing here does anything.

pub(crate) mod calls;
pub(crate) mod instruments;
pub(crate) mod spans;

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use towpath_engine::{
    ids::{Attempt, JobName},
    run::Run,
    trace::TraceContext,
};

/// What the spans and metrics of the server are said to come from.
const SCOPE: &str = "towpath-server";

static ON: AtomicBool = AtomicBool::new(false);

/// From here on spans are made, for all of this process.
pub fn switch_on() {
    ON.store(true, Ordering::Relaxed);
}

/// Whether spans are exported.
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// What a span below `parent` begins with.
fn below(parent: &TraceContext) -> Context {
    Context::new().with_remote_span_context(span_context(parent))
}

fn span_context(place: &TraceContext) -> SpanContext {
    let (trace, span) = (place.trace_id(), place.span_id());
    let flags = TraceFlags::default().with_sampled(place.is_sampled());
    let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
    SpanContext::new(trace, span, flags, true, TraceState::default())
}

/// The place of the span that `context` carries.
fn place(context: &Context) -> Option<TraceContext> {
    let span = context.span();
    let (known, flags) = (span.span_context(), span.span_context().trace_flags());
    TraceContext::new(known.trace_id().to_bytes(), known.span_id().to_bytes(), flags.is_sampled())
}

/// The trace context for the worker of an attempt: that of its span, or, if nobody
/// collects that, the one of the run's request.
pub(crate) fn of_attempt(run: &Run, job: &JobName, attempt: Attempt) -> String {
    let told = if is_on() { run.attempt_span(job, attempt) } else { run.asked_in() };
    told.map(|place| place.to_string()).unwrap_or_default()
}
