//! Tokens of another issuer: ID tokens of an OpenID Connect issuer, whose keys are in a file.
//! What its groups may do is said here, and nothing is let in that is not said.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    crypto::verify,
    decode_header,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet},
};
use serde::Deserialize;
use serde_json::Value;
use towpath_engine::{
    gate,
    ids::{Actor, ActorKind},
    time::Timestamp,
};

use super::{
    atomic_file::{self, Stamp},
    roles::Role,
};

/// How far the clock of the issuer may be from ours, in milliseconds.
const LEEWAY_MS: i64 = 60_000;
/// Longest token that is looked at, in bytes; all headers of a request have 16 KiB.
const TOKEN_BYTES_MAX: usize = 12 * 1024;
/// Largest file of keys, in bytes.
const KEYS_BYTES_MAX: u64 = 1024 * 1024;
/// The claim that holds the e-mail address.
const EMAIL_CLAIM: &str = "email";
/// Longest name of the client, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// An issuer, and what its groups may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcSettings {
    /// What the issuer calls itself, to the letter.
    pub issuer: String,
    /// What it calls us.
    pub audience: String,
    /// The file of its public keys, a JWK set. It is read again when it changes.
    pub keys: PathBuf,
    /// The claim that names who asks.
    pub name_claim: String,
    /// The claim that lists their groups.
    pub groups_claim: String,
    /// What members of a group may do.
    pub roles: BTreeMap<String, Vec<Role>>,
}

/// Why the keys of an issuer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The file cannot be read.
    #[error("`{}`: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no keys.
    #[error("`{}` is not a valid key set: {why}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// A person identified by the issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OidcIdentity {
    pub(crate) actor: Actor,
    pub(crate) roles: Vec<Role>,
    /// Their address, if the issuer says that it was verified.
    pub(crate) email: Option<String>,
    /// The key that signed it.
    key: String,
    expires_at: Timestamp,
}

/// An issuer as the access rule knows it.
#[derive(Debug)]
pub(crate) struct Oidc {
    settings: OidcSettings,
    known: Mutex<(Option<Stamp>, JwkSet)>,
}

