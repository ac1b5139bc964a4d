//! Watching the server: `/metrics` over plain HTTP, and the demand for workers.

use std::collections::BTreeMap;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_stream::StreamExt as _;
use tonic::Streaming;
use towpath_proto::{
    externalscaler::{
        GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient,
    },
    v1::{self, workers_service_client::WorkersServiceClient},
};
use towpath_tests::{TestServer, file, on_a_runtime, succeeded};
use towpath_wire::dial::dial_tcp;

const ANYWHERE: &str = "127.0.0.1:0";
const MIXED: &str = "stages: [s]
jobs:
  gated: {stage: s, command: x, when: manual}
  plain: {stage: s, command: x}
  more: {stage: s, command: x}
  far: {stage: s, command: x, tags: [eu, big]}
";

/// The answer to a plain `GET`: its head and its body.
async fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("a reader");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer in text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

/// Every series of `/metrics` with its value.
async fn scrape(address: &str) -> BTreeMap<String, f64> {
    let (head, body) = get(address, "/metrics").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let series = body.lines().filter(|line| !line.starts_with('#'));
    let pairs = series.map(|line| line.rsplit_once(' ').expect("a series and its value"));
    pairs.map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect()
}

async fn position(server: &TestServer) -> f64 {
    let described = server.log().describe(v1::DescribeRequest {}).await.expect("a description");
    described.into_inner().position as f64
}

#[tokio::test]
async fn the_figures_are_what_the_views_say() {
    let server = TestServer::in_memory().await;
    let address = server.serve(ANYWHERE).await;
    let run = server.start(&file(MIXED)).await;
    let hello = v1::Hello {
        worker: "w".to_owned(),
        slots: 1,
        tags: vec!["x".to_owned()],
        ..Default::default()
    };
    let mut worker = server.worker_like(hello).await;
    let plain = worker.take_job("plain").await;
    server.pass(5_000).await;

    let metrics = scrape(&address).await;

    let counts = server.counts(&run).await;
    for (state, count) in [
        ("waiting", counts.waiting),
        ("at_gate", counts.at_gate),
        ("running", counts.running),
        ("succeeded", counts.succeeded),
    ] {
        assert_eq!(metrics[&format!("towpath_jobs{{state=\"{state}\"}}")], f64::from(count));
    }
    let records = server.records("", 0).await.len() as f64;
    for (series, value) in [
        ("towpath_runs{phase=\"running\"}", 1.0),
        ("towpath_runs{phase=\"failed\"}", 0.0),
        ("towpath_gates_waiting", 1.0),
        ("towpath_gates_oldest_age_seconds", 5.0),
        ("towpath_jobs_ready{tags=\"\"}", 1.0),
        ("towpath_jobs_ready{tags=\"big,eu\"}", 1.0),
        ("towpath_jobs_leased{tags=\"\"}", 1.0),
        ("towpath_leases_held{tags=\"x\"}", 1.0),
        ("towpath_workers_connected{tags=\"x\"}", 1.0),
        ("towpath_slots{tags=\"x\"}", 1.0),
        ("towpath_slots_free{tags=\"x\"}", 0.0),
        ("towpath_leases_lost_total", 0.0),
        ("towpath_store_info{kind=\"memory\"}", 1.0),
        ("towpath_log_position", position(&server).await),
        ("towpath_events_total", records),
    ] {
        assert_eq!(metrics.get(series), Some(&value), "{series} in {metrics:#?}");
    }
    worker.report(&plain, succeeded()).await;
    assert_eq!(scrape(&address).await["towpath_jobs{state=\"succeeded\"}"], 1.0);
}

#[tokio::test]
async fn one_port_speaks_grpc_and_plain_http() {
    let server = TestServer::in_memory().await;
    let address = server.serve(ANYWHERE).await;

    let (head, _) = get(&address, "/nothing").await;
    let mut workers = WorkersServiceClient::new(dial_tcp(&address).expect("an address"));
    let listed = workers.list_workers(v1::ListWorkersRequest::default()).await.expect("an answer");

    assert!(!head.contains("openmetrics"), "{head}");
    assert!(listed.into_inner().workers.is_empty());
    scrape(&address).await;
}

