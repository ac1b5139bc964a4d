//! W3C trace context: which trace something belongs to, and the spans that follow from a run.
//!
//! Only the context in which a run was asked for is in the log. The spans of the run and of its
//! attempts have ids that follow from it, so that a reader of the log, an hour later or
//! after a restart, knows them all.

use std::{fmt, str::FromStr};

use crate::{
    ids::{Attempt, Digest, JobName, RunId},
    run::Run,
    time::Timestamp,
};

/// A place in a trace: a span, and the trace it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

/// A text that is no W3C `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a trace context is written as 00-TRACE-SPAN-FLAGS in lower-case hexadecimal digits")]
pub struct TraceContextMalformed;

impl TraceContext {
    /// The place of span `span` in the trace `trace`. `None`: one of them is all zeros, which
    /// means nothing.
    pub fn new(trace: [u8; 16], span: [u8; 8], sampled: bool) -> Option<Self> {
        let means_something = trace != [0; 16] && span != [0; 8];
        means_something.then_some(Self { trace, span, sampled })
    }

    /// The id of the trace.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace
    }

    /// The id of the span.
    pub fn span_id(&self) -> [u8; 8] {
        self.span
    }

    /// Whether the trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The span below this one that `parts` name: always the same for the same parts.
    pub fn child(&self, parts: &[&str]) -> Self {
        let mut text = self.to_string();
        for part in parts {
            // With its length, so that no two lists of parts are one text.
            text.push_str(&format!("\n{} {part}", part.len()));
        }
        let digest = Digest::of(text.as_bytes());
        let mut span = [0; 8];
        // A hash instead of a random id: a server that restarts computes the same id for a span
        // that is still open.
        span.copy_from_slice(&digest.0[..8]);
        Self { span, ..*self }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (hex::encode(self.trace), hex::encode(self.span));
        write!(f, "00-{trace}-{span}-{:02x}", u8::from(self.sampled))
    }
}

impl FromStr for TraceContext {
    type Err = TraceContextMalformed;

    /// Reads version 00, and of later versions what version 00 has.
    fn from_str(text: &str) -> Result<Self, TraceContextMalformed> {
        let mut parts = text.split('-');
        let mut part = |digits: usize| {
            let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            parts.next().filter(|part| part.len() == digits && part.chars().all(is_hex))
        };
        let (version, trace, span, flags) = (part(2), part(32), part(16), part(2));
        let bytes = |part: Option<&str>| hex::decode(part?).ok();
        let mut read = || {
            // The standard reserves this version as invalid.
            let version = version.filter(|version| *version != "ff")?;
            // Later versions may append fields; version 00 has none after the flags.
            if version == "00" && parts.next().is_some() {
                return None;
            }
            let (trace, span) = (bytes(trace)?.try_into().ok()?, bytes(span)?.try_into().ok()?);
            let flags = *bytes(flags)?.first()?;
            Self::new(trace, span, flags & 1 == 1)
        };
        read().ok_or(TraceContextMalformed)
    }
}

/// The span of run `id` that was asked for in `asked_in` and last reopened at `reopened_at`.
pub(crate) fn run_span(
    asked_in: &TraceContext,
    id: &RunId,
    reopened_at: Option<Timestamp>,
) -> TraceContext {
    let first = asked_in.child(&["run", id.as_str()]);
    match reopened_at {
        None => first,
        Some(at) => first.child(&["again", &at.0.to_string()]),
    }
}

impl Run {
    /// The context in which the run was asked for, if it is one.
    pub fn asked_in(&self) -> Option<TraceContext> {
        self.header()?.traceparent.as_ref()?.parse().ok()
    }

    /// The span of the run, from its beginning to its end; of a run that was resumed after its
    /// end, from there to the next one, below the first.
    pub fn span(&self) -> Option<TraceContext> {
        Some(run_span(&self.asked_in()?, &self.header()?.run, self.reopened_at()))
    }

