//! Whether the certificate of a worker still counts: it may have expired since its connection was
//! made, or the authority may have taken it back.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime, pem::PemObject as _,
};
use towpath_engine::time::Timestamp;
use webpki::{
    ALL_VERIFICATION_ALGS, CertRevocationList, EndEntityCert, Error, KeyUsage,
    OwnedCertRevocationList, RevocationOptionsBuilder, anchor_from_trusted_cert,
};

use super::whole::{self, Stamp};

/// The authority of the workers, and what it has taken back.
#[derive(Debug)]
pub(crate) struct Certificates {
    anchors: Vec<TrustAnchor<'static>>,
    /// Where the authority's list is, if there is one.
    path: Option<PathBuf>,
    known: Mutex<Known>,
}

/// The list as it was last read.
#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    list: Option<CertRevocationList<'static>>,
    /// Counts the lists that were read.
    edition: u64,
}

/// Why there is nothing to check certificates against.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// The authority's own certificate.
    #[error("the authority of the workers is no certificate: {0}")]
    Authority(String),
    /// Its list cannot be read.
    #[error("`{}`: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its list is none.
    #[error("`{}` is no list of revoked certificates: {why}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Certificates {
    /// Certificates of the authority in `ca`, as PEM, but for those of the list at `path`.
    pub(crate) fn of(ca: &[u8], path: Option<&Path>) -> Result<Self, CertificatesError> {
        let authority = |why: String| CertificatesError::Authority(why);
        let mut anchors = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(ca) {
            let certificate = certificate.map_err(|error| authority(error.to_string()))?;
            let anchor = anchor_from_trusted_cert(&certificate);
            anchors.push(anchor.map_err(|error| authority(error.to_string()))?.to_owned());
        }
        let mut known = Known::default();
        if let Some(path) = path {
            known.stamp = whole::stamp(path);
            known.list = Some(read(path)?);
        }
        Ok(Self { anchors, path: path.map(Path::to_owned), known: Mutex::new(known) })
    }

    /// The number of the list that counts now: as long as it is the same, so is everything but the
    /// time.
    pub(crate) fn edition(&self) -> u64 {
        self.fresh(|known| known.edition)
    }

    /// Whether the certificate at the head of `chain` counts at `now`; if not, why.
    pub(crate) fn check(
        &self,
        chain: &[CertificateDer<'static>],
        now: Timestamp,
    ) -> Result<(), &'static str> {
        let (own, between) = chain.split_first().ok_or("the request presents no certificate")?;
        let own = EndEntityCert::try_from(own).map_err(|_| "the certificate is none")?;
        let now = Duration::from_millis(u64::try_from(now.0).unwrap_or_default());
        let now = UnixTime::since_unix_epoch(now);
        let checked = self.fresh(|known| {
            let lists: Vec<_> = known.list.iter().collect();
            let revocation = RevocationOptionsBuilder::new(&lists).ok();
            let revocation = revocation.map(|options| {
                let unknown = webpki::UnknownStatusPolicy::Allow;
                let depth = webpki::RevocationCheckDepth::EndEntity;
                options.with_status_policy(unknown).with_depth(depth).build()
            });
            let (algorithms, usage) = (ALL_VERIFICATION_ALGS, KeyUsage::client_auth());
            own.verify_for_usage(algorithms, &self.anchors, between, now, usage, revocation, None)
                .map(drop)
        });
        checked.map_err(why)
    }

    /// Looks at the list, read anew if the file has changed.
    fn fresh<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path {
            let stamp = whole::stamp(path);
            if stamp != known.stamp {
                known.stamp = stamp;
                match read(path) {
                    Ok(list) => {
                        known.list = Some(list);
                        known.edition += 1;
                    }
                    // What was revoked stays revoked.
                    Err(error) => tracing::error!(%error, "the list before it goes on to count"),
                }
            }
        }
        look(&known)
    }
}

fn read(path: &Path) -> Result<CertRevocationList<'static>, CertificatesError> {
    let unreadable = |source| CertificatesError::Unreadable { path: path.to_owned(), source };
    let invalid = |why: String| CertificatesError::Invalid { path: path.to_owned(), why };
    let text = fs::read(path).map_err(unreadable)?;
    let list = CertificateRevocationListDer::from_pem_slice(&text);
    let list = list.map_err(|error| invalid(error.to_string()))?;
    let list = OwnedCertRevocationList::from_der(&list);
    Ok(list.map_err(|error| invalid(error.to_string()))?.into())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library has dozens")]
fn why(error: Error) -> &'static str {
    match error {
        Error::CertRevoked => "the certificate was revoked",
        Error::CertExpired { .. } => "the certificate has expired",
        Error::CertNotValidYet { .. } => "the certificate does not count yet",
        _ => "the certificate is not one of the authority of the workers",
    }
}
