//! Tokens of a good issuer, and all that only look like them.

use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp(1_763_715_723_000);
const SECONDS: i64 = NOW.0 / 1_000;

/// A token that was signed once with a key that nobody has any more, good until 2100.
const RSA_TOKEN: &str = include_str!("tests/rsa.jwt").trim_ascii();
/// The keys that it was signed with.
const RSA_KEYS: &str = include_str!("tests/rsa.json");

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key of the issuer, and how it is listed.
fn key(kid: &str, algorithm: Algorithm) -> (EncodingKey, Value) {
    if algorithm == Algorithm::EdDSA {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let listed =
            json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": text(key.public_key_raw())});
        return (EncodingKey::from_ed_der(key.serialized_der()), listed);
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let (x, y) = key.public_key_raw()[1..].split_at(32);
    let listed = json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": text(x), "y": text(y)});
    (EncodingKey::from_ec_der(key.serialized_der()), listed)
}

struct Issuer {
    folder: tempfile::TempDir,
    key: EncodingKey,
    listed: Value,
    oidc: Oidc,
}

impl Issuer {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (key, listed) = key("k1", Algorithm::ES256);
        list(folder.path(), std::slice::from_ref(&listed));
        let settings = OidcSettings {
            issuer: "https://id.example".to_owned(),
            audience: "towpath".to_owned(),
            keys: folder.path().join("keys.json"),
            name_claim: "sub".to_owned(),
            groups_claim: "groups".to_owned(),
            roles: BTreeMap::from([
                ("db-team".to_owned(), vec![Role::Operator, Role::Viewer]),
                ("leads".to_owned(), vec![Role::Approver, Role::Viewer]),
            ]),
        };
        let oidc = Oidc::of(settings).unwrap();
        Self { folder, key, listed, oidc }
    }

    fn sign(&self, claims: &Value) -> String {
        signed("k1", Algorithm::ES256, &self.key, claims)
    }

    fn verify(&self, token: &str) -> Result<OidcIdentity, &'static str> {
        self.oidc.verify(token, NOW)
    }

    /// Why the token is refused that says `value` for `claim`.
    fn refused(&self, claim: &str, value: Value) -> &'static str {
        let mut claims = claims();
        claims[claim] = value;
        self.verify(&self.sign(&claims)).unwrap_err()
    }
}

fn list(folder: &Path, keys: &[Value]) {
    // Another length each time: the stamp of the file has to differ.
    let text = json!({"keys": keys, "made": uuid::Uuid::now_v7().to_string()}).to_string();
    let beside = folder.join("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, folder.join("keys.json")).unwrap();
}

fn signed(kid: &str, algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
    let head = Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) };
    encode(&head, claims, key).unwrap()
}

fn claims() -> Value {
    json!({
        "iss": "https://id.example", "aud": "towpath", "sub": "ana",
        "groups": ["db-team", "strangers"], "exp": SECONDS + 600, "nbf": SECONDS - 5,
    })
}

#[test]
fn a_good_token_says_who_asks_and_what_they_may() {
    let issuer = Issuer::new();
    let oidc_identity = issuer.verify(&issuer.sign(&claims())).unwrap();
    assert_eq!(oidc_identity.actor.to_string(), "human:ana");
    assert_eq!(oidc_identity.roles, [Role::Viewer, Role::Operator]);

    let mut many = claims();
    many["aud"] = json!(["other", "towpath"]);
    many["groups"] = json!(["leads", "db-team"]);
    let oidc_identity = issuer.verify(&issuer.sign(&many)).unwrap();
    assert_eq!(oidc_identity.roles, [Role::Viewer, Role::Operator, Role::Approver]);
}

#[test]
fn only_a_verified_address_identifies_an_actor() {
    let mut issuer = Issuer::new();
    issuer.oidc.settings.name_claim = "email".to_owned();
    let with = |verified: Value| {
        let mut claims = claims();
        claims["email"] = json!("ana@example.org");
        claims["email_verified"] = verified;
        issuer.verify(&issuer.sign(&claims)).map(|oidc_identity| oidc_identity.actor.to_string())
    };
    assert_eq!(with(json!(true)).as_deref(), Ok("human:ana@example.org"));
    for unverified in [json!(false), json!("true"), json!(1), Value::Null] {
        let why = "the ID token does not say that the e-mail address was verified";
        assert_eq!(with(unverified.clone()), Err(why), "{unverified}");
    }
}

#[test]
fn an_address_counts_only_if_the_issuer_verified_it() {
    let issuer = Issuer::new();
    for (verified, known) in [
        (json!(true), Some("ana@example.org")),
        (json!(false), None),
        (json!("true"), None),
        (Value::Null, None),
    ] {
        let mut claims = claims();
        claims["email"] = json!("Ana+db@example.org");
        claims["email_verified"] = verified;
        assert_eq!(issuer.verify(&issuer.sign(&claims)).unwrap().email.as_deref(), known);
    }
}

#[test]
fn a_group_without_a_role_may_nothing() {
    let issuer = Issuer::new();
    for groups in [json!([]), json!("strangers"), json!(["DB-TEAM"]), json!(7), Value::Null] {
        let mut claims = claims();
        claims["groups"] = groups;
        assert_eq!(issuer.verify(&issuer.sign(&claims)).unwrap().roles, []);
    }
}

