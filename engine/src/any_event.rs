//! An event of any kind of stream, and what is wrong with one that a state does not allow.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

/// One thing that happened to whatever a stream is about.
pub trait Event:
    Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The word that stands in the record's envelope and in the bytes. No two kinds of streams have
    /// an event of the same word.
    fn kind(&self) -> &'static str;

    /// What a refusal calls the event when it is too long to be recorded.
    fn subject(&self) -> String {
        self.kind().to_owned()
    }
}

/// An event that the state it meets does not allow. Before an append it is a bug of ours; after a
/// read it is damage of the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{event}` is not allowed when {state}")]
pub struct IllegalEvent {
    /// The event's kind.
    pub event: &'static str,
    /// The state that refused it, in words.
    pub state: String,
}

impl IllegalEvent {
    /// `event` met a state described by `state`.
    pub fn new(event: &impl Event, state: impl Into<String>) -> Self {
        Self { event: event.kind(), state: state.into() }
    }
}
