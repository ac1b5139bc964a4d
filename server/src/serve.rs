//! The services on one port: gRPC, health and reflection, over whatever carries bytes. Pipes and
//! sockets of this machine are in `local`; here is the port for other machines.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{
    Certificate, Error, Server as TonicServer, ServerTlsConfig,
    server::{Connected, TcpIncoming},
};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use towpath_proto::DESCRIPTORS;
use towpath_wire::dial::{KEEPALIVE_WITHIN, PemPair, STREAM_WINDOW_BYTES};

use crate::{
    auth::{
        certificates::{Certificates, CertificatesError},
        guard::{AccessRule, Port},
        oidc::{Oidc, OidcError, OidcSettings},
        origin::Names,
        tokens::Tokens,
    },
    connections::Connections,
    limits::{
        ANSWER_BYTES_MAX, HANDSHAKE_WITHIN, HEADER_BYTES_MAX, Limits, MESSAGE_BYTES_MAX,
        RESETS_MAX, Rates, STREAMS_MAX,
    },
    metrics::{self, Metrics},
    open_log::OpenLog,
    rpc::Services,
    telemetry::calls::RequestSpanLayer,
};

const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// Pause after a connection that could not be taken.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How clients authenticate at a port.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Nobody is let in without proof; else only once the store has tokens.
    pub strict: bool,
    /// Connections are encrypted, and the server proves who it is.
    pub tls: Option<ServeTls>,
    /// An issuer whose ID tokens are taken beside the store's own.
    pub oidc: Option<OidcSettings>,
    /// The name under which the port was asked for: clients use it, too.
    pub name: Option<String>,
    /// The bounds of the port.
    pub limits: Limits,
}

/// What a server proves itself with.
#[derive(Clone, Debug)]
pub struct ServeTls {
    /// Its own certificate.
    pub own: PemPair,
    /// The authority of the workers, in PEM; `None`: certificates of clients are not asked for.
    pub client_ca: Option<Vec<u8>>,
    /// The authority's list of certificates that it has taken back. It is read again when it
    /// changes.
    pub client_crl: Option<PathBuf>,
}

/// Why a port cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port itself.
    #[error(transparent)]
    Port(#[from] io::Error),
    /// A certificate or key that cannot be used.
    #[error("the certificates cannot be used")]
    Tls(#[from] Error),
    /// The authority of the workers, or its list.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// The keys of an issuer of tokens.
    #[error(transparent)]
    Oidc(#[from] OidcError),
}

/// What every way into the server shares: the services, and what ends them.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    services: Services,
    metrics: Metrics,
    health: HealthReporter,
    /// Cancelled when streams and tasks are to end.
    stop: CancellationToken,
    /// Cancelled when connections are cut off that do not end by themselves.
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Serving {
    /// Serves `services` until `stop` is cancelled, by tasks among `tasks`.
    pub(crate) fn new(
        services: Services,
        metrics: Metrics,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        let (health, cut) = (HealthReporter::new(), CancellationToken::new());
        Self { services, metrics, health, stop, cut, tasks }
    }

    /// Ends every stream and task. What has not ended after `within` is cut off; answers whether all
    /// had.
    pub(crate) async fn drain(&self, within: Duration) -> bool {
        // First, so that no balancer sends another client here.
        self.set_health(false).await;
        self.stop.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(within, self.tasks.wait()).await;
        self.cut.cancel();
        self.tasks.wait().await;
        ended.is_ok()
    }

    /// Serves the connections of `listener`, until the server closes. Answers the address that it
    /// listens on.
    pub(crate) fn listen(
        &self,
        listener: TcpListener,
        access: Access,
        tokens: Tokens,
        log: Arc<OpenLog>,
    ) -> Result<SocketAddr, ServeError> {
        let Access { strict, tls, oidc, name, limits } = access;
        let address = listener.local_addr()?;
        let mut server = limited().max_connection_age(limits.connection_age);
        let loopback = address.ip().to_canonical().is_loopback();
        // With TLS a browser checks the name itself, against the certificate; and proxies pass on
        // the names that their own clients use.
        // Only then can a web page of another name reach the server in the browser of its machine.
        let is_open = loopback && tls.is_none();
        let names = if is_open { Names::Loopback(name) } else { Names::Any };
        let mut certificates = None;
        if let Some(ServeTls { own, client_ca, client_crl }) = tls {
            let mut config =
                ServerTlsConfig::new().identity(own.identity()).timeout(HANDSHAKE_WITHIN);
            if let Some(ca) = client_ca {
                certificates = Some(Certificates::of(&ca, client_crl.as_deref())?);
                // People have tokens and no certificates.
                config =
                    config.client_ca_root(Certificate::from_pem(ca)).client_auth_optional(true);
            }
            // Before anything is spawned: a wrong certificate must fail the start and not the first
            // connection.
            server = server.tls_config(config)?;
        }
        let rates = Mutex::new(Rates::new(&limits));
        let oidc = oidc.map(Oidc::of).transpose()?;
        let port = Port { tokens, oidc, certificates, log, strict, loopback, names, limits, rates };
        let access_rule = AccessRule::Port(Arc::new(port));
        let lines = Connections::new(limits);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let incoming = incoming.then(async |accepted| {
            if accepted.is_err() {
                // Without a file handle left the next attempt fails as well.
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
            accepted
        });
        let incoming = incoming.filter_map(move |accepted| match accepted {
            Ok(stream) => lines.take_in(stream).map(Ok),
            Err(error) => Some(Err(error)),
        });
        self.spawn(incoming, server, access_rule);
        Ok(address)
    }

    /// Serves the connections that come in, whatever they are made of.
    pub(crate) fn spawn<S, IO>(&self, incoming: S, transport: TonicServer, access_rule: AccessRule)
    where
        S: Stream<Item = io::Result<IO>> + Send + 'static,
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let Self { services, metrics, health, stop, cut, .. } = self.clone();
        self.tasks.spawn(async move {
            let described = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(DESCRIPTORS)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            };
            // Most tools of today still ask in the older version.
            let reflection =
                described().build_v1().and_then(|v1| Ok((v1, described().build_v1alpha()?)));
            let (reflection, reflection_alpha) = match reflection {
                Ok(both) => both,
                Err(error) => {
                    tracing::error!(%error, "failed to build the gRPC reflection service");
                    return;
                }
            };
            let health = HealthServer::new(HealthService::from_health_reporter(health))
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(ANSWER_BYTES_MAX);
            let reflection = reflection
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(ANSWER_BYTES_MAX);
            let reflection_alpha = reflection_alpha
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(ANSWER_BYTES_MAX);
            let served = transport
                .layer(RequestSpanLayer)
                .layer(access_rule)
                // For `/metrics`, which scrapers ask for over HTTP/1.1.
                .accept_http1(true)
                .add_routes(metrics::add_to(services.routes(), metrics))
                .add_service(health)
                .add_service(reflection)
                .add_service(reflection_alpha)
                .serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
            tokio::select! {
                served = served => if let Err(error) = served {
                    tracing::warn!(%error, "connection ended with an error");
                },
                // Streams watch the same sign as the server; this ends those that do not.
                () = cut.cancelled() => {}
            }
        });
    }

    /// Reports in health checks whether this server accepts requests.
    pub(crate) async fn set_health(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", "towpath.v1.RunsService", "towpath.v1.WorkersService"] {
            self.health.set_service_status(service, status).await;
        }
    }
}

/// A server with the bounds of every connection.
pub(crate) fn limited() -> TonicServer {
    TonicServer::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES * 4)
}
