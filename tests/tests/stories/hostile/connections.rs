//! Connections that are too many, too old, too busy, or say nothing.

use std::time::Duration;

use futures_util::future::join_all;
use http::HeaderValue;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_types::StatusExt as _;
use towpath_engine::ids::Digest;
use towpath_proto::streams::Records;
use towpath_proto::v1::{
    self, blobs_service_client::BlobsServiceClient, log_service_client::LogServiceClient,
    put_blob_request::Part, runs_service_client::RunsServiceClient,
    session_request::Message as ToServer,
};
use towpath_server::{Access, Limits};
use towpath_tests::{
    RealWorker, ScriptedWorker, TestServer, WAIT_MAX, code, file, start_request, succeeded,
};
use towpath_wire::dial::dial_tcp;
use towpath_worker::SessionLimits;

use super::{Besieged, GATES, LIST, ONE, frame, request, send, status};

#[tokio::test]
async fn more_streams_than_agreed_are_refused() {
    let besieged = Besieged::new().await;
    // A client that never completes the handshake is answered by the server, not by the transport.
    for agrees in [true, false] {
        let (refused, ended) = flood(&besieged, agrees, false).await;
        assert!(ended.is_some() || refused >= STREAMS - 128, "{refused} of {STREAMS}");
    }
    besieged.still_serves().await;
}

#[tokio::test]
async fn a_flood_of_resets_ends_its_connection() {
    const ENHANCE_YOUR_CALM: u8 = 11;
    let besieged = Besieged::new().await;
    for agrees in [true, false] {
        assert_eq!(flood(&besieged, agrees, true).await.1, Some(ENHANCE_YOUR_CALM));
    }
    besieged.still_serves().await;
}

/// Requests of one flood.
const STREAMS: u32 = 10_000;