#[test]
fn what_is_counted_in_the_log_survives_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let kept = |metrics: &BTreeMap<String, f64>| -> BTreeMap<String, f64> {
        let lasting = ["towpath_runs", "towpath_jobs", "towpath_gates_w", "towpath_log_position"];
        let lasts = |name: &String| lasting.iter().any(|lasting| name.starts_with(lasting));
        metrics.clone().into_iter().filter(|(name, _)| lasts(name)).collect()
    };
    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let address = server.serve(ANYWHERE).await;
        server.start(&file(MIXED)).await;
        let ended = server.start(&file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n")).await;
        server.cancel(&ended).await.expect("the run ends");
        let before = scrape(&address).await;
        server.close().await;

        let server = TestServer::in_folder(folder.path()).await;
        let after = scrape(&server.serve(ANYWHERE).await).await;

        assert_eq!(kept(&after), kept(&before));
        assert_eq!(after["towpath_runs{phase=\"cancelled\"}"], 1.0);
        assert!(before["towpath_appends_total"] > 0.0);
        assert_eq!(after["towpath_appends_total"], 0.0, "since this server began");
        server.close().await;
    });
}

/// What is wanted and what is held, each in all.
async fn next(demand: &mut Streaming<v1::WatchDemandResponse>) -> (u64, u64) {
    let told = demand.next().await.expect("the stream continues").expect("demand");
    let told = told.demand.expect("demand");
    let pending = told.sets.iter().map(|set| set.pending).sum();
    (pending, told.sets.iter().map(|set| set.leased).sum())
}

#[tokio::test]
async fn demand_is_sent_at_once_and_on_every_change() {
    let server = TestServer::in_memory().await;
    let watch = |tags: &[&str], all: bool| {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let mut workers = server.workers();
        async move {
            let request = v1::WatchDemandRequest { tags, all };
            workers.watch_demand(request).await.expect("a stream").into_inner()
        }
    };
    let mut plain = watch(&[], false).await;
    assert_eq!(next(&mut plain).await, (0, 0));

    server.start(&file(MIXED)).await;
    assert_eq!(next(&mut plain).await, (2, 0), "what asks for no tags");
    let mut worker = server.worker("w", 1).await;
    worker.take_job("plain").await;
    assert_eq!(next(&mut plain).await, (1, 1));

    assert_eq!(next(&mut watch(&["eu", "big", "x"], false).await).await, (2, 1));
    assert_eq!(next(&mut watch(&["eu"], false).await).await, (1, 1));
    assert_eq!(next(&mut watch(&[], true).await).await, (2, 1));
}

#[tokio::test]
async fn keda_gets_one_worker_for_each_job_that_needs_or_has_one() {
    let server = TestServer::in_memory().await;
    let address = server.serve(ANYWHERE).await;
    let mut keda = ExternalScalerClient::new(dial_tcp(&address).expect("an address"));
    let object = |tags: &str| ScaledObjectRef {
        scaler_metadata: [("tags".to_owned(), tags.to_owned())].into(),
        ..Default::default()
    };
    let mut active = keda.stream_is_active(object("")).await.expect("a stream").into_inner();
    assert!(!active.next().await.expect("an answer").expect("an answer").result);
    assert!(!keda.is_active(object("eu,big")).await.expect("an answer").into_inner().result);

    server.start(&file(MIXED)).await;
    let mut worker = server.worker("w", 1).await;
    worker.take_job("plain").await;

    assert!(active.next().await.expect("an answer").expect("an answer").result);
    let spec = keda.get_metric_spec(object("")).await.expect("an answer").into_inner();
    assert_eq!((spec.metric_specs.len(), spec.metric_specs[0].target_size), (1, 1));
    for (tags, value) in [("", 2), ("eu, big", 3)] {
        let request = GetMetricsRequest {
            scaled_object_ref: Some(object(tags)),
            metric_name: spec.metric_specs[0].metric_name.clone(),
        };
        let told = keda.get_metrics(request).await.expect("an answer").into_inner().metric_values;
        assert_eq!((told[0].metric_value, told[0].metric_value_float), (value, value as f64));
    }
}
