//! Errors as gRPC statuses: a stable code in `google.rpc.ErrorInfo`, and beside it what the error is
//! about, by name. What to do next is the client's to say: the server knows no command line.

use std::collections::HashMap;

use tonic::{Code, Status, body::Body, codegen::http::Response};
use tonic_types::{ErrorDetails, StatusExt as _};
use towpath_engine::code::{ErrorClass, ErrorCode};
use towpath_storage::{StoreError, StoreErrorKind};
use towpath_wire::ERROR_DOMAIN;

use crate::{command_error::CommandError, limits::Limit};

/// The code of an error of the store, which knows nothing of codes.
pub(crate) fn store_code(error: &StoreError) -> ErrorCode {
    match error.kind() {
        StoreErrorKind::Unavailable => ErrorCode::StoreUnavailable,
        StoreErrorKind::Full => ErrorCode::StoreFull,
        StoreErrorKind::LogDamaged => ErrorCode::LogDamaged,
        StoreErrorKind::LogRollback => ErrorCode::LogRollback,
        StoreErrorKind::Owned => ErrorCode::StoreOwned,
        StoreErrorKind::Exposed => ErrorCode::StoreExposed,
        StoreErrorKind::UrlInvalid => ErrorCode::StoreUrlInvalid,
        StoreErrorKind::Missing => ErrorCode::StoreMissing,
        StoreErrorKind::FormatUnknown => ErrorCode::StoreFormatUnknown,
        StoreErrorKind::BackendDiffers => ErrorCode::StoreBackendDiffers,
        StoreErrorKind::BlobMissing => ErrorCode::BlobMissing,
        StoreErrorKind::BlobDamaged => ErrorCode::BlobDamaged,
        StoreErrorKind::BackupDamaged => ErrorCode::BackupDamaged,
        StoreErrorKind::BackupExists => ErrorCode::BackupExists,
        StoreErrorKind::RestoreTargetNotEmpty => ErrorCode::RestoreTargetNotEmpty,
    }
}

/// The gRPC code of a class.
fn grpc_code(class: ErrorClass) -> Code {
    match class {
        ErrorClass::Unexpected => Code::Unknown,
        ErrorClass::Usage | ErrorClass::InputInvalid | ErrorClass::MessageInvalid => {
            Code::InvalidArgument
        }
        ErrorClass::TooLarge | ErrorClass::StoreFull | ErrorClass::NoRoom => {
            Code::ResourceExhausted
        }
        ErrorClass::NotFound => Code::NotFound,
        ErrorClass::NothingToDo | ErrorClass::Conflict | ErrorClass::VersionMismatch => {
            Code::FailedPrecondition
        }
        ErrorClass::AlreadyExists => Code::AlreadyExists,
        ErrorClass::Contended => Code::Aborted,
        ErrorClass::Damaged => Code::DataLoss,
        ErrorClass::StoreUnavailable | ErrorClass::Unreachable => Code::Unavailable,
        ErrorClass::Unauthenticated => Code::Unauthenticated,
        ErrorClass::Forbidden => Code::PermissionDenied,
        ErrorClass::TimedOut => Code::DeadlineExceeded,
        ErrorClass::Bug => Code::Internal,
        ErrorClass::Unsupported => Code::Unimplemented,
        ErrorClass::Interrupted => Code::Cancelled,
    }
}

