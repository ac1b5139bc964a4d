//! Names and numbers that point at things. Each is a type of its own, so that a stage never
//! stands where a job was meant. What a name may look like is checked where it enters
//! (`pipeline_file`, the wire), not here.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Whether `c` cannot be seen, or makes the text around it read differently from what it says:
/// control and format characters, and those that Unicode lets a terminal leave out. Two names that
/// differ in such characters only look the same to a person who approves, cancels or revokes.
///
/// Source: categories Cc, Cf, Zl and Zp, and `Default_Ignorable_Code_Point`, of Unicode 16.
pub fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}')
        || matches!(c, '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}' | '\u{115f}' | '\u{1160}')
        || matches!(c, '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}')
        || matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}')
        || matches!(c, '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}')
        || matches!(c, '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}')
        || matches!(c, '\u{e0000}'..='\u{e0fff}')
}

/// The first character of `name` that no name may have: see [`is_invisible`].
pub fn invisible_in(name: &str) -> Option<char> {
    name.chars().find(|c| is_invisible(*c))
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text, unescaped.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // `pad` and not `write_str`, so that `{:<20}` works in tables.
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// A run: 16 characters of lower-case Crockford base32, chosen at random by the server.
    RunId
}
name! {
    /// A job within a run. Any text of the pipeline file; escaped wherever it becomes a key or
    /// path.
    JobName
}
name! {
    /// A stage within a pipeline.
    StageName
}
name! {
    /// Which settings: those of the server are the only ones.
    SettingsId
}
name! {
    /// A worker, as its session presented itself.
    WorkerName
}

/// Which attempt of a job this is, from 1. It only ever grows, over retries, losses and resumes,
/// and so fences off the reports of older attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The attempt before which there was none.
    pub const FIRST: Self = Self(1);

    /// The attempt after this one.
    #[must_use]
    pub fn next(self) -> Self {
        // Saturating: a panic in the fold would make the run unreadable.
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One attempt of one job of one run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// The run.
    pub run: RunId,
    /// The job.
    pub job: JobName,
    /// Which attempt of the job.
    pub attempt: Attempt,
}

/// A SHA-256, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The first 12 digits: enough for an eye, never for a proof.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits")]
pub struct DigestMalformed;

impl FromStr for Digest {
    type Err = DigestMalformed;

    fn from_str(text: &str) -> Result<Self, DigestMalformed> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| DigestMalformed)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Bytes kept outside the log: what they are is proven by the digest in the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the bytes.
    pub sha256: Digest,
}

impl Blob {
    /// The reference to `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, sha256: Digest::of(bytes) }
    }
}

/// What kind of party an actor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActorKind {
    /// A person.
    Human,
    /// A program that acts on its own judgement.
    Agent,
    /// A program that acts for an organisation: CI, a scheduler.
    Service,
    /// A worker.
    Worker,
}

/// Who issued a command, written `human:ana`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor {
    /// The kind of party.
    pub kind: ActorKind,
    /// Its name, 1 to 200 characters without control characters.
    pub name: String,
}

impl Actor {
    /// Longest accepted name, in bytes.
    pub const NAME_BYTES_MAX: usize = 200;

    /// A person called `name`.
    pub fn human(name: &str) -> Self {
        Self { kind: ActorKind::Human, name: name.to_owned() }
    }

    /// The worker called `name`.
    pub fn worker(name: &str) -> Self {
        Self { kind: ActorKind::Worker, name: name.to_owned() }
    }

    /// The engine's own timer.
    pub fn timer() -> Self {
        Self { kind: ActorKind::Service, name: "timer".to_owned() }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ActorKind::Human => "human",
            ActorKind::Agent => "agent",
            ActorKind::Service => "service",
            ActorKind::Worker => "worker",
        };
        write!(f, "{kind}:{}", self.name)
    }
}

/// A text that names no actor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an actor is `human:`, `agent:`, `service:` or `worker:` and a name of 1 to 200 characters"
)]
pub struct ActorMalformed;

impl FromStr for Actor {
    type Err = ActorMalformed;

    fn from_str(text: &str) -> Result<Self, ActorMalformed> {
        let (kind, name) = text.split_once(':').ok_or(ActorMalformed)?;
        let kind = match kind {
            "human" => ActorKind::Human,
            "agent" => ActorKind::Agent,
            "service" => ActorKind::Service,
            "worker" => ActorKind::Worker,
            _ => return Err(ActorMalformed),
        };
        let fits = !name.is_empty() && name.len() <= Self::NAME_BYTES_MAX;
        // Names are shown in terminals and log lines.
        if !fits || name.chars().any(char::is_control) {
            return Err(ActorMalformed);
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

impl Serialize for Actor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Actor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_reads_back_as_written() {
        for text in ["human:ana", "agent:copilot:7", "service:ci", "worker:eu-2"] {
            assert_eq!(text.parse::<Actor>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_seen_is_found_and_letters_of_any_script_are_not() {
        for text in ["ana", "copy/orders: ü", "日本", "é", "e\u{301}", "→ 🚀", "a b", "naïve"]
        {
            assert_eq!(invisible_in(text), None, "{text:?}");
        }
        for c in [
            '\0',
            '\t',
            '\u{7f}',
            '\u{9b}',
            '\u{ad}',
            '\u{200b}',
            '\u{200d}',
            '\u{202e}',
            '\u{2066}',
            '\u{2060}',
            '\u{feff}',
            '\u{fe0f}',
            '\u{3164}',
            '\u{e0041}',
        ] {
            assert_eq!(invisible_in(&format!("an{c}a")), Some(c), "{c:?}");
        }
    }

    #[test]
    fn an_actor_without_kind_or_name_is_refused() {
        for text in ["ana", "human:", "root:ana", "human:a\u{1b}[2J", ""] {
            assert_eq!(text.parse::<Actor>(), Err(ActorMalformed), "{text:?}");
        }
    }

    #[test]
    fn a_digest_is_64_digits() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("abc".parse::<Digest>(), Err(DigestMalformed));
    }
}