/// What every token must say, each in its own form and in no other.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    /// Seconds since 1970, with or without a fraction.
    exp: f64,
    nbf: Option<f64>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn holds(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

impl Oidc {
    pub(crate) fn of(settings: OidcSettings) -> Result<Self, OidcError> {
        let stamp = atomic_file::stamp(&settings.keys);
        let keys = read(&settings.keys)?;
        Ok(Self { settings, known: Mutex::new((stamp, keys)) })
    }

    /// The person of `token` at `now`; or why the token is refused.
    pub(crate) fn verify(&self, token: &str, now: Timestamp) -> Result<OidcIdentity, &'static str> {
        // Before the token is decoded, because the sender is not authenticated yet.
        if token.len() > TOKEN_BYTES_MAX {
            return Err("the token is longer than is read");
        }
        // The same message as for an unknown token of the store, so that a caller cannot tell which
        // kind was expected.
        let head = decode_header(token).map_err(|_| "the token is unknown, revoked or expired")?;
        let kid = head.kid.ok_or("the ID token does not name its key")?;
        let key = self.key(&kid).ok_or("the ID token is signed with a key that is not known")?;
        // The key says how it signs, and not the token.
        if algorithm(&key) != Some(head.alg) {
            return Err("the ID token is not signed as its key signs");
        }
        let decoding = DecodingKey::from_jwk(&key).map_err(|_| "the key cannot be used")?;
        // The library checks the signature alone; times and names are checked here, by one clock.
        let (said, signature) = token.rsplit_once('.').ok_or("the ID token is not whole")?;
        if !verify(signature, said.as_bytes(), &decoding, head.alg).unwrap_or(false) {
            return Err("the signature of the ID token is not good");
        }
        let claims =
            said.split_once('.').and_then(|(_, claims)| URL_SAFE_NO_PAD.decode(claims).ok());
        let claims = serde_json::from_slice(&claims.unwrap_or_default());
        let claims: Claims = claims.map_err(|_| "the ID token lacks what it must say")?;
        self.vouch(claims, kid, now)
    }

    fn vouch(
        &self,
        claims: Claims,
        key: String,
        now: Timestamp,
    ) -> Result<OidcIdentity, &'static str> {
        let Claims { iss, aud, exp, nbf, rest } = claims;
        if iss != self.settings.issuer {
            return Err("the ID token is of another issuer");
        }
        if !aud.holds(&self.settings.audience) {
            return Err("the ID token is for another audience");
        }
        // What does not fit ends at the bounds of the type, which are far enough.
        let at = |seconds: f64| Timestamp((seconds * 1_000.0) as i64);
        let expires_at = Timestamp(at(exp).0.saturating_add(LEEWAY_MS));
        // With a minute of tolerance: clocks of issuers and servers differ, and a token is usually
        // valid for an hour.
        if now >= expires_at {
            return Err("the ID token has expired");
        }
        if nbf.is_some_and(|nbf| now.0.saturating_add(LEEWAY_MS) < at(nbf).0) {
            return Err("the ID token is not valid yet");
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-@+|".contains(c);
        let name = match rest.get(&self.settings.name_claim) {
            Some(Value::String(name))
                if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain) =>
            {
                name.clone()
            }
            Some(_) | None => return Err("the ID token has no identity"),
        };
        // At many issuers people write any address into their own account: until the issuer has
        // verified it, it would let them sign in as another person.
        let is_verified = rest.get("email_verified") == Some(&Value::Bool(true));
        if self.settings.name_claim == EMAIL_CLAIM && !is_verified {
            return Err("the ID token does not say that the e-mail address was verified");
        }
        let groups = match rest.get(&self.settings.groups_claim) {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            Some(_) | None => Vec::new(),
        };
        let given = groups.iter().filter_map(|group| self.settings.roles.get(*group)).flatten();
        let mut roles: Vec<Role> = given.copied().collect();
        // Groups come in any order; the roles are compared and recorded.
        roles.sort_unstable();
        roles.dedup();
        let email = rest.get(EMAIL_CLAIM).and_then(Value::as_str).filter(|_| is_verified);
        let email = email.and_then(gate::email);
        let actor = Actor { kind: ActorKind::Human, name };
        Ok(OidcIdentity { actor, roles, email, key, expires_at })
    }

    /// Whether what was verified once still counts at `now`: its time has not come, and the issuer
    /// has not withdrawn its key.
    pub(crate) fn still_counts(&self, oidc_identity: &OidcIdentity, now: Timestamp) -> bool {
        now < oidc_identity.expires_at && self.key(&oidc_identity.key).is_some()
    }

    /// The key called `kid`, in the file as it is now.
    fn key(&self, kid: &str) -> Option<Jwk> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = atomic_file::stamp(&self.settings.keys);
        // Keys are replaced while streams are open, and a withdrawn key must end them.
        if stamp != known.0 {
            known.0 = stamp;
            match read(&self.settings.keys) {
                Ok(keys) => known.1 = keys,
                Err(error) => {
                    tracing::error!(%error, "failed to read the issuer's keys: the previous keys stay valid");
                }
            }
        }
        known.1.find(kid).cloned()
    }
}

/// How a key signs; `None`: in no way that is taken. A secret that both sides know is none.
fn algorithm(key: &Jwk) -> Option<Algorithm> {
    match &key.algorithm {
        AlgorithmParameters::RSA(_) => Some(Algorithm::RS256),
        AlgorithmParameters::EllipticCurve(on) if on.curve == EllipticCurve::P256 => {
            Some(Algorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(on) if on.curve == EllipticCurve::Ed25519 => {
            Some(Algorithm::EdDSA)
        }
        AlgorithmParameters::EllipticCurve(_)
        | AlgorithmParameters::OctetKeyPair(_)
        | AlgorithmParameters::OctetKey(_) => None,
    }
}

fn read(path: &Path) -> Result<JwkSet, OidcError> {
    let unreadable = |source| OidcError::Unreadable { path: path.to_owned(), source };
    let invalid = |why: String| OidcError::Invalid { path: path.to_owned(), why };
    if fs::metadata(path).map_err(unreadable)?.len() > KEYS_BYTES_MAX {
        return Err(invalid(format!("it has more than {KEYS_BYTES_MAX} bytes")));
    }
    let text = fs::read(path).map_err(unreadable)?;
    let said: Value = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    let listed = said.get("keys").and_then(Value::as_array);
    let listed = listed.ok_or_else(|| invalid("it has no `keys`".to_owned()))?;
    // Issuers list keys of other kinds beside those for signatures.
    let keys = listed.iter().filter_map(|key| serde_json::from_value(key.clone()).ok());
    let keys: Vec<Jwk> = keys.filter(|key| algorithm(key).is_some()).collect();
    if keys.is_empty() {
        return Err(invalid("none for RS256, ES256 or EdDSA".to_owned()));
    }
    Ok(JwkSet { keys })
}

#[cfg(test)]
mod tests;
