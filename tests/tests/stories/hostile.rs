//! Clients that mean harm, or are broken: each is refused by name, writes nothing, and disturbs
//! nobody else.

mod browsers;
mod connections;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, transport::Channel};
use towpath_proto::streams::Records;
use towpath_proto::v1::{
    self, log_service_client::LogServiceClient, runs_service_client::RunsServiceClient,
    session_request::Message as ToServer,
};
use towpath_server::{Access, Limits};
use towpath_tests::{ScriptedWorker, TestServer, WAIT_MAX, code, file};
use towpath_wire::dial::dial_tcp;

const ONE: &str = "stages: [s]\njobs:\n  a: {stage: s, command: x}\n";
const MIB: usize = 1024 * 1024;
const LIST: &str = "/towpath.v1.RunsService/ListRuns";
const GATES: &str = "/towpath.v1.GatesService/ListGates";

/// A server with one run, and a port of it.
struct Besieged {
    server: TestServer,
    address: String,
    run: String,
}

impl Besieged {
    async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        let server = TestServer::with_system_clock().await;
        let address = server.serve_guarded(Access { limits, ..Access::default() }).await;
        let run = server.start(&file(ONE)).await;
        Self { server, address, run }
    }

    /// An honest client of its own connection.
    fn channel(&self) -> Channel {
        dial_tcp(&self.address).expect("an address")
    }

    async fn raw(&self) -> SendRequest<Bytes> {
        let stream = TcpStream::connect(&self.address).await.expect("a connection");
        let (send, connection) = h2::client::handshake(stream).await.expect("a handshake");
        tokio::spawn(connection);
        send.ready().await.expect("a connection that takes requests")
    }

    /// A proper client is answered, and the log is as it was after the run began.
    async fn still_serves(self) {
        let asked =
            RunsServiceClient::new(self.channel()).list_runs(v1::ListRunsRequest::default()).await;
        assert_eq!(asked.expect("an answer").into_inner().runs.len(), 1);
        assert_eq!(
            self.server.records("", 0).await.len(),
            self.server.records(&self.run, 0).await.len()
        );
        assert_eq!(self.server.count(&self.run, "job_leased").await, 0);
        self.server.close().await;
    }
}

/// A request as every gRPC client makes it.
fn request(path: &str) -> Request<()> {
    Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request")
}

/// `message` in its frame, which says that it has `length` bytes.
fn frame(flag: u8, length: usize, message: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(flag);
    framed.put_u32(u32::try_from(length).expect("a length"));
    framed.put_slice(message);
    framed.freeze()
}

/// Sends `body`, as far as the server takes it.
fn send(
    to: &mut SendRequest<Bytes>,
    request: Request<()>,
    body: Bytes,
    end: bool,
) -> ResponseFuture {
    let (answer, mut stream) = to.send_request(request, false).expect("a stream");
    stream.send_data(body, end).expect("a body");
    if !end {
        // Dropping the stream resets it.
        tokio::spawn(async move { std::future::poll_fn(|cx| stream.poll_reset(cx)).await });
    }
    answer
}

/// The headers of the answer, with its trailers.
async fn told(answer: ResponseFuture) -> (StatusCode, HeaderMap) {
    let answer = tokio::time::timeout(WAIT_MAX, answer).await.expect("in time");
    let (head, mut body) = answer.expect("an answer").into_parts();
    let mut headers = head.headers;
    while let Some(Ok(part)) = body.data().await {
        drop(body.flow_control().release_capacity(part.len()));
    }
    headers.extend(body.trailers().await.ok().flatten().unwrap_or_default());
    (head.status, headers)
}

async fn status(answer: ResponseFuture) -> Status {
    Status::from_header_map(&told(answer).await.1).expect("a gRPC status")
}

/// How the server answers `message` at `path`.
async fn answered(besieged: &Besieged, path: &str, message: &[u8]) -> Status {
    let mut raw = besieged.raw().await;
    status(send(&mut raw, request(path), frame(0, message.len(), message), true)).await
}

