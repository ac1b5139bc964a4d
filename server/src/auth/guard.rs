//! The access rule of a port: every request passes it, and so does every message of an open stream.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Frame;
use rustls_pki_types::CertificateDer;
use tonic::{
    Status,
    body::Body,
    codegen::http::{HeaderMap, Request, Response, StatusCode, header::AUTHORIZATION},
    transport::server::TlsConnectInfo,
};
use tower::{Layer, Service};
use towpath_engine::time::Timestamp;

use super::{
    Principal, Proof,
    certificates::Certificates,
    oidc::Oidc,
    origin::{self, Names},
    pki::worker_of,
    roles,
    tokens::{Recheck, TOKEN_PREFIX, Tokens},
};
use crate::{
    command_error::CommandError,
    connections::{Connection, InFlight},
    limits::{Limit, Limits, Rates},
    open_log::OpenLog,
    status,
    sync::locked,
};

/// How often an open stream is asked whether whoever opened it still may.
const ASK_AGAIN_EVERY: Duration = Duration::from_millis(500);

/// How often its certificate is looked at again if nothing was revoked: it may have expired.
const CHECK_AGAIN_EVERY: Duration = Duration::from_secs(2);

/// Methods that take a stream and answer at its end. How long that lasts depends on the size of
/// what is sent and on the network, so one time for all of it would refuse slow networks.
const UPLOADS: [&str; 1] = ["/towpath.v1.BlobsService/PutBlob"];

/// How long the sender of an upload may take for each part of it, beside the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartWithin(pub(crate) Duration);

/// Which clients are accepted.
#[derive(Clone, Debug)]
pub(crate) enum AccessRule {
    /// A pipe or the store's socket: its clients belong to the owner of the store.
    Owner,
    /// A port.
    Port(Arc<Port>),
}

/// What the access rule of a port knows.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) tokens: Tokens,
    /// An issuer of tokens that are not the store's own.
    pub(crate) oidc: Option<Oidc>,
    /// What the certificates of workers are checked against, if they are asked for.
    pub(crate) certificates: Option<Certificates>,
    /// By its wall clock tokens and certificates are valid.
    pub(crate) log: Arc<OpenLog>,
    /// Every client must authenticate; else only once there are tokens.
    pub(crate) strict: bool,
    /// Only programs of this machine reach it.
    pub(crate) loopback: bool,
    /// The names under which it may be asked.
    pub(crate) names: Names,
    pub(crate) limits: Limits,
    pub(crate) rates: Mutex<Rates>,
}

/// An admitted request.
struct Admitted {
    principal: Option<Principal>,
    line: Option<Connection>,
    busy: Option<InFlight>,
}

/// Where the services of gRPC itself are.
const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: &str = "/grpc.reflection.";

/// Whether a client may call `path` without authentication.
fn needs_no_proof(path: &str) -> bool {
    path.starts_with(HEALTH) || path.starts_with(REFLECTION)
}

impl Port {
    /// Lets a request in: its connection has room, who asks may, and has not asked too often.
    fn admit<B>(&self, request: &Request<B>) -> Result<Admitted, CommandError> {
        let line = Connection::of(request.extensions()).cloned();
        // Before the identity: a connection beyond the bound must not cost the check of a
        // signature.
        let begun = line.as_ref().map(|line| line.begin(self.limits.connections)).transpose();
        let principal = self.identify(request);
        let who = match (&principal, &line) {
            (Ok(Some(principal)), _) => principal.actor.to_string(),
            // An unauthenticated client is counted by its address.
            (Ok(None) | Err(_), Some(line)) => line.peer(),
            (Ok(None) | Err(_), None) => String::new(),
        };
        // Also for a wrong token, by address: guessing tokens is limited like any other request.
        locked(&self.rates).take(&who, Instant::now())?;
        let (principal, busy) = (principal?, begun?);
        if let Some(line) = &line {
            line.admit(!needs_no_proof(request.uri().path()));
        }
        Ok(Admitted { principal, line, busy })
    }

