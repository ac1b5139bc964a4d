//! Certificates of one installation: an authority of its own, and what it issues to servers and
//! workers. Keys are made here and written for their owner alone.

mod issued;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use towpath_engine::time::Timestamp;

pub use issued::{CRL_FILE, Entry, list, revoke};

/// The authority's certificate, for all servers and workers.
pub const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
/// What the installation is called, as the authority was made with it.
const INSTALL_FILE: &str = "install";
/// How the names of workers begin in their certificates.
const IDENTITY_PREFIX: &str = "spiffe://towpath/";
/// One day, in which lifetimes are counted.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an authority is trusted.
const CA_DAYS: u32 = 3_650;
/// How long a certificate is good by default.
pub const CERTIFICATE_DAYS: u32 = 90;
/// Bytes of a serial number.
const SERIAL_BYTES: usize = 16;
/// Clocks differ: certificates are good from a little before now.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// Whom a certificate is for.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A server, by the names and addresses that clients use for it.
    Server(Vec<String>),
    /// A worker, by its name.
    Worker(String),
}

/// Where a certificate and its key were written.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A name that cannot be one.
    #[error("`{name}` is not a valid name for a certificate")]
    NameMalformed {
        /// The name.
        name: String,
    },
    /// The folder has an authority, or the certificate, already.
    #[error("`{}` is there already", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("`{}`: {source}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The authority has issued no such certificate.
    #[error("there is no certificate `{which}`")]
    CertificateUnknown {
        /// What was asked for.
        which: String,
    },
    /// The certificate cannot be made.
    #[error("the certificate cannot be made: {0}")]
    Unmade(#[from] rcgen::Error),
}

impl PkiError {
    fn unusable(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Unusable { path: path.clone(), source }
    }
}

/// Makes an authority for the installation `install` in the new folder `folder`.
pub fn init(folder: &Path, install: &str) -> Result<PathBuf, PkiError> {
    named(install)?;
    // The folder holds the key of the authority; the mode is set at creation, because a later
    // change would leave a moment in which others can read.
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| PkiError::Unusable { path: folder.to_owned(), source })?;
    let key = KeyPair::generate()?;
    let certificate = authority(install).self_signed(&key)?;
    write(&folder.join(CA_KEY_FILE), 0o600, &key.serialize_pem())?;
    write(&folder.join(INSTALL_FILE), 0o644, install)?;
    let path = folder.join(CA_FILE);
    write(&path, 0o644, &certificate.pem())?;
    issued::begin(folder, timestamp(SystemTime::now()))?;
    Ok(path)
}

/// Issues a certificate that is good `for_long` from now on, by the authority in `folder`.
pub fn issue(folder: &Path, subject: &Subject, for_long: Duration) -> Result<Issued, PkiError> {
    let install = read(&folder.join(INSTALL_FILE))?;
    let issuer = issuer(folder)?;
    let (file, mut params) = match subject {
        Subject::Server(hosts) => {
            let first = hosts.first().map(String::as_str).unwrap_or_default();
            named(&first.replace(':', "-"))?;
            let mut params = CertificateParams::new(hosts.clone())?;
            params.distinguished_name.push(DnType::CommonName, first);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            (format!("server-{}", first.replace(':', "-")), params)
        }
        Subject::Worker(name) => {
            named(name)?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name.as_str());
            let identity = format!("{IDENTITY_PREFIX}{install}/worker/{name}");
            params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            (format!("worker-{name}"), params)
        }
    };
    let until = good_for(&mut params, for_long);
    let serial = serial()?;
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    // Tells two authorities of one name apart when a chain is built.
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    let issued = Issued {
        certificate: folder.join(format!("{file}.pem")),
        key: folder.join(format!("{file}.key")),
    };
    // The key first: a certificate without its key is useless, a key without its certificate
    // harmless.
    write(&issued.key, 0o600, &key.serialize_pem())?;
    let (kind, name) = match subject {
        Subject::Server(hosts) => ("server", hosts.join(",")),
        Subject::Worker(name) => ("worker", name.clone()),
    };
    // Recorded before the certificate is written: an unknown certificate cannot be revoked by name.
    let entry = Entry {
        serial: hex::encode(serial),
        kind: kind.to_owned(),
        name,
        expires_at: Some(timestamp(until)),
        revoked_at: None,
    };
    issued::note(folder, entry)?;
    write(&issued.certificate, 0o644, &certificate.pem())?;
    Ok(issued)
}

