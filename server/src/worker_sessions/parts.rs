//! Parts of what attempts print and leave: what is wrong with one, and what that means.

use std::{collections::HashMap, io, sync::Arc};

use towpath_engine::{ids::AttemptId, results};
use towpath_storage::{DiskFull, StoreError};

use crate::{command_error::CommandError, limits::PART_BYTES_MAX};

/// What is wrong with parts that attempts sent, until their reports come.
pub(super) type RefusedParts = HashMap<AttemptId, String>;

/// Why a part was not taken.
pub(super) enum PartError {
    /// It is wrong: its job fails.
    Invalid(String),
    /// The store could not take it now.
    Store(CommandError),
}

impl PartError {
    /// Whether the disk had no room for it.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Store(CommandError::Store(StoreError::Full(_))))
    }
}

/// Notes a part that is wrong until the report of its attempt comes, which then fails the job. The
/// script may run on: nothing it does can be told from what it did before.
pub(super) fn note_part(
    key: AttemptId,
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

/// Refuses a path under which no artifact is kept.
pub(super) fn artifact_path(path: &str) -> Result<(), PartError> {
    match results::artifact_path_problem(path) {
        Some(why) => Err(PartError::Invalid(format!("the path of an artifact {why}"))),
        None => Ok(()),
    }
}

/// What it means that a part was or was not `written`. Only what the worker chose is its fault: a
/// disk that is full or broken fails no job, because the part is sent again.
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

#[cfg(test)]
mod tests {
    use towpath_engine::ids::Attempt;

    use super::*;

    fn key() -> AttemptId {
        AttemptId { run: "r".into(), job: "a".into(), attempt: Attempt::FIRST }
    }

    fn invalid(what: &str) -> Result<(), PartError> {
        Err(PartError::Invalid(what.to_owned()))
    }

    #[test]
    fn a_wrong_part_is_noted_and_ends_no_session() {
        let mut refused = RefusedParts::new();
        note_part(key(), Ok(()), &mut refused).unwrap();
        note_part(key(), invalid("the first"), &mut refused).unwrap();
        note_part(key(), invalid("what follows from it"), &mut refused).unwrap();
        assert_eq!(refused, RefusedParts::from([(key(), "the first".to_owned())]));
    }

    #[test]
    fn a_part_that_the_disk_did_not_take_ends_the_session_and_fails_no_job() {
        let mut refused = RefusedParts::new();
        let broken = part(Err(io::Error::other("the disk")));
        assert!(note_part(key(), broken, &mut refused).is_err() && refused.is_empty());
        let hole = part(Err(io::Error::new(io::ErrorKind::InvalidInput, "a hole")));
        note_part(key(), hole, &mut refused).unwrap();
        assert_eq!(refused.len(), 1);
    }

    #[test]
    fn parts_are_bounded_and_paths_are_checked() {
        assert!(fits(&vec![0; PART_BYTES_MAX]).is_ok());
        assert!(fits(&vec![0; PART_BYTES_MAX + 1]).is_err());
        assert!(artifact_path("dist/a.tar").is_ok() && artifact_path("../a").is_err());
    }
}
