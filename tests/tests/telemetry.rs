//! What a collector gets: the program itself, in as many processes as there are parts, exports
//! over real OTLP to a collector of this test.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    metrics::v1::{metric, number_data_point},
    resource::v1::Resource,
    trace::v1::{Span, status::StatusCode},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use towpath_tests::{WAIT_MAX, eventually, program};

/// The trace that the caller began, and its span.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const ABOVE: &str = "00f067aa0ba902b7";
/// What no collector should ever see.
const HUSH: &str = "hush-hush";

/// A span, and which service it came from.
#[derive(Clone, Debug)]
struct Seen {
    service: String,
    span: Span,
}

impl Seen {
    fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    fn says(&self, key: &str) -> String {
        text(&self.span.attributes, key)
    }

    fn failed(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The attribute `key` as text; empty, if there is none.
fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.as_ref()).and_then(|AnyValue { value }| value.as_ref())
    {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(_) | None => String::new(),
    }
}

fn service(resource: Option<&Resource>) -> String {
    text(&resource.expect("a resource").attributes, "service.name")
}

/// Everything that arrived.
#[derive(Clone, Debug, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Seen>>>,
    /// The newest points of every metric, by name and by the value of their label.
    points: Arc<Mutex<BTreeMap<String, BTreeMap<String, f64>>>>,
    /// All of it, as it would be printed.
    raw: Arc<Mutex<String>>,
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        locked(&self.raw).push_str(&format!("{request:?}"));
        for of in request.resource_spans {
            let service = service(of.resource.as_ref());
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let seen = spans.map(|span| Seen { service: service.clone(), span });
            locked(&self.spans).extend(seen);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let request = request.into_inner();
        locked(&self.raw).push_str(&format!("{request:?}"));
        for of in request.resource_metrics {
            assert_eq!(service(of.resource.as_ref()), "towpath-server");
            for metric in of.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                let points = match metric.data {
                    Some(metric::Data::Gauge(gauge)) => gauge.data_points,
                    Some(metric::Data::Sum(sum)) => sum.data_points,
                    other => panic!("{other:?}"),
                };
                let by_label = points.iter().map(|point| {
                    let label = point.attributes.first().map(|label| label.key.clone());
                    let label = label.map(|key| text(&point.attributes, &key));
                    let value = match point.value.expect("a value") {
                        number_data_point::Value::AsInt(value) => value as f64,
                        number_data_point::Value::AsDouble(value) => value,
                    };
                    (label.unwrap_or_default(), value)
                });
                locked(&self.points).insert(metric.name, by_label.collect());
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    /// A collector, and where it listens.
    async fn begin() -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        (collector, format!("http://{address}"))
    }

    fn named(&self, name: &str) -> Vec<Seen> {
        let spans = locked(&self.spans);
        spans.iter().filter(|seen| seen.span.name == name).cloned().collect()
    }

    /// The one span of this name, when it has arrived.
    async fn one(&self, name: &str) -> Seen {
        eventually(&format!("the span `{name}`"), || !self.named(name).is_empty()).await;
        let named = self.named(name);
        assert_eq!(named.len(), 1, "{named:?}");
        named[0].clone()
    }

    async fn until_point(&self, metric: &str, label: &str, value: f64) {
        let is = || locked(&self.points).get(metric)?.get(label).copied();
        eventually(&format!("{metric} {label} {value}"), || is() == Some(value)).await;
    }
}

