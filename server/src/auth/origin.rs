//! Refuses what a web page can make a browser send, before anything else looks at the request.
//!
//! A server on loopback without tokens trusts every program of its machine, and a browser is one of
//! them: it sends requests for every page it shows, to any port of the machine. No page can make it
//! send `application/grpc` over HTTP/2 to another origin unasked, or leave out its `Origin`, or
//! choose its `Host`, so these three tell a page from a program.

use std::net::IpAddr;

use tonic::{
    body::Body,
    codegen::http::{
        HeaderMap, HeaderValue, Request, Response, StatusCode, Version,
        header::{CONTENT_TYPE, HOST},
        uri::Authority,
    },
};

use super::{request_refused::RequestRefused, roles};
use crate::command_error::CommandError;

/// Headers that browsers add to requests of pages, and that no gRPC client sends.
const PAGE_HEADERS: [&str; 2] = ["origin", "sec-fetch-site"];
/// Most bytes of a path or a name that a message repeats.
const REPEATED_BYTES_MAX: usize = 100;

/// The status for clients that do not speak gRPC.
fn http_status(refused: &RequestRefused, version: Version) -> StatusCode {
    match refused {
        RequestRefused::ProtocolUnsupported { found, .. } if *found == old_protocol(version) => {
            StatusCode::HTTP_VERSION_NOT_SUPPORTED
        }
        RequestRefused::ProtocolUnsupported { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        RequestRefused::OriginRefused { .. } => StatusCode::FORBIDDEN,
        RequestRefused::HostRefused { .. } => StatusCode::MISDIRECTED_REQUEST,
    }
}

/// What is refused here, or not there at all.
#[derive(Debug)]
pub(crate) enum OriginRefusal {
    /// Refused, with a code.
    Refused(RequestRefused),
    /// Neither a gRPC method nor a page of this server.
    NotFound,
}

/// The names under which a server may be asked.
#[derive(Clone, Debug)]
pub(crate) enum Names {
    /// Any: other machines reach it, or its certificate says who it is.
    Any,
    /// Those of loopback, and the name of its `--listen`.
    Loopback(Option<String>),
}

impl Names {
    fn allow(&self, host: &str) -> bool {
        let Self::Loopback(own) = self else { return true };
        // A name with a final dot is the same name to a resolver.
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        // `.localhost` is never asked of a DNS server (RFC 6761), and the two names with `ip6` are
        // those of `/etc/hosts` on Debian: an attacker's DNS server can answer for none of them.
        let known = ["localhost", "ip6-localhost", "ip6-loopback"].contains(&&*host);
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        known
            || host.ends_with(".localhost")
            || address.is_ok_and(|address| address.to_canonical().is_loopback())
            || own.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(&host))
    }
}

/// Refuses `request` if a web page can have made it, or if it asks for nothing that is here.
pub(crate) fn check<B>(request: &Request<B>, names: &Names) -> Result<(), OriginRefusal> {
    let path = request.uri().path();
    if path == roles::METRICS {
        // A page whose own name points to this machine could read the answer.
        return named(request, names).map_err(OriginRefusal::Refused);
    }
    if speaks_grpc(request) {
        // Unknown methods are passed on: gRPC clients expect UNIMPLEMENTED as a gRPC status.
        return unmarked(request)
            .and_then(|()| named(request, names))
            .map_err(OriginRefusal::Refused);
    }
    // Not a method of gRPC: an ordinary 404 tells a person with a browser more than a status of
    // gRPC.
    if !is_method(path) {
        return Err(OriginRefusal::NotFound);
    }
    let found = match content_type(request) {
        Some(kind) if is_grpc(kind) => old_protocol(request.version()),
        Some(kind) => format!("of the type `{}`", cut(&String::from_utf8_lossy(kind.as_bytes()))),
        None => "without a content type".to_owned(),
    };
    Err(OriginRefusal::Refused(RequestRefused::ProtocolUnsupported { path: cut(path), found }))
}

/// Whether `request` can have been made by a gRPC client.
fn speaks_grpc<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2 && content_type(request).is_some_and(is_grpc)
}

fn content_type<B>(request: &Request<B>) -> Option<&HeaderValue> {
    request.headers().get(CONTENT_TYPE)
}

/// Messages of ours are protobuf; `application/grpc-web` and the like are for browsers.
fn is_grpc(kind: &HeaderValue) -> bool {
    ["application/grpc", "application/grpc+proto"]
        .iter()
        .any(|known| kind.as_bytes().eq_ignore_ascii_case(known.as_bytes()))
}

