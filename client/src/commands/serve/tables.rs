//! The tables of the configuration file of `tow serve`: bounds, and an issuer of tokens.

use std::{collections::BTreeMap, num::NonZeroU32, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use towpath_engine::code::ErrorCode;
use towpath_server::{
    Limits,
    auth::{oidc::OidcSettings, roles::Role},
};

use super::duration;
use crate::failure::Failure;

/// Bounds that the owner moved.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsTable {
    rate: Option<NonZeroU32>,
    burst: Option<NonZeroU32>,
    connections: Option<NonZeroU32>,
    connection_age: Option<String>,
    request_timeout: Option<String>,
}

impl LimitsTable {
    pub(super) fn limits(self) -> Result<Limits, Failure> {
        let usual = Limits::default();
        let time = |said: Option<String>, usual: Duration| match said {
            None => Ok(usual),
            Some(said) => match duration(&said)? {
                // Zero would end every connection or request at once, and "no limit" is not
                // offered.
                0 => Err(Failure::new(
                    ErrorCode::ConfigInvalid,
                    format!("`limits`: `{said}` must be longer than zero"),
                    "Give it a length, such as `30s`.",
                )),
                ms => Ok(Duration::from_millis(ms)),
            },
        };
        Ok(Limits {
            rate: self.rate.map_or(usual.rate, NonZeroU32::get),
            burst: self.burst.map_or(usual.burst, NonZeroU32::get),
            connections: self.connections.map_or(usual.connections, |most| most.get() as usize),
            connection_age: time(self.connection_age, usual.connection_age)?,
            request_within: time(self.request_timeout, usual.request_within)?,
            ..usual
        })
    }
}

/// The bounds as they are used.
#[derive(Serialize)]
struct LimitsJson {
    rate: u32,
    burst: u32,
    connections: usize,
    connection_age_ms: u128,
    request_timeout_ms: u128,
}

/// Shows the bounds as they are used.
pub(super) fn as_json<S: serde::Serializer>(limits: &Limits, to: S) -> Result<S::Ok, S::Error> {
    let json = LimitsJson {
        rate: limits.rate,
        burst: limits.burst,
        connections: limits.connections,
        connection_age_ms: limits.connection_age.as_millis(),
        request_timeout_ms: limits.request_within.as_millis(),
    };
    json.serialize(to)
}

/// An issuer whose ID tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OidcTable {
    issuer: String,
    audience: String,
    /// The file of its public keys.
    jwks: PathBuf,
    #[serde(default = "sub")]
    name_claim: String,
    #[serde(default = "groups")]
    groups_claim: String,
    /// What members of a group may do.
    roles: BTreeMap<String, Vec<Role>>,
}

fn sub() -> String {
    "sub".to_owned()
}

fn groups() -> String {
    "groups".to_owned()
}

impl OidcTable {
    pub(super) fn settings(self) -> Result<OidcSettings, Failure> {
        let Self { issuer, audience, jwks: keys, name_claim, groups_claim, roles } = self;
        let invalid = |why: &str, advice: &str| {
            Err(Failure::new(ErrorCode::ConfigInvalid, format!("`oidc`: {why}"), advice))
        };
        // Issuers publish an address, so people paste it here; "no such file" would not tell them
        // why.
        if keys.to_string_lossy().contains("://") {
            let why =
                format!("`{}` is not a file, and the server does not fetch keys", keys.display());
            let advice =
                "Fetch the keys with a timer of your own, and put the file in place with `mv`.";
            return invalid(&why, advice);
        }
        // An empty audience would accept the tokens that the issuer made for other programs.
        if issuer.is_empty() || audience.is_empty() {
            return invalid("`issuer` and `audience` must not be empty", "See docs/operations.md.");
        }
        if roles.values().flatten().any(|role| *role == Role::Worker) {
            let why = "the role `worker` is for workers: a group of people cannot have it";
            return invalid(why, "Workers have certificates or tokens of the store.");
        }
        Ok(OidcSettings { issuer, audience, keys, name_claim, groups_claim, roles })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_what_it_must_be_and_nothing_else() {
        let good = "issuer = \"https://id\"\naudience = \"tow\"\njwks = \"/etc/keys.json\"\n";
        let table = |text: &str| toml::from_str::<OidcTable>(text);
        let roles = "[roles]\ndb = [\"operator\", \"viewer\"]\n";
        let settings = table(&format!("{good}{roles}")).unwrap().settings().unwrap();
        assert_eq!((&*settings.name_claim, &*settings.groups_claim), ("sub", "groups"));
        assert_eq!(settings.roles["db"], [Role::Operator, Role::Viewer]);

        assert!(table(good).is_err(), "a token without roles allows nothing");
        assert!(table(&format!("{good}[roles]\ndb = [\"root\"]\n")).is_err());
        assert!(table(&format!("{good}secret = \"x\"\n{roles}")).is_err());
        let refused = |text: String| table(&text).unwrap().settings().unwrap_err().to_string();
        let url = good.replace("/etc/keys.json", "https://id/keys");
        assert!(refused(format!("{url}{roles}")).contains("not a file"));
        assert!(refused(format!("{good}[roles]\nx = [\"worker\"]\n")).contains("for workers"));
        assert!(refused(format!("{}{roles}", good.replace("tow", ""))).contains("audience"));
    }
}
