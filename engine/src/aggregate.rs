//! What all streams of events have in common, whatever they are about.
//!
//! A kind of stream is a type that implements [`Aggregate`]: its events, its commands, and how one
//! follows from the other. Load, decide, append, snapshot, list, follow and check are written once
//! for all of them, here and in the server's `streams`.

use std::{
    fmt::{Debug, Display},
    hash::Hash,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    codec::{EncodeError, FACT_BYTES_MAX, encode},
    event::{Fact, RunEvent},
    ids::{Actor, Blob},
    refusal::Refusal,
    time::Timestamp,
};

pub use crate::any_event::{Event, IllegalEvent};

/// Bytes of one command's events after which what follows from it waits for the next command.
/// Source: an append holds 32 MiB, and carries what at most two commands recorded; the failure of
/// one job can skip 200,000.
pub const CONSEQUENCES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a list shows of one stream, folded one fact at a time: each costs the same, however large
/// the state of the stream is, so that no list ever has to replay one.
pub trait Summary:
    Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// What happens to the stream.
    type Event: Event;

    /// The stream that `fact` begins, if it begins one.
    fn begin(fact: &Fact<Self::Event>) -> Option<Self>;

    /// Takes in one more fact of the stream.
    fn take(&mut self, fact: &Fact<Self::Event>);

    /// A stream of which only the id is known, because its first record, read at about `at`, cannot
    /// be read.
    fn unreadable(id: &str, at: Timestamp) -> Self;

    /// Whether something may still happen to it by itself.
    fn is_live(&self) -> bool;

    /// The name that the client gave the request which `fact` answered, if it gave one.
    fn idempotency_key(_fact: &Fact<Self::Event>) -> Option<&str> {
        None
    }
}

/// What names a stream among those of its kind.
pub trait StreamId:
    Clone
    + Debug
    + Display
    + Eq
    + Ord
    + Hash
    + AsRef<str>
    + for<'a> From<&'a str>
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<T> StreamId for T where
    T: Clone
        + Debug
        + Display
        + Eq
        + Ord
        + Hash
        + AsRef<str>
        + for<'a> From<&'a str>
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// A state that is the fold of one stream of events. Its default is the state before the first.
pub trait Aggregate: Clone + Debug + Default + PartialEq + Send + Sync + 'static {
    /// The first part of the names of its streams: `run` in `run/7f3c`. Never changes.
    const KIND: &'static str;
    /// What names one of its streams.
    type Id: StreamId;
    /// What happens to it.
    type Event: Event;
    /// What is wanted of it.
    type Command: Clone + Debug + Send + Sync + 'static;
    /// What a list shows of it.
    type Summary: Summary<Event = Self::Event>;

    /// The events that `command` of `by` means at `now`, before what follows from them. None: what
    /// was asked for is so already.
    fn decide(
        &self,
        command: &Self::Command,
        by: &Actor,
        now: Timestamp,
    ) -> Result<Vec<Self::Event>, Refusal>;

    /// Takes in one more fact. After an error the state is as it was.
    fn evolve(&mut self, fact: &Fact<Self::Event>) -> Result<(), IllegalEvent>;

    /// The event that follows by itself from the state, if one does.
    fn consequence(&self) -> Option<Self::Event> {
        None
    }

    /// When the newest event was decided.
    fn newest_at(&self) -> Timestamp;

    /// Whether nothing happens to it until somebody asks: then it need not stay in memory.
    fn is_idle(&self) -> bool;

    /// Whether `event` may change whether it is idle.
    fn changes_idle(event: &Self::Event) -> bool;

    /// The state as bytes, for [`Aggregate::from_snapshot`].
    fn to_snapshot(&self) -> Vec<u8>;

    /// The state that a snapshot holds.
    fn from_snapshot(bytes: &[u8]) -> Result<Self, serde_json::Error>;

    /// About how many bytes of memory the state takes.
    fn memory_bytes(&self) -> usize;

    /// What a list must show of it. `None` before its first event.
    fn summary(&self) -> Option<Self::Summary>;

    /// The blobs that it names, each with what it is.
    fn blobs(&self) -> Vec<(String, Blob)> {
        Vec::new()
    }
}

/// The name of the stream of `id`.
pub fn stream_of<A: Aggregate>(id: &A::Id) -> String {
    format!("{}/{id}", A::KIND)
}

/// What the stream called `stream` is about, if it is of this kind.
pub fn id_of<A: Aggregate>(stream: &str) -> Option<A::Id> {
    let (kind, id) = stream.split_once('/')?;
    (kind == A::KIND).then(|| A::Id::from(id))
}

/// Why a command was not carried out. Nothing is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CarryOutError {
    /// The engine said no. The state is as it was.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What follows from the command cannot be written. The state has changed already and is ahead
    /// of any log: it is not to be used.
    #[error(transparent)]
    Unwritable(Refusal),
    /// The engine decided on something that cannot be replayed: a bug. The state is not to be used.
    #[error("a bug in the engine: {0}")]
    Bug(#[from] IllegalEvent),
}

impl CarryOutError {
    /// Whether the state has changed without a record of it. It must be given up and read again:
    /// the next command would be decided, and appended, on what never happened, and no replay would
    /// reach that state.
    pub fn spoils_the_state(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Unwritable(_) | Self::Bug(_) => true,
        }
    }
}

/// A fact and its bytes, walked and ready to be appended.
pub type Written<E = RunEvent> = (Fact<E>, Vec<u8>);

/// Decides `command`, walks what was decided, and walks what follows from it.
///
/// What follows is bounded by [`CONSEQUENCES_BYTES_MAX`]; the rest follows from the next command.
/// Nothing else is kept of it: the events recorded so far say what is left, also after a crash.
///
/// After a refusal the state is as it was. After any other error it must be thrown away
/// ([`CarryOutError::spoils_the_state`]). Deciding on a copy would spare the caller that, and would
/// cost every command a copy of up to 200,000 jobs; a consequence that cannot be written is a bug,
/// since all of them are bounded.
pub fn carry_out<A: Aggregate>(
    state: &mut A,
    command: &A::Command,
    by: &Actor,
    now: Timestamp,
) -> Result<Vec<Written<A::Event>>, CarryOutError> {
    let at = now.max(state.newest_at());
    let mut written = Vec::new();
    let mut decided = Vec::new();
    for event in state.decide(command, by, at)? {
        let fact = Fact { at, by: by.clone(), event };
        let bytes = encode(&fact).map_err(too_long(&fact.event))?;
        decided.push((fact, bytes));
    }
    let mut bytes_written = 0;
    for (fact, bytes) in decided {
        bytes_written += bytes.len();
        state.evolve(&fact)?;
        written.push((fact, bytes));
    }
    // Bounded: an append that is too large is refused whole, so that the command itself could
    // never be recorded, whoever gives it and however often.
    while bytes_written < CONSEQUENCES_BYTES_MAX
        && let Some(event) = state.consequence()
    {
        let fact = Fact { at, by: by.clone(), event };
        let unwritable = |error| CarryOutError::Unwritable(too_long(&fact.event)(error));
        let bytes = encode(&fact).map_err(unwritable)?;
        bytes_written += bytes.len();
        state.evolve(&fact)?;
        written.push((fact, bytes));
    }
    Ok(written)
}

fn too_long(event: &impl Event) -> impl Fn(EncodeError) -> Refusal {
    let what = event.subject();
    move |_| Refusal::EventTooLong { what: what.clone(), bytes_max: FACT_BYTES_MAX }
}
