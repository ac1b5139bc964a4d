//! What this process knows servers by, and shows them.

use std::{path::Path, sync::OnceLock};

use tonic::metadata::{Ascii, MetadataValue};
use towpath_engine::{code::ErrorCode, trace::TraceContext};
use towpath_wire::dial::{DialTls, PemPair};

use crate::failure::Failure;

/// What servers are known by, and what they know us by, for all of this process.
#[derive(Debug, Default)]
struct Credentials {
    bearer: Option<MetadataValue<Ascii>>,
    tls: Option<DialTls>,
    /// The trace context of this process.
    place: Option<MetadataValue<Ascii>>,
}

static CREDENTIALS: OnceLock<Credentials> = OnceLock::new();

/// The token that this process was given.
pub(crate) fn bearer() -> Option<MetadataValue<Ascii>> {
    CREDENTIALS.get().and_then(|credentials| credentials.bearer.clone())
}

/// What servers on other machines are known by, if connections use TLS.
pub(crate) fn tls() -> Option<&'static DialTls> {
    CREDENTIALS.get().and_then(|credentials| credentials.tls.as_ref())
}

/// The trace context of this process, for requests.
pub(crate) fn trace_context() -> Option<MetadataValue<Ascii>> {
    CREDENTIALS.get().and_then(|credentials| credentials.place.clone())
}

/// Takes the token of `TOW_TOKEN`, else that of the context, the authority in the file `ca`, the
/// worker's own files, and where in a trace all this happens.
pub(crate) fn set_credentials(
    ca: Option<&Path>,
    own: Option<(&Path, &Path)>,
    token: Option<String>,
    place: Option<TraceContext>,
) -> Result<(), Failure> {
    let unusable = || {
        let advice = "Set `TOW_TOKEN` to what `tow token issue` printed, and nothing else.";
        Failure::new(ErrorCode::Usage, "the token is not valid", advice)
    };
    let read = |path: &Path| std::fs::read(path).map_err(|error| Failure::file(path, &error));
    // The environment takes precedence over the token of a context, as with every other setting.
    let token = match std::env::var("TOW_TOKEN") {
        Ok(set) if !set.is_empty() => Some(set),
        Ok(_) | Err(std::env::VarError::NotPresent) => token,
        Err(std::env::VarError::NotUnicode(_)) => return Err(unusable()),
    };
    let bearer = match token {
        Some(token) => {
            let mut value: MetadataValue<Ascii> =
                // Files and commands end their token with a line feed, which a header cannot have.
                format!("Bearer {}", token.trim()).parse().map_err(|_| unusable())?;
            // Keeps the token out of debug output of the HTTP library.
            value.set_sensitive(true);
            Some(value)
        }
        None => None,
    };
    let own = match own {
        Some((certificate, key)) => {
            Some(PemPair { certificate: read(certificate)?, key: read(key)? })
        }
        None => None,
    };
    let tls = match (ca, own) {
        (Some(ca), own) => Some(DialTls { ca: read(ca)?, own }),
        (None, None) => None,
        (None, Some(_)) => {
            let advice = "Name the authority of the server with `--tls-ca` or `TOW_TLS_CA`.";
            return Err(Failure::new(ErrorCode::Usage, "a certificate needs an authority", advice));
        }
    };
    // The first call is used: there is only one.
    let place = place.and_then(|place| place.to_string().parse().ok());
    drop(CREDENTIALS.set(Credentials { bearer, tls, place }));
    Ok(())
}
