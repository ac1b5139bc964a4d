//! Bearer tokens: their actors and roles are stored in the store's folder, the secrets themselves
//! are not.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use towpath_engine::{
    gate::{EMAILS_MAX, email},
    ids::{Actor, ActorKind},
    time::Timestamp,
};
use towpath_storage::durable_fs;

use super::{
    atomic_file::{self, Stamp},
    roles::Role,
};

/// The file within the store's folder.
pub const TOKENS_FILE: &str = "tokens.json";
/// How every secret begins, so that scanners for leaked secrets know it.
pub const TOKEN_PREFIX: &str = "towpath_";
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// The form of the file.
const FORM: u32 = 1;

/// The kind of a token's actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// A person.
    Human,
    /// A program that decides by itself.
    Agent,
    /// A program that does what it was set up to do.
    Service,
}

impl TokenKind {
    /// The kind of the actor in the log.
    fn actor(self) -> ActorKind {
        match self {
            Self::Human => ActorKind::Human,
            Self::Agent => ActorKind::Agent,
            Self::Service => ActorKind::Service,
        }
    }
}

/// A token as it is kept: everything but the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The name of its actor; one token for each name.
    pub name: String,
    /// The party that goes by the name.
    pub kind: TokenKind,
    /// What it may do.
    pub roles: Vec<Role>,
    /// SHA-256 of the secret, in hex.
    sha256: String,
    /// When it was issued.
    pub created_at: Timestamp,
    /// From when on it is no longer valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The e-mail addresses of its actor, as git knows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emails: Vec<String>,
}

impl Token {
    /// Who acts with it.
    pub fn actor(&self) -> Actor {
        Actor { kind: self.kind.actor(), name: self.name.clone() }
    }
}

/// A token to be issued.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// The name of its actor.
    pub name: String,
    /// The party that goes by the name.
    pub kind: TokenKind,
    /// What it may do.
    pub roles: Vec<Role>,
    /// From when on it is no longer valid.
    pub expires_at: Option<Timestamp>,
    /// The e-mail addresses of its actor.
    pub emails: Vec<String>,
}

/// Why tokens could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// There is one of that name.
    #[error("there is a token named `{name}` already")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is none of that name.
    #[error("there is no token named `{name}`")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A name that cannot be one.
    #[error("`{name}` is not a valid token name")]
    NameMalformed {
        /// The name.
        name: String,
    },
    /// An e-mail address that cannot be compared with others.
    #[error("`{email}` is not a valid e-mail address")]
    EmailMalformed {
        /// The address.
        email: String,
    },
    /// The file says something else than tokens.
    #[error("`{}` is not a valid token file: {why}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file cannot be read or written.
    #[error("`{}`: {source}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl TokensError {
    fn unusable(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Unusable { path: path.clone(), source }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    form: u32,
    tokens: Vec<Token>,
}

/// A secret on its way to the one who will use it. It is never logged.
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Issues a token for the store in `folder`. The secret cannot be shown again.
pub fn issue(folder: &Path, new: NewToken, now: Timestamp) -> Result<Secret, TokensError> {
    let NewToken { name, kind, roles, expires_at, emails } = new;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@+".contains(c);
    if name.is_empty() || name.len() > 100 || !name.chars().all(plain) {
        return Err(TokensError::NameMalformed { name });
    }
    let emails = addresses(&emails)?;
    let path = folder.join(TOKENS_FILE);
    let mut random = [0; SECRET_BYTES];
    let no_chance = |error: getrandom::Error| io::Error::other(error.to_string());
    getrandom::fill(&mut random).map_err(no_chance).map_err(TokensError::unusable(&path))?;
    // With a prefix, so that scanners of repositories recognise a token that was committed.
    let secret = format!("{TOKEN_PREFIX}{}", hex::encode(random));
    // A plain hash is enough: the secret has 256 random bits, and nothing shorter can be guessed
    // from its digest.
    let sha256 = hex::encode(Sha256::digest(secret.as_bytes()));
    change(folder, |tokens| {
        if tokens.iter().any(|token| token.name == name) {
            return Err(TokensError::Exists { name });
        }
        tokens.push(Token { name, kind, roles, sha256, created_at: now, expires_at, emails });
        Ok(())
    })?;
    Ok(Secret(secret))
}

/// Addresses in the form in which they are compared, each once.
fn addresses(texts: &[String]) -> Result<Vec<String>, TokensError> {
    let mut emails = Vec::new();
    for text in texts {
        let email = email(text).filter(|_| emails.len() < EMAILS_MAX);
        let email = email.ok_or_else(|| TokensError::EmailMalformed { email: text.clone() })?;
        if !emails.contains(&email) {
            emails.push(email);
        }
    }
    Ok(emails)
}

/// Every token of the store in `folder`, oldest first.
pub fn list(folder: &Path) -> Result<Vec<Token>, TokensError> {
    read(&folder.join(TOKENS_FILE))
}

