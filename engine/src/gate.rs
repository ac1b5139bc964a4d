//! Who may open a gate: the policy of a job, and what is known about the client.
//!
//! Everything is decided on what is in the log: the plan, who asked for the run, who wrote its
//! file, and who has approved so far.

use serde::{Deserialize, Serialize};

use crate::{
    ids::Actor,
    time::{Timestamp, duration_words},
};

/// Most people that one gate may want.
pub const PEOPLE_MAX: u32 = 16;
/// Most entries of `approvers`.
pub const APPROVERS_MAX: usize = 64;
/// Shortest validity of an approval, in milliseconds.
pub const EXPIRES_MS_MIN: u64 = 1_000;
/// Longest validity of an approval, in milliseconds: 90 days.
pub const EXPIRES_MS_MAX: u64 = 90 * 24 * 60 * 60 * 1_000;
/// Most authors of a pipeline file that a run can carry.
pub const AUTHORS_MAX: usize = 64;
/// Most e-mail addresses of one person.
pub const EMAILS_MAX: usize = 16;
/// Longest e-mail address, in bytes.
const EMAIL_BYTES_MAX: usize = 254;

/// The roles that `approvers` may name. The server has the same ones.
pub const ROLES: [&str; 6] = ["viewer", "operator", "approver", "worker", "auditor", "admin"];
/// Has every role: a client on the store's own socket, or on a loopback port without tokens, is not
/// authenticated.
pub const OWNER: &str = "owner";

/// Who may approve at a gate, how many must, and how long approvals are valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatePolicy {
    /// Who may approve: to fit one of these is enough. Empty: every person whom the server lets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<Approver>,
    /// How many different people must approve, 1 to [`PEOPLE_MAX`].
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub min: u32,
    /// Who may not, although they fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not: Vec<Excluded>,
    /// How long an approval is valid, in milliseconds. `None`: until the job is leased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

impl Default for GatePolicy {
    fn default() -> Self {
        Self { approvers: Vec::new(), min: 1, not: Vec::new(), expires_ms: None }
    }
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over like this")]
fn is_one(min: &u32) -> bool {
    *min == 1
}

/// Whom an entry of `approvers` lets in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approver {
    /// Every person with this role.
    Role(String),
    /// This person.
    Person(Actor),
}

/// Who may not approve although they fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Excluded {
    /// The actors who requested the run or replaced its plan.
    Requester,
    /// The authors and committers of the pipeline file.
    Author,
}

/// What is known about an actor beside the name, as the server verified it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Their roles; [`OWNER`] for a client that was not authenticated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Their e-mail addresses, as [`email`] writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emails: Vec<String>,
}

impl Identity {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty() && self.emails.is_empty()
    }
}

/// Who wrote a pipeline file, as the client found it in its history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authors {
    /// Authors and committers, as [`email`] writes them; at most [`AUTHORS_MAX`].
    pub emails: Vec<String>,
    /// The file has uncommitted changes: the actor who sent it is an author.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncommitted: bool,
}

/// One valid approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Who approved.
    pub by: Actor,
    /// When.
    pub at: Timestamp,
    /// The comment.
    pub comment: String,
    /// What was known about them then.
    pub identity: Identity,
    /// When it is no longer valid, unless the job was leased before.
    pub expires_at: Option<Timestamp>,
    /// It was given with `--yes` when the run began.
    pub in_advance: bool,
}

/// An e-mail address in the form that is compared: lower case, without what follows a `+`.
/// `None` for what is not an address, and for letters beyond ASCII, which can look like others.
pub fn email(text: &str) -> Option<String> {
    // ASCII only: other letters have lower-case forms that depend on the language, and two people
    // could become one.
    let text = text.trim().to_ascii_lowercase();
    let fits = text.len() <= EMAIL_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
    let (local, domain) = text.split_once('@').filter(|_| fits)?;
    // `ana+git@…` and `ana@…` reach one mailbox at most providers; without this a second address
    // would be a second approver.
    let local = local.split_once('+').map_or(local, |(before, _)| before);
    let whole = !local.is_empty() && !domain.is_empty() && !domain.contains('@');
    whole.then(|| format!("{local}@{domain}"))
}

/// The name that identifies a person, independent of its case.
pub fn person(actor: &Actor) -> String {
    // Issuers often use the address as the name, and then its rules apply.
    email(&actor.name).unwrap_or_else(|| actor.name.to_lowercase())
}

pub(crate) fn share(ours: &[String], theirs: &[String]) -> bool {
    ours.iter().any(|email| theirs.contains(email))
}

