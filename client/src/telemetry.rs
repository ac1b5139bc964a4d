//! Export of spans and metrics over OTLP, if the standard variables of OpenTelemetry ask for it.
//! If they do not, nothing here begins.
//!
//! What cannot be exported is reported once and dropped: it never delays a process for longer
//! than [`FLUSH_WITHIN`], and never makes anything fail.

use std::{
    env,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use opentelemetry::{
    Context, KeyValue, global,
    trace::{
        SpanBuilder, SpanId, SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _,
        TracerProvider as _,
    },
};
use opentelemetry_otlp::{
    MetricExporter, RetryPolicy, SpanExporter as OtlpSpans, WithExportConfig as _,
    WithTonicConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    metrics::{
        PeriodicReader, SdkMeterProvider, Temporality, data::ResourceMetrics,
        exporter::PushMetricExporter,
    },
    trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider, SpanData, SpanExporter},
};
use tonic::transport::{Certificate, ClientTlsConfig};
use towpath_engine::trace::TraceContext;

use crate::{embedded, failure::Failure};

/// How long the end of a command may wait for what is not exported yet.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// The variable with the trace context of the program.
const TRACEPARENT: &str = "TRACEPARENT";

/// The resource of a process in its telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Server,
    Worker,
    /// Every other command. Named as on the command line, if it has a span of its own.
    Command,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "towpath-server",
            Self::Worker => "towpath-worker",
            Self::Command => "tow",
        }
    }
}

/// The exporters of this process, and the span of its command.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    spans: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    command: Option<Context>,
}

impl Telemetry {
    /// Starts the exporters that the environment configures. `endpoint`: where to, if the
    /// environment does not say.
    pub(crate) fn begin(part: Part, endpoint: Option<&str>) -> Self {
        let complaint = Arc::new(Complaint::default());
        let begun = |built: Result<_, _>| built.map_err(|why: String| complaint.say(why)).ok();
        let mut telemetry = Self::default();
        if let Some(to) = asked("TRACES", endpoint) {
            let exporter = begun(spans_to(&to, part)).map(|exporter: OtlpSpans| {
                let exporter = Noticed { exporter, complaint: Arc::clone(&complaint) };
                SdkTracerProvider::builder()
                    .with_id_generator(Ids::default())
                    .with_resource(resource(part))
                    .with_batch_exporter(exporter)
                    .build()
            });
            if let Some(provider) = &exporter {
                // Server and worker are libraries and take the provider from here, in whichever
                // process they run.
                global::set_tracer_provider(provider.clone());
                embedded::switch_on_telemetry();
                towpath_worker::telemetry::switch_on();
            }
            telemetry.spans = exporter;
        }
        // Commands are over before a first interval has passed.
        if let Some(to) = asked("METRICS", endpoint).filter(|_| part == Part::Server) {
            let complaint = Arc::clone(&complaint);
            telemetry.metrics = metrics_to(&to)
                .map_err(|why| complaint.say(why))
                .ok()
                .map(|exporter| Noticed { exporter, complaint: Arc::clone(&complaint) })
                .map(|exporter| {
                    let reader = PeriodicReader::builder(exporter).build();
                    let provider = SdkMeterProvider::builder().with_resource(resource(part));
                    provider.with_reader(reader).build()
                });
            if let Some(provider) = &telemetry.metrics {
                global::set_meter_provider(provider.clone());
            }
        }
        telemetry
    }

    /// Whether metrics are exported.
    pub(crate) fn wants_metrics(&self) -> bool {
        self.metrics.is_some()
    }

    /// Begins the span of the command `name`, below the one that the environment names.
    pub(crate) fn begin_command(&mut self, name: &str) {
        let Some(provider) = &self.spans else { return };
        let above = given().map_or_else(Context::new, |at| towpath_worker::telemetry::below(&at));
        let builder = SpanBuilder::from_name(format!("tow {name}")).with_kind(SpanKind::Client);
        let span = provider.tracer(Part::Command.name()).build_with_context(builder, &above);
        self.command = Some(above.with_span(span));
    }

    /// The trace context that requests of this process carry: the span of the command, or else
    /// what the environment says.
    pub(crate) fn place(&self) -> Option<TraceContext> {
        let Some(command) = &self.command else { return given() };
        let span = command.span();
        let known = span.span_context();
        let sampled = known.is_sampled();
        TraceContext::new(known.trace_id().to_bytes(), known.span_id().to_bytes(), sampled)
    }

    /// Ends the span of the command, and exports what is left, for as long as that may take.
    pub(crate) async fn end(self, finished: &Result<u8, Failure>) {
        let Self { spans, metrics, command } = self;
        if let Some(span) = command.as_ref().map(|command| command.span()) {
            let code = match finished {
                Ok(code) => *code,
                Err(failure) => {
                    span.set_status(Status::error(failure.code_text().to_owned()));
                    failure.exit_code()
                }
            };
            span.set_attribute(KeyValue::new("process.exit.code", i64::from(code)));
            span.end();
        }
        if spans.is_none() && metrics.is_none() {
            return;
        }
        // The exporters wait for their own threads: not on one of those that move messages.
        let flushed = tokio::task::spawn_blocking(move || {
            let until = Instant::now() + FLUSH_WITHIN;
            let left = || until.saturating_duration_since(Instant::now());
            // What went wrong was said when it did.
            drop(spans.map(|spans| spans.shutdown_with_timeout(left())));
            drop(metrics.map(|metrics| metrics.shutdown_with_timeout(left())));
        });
        drop(tokio::time::timeout(FLUSH_WITHIN, flushed).await);
    }
}

