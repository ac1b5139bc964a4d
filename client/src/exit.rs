//! What the process says with its exit code. Stable: docs/exit-codes.md lists them.

use towpath_engine::{code::ErrorClass, event::RunOutcome, run::Phase};
use towpath_proto::v1;

use crate::render::board;

/// Done.
pub(crate) const DONE: u8 = 0;
/// An unexpected error.
pub(crate) const UNEXPECTED: u8 = 1;
/// The command line is not valid.
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
/// A gate was rejected.
pub(crate) const REJECTED: u8 = 13;
/// The run was cancelled.
pub(crate) const CANCELLED: u8 = 14;
/// The run took too long.
pub(crate) const TIMED_OUT: u8 = 15;
/// The client is not authenticated.
pub(crate) const UNAUTHENTICATED: u8 = 40;
/// The client is not allowed to send the request.
pub(crate) const FORBIDDEN: u8 = 41;
/// The server cannot be reached.
pub(crate) const UNREACHABLE: u8 = 42;
/// Client and server have different versions.
pub(crate) const VERSION_MISMATCH: u8 = 43;
/// A limit of the server is reached.
pub(crate) const NO_ROOM: u8 = 44;
/// A bug of ours.
pub(crate) const BUG: u8 = 70;
/// Interrupted by the person at the keyboard.
pub(crate) const INTERRUPTED: u8 = 130;

/// The exit code of a class of failures.
pub(crate) fn of_class(class: ErrorClass) -> u8 {
    match class {
        ErrorClass::Unexpected => UNEXPECTED,
        ErrorClass::Usage | ErrorClass::TooLarge => USAGE,
        ErrorClass::NotFound => NOT_FOUND,
        ErrorClass::NothingToDo => NOTHING_TO_DO,
        ErrorClass::InputInvalid => INVALID_FILE,
        ErrorClass::Conflict | ErrorClass::AlreadyExists | ErrorClass::Contended => CONFLICT,
        ErrorClass::Damaged => DAMAGED,
        ErrorClass::StoreUnavailable | ErrorClass::StoreFull => STORE,
        ErrorClass::Unauthenticated => UNAUTHENTICATED,
        ErrorClass::Forbidden => FORBIDDEN,
        ErrorClass::Unreachable | ErrorClass::TimedOut => UNREACHABLE,
        ErrorClass::VersionMismatch => VERSION_MISMATCH,
        ErrorClass::NoRoom => NO_ROOM,
        ErrorClass::Bug | ErrorClass::MessageInvalid | ErrorClass::Unsupported => BUG,
        ErrorClass::Interrupted => INTERRUPTED,
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

/// The exit code of a run as a server describes it, as far as `tow status` goes.
pub(crate) fn of_run(run: &v1::Run) -> u8 {
    match run.outcome() {
        v1::RunOutcome::Succeeded => DONE,
        v1::RunOutcome::Partial => PARTIAL,
        v1::RunOutcome::Failed => FAILED,
        v1::RunOutcome::Rejected => REJECTED,
        v1::RunOutcome::Cancelled => CANCELLED,
        v1::RunOutcome::TimedOut => TIMED_OUT,
        v1::RunOutcome::Unspecified if board::is_at_gate(run) => AT_GATE,
        v1::RunOutcome::Unspecified => DONE,
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

#[cfg(test)]
mod tests {
    use towpath_engine::code::ErrorCode;

    use super::*;

    /// The pages and the table are written by hand, and must say what the program does.
    #[test]
    fn every_page_and_the_table_name_the_exit_code_of_the_class() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let table = std::fs::read_to_string(docs.join("exit-codes.md")).unwrap();
        for code in ErrorCode::ALL {
            let exit = of_class(code.class());
            let page = std::fs::read_to_string(docs.join(format!("errors/{code}.md"))).unwrap();
            let line = page.lines().find(|line| line.contains("xit code: ")).unwrap_or_default();
            assert!(line.contains(&format!(": {exit}")), "{code}: `{line}`, and it is {exit}");
            let row = table.lines().find(|line| line.starts_with(&format!("| {exit} |")));
            assert!(row.is_some_and(|row| row.contains(&format!("`{code}`"))), "{code}: {exit}");
        }
    }
}