/// Whether `path` has the form `/package.Service/Method`.
fn is_method(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    let service = parts.next().is_some_and(|service| service.contains('.'));
    service && parts.next().is_some_and(|method| !method.is_empty()) && parts.next().is_none()
}

fn unmarked<B>(request: &Request<B>) -> Result<(), RequestRefused> {
    let found = PAGE_HEADERS.into_iter().find(|header| request.headers().contains_key(*header));
    let path = || cut(request.uri().path());
    found.map_or(Ok(()), |header| Err(RequestRefused::OriginRefused { path: path(), header }))
}

/// Refuses a request that names another host, in its address or in a header: a browser sends the
/// name of the page, whatever address a DNS server has given it.
fn named<B>(request: &Request<B>, names: &Names) -> Result<(), RequestRefused> {
    if matches!(names, Names::Any) {
        return Ok(());
    }
    let address = request.uri().authority().map(|authority| Some(authority.host().to_owned()));
    let headers = request.headers().get_all(HOST).iter().map(|value| {
        let authority = Authority::try_from(value.as_bytes()).ok();
        authority.map(|authority| authority.host().to_owned())
    });
    let mut said = address.into_iter().chain(headers).peekable();
    // Browsers and gRPC clients always name one; what names none is neither.
    let none = said.peek().is_none();
    let refused = said.find(|host| !host.as_ref().is_some_and(|host| names.allow(host)));
    let refused = refused.or(none.then_some(None));
    refused.map_or(Ok(()), |host| {
        Err(RequestRefused::HostRefused { host: cut(&host.unwrap_or_default()) })
    })
}

fn old_protocol(version: Version) -> String {
    format!("gRPC over {version:?}")
}

/// The beginning of `text`: a refusal is not to be longer than what it answers.
fn cut(text: &str) -> String {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = end.take_while(|end| *end <= REPEATED_BYTES_MAX).last().unwrap_or_default();
    text[..end].to_owned()
}

/// The answer to what [`check`] does not let pass.
pub(crate) fn answer<B>(request: &Request<B>, foreign: OriginRefusal) -> Response<Body> {
    match foreign {
        OriginRefusal::NotFound => text(StatusCode::NOT_FOUND, "not found\n".to_owned()),
        OriginRefusal::Refused(refused) => {
            let status = http_status(&refused, request.version());
            refusal(request, refused.into(), status)
        }
    }
}

/// The answer to a request that is refused as `error`, in the protocol of the request: gRPC, or
/// plain text with `status`.
pub(crate) fn refusal<B>(
    request: &Request<B>,
    error: CommandError,
    status: StatusCode,
) -> Response<Body> {
    if speaks_grpc(request) && request.uri().path() != roles::METRICS {
        return crate::status::of(error).into_http();
    }
    let said = format!("error[{}]: {error}\n", error.code());
    let mut answer = text(status, said);
    // Programs find the code where they find it in every other answer.
    let grpc: HeaderMap = crate::status::of(error).into_http::<Body>().into_parts().0.headers;
    answer.headers_mut().extend(
        grpc.into_iter().filter(|(name, _)| name.as_ref().is_some_and(|n| n != CONTENT_TYPE)),
    );
    answer
}

fn text(status: StatusCode, said: String) -> Response<Body> {
    let mut answer = Response::new(Body::new(http_body_util::Full::from(said)));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_loopback_are_those_that_no_dns_server_can_take() {
        let names = Names::Loopback(Some("build-7".to_owned()));
        for host in [
            "localhost",
            "LocalHost.",
            "a.localhost",
            "127.0.0.1",
            "127.255.0.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "ip6-localhost",
            "Build-7",
        ] {
            assert!(names.allow(host), "{host}");
        }
        for host in [
            "",
            ".",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "10.0.0.1",
            "0.0.0.0",
            "[::]",
            "evillocalhost",
        ] {
            assert!(!names.allow(host), "{host}");
        }
        assert!(Names::Any.allow("evil.example"));
    }

    #[test]
    fn a_refusal_repeats_only_the_beginning_of_what_it_refuses() {
        assert_eq!(cut("abc"), "abc");
        assert_eq!(cut(&"é".repeat(99)).len(), REPEATED_BYTES_MAX);
    }
}
