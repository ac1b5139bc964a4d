//! The time of this machine.

use std::time::{SystemTime, UNIX_EPOCH};

use towpath_engine::time::Timestamp;

/// The moment it is, for drawing.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
