//! What to do next, for every code: the one place where advice and command lines are written.
//!
//! A server sends codes and data. It does not know which program shows them.

use towpath_engine::code::{ErrorClass, ErrorCode};

const NOTHING_GUESSED: &str = "Nothing was skipped or guessed; `docs/errors/` says what to do.";
const SAME_VERSION: &str = "Use the same version of `tow` on both sides; `tow version` shows both.";
const TRY_AGAIN: &str = "Try again; if it happens again, report it.";

/// What to do about `code`, in a sentence. A command that knows more says that instead.
#[expect(clippy::too_many_lines, reason = "one table")]
pub(crate) fn of(code: ErrorCode) -> &'static str {
    use ErrorCode as E;
    match code {
        E::ActorMismatch => "Omit `--actor` and `TOW_ACTOR`: the token names the actor.",
        E::AddressUnusable => "Choose another address, or end the program that listens there.",
        E::AppendTooLarge => "Split the pipeline.",
        E::ApprovalExpired => "The gate waits again: read it with `tow status`, then approve.",
        E::ApprovalStale => "Read what waits now with `tow status`, then approve that.",
        E::ApproverEmailUnknown => {
            "Issue a token with `--email`, or set `user.email` of git on the store's machine."
        }
        E::ApproverHasApproved | E::ApproverIsAuthor | E::ApproverIsRequester => {
            "Ask another person to approve."
        }
        E::ApproverNotAllowed => "Ask a person or role that the gate names; `tow why` lists them.",
        E::ApproverNotHuman => "Ask a person to approve, in their own name.",
        E::ArgumentOutOfBounds => "Give a value within the bounds.",
        E::ArtifactUnknown => "See `tow status --output json` for the files it left.",
        E::AttemptStale => "No action is needed: a newer attempt of the job is valid.",
        E::AttemptUnknown => "`tow status` shows the newest attempt of the job.",
        E::AtOutOfRange => "`tow events` shows the positions and times of a run's records.",
        E::AttemptsInUse => "Give every worker of one machine a folder of its own.",
        E::AuthorsUnknown => {
            "Commit the pipeline file to git and run from a full clone, or remove `author` from the gate."
        }
        E::BackupDamaged => "Use another backup. Nothing was restored.",
        E::BackupExists => "Name another file; a backup overwrites nothing.",
        E::BlobDamaged | E::LogDamaged | E::LogRollback => NOTHING_GUESSED,
        E::BlobMissing => "`tow doctor` lists every blob that is missing.",
        E::CertificateUnknown => "`tow pki list` shows what was issued.",
        E::CompressionRefused => "Send messages without compression.",
        E::ConfigInvalid | E::TokensInvalid => "Correct the file.",
        E::ConnectionAged => "Connect again and continue from the last position.",
        E::ConnectionsTooMany => {
            "Try again later, or let the owner of the server raise `limits.connections`."
        }
        E::ContextExists => "Name another context, or remove that one first.",
        E::ContextToken => "Check the token file and its permissions.",
        E::ContextUnknown => "`tow context list` shows the existing contexts.",
        E::EngineBug => "This is a bug; please report it.",
        E::EventTooLong => "Shorten it, or put the long part into a file.",
        E::FeatureAbsent => {
            "Name a server with `--server`, or use a `tow` that has it: `tow version` lists the features."
        }
        E::FileExists => "Name another file, or edit that one.",
        E::FileInvalid => "Correct the file; `tow validate` shows every problem.",
        E::FileUnreadable => "Check the path and its permissions.",
        E::Forbidden => "Ask the administrator for a token with the role that the request needs.",
        E::GateDecided => "See `tow status`; a decision cannot be reversed.",
        E::GateLifted => {
            "Keep the gate and all that stands behind it, or let an approver resume with this file."
        }
        E::GateNotWaiting => "See `tow why` for what the job waits for.",
        E::HostRefused => "Name the server `localhost` or `127.0.0.1`, or as its `--listen` does.",
        E::IdempotencyKeyReused => "Give every request a key of its own.",
        E::ImportInvalid => "Correct the record; nothing was imported.",
        E::ImportMismatch => "Import with the pipeline file that made the record.",
        E::ImportPassesGate => {
            "Remove the line from the record; the gate then waits in the imported run."
        }
        E::InsecureConnect => {
            "Name the server's authority with `--tls-ca`, or connect to loopback through a tunnel."
        }
        E::InsecureListen => "Give a certificate and a key, or listen on loopback.",
        E::Interrupted => "",
        E::JobEnded => "No worker is needed; `tow retry` runs the job again.",
        E::JobNotRetryable => "Use `tow resume --from STAGE` to run succeeded jobs again.",
        E::JobUnknown | E::StageUnknown => "See `tow status` for the names in this run.",
        E::JobsRunning => "Wait for them, or cancel the run first.",
        E::LaunchFailed => "Read the output of the command.",
        E::MessageInvalid => "This is a bug of the client; please report it.",
        E::MessageTooLarge => "Send less at once; docs/reference/settings.md has the bounds.",
        E::NothingToResume => "Use `--from STAGE` to run a stage again although it succeeded.",
        E::OriginRefused => "Send the request from a program other than a web page.",
        E::PlanChanged => "Restore the file, or accept the edit with `--accept-changes`.",
        E::ProtocolUnsupported => "Use a gRPC client; `tow` is one.",
        E::RateExceeded => {
            "Send fewer requests, or let the owner of the server raise `limits.rate`."
        }
        E::RequestTimedOut => {
            "It may have been carried out: check with `tow status` before you repeat it."
        }
        E::RequestsTooMany => "Wait for responses before you send more requests.",
        E::RestoreTargetNotEmpty => "Restore to a folder that does not exist yet.",
        E::RunAmbiguous => "Give more characters of the id.",
        E::RunContended | E::StoreBusy => "Try again.",
        E::RunEnded => "Use `tow resume` to continue the run.",
        E::RunEnding => "Follow it with `tow watch` until it has ended.",
        E::RunExists => "Follow the run that exists with `tow watch`.",
        E::RunUnknown => "See `tow list` for the runs of this store.",
        E::SourceDirty => "Commit the files, or allow it with `--allow-dirty`.",
        E::SourceLink | E::SourceUnusable => "Correct the files of the run.",
        E::SourceMissing => "Send the bundle first; `tow run` does.",
        E::SourceTooLarge => "Leave large files out with `.gitignore`, or use `--source remote`.",
        E::StoreBackendDiffers => "Name the backend that wrote the store.",
        E::StoreExposed => {
            "Run `chmod go=` on the store's folder, or `tow` as the user who owns it."
        }
        E::StoreFormatUnknown => {
            "Use the version of `tow` that wrote it. From 0.1: write its runs with `tow events` \
             and `tow export` of 0.1, then `tow import` here into a new store."
        }
        E::StoreFull => {
            "Nothing is lost. Free space on the disk of the store: a server then continues by itself; continue a run without a server with `tow resume`."
        }
        E::StoreMissing => "Name a store with `--store`.",
        E::StoreOwned => "Wait until that process has ended.",
        E::StoreUnavailable => "Check the disk, then try again.",
        E::StoreUrlInvalid => "Correct `--store` or `TOW_STORE`; `tow --help` lists the forms.",
        E::TlsUnusable => "Correct the certificate or the key.",
        E::TokenExists => "Name another token, or revoke that one first.",
        E::TokenUnknown => "`tow token list` shows the existing tokens.",
        E::Unauthenticated => {
            "Put a token of `tow token issue` into `TOW_TOKEN`; workers may present a certificate."
        }
        E::Unexpected => TRY_AGAIN,
        E::Unreachable => "Nothing that was acknowledged is lost; `tow resume` continues.",
        E::Usage => "`tow help` shows every command and option.",
        E::VersionMismatch => SAME_VERSION,
        E::WorkerIdentityMismatch => {
            "Start the worker under the name that its certificate or token was issued for."
        }
        E::WorkerNameReserved => "Give the worker a name that does not begin with `local/`.",
        E::WorkerNameTaken => {
            "Give every worker a name of its own; `tow workers list` shows who is connected."
        }
        E::WorkerUnknown => "See `tow workers list` for who is connected.",
    }
}

/// What to do about a code that only a later version knows.
pub(crate) fn of_class(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Unexpected | ErrorClass::Bug => TRY_AGAIN,
        ErrorClass::Usage
        | ErrorClass::NotFound
        | ErrorClass::NothingToDo
        | ErrorClass::InputInvalid
        | ErrorClass::Conflict
        | ErrorClass::AlreadyExists
        | ErrorClass::TooLarge
        | ErrorClass::MessageInvalid
        | ErrorClass::Unsupported
        | ErrorClass::VersionMismatch => {
            "This `tow` does not know the code: the server is newer. `tow version` shows both."
        }
        ErrorClass::Contended | ErrorClass::StoreFull | ErrorClass::NoRoom => "Try again later.",
        ErrorClass::Damaged => NOTHING_GUESSED,
        ErrorClass::StoreUnavailable | ErrorClass::Unreachable | ErrorClass::TimedOut => {
            "Try again when the server answers."
        }
        ErrorClass::Unauthenticated => "Put a token of `tow token issue` into `TOW_TOKEN`.",
        ErrorClass::Forbidden => {
            "Ask the administrator for a token with the role that the request needs."
        }
        ErrorClass::Interrupted => "",
    }
}
