//! The log: records in blocks over a key-value backend, written by one thread.
//!
//! | module | what |
//! |---|---|
//! | `handle` | [`Log`], the [`crate::EventStore`] over a key-value backend |
//! | `queue` | appends that wait, and the thread that writes them as group commits |
//! | `writer` | one group commit: who may append, which keys are written |
//! | `reader` | pages of the log and of a stream, every block verified |
//! | `recovery` | what is checked and read again when a log is opened |
//! | `record`, `block`, `index`, `high_water` | the layouts on disk |
//! | `verify` | the audit of a whole log |

pub(crate) mod block;
pub(crate) mod handle;
pub(crate) mod high_water;
pub(crate) mod index;
pub(crate) mod queue;
pub(crate) mod reader;
pub(crate) mod record;
pub(crate) mod recovery;
pub(crate) mod verify;
pub(crate) mod writer;

#[cfg(test)]
mod layout;
#[cfg(test)]
mod tests;

pub(crate) use self::{handle::Log, queue::size_within_bounds};
