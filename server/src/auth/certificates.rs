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

use x509_parser::{parse_x509_certificate, parse_x509_crl};

use super::atomic_file::{self, Stamp};

/// The authority of the workers, and what it has taken back.
#[derive(Debug)]
pub(crate) struct Certificates {
    anchors: Vec<TrustAnchor<'static>>,
    /// Their certificates, for the names and keys in them.
    authorities: Vec<CertificateDer<'static>>,
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
    #[error("the authority of the workers is not a valid certificate: {0}")]
    Authority(String),
    /// Its list cannot be read.
    #[error("`{}`: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its list is that of another authority.
    #[error("`{}` is the list of `{issuer}` and is not signed by the authority of the workers, {authority}", path.display())]
    OtherAuthority {
        /// The file.
        path: PathBuf,
        /// Who issued it.
        issuer: String,
        /// The authorities of the workers.
        authority: String,
    },
    /// Its list is none.
    #[error("`{}` is not a valid list of revoked certificates: {why}", path.display())]
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
        let (mut anchors, mut authorities) = (Vec::new(), Vec::new());
        // Several are allowed, so that a new authority can be introduced before the old one is
        // removed.
        for certificate in CertificateDer::pem_slice_iter(ca) {
            let certificate = certificate.map_err(|error| authority(error.to_string()))?;
            let anchor = anchor_from_trusted_cert(&certificate);
            anchors.push(anchor.map_err(|error| authority(error.to_string()))?.to_owned());
            authorities.push(certificate);
        }
        let mut known = Known::default();
        if let Some(path) = path {
            known.stamp = atomic_file::stamp(path);
            // An unreadable list prevents the start: without it every revoked worker would be
            // accepted.
            known.list = Some(read(path, &authorities)?);
        }
        Ok(Self { anchors, authorities, path: path.map(Path::to_owned), known: Mutex::new(known) })
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
                // The list names revoked certificates only. All others are valid by their
                // signature.
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

    /// Looks at the list, read again if the file has changed.
    fn fresh<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path {
            let stamp = atomic_file::stamp(path);
            if stamp != known.stamp {
                // Also if the read fails, so that a broken file is read and logged once, and not
                // with every request.
                known.stamp = stamp;
                match read(path, &self.authorities) {
                    Ok(list) => {
                        known.list = Some(list);
                        known.edition += 1;
                    }
                    // What was revoked stays revoked.
                    Err(error) => {
                        tracing::error!(%error, "failed to read the list of revoked certificates: the previous list stays valid");
                    }
                }
            }
        }
        look(&known)
    }
}

fn read(
    path: &Path,
    authorities: &[CertificateDer<'_>],
) -> Result<CertRevocationList<'static>, CertificatesError> {
    let unreadable = |source| CertificatesError::Unreadable { path: path.to_owned(), source };
    let invalid = |why: String| CertificatesError::Invalid { path: path.to_owned(), why };
    let text = fs::read(path).map_err(unreadable)?;
    let list = CertificateRevocationListDer::from_pem_slice(&text);
    let list = list.map_err(|error| invalid(error.to_string()))?;
    is_issued_by(&list, authorities, path)?;
    let list = OwnedCertRevocationList::from_der(&list);
    Ok(list.map_err(|error| invalid(error.to_string()))?.into())
}

/// Refuses the list of an authority that issues no certificates of workers. The check of a
/// certificate ignores such a list without a word, so nothing would ever be revoked by it.
fn is_issued_by(
    list: &[u8],
    authorities: &[CertificateDer<'_>],
    path: &Path,
) -> Result<(), CertificatesError> {
    let invalid = |why: String| CertificatesError::Invalid { path: path.to_owned(), why };
    let (_, list) = parse_x509_crl(list).map_err(|error| invalid(error.to_string()))?;
    let mut names = Vec::new();
    for authority in authorities {
        let Ok((_, authority)) = parse_x509_certificate(authority) else { continue };
        // The name alone does not do: two authorities may have the same.
        let is_its = authority.subject() == list.issuer();
        if is_its && list.verify_signature(authority.public_key()).is_ok() {
            return Ok(());
        }
        names.push(format!("`{}`", authority.subject()));
    }
    Err(CertificatesError::OtherAuthority {
        path: path.to_owned(),
        issuer: list.issuer().to_string(),
        authority: names.join(", "),
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library has dozens")]
fn why(error: Error) -> &'static str {
    match error {
        Error::CertRevoked => "the certificate was revoked",
        Error::CertExpired { .. } => "the certificate has expired",
        Error::CertNotValidYet { .. } => "the certificate is not valid yet",
        _ => "the certificate is not one of the authority of the workers",
    }
}

#[cfg(test)]
mod tests {
    use super::{super::pki, *};

    #[test]
    fn a_list_of_another_authority_is_refused_by_the_names_of_both() {
        let folder = tempfile::tempdir().unwrap();
        let init = |name: &str, install: &str| {
            let folder = folder.path().join(name);
            pki::init(&folder, install).unwrap();
            let worker = pki::Subject::Worker("eu-1".to_owned());
            pki::issue(&folder, &worker, pki::DAY).unwrap();
            pki::revoke(&folder, "eu-1", Timestamp(1_763_715_723_000)).unwrap();
            folder
        };
        let (own, other, same_name) = (init("own", "one"), init("other", "two"), init("x", "one"));
        let ca = fs::read(own.join(pki::CA_FILE)).unwrap();

        Certificates::of(&ca, Some(&own.join(pki::CRL_FILE))).unwrap();
        let refused = Certificates::of(&ca, Some(&other.join(pki::CRL_FILE))).unwrap_err();
        let said = refused.to_string();
        assert!(said.contains("list of `CN=Towpath two`"), "{said}");
        assert!(said.contains("authority of the workers, `CN=Towpath one`"), "{said}");
        let forged = Certificates::of(&ca, Some(&same_name.join(pki::CRL_FILE))).unwrap_err();
        assert!(matches!(forged, CertificatesError::OtherAuthority { .. }), "{forged}");
    }
}
