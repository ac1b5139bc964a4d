//! Errors as gRPC statuses: a stable code in `google.rpc.ErrorInfo`, and advice beside it.

use std::collections::HashMap;

use tonic::{Code, Status, body::Body, codegen::http::Response};
use tonic_types::{ErrorDetails, StatusExt as _};
use towpath_engine::refusal::{Refusal, RefusalClass};
use towpath_storage::StoreError;

use crate::{limits::Limit, runs::CommandError};

/// The domain of every `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "towpath";

/// The codes of failures, beside those of refusals and of the store.
pub const FAILURE_CODES: [&str; 26] = [
    "FILE_INVALID",
    "RUN_AMBIGUOUS",
    "RUN_CONTENDED",
    "LOG_DAMAGED",
    "MESSAGE_INVALID",
    "IMPORT_INVALID",
    "ARTIFACT_UNKNOWN",
    "ATTEMPT_UNKNOWN",
    "ENGINE_BUG",
    "STORE_BUSY",
    "APPEND_TOO_LARGE",
    "IDEMPOTENCY_KEY_REUSED",
    "WORKER_NAME_TAKEN",
    "WORKER_NAME_RESERVED",
    "WORKER_UNKNOWN",
    "JOB_ENDED",
    "VERSION_MISMATCH",
    "UNAUTHENTICATED",
    "FORBIDDEN",
    "ACTOR_MISMATCH",
    "WORKER_IDENTITY_MISMATCH",
    "SOURCE_MISSING",
    "SOURCE_TOO_LARGE",
    "PROTOCOL_UNSUPPORTED",
    "ORIGIN_REFUSED",
    "HOST_REFUSED",
];