/// A folder with a pipeline file, and how `tow` is started there.
struct Scene {
    folder: tempfile::TempDir,
    otlp: Option<String>,
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Scene {
    fn new(yaml: &str, otlp: Option<String>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let text = format!("version: \"1.0\"\nname: shop\n{yaml}");
        fs::write(folder.path().join("towpath.yml"), text).expect("a file");
        Self { folder, otlp }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `tow` with `arguments`, and of this process' telemetry nothing.
    fn tow(&self, arguments: &[&str]) -> Command {
        static PROGRAM: LazyLock<PathBuf> = LazyLock::new(program);
        let mut tow = Command::new(&*PROGRAM);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["OTEL_", "TOW_", "TRACE"].iter().any(|ours| name.starts_with(ours)) {
                tow.env_remove(name);
            }
        }
        tow.args(arguments)
            .current_dir(self.path())
            .env("TOW_ACTOR", "human:ana")
            .env("HOME", self.path())
            .env("OTEL_BSP_SCHEDULE_DELAY", "50")
            .env("OTEL_METRIC_EXPORT_INTERVAL", "100")
            .stdin(Stdio::null());
        if let Some(otlp) = &self.otlp {
            tow.env("OTEL_EXPORTER_OTLP_ENDPOINT", otlp);
        }
        tow
    }

    async fn answer(&self, mut tow: Command) -> Output {
        let answered = tokio::task::spawn_blocking(move || tow.output());
        answered.await.expect("no panic").expect("`tow` can be started")
    }

    /// A server at `address`, once it listens there.
    async fn serve(&self, address: &str) -> Running {
        let mut tow = self.tow(&["serve", "--listen", address]);
        let server = Running(tow.stderr(Stdio::null()).spawn().expect("`tow` can be started"));
        eventually("the server", || std::net::TcpStream::connect(address).is_ok()).await;
        server
    }

    fn worker(&self, address: &str) -> Running {
        let mut tow = self.tow(&["worker", "--server", address, "--name", "eu-1"]);
        Running(tow.env("HUSH", HUSH).stderr(Stdio::null()).spawn().expect("a worker"))
    }

    async fn until_there(&self, file: &str) -> String {
        let path = self.path().join(file);
        let read = || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'));
        eventually(&format!("the file {file}"), || read().is_some()).await;
        read().expect("it is there").trim().to_owned()
    }
}

/// An address of this machine without a listener.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const LONG: &str = "stages: [first, second]
jobs:
  one:
    stage: first
    secrets: [HUSH]
    env: {PASSWORD: hush-hush-too}
    command: |
      echo \"hush-hush $HUSH\"
      echo \"$TRACEPARENT\" >one
      until [ -e go ]; do sleep 0.01; done
  flaky:
    stage: second
    retry: {max: 1, backoff: 10ms}
    command: |
      if [ -e tried ]; then echo \"$TRACEPARENT\" >flaky; else touch tried; exit 3; fi
  cutover: {stage: second, when: manual, needs: [flaky], command: 'echo \"$TRACEPARENT\" >cutover'}
";

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story: a trace from its first span to its last")]
async fn one_trace_goes_from_the_command_line_to_the_script_through_retries_and_restarts() {
    let (collector, otlp) = Collector::begin().await;
    let scene = Scene::new(LONG, Some(otlp));
    let address = free_address();
    let server = scene.serve(&address).await;
    let worker = scene.worker(&address);

    // When
    let mut run = scene.tow(&["run", "--source", "folder", "--server", &address, "--detach"]);
    run.env("TRACEPARENT", format!("00-{TRACE}-{ABOVE}-01"));
    let run = scene.answer(run).await;
    assert!(run.status.success(), "{}", stderr(&run));
    let run = String::from_utf8_lossy(&run.stdout).trim().to_owned();
    let one = scene.until_there("one").await;
    let start = collector.one("towpath.v1.RunsService/StartRun").await;
    // Both are killed; the script continues, and others take over.
    drop((server, worker));
    let _server = scene.serve(&address).await;
    let _worker = scene.worker(&address);
    fs::write(scene.path().join("go"), "").expect("a file");
    let flaky = scene.until_there("flaky").await;
    collector.until_point("towpath.gates_waiting", "", 1.0).await;
    let approved = scene.answer(scene.tow(&["approve", "--server", &address, "--run", &run])).await;
    assert!(approved.status.success(), "{}", stderr(&approved));
    let cutover = scene.until_there("cutover").await;

    // Then
    let whole = collector.one("run shop").await;
    let command = collector.one("tow run").await;
    assert_eq!((command.service.as_str(), command.parent().as_str()), ("tow", ABOVE));
    assert_eq!((start.service.as_str(), start.parent()), ("towpath-server", command.id()));
    assert_eq!(start.says("rpc.response.status_code"), "OK");
    assert_eq!((whole.service.as_str(), whole.parent()), ("towpath-server", start.id()));
    assert_eq!(whole.says("towpath.outcome"), "succeeded");
    for (job, script) in [("one", one), ("cutover", cutover)] {
        let attempt = collector.one(&format!("attempt {job}")).await;
        assert_eq!((attempt.service.as_str(), attempt.parent()), ("towpath-server", whole.id()));
        assert_eq!(attempt.says("towpath.run"), whole.says("towpath.run"));
        assert_eq!(attempt.says("towpath.pipeline"), "shop");
        assert_eq!(attempt.says("towpath.job"), job);
        assert_eq!(attempt.says("towpath.worker"), "eu-1");
        assert_eq!(attempt.says("towpath.outcome"), "succeeded");
        assert!(!attempt.failed());
        assert!(attempt.span.start_time_unix_nano < attempt.span.end_time_unix_nano);
        let execution = collector.one(&format!("execute {job}")).await;
        assert_eq!(execution.service, "towpath-worker");
        assert_eq!(execution.parent(), attempt.id());
        assert_eq!(script, format!("00-{TRACE}-{}-01", execution.id()), "{job}");
    }
    eventually("both tries", || collector.named("execute flaky").len() == 2).await;
    let mut tries = collector.named("attempt flaky");
    tries.sort_by_key(|attempt| attempt.says("towpath.attempt"));
    assert_eq!(tries.len(), 2);
    assert_ne!(tries[0].id(), tries[1].id());
    assert_eq!(tries.iter().map(Seen::failed).collect::<Vec<_>>(), [true, false]);
    assert_eq!(tries[0].span.status.as_ref().expect("a status").message, "exit code 3");
    let last = collector.named("execute flaky").into_iter().find(|seen| !seen.failed());
    let last = last.expect("the second try went well");
    assert_eq!((last.parent(), flaky), (tries[1].id(), format!("00-{TRACE}-{}-01", last.id())));
    for seen in [&command, &start, &whole, &tries[0], &tries[1], &last] {
        assert_eq!(seen.trace(), TRACE, "{seen:?}");
    }

    // The approval is a trace of its own, and leads to the run's.
    let approval = collector.one("towpath.v1.GatesService/ApproveGate").await;
    assert_ne!(approval.trace(), TRACE);
    let link = &approval.span.links[0];
    assert_eq!((hex(&link.trace_id), hex(&link.span_id)), (TRACE.to_owned(), whole.id()));

    let status = scene.tow(&["status", "--server", &address, "--output", "json", &run]);
    let status = scene.answer(status).await;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["traceparent"], format!("00-{TRACE}-{}-01", whole.id()));
    let attempt = collector.one("attempt one").await;
    assert_eq!(status["jobs"][0]["traceparent"], format!("00-{TRACE}-{}-01", attempt.id()));

