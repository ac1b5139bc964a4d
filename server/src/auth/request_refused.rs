//! Why a request is refused before its identity is checked.

use towpath_engine::code::ErrorCode;

/// Why a request was refused before its identity was checked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefused {
    /// A gRPC method was called by another protocol.
    #[error("`{path}` is called by gRPC over HTTP/2, and this request is {found}")]
    ProtocolUnsupported {
        /// The method.
        path: String,
        /// What the request is instead.
        found: String,
    },
    /// A web page sent the request.
    #[error("`{path}` refuses requests of web pages, and this request has the header `{header}`")]
    OriginRefused {
        /// The method.
        path: String,
        /// The header that only browsers send.
        header: &'static str,
    },
    /// The request names another host than the one that it has reached.
    #[error("this server listens on loopback only, and `{host}` is not a loopback name")]
    HostRefused {
        /// The name.
        host: String,
    },
}

impl RequestRefused {
    /// The stable code that scripts may match on.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::ProtocolUnsupported { .. } => ErrorCode::ProtocolUnsupported,
            Self::OriginRefused { .. } => ErrorCode::OriginRefused,
            Self::HostRefused { .. } => ErrorCode::HostRefused,
        }
    }
}