impl CommandError {
    /// The stable code that scripts may match on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::FileInvalid { .. } => "FILE_INVALID",
            Self::RunAmbiguous { .. } => "RUN_AMBIGUOUS",
            Self::StoreBusy => "STORE_BUSY",
            Self::TooMuch { .. } => "APPEND_TOO_LARGE",
            Self::Contended => "RUN_CONTENDED",
            Self::Store(error) => error.code(),
            Self::Unreplayable { .. } => "LOG_DAMAGED",
            Self::MessageInvalid { .. } => "MESSAGE_INVALID",
            Self::ImportInvalid { .. } => "IMPORT_INVALID",
            Self::ArtifactUnknown { .. } => "ARTIFACT_UNKNOWN",
            Self::AttemptUnknown { .. } => "ATTEMPT_UNKNOWN",
            Self::KeyReused => "IDEMPOTENCY_KEY_REUSED",
            Self::WorkerNameTaken { .. } => "WORKER_NAME_TAKEN",
            Self::WorkerNameReserved { .. } => "WORKER_NAME_RESERVED",
            Self::WorkerUnknown { .. } => "WORKER_UNKNOWN",
            Self::JobEnded { .. } => "JOB_ENDED",
            Self::VersionMismatch { .. } => "VERSION_MISMATCH",
            Self::Unauthenticated { .. } => "UNAUTHENTICATED",
            Self::Forbidden { .. } => "FORBIDDEN",
            Self::ActorMismatch { .. } => "ACTOR_MISMATCH",
            Self::WorkerIdentityMismatch { .. } => "WORKER_IDENTITY_MISMATCH",
            Self::RequestRefused(refused) => refused.code(),
            Self::Limit(limit) => limit.code(),
            Self::SourceMissing { .. } => "SOURCE_MISSING",
            Self::SourceTooLarge { .. } => "SOURCE_TOO_LARGE",
            Self::Bug(_) => "ENGINE_BUG",
        }
    }

    fn grpc_code(&self) -> Code {
        match self {
            Self::Refused(refusal) => match refusal.class() {
                RefusalClass::Missing => Code::NotFound,
                RefusalClass::Invalid => Code::InvalidArgument,
                RefusalClass::Conflict => Code::FailedPrecondition,
                RefusalClass::Forbidden => Code::PermissionDenied,
            },
            Self::FileInvalid { .. }
            | Self::RunAmbiguous { .. }
            | Self::MessageInvalid { .. }
            | Self::ImportInvalid { .. }
            | Self::WorkerNameReserved { .. } => Code::InvalidArgument,
            Self::ArtifactUnknown { .. }
            | Self::AttemptUnknown { .. }
            | Self::WorkerUnknown { .. } => Code::NotFound,
            Self::KeyReused
            | Self::JobEnded { .. }
            | Self::VersionMismatch { .. }
            | Self::SourceMissing { .. } => Code::FailedPrecondition,
            Self::WorkerNameTaken { .. } => Code::AlreadyExists,
            Self::Unauthenticated { .. } => Code::Unauthenticated,
            Self::Forbidden { .. }
            | Self::ActorMismatch { .. }
            | Self::WorkerIdentityMismatch { .. } => Code::PermissionDenied,
            Self::StoreBusy => Code::ResourceExhausted,
            Self::TooMuch { .. } | Self::SourceTooLarge { .. } => Code::InvalidArgument,
            Self::Contended => Code::Aborted,
            Self::Unreplayable { .. } => Code::DataLoss,
            Self::RequestRefused(refused) => refused.grpc_code(),
            Self::Limit(limit) => limit.grpc_code(),
            Self::Bug(_) => Code::Internal,
            Self::Store(error) => match error {
                StoreError::Damaged { .. }
                | StoreError::Rollback { .. }
                | StoreError::BlobDamaged { .. }
                | StoreError::BackupDamaged { .. } => Code::DataLoss,
                StoreError::BlobMissing { .. } | StoreError::Missing { .. } => Code::NotFound,
                StoreError::Full(_) => Code::ResourceExhausted,
                StoreError::Unavailable { .. }
                | StoreError::Stopped { .. }
                | StoreError::Closed
                | StoreError::Owned { .. } => Code::Unavailable,
                StoreError::UrlInvalid { .. }
                | StoreError::FormatUnknown { .. }
                | StoreError::Exposed { .. }
                | StoreError::BackendDiffers { .. }
                | StoreError::BackupExists { .. }
                | StoreError::RestoreTargetNotEmpty { .. } => Code::FailedPrecondition,
            },
        }
    }

    /// What to do next, in a sentence.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.advice(),
            Self::FileInvalid { .. } => "Correct the file; `tow validate` shows every problem.",
            Self::RunAmbiguous { .. } => "Give more characters of the id.",
            Self::Contended | Self::StoreBusy => "Try again.",
            Self::TooMuch { .. } => "Split the pipeline.",
            Self::Store(StoreError::Owned { .. }) => {
                "Wait until that process has ended, or talk to it instead."
            }
            Self::Store(StoreError::Exposed { .. }) => {
                "Run `chmod go=` on the store's folder, or `tow` as the user who owns it."
            }
            Self::Store(StoreError::Full(_)) => {
                "Nothing is lost; make room on the server's disk, and it goes on by itself."
            }
            Self::Store(_) | Self::Unreplayable { .. } => {
                "Nothing was skipped or guessed; docs/errors/ says how to go on."
            }
            Self::MessageInvalid { .. } => "This is a bug of the client; please report it.",
            Self::ImportInvalid { .. } => "Correct the record; nothing was imported.",
            Self::ArtifactUnknown { .. } => "See `tow status --output json` for the files it left.",
            Self::AttemptUnknown { .. } => "`tow status` shows how often the job was tried.",
            Self::KeyReused => "Give every request a key of its own.",
            Self::WorkerNameTaken { .. } => {
                "Give every worker a name of its own; `tow workers list` shows who is connected."
            }
            Self::WorkerNameReserved { .. } => "Give the worker a name that begins otherwise.",
            Self::WorkerUnknown { .. } => "See `tow workers list` for who is connected.",
            Self::JobEnded { .. } => {
                "Nothing: the job needs no worker; `tow retry` gives it another try."
            }
            Self::VersionMismatch { .. } => {
                "Use the same version of `tow` on both sides; `tow version` shows both."
            }
            Self::Unauthenticated { .. } => {
                "Put a token of `tow token issue` into `TOW_TOKEN`; workers may present a certificate."
            }
            Self::Forbidden { .. } => "Ask whoever issues tokens for the role that it needs.",
            Self::ActorMismatch { .. } => {
                "Leave `--actor` and `TOW_ACTOR` away; the token says it."
            }
            Self::WorkerIdentityMismatch { .. } => {
                "Start the worker under the name that its certificate or token was issued for."
            }
            Self::RequestRefused(refused) => refused.advice(),
            Self::Limit(limit) => limit.advice(),
            Self::SourceMissing { .. } => "Send the bundle first; `tow run` does.",
            Self::SourceTooLarge { .. } => {
                "Leave large files out with `.gitignore`, or use `--source remote`."
            }
            Self::Bug(_) => "This is a bug of ours; please report it.",
        }
    }
}

/// The status for `error`.
pub(crate) fn of(error: CommandError) -> Status {
    let mut metadata = HashMap::from([("advice".to_owned(), error.advice().to_owned())]);
    if let CommandError::Refused(Refusal::ApprovalStale { waiting, .. }) = &error {
        metadata.insert("waiting".to_owned(), waiting.to_string());
    }
    if let CommandError::FileInvalid { problems, .. } = &error {
        metadata.insert("problems".to_owned(), problems.clone());
    }
    let mut details = ErrorDetails::new();
    details.set_error_info(error.code(), ERROR_DOMAIN, metadata);
    if let CommandError::Limit(limit) = &error
        && let Some(wait) = limit.retry_after()
    {
        details.set_retry_info(Some(wait));
    }
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(deeper) = cause {
        message = format!("{message}: {deeper}");
        cause = deeper.source();
    }
    Status::with_error_details(error.grpc_code(), message, details)
}

/// `response`, with a code of ours if the transport refused the request by itself.
pub(crate) fn named(response: Response<Body>) -> Response<Body> {
    let told = response.headers();
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
        Code::OutOfRange => Some(Limit::MessageTooLarge { found: what() }.into()),
        Code::Internal => Some(CommandError::MessageInvalid { what: what() }),
        _ => None,
    }
}