/// Revokes the token of `name`.
pub fn revoke(folder: &Path, name: &str) -> Result<(), TokensError> {
    change(folder, |tokens| {
        let before = tokens.len();
        tokens.retain(|token| token.name != name);
        let gone = tokens.len() < before;
        if gone { Ok(()) } else { Err(TokensError::Unknown { name: name.to_owned() }) }
    })
}

fn read(path: &Path) -> Result<Vec<Token>, TokensError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TokensError::unusable(path)(error)),
    };
    let invalid = |why: String| TokensError::Invalid { path: path.to_owned(), why };
    let file: File = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    if file.form != FORM {
        return Err(invalid(format!("it has the form {}", file.form)));
    }
    Ok(file.tokens)
}

/// Changes the tokens of `folder`.
fn change(
    folder: &Path,
    change: impl FnOnce(&mut Vec<Token>) -> Result<(), TokensError>,
) -> Result<(), TokensError> {
    let path = folder.join(TOKENS_FILE);
    let unusable = TokensError::unusable(&path);
    // Two `tow token` at once would otherwise each write the list that they have read.
    let _lock = atomic_file::lock(&folder.join("tokens.lock")).map_err(&unusable)?;
    let mut tokens = read(&path)?;
    change(&mut tokens)?;
    let file = File { form: FORM, tokens };
    let mut text = serde_json::to_vec_pretty(&file).map_err(io::Error::from).map_err(&unusable)?;
    text.push(b'\n');
    durable_fs::replace_file(&path, 0o600, &text).map_err(unusable)
}

/// The tokens of a store as its server knows them: what the file says, as soon as it says so.
#[derive(Debug)]
pub(crate) struct Tokens {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    tokens: Arc<[Token]>,
    /// How often it has changed.
    edition: u64,
    /// There was a file once: without one nobody is let in.
    seen: bool,
}

impl Tokens {
    pub(crate) fn of(folder: &Path) -> Self {
        Self { path: folder.join(TOKENS_FILE), known: Mutex::default() }
    }

    /// Whether there is, or was, a file of tokens.
    pub(crate) fn exist(&self) -> bool {
        self.fresh().1
    }

    /// The token of `secret`, if it counts at `now`.
    pub(crate) fn find(&self, secret: &str, now: Timestamp) -> Option<Token> {
        let asked = hex::encode(Sha256::digest(secret.as_bytes()));
        self.find_digest(&asked, now)
    }

    /// Whether `token` still counts, and means the same, at `now`.
    pub(crate) fn still_counts(&self, token: &Token, now: Timestamp) -> bool {
        self.find_digest(&token.sha256, now).is_some_and(|found| found == *token)
    }

    /// A number that changes whenever the file of tokens does.
    pub(crate) fn edition(&self) -> u64 {
        drop(self.fresh());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).edition
    }

    fn find_digest(&self, asked: &str, now: Timestamp) -> Option<Token> {
        let (tokens, _) = self.fresh();
        let mut found = None;
        // All of them, whichever it is: how long it takes says nothing.
        for token in tokens.iter() {
            if same(token.sha256.as_bytes(), asked.as_bytes()) {
                found = Some(token);
            }
        }
        found.filter(|token| token.expires_at.is_none_or(|end| now < end)).cloned()
    }

    /// The tokens as the file has them now. An unreadable file has no tokens, so every client is
    /// refused.
    fn fresh(&self) -> (Arc<[Token]>, bool) {
        let stamp = atomic_file::stamp(&self.path);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp != known.stamp {
            // Never reset: deleting the file must not open a server that was closed by its first
            // token.
            known.seen |= stamp.is_some();
            known.stamp = stamp;
            known.edition += 1;
            known.tokens = match read(&self.path) {
                Ok(tokens) => tokens.into(),
                Err(error) => {
                    // And not the previous tokens: the file may be unreadable because a revocation
                    // was written only in part.
                    tracing::error!(%error, "failed to read the token file: every token is refused");
                    Arc::default()
                }
            };
        }
        (Arc::clone(&known.tokens), known.seen)
    }
}

/// When a token that let an open stream in is to be looked up again: each look compares it with
/// every token, which thousands of streams must not do twice a second.
#[derive(Debug)]
pub(crate) struct Recheck {
    expires_at: Option<Timestamp>,
    edition: Option<u64>,
}

impl Recheck {
    pub(crate) fn of(token: &Token) -> Self {
        Self { expires_at: token.expires_at, edition: None }
    }

    /// Whether it is now, at the `edition` of the tokens.
    pub(crate) fn is_due(&mut self, edition: u64, now: Timestamp) -> bool {
        let changed = self.edition.replace(edition) != Some(edition);
        changed || self.expires_at.is_some_and(|end| now >= end)
    }
}