    /// Who asks, if that had to be proven, and whether they may.
    fn identify<B>(&self, request: &Request<B>) -> Result<Option<Principal>, CommandError> {
        let path = request.uri().path();
        // The description of the contract helps to build requests; a port that other machines reach
        // does not need to give it away.
        if path.starts_with(REFLECTION) && !self.loopback {
            let (who, what) = ("a client of this port".to_owned(), "reflection".to_owned());
            return Err(CommandError::Forbidden { who, what });
        }
        if needs_no_proof(path) {
            return Ok(None);
        }
        // The setting for one machine: on loopback without tokens every client names its own actor.
        if !self.strict && !self.tokens.exist() {
            return Ok(None);
        }
        let principal = self.proven(request)?;
        if roles::may(&principal.roles, path) {
            return Ok(Some(principal));
        }
        let (what, needed) = (path.rsplit('/').next().unwrap_or_default(), roles::needed(path));
        Err(principal.lacks(needed, what))
    }

    fn proven<B>(&self, request: &Request<B>) -> Result<Principal, CommandError> {
        let refused = |why| CommandError::Unauthenticated { why };
        let mut presented = request.headers().get_all(AUTHORIZATION).iter();
        if let Some(value) = presented.next() {
            // Proxies and servers differ in which of two headers they use.
            if presented.next().is_some() {
                return Err(refused("the request presents more than one token"));
            }
            let (scheme, secret) = value
                .to_str()
                .ok()
                .and_then(|text| text.split_once(' '))
                .ok_or(refused("the token is not written as `Bearer TOKEN`"))?;
            if !scheme.eq_ignore_ascii_case("bearer") {
                return Err(refused("the token is not written as `Bearer TOKEN`"));
            }
            let (secret, now) = (secret.trim(), self.log.wall_clock());
            if let Some(oidc) = self.oidc.as_ref().filter(|_| !secret.starts_with(TOKEN_PREFIX)) {
                return oidc.verify(secret, now).map(Principal::of_vouched).map_err(refused);
            }
            let token = self.tokens.find(secret, now);
            let unknown = "the token is unknown, revoked or expired";
            return token.map(Principal::of_token).ok_or(refused(unknown));
        }
        // A token takes precedence over the certificate: people may connect from the machine of a
        // worker.
        let tls = request.extensions().get::<TlsConnectInfo<Connection>>();
        let chain = tls.and_then(TlsConnectInfo::peer_certs);
        let (Some(chain), Some(certificates)) = (chain, &self.certificates) else {
            return Err(refused("the request presents no token"));
        };
        certificates.check(&chain, self.log.wall_clock()).map_err(refused)?;
        let name = chain.first().and_then(|certificate| worker_of(certificate));
        let name = name.ok_or(refused("the certificate names no worker"))?;
        Ok(Principal::of_worker(&name, chain))
    }

    /// Comes back when `principal` may not stay.
    async fn until_revoked(&self, principal: Option<&Principal>) -> Status {
        let why = match principal.map(|principal| &principal.proof) {
            Some(Proof::Token(token)) => {
                let mut recheck = Recheck::of(token);
                let counts = |now| {
                    !recheck.is_due(self.tokens.edition(), now)
                        || self.tokens.still_counts(token, now)
                };
                self.until_not(counts).await;
                "the token was revoked, was changed or has expired"
            }
            Some(Proof::Oidc(oidc_identity)) => {
                let counts = |oidc: &Oidc, now| oidc.still_counts(oidc_identity, now);
                self.until_not(|now| self.oidc.as_ref().is_some_and(|oidc| counts(oidc, now)))
                    .await;
                "the ID token has expired, or its key was withdrawn"
            }
            Some(Proof::Certificate(chain)) => self.until_certificate_ends(chain).await,
            None => std::future::pending().await,
        };
        status::of(CommandError::Unauthenticated { why })
    }

    /// Comes back when `counts` says no.
    async fn until_not(&self, mut counts: impl FnMut(Timestamp) -> bool) {
        loop {
            tokio::time::sleep(ASK_AGAIN_EVERY).await;
            if !counts(self.log.wall_clock()) {
                return;
            }
        }
    }

    async fn until_certificate_ends(&self, chain: &[CertificateDer<'static>]) -> &'static str {
        let Some(certificates) = &self.certificates else { return std::future::pending().await };
        let (mut checked, mut edition) = (Instant::now(), certificates.edition());
        loop {
            tokio::time::sleep(ASK_AGAIN_EVERY).await;
            let newest = certificates.edition();
            // To check one costs a signature: not twice a second for each of a thousand workers.
            if newest == edition && checked.elapsed() < CHECK_AGAIN_EVERY {
                continue;
            }
            (checked, edition) = (Instant::now(), newest);
            if let Err(why) = certificates.check(chain, self.log.wall_clock()) {
                return why;
            }
        }
    }
}

impl<S> Layer<S> for AccessRule {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, access_rule: self.clone() }
    }
}

