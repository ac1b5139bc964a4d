//! The door of a port: every request passes it, and so does every message of an open stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Frame;
use tonic::{
    Status,
    body::Body,
    codegen::http::{HeaderMap, Request, Response, StatusCode, header::AUTHORIZATION},
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};
use tower::{Layer, Service};

use super::{Principal, pki::worker_of, roles, tokens::Tokens};
use crate::{
    runs::{CommandError, Runs},
    status,
};

/// How often an open stream is asked whether whoever opened it still may.
const ASK_AGAIN_EVERY: Duration = Duration::from_millis(500);

/// Who is let in where.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    /// A pipe or the store's socket: whoever is there owns the store.
    Owner,
    /// A port.
    Port(Arc<Port>),
}

/// What the door of a port knows.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) tokens: Tokens,
    pub(crate) runs: Arc<Runs>,
    /// Nobody is let in without proof; else only once there are tokens.
    pub(crate) strict: bool,
    /// Only programs of this machine reach it.
    pub(crate) loopback: bool,
}

impl Port {
    /// Who asks, if that had to be proven, and whether they may.
    fn admit<B>(&self, request: &Request<B>) -> Result<Option<Principal>, CommandError> {
        let path = request.uri().path();
        if path.starts_with("/grpc.health.v1.Health/") {
            return Ok(None);
        }
        if path.starts_with("/grpc.reflection.") {
            let (who, what) = ("a client of this port".to_owned(), "reflection".to_owned());
            let refused = CommandError::Forbidden { who, what };
            return if self.loopback { Ok(None) } else { Err(refused) };
        }
        if !self.strict && !self.tokens.exist() {
            return Ok(None);
        }
        let principal = self.proven(request)?;
        if roles::may(&principal.roles, path) {
            return Ok(Some(principal));
        }
        let what = path.rsplit('/').next().unwrap_or_default().to_owned();
        Err(CommandError::Forbidden { who: principal.actor.to_string(), what })
    }

    fn proven<B>(&self, request: &Request<B>) -> Result<Principal, CommandError> {
        let refused = |why| CommandError::Unauthenticated { why };
        let mut presented = request.headers().get_all(AUTHORIZATION).iter();
        if let Some(value) = presented.next() {
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
            let token = self.tokens.find(secret.trim(), self.runs.now());
            let unknown = "the token is unknown, revoked or expired";
            return token.map(Principal::of_token).ok_or(refused(unknown));
        }
        let tls = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let chain = tls.and_then(TlsConnectInfo::peer_certs);
        match chain.as_ref().and_then(|chain| chain.first()) {
            Some(certificate) => worker_of(certificate)
                .map(|name| Principal::of_worker(&name))
                .ok_or(refused("the certificate names no worker")),
            None => Err(refused("the request presents no token")),
        }
    }

    /// Comes back when `principal` may not stay.
    async fn until_revoked(&self, principal: &Principal) -> Status {
        let Some(token) = &principal.token else { return std::future::pending().await };
        loop {
            tokio::time::sleep(ASK_AGAIN_EVERY).await;
            if !self.tokens.still_counts(token, self.runs.now()) {
                let why = "the token was revoked, was changed or has expired";
                return status::of(CommandError::Unauthenticated { why });
            }
        }
    }
}

impl<S> Layer<S> for Door {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, door: self.clone() }
    }
}

/// The services behind a door.
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    inner: S,
    door: Door,
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
        let Door::Port(port) = &self.door else { return Box::pin(self.inner.call(request)) };
        let principal = match port.admit(&request) {
            Ok(Some(principal)) => principal,
            Ok(None) => return Box::pin(self.inner.call(request)),
            Err(error) => {
                tracing::info!(path = request.uri().path(), %error, "refused");
                return Box::pin(std::future::ready(Ok(refusal(&request, error))));
            }
        };
        request.extensions_mut().insert(principal.clone());
        let (port, served) = (Arc::clone(port), self.inner.call(request));
        Box::pin(async move {
            let revoked = Box::pin(async move { port.until_revoked(&principal).await });
            Ok(served.await?.map(|body| Body::new(Watched { body: Some(body), revoked })))
        })
    }
}

/// The answer to whoever is not let in, in the language of the request.
fn refusal<B>(request: &Request<B>, error: CommandError) -> Response<Body> {
    let grpc = request.uri().path() != roles::FIGURES;
    let known = !matches!(error, CommandError::Unauthenticated { .. });
    let mut refused = status::of(error).into_http();
    if !grpc {
        *refused.status_mut() =
            if known { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
    }
    refused
}

/// An answer that ends when whoever asked may not hear the rest.
struct Watched {
    body: Option<Body>,
    revoked: BoxFuture<'static, Status>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.body.is_none() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(status) = self.revoked.as_mut().poll(cx) {
            self.body = None;
            let mut trailers = HeaderMap::new();
            let added = status.add_header(&mut trailers);
            return Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))));
        }
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}
