//! Which connection an input or effect is about.

/// One connection to a server, numbered from 1. Inputs about any other than the newest are
/// ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);
