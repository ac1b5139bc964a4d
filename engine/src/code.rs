//! Every code that a person or a program is told when something is refused or fails, in one table.
//!
//! The class of a code decides its gRPC code (`server/src/status.rs`) and its exit code
//! (`client/src/exit.rs`); both match the class exhaustively, so that a new class or code without
//! either does not compile. What to do next is the client's to say (`client/src/advice.rs`).

use std::{fmt, str::FromStr};

/// What kind of failure a code stands for.
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

/// A text that is no [`ErrorCode`] of this version.
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

            /// What kind of failure it stands for.
            pub fn class(self) -> ErrorClass {
                match self {
                    $(Self::$name => ErrorClass::$class,)*
                }
            }
        }
    };
}

codes! {
    /// The request is made in the name of somebody else.
    ActorMismatch = "ACTOR_MISMATCH", Forbidden;
    /// The server cannot listen on that address.
    AddressUnusable = "ADDRESS_UNUSABLE", Conflict;
    /// A command means more than one append may hold.
    AppendTooLarge = "APPEND_TOO_LARGE", Usage;
    /// Approvals that were given before this one count no more.
    ApprovalExpired = "APPROVAL_EXPIRED", Conflict;
    /// The decision speaks about something else than what waits at the gate.
    ApprovalStale = "APPROVAL_STALE", Conflict;
    /// Nobody can tell whether the one who approves wrote the pipeline file.
    ApproverEmailUnknown = "APPROVER_EMAIL_UNKNOWN", Forbidden;
    /// The gate wants somebody else than who wrote the pipeline file.
    ApproverIsAuthor = "APPROVER_IS_AUTHOR", Forbidden;
    /// The gate wants somebody else than who asked for the run.
    ApproverIsRequester = "APPROVER_IS_REQUESTER", Forbidden;
    /// The gate is for others.
    ApproverNotAllowed = "APPROVER_NOT_ALLOWED", Forbidden;
    /// A program wanted to open a gate.
    ApproverNotHuman = "APPROVER_NOT_HUMAN", Forbidden;
    /// A number or a text of the command is out of its bounds.
    ArgumentOutOfBounds = "ARGUMENT_OUT_OF_BOUNDS", Usage;
    /// The job left no such file.
    ArtifactUnknown = "ARTIFACT_UNKNOWN", NotFound;
    /// Another worker of this machine uses the same folder.
    AttemptsInUse = "ATTEMPTS_IN_USE", Conflict;
    /// A report is about a try that no longer counts.
    AttemptStale = "ATTEMPT_STALE", Conflict;
    /// The job has no attempt of this number.
    AttemptUnknown = "ATTEMPT_UNKNOWN", NotFound;
    /// A gate excludes the authors of the pipeline file, and nobody knows who they are.
    AuthorsUnknown = "AUTHORS_UNKNOWN", Conflict;
    /// The backup is not what was written.
    BackupDamaged = "BACKUP_DAMAGED", Damaged;
    /// The file that a backup was to be written to is there already.
    BackupExists = "BACKUP_EXISTS", AlreadyExists;
    /// The bytes of a blob are not those of its digest.
    BlobDamaged = "BLOB_DAMAGED", Damaged;
    /// There is no blob of that digest.
    BlobMissing = "BLOB_MISSING", NotFound;
    /// The authority has issued no certificate of that name or number.
    CertificateUnknown = "CERTIFICATE_UNKNOWN", NotFound;
    /// A message is packed, and the server does not unpack.
    CompressionRefused = "COMPRESSION_REFUSED", Unsupported;
    /// The configuration file of `tow serve`, or that of your contexts, cannot be meant.
    ConfigInvalid = "CONFIG_INVALID", InputInvalid;
    /// The server has as many connections as it takes.
    ConnectionsTooMany = "CONNECTIONS_TOO_MANY", NoRoom;
    /// A stream ended because its connection has reached its age.
    ConnectionAged = "CONNECTION_AGED", Unreachable;
    /// There is a context of that name already.
    ContextExists = "CONTEXT_EXISTS", AlreadyExists;
    /// The token of a context cannot be had.
    ContextToken = "CONTEXT_TOKEN", InputInvalid;
    /// There is no context of that name.
    ContextUnknown = "CONTEXT_UNKNOWN", NotFound;
    /// The engine decided on something that could not be replayed, and stopped before it was written.
    EngineBug = "ENGINE_BUG", Bug;
    /// What is to be recorded is larger than an event may be.
    EventTooLong = "EVENT_TOO_LONG", Usage;
    /// `tow init` found a pipeline file in this folder and left it as it is.
    FileExists = "FILE_EXISTS", AlreadyExists;
    /// The pipeline file has errors.
    FileInvalid = "FILE_INVALID", InputInvalid;
    /// A file that was named cannot be read or written.
    FileUnreadable = "FILE_UNREADABLE", NotFound;
    /// Whoever asks may not ask for that.
    Forbidden = "FORBIDDEN", Forbidden;
    /// The gate was decided the other way.
    GateDecided = "GATE_DECIDED", Conflict;
    /// No gate of that job waits for a decision.
    GateNotWaiting = "GATE_NOT_WAITING", Conflict;
    /// A request to a server on loopback names another host.
    HostRefused = "HOST_REFUSED", Forbidden;
    /// A request of this key began a run with other arguments.
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", Conflict;
    /// The record of another tool cannot be read.
    ImportInvalid = "IMPORT_INVALID", InputInvalid;
    /// The record names a job, or a stage of a job, that the pipeline file does not have.
    ImportMismatch = "IMPORT_MISMATCH", InputInvalid;
    /// The record of another tool says that a job succeeded which only a gate could have let through.
    ImportPassesGate = "IMPORT_PASSES_GATE", Forbidden;
    /// The address can be heard by other machines, and nothing would be encrypted.
    InsecureListen = "INSECURE_LISTEN", Usage;
    /// You interrupted the command.
    Interrupted = "INTERRUPTED", Interrupted;
    /// Jobs of the run are running, and the command needs the run to be at rest.
    JobsRunning = "JOBS_RUNNING", Conflict;
    /// The job that a worker was started for has ended already.
    JobEnded = "JOB_ENDED", Conflict;
    /// The job has not ended badly, so there is nothing to retry.
    JobNotRetryable = "JOB_NOT_RETRYABLE", Conflict;
    /// The run has no job of that name.
    JobUnknown = "JOB_UNKNOWN", NotFound;
    /// A command that `tow autoscale --once` launched ended with a failure.
    LaunchFailed = "LAUNCH_FAILED", Unexpected;
    /// The log is not what was written.
    LogDamaged = "LOG_DAMAGED", Damaged;
    /// The log ends before records that were acknowledged.
    LogRollback = "LOG_ROLLBACK", Damaged;
    /// A message arrived that no client of ours sends.
    MessageInvalid = "MESSAGE_INVALID", MessageInvalid;
    /// A message has more bytes than are read.
    MessageTooLarge = "MESSAGE_TOO_LARGE", TooLarge;
    /// The run has succeeded, so nothing is left to do.
    NothingToResume = "NOTHING_TO_RESUME", NothingToDo;
    /// A web page sent the request.
    OriginRefused = "ORIGIN_REFUSED", Forbidden;
    /// The pipeline file does not mean what it meant when the run began.
    PlanChanged = "PLAN_CHANGED", Conflict;
    /// A gRPC method was called by another protocol.
    ProtocolUnsupported = "PROTOCOL_UNSUPPORTED", Unsupported;
    /// Somebody asks more often than they may.
    RateExceeded = "RATE_EXCEEDED", NoRoom;
    /// A client did not read the answer that it asked for.
    ReaderStalled = "READER_STALLED", TimedOut;
    /// One connection has more requests under way than it may.
    RequestsTooMany = "REQUESTS_TOO_MANY", NoRoom;
    /// A request took longer than it may.
    RequestTimedOut = "REQUEST_TIMED_OUT", TimedOut;
    /// The folder that a backup was to be restored into is not empty.
    RestoreTargetNotEmpty = "RESTORE_TARGET_NOT_EMPTY", Conflict;
    /// The beginning of an id fits more than one run.
    RunAmbiguous = "RUN_AMBIGUOUS", Usage;
    /// Somebody else changed the run again and again while the command was being decided.
    RunContended = "RUN_CONTENDED", Contended;
    /// The run has ended, and the command is for runs that have not.
    RunEnded = "RUN_ENDED", Conflict;
    /// The run is being aborted, cancelled or timed out, and what runs has not come to its end yet.
    RunEnding = "RUN_ENDING", Conflict;
    /// A run of that id exists already.
    RunExists = "RUN_EXISTS", AlreadyExists;
    /// No run of this store has that id.
    RunUnknown = "RUN_UNKNOWN", NotFound;
    /// Clients read as much of the states of runs at once as may be.
    SnapshotsTooMany = "SNAPSHOTS_TOO_MANY", NoRoom;
    /// Not everything that the run would need is committed.
    SourceDirty = "SOURCE_DIRTY", Conflict;
    /// A symbolic link leads out of the files that would travel.
    SourceLink = "SOURCE_LINK", InputInvalid;
    /// The bundle that a run names is not on the server.
    SourceMissing = "SOURCE_MISSING", Conflict;
    /// There is more than a bundle may hold.
    SourceTooLarge = "SOURCE_TOO_LARGE", InputInvalid;
    /// The files of the run cannot be sent as they are.
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
    /// The disk of the store has too little room left.
    StoreFull = "STORE_FULL", StoreFull;
    /// There is no store where one was asked for.
    StoreMissing = "STORE_MISSING", NotFound;
    /// Another process has the store open and does not answer.
    StoreOwned = "STORE_OWNED", Conflict;
    /// The store cannot do its part: the disk or the system refused, or the store has stopped.
    StoreUnavailable = "STORE_UNAVAILABLE", StoreUnavailable;
    /// What was given as a store names none.
    StoreUrlInvalid = "STORE_URL_INVALID", Usage;
    /// A certificate or key cannot be used.
    TlsUnusable = "TLS_UNUSABLE", InputInvalid;
    /// The file of tokens cannot be read as one.
    TokensInvalid = "TOKENS_INVALID", InputInvalid;
    /// The store has a token of that name.
    TokenExists = "TOKEN_EXISTS", AlreadyExists;
    /// The store has no token of that name.
    TokenUnknown = "TOKEN_UNKNOWN", NotFound;
    /// Nobody has proven who asks.
    Unauthenticated = "UNAUTHENTICATED", Unauthenticated;
    /// Something happened that nobody foresaw.
    Unexpected = "UNEXPECTED", Unexpected;
    /// The server, or the process that owns the store, cannot be reached, or went away in the middle.
    Unreachable = "UNREACHABLE", Unreachable;
    /// The command line cannot be meant.
    Usage = "USAGE", Usage;
    /// The two ends speak different versions.
    VersionMismatch = "VERSION_MISMATCH", VersionMismatch;
    /// The worker goes by the name of another.
    WorkerIdentityMismatch = "WORKER_IDENTITY_MISMATCH", Forbidden;
    /// A worker at a port goes by a name of the workers of `tow run`.
    WorkerNameReserved = "WORKER_NAME_RESERVED", Usage;
    /// Another worker goes by this name and is connected.
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
