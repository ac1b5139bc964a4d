//! The same server without a port: over a pipe within this process, and over a socket in the
//! store's folder for the other programs of its owner.

use std::{fs, io, os::unix::fs::FileTypeExt as _, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{
    io::DuplexStream,
    net::{UnixListener, UnixStream},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Server, Uri, server::Connected};
use towpath_proto::{
    DESCRIPTORS,
    v1::{
        gates_server::GatesServer, log_server::LogServer, runs_server::RunsServer,
        workers_server::WorkersServer,
    },
};

use crate::House;

/// The address a local client seems to talk to.
pub const LOCAL_URI: &str = "http://local";

/// Bytes on the way in one direction of a pipe.
const PIPE_BYTES: usize = 256 * 1024;
/// Largest message that is read: a pipeline file and what surrounds it.
const MESSAGE_BYTES_MAX: usize = 18 * 1024 * 1024;
/// Streams of one connection.
const STREAMS_MAX: u32 = 128;
/// Requests of one connection that are worked on at once.
const REQUESTS_MAX: usize = 64;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(10);
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

impl House {
    /// A client of this server, over a pipe.
    pub fn connect(&self) -> Channel {
        let (client_end, server_end) = tokio::io::duplex(PIPE_BYTES);
        // Never ends: the server closes its connections when there are no more to come.
        let incoming = tokio_stream::once(Ok::<DuplexStream, io::Error>(server_end))
            .chain(tokio_stream::pending());
        self.spawn_serving(incoming);
        let mut client_end = Some(client_end);
        let dial = tower::service_fn(move |_: Uri| {
            let end = client_end.take().ok_or_else(|| io::Error::other("the server is gone"));
            async move { end.map(TokioIo::new) }
        });
        endpoint().connect_with_connector_lazy(dial)
    }

    /// Listens on the socket in the store's folder, which only its owner may enter.
    pub fn listen_locally(&self) -> io::Result<()> {
        let path = self.socket();
        // Ours alone: the owner's lock is held, so whatever is there is left over.
        if fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket()) {
            fs::remove_file(&path)?;
        }
        let listener = UnixListener::bind(&path)?;
        self.spawn_serving(UnixListenerStream::new(listener));
        Ok(())
    }

    fn spawn_serving<S, IO>(&self, incoming: S)
    where
        S: Stream<Item = io::Result<IO>> + Send + 'static,
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let house = self.clone();
        let stop = self.stopping().clone();
        self.tasks().spawn(async move {
            let reflection = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .build_v1();
            let reflection = match reflection {
                Ok(reflection) => reflection,
                Err(error) => {
                    tracing::error!(%error, "the contract cannot describe itself");
                    return;
                }
            };
            let (health, health_service) = tonic_health::server::health_reporter();
            health.set_serving::<RunsServer<Self>>().await;
            let stopping = house.stopping().clone();
            let served = Server::builder()
                .max_concurrent_streams(STREAMS_MAX)
                .concurrency_limit_per_connection(REQUESTS_MAX)
                .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
                .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(STREAM_WINDOW_BYTES * 4)
                .add_service(health_service)
                .add_service(reflection)
                .add_service(
                    RunsServer::new(house.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
                )
                .add_service(GatesServer::new(house.clone()))
                .add_service(LogServer::new(house.clone()))
                .add_service(WorkersServer::new(house))
                .serve_with_incoming_shutdown(incoming, async move { stopping.cancelled().await });
            tokio::select! {
                served = served => if let Err(error) = served {
                    tracing::warn!(%error, "a connection ended badly");
                },
                // Streams watch the same sign; this bounds the wait for those that do not.
                () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_secs(2)).await } => {}
            }
        });
    }
}

/// A client of the server that listens on the socket at `path`.
pub async fn dial_socket(path: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let dial = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint().connect_with_connector(dial).await
}

fn endpoint() -> Endpoint {
    Endpoint::from_static(LOCAL_URI)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES * 4)
}