/// Whether these are one person: by name, whatever its case and kind, or by an e-mail address.
pub fn is_same_person(a: (&Actor, &Identity), b: (&Actor, &Identity)) -> bool {
    person(a.0) == person(b.0) || share(&a.1.emails, &b.1.emails)
}

impl GatePolicy {
    /// Whether one of the excluded is `who`.
    pub fn excludes(&self, who: Excluded) -> bool {
        self.not.contains(&who)
    }

    /// Who may approve, in words: `role:approver or human:ana`.
    pub(crate) fn whom(&self) -> String {
        let all: Vec<String> = self.approvers.iter().map(ToString::to_string).collect();
        if all.is_empty() { "any person".to_owned() } else { all.join(" or ") }
    }

    /// What the gate wants, in words: `2 people of role:approver, not the requester, within 4h00m`.
    pub fn words(&self) -> String {
        let mut words = match self.min {
            1 => "one person".to_owned(),
            min => format!("{min} people"),
        };
        if !self.approvers.is_empty() {
            words.push_str(&format!(" of {}", self.whom()));
        }
        words.push_str(&self.exclusion());
        if let Some(ms) = self.expires_ms {
            words.push_str(&format!("; an approval is valid for {}", duration_words(ms)));
        }
        words
    }

    /// Who may not, as the end of a sentence.
    fn exclusion(&self) -> String {
        match (self.excludes(Excluded::Requester), self.excludes(Excluded::Author)) {
            (true, true) => ", neither the requester nor an author of the file".to_owned(),
            (true, false) => ", not the requester".to_owned(),
            (false, true) => ", not an author of the file".to_owned(),
            (false, false) => String::new(),
        }
    }

    /// Who is waited for while `approvals_remaining` people are.
    pub fn waits_for(&self, approvals_remaining: u32) -> String {
        let whom = match (approvals_remaining, self.approvers.is_empty()) {
            (1, true) => "one more person".to_owned(),
            (1, false) => format!("one more of {}", self.whom()),
            (more, true) => format!("{more} more people"),
            (more, false) => format!("{more} more of {}", self.whom()),
        };
        whom + &self.exclusion()
    }
}

impl Approver {
    pub(crate) fn fits(&self, (by, identity): (&Actor, &Identity)) -> bool {
        match self {
            // The owner of the store could issue any token, so a check of roles would protect
            // nothing there.
            Self::Role(role) => identity.roles.iter().any(|held| held == role || held == OWNER),
            Self::Person(named) => person(named) == person(by),
        }
    }
}

impl std::fmt::Display for Approver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Role(role) => write!(f, "role:{role}"),
            Self::Person(actor) => actor.fmt(f),
        }
    }
}

impl Excluded {
    /// The word for it in a pipeline file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Requester => "requester",
            Self::Author => "author",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_compared_without_case_and_tag() {
        for (text, expected) in [
            ("Ana@Example.ORG", Some("ana@example.org")),
            (" ana+ci@example.org ", Some("ana@example.org")),
            ("ana", None),
            ("@example.org", None),
            ("+x@example.org", None),
            ("a@b@c", None),
            ("аna@example.org", None),
            ("ana@exa mple.org", None),
        ] {
            assert_eq!(email(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn one_person_is_one_however_they_are_called() {
        let known = |emails: &[&str]| Identity {
            emails: emails.iter().map(|text| (*text).to_owned()).collect(),
            ..Identity::default()
        };
        let (none, ana) = (known(&[]), known(&["ana@example.org"]));
        let same = |a: &str, x: &Identity, b: &str, y: &Identity| {
            is_same_person((&Actor::human(a), x), (&Actor::human(b), y))
        };
        assert!(same("ana", &none, "Ana", &none));
        assert!(same("ana@example.org", &none, "Ana+ci@example.org", &none));
        assert!(same("ana", &ana, "ana-laptop", &ana));
        assert!(!same("ana", &ana, "bob", &none));
        assert!(!same("ana", &none, "anna", &none));
    }

    #[test]
    fn a_policy_reads_back_and_says_only_what_is_set() {
        let policy = GatePolicy {
            approvers: vec![Approver::Role("approver".into()), Approver::Person(Actor::human("a"))],
            min: 2,
            not: vec![Excluded::Requester, Excluded::Author],
            expires_ms: Some(14_400_000),
        };
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<GatePolicy>(&text).unwrap(), policy);
        assert_eq!(serde_json::to_string(&GatePolicy::default()).unwrap(), "{}");
        assert_eq!(
            policy.words(),
            "2 people of role:approver or human:a, neither the requester nor an author of the \
             file; an approval is valid for 4h00m"
        );
    }
}
