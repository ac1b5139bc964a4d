//! What a session keeps of the attempts that it holds: parts that were wrong, and reports under way.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex as SyncMutex},
};

use towpath_engine::results;
use towpath_storage::{DiskFull, StoreError};

use crate::{command_error::CommandError, limits::PART_BYTES_MAX, outputs::Key, sync::locked};

/// What a session knows of attempts that it holds, so that neither is longer than a worker's slots.
#[derive(Default)]
pub(super) struct Reports {
    pub(super) refused: RefusedParts,
    /// The attempts whose reports are being kept and recorded.
    pub(super) under_way: Arc<SyncMutex<HashSet<Key>>>,
}

/// The report of an attempt is being kept and recorded, as long as this lives.
pub(super) struct UnderWay {
    all: Arc<SyncMutex<HashSet<Key>>>,
    key: Key,
}

impl UnderWay {
    /// `None`: it is already.
    pub(super) fn begin(all: &Arc<SyncMutex<HashSet<Key>>>, key: &Key) -> Option<Self> {
        let begun = locked(all).insert(key.clone());
        begun.then(|| Self { all: Arc::clone(all), key: key.clone() })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        locked(&self.all).remove(&self.key);
    }
}

/// What is wrong with parts that attempts sent, until their reports come.
pub(super) type RefusedParts = HashMap<Key, String>;

/// Why a part was not taken.
pub(super) enum PartError {
    /// It is wrong: its job fails.
    Invalid(String),
    /// The store could not take it now.
    Store(CommandError),
}

/// Notes a part that is wrong until the report of its attempt comes, which then fails the job. The
/// script may run on: nothing it does can be told from what it did before.
pub(super) fn note_part(
    key: Key,
    taken: Result<(), PartError>,
    refused: &mut RefusedParts,
) -> Result<(), CommandError> {
    match taken {
        Ok(()) => Ok(()),
        Err(PartError::Invalid(why)) => {
            tracing::warn!(run = %key.run, job = %key.job, why, "part of an attempt refused");
            // The first is the cause of those that follow.
            refused.entry(key).or_insert(why);
            Ok(())
        }
        Err(PartError::Store(error)) => Err(error),
    }
}

/// Refuses a part of more bytes than one message may carry.
pub(super) fn fits(content: &[u8]) -> Result<(), PartError> {
    if content.len() <= PART_BYTES_MAX {
        return Ok(());
    }
    let bytes = content.len();
    Err(PartError::Invalid(format!("a part of {bytes} bytes, and {PART_BYTES_MAX} are the most")))
}

pub(super) fn artifact_path(path: &str) -> Result<(), PartError> {
    match results::artifact_path_problem(path) {
        Some(why) => Err(PartError::Invalid(format!("the path of an artifact {why}"))),
        None => Ok(()),
    }
}

pub(super) fn part(written: io::Result<()>) -> Result<(), PartError> {
    let Err(error) = written else { return Ok(()) };
    if error.kind() == io::ErrorKind::InvalidInput {
        return Err(PartError::Invalid(error.to_string()));
    }
    if let Some(full) = error.get_ref().and_then(|cause| cause.downcast_ref::<DiskFull>()) {
        return Err(PartError::Store(StoreError::Full(*full).into()));
    }
    let (doing, cause) = ("keeping what a job printed", Arc::new(error));
    Err(PartError::Store(StoreError::Unavailable { doing, cause }.into()))
}
