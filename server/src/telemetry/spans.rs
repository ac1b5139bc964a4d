//! The spans that have ended, as the engine has them, for OpenTelemetry.

use std::time::{Duration, SystemTime};

use opentelemetry::{
    Context, KeyValue, global,
    trace::{Span as _, SpanBuilder, Status, Tracer as _},
};
use towpath_engine::{
    aggregate::Written,
    decide::Command,
    run::Run,
    time::Timestamp,
    views::{EndedSpan, SpanValue, ended_spans},
};

use super::{SCOPE, below, is_on};

/// The spans that end with what `command` meant for `run`. None, while spans are not exported.
pub(crate) fn ended(run: &Run, command: &Command, written: &[Written]) -> Vec<EndedSpan> {
    if is_on() { ended_spans(run, command, written) } else { Vec::new() }
}

/// Hands `span` to the exporter. Its event must be durable: a collector would keep a span that the
/// log does not have.
pub(crate) fn export(span: EndedSpan) {
    let (builder, end, status) = (builder(&span), moment(span.ended_at), status(&span));
    // The generator of ids finds this one in the context.
    let _known: opentelemetry::ContextGuard = Context::new().with_value(span.own).attach();
    let mut open = global::tracer(SCOPE).build_with_context(builder, &below(&span.parent));
    open.set_status(status);
    open.end_with_timestamp(end);
}

fn builder(span: &EndedSpan) -> SpanBuilder {
    let attribute = |(name, value): &(&'static str, SpanValue)| match value {
        SpanValue::Text(text) => KeyValue::new(*name, text.clone()),
        SpanValue::Number(number) => KeyValue::new(*name, *number),
    };
    SpanBuilder::from_name(span.name.clone())
        .with_start_time(moment(span.started_at))
        .with_attributes(span.attributes.iter().map(attribute))
}

fn status(span: &EndedSpan) -> Status {
    span.error.clone().map_or(Status::Unset, Status::error)
}

fn moment(at: Timestamp) -> SystemTime {
    let since = Duration::from_millis(u64::try_from(at.0).unwrap_or_default());
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_handed_over_as_the_engine_has_it() {
        let place = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
        let span = EndedSpan {
            parent: place,
            own: place,
            name: "attempt a".to_owned(),
            started_at: Timestamp(1_000),
            ended_at: Timestamp(2_000),
            attributes: vec![
                ("towpath.job", SpanValue::Text("a".to_owned())),
                ("towpath.attempt", SpanValue::Number(2)),
            ],
            error: Some("exit code 1".to_owned()),
        };

        let built = builder(&span);

        assert_eq!(built.name, "attempt a");
        assert_eq!(built.start_time, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1)));
        let expected = [KeyValue::new("towpath.job", "a"), KeyValue::new("towpath.attempt", 2_i64)];
        assert_eq!(built.attributes.as_deref(), Some(&expected[..]));
        assert_eq!(status(&span), Status::error("exit code 1"));
    }
}
