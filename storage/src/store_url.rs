//! The URL of a store: the scheme of a backend, a colon, and what that backend reads.
//!
//! The one parser. A path without a scheme means the first backend. What is shown of a URL, in
//! messages, logs, metrics and answers, never holds the user and password that it may hold.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{
    backend::{Backend, Directory},
    backends::{BACKENDS, usages},
    error::{StoreError, UrlFault},
};

/// Replaces credentials where a URL is shown.
const HIDDEN: &str = "***";

/// The URL of a store, and the backend it names. Shown without credentials.
#[derive(Clone)]
pub struct StoreUrl {
    backend: &'static dyn Backend,
    rest: String,
}

impl StoreUrl {
    /// Reads `url`. Nothing is opened.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        Self::parse_among(BACKENDS, url)
    }

    /// Reads `url`, which names one of `backends`.
    pub fn parse_among(backends: &[&'static dyn Backend], url: &str) -> Result<Self, StoreError> {
        let invalid = |why| StoreError::UrlInvalid { url: without_credentials(url), why };
        let unknown = || invalid(UrlFault::BackendUnknown { usages: usages(backends, false) });
        let (backend, rest) = match url.split_once(':') {
            // A word before a colon names a backend; `./odd:name` and `/a:b` are paths.
            Some((scheme, rest)) if !scheme.contains(['/', '.']) => {
                let named = backends.iter().find(|backend| backend.scheme() == scheme);
                (named.ok_or_else(unknown)?, rest)
            }
            Some(_) | None => (backends.first().ok_or_else(unknown)?, url),
        };
        let url = Self { backend: *backend, rest: rest.to_owned() };
        // Refused here and not when it is opened: a mistake in a URL is found before anything else.
        url.directory()?;
        Ok(url)
    }

    /// A store of the same backend that lies whole in `path`.
    pub(crate) fn moved_to(&self, path: &Path) -> Self {
        Self { backend: self.backend, rest: path.display().to_string() }
    }

    /// What may be shown of `url`, whether or not it can be read.
    pub fn shown(url: &str) -> String {
        Self::parse(url).map_or_else(|_| without_credentials(url), |url| url.to_string())
    }

    /// The word before the colon.
    pub fn scheme(&self) -> &'static str {
        self.backend.scheme()
    }

    /// Which directory the store has.
    pub fn directory(&self) -> Result<Directory, StoreError> {
        self.backend.directory(&self.rest).map_err(|why| self.invalid(why))
    }

    /// The directory that stays when the process has ended, if there is one.
    pub fn lasting_directory(&self) -> Option<PathBuf> {
        match self.directory() {
            Ok(Directory::Whole(path) | Directory::Beside(path)) => Some(path),
            Ok(Directory::Temporary) | Err(_) => None,
        }
    }

    /// The backend it names.
    pub(crate) fn backend(&self) -> &'static dyn Backend {
        self.backend
    }

    /// What is behind the colon. It may hold credentials: never show it.
    pub(crate) fn rest(&self) -> &str {
        &self.rest
    }

    /// This URL cannot be used, because of `why`.
    pub(crate) fn invalid(&self, why: UrlFault) -> StoreError {
        StoreError::UrlInvalid { url: self.to_string(), why }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.scheme(), without_credentials(&self.rest))
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoreUrl").field(&self.to_string()).finish()
    }
}

/// `url` without what may be credentials in it: all between `//` and the last `@`, and the values
/// of parameters whose name speaks of a password, a secret or a token.
///
/// The last `@`, not the first, because a password that was not escaped may hold any character;
/// rather too much is hidden than too little.
fn without_credentials(url: &str) -> String {
    let (before, parameters) = url.split_once('?').map_or((url, None), |(a, b)| (a, Some(b)));
    // An `@` behind the question mark may belong to a password with a question mark in it.
    let (before, parameters) = match parameters {
        // Hiding too much is harmless, hiding too little is not.
        Some(parameters) if parameters.contains('@') => (url, None),
        _ => (before, parameters),
    };
    let mut shown = match before.split_once("//") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}//{HIDDEN}@{host}"),
            None => before.to_owned(),
        },
        None => before.to_owned(),
    };
    for (n, parameter) in parameters.into_iter().flat_map(|all| all.split('&')).enumerate() {
        shown.push(if n == 0 { '?' } else { '&' });
        match parameter.split_once('=') {
            Some((name, _)) if speaks_of_a_secret(name) => {
                shown.push_str(name);
                shown.push('=');
                shown.push_str(HIDDEN);
            }
            Some(_) | None => shown.push_str(parameter),
        }
    }
    shown
}

fn speaks_of_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "pwd", "secret", "token"].iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreErrorKind;

    fn read(url: &str) -> (&'static str, Directory) {
        let url = StoreUrl::parse(url).unwrap();
        (url.scheme(), url.directory().unwrap())
    }

    #[test]
    fn a_url_names_a_backend_and_a_bare_path_means_the_first() {
        let sled = |path: &str| ("sled", Directory::Whole(path.into()));
        assert_eq!(read("sled:/a/b"), sled("/a/b"));
        assert_eq!(read(".tow"), sled(".tow"));
        assert_eq!(read("./odd:name"), sled("./odd:name"));
        assert_eq!(read("memory:"), ("memory", Directory::Temporary));
        #[cfg(feature = "fjall")]
        assert_eq!(read("fjall:x"), ("fjall", Directory::Whole("x".into())));
    }

    #[test]
    fn a_url_that_names_no_store_is_refused() {
        for url in ["", "sled:", "memory:x", "postgres://host/db", "tcp:host:1"] {
            assert_eq!(
                StoreUrl::parse(url).unwrap_err().kind(),
                StoreErrorKind::UrlInvalid,
                "{url}"
            );
        }
    }

    #[test]
    fn what_is_shown_of_a_url_holds_no_credentials() {
        for (url, shown) in [
            ("pg://ana:pw@host:5/db", "pg://***@host:5/db"),
            ("pg://ana:p@w/x@host/db", "pg://***@host/db"),
            ("pg://ana:p?w@host/db", "pg://***@host/db"),
            ("pg://host/db?sslPassword=pw&dir=/d", "pg://host/db?sslPassword=***&dir=/d"),
            ("pg://host/db?a&b=c", "pg://host/db?a&b=c"),
            ("/srv/a@b", "/srv/a@b"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
        assert_eq!(StoreUrl::shown("pg://ana:pw@host/db"), "pg://***@host/db");
        assert_eq!(StoreUrl::shown("./store"), "sled:./store");
        let refused = StoreUrl::parse("postgres://ana:pw@host/db").unwrap_err();
        assert!(!format!("{refused} {refused:?}").contains("pw"), "{refused:?}");
    }
}
