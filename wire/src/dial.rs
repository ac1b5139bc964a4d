//! Connections to servers: over the socket in a store's folder, and over TCP with and without TLS.

use std::{fmt, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity, Uri};

/// The address a local client seems to talk to.
pub const LOCAL_URI: &str = "http://local";

/// Bytes that one stream may have under way before its reader has taken them. A connection may
/// have four times as many.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// How long a ping may stay unanswered before its connection is closed.
pub const KEEPALIVE_WITHIN: Duration = Duration::from_secs(10);

/// More often than leases lapse: a worker must notice in time that its server has failed.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// What a client knows servers by, and itself.
#[derive(Clone, Debug)]
pub struct DialTls {
    /// The authority of the server, in PEM.
    pub ca: Vec<u8>,
    /// The client's own certificate, if it is a worker.
    pub own: Option<PemPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct PemPair {
    /// The certificate.
    pub certificate: Vec<u8>,
    /// The key.
    pub key: Vec<u8>,
}

impl PemPair {
    /// The two as the transport takes them.
    pub fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }
}

// By hand: the key must not reach a log.
impl fmt::Debug for PemPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PemPair(..)")
    }
}

/// A client of the server that listens on the socket at `path`.
pub async fn dial_socket(path: PathBuf) -> Result<Channel, Error> {
    let dial = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // Not for the pipe within one process: both ends of that are stopped and continued together.
    with_pings(local_endpoint()).connect_with_connector(dial).await
}

/// How a client on the same machine is connected, whatever carries its bytes.
pub fn local_endpoint() -> Endpoint {
    Endpoint::from_static(LOCAL_URI)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES * 4)
}

/// A client of the server at `address`, such as `127.0.0.1:7433`, in the clear. It connects with
/// the first request, and again with the next whenever the connection was lost.
pub fn dial_tcp(address: &str) -> Result<Channel, Error> {
    Ok(lasting(Endpoint::from_shared(format!("http://{address}"))?))
}

/// As [`dial_tcp`], to a server that proves who it is.
pub fn dial_tls(address: &str, tls: &DialTls) -> Result<Channel, Error> {
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
    if let Some(own) = &tls.own {
        config = config.identity(own.identity());
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?;
    Ok(lasting(endpoint.tls_config(config)?))
}

// The pings notice a server whose machine has failed, or whose process is stopped; without them a
// worker would wait for the timeout of TCP, which is many minutes, and a client of a socket for ever.
fn with_pings(endpoint: Endpoint) -> Endpoint {
    endpoint
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_WITHIN)
        .keep_alive_while_idle(true)
}

fn lasting(endpoint: Endpoint) -> Channel {
    with_pings(endpoint)
        .connect_timeout(CONNECT_WITHIN)
        // Reports and leases are small messages that wait for an answer.
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES * 4)
        // The server may not be there yet: a worker is started before its server, or survives its
        // restart.
        .connect_lazy()
}
