//! Every error code, in one table: its text and its class.
//!
//! The class of a code decides its gRPC code (`server/src/status.rs`) and its exit code
//! (`client/src/exit.rs`); both match the class exhaustively, so that a new class or code without
//! either does not compile. What to do next is the client's to say (`client/src/advice.rs`).

use std::{fmt, str::FromStr};

/// The class of an error code. The gRPC code and the exit code follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    /// Something that was not foreseen, or a program that was launched failed.
    Unexpected,
    /// The command, or an argument of it, is invalid.
    Usage,
    /// What was sent is larger than is accepted.
    TooLarge,
    /// What was named does not exist.
    NotFound,
    /// There is nothing to do.
    NothingToDo,
    /// An input file is invalid.
    InputInvalid,
    /// The run, the store or the machine is not in a state for it.
    Conflict,
    /// What is to be made exists already.
    AlreadyExists,
    /// Others change the same thing all the time.
    Contended,
    /// The log, a blob or a backup is damaged.
    Damaged,
    /// The store is unavailable.
    StoreUnavailable,
    /// The store takes nothing more for now.
    StoreFull,
    /// The client has not proven its identity.
    Unauthenticated,
    /// The client's identity may not do it.
    Forbidden,
    /// The server cannot be reached.
    Unreachable,
    /// It took longer than it may.
    TimedOut,
    /// The two ends, or the program and the store, have different versions.
    VersionMismatch,
    /// The server has no capacity for more.
    NoRoom,
    /// A bug of Towpath.
    Bug,
    /// A message that no client of Towpath sends.
    MessageInvalid,
    /// A feature of the protocol that the server does not have.
    Unsupported,
    /// A person interrupted it.
    Interrupted,
}

/// The text is not an [`ErrorCode`] of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the code is unknown to this version")]
pub struct ErrorCodeUnknown;

/// Defines [`ErrorCode`] and everything that needs one row for each code: a list beside the enum
/// could lack a row.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $class:ident;)*) => {
        /// A stable code. Scripts match on its text; `docs/errors/` has a page for each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// Every code, in alphabetical order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code as it is written. Never changes.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The class of the code.
            pub fn class(self) -> ErrorClass {
                match self {
                    $(Self::$name => ErrorClass::$class,)*
                }
            }
        }
    };
}