#[test]
fn all_three_ways_to_sign_are_known() {
    let issuer = Issuer::new();
    let (ed, listed) = key("ed", Algorithm::EdDSA);
    let rsa: Value = serde_json::from_str(RSA_KEYS).unwrap();
    let rsa = rsa["keys"][0].clone();
    list(issuer.folder.path(), &[listed, rsa, issuer.listed.clone()]);

    issuer.verify(&signed("ed", Algorithm::EdDSA, &ed, &claims())).unwrap();
    issuer.verify(&issuer.sign(&claims())).unwrap();
    issuer.verify(RSA_TOKEN).unwrap();
    let (head, rest) = RSA_TOKEN.split_once('.').unwrap();
    let (_, signature) = rest.split_once('.').unwrap();
    let forged = format!("{head}.{}.{signature}", text(claims().to_string().as_bytes()));
    assert!(issuer.verify(&forged).unwrap_err().contains("signature"));
    assert!(issuer.verify(&RSA_TOKEN[..RSA_TOKEN.len() - 4]).is_err());
}

#[test]
fn claims_that_do_not_fit_are_refused() {
    let issuer = Issuer::new();
    assert!(issuer.refused("aud", json!("others")).contains("audience"));
    assert!(issuer.refused("aud", json!([])).contains("audience"));
    for wrong in ["https://id.example/", "https://evil.example", ""] {
        assert!(issuer.refused("iss", json!(wrong)).contains("issuer"));
    }
    assert!(issuer.refused("exp", json!(SECONDS - 60)).contains("expired"));
    assert!(issuer.refused("nbf", json!(SECONDS + 61)).contains("not valid yet"));
    // A time of another form is no time, and not one that is left away.
    for claim in ["exp", "nbf", "iss", "aud"] {
        let refused = issuer.refused(claim, json!({"a": 1}));
        assert!(refused.contains("lacks"), "{claim}: {refused}");
    }
    assert!(issuer.refused("exp", json!((SECONDS + 600).to_string())).contains("lacks"));
    assert!(issuer.refused("exp", Value::Null).contains("lacks"));
    for name in
        [json!(""), json!("a b"), json!("a:b"), json!("a\u{202e}"), json!(["ana"]), Value::Null]
    {
        assert!(issuer.refused("sub", name).contains("no identity"));
    }
    // Clocks differ by a little.
    let mut late = claims();
    late["exp"] = json!(SECONDS - 59);
    late["nbf"] = json!(SECONDS + 60);
    let oidc_identity = issuer.verify(&issuer.sign(&late)).unwrap();
    assert!(issuer.oidc.still_counts(&oidc_identity, NOW));
    assert!(!issuer.oidc.still_counts(&oidc_identity, NOW.plus_ms(1_000)), "and then it is over");
}

#[test]
fn who_signs_in_another_way_than_the_key_is_refused() {
    let issuer = Issuer::new();
    let good = issuer.sign(&claims());
    let (_, body) = good.split_once('.').unwrap();
    let (body, _) = body.split_once('.').unwrap();
    for alg in ["none", "None", "HS256"] {
        let head = text(json!({"alg": alg, "kid": "k1"}).to_string().as_bytes());
        for signature in ["", "AAAA"] {
            assert!(issuer.verify(&format!("{head}.{body}.{signature}")).is_err(), "{alg}");
        }
    }
    // Everybody knows the public key: as a secret it proves nothing.
    let public = URL_SAFE_NO_PAD.decode(issuer.listed["x"].as_str().unwrap()).unwrap();
    for secret in [public, issuer.listed.to_string().into_bytes()] {
        let secret = EncodingKey::from_secret(&secret);
        let refused = issuer.verify(&signed("k1", Algorithm::HS256, &secret, &claims()));
        assert!(refused.unwrap_err().contains("not signed as its key signs"));
    }
    let (other, _) = key("k1", Algorithm::ES256);
    let refused = issuer.verify(&signed("k1", Algorithm::ES256, &other, &claims()));
    assert!(refused.unwrap_err().contains("signature"));
    let (ed, _) = key("k1", Algorithm::EdDSA);
    assert!(issuer.verify(&signed("k1", Algorithm::EdDSA, &ed, &claims())).is_err());
    let unnamed = encode(&Header::new(Algorithm::ES256), &claims(), &issuer.key).unwrap();
    assert!(issuer.verify(&unnamed).unwrap_err().contains("name its key"));
    for nothing in ["", ".", "..", "a.b.c", &"x".repeat(20_000)] {
        assert!(issuer.verify(nothing).is_err());
    }
}

#[test]
fn keys_are_those_of_the_file_as_it_is_now() {
    let issuer = Issuer::new();
    let (next, listed) = key("k2", Algorithm::ES256);
    let token = signed("k2", Algorithm::ES256, &next, &claims());
    assert!(issuer.verify(&token).unwrap_err().contains("not known"));
    let old = issuer.verify(&issuer.sign(&claims())).unwrap();

    list(issuer.folder.path(), &[listed]);

    issuer.verify(&token).unwrap();
    assert!(issuer.verify(&issuer.sign(&claims())).unwrap_err().contains("not known"));
    assert!(!issuer.oidc.still_counts(&old, NOW), "its key was withdrawn");
    for damaged in ["", "{}", "{\"keys\": []}"] {
        fs::write(issuer.folder.path().join("keys.json"), damaged).unwrap();
        issuer.verify(&token).unwrap();
        assert!(Oidc::of(issuer.oidc.settings.clone()).is_err(), "{damaged}");
    }
}