    /// The context that the run's span belongs below.
    pub fn above_span(&self) -> Option<TraceContext> {
        let asked_in = self.asked_in()?;
        Some(match self.reopened_at() {
            None => asked_in,
            Some(_) => asked_in.child(&["run", self.header()?.run.as_str()]),
        })
    }

    /// The span of one attempt of a job, from its lease to its report.
    pub fn attempt_span(&self, job: &JobName, attempt: Attempt) -> Option<TraceContext> {
        Some(self.span()?.child(&["attempt", job.as_str(), &attempt.to_string()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Command, testing::*};

    const KNOWN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(text: &str) -> Option<TraceContext> {
        text.parse().ok()
    }

    #[test]
    fn what_is_read_is_written_again() {
        assert_eq!(read(KNOWN).unwrap().to_string(), KNOWN);
        let unsampled = KNOWN.replace("-01", "-00");
        assert!(!read(&unsampled).unwrap().is_sampled());
        // Flags of later levels, and fields of later versions, are ignored.
        assert_eq!(read(&KNOWN.replace("-01", "-03")).unwrap().to_string(), KNOWN);
        assert_eq!(read(&format!("cc{}-more", &KNOWN[2..])).unwrap().to_string(), KNOWN);
    }

    #[test]
    fn what_is_no_trace_context_is_none() {
        let upper = KNOWN.to_uppercase();
        let zeros = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let no_span = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        let more = format!("{KNOWN}-more");
        let future = format!("ff{}", &KNOWN[2..]);
        for text in ["", "00", "00-1-2-01", &KNOWN[1..], &upper, &zeros, &no_span, &more, &future] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn children_are_distinguished_by_their_kind_alone() {
        let parent = read(KNOWN).unwrap();
        let child = parent.child(&["attempt", "a", "1"]);
        assert_eq!(child, parent.child(&["attempt", "a", "1"]));
        assert_eq!(child.trace_id(), parent.trace_id());
        for other in [
            parent.child(&["attempt", "a", "2"]),
            parent.child(&["attempt", "a1"]),
            parent.child(&["attempt", "a", "1", ""]),
            child.child(&["attempt", "a", "1"]),
            parent,
        ] {
            assert_ne!(other.span_id(), child.span_id());
        }
        // Pinned: ids in old logs must stay what they are.
        let again = "00-0af7651916cd43dd8448eb211c80319c-cbed02073921ba7c-01";
        assert_eq!(child.to_string(), again);
    }

    #[test]
    fn every_attempt_has_its_own_span_and_a_continued_run_another() {
        let mut fixture =
            Fixture::begin_with(vec![job("a")], |run| run.traceparent = Some(KNOWN.to_owned()));
        let first = fixture.run.span().unwrap();
        assert_eq!(fixture.run.above_span(), read(KNOWN));
        let one = fixture.run.attempt_span(&"a".into(), Attempt(1)).unwrap();
        assert_ne!(Some(one), fixture.run.attempt_span(&"a".into(), Attempt(2)));
        fixture.leases();
        fixture.fails("a", 1);
        assert_eq!(fixture.run.span(), Some(first), "a run that has ended is still itself");

        fixture.passes(5);
        fixture.carries_out(&Command::Retry("a".into()));

        let second = fixture.run.span().unwrap();
        assert_ne!(second, first);
        assert_eq!(fixture.run.above_span(), Some(first));
        assert_eq!(Run::replay(&fixture.facts).unwrap().span(), Some(second));
    }

    #[test]
    fn a_run_without_a_trace_has_no_spans() {
        for traceparent in ["", "00-1-2-01"] {
            let fixture = Fixture::begin_with(vec![job("a")], |run| {
                run.traceparent = Some(traceparent.to_owned());
            });
            assert_eq!(fixture.run.span(), None);
            assert_eq!(fixture.run.attempt_span(&"a".into(), Attempt(1)), None);
        }
    }
}