/// The trace context in the environment, if it is one.
fn given() -> Option<TraceContext> {
    env::var(TRACEPARENT).ok()?.parse().ok()
}

fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where `signal` is to be exported to. `None`: it is not.
fn asked(signal: &str, otherwise: Option<&str>) -> Option<String> {
    let is = |name: &str, value: &str| set(name).is_some_and(|is| is.eq_ignore_ascii_case(value));
    if is("OTEL_SDK_DISABLED", "true") || is(&format!("OTEL_{signal}_EXPORTER"), "none") {
        return None;
    }
    set(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))
        .or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT"))
        .or_else(|| otherwise.map(str::to_owned))
}

fn resource(part: Part) -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let attributes = set("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let named = set("OTEL_SERVICE_NAME").is_some()
        || attributes.split(',').any(|one| one.trim_start().starts_with("service.name="));
    let resource = Resource::builder().with_attribute(version);
    if named { resource } else { resource.with_service_name(part.name()) }.build()
}

fn spans_to(endpoint: &str, part: Part) -> Result<OtlpSpans, String> {
    // A command that ends at once does not try again.
    let tries = match part {
        Part::Server | Part::Worker => RetryPolicy::recommended(),
        Part::Command => RetryPolicy::disabled(),
    };
    let builder = OtlpSpans::builder().with_tonic().with_endpoint(endpoint);
    let builder = match trusted("TRACES")? {
        Some(tls) => builder.with_tls_config(tls),
        None => builder,
    };
    builder.with_retry_policy(tries).build().map_err(|error| error.to_string())
}

fn metrics_to(endpoint: &str) -> Result<MetricExporter, String> {
    let builder = MetricExporter::builder().with_tonic().with_endpoint(endpoint);
    let builder = match trusted("METRICS")? {
        Some(tls) => builder.with_tls_config(tls),
        None => builder,
    };
    builder.build().map_err(|error| error.to_string())
}

/// Whom to trust as a collector, and that it is spoken to in a way that we know.
fn trusted(signal: &str) -> Result<Option<ClientTlsConfig>, String> {
    let said = |what: &str| {
        set(&format!("OTEL_EXPORTER_OTLP_{signal}_{what}"))
            .or_else(|| set(&format!("OTEL_EXPORTER_OTLP_{what}")))
    };
    if let Some(other) = said("PROTOCOL").filter(|protocol| protocol != "grpc") {
        return Err(format!("the protocol `{other}` is not spoken here, only `grpc`"));
    }
    let Some(path) = said("CERTIFICATE") else { return Ok(None) };
    let pem = std::fs::read(&path).map_err(|error| format!("`{path}`: {error}"))?;
    Ok(Some(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))))
}

/// Random ids, except for spans whose id follows from a run: their creator sets it.
#[derive(Debug, Default)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        self.0.new_trace_id()
    }

    fn new_span_id(&self) -> SpanId {
        let known = Context::map_current(|context| context.get::<TraceContext>().copied());
        known.map_or_else(|| self.0.new_span_id(), |known| SpanId::from_bytes(known.span_id()))
    }
}

/// That the collector is not there is said once, until it has been there again.
#[derive(Debug, Default)]
struct Complaint(AtomicBool);

impl Complaint {
    /// Whether `exported` is the first that went wrong since one went well.
    fn is_new(&self, exported: &OTelSdkResult) -> bool {
        // Once for each outage: the exporter tries every few seconds, for as long as the collector
        // is down.
        let said = self.0.swap(exported.is_err(), Ordering::Relaxed);
        exported.is_err() && !said
    }

    fn hear(&self, exported: &OTelSdkResult) {
        if let Err(why) = exported
            && self.is_new(exported)
        {
            let text = "Failed to export traces and metrics: they are dropped until the collector answers. Nothing else is affected.";
            drop(writeln!(anstream::stderr(), "{text} The exporter says: {why}"));
        }
    }

    fn say(&self, why: String) {
        self.hear(&Err(OTelSdkError::InternalFailure(why)));
    }
}

/// An exporter whose failures are noticed.
#[derive(Debug)]
struct Noticed<E> {
    exporter: E,
    complaint: Arc<Complaint>,
}

impl<E: SpanExporter> SpanExporter for Noticed<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = self.exporter.export(batch).await;
        self.complaint.hear(&exported);
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Noticed<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let exported = self.exporter.export(metrics).await;
        self.complaint.hear(&exported);
        exported
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ids_are_used_and_others_are_random() {
        let ids = Ids::default();
        let known: TraceContext =
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let attached = Context::new().with_value(known).attach();
        assert_eq!(ids.new_span_id().to_bytes(), known.span_id());
        drop(attached);
        assert_ne!(ids.new_span_id(), ids.new_span_id());
    }

    #[test]
    fn a_collector_that_is_away_is_complained_about_once_until_it_was_back() {
        let complaint = Complaint::default();
        let away = Err(OTelSdkError::InternalFailure("refused".to_owned()));
        let heard = [&away, &away, &Ok(()), &away].map(|exported| complaint.is_new(exported));
        assert_eq!(heard, [true, false, false, true]);
    }
}