/// Begins requests over one connection, none of which comes to its end, and takes all of them back
/// if it `resets`. Answers how many were refused, and why the connection ended.
async fn flood(besieged: &Besieged, agrees: bool, resets: bool) -> (u32, Option<u8>) {
    let mut raw = TcpStream::connect(&besieged.address).await.expect("a connection");
    let settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    raw.write_all(settings).await.expect("it is sent");
    let mut bytes = Vec::new();
    if agrees {
        let mut theirs = [0; 9];
        raw.read_exact(&mut theirs).await.expect("settings");
        let mut rest = vec![0; usize::from(theirs[2])];
        raw.read_exact(&mut rest).await.expect("settings");
        bytes.extend(b"\x00\x00\x00\x04\x01\x00\x00\x00\x00");
    }
    let mut head = vec![0x83, 0x86];
    for (index, value) in [(4_u8, LIST), (1, "localhost")] {
        head.extend([index, u8::try_from(value.len()).expect("a short value")]);
        head.extend(value.as_bytes());
    }
    let kind = b"application/grpc";
    // `content-type` is the 31st name that HTTP/2 knows.
    head.extend([0x0f, 31 - 15, kind.len() as u8]);
    head.extend(kind);
    for stream in (1..2 * STREAMS).step_by(2) {
        bytes.extend([0, 0, u8::try_from(head.len()).expect("a short head"), 1, 4]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(&head);
        if resets {
            bytes.extend([0, 0, 4, 3, 0]);
            bytes.extend(stream.to_be_bytes());
            bytes.extend([0, 0, 0, 8]);
        }
    }
    let (mut read, mut write) = raw.split();
    let writing = async { drop(write.write_all(&bytes).await) };
    let reading = async {
        let mut refused = 0;
        let mut frame = [0; 9];
        while refused < STREAMS - 128 && read.read_exact(&mut frame).await.is_ok() {
            let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
            let mut rest = vec![0; length as usize];
            if read.read_exact(&mut rest).await.is_err() {
                break;
            }
            if frame[3] == 7 {
                return (refused, Some(rest[7]));
            }
            // Answered at once, or reset as refused (7) or too much (11).
            let answered = frame[3] == 1 && frame[4] & 1 == 1;
            refused += u32::from(answered || frame[3] == 3 && [7, 11].contains(&rest[3]));
        }
        (refused, None)
    };
    let both = async { tokio::join!(writing, reading).1 };
    tokio::time::timeout(WAIT_MAX, both).await.expect("in time")
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed_and_one_that_asked_stays() {
    let short = Duration::from_millis(300);
    let besieged =
        Besieged::with(Limits { first_request_within: short, ..Limits::default() }).await;
    let mut runs = RunsServiceClient::new(besieged.channel());
    runs.list_runs(v1::ListRunsRequest::default()).await.expect("an answer");
    let beginnings: [&[u8]; 5] = [
        b"",
        b"P",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nx: ",
        b"\x16\x03\x01",
    ];

    let closed = join_all(beginnings.map(async |beginning| {
        let mut stream = TcpStream::connect(&besieged.address).await.expect("a connection");
        stream.write_all(beginning).await.expect("it is sent");
        let mut rest = Vec::new();
        tokio::time::timeout(WAIT_MAX, stream.read_to_end(&mut rest)).await.is_ok()
    }));

    assert_eq!(closed.await, [true; 5]);
    runs.list_runs(v1::ListRunsRequest::default()).await.expect("the same connection");
    besieged.still_serves().await;
}

#[tokio::test]
async fn frames_that_no_request_needs_are_not_read_for_ever_before_a_request() {
    const FRAMES: usize = 60_000;
    let short = Duration::from_secs(2);
    let besieged =
        Besieged::with(Limits { first_request_within: short, ..Limits::default() }).await;
    let ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00pingping";
    let settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    for frame in [&ping[..], settings] {
        let stream = TcpStream::connect(&besieged.address).await.expect("a connection");
        let (mut read, mut write) = stream.into_split();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(settings);
        bytes.extend(frame.repeat(FRAMES));
        let writing = tokio::spawn(async move { drop(write.write_all(&bytes).await) });
        let mut answers = Vec::new();
        let reading = tokio::time::timeout(WAIT_MAX, read.read_to_end(&mut answers));
        drop(reading.await.expect("the connection ends"));
        writing.abort();
        assert!(answers.len() <= 160 * 1024, "{} bytes of answers", answers.len());
    }
    besieged.still_serves().await;
}

/// The parts of an upload of `content`, its name first.
fn parts(content: &[u8], length: usize) -> Vec<v1::PutBlobRequest> {
    let sha256 = Digest::of(content).to_string();
    let name = v1::Blob { size: content.len() as u64, sha256 };
    let part = |part| v1::PutBlobRequest { part: Some(part) };
    let content = content.chunks(length).map(|piece| Part::Content(piece.to_vec().into()));
    std::iter::once(Part::Blob(name)).chain(content).map(part).collect()
}

#[tokio::test]
async fn an_upload_may_last_as_long_as_its_parts_come() {
    let within = Duration::from_secs(2);
    let besieged = Besieged::with(Limits { request_within: within, ..Limits::default() }).await;
    let mut blobs = BlobsServiceClient::new(besieged.channel());

    let slow = tokio_stream::iter(parts(b"0123456789", 2)).then(move |part| async move {
        tokio::time::sleep(within / 4).await;
        part
    });
    blobs.put_blob(slow).await.expect("six parts in one and a half times the time of one");

    let stalled = tokio_stream::iter(parts(b"abcdef", 2)).take(2).chain(tokio_stream::pending());
    let refused = tokio::time::timeout(WAIT_MAX, blobs.put_blob(stalled)).await.expect("in time");
    assert_eq!(code(&refused.expect_err("nothing more comes")), "REQUEST_TIMED_OUT");
    besieged.still_serves().await;
}

#[tokio::test]
async fn a_worker_at_a_port_takes_no_name_of_a_local_worker() {
    let besieged = Besieged::new().await;
    for name in [format!("local/{}", besieged.run), "local/".to_owned()] {
        let hello = v1::Hello { worker: name, slots: 1, ..Default::default() };
        let refused = ScriptedWorker::connect(besieged.channel(), hello).await.expect_err("a name");
        assert_eq!(code(&refused), "WORKER_NAME_RESERVED");
    }
    besieged.still_serves().await;
}

#[tokio::test]
async fn reflection_answers_in_both_versions_and_lists_health() {
    let besieged = Besieged::new().await;
    for version in ["v1", "v1alpha"] {
        // `list_services` of any host, as grpcurl asks.
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let mut raw = besieged.raw().await;
        let message = super::field(7, b"*");
        let asked = send(&mut raw, request(&path), frame(0, message.len(), &message), true);
        let (head, mut body) = asked.await.expect("an answer").into_parts();
        let mut said = Vec::new();
        while let Some(Ok(part)) = body.data().await {
            drop(body.flow_control().release_capacity(part.len()));
            said.extend_from_slice(&part);
        }
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(head.status, http::StatusCode::OK, "{version}");
        assert!(said.contains("grpc.health.v1.Health"), "{version}: {said}");
        assert!(said.contains("towpath.v1.RunsService"), "{version}: {said}");
    }
    besieged.still_serves().await;
}

#[tokio::test]
async fn one_connection_asks_so_much_at_once_and_no_more() {
    let besieged = Besieged::new().await;
    let mut raw = besieged.raw().await;
    // Requests that do not come to their end.
    let mut open = Vec::new();
    for _ in 0..64 {
        let (answer, mut stream) = raw.send_request(request(GATES), false).expect("a stream");
        stream.send_data(frame(0, 100, b"x"), false).expect("a body");
        open.push((answer, stream));
    }

    let refused = loop {
        let more = status(send(&mut raw, request(LIST), frame(0, 0, b""), true)).await;
        if more.code() != Code::Ok {
            break more;
        }
    };
    assert_eq!((refused.code(), &*code(&refused)), (Code::ResourceExhausted, "REQUESTS_TOO_MANY"));
    assert!(refused.get_error_details().retry_info().is_some());
    drop(open);
    let answered = async {
        while status(send(&mut raw, request(LIST), frame(0, 0, b""), true)).await.code() != Code::Ok
        {
        }
    };
    tokio::time::timeout(WAIT_MAX, answered).await.expect("there is room again");
    besieged.still_serves().await;
}

#[tokio::test]
async fn a_request_that_does_not_come_to_its_end_is_ended() {
    let short = Duration::from_millis(150);
    let besieged = Besieged::with(Limits { request_within: short, ..Limits::default() }).await;
    let mut raw = besieged.raw().await;
    let refused = status(send(&mut raw, request(LIST), frame(0, 100, b"x"), false)).await;
    assert_eq!((refused.code(), &*code(&refused)), (Code::DeadlineExceeded, "REQUEST_TIMED_OUT"));

    // A stream has no end.
    let follow = v1::FollowRequest { run: besieged.run.clone(), after: 0, follow: true };
    let mut log = LogServiceClient::new(besieged.channel());
    let mut records = Records::new(log.follow(follow).await.expect("a stream").into_inner());
    let more = async { while records.next().await.is_some_and(|record| record.is_ok()) {} };
    assert!(tokio::time::timeout(4 * short, more).await.is_err(), "the stream is still open");
    drop(records);
    besieged.still_serves().await;
}

#[tokio::test]
async fn the_time_that_a_client_gives_is_kept() {
    let besieged = Besieged::new().await;
    let mut hurried = request(LIST);
    hurried.headers_mut().insert("grpc-timeout", HeaderValue::from_static("100m"));
    let mut raw = besieged.raw().await;
    let refused = status(send(&mut raw, hurried, frame(0, 100, b"x"), false)).await;
    assert!([Code::Cancelled, Code::DeadlineExceeded].contains(&refused.code()), "{refused:?}");
    besieged.still_serves().await;
}

#[tokio::test]
async fn a_rate_limited_client_gets_a_time_to_retry() {
    let limits = Limits { rate: 2, burst: 3, ..Limits::default() };
    let besieged = Besieged::with(limits).await;
    let mut runs = RunsServiceClient::new(besieged.channel());
    let refused = loop {
        if let Err(refused) = runs.list_runs(v1::ListRunsRequest::default()).await {
            break refused;
        }
    };
    assert_eq!((refused.code(), &*code(&refused)), (Code::ResourceExhausted, "RATE_EXCEEDED"));
    let details = refused.get_error_details();
    let wait = details.retry_info().and_then(|info| info.retry_delay).expect("when to ask again");
    assert!(wait <= Duration::from_millis(500), "{wait:?}");
    // What has a stream already is not asked again: its messages are no requests.
    tokio::time::sleep(wait).await;
    let hello = v1::Hello { worker: "w".to_owned(), slots: 1, ..Default::default() };
    let mut worker = ScriptedWorker::connect(besieged.channel(), hello).await.expect("a session");
    let a = worker.take_job("a").await;
    for _ in 0..100 {
        worker.say(ToServer::Heartbeat(v1::Heartbeat {})).await;
    }
    // A session reads its messages in order: this one is answered after all the heartbeats.
    worker.report(&a, succeeded()).await;
    assert_eq!(besieged.server.count(&besieged.run, "job_succeeded").await, 1);
    besieged.server.close().await;
}

#[tokio::test]
async fn connections_beyond_the_bound_are_refused_and_free_their_place() {
    let besieged = Besieged::with(Limits { connections: 2, ..Limits::default() }).await;
    let mut first = besieged.raw().await;
    let second = besieged.raw().await;

    let mut third = besieged.raw().await;
    let refused = status(send(&mut third, request(LIST), frame(0, 0, b""), true)).await;
    assert_eq!(code(&refused), "CONNECTIONS_TOO_MANY");
    let answer = status(send(&mut first, request(LIST), frame(0, 0, b""), true)).await;
    assert_eq!(answer.code(), Code::Ok, "those that are there are not disturbed");

    drop((second, third));
    let room = async {
        loop {
            let mut next = besieged.raw().await;
            let asked = send(&mut next, request(LIST), frame(0, 0, b""), true);
            if status(asked).await.code() == Code::Ok {
                return;
            }
        }
    };
    tokio::time::timeout(WAIT_MAX, room).await.expect("there is room again");
    drop(first);
    tokio::time::timeout(WAIT_MAX, async {
        let asked = || RunsServiceClient::new(besieged.channel());
        while asked().list_runs(v1::ListRunsRequest::default()).await.is_err() {}
    })
    .await
    .expect("there is room again");
    besieged.still_serves().await;
}

#[tokio::test]
async fn a_client_that_dies_in_the_middle_leaves_nothing_behind() {
    let besieged = Besieged::new().await;
    let whole = start_request(&file(ONE)).file.expect("a file").content;
    for path in ["/towpath.v1.RunsService/StartRun", "/towpath.v1.RunsService/ImportRun"] {
        let mut stream = TcpStream::connect(&besieged.address).await.expect("a connection");
        stream.set_zero_linger().expect("a socket");
        let (mut raw, connection) = h2::client::handshake(&mut stream).await.expect("a handshake");
        let part = frame(0, whole.len() + 100, whole.as_ref());
        let (_answer, mut body) = raw.send_request(request(path), false).expect("a stream");
        body.send_data(part, false).expect("a body");
        drop(tokio::time::timeout(Duration::from_millis(50), connection).await);
    }
    besieged.still_serves().await;
}

#[tokio::test]
async fn sessions_and_streams_outlive_the_age_of_their_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    let age = Duration::from_millis(400);
    let server = TestServer::with_system_clock().await;
    let limits = Limits { connection_age: age, ..Limits::default() };
    let address = server.serve_guarded(Access { limits, ..Access::default() }).await;
    let dial = || dial_tcp(&address).expect("an address");
    let stay = SessionLimits { reconnect: true, ..SessionLimits::default() };
    let worker = RealWorker::begin_at(dial(), "w", 1, folder.path(), stay);
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, command: 'for n in 1 2 3 4 5; do echo $n; sleep 0.3; done; echo x >>ran'}\n";
    let mut begin = start_request(&file(yaml));
    begin.file.as_mut().expect("a file").folder = folder.path().display().to_string();
    let run = server.try_start(begin).await.expect("the run begins").id;

    // The same channel all the time: it connects again, and the stream continues where it was.
    let (mut log, mut after, mut aged) = (LogServiceClient::new(dial()), 0, 0);
    let mut kinds = Vec::new();
    let following = async {
        while kinds.last().is_none_or(|kind| kind != "run_finished") {
            let follow = v1::FollowRequest { run: run.clone(), after, follow: true };
            let mut records = match log.follow(follow).await {
                Ok(stream) => Records::new(stream.into_inner()),
                // On a busy machine a connection may reach its age before the first answer.
                Err(status) if status.code() == Code::Unavailable => continue,
                Err(status) => panic!("no stream: {status}"),
            };
            while let Some(record) = records.next().await {
                match record {
                    Ok(record) => {
                        after = record.version;
                        kinds.push(record.kind);
                    }
                    Err(status) => {
                        assert_eq!(
                            (status.code(), &*code(&status)),
                            (Code::Unavailable, "CONNECTION_AGED")
                        );
                        aged += 1;
                        break;
                    }
                }
                if kinds.last().is_some_and(|kind| kind == "run_finished") {
                    break;
                }
            }
        }
    };
    tokio::time::timeout(WAIT_MAX, following).await.expect("in time");

    assert!(aged >= 2, "the connection aged {aged} times");
    assert_eq!(kinds, server.kinds(&run).await, "no record twice, and none left out");
    assert_eq!(server.count(&run, "job_leased").await, 1);
    assert_eq!(server.phase(&run).await, "succeeded");
    assert_eq!(std::fs::read_to_string(folder.path().join("ran")).expect("it ran"), "x\n");
    worker.stop().await;
    server.close().await;
}