/// The services behind an access rule.
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    inner: S,
    access_rule: AccessRule,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let refused = |request: &Request<B>, error: CommandError| -> Self::Future {
            tracing::info!(path = request.uri().path(), %error, "request refused");
            Box::pin(std::future::ready(Ok(refusal(request, error))))
        };
        // Before anything else: to a page, also why it is refused would say something, and a
        // refused request is to use up neither the rate nor the room of others.
        let names = match &self.access_rule {
            // Browsers have no way to a pipe or a unix socket, and no name leads there.
            AccessRule::Owner => &Names::Any,
            AccessRule::Port(port) => &port.names,
        };
        if let Err(foreign) = origin::check(&request, names) {
            tracing::info!(path = request.uri().path(), ?foreign, "request refused");
            return Box::pin(std::future::ready(Ok(origin::answer(&request, foreign))));
        }
        if let Err(limit) = unpacked(&request) {
            return refused(&request, limit.into());
        }
        let AccessRule::Port(port) = &self.access_rule else {
            let served = self.inner.call(request);
            return Box::pin(async move { Ok(status::named(served.await?)) });
        };
        let Admitted { principal, line, busy } = match port.admit(&request) {
            Ok(admitted) => admitted,
            Err(error) => return refused(&request, error),
        };
        if let Some(principal) = &principal {
            // Handlers take the identity from here and never from the message.
            request.extensions_mut().insert(principal.clone());
        }
        let mut within = port.limits.request_within;
        if UPLOADS.contains(&request.uri().path()) {
            request.extensions_mut().insert(PartWithin(within));
            // Parts that trickle in for ever still end: with their connection.
            within = port.limits.connection_age;
        }
        let (port, served) = (Arc::clone(port), self.inner.call(request));
        Box::pin(async move {
            let Ok(served) = tokio::time::timeout(within, served).await else {
                return Ok(status::of(Limit::RequestTimedOut { within }.into()).into_http());
            };
            // Counted until the response begins: an open stream does not count as a request.
            drop(busy);
            let revoked = Box::pin(async move { port.until_revoked(principal.as_ref()).await });
            let aged = Box::pin(async move { until_aged(line.as_ref()).await });
            let watched = |body| Body::new(Watched { body: Some(body), revoked, aged });
            Ok(status::named(served?).map(watched))
        })
    }
}

/// Refuses a message that would have to be unpacked: a small one can hide a very large one.
fn unpacked<B>(request: &Request<B>) -> Result<(), Limit> {
    match request.headers().get("grpc-encoding") {
        Some(encoding) if encoding != "identity" => {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            Err(Limit::CompressionRefused { encoding })
        }
        Some(_) | None => Ok(()),
    }
}

/// Comes back when streams of `line` are to end.
async fn until_aged(line: Option<&Connection>) -> Status {
    match line {
        Some(line) => line.aged().await,
        None => std::future::pending().await,
    }
    status::of(Limit::ConnectionAged.into())
}

/// The refusal, in the protocol of the request.
fn refusal<B>(request: &Request<B>, error: CommandError) -> Response<Body> {
    let unknown = matches!(error, CommandError::Unauthenticated { .. });
    let much = matches!(error, CommandError::Limit(_));
    let status = match (unknown, much) {
        (true, _) => StatusCode::UNAUTHORIZED,
        (_, true) => StatusCode::TOO_MANY_REQUESTS,
        (false, false) => StatusCode::FORBIDDEN,
    };
    origin::refusal(request, error, status)
}

/// A response that ends when its client's identity becomes invalid.
struct Watched {
    body: Option<Body>,
    revoked: BoxFuture<'static, Status>,
    /// Asked only when there is nothing to say: what is under way still arrives.
    aged: BoxFuture<'static, Status>,
}

impl Watched {
    /// Ends the answer with `status`.
    fn end(&mut self, status: Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.body = None;
        let mut trailers = HeaderMap::new();
        let added = status.add_header(&mut trailers);
        Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // A client that lost its right gets no further data, even if there is some.
        // Before the body in every poll: a stream that always has data would otherwise never look.
        if let Poll::Ready(status) = self.revoked.as_mut().poll(cx) {
            return self.end(status);
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        match self.aged.as_mut().poll(cx) {
            Poll::Ready(status) => self.end(status),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}
