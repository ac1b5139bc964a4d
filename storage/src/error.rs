//! The errors of a store. The server maps them to error codes.
//!
//! Errors are `Clone` because one failed commit answers every append in it.

use std::{error::Error, fmt, path::PathBuf, sync::Arc};

use crate::{
    disk_space::DiskFull,
    log::record::{Position, Version},
};

/// What an error of a backend or of the system was caused by.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// An append that was not acknowledged.
///
/// Nothing of it was or will be written, save with [`AppendError::Store`]: then the store stopped
/// in the middle, and whether the append is there shows when it is opened again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// Another append to the stream was first.
    #[error("stream `{stream}` ends at {actual}, not at {expected}")]
    Conflict {
        /// The stream.
        stream: String,
        /// Where the writer believed it ends.
        expected: Version,
        /// Where it ends.
        actual: Version,
    },
    /// A part of the append exceeds its bound.
    #[error("{what} of {bytes} bytes exceeds {bytes_max}")]
    TooLarge {
        /// Which part: `record`, `append`, `stream name` or `kind`.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The bound it exceeds.
        bytes_max: usize,
    },
    /// An append without records says nothing.
    #[error("an append needs at least one record")]
    Empty,
    /// The write queue is full; try again.
    #[error("the write queue is full: {bytes} of {bytes_max} bytes")]
    Busy {
        /// Bytes that wait now.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// Too little space is free on the disk; try again when there is more.
    #[error(transparent)]
    Full(#[from] DiskFull),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A store, blob or backup that cannot be used as asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or the system refused.
    #[error("the store is unavailable: {doing}")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        cause: Cause,
    },
    /// A commit failed, so it is unknown what is on disk: the store accepts nothing more.
    #[error("the store stopped because a commit failed")]
    Stopped {
        /// How that commit failed.
        #[source]
        cause: Arc<Self>,
    },
    /// Too little space is free on the disk; nothing was written.
    #[error(transparent)]
    Full(#[from] DiskFull),
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
    /// The log is not what was written.
    #[error("the log is damaged at position {position}: {what}")]
    Damaged {
        /// The first position that cannot be trusted.
        position: Position,
        /// What is wrong there.
        what: Damage,
    },
    /// The log ends before records that were acknowledged.
    #[error("the log ends at position {tail}, but position {high_water} was acknowledged")]
    Rollback {
        /// Newest position of the high-water mark beside the log.
        high_water: Position,
        /// Newest position in the log.
        tail: Position,
    },
    /// Another process has the store open.
    #[error("`{}` is owned by process {}", path.display(), PidOrUnknown(*pid))]
    Owned {
        /// The owner, when its file says.
        pid: Option<u32>,
        /// The store's directory.
        path: PathBuf,
    },
    /// Other users of the machine could put files into the store.
    #[error("`{}` {why}", path.display())]
    Exposed {
        /// The store's directory.
        path: PathBuf,
        /// How.
        why: Exposure,
    },
    /// The URL names no store.
    #[error("`{url}` is not a valid store URL: {why}")]
    UrlInvalid {
        /// The URL as given.
        url: String,
        /// Why not.
        why: UrlFault,
    },
    /// The store does not exist.
    #[error("there is no store at `{}`", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The directory was written by another version.
    #[error("`{}` has the format `{found}`, which this version does not know", path.display())]
    FormatUnknown {
        /// The store's directory.
        path: PathBuf,
        /// What its `format` file says, cut short.
        found: String,
    },
    /// The directory was written by another backend.
    #[error("`{}` is a {found} store, not a {asked} one", path.display())]
    BackendDiffers {
        /// The store's directory.
        path: PathBuf,
        /// The backend that wrote it.
        found: String,
        /// The backend that the URL names.
        asked: &'static str,
    },
    /// There is no such blob.
    #[error("there is no blob {}", hex::encode(sha256))]
    BlobMissing {
        /// Its digest.
        sha256: [u8; 32],
    },
    /// The bytes of a blob are not those of its digest.
    #[error("blob {} is damaged", hex::encode(sha256))]
    BlobDamaged {
        /// Its digest.
        sha256: [u8; 32],
    },
    /// The backup is not what was written.
    #[error("the backup `{}` is damaged: {what}", path.display())]
    BackupDamaged {
        /// The backup.
        path: PathBuf,
        /// What is wrong with it.
        what: BackupDamage,
    },
    /// A backup never overwrites a file.
    #[error("`{}` exists, and a backup overwrites nothing", path.display())]
    BackupExists {
        /// The file in the way.
        path: PathBuf,
    },
    /// A restore never writes into what is there.
    #[error("`{}` is not empty, and a restore overwrites nothing", path.display())]
    RestoreTargetNotEmpty {
        /// The directory in the way.
        path: PathBuf,
    },
}

impl StoreError {
    /// What kind of error it is.
    pub fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Unavailable { .. } | Self::Stopped { .. } | Self::Closed => {
                StoreErrorKind::Unavailable
            }
            Self::Full(_) => StoreErrorKind::Full,
            Self::Damaged { .. } => StoreErrorKind::LogDamaged,
            Self::Rollback { .. } => StoreErrorKind::LogRollback,
            Self::Owned { .. } => StoreErrorKind::Owned,
            Self::Exposed { .. } => StoreErrorKind::Exposed,
            Self::UrlInvalid { .. } => StoreErrorKind::UrlInvalid,
            Self::Missing { .. } => StoreErrorKind::Missing,
            Self::FormatUnknown { .. } => StoreErrorKind::FormatUnknown,
            Self::BackendDiffers { .. } => StoreErrorKind::BackendDiffers,
            Self::BlobMissing { .. } => StoreErrorKind::BlobMissing,
            Self::BlobDamaged { .. } => StoreErrorKind::BlobDamaged,
            Self::BackupDamaged { .. } => StoreErrorKind::BackupDamaged,
            Self::BackupExists { .. } => StoreErrorKind::BackupExists,
            Self::RestoreTargetNotEmpty { .. } => StoreErrorKind::RestoreTargetNotEmpty,
        }
    }

    /// Turns an error of the system into one of the store, for `map_err`.
    pub(crate) fn while_doing<E>(doing: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Error + Send + Sync + 'static,
    {
        move |cause| Self::Unavailable { doing, cause: Arc::new(cause) }
    }
}