/// Whether two digests are the same, in a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
    a.len() == b.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000);

    fn new(name: &str) -> NewToken {
        let roles = vec![Role::Viewer];
        let (name, kind) = (name.to_owned(), TokenKind::Human);
        NewToken { name, kind, roles, expires_at: None, emails: Vec::new() }
    }

    #[test]
    fn an_open_stream_looks_its_token_up_when_the_file_has_changed_or_it_has_expired() {
        let folder = tempfile::tempdir().unwrap();
        issue(folder.path(), new("ana"), NOW).unwrap();
        let tokens = Tokens::of(folder.path());
        let token = list(folder.path()).unwrap().remove(0);
        let mut recheck = Recheck::of(&token);
        assert!(recheck.is_due(tokens.edition(), NOW), "it may have changed since it was found");

        for _ in 0..1_000 {
            assert!(!recheck.is_due(tokens.edition(), NOW));
        }
        issue(folder.path(), new("bob"), NOW).unwrap();
        assert!(recheck.is_due(tokens.edition(), NOW));
        assert!(!recheck.is_due(tokens.edition(), NOW));
        let mut short = Recheck::of(&Token { expires_at: Some(NOW), ..token });
        assert!(short.is_due(tokens.edition(), NOW) && short.is_due(tokens.edition(), NOW));
    }

    #[test]
    fn a_token_counts_until_it_is_revoked_and_its_secret_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let known = Tokens::of(folder.path());
        assert!(!known.exist());
        let secret = issue(folder.path(), new("ana"), NOW).unwrap();
        assert_eq!(secret.reveal().len(), TOKEN_PREFIX.len() + 64);
        assert!(known.exist());
        let found = known.find(secret.reveal(), NOW).unwrap();
        assert_eq!(found.actor().to_string(), "human:ana");
        assert!(known.find("towpath_00", NOW).is_none());
        assert!(known.find("", NOW).is_none());
        let path = folder.path().join(TOKENS_FILE);
        assert!(!fs::read_to_string(&path).unwrap().contains(secret.reveal()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        revoke(folder.path(), "ana").unwrap();
        assert!(known.find(secret.reveal(), NOW).is_none());
        assert!(!known.still_counts(&found, NOW));
        assert!(matches!(revoke(folder.path(), "ana"), Err(TokensError::Unknown { .. })));
    }

    #[test]
    fn a_token_counts_until_it_expires() {
        let folder = tempfile::tempdir().unwrap();
        let known = Tokens::of(folder.path());
        let end = Some(NOW.plus_ms(10));
        let secret = issue(folder.path(), NewToken { expires_at: end, ..new("ana") }, NOW).unwrap();
        assert!(known.find(secret.reveal(), NOW.plus_ms(9)).is_some());
        assert!(known.find(secret.reveal(), NOW.plus_ms(10)).is_none());
    }

    #[test]
    fn addresses_are_kept_as_they_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let with = |name: &str, emails: &[&str]| NewToken {
            emails: emails.iter().map(|text| (*text).to_owned()).collect(),
            ..new(name)
        };
        let known = with("ana", &["Ana+work@Example.org", "ana@example.org", "a@b.c"]);
        issue(folder.path(), known, NOW).unwrap();
        assert_eq!(list(folder.path()).unwrap()[0].emails, ["ana@example.org", "a@b.c"]);
        for wrong in ["ana", "", "аna@example.org"] {
            let refused = issue(folder.path(), with("bob", &[wrong]), NOW);
            assert!(matches!(refused, Err(TokensError::EmailMalformed { .. })), "{wrong}");
        }
    }

    #[test]
    fn names_are_taken_once_and_look_like_names() {
        let folder = tempfile::tempdir().unwrap();
        issue(folder.path(), new("ana"), NOW).unwrap();
        let again = issue(folder.path(), new("ana"), NOW);
        assert!(matches!(again, Err(TokensError::Exists { .. })));
        for name in ["", "a b", "a:b", "\u{202e}a", &"a".repeat(101)] {
            let refused = issue(folder.path(), new(name), NOW);
            assert!(matches!(refused, Err(TokensError::NameMalformed { .. })), "{name}");
        }
        assert_eq!(list(folder.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_is_broken_or_gone_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let known = Tokens::of(folder.path());
        let secret = issue(folder.path(), new("ana"), NOW).unwrap();
        assert!(known.find(secret.reveal(), NOW).is_some());
        fs::write(folder.path().join(TOKENS_FILE), "{").unwrap();
        assert!(known.find(secret.reveal(), NOW).is_none());
        assert!(matches!(list(folder.path()), Err(TokensError::Invalid { .. })));
        fs::remove_file(folder.path().join(TOKENS_FILE)).unwrap();
        assert!(known.find(secret.reveal(), NOW).is_none());
        assert!(known.exist(), "the access rule does not open by itself");
    }
}
