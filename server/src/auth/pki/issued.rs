//! The book of an authority: what it has issued, and what it has taken back.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use serde::{Deserialize, Serialize};
use towpath_engine::time::Timestamp;
use towpath_storage::durable_fs;

use super::{DAY, PkiError, issuer};
use crate::auth::atomic_file;

/// The list of what the authority has taken back, which servers are given.
pub const CRL_FILE: &str = "crl.pem";
const BOOK_FILE: &str = "issued.json";
/// The form of the book.
const FORM: u32 = 1;
/// Digits of a serial number.
const SERIAL_DIGITS: std::ops::RangeInclusive<usize> = 2..=40;
/// How long the list says that it counts. Servers continue with it after that.
const CRL_DAYS: u32 = 3_650;

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number, in hex.
    pub serial: String,
    /// Whom it is for: `worker` or `server`; `unknown` if it is older than the book.
    pub kind: String,
    /// The name of that.
    pub name: String,
    /// From when on it is no longer valid. `None`: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Since when it is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    form: u32,
    /// How many lists were signed.
    lists: u64,
    certificates: Vec<Entry>,
}

/// Every certificate that the authority in `folder` has issued, oldest first.
pub fn list(folder: &Path) -> Result<Vec<Entry>, PkiError> {
    Ok(read(folder)?.certificates)
}

/// Notes what was issued.
pub(super) fn note(folder: &Path, entry: Entry) -> Result<(), PkiError> {
    let _lock = lock(folder)?;
    let mut book = read(folder)?;
    book.certificates.push(entry);
    write(folder, book)
}

/// Takes back every certificate that is called `which`, or the one of that number; answers where
/// the new list is and how many it holds.
pub fn revoke(folder: &Path, which: &str, now: Timestamp) -> Result<(PathBuf, usize), PkiError> {
    let _lock = lock(folder)?;
    let mut book = read(folder)?;
    let serial = which.replace(':', "").to_ascii_lowercase();
    let mut found = false;
    for entry in &mut book.certificates {
        let named = entry.name == which && !which.is_empty();
        if named || entry.serial == serial {
            found = true;
            // The first time is kept: a list that moves the time forward would make earlier
            // sessions look valid.
            entry.revoked_at.get_or_insert(now);
        }
    }
    let is_number = serial.len().is_multiple_of(2)
        && SERIAL_DIGITS.contains(&serial.len())
        && serial.chars().all(|digit| digit.is_ascii_hexdigit());
    match (found, is_number && serial.len() >= 16) {
        (true, _) => {}
        // A certificate from before the list of issued ones was kept: its number is all that is
        // known.
        (false, true) => book.certificates.push(Entry {
            serial,
            kind: "unknown".to_owned(),
            name: String::new(),
            expires_at: None,
            revoked_at: Some(now),
        }),
        (false, false) => return Err(PkiError::CertificateUnknown { which: which.to_owned() }),
    }
    publish(folder, book, now)
}

/// Signs the list of what is taken back, and keeps the book.
fn publish(folder: &Path, mut book: Book, now: Timestamp) -> Result<(PathBuf, usize), PkiError> {
    book.lists += 1;
    let time =
        |at: Timestamp| UNIX_EPOCH + Duration::from_millis(u64::try_from(at.0).unwrap_or_default());
    let revoked = book.certificates.iter().filter_map(|entry| {
        Some(RevokedCertParams {
            serial_number: SerialNumber::from(hex::decode(&entry.serial).ok()?),
            revocation_time: time(entry.revoked_at?).into(),
            reason_code: None,
            invalidity_date: None,
        })
    });
    let params = CertificateRevocationListParams {
        this_update: time(now).into(),
        next_update: (time(now) + DAY * CRL_DAYS).into(),
        // Grows with every list, so that a reader can refuse an older one.
        crl_number: SerialNumber::from(book.lists),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let count = params.revoked_certs.len();
    let text = params.signed_by(&issuer(folder)?)?.pem()?;
    let path = folder.join(CRL_FILE);
    // The book first: what it knows as taken back is in every later list.
    write(folder, book)?;
    durable_fs::replace_file(&path, 0o644, text.as_bytes()).map_err(PkiError::unusable(&path))?;
    Ok((path, count))
}

/// The first list, with nothing in it.
pub(super) fn begin(folder: &Path, now: Timestamp) -> Result<(), PkiError> {
    let _lock = lock(folder)?;
    publish(folder, Book { form: FORM, ..Book::default() }, now).map(drop)
}

fn lock(folder: &Path) -> Result<fs::File, PkiError> {
    let path = folder.join("issued.lock");
    atomic_file::lock(&path).map_err(PkiError::unusable(&path))
}

fn read(folder: &Path) -> Result<Book, PkiError> {
    let path = folder.join(BOOK_FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Book { form: FORM, ..Book::default() });
        }
        Err(error) => return Err(PkiError::unusable(&path)(error)),
    };
    let read: Result<Book, _> = serde_json::from_slice(&text);
    let damaged = |why: String| PkiError::unusable(&path)(io::Error::other(why));
    let book = read.map_err(|error| damaged(error.to_string()))?;
    if book.form != FORM {
        return Err(damaged(format!("it has the form {}", book.form)));
    }
    Ok(book)
}

fn write(folder: &Path, book: Book) -> Result<(), PkiError> {
    let path = folder.join(BOOK_FILE);
    let text = serde_json::to_vec_pretty(&book).map_err(io::Error::from);
    let written = text.and_then(|mut text| {
        text.push(b'\n');
        durable_fs::replace_file(&path, 0o600, &text)
    });
    written.map_err(PkiError::unusable(&path))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Subject, init, issue},
        *,
    };

    const NOW: Timestamp = Timestamp(1_763_715_723_000);

    #[test]
    fn what_is_taken_back_is_written_down_and_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        init(folder.path(), "test").unwrap();
        let first = fs::read(folder.path().join(CRL_FILE)).unwrap();
        for name in ["a", "b", "c"] {
            issue(folder.path(), &Subject::Worker(name.to_owned()), DAY).unwrap();
        }
        let serial = list(folder.path()).unwrap()[1].serial.clone();

        assert_eq!(revoke(folder.path(), "a", NOW).unwrap().1, 1);
        let colons = serial.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
        let spelt = colons.collect::<Vec<_>>().join(":").to_uppercase();
        assert_eq!(revoke(folder.path(), &spelt, NOW).unwrap().1, 2);
        assert_eq!(revoke(folder.path(), "a", NOW.plus_ms(9)).unwrap().1, 2, "it is so already");

        let known = list(folder.path()).unwrap();
        let revoked: Vec<_> = known.iter().map(|entry| entry.revoked_at).collect();
        assert_eq!(revoked, [Some(NOW), Some(NOW), None]);
        assert_ne!(fs::read(folder.path().join(CRL_FILE)).unwrap(), first);
        // One that is older than the book goes by its number.
        assert_eq!(revoke(folder.path(), "00aa11bb22cc33dd", NOW).unwrap().1, 3);
        for unknown in ["d", "", "ab", "zz"] {
            let refused = revoke(folder.path(), unknown, NOW);
            assert!(matches!(refused, Err(PkiError::CertificateUnknown { .. })), "{unknown}");
        }
    }
}