/// How a store's directory is open to other users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exposure {
    /// Its permissions let others in.
    #[error("can be changed by other users (mode {mode:04o}); `chmod go= DIRECTORY` closes it")]
    Mode {
        /// Its permission bits.
        mode: u32,
    },
    /// Its permissions let others look into it, and it holds other files than a store.
    #[error(
        "can be read by other users (mode {mode:04o}) and has other files; `chmod go= DIRECTORY` closes it"
    )]
    Readable {
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user.
    #[error("belongs to the user with the number {owner}, and this process runs as {own}")]
    Owner {
        /// Who owns it.
        owner: u32,
        /// Who we are.
        own: u32,
    },
}

/// What kind of error a [`StoreError`] is. The server maps it to an error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoreErrorKind {
    /// The disk or the system refused, or the store has stopped.
    Unavailable,
    /// The disk has too little space.
    Full,
    /// The log is not what was written.
    LogDamaged,
    /// The log ends before records that were acknowledged.
    LogRollback,
    /// Another process has the store open.
    Owned,
    /// Others than its owner may change the store's directory.
    Exposed,
    /// The URL names no store.
    UrlInvalid,
    /// There is no store where one must exist.
    Missing,
    /// The directory was written by another version.
    FormatUnknown,
    /// The directory was written by another backend.
    BackendDiffers,
    /// There is no such blob.
    BlobMissing,
    /// The bytes of a blob are not those of its digest.
    BlobDamaged,
    /// The backup is not what was written.
    BackupDamaged,
    /// The file of a backup exists already.
    BackupExists,
    /// The directory of a restore is not empty.
    RestoreTargetNotEmpty,
}

/// What is wrong with a log at a position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Records that were acknowledged are not there, though later ones are.
    #[error("a record is missing")]
    Hole,
    /// The stored bytes are not well-formed records.
    #[error("the stored bytes are not well-formed records")]
    Malformed,
    /// The records are well-formed, but their running hash is another.
    #[error("the running hash differs")]
    HashDiffers,
    /// The index of streams names a record that is not there, or passes one over.
    #[error("the index of stream `{stream}` does not match the log")]
    IndexDiffers {
        /// The stream.
        stream: String,
    },
    /// The high-water mark beside the log holds another hash for this position.
    #[error("the record does not match the high-water mark")]
    HighWaterDiffers,
    /// The high-water mark beside the log cannot be read.
    #[error("the high-water mark beside the log is unreadable")]
    HighWaterUnreadable,
    /// The database cannot read its files.
    #[error("the database reports: {says}")]
    Backend {
        /// Its own words.
        says: String,
    },
}

/// What is wrong with a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupDamage {
    /// It does not begin as a backup of a version known here.
    #[error("this version does not know its format")]
    Header,
    /// It ends too early.
    #[error("the file is truncated")]
    Cut,
    /// Its bytes are not those of its digest.
    #[error("the digest does not match")]
    Digest,
    /// Its parts do not follow each other as they must.
    #[error("the content is inconsistent")]
    Malformed,
}

/// Why a URL names no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    /// No backend has this name.
    #[error("it is written {usages}")]
    BackendUnknown {
        /// How the URLs of the backends are written.
        usages: String,
    },
    /// A durable backend needs a directory.
    #[error("the path is missing")]
    PathMissing,
    /// Memory has no path.
    #[error("`memory:` takes no path")]
    PathUnexpected,
    /// What is in memory ends with the process.
    #[error("a backup and a restore need a durable backend")]
    NotDurable,
}

struct PidOrUnknown(Option<u32>);

impl fmt::Display for PidOrUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "{pid}"),
            None => f.write_str("unknown"),
        }
    }
}