impl CommandError {
    /// The stable code that scripts may match on.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::FileInvalid { .. } => ErrorCode::FileInvalid,
            Self::RunAmbiguous { .. } => ErrorCode::RunAmbiguous,
            Self::StoreBusy => ErrorCode::StoreBusy,
            Self::TooMuch { .. } => ErrorCode::AppendTooLarge,
            Self::Contended => ErrorCode::RunContended,
            Self::Store(error) => store_code(error),
            // An older program on the log of a newer one gets this too; the page of the code says so.
            Self::Unreplayable { .. } => ErrorCode::LogDamaged,
            Self::MessageInvalid { .. } => ErrorCode::MessageInvalid,
            Self::ImportInvalid { .. } => ErrorCode::ImportInvalid,
            Self::ArtifactUnknown { .. } => ErrorCode::ArtifactUnknown,
            Self::AttemptUnknown { .. } => ErrorCode::AttemptUnknown,
            Self::AtOutOfRange { .. } => ErrorCode::AtOutOfRange,
            Self::KeyReused => ErrorCode::IdempotencyKeyReused,
            Self::WorkerNameTaken { .. } => ErrorCode::WorkerNameTaken,
            Self::WorkerNameReserved { .. } => ErrorCode::WorkerNameReserved,
            Self::JobEnded { .. } => ErrorCode::JobEnded,
            Self::VersionMismatch { .. } => ErrorCode::VersionMismatch,
            Self::Unauthenticated { .. } => ErrorCode::Unauthenticated,
            Self::Forbidden { .. } => ErrorCode::Forbidden,
            Self::ActorMismatch { .. } => ErrorCode::ActorMismatch,
            Self::WorkerIdentityMismatch { .. } => ErrorCode::WorkerIdentityMismatch,
            Self::RequestRefused(refused) => refused.code(),
            Self::Limit(limit) => limit.code(),
            Self::SourceMissing { .. } => ErrorCode::SourceMissing,
            Self::SourceTooLarge { .. } => ErrorCode::SourceTooLarge,
            Self::Bug(_) => ErrorCode::EngineBug,
        }
    }

    /// What the error is about, by name, for programs. The message says the same in a sentence.
    fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Refused(refusal) => refusal.fields(),
            Self::FileInvalid { name, problems } => {
                vec![("file", name.clone()), ("problems", problems.clone())]
            }
            Self::RunAmbiguous { prefix, count } => {
                vec![("prefix", prefix.clone()), ("count", count.to_string())]
            }
            Self::Unreplayable { stream, version, .. } => {
                vec![("stream", stream.clone()), ("version", version.to_string())]
            }
            Self::ArtifactUnknown { job, path } => {
                vec![("job", job.clone()), ("path", path.clone())]
            }
            Self::AtOutOfRange { at, .. } => vec![("at", at.clone())],
            Self::AttemptUnknown { job, attempt, newest } => vec![
                ("job", job.to_string()),
                ("attempt", attempt.to_string()),
                ("newest", newest.to_string()),
            ],
            Self::WorkerNameTaken { name } | Self::WorkerNameReserved { name } => {
                vec![("worker", name.clone())]
            }
            Self::JobEnded { job, state } => {
                vec![("job", job.to_string()), ("state", (*state).to_owned())]
            }
            Self::VersionMismatch { server, worker } => {
                vec![("server", (*server).to_owned()), ("worker", worker.clone())]
            }
            Self::Forbidden { who, what } => {
                vec![("actor", who.clone()), ("request", what.clone())]
            }
            Self::ActorMismatch { own, claimed }
            | Self::WorkerIdentityMismatch { own, claimed } => {
                vec![("proven", own.clone()), ("claimed", claimed.clone())]
            }
            Self::SourceMissing { sha256 } => vec![("sha256", sha256.to_string())],
            Self::SourceTooLarge { bytes, bytes_max } => {
                vec![("bytes", bytes.to_string()), ("bytes_max", bytes_max.to_string())]
            }
            // The message says all there is.
            Self::StoreBusy
            | Self::TooMuch { .. }
            | Self::Contended
            | Self::Store(_)
            | Self::MessageInvalid { .. }
            | Self::ImportInvalid { .. }
            | Self::KeyReused
            | Self::Unauthenticated { .. }
            | Self::RequestRefused(_)
            | Self::Limit(_)
            | Self::Bug(_) => Vec::new(),
        }
    }
}

/// The status for `error`.
pub(crate) fn of(error: CommandError) -> Status {
    let code = error.code();
    let fields = error.fields().into_iter().map(|(name, text)| (name.to_owned(), text));
    // As google.rpc messages: generated clients of every language read them without knowing ours.
    let mut details = ErrorDetails::new();
    details.set_error_info(code.as_str(), ERROR_DOMAIN, fields.collect::<HashMap<_, _>>());
    if let CommandError::Limit(limit) = &error
        && let Some(wait) = limit.retry_after()
    {
        // Clients that retry by themselves wait as long as this says, instead of a guess.
        details.set_retry_info(Some(wait));
    }
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    // The text of an error does not repeat its causes, and the operator of a server needs the
    // innermost.
    while let Some(deeper) = cause {
        message = format!("{message}: {deeper}");
        cause = deeper.source();
    }
    Status::with_error_details(grpc_code(code.class()), message, details)
}

/// `response`, with a code of ours if the transport refused the request by itself.
pub(crate) fn named(response: Response<Body>) -> Response<Body> {
    let told = response.headers();
    // Refusals of ours have details; what has a status without them was refused by the transport,
    // before any handler saw it.
    if !told.contains_key(Status::GRPC_STATUS) || told.contains_key(Status::GRPC_STATUS_DETAILS) {
        return response;
    }
    let status = Status::from_header_map(told);
    status.and_then(|status| misread(&status)).map_or(response, |error| of(error).into_http())
}

/// What it means that a message cannot be read, if `status` says so.
#[expect(clippy::wildcard_enum_match_arm, reason = "the other codes are not those of the decoder")]
pub(crate) fn misread(status: &Status) -> Option<CommandError> {
    let what = || status.message().to_owned();
    match status.code() {
        // tonic says OutOfRange for a message that is too long, and Internal for one that it cannot
        // decode. Neither has a type of its own.
        Code::OutOfRange => Some(Limit::MessageTooLarge { found: what() }.into()),
        Code::Internal => Some(CommandError::MessageInvalid { what: what() }),
        _ => None,
    }
}
