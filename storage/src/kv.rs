//! What the log needs from a key-value database: ordered keys, one atomic and durable write.
//!
//! A backend of this kind implements [`KvBackend`], says how its files are found with [`files::KvFiles`],
//! and gets the whole log: group commit, blocks, index, high-water mark.

pub(crate) mod catch_panic;
pub(crate) mod files;
#[cfg(feature = "fjall")]
pub(crate) mod fjall;
pub(crate) mod sled;

use std::{fmt::Debug, io::ErrorKind, ops::RangeInclusive, sync::Arc};

use bytes::Bytes;

use crate::{
    error::{Cause, Damage, StoreError},
    log::record::Position,
};

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// A key and its value, as found.
pub type Found = (Bytes, Bytes);

/// An ordered map on disk.
pub trait KvBackend: Debug + Send + Sync + 'static {
    /// Writes all of `entries` or none. When this returns, a power cut cannot take them back.
    fn put(&self, entries: Vec<Entry>) -> Result<(), KvError>;

    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// The entry with the greatest key in `keys`.
    fn last_in(&self, keys: RangeInclusive<&[u8]>) -> Result<Option<Found>, KvError>;

    /// At most `limit` entries with keys in `keys`, in order.
    fn first_in(&self, keys: RangeInclusive<&[u8]>, limit: usize) -> Result<Vec<Found>, KvError>;
}

/// Why a database did not answer.
#[derive(Debug)]
pub enum KvError {
    /// Its files are not what it wrote, in its own words.
    Damaged(String),
    /// The system refused.
    Unavailable(Cause),
}

impl KvError {
    /// An error of the system. Damage, when it says that a file of the database ends too early,
    /// holds nonsense, is missing or in the way.
    pub fn of_io(error: std::io::Error) -> Self {
        const DAMAGE: [ErrorKind; 5] = [
            ErrorKind::UnexpectedEof,
            ErrorKind::InvalidData,
            ErrorKind::InvalidInput,
            ErrorKind::NotFound,
            ErrorKind::AlreadyExists,
        ];
        // A database opens files it wrote and reads bytes it wrote: that one is missing or ends too
        // early is no passing condition, and trying again would not mend it.
        if DAMAGE.contains(&error.kind()) {
            return Self::Damaged(error.to_string());
        }
        Self::unavailable(error)
    }

    /// An error of the system that says nothing about the files.
    pub fn unavailable(error: std::io::Error) -> Self {
        Self::Unavailable(Arc::new(error))
    }

    /// The store's error for this one, met while `doing` something about `position`.
    pub(crate) fn at(self, position: Position, doing: &'static str) -> StoreError {
        match self {
            Self::Damaged(says) => StoreError::Damaged { position, what: Damage::Backend { says } },
            Self::Unavailable(cause) => StoreError::Unavailable { doing, cause },
        }
    }
}
