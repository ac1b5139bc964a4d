//! In place of `telemetry.rs`, in a program that is built without the feature `otlp`: nothing is
//! exported. The trace context of the environment is still passed on to the server.

use std::{env, io::Write as _};

use towpath_engine::trace::TraceContext;

use crate::failure::Failure;

/// The resource of a process in its telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    #[cfg(feature = "server")]
    Server,
    Worker,
    Command,
}

/// No exporters.
#[derive(Debug)]
pub(crate) struct Telemetry;

impl Telemetry {
    /// Starts nothing, and says so if the environment asks for an exporter.
    pub(crate) fn begin(_part: Part, endpoint: Option<&str>) -> Self {
        let asked = env::var("OTEL_EXPORTER_OTLP_ENDPOINT").is_ok_and(|value| !value.is_empty());
        if asked || endpoint.is_some() {
            let text = "This `tow` is built without the feature `otlp`: nothing is exported.";
            drop(writeln!(std::io::stderr(), "{text}"));
        }
        Self
    }

    /// Whether metrics are exported.
    #[cfg(feature = "server")]
    pub(crate) fn wants_metrics(&self) -> bool {
        false
    }

    /// Commands have no span.
    pub(crate) fn begin_command(&mut self, _name: &str) {}

    /// The trace context that requests of this process carry: that of the environment.
    pub(crate) fn place(&self) -> Option<TraceContext> {
        env::var("TRACEPARENT").ok()?.parse().ok()
    }

    /// Nothing is left to export.
    pub(crate) async fn end(self, _finished: &Result<u8, Failure>) {}
}