    collector.until_point("towpath.runs", "succeeded", 1.0).await;
    collector.until_point("towpath.workers_connected", "", 1.0).await;
    for metric in ["jobs", "jobs_ready", "gates_oldest_age", "appends", "events", "log_position"] {
        assert!(locked(&collector.points).contains_key(&format!("towpath.{metric}")), "{metric}");
    }
    assert!(!locked(&collector.raw).contains(HUSH), "a secret, a value or a command got out");
}

const SHORT: &str = "stages: [s]\njobs:\n  a: {stage: s, command: 'echo \"$TRACEPARENT\" >a'}\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_one_process_is_one_trace() {
    let (collector, otlp) = Collector::begin().await;
    let scene = Scene::new(SHORT, Some(otlp));

    let run = scene.answer(scene.tow(&["run"])).await;

    assert!(run.status.success(), "{}", stderr(&run));
    let command = collector.one("tow run").await;
    let (whole, attempt) = (collector.one("run shop").await, collector.one("attempt a").await);
    let execution = collector.one("execute a").await;
    assert_eq!(command.parent(), "");
    assert_eq!((attempt.parent(), execution.parent()), (whole.id(), attempt.id()));
    let expected = format!("00-{}-{}-01", command.trace(), execution.id());
    assert_eq!(scene.until_there("a").await, expected);
    assert_eq!(execution.says("process.exit.code"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_continued_run_stays_in_its_trace() {
    let (collector, otlp) = Collector::begin().await;
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, command: 'test -e there'}\n";
    let scene = Scene::new(yaml, Some(otlp));
    let run = scene.answer(scene.tow(&["run"])).await;
    assert_eq!(run.status.code(), Some(10), "{}", stderr(&run));
    let first = collector.one("run shop").await;
    fs::write(scene.path().join("there"), "").expect("a file");

    let resumed = scene.answer(scene.tow(&["resume"])).await;

    assert!(resumed.status.success(), "{}", stderr(&resumed));
    eventually("the second end", || collector.named("run shop").len() == 2).await;
    let second = collector.named("run shop").remove(1);
    assert_eq!((second.trace(), second.parent()), (first.trace(), first.id()));
    assert_eq!([first.failed(), second.failed()], [true, false]);
    assert!(second.span.start_time_unix_nano >= first.span.end_time_unix_nano);
    let attempts = collector.named("attempt a");
    let parents: Vec<String> = attempts.iter().map(Seen::parent).collect();
    assert_eq!(parents, [first.id(), second.id()]);
    let request = collector.one("towpath.v1.RunsService/ResumeRun").await;
    assert_ne!(request.trace(), first.trace());
    assert_eq!(hex(&request.span.links[0].trace_id), first.trace());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_being_asked_nothing_is_sent_and_the_context_is_handed_on_as_it_is() {
    let (collector, otlp) = Collector::begin().await;
    let given = format!("00-{TRACE}-{ABOVE}-01");
    for disabled in [false, true] {
        let scene = Scene::new(SHORT, disabled.then(|| otlp.clone()));
        let mut run = scene.tow(&["run"]);
        run.env("TRACEPARENT", &given).env("OTEL_SDK_DISABLED", "true");
        if !disabled {
            run.env_remove("OTEL_SDK_DISABLED");
        }

        let run = scene.answer(run).await;

        assert!(run.status.success(), "{}", stderr(&run));
        assert_eq!(scene.until_there("a").await, given);
    }
    assert_eq!(*locked(&collector.raw), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_costs_one_sentence() {
    // One that refuses, and one that takes the call and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    for address in [free_address(), silent.local_addr().expect("an address").to_string()] {
        let yaml = SHORT.replace("command: '", "command: 'sleep 0.3; ");
        let scene = Scene::new(&yaml, Some(format!("http://{address}")));

        let run = scene.tow(&["run"]);
        let began = Instant::now();
        let run = scene.answer(run).await;

        assert!(run.status.success(), "{}", stderr(&run));
        assert!(stderr(&run).matches("Failed to export").count() <= 1, "{}", stderr(&run));
        assert!(began.elapsed() < WAIT_MAX, "{:?}", began.elapsed());
        scene.until_there("a").await;
    }
    let scene = Scene::new(SHORT, Some(format!("http://{}", free_address())));
    let run = scene.answer(scene.tow(&["run"])).await;
    assert_eq!(stderr(&run).matches("Failed to export").count(), 1, "{}", stderr(&run));
    let wrong = Scene::new(SHORT, Some("http://no such place".to_owned()));
    let run = wrong.answer(wrong.tow(&["run"])).await;
    assert!(run.status.success() && stderr(&run).contains("Failed to export"), "{}", stderr(&run));
    drop(silent);
}
