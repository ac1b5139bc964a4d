//! Requests that a web page can make a browser send to a server on loopback without tokens, with
//! the browser itself where one is installed.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
};
use tonic::Code;
use towpath_tests::{WAIT_MAX, code, file, start_request};

use super::{Besieged, LIST, ONE, frame, request, send, status, told};

const START: &str = "/towpath.v1.RunsService/StartRun";
/// A start of Chromium on a busy machine takes some of it.
const BROWSER_WITHIN: Duration = Duration::from_secs(60);

/// A request that starts a run, in its gRPC frame.
fn start_body() -> Bytes {
    let message = start_request(&file(ONE)).encode_to_vec();
    frame(0, message.len(), &message)
}

/// The answer to one HTTP/1.1 request with `headers`.
async fn http1(address: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("the head is sent");
    stream.write_all(body).await.expect("the body is sent");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(WAIT_MAX, stream.read_to_end(&mut answer)).await;
    read.expect("in time").expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn grpc_methods_are_refused_over_http1_whatever_the_content_type() {
    let besieged = Besieged::new().await;
    let host = format!("Host: {}\r\n", besieged.address);
    for (content_type, expected) in [
        ("", "HTTP/1.1 415"),
        ("Content-Type: text/plain\r\n", "HTTP/1.1 415"),
        ("Content-Type: application/x-www-form-urlencoded\r\n", "HTTP/1.1 415"),
        ("Content-Type: application/grpc-web\r\n", "HTTP/1.1 415"),
        ("Content-Type: application/grpc\r\n", "HTTP/1.1 505"),
        ("Content-Type: application/grpc+proto\r\n", "HTTP/1.1 505"),
    ] {
        let headers = format!("{host}{content_type}");
        let answer = http1(&besieged.address, "POST", START, &headers, &start_body()).await;
        assert!(answer.starts_with(expected), "{content_type:?}: {answer}");
        assert!(answer.contains("error[PROTOCOL_UNSUPPORTED]: "), "{content_type:?}: {answer}");
    }
    // Health and reflection are gRPC services like the others.
    let health = "/grpc.health.v1.Health/Check";
    let answer = http1(&besieged.address, "POST", health, &host, b"").await;
    assert!(answer.contains("PROTOCOL_UNSUPPORTED"), "{answer}");
    besieged.still_serves().await;
}

#[tokio::test]
async fn grpc_methods_are_refused_over_http2_with_another_content_type() {
    let besieged = Besieged::new().await;
    for content_type in ["text/plain", "application/json", "application/grpc-web+proto"] {
        let mut foreign = request(START);
        let value = HeaderValue::from_static(content_type);
        foreign.headers_mut().insert("content-type", value);
        let mut raw = besieged.raw().await;
        let (status, _) = told(send(&mut raw, foreign, start_body(), true)).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
    let mut proto = request(LIST);
    let value = HeaderValue::from_static("application/grpc+proto");
    proto.headers_mut().insert("content-type", value);
    let mut raw = besieged.raw().await;
    let answer = status(send(&mut raw, proto, frame(0, 0, b""), true)).await;
    assert_eq!(answer.code(), Code::Ok, "{answer:?}");
    besieged.still_serves().await;
}

#[tokio::test]
async fn requests_with_the_marks_of_a_web_page_are_refused() {
    let besieged = Besieged::new().await;
    for (name, value) in [
        ("origin", "http://127.0.0.1:8000"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-origin"),
    ] {
        let mut marked = request(START);
        marked.headers_mut().insert(name, HeaderValue::from_static(value));
        let mut raw = besieged.raw().await;
        let refused = status(send(&mut raw, marked, start_body(), true)).await;
        let found = (refused.code(), code(&refused));
        assert_eq!(found, (Code::PermissionDenied, "ORIGIN_REFUSED".to_owned()), "{name}: {value}");
    }
    besieged.still_serves().await;
}

#[tokio::test]
async fn a_server_on_loopback_answers_to_loopback_names_only() {
    let besieged = Besieged::new().await;
    let authority = |authority: &str| {
        let mut named = request(LIST);
        *named.uri_mut() = format!("http://{authority}{LIST}").parse().expect("an address");
        named
    };
    for name in ["evil.example", "evil.example:7433", "127.0.0.1.evil.example", "192.0.2.7:80"] {
        let mut raw = besieged.raw().await;
        let refused = status(send(&mut raw, authority(name), frame(0, 0, b""), true)).await;
        assert_eq!(code(&refused), "HOST_REFUSED", "{name}");
        let answer =
            http1(&besieged.address, "GET", "/metrics", &format!("Host: {name}\r\n"), b"").await;
        assert!(answer.starts_with("HTTP/1.1 421"), "{name}: {answer}");
        assert!(answer.contains("error[HOST_REFUSED]: "), "{name}: {answer}");
        assert!(!answer.contains("towpath_runs"), "{name}: {answer}");
    }
    for name in ["localhost", "LOCALHOST:7433", "tow.localhost:1", "127.0.0.9:1", "[::1]:7433"] {
        let mut raw = besieged.raw().await;
        let answer = status(send(&mut raw, authority(name), frame(0, 0, b""), true)).await;
        assert_eq!(answer.code(), Code::Ok, "{name}: {answer:?}");
    }
    besieged.still_serves().await;
}

#[tokio::test]
async fn paths_that_are_no_method_are_not_found() {
    let besieged = Besieged::new().await;
    let host = format!("Host: {}\r\n", besieged.address);
    for path in ["/", "/favicon.ico", "/metrics/", "/console", "/a/b/c"] {
        let answer = http1(&besieged.address, "GET", path, &host, b"").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    let mut raw = besieged.raw().await;
    let unknown = status(send(&mut raw, request("/x.Y/Z"), frame(0, 0, b""), true)).await;
    assert_eq!(unknown.code(), Code::Unimplemented, "gRPC clients get a gRPC status");
    besieged.still_serves().await;
}

/// Chromium, if it is installed.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let programs = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::split_paths(&path)
        .flat_map(|folder| programs.map(|program| folder.join(program)))
        .find(|program| program.is_file());
    if found.is_none() {
        eprintln!("skipped: no Chromium on this machine, so no page was opened in a browser");
    }
    found
}

/// A browser that knows `profile` and nothing else, and opens `page` when it is started.
fn browser(chromium: &Path, profile: &Path, page: &str) -> Command {
    let mut browser = Command::new(chromium);
    browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.display()))
        // What a DNS server under an attacker's control answers.
        .arg("--host-resolver-rules=MAP evil.example 127.0.0.1")
        .args(["--dump-dom", "--virtual-time-budget=10000", page])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    browser
}

/// Serves `page` on `listener`, and comes back when the page asks for `/done`.
async fn serve_page(listener: TcpListener, page: String) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut asked = vec![0; 4096];
        let read = stream.read(&mut asked).await.unwrap_or_default();
        let done = asked[..read].starts_with(b"GET /done");
        let body = if done { "" } else { &page };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        drop(stream.write_all(answer.as_bytes()).await);
        if done {
            return;
        }
    }
}

