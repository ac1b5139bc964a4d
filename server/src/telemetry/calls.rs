//! A span for every request.

use std::task::{Context as Waker, Poll};

use futures_util::{future::BoxFuture, future::Either};
use opentelemetry::{
    Context, KeyValue, global,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use tonic::{
    Code,
    codegen::http::{Extensions, HeaderMap, Request, Response},
    metadata::MetadataMap,
};
use tower::{Layer, Service};
use towpath_engine::{run::Run, trace::TraceContext};

use super::{SCOPE, below, is_on, place, span_context};
use crate::auth::roles;

/// How the trace context of a request is called.
const TRACEPARENT: &str = "traceparent";
/// Sessions last for days: their spans would say nothing.
const SESSION: &str = "/towpath.v1.WorkersService/Session";

/// The span of the request, beside its message.
#[derive(Clone, Debug)]
struct Call(Context);

/// The trace context of a request: the span of the request, if there is one, or the caller's.
pub(crate) fn caller<M>(request: &tonic::Request<M>) -> Option<TraceContext> {
    let told = || traceparent(request.metadata());
    request.extensions().get::<Call>().map_or_else(told, |call| place(&call.0))
}

/// Whether the caller sent a trace context.
pub(crate) fn is_told(metadata: &MetadataMap) -> bool {
    traceparent(metadata).is_some()
}

fn traceparent(metadata: &MetadataMap) -> Option<TraceContext> {
    // What is malformed is as good as absent: a trace is no reason to refuse a request.
    metadata.get(TRACEPARENT)?.to_str().ok()?.parse().ok()
}

/// The span of a request that is about a run, so that each is found from the other.
#[derive(Clone, Debug)]
pub(crate) struct RequestRun(Option<Context>);

impl RequestRun {
    pub(crate) fn of(extensions: &Extensions) -> Self {
        Self(extensions.get::<Call>().map(|call| call.0.clone()))
    }

    /// Links the request to the span of `run`.
    pub(crate) fn link(&self, run: &Run) {
        if let (Some(call), Some(span)) = (&self.0, run.span()) {
            call.span().add_link(span_context(&span), Vec::new());
        }
    }
}

/// Gives every request a span, while spans are exported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestSpanLayer;

impl<S> Layer<S> for RequestSpanLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// What is asked, with spans.
#[derive(Clone, Debug)]
pub(crate) struct Traced<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Traced<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
    R: 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, waker: &mut Waker<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(waker)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // Without an exporter a request costs one comparison, and no allocation for a boxed future.
        let Some(context) = begin(&request) else {
            return Either::Left(self.inner.call(request));
        };
        // Beside the message and not in a task-local: handlers start tasks of their own.
        remember(request.extensions_mut(), &context);
        let served = self.inner.call(request);
        Either::Right(Box::pin(async move {
            let served = served.await;
            end(&context, served.as_ref().map_or(&HeaderMap::new(), Response::headers));
            served
        }))
    }
}

fn remember(extensions: &mut Extensions, context: &Context) {
    extensions.insert(Call(context.clone()));
}

/// The span of a request that is in the contract, begun.
fn begin<B>(request: &Request<B>) -> Option<Context> {
    if !is_on() {
        return None;
    }
    let path = request.uri().path();
    // The path is chosen by the client. As the name of a span it could be anything, as long as it
    // likes.
    let (known, _) = roles::TABLE.iter().find(|(known, _)| *known == path)?;
    let method = known.strip_prefix('/').filter(|_| *known != SESSION)?;
    let told = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let parent = told.and_then(|text| text.parse().ok()).map_or_else(Context::new, |p| below(&p));
    let builder = SpanBuilder::from_name(method).with_kind(SpanKind::Server).with_attributes([
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method),
    ]);
    let span = global::tracer(SCOPE).build_with_context(builder, &parent);
    Some(parent.with_span(span))
}

/// Ends the span when the answer begins. A status in the head of an answer is all of it.
fn end(context: &Context, head: &HeaderMap) {
    // An answer that streams has its status in its trailers, after hours perhaps; the span then
    // ends with the beginning of the answer and says OK.
    let code = tonic::Status::from_header_map(head).map_or(Code::Ok, |status| status.code());
    let span = context.span();
    span.set_attribute(KeyValue::new("rpc.response.status_code", name(code)));
    if is_ours(code) {
        span.set_status(Status::error(name(code)));
    }
    span.end();
}

/// Whether the server, not the caller, is to blame.
fn is_ours(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::Unknown
            | C::DeadlineExceeded
            | C::Unimplemented
            | C::Internal
            | C::Unavailable
            | C::DataLoss
    )
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
