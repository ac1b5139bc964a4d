//! The services on one port: gRPC, health and reflection, over whatever carries bytes. Pipes and
//! sockets of this machine are in `local`; here is the port for other machines.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::transport::{
    Channel, Endpoint, Error, Server,
    server::{Connected, TcpIncoming},
};
use tonic_health::{ServingStatus, pb::health_server::HealthServer, server::HealthService};
use towpath_proto::{
    DESCRIPTORS,
    externalscaler::external_scaler_server::ExternalScalerServer,
    v1::{
        gates_server::GatesServer, log_server::LogServer, runs_server::RunsServer,
        workers_server::WorkersServer,
    },
};

use crate::{House, metrics};

/// Largest message that is read: a pipeline file and what surrounds it.
const MESSAGE_BYTES_MAX: usize = 18 * 1024 * 1024;
/// Streams of one connection.
const STREAMS_MAX: u32 = 128;
/// Requests of one connection that are worked on at once.
const REQUESTS_MAX: usize = 64;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// More often than leases lapse: a worker must notice in time that its server is gone.
const DIALLED_KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(10);
pub(crate) const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

impl House {
    /// Serves whoever connects to `listener`, in the clear, until the house closes. Answers the
    /// address that it listens on.
    pub fn serve(&self, listener: TcpListener) -> io::Result<SocketAddr> {
        let address = listener.local_addr()?;
        self.spawn_serving(TcpIncoming::from(listener).with_nodelay(Some(true)));
        Ok(address)
    }

    /// Serves the connections that come in, whatever they are made of.
    pub(crate) fn spawn_serving<S, IO>(&self, incoming: S)
    where
        S: Stream<Item = io::Result<IO>> + Send + 'static,
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let house = self.clone();
        let (stop, cut) = (self.stopping().clone(), self.cutting().clone());
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
            let health = HealthService::from_health_reporter(house.health().clone());
            let served = Server::builder()
                .max_concurrent_streams(STREAMS_MAX)
                .concurrency_limit_per_connection(REQUESTS_MAX)
                .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
                .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(STREAM_WINDOW_BYTES * 4)
                .accept_http1(true)
                .add_routes(metrics::routes(house.clone()))
                .add_service(HealthServer::new(health))
                .add_service(reflection)
                .add_service(
                    RunsServer::new(house.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
                )
                .add_service(GatesServer::new(house.clone()))
                .add_service(LogServer::new(house.clone()))
                .add_service(ExternalScalerServer::new(house.clone()))
                .add_service(WorkersServer::new(house))
                .serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
            tokio::select! {
                served = served => if let Err(error) = served {
                    tracing::warn!(%error, "a connection ended badly");
                },
                // Streams watch the same sign as the server; this ends those that do not.
                () = cut.cancelled() => {}
            }
        });
    }

    /// Says to whoever asks after its health whether this server wants to be asked.
    pub(crate) async fn set_health(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", "towpath.v1.Runs", "towpath.v1.Workers"] {
            self.health().set_service_status(service, status).await;
        }
    }
}

/// A client of the server at `address`, such as `127.0.0.1:7433`. It connects with the first
/// request, and anew with the next whenever the connection was lost.
pub fn dial_tcp(address: &str) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint
        .connect_timeout(CONNECT_WITHIN)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(DIALLED_KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_WITHIN)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES * 4)
        .connect_lazy())
}
