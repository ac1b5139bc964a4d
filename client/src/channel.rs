//! A connection with its identity. When the server refuses a request for a while, it is sent again
//! after the time that the server names.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{Request, Response},
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::Channel,
};
use tonic_types::StatusExt as _;
use tower::{BoxError, Service, ServiceExt as _};

use crate::credentials::trace_context;

/// How long a request waits, in all its pauses, for a server that has reached a limit.
const ROOM_WITHIN: Duration = Duration::from_secs(30);
/// Shortest pause, whatever the server says.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// A connection, and what is shown with every request: the token, and where in a trace it belongs.
#[derive(Clone, Debug)]
pub(crate) struct AuthorizedChannel {
    channel: Channel,
    bearer: Option<MetadataValue<Ascii>>,
}

impl AuthorizedChannel {
    pub(crate) fn new(channel: Channel, bearer: Option<MetadataValue<Ascii>>) -> Self {
        Self { channel, bearer }
    }
}

impl Service<Request<Body>> for AuthorizedChannel {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::poll_ready(&mut self.channel, cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let mut shown = MetadataMap::new();
        if let Some(bearer) = &self.bearer {
            shown.insert("authorization", bearer.clone());
        }
        if let Some(trace) = trace_context() {
            shown.insert("traceparent", trace);
        }
        parts.headers.extend(shown.into_headers());
        // The channel that is ready is the one that is called.
        let mut channel = self.channel.clone();
        std::mem::swap(&mut channel, &mut self.channel);
        Box::pin(async move {
            // None of our requests streams: it is whole before it is sent, and can be sent again.
            let whole = body.collect().await?.to_bytes();
            let mut waited = Duration::ZERO;
            loop {
                let body = Body::new(Full::new(whole.clone()));
                let request = Request::from_parts(parts.clone(), body);
                let response = channel.call(request).await?;
                let Some(pause) = room_after(&response) else { return Ok(response) };
                waited += pause;
                // The pauses are added up, not the time: a slow answer of the server is not a
                // reason to give up.
                if waited > ROOM_WITHIN {
                    return Ok(response);
                }
                tokio::time::sleep(pause).await;
                // The connection may have been replaced during the pause, and calling one that is
                // not ready panics.
                channel.ready().await?;
            }
        })
    }
}

/// When a server that had no room for a request has some, if that is what `response` says.
fn room_after(response: &Response<Body>) -> Option<Duration> {
    let status = Status::from_header_map(response.headers())?;
    if status.code() != Code::ResourceExhausted {
        return None;
    }
    let told = status.get_error_details().retry_info()?.retry_delay?;
    Some(told.max(PAUSE_MIN))
}