codes! {
    /// The request names another actor than its token.
    ActorMismatch = "ACTOR_MISMATCH", Forbidden;
    /// The server cannot listen on that address.
    AddressUnusable = "ADDRESS_UNUSABLE", Conflict;
    /// The events of a command exceed the size of one append.
    AppendTooLarge = "APPEND_TOO_LARGE", Usage;
    /// Earlier approvals at this gate have expired.
    ApprovalExpired = "APPROVAL_EXPIRED", Conflict;
    /// The decision is for another digest than the one that waits at the gate.
    ApprovalStale = "APPROVAL_STALE", Conflict;
    /// The e-mail address of the approver is unknown, and the gate excludes authors.
    ApproverEmailUnknown = "APPROVER_EMAIL_UNKNOWN", Forbidden;
    /// The same person has approved already, by another name.
    ApproverHasApproved = "APPROVER_HAS_APPROVED", Forbidden;
    /// The gate excludes the authors of the pipeline file.
    ApproverIsAuthor = "APPROVER_IS_AUTHOR", Forbidden;
    /// The gate excludes the requester of the run.
    ApproverIsRequester = "APPROVER_IS_REQUESTER", Forbidden;
    /// The approver is not among the people and roles that the gate accepts.
    ApproverNotAllowed = "APPROVER_NOT_ALLOWED", Forbidden;
    /// A program tried to approve a gate.
    ApproverNotHuman = "APPROVER_NOT_HUMAN", Forbidden;
    /// A number or a text of the command is out of its bounds.
    ArgumentOutOfBounds = "ARGUMENT_OUT_OF_BOUNDS", Usage;
    /// The job left no such file.
    ArtifactUnknown = "ARTIFACT_UNKNOWN", NotFound;
    /// Another worker of this machine uses the same folder.
    AttemptsInUse = "ATTEMPTS_IN_USE", Conflict;
    /// A report is for an attempt that is no longer valid.
    AttemptStale = "ATTEMPT_STALE", Conflict;
    /// The job has no attempt of this number.
    AttemptUnknown = "ATTEMPT_UNKNOWN", NotFound;
    /// The log has not reached that position or time, or the run was started later.
    AtOutOfRange = "AT_OUT_OF_RANGE", Usage;
    /// A gate excludes the authors of the pipeline file, and the authors are unknown.
    AuthorsUnknown = "AUTHORS_UNKNOWN", Conflict;
    /// The content of the backup is not what was written.
    BackupDamaged = "BACKUP_DAMAGED", Damaged;
    /// The backup file exists already.
    BackupExists = "BACKUP_EXISTS", AlreadyExists;
    /// The bytes of a blob are not those of its digest.
    BlobDamaged = "BLOB_DAMAGED", Damaged;
    /// There is no blob of that digest.
    BlobMissing = "BLOB_MISSING", NotFound;
    /// The authority has issued no certificate of that name or number.
    CertificateUnknown = "CERTIFICATE_UNKNOWN", NotFound;
    /// The message is compressed, and the server does not support compression.
    CompressionRefused = "COMPRESSION_REFUSED", Unsupported;
    /// The configuration file of `tow serve`, or the file of contexts, is not valid.
    ConfigInvalid = "CONFIG_INVALID", InputInvalid;
    /// The server has reached its maximum number of connections.
    ConnectionsTooMany = "CONNECTIONS_TOO_MANY", NoRoom;
    /// A stream ended because its connection has reached its maximum age.
    ConnectionAged = "CONNECTION_AGED", Unreachable;
    /// A context of that name exists already.
    ContextExists = "CONTEXT_EXISTS", AlreadyExists;
    /// The token of a context cannot be read.
    ContextToken = "CONTEXT_TOKEN", InputInvalid;
    /// There is no context of that name.
    ContextUnknown = "CONTEXT_UNKNOWN", NotFound;
    /// The engine decided on something that could not be replayed, and stopped before it was
    /// written.
    EngineBug = "ENGINE_BUG", Bug;
    /// The event is larger than an event may be.
    EventTooLong = "EVENT_TOO_LONG", Usage;
    /// The program was built without what the command needs.
    FeatureAbsent = "FEATURE_ABSENT", Usage;
    /// `tow init` found a pipeline file in this folder and left it as it is.
    FileExists = "FILE_EXISTS", AlreadyExists;
    /// The pipeline file has errors.
    FileInvalid = "FILE_INVALID", InputInvalid;
    /// A file that was named cannot be read or written.
    FileUnreadable = "FILE_UNREADABLE", NotFound;
    /// The role of the client does not allow the request.
    Forbidden = "FORBIDDEN", Forbidden;
    /// The gate was decided the other way.
    GateDecided = "GATE_DECIDED", Conflict;
    /// The edited plan takes a gate away, and the client may not open gates.
    GateLifted = "GATE_LIFTED", Forbidden;
    /// The job has no gate that waits for a decision.
    GateNotWaiting = "GATE_NOT_WAITING", Conflict;
    /// A request to a server on loopback names another host.
    HostRefused = "HOST_REFUSED", Forbidden;
    /// A request with this idempotency key began a run with other arguments.
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", Conflict;
    /// The record of another tool cannot be read.
    ImportInvalid = "IMPORT_INVALID", InputInvalid;
    /// The record names a job, or a stage of a job, that the pipeline file does not have.
    ImportMismatch = "IMPORT_MISMATCH", InputInvalid;
    /// An imported record says that a job behind a gate succeeded.
    ImportPassesGate = "IMPORT_PASSES_GATE", Forbidden;
    /// A token would be sent without encryption to another machine.
    InsecureConnect = "INSECURE_CONNECT", Usage;
    /// The address is reachable from other machines, and nothing would be encrypted.
    InsecureListen = "INSECURE_LISTEN", Usage;
    /// You interrupted the command.
    Interrupted = "INTERRUPTED", Interrupted;
    /// Jobs of the run are running, and the command needs a run without running jobs.
    JobsRunning = "JOBS_RUNNING", Conflict;
    /// The job that the worker was started for has ended already.
    JobEnded = "JOB_ENDED", Conflict;
    /// The job has not failed, so there is nothing to retry.
    JobNotRetryable = "JOB_NOT_RETRYABLE", Conflict;
    /// The run has no job of that name.
    JobUnknown = "JOB_UNKNOWN", NotFound;
    /// A command that `tow autoscale --once` launched failed.
    LaunchFailed = "LAUNCH_FAILED", Unexpected;
    /// The log is not what was written.
    LogDamaged = "LOG_DAMAGED", Damaged;
    /// The log ends before records that were acknowledged.
    LogRollback = "LOG_ROLLBACK", Damaged;
    /// The message is malformed.
    MessageInvalid = "MESSAGE_INVALID", MessageInvalid;
    /// The message is too large.
    MessageTooLarge = "MESSAGE_TOO_LARGE", TooLarge;
    /// The run has succeeded, so nothing is left to resume.
    NothingToResume = "NOTHING_TO_RESUME", NothingToDo;
    /// A web page sent the request.
    OriginRefused = "ORIGIN_REFUSED", Forbidden;
    /// The pipeline file has changed since the run began.
    PlanChanged = "PLAN_CHANGED", Conflict;
    /// A gRPC method was called with another protocol.
    ProtocolUnsupported = "PROTOCOL_UNSUPPORTED", Unsupported;
    /// The client exceeds its request rate.
    RateExceeded = "RATE_EXCEEDED", NoRoom;
    /// One connection has too many requests in progress.
    RequestsTooMany = "REQUESTS_TOO_MANY", NoRoom;
    /// The request timed out.
    RequestTimedOut = "REQUEST_TIMED_OUT", TimedOut;
    /// The folder that a backup was to be restored into is not empty.
    RestoreTargetNotEmpty = "RESTORE_TARGET_NOT_EMPTY", Conflict;
    /// The beginning of the id matches more than one run.
    RunAmbiguous = "RUN_AMBIGUOUS", Usage;
    /// Other writers changed the run while the command was decided.
    RunContended = "RUN_CONTENDED", Contended;
    /// The run has ended, and the command is for runs that have not.
    RunEnded = "RUN_ENDED", Conflict;
    /// The run is being aborted, cancelled or timed out, and some jobs have not ended yet.
    RunEnding = "RUN_ENDING", Conflict;
    /// A run of that id exists already.
    RunExists = "RUN_EXISTS", AlreadyExists;
    /// No run of this store has that id.
    RunUnknown = "RUN_UNKNOWN", NotFound;
    /// Files that the run needs are not committed.
    SourceDirty = "SOURCE_DIRTY", Conflict;
    /// A symbolic link points out of the files of the run.
    SourceLink = "SOURCE_LINK", InputInvalid;
    /// The bundle that a run names is not on the server.
    SourceMissing = "SOURCE_MISSING", Conflict;
    /// The files of the run exceed the size of a bundle.
    SourceTooLarge = "SOURCE_TOO_LARGE", InputInvalid;
    /// The files of the run cannot be sent.
    SourceUnusable = "SOURCE_UNUSABLE", InputInvalid;
    /// There is no stage of that name.
    StageUnknown = "STAGE_UNKNOWN", NotFound;
    /// The store was written by another backend than the one asked for.
    StoreBackendDiffers = "STORE_BACKEND_DIFFERS", Conflict;
    /// The write queue of the store is full.
    StoreBusy = "STORE_BUSY", StoreFull;
    /// The store's folder can be changed by other users, or belongs to one.
    StoreExposed = "STORE_EXPOSED", Forbidden;
    /// The store's folder was written in a format that this version does not know.
    StoreFormatUnknown = "STORE_FORMAT_UNKNOWN", VersionMismatch;
    /// The disk of the store has too little free space.
    StoreFull = "STORE_FULL", StoreFull;
    /// The store does not exist.
    StoreMissing = "STORE_MISSING", NotFound;
    /// Another process has the store open and does not answer.
    StoreOwned = "STORE_OWNED", Conflict;
    /// The store is unavailable: the disk or the system refused, or the store has stopped.
    StoreUnavailable = "STORE_UNAVAILABLE", StoreUnavailable;
    /// The store URL is not valid.
    StoreUrlInvalid = "STORE_URL_INVALID", Usage;
    /// A certificate or key cannot be used.
    TlsUnusable = "TLS_UNUSABLE", InputInvalid;
    /// The token file is not valid.
    TokensInvalid = "TOKENS_INVALID", InputInvalid;
    /// The store has a token of that name.
    TokenExists = "TOKEN_EXISTS", AlreadyExists;
    /// The store has no token of that name.
    TokenUnknown = "TOKEN_UNKNOWN", NotFound;
    /// The client is not authenticated.
    Unauthenticated = "UNAUTHENTICATED", Unauthenticated;
    /// An unexpected error occurred.
    Unexpected = "UNEXPECTED", Unexpected;
    /// The server, or the process that owns the store, cannot be reached, or the connection was
    /// lost.
    Unreachable = "UNREACHABLE", Unreachable;
    /// Invalid usage: the command line is not valid.
    Usage = "USAGE", Usage;
    /// Client and server, or worker and server, have different versions.
    VersionMismatch = "VERSION_MISMATCH", VersionMismatch;
    /// The worker has the identity of another worker.
    WorkerIdentityMismatch = "WORKER_IDENTITY_MISMATCH", Forbidden;
    /// The worker's name is reserved for the workers of `tow run`.
    WorkerNameReserved = "WORKER_NAME_RESERVED", Usage;
    /// A worker of this name is connected already.
    WorkerNameTaken = "WORKER_NAME_TAKEN", AlreadyExists;
    /// No worker of that name is connected.
    WorkerUnknown = "WORKER_UNKNOWN", NotFound;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ErrorCode {
    type Err = ErrorCodeUnknown;

    fn from_str(text: &str) -> Result<Self, ErrorCodeUnknown> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or(ErrorCodeUnknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_reads_back_as_it_is_written() {
        assert!(ErrorCode::ALL.is_sorted_by(|a, b| a.as_str() < b.as_str()), "in order, once each");
        for code in ErrorCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(*code));
            let plain = |c: char| c.is_ascii_uppercase() || c == '_';
            assert!(code.as_str().chars().all(plain), "{code}");
        }
        assert_eq!("OF_A_LATER_VERSION".parse::<ErrorCode>(), Err(ErrorCodeUnknown));
    }
}