/// A number that no other certificate has. It is positive, and its first byte is not zero.
fn serial() -> Result<[u8; SERIAL_BYTES], PkiError> {
    let mut random = [0; SERIAL_BYTES];
    let no_chance = |error: getrandom::Error| io::Error::other(error.to_string());
    let filled = getrandom::fill(&mut random).map_err(no_chance);
    filled.map_err(PkiError::unusable(Path::new("random numbers")))?;
    if let Some(first) = random.first_mut() {
        // Positive and never shorter than 16 bytes: some programs read the number as signed or drop
        // leading zeros.
        *first = *first & 0x3f | 0x40;
    }
    Ok(random)
}

/// The authority in `folder`, which can sign.
fn issuer(folder: &Path) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let install = read(&folder.join(INSTALL_FILE))?;
    let key = KeyPair::from_pem(&read(&folder.join(CA_KEY_FILE))?)?;
    Ok(Issuer::new(authority(&install), key))
}

/// The worker that a certificate, which the authority has signed, was issued to.
pub(crate) fn worker_of(certificate: &[u8]) -> Option<String> {
    let certificate = certificate.into();
    let certificate = webpki::EndEntityCert::try_from(&certificate).ok()?;
    let mut names = certificate.valid_uri_names();
    // Exactly one name. With two, the server and another reader of the certificate could choose
    // different ones.
    let (name, None) = (names.next()?, names.next()) else { return None };
    let (install, rest) = name.strip_prefix(IDENTITY_PREFIX)?.split_once('/')?;
    let worker = rest.strip_prefix("worker/")?;
    (named(install).is_ok() && named(worker).is_ok()).then(|| worker.to_owned())
}

fn authority(install: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Towpath {install}"));
    // No authorities below this one: a stolen certificate of a worker cannot issue others.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    good_for(&mut params, DAY * CA_DAYS);
    params
}

/// Makes a certificate good `for_long` from now on; answers until when that is.
fn good_for(params: &mut CertificateParams, for_long: Duration) -> SystemTime {
    let now = SystemTime::now();
    // Clocks of workers may be behind that of the machine with the authority.
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + for_long).into();
    now + for_long
}

fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    Timestamp(i64::try_from(since).unwrap_or(i64::MAX))
}

/// Refuses what would have to be escaped in a file name, an identity or on a terminal.
fn named(name: &str) -> Result<(), PkiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = (1..=63).contains(&name.len()) && !name.starts_with(['.', '-']);
    if fits && name.chars().all(plain) {
        return Ok(());
    }
    Err(PkiError::NameMalformed { name: name.to_owned() })
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::Unusable { path: path.to_owned(), source })
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), PkiError> {
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = opened.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|source| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::AlreadyExists {
            return PkiError::Exists { path };
        }
        PkiError::Unusable { path, source }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_worker_is_known_by_its_certificate_and_keys_are_for_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("pki");
        init(&folder, "test").unwrap();
        let worker = issue(&folder, &Subject::Worker("eu-1".to_owned()), DAY).unwrap();
        let hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let server = issue(&folder, &Subject::Server(hosts), DAY).unwrap();
        for key in [&folder.join(CA_KEY_FILE), &worker.key, &server.key] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let der = |issued: &Issued| {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            let pem = fs::read_to_string(&issued.certificate).unwrap();
            let lines = pem.lines().filter(|line| !line.starts_with("-----"));
            STANDARD.decode(lines.collect::<String>()).unwrap()
        };
        assert_eq!(worker_of(&der(&worker)).as_deref(), Some("eu-1"));
        assert_eq!(worker_of(&der(&server)), None);
        assert_eq!(worker_of(b"nothing"), None);
    }

    #[test]
    fn nothing_is_overwritten_and_names_are_plain() {
        let folder = tempfile::tempdir().unwrap();
        init(folder.path(), "test").unwrap();
        assert!(matches!(init(folder.path(), "test"), Err(PkiError::Exists { .. })));
        let worker = |name: &str| issue(folder.path(), &Subject::Worker(name.to_owned()), DAY);
        worker("a").unwrap();
        assert!(matches!(worker("a"), Err(PkiError::Exists { .. })));
        for name in ["", "../a", "a/b", ".a", "-a", "a b"] {
            assert!(matches!(worker(name), Err(PkiError::NameMalformed { .. })), "{name}");
        }
        let nobody = issue(folder.path(), &Subject::Server(Vec::new()), DAY);
        assert!(matches!(nobody, Err(PkiError::NameMalformed { .. })));
    }
}