#[tokio::test]
async fn a_page_in_a_browser_starts_no_run() {
    let Some(chromium) = chromium() else { return };
    let besieged = Besieged::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let origin = listener.local_addr().expect("an address");
    let target = format!("http://{}{START}", besieged.address);
    let body = start_body().to_vec();
    let page = format!(
        "<script>
const body = new Uint8Array({body:?});
fetch({target:?}, {{mode: 'no-cors', method: 'POST', body}})
    .catch(() => {{}}).finally(() => fetch('/done'));
</script>"
    );
    let profile = tempfile::tempdir().expect("a folder");
    let page_url = format!("http://{origin}/");
    let mut running = browser(&chromium, profile.path(), &page_url);
    let mut running = running.stdout(Stdio::null()).spawn().expect("Chromium starts");

    let done = tokio::time::timeout(BROWSER_WITHIN, serve_page(listener, page)).await;
    done.expect("the page has sent its request and says so");

    running.kill().await.expect("Chromium ends");
    besieged.still_serves().await;
}

#[tokio::test]
async fn a_page_of_a_name_that_points_to_loopback_reads_no_metrics() {
    let Some(chromium) = chromium() else { return };
    let besieged = Besieged::new().await;
    let port = besieged.address.rsplit_once(':').expect("a port").1;
    let profile = tempfile::tempdir().expect("a folder");
    let page = format!("http://evil.example:{port}/metrics");
    let opened = browser(&chromium, profile.path(), &page).output();
    let opened = tokio::time::timeout(BROWSER_WITHIN, opened).await.expect("in time");
    let dom = String::from_utf8_lossy(&opened.expect("Chromium starts").stdout).into_owned();
    assert!(dom.contains("HOST_REFUSED") && !dom.contains("towpath_runs"), "{dom}");
    besieged.still_serves().await;
}