/// The field `number` with `bytes` in it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![(number << 3) | 2];
    let mut left = bytes.len();
    while left >= 0x80 {
        message.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    message.push(left as u8);
    message.extend_from_slice(bytes);
    message
}

#[tokio::test]
async fn a_message_of_one_byte_too_many_is_refused_by_name() {
    let besieged = Besieged::new().await;
    let most = |bytes: usize| field(1, &vec![b'x'; bytes - 4]);
    assert_eq!(most(MIB).len(), MIB);

    let fits = answered(&besieged, GATES, &most(MIB)).await;
    assert_eq!(code(&fits), "RUN_UNKNOWN", "it was read");
    let refused = answered(&besieged, GATES, &most(MIB + 1)).await;
    assert_eq!((refused.code(), &*code(&refused)), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    // Of `Runs` more is read, because pipeline files may be large.
    let (run, fits) = ("/towpath.v1.RunsService/GetRun", most(2 * MIB));
    assert_eq!(code(&answered(&besieged, run, &fits).await), "RUN_UNKNOWN");
    besieged.still_serves().await;
}

#[tokio::test]
async fn an_announced_gigabyte_is_refused_before_it_comes() {
    let besieged = Besieged::new().await;
    for path in [LIST, GATES, "/towpath.v1.LogService/Follow", "/towpath.v1.WorkersService/Session"]
    {
        let mut raw = besieged.raw().await;
        let refused = status(send(&mut raw, request(path), frame(0, 1 << 30, b""), false)).await;
        assert_eq!(code(&refused), "MESSAGE_TOO_LARGE", "{path}");
    }
    besieged.still_serves().await;
}

#[tokio::test]
async fn a_part_that_names_no_attempt_is_refused() {
    let besieged = Besieged::new().await;
    let channel = besieged.channel();
    for message in [
        ToServer::Output(v1::Output { content: vec![0; 1].into(), ..Default::default() }),
        ToServer::Artifact(v1::ArtifactPart { content: vec![0; 1].into(), ..Default::default() }),
    ] {
        let hello = v1::Hello { worker: "w".to_owned(), draining: true, ..Default::default() };
        let mut worker = ScriptedWorker::connect(channel.clone(), hello).await.expect("a session");
        worker.say(message).await;
        assert_eq!(code(&worker.refusal().await), "MESSAGE_INVALID");
    }
    besieged.still_serves().await;
}

#[tokio::test]
async fn packed_messages_are_not_unpacked() {
    let besieged = Besieged::new().await;
    // A gigabyte of zeros is a megabyte of gzip; the first bytes are enough to be refused.
    let bomb = frame(
        1,
        20,
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xed\xc1\x31\x01\x00\x00\x00\xc2\xa0\xf5",
    );
    for encoding in ["gzip", "zstd", "deflate", "br", "nonsense"] {
        let mut packed = request(LIST);
        packed.headers_mut().insert("grpc-encoding", HeaderValue::from_static(encoding));
        let mut raw = besieged.raw().await;
        let refused = status(send(&mut raw, packed, bomb.clone(), true)).await;
        assert_eq!(
            (refused.code(), &*code(&refused)),
            (Code::Unimplemented, "COMPRESSION_REFUSED")
        );
    }
    let mut raw = besieged.raw().await;
    let unnamed = status(send(&mut raw, request(LIST), bomb, true)).await;
    assert_eq!(code(&unnamed), "MESSAGE_INVALID");
    besieged.still_serves().await;
}

#[tokio::test]
async fn what_is_no_message_is_refused_by_name() {
    let besieged = Besieged::new().await;
    let run = "/towpath.v1.RunsService/GetRun";
    let not_text = field(1, &[0xff, 0xfe, 0x80]);
    for message in [&not_text[..], &[0x0a, 0x7f, b'x'], &[0x0b], &[0xff; 12]] {
        let refused = answered(&besieged, run, message).await;
        assert_eq!((refused.code(), &*code(&refused)), (Code::InvalidArgument, "MESSAGE_INVALID"));
    }
    // A message that ends before its frame does, and one that is not there.
    let mut raw = besieged.raw().await;
    let cut = status(send(&mut raw, request(run), frame(0, 100, b"x"), true)).await;
    assert_eq!(code(&cut), "MESSAGE_INVALID");
    let none = status(send(&mut raw, request(run), Bytes::new(), true)).await;
    assert_eq!(code(&none), "MESSAGE_INVALID");
    // A request for a run without a file and without an actor.
    let empty = answered(&besieged, "/towpath.v1.RunsService/StartRun", b"").await;
    assert!(["MESSAGE_INVALID", "ARGUMENT_OUT_OF_BOUNDS"].contains(&&*code(&empty)), "{empty:?}");
    besieged.still_serves().await;
}

#[tokio::test]
async fn a_report_that_names_no_attempt_is_refused() {
    let besieged = Besieged::new().await;
    let mut worker = ScriptedWorker::connect(
        besieged.channel(),
        v1::Hello { worker: "w".to_owned(), slots: 1, draining: true, ..Default::default() },
    )
    .await
    .expect("a session");
    worker.say(ToServer::Report(v1::Report::default())).await;
    assert_eq!(code(&worker.refusal().await), "MESSAGE_INVALID");
    besieged.still_serves().await;
}

#[tokio::test]
async fn the_largest_numbers_are_answered_like_any_other() {
    let besieged = Besieged::new().await;
    let mut log = LogServiceClient::new(besieged.channel());
    for run in ["", &besieged.run] {
        let request = v1::FollowRequest { run: run.to_owned(), after: u64::MAX, follow: false };
        let mut records = Records::new(log.follow(request).await.expect("a stream").into_inner());
        assert!(records.next().await.is_none_or(|last| last.is_err()), "there is nothing there");
    }
    let mut runs = RunsServiceClient::new(besieged.channel());
    let request = v1::ListJobsRequest {
        run: besieged.run.clone(),
        page_size: u32::MAX,
        page_token: u64::MAX.to_string(),
        ..Default::default()
    };
    assert_eq!(runs.list_jobs(request).await.expect("a page").into_inner().jobs.len(), 0);
    let request = v1::ReadOutputRequest {
        run: besieged.run.clone(),
        job: "a".to_owned(),
        attempt: u32::MAX,
        follow: true,
    };
    let output = runs.read_output(request).await;
    if let Ok(output) = output {
        let all = tokio::time::timeout(WAIT_MAX, TestServer::collect(output.into_inner())).await;
        assert!(all.expect("in time").is_ok_and(|all| all.is_empty()));
    }
    besieged.still_serves().await;
}

#[tokio::test]
async fn headers_without_measure_are_refused_and_odd_ones_do_no_harm() {
    let besieged = Besieged::new().await;
    let mut large = request(LIST);
    large
        .headers_mut()
        .insert("x-large", HeaderValue::from_bytes(&[b'x'; 64 * 1024]).expect("a value"));
    let mut raw = besieged.raw().await;
    let answer = send(&mut raw, large, frame(0, 0, b""), true);
    match tokio::time::timeout(WAIT_MAX, answer).await.expect("in time") {
        Ok(answer) => assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        Err(error) => assert!(error.is_remote(), "{error}"),
    }

    let odd: Vec<u8> = (0x80..=0xff).collect();
    for name in ["x-odd", "authorization", "grpc-timeout", "grpc-encoding", "user-agent"] {
        let mut strange = request(LIST);
        strange.headers_mut().insert(name, HeaderValue::from_bytes(&odd).expect("a value"));
        let mut raw = besieged.raw().await;
        let (answered, headers) = told(send(&mut raw, strange, frame(0, 0, b""), true)).await;
        assert!(answered == StatusCode::OK || answered.is_client_error(), "{name}: {headers:?}");
    }
    besieged.still_serves().await;
}
