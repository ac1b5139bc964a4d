//! Locks that are held for a moment, never across a wait.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The lock, whether or not another thread died holding it: every value behind these locks is
/// derived and is replaced whole.
pub(crate) fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
