//! What the process says with its exit code. Stable: docs/exit-codes.md lists them.

use towpath_engine::{event::RunOutcome, run::Phase};

/// Done.
pub(crate) const DONE: u8 = 0;
/// Something that nobody foresaw.
pub(crate) const UNEXPECTED: u8 = 1;
/// The command line cannot be meant.
pub(crate) const USAGE: u8 = 2;
/// What was named does not exist.
pub(crate) const NOT_FOUND: u8 = 3;
/// There is nothing to do.
pub(crate) const NOTHING_TO_DO: u8 = 4;
/// A file has errors.
pub(crate) const INVALID_FILE: u8 = 5;
/// The run, or the store, is not in a state for it.
pub(crate) const CONFLICT: u8 = 6;
/// The log, a blob or a backup is not what was written.
pub(crate) const DAMAGED: u8 = 7;
/// The store cannot do its part.
pub(crate) const STORE: u8 = 8;
/// The run failed.
pub(crate) const FAILED: u8 = 10;
/// The run came to its end with holes.
pub(crate) const PARTIAL: u8 = 11;
/// The run waits at a gate.
pub(crate) const AT_GATE: u8 = 12;
/// A gate was kept shut.
pub(crate) const REJECTED: u8 = 13;
/// The run was cancelled.
pub(crate) const CANCELLED: u8 = 14;
/// The run took too long.
pub(crate) const TIMED_OUT: u8 = 15;
/// Nobody knows who asks.
pub(crate) const UNAUTHENTICATED: u8 = 40;
/// Whoever asks may not.
pub(crate) const FORBIDDEN: u8 = 41;
/// The server cannot be reached.
pub(crate) const UNREACHABLE: u8 = 42;
/// The two ends speak different versions.
pub(crate) const VERSION_MISMATCH: u8 = 43;
/// The server has no room for more.
pub(crate) const NO_ROOM: u8 = 44;
/// A bug of ours.
pub(crate) const BUG: u8 = 70;
/// Interrupted by the person at the keyboard.
pub(crate) const INTERRUPTED: u8 = 130;

/// The exit code of the error code `code`.
pub(crate) fn of_code(code: &str) -> u8 {
    match code {
        "RUN_UNKNOWN"
        | "STORE_MISSING"
        | "JOB_UNKNOWN"
        | "STAGE_UNKNOWN"
        | "BLOB_MISSING"
        | "ARTIFACT_UNKNOWN"
        | "ATTEMPT_UNKNOWN"
        | "FILE_UNREADABLE"
        | "WORKER_UNKNOWN"
        | "TOKEN_UNKNOWN"
        | "CERTIFICATE_UNKNOWN"
        | "CONTEXT_UNKNOWN" => NOT_FOUND,
        "NOTHING_TO_RESUME" => NOTHING_TO_DO,
        "FILE_INVALID" | "CONFIG_INVALID" | "CONTEXT_TOKEN" | "IMPORT_INVALID"
        | "IMPORT_MISMATCH" | "TLS_UNUSABLE" | "TOKENS_INVALID" | "SOURCE_LINK"
        | "SOURCE_TOO_LARGE" | "SOURCE_UNUSABLE" => INVALID_FILE,
        "USAGE"
        | "WORKER_NAME_RESERVED"
        | "ARGUMENT_OUT_OF_BOUNDS"
        | "RUN_AMBIGUOUS"
        | "STORE_URL_INVALID"
        | "INSECURE_LISTEN"
        | "EVENT_TOO_LONG"
        | "APPEND_TOO_LARGE"
        | "MESSAGE_TOO_LARGE" => USAGE,
        "LOG_DAMAGED" | "LOG_ROLLBACK" | "BLOB_DAMAGED" | "BACKUP_DAMAGED" => DAMAGED,
        "STORE_UNAVAILABLE" | "STORE_BUSY" | "STORE_FULL" => STORE,
        "STORE_FORMAT_UNKNOWN" | "VERSION_MISMATCH" => VERSION_MISMATCH,
        "UNAUTHENTICATED" => UNAUTHENTICATED,
        "FORBIDDEN"
        | "STORE_EXPOSED"
        | "ORIGIN_REFUSED"
        | "HOST_REFUSED"
        | "ACTOR_MISMATCH"
        | "WORKER_IDENTITY_MISMATCH"
        | "APPROVER_NOT_HUMAN"
        | "APPROVER_NOT_ALLOWED"
        | "APPROVER_IS_REQUESTER"
        | "APPROVER_IS_AUTHOR"
        | "APPROVER_EMAIL_UNKNOWN"
        | "IMPORT_PASSES_GATE" => FORBIDDEN,
        "UNREACHABLE" | "REQUEST_TIMED_OUT" | "READER_STALLED" | "CONNECTION_AGED" => UNREACHABLE,
        "RATE_EXCEEDED" | "REQUESTS_TOO_MANY" | "CONNECTIONS_TOO_MANY" | "SNAPSHOTS_TOO_MANY" => {
            NO_ROOM
        }
        "ENGINE_BUG" | "MESSAGE_INVALID" | "COMPRESSION_REFUSED" | "PROTOCOL_UNSUPPORTED" => BUG,
        "INTERRUPTED" => INTERRUPTED,
        "UNEXPECTED" | "LAUNCH_FAILED" => UNEXPECTED,
        _ => CONFLICT,
    }
}

/// The exit code of a run in `phase`; `None` while it has not come to rest.
pub(crate) fn of_phase(phase: &Phase) -> Option<u8> {
    match phase {
        Phase::Finished(outcome) => Some(of_outcome(*outcome)),
        Phase::Unborn
        | Phase::Planning
        | Phase::Running
        | Phase::Aborting
        | Phase::Cancelling
        | Phase::TimingOut => None,
    }
}

/// The exit code of a run whose phase a server named by `word`, as far as `tow status` goes.
pub(crate) fn of_word(word: &str, waits_at_gate: bool) -> u8 {
    match RunOutcome::ALL.into_iter().find(|outcome| outcome.word() == word) {
        Some(outcome) => of_outcome(outcome),
        None if word == "running" && waits_at_gate => AT_GATE,
        None => DONE,
    }
}

fn of_outcome(outcome: RunOutcome) -> u8 {
    match outcome {
        RunOutcome::Succeeded => DONE,
        RunOutcome::Partial => PARTIAL,
        RunOutcome::Failed => FAILED,
        RunOutcome::Rejected => REJECTED,
        RunOutcome::Cancelled => CANCELLED,
        RunOutcome::TimedOut => TIMED_OUT,
    }
}
