//! Where records live: an append-only log of records, grouped into streams.
//!
//! This crate knows bytes and positions, never what a record means. Read [`EventStore`] first (the
//! one promise), then `log/queue.rs` and `log/writer.rs` (how it is kept), then `backends.rs` and a
//! backend. [`open`] turns a URL into a store and the directory around it; [`backup`] and [`Blobs`]
//! are beside the log.
//!
//! Not here: snapshots of state, views, cursors, and who may write what.

mod backend;
mod backends;
mod backup;
mod blobs;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod disk_space;
pub mod durable_fs;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod kv;
mod log;
mod memory;
mod open;
mod recent;
mod store_dir;
mod store_url;
mod unfinished;

use std::fmt::Debug;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

pub use crate::{
    backend::{Backend, Directory},
    backends::{BACKENDS, usages},
    backup::{BackedUp, backup, restore, restore_to},
    blobs::{BlobReader, BlobRef, Blobs, UnfinishedBlob},
    disk_space::{DiskFull, DiskSpace, FREE_BYTES_MIN},
    error::{AppendError, BackupDamage, Cause, Damage, StoreError, StoreErrorKind, UrlFault},
    kv::{
        Entry, Found, KvBackend, KvError,
        files::{KvFiles, directory_at},
    },
    log::{
        record::{CHAIN_START, NewRecord, Position, Record, RunningHash, Version},
        verify::{Verified, verify},
    },
    memory::MemoryStore,
    open::{Opened, open, open_existing},
    store_dir::{OwnerLock, StoreDir, socket_in},
    store_url::StoreUrl,
};

/// Longest payload of one record, in bytes.
///
/// Sixteen records of this size still fit a page of the sled backend, whose larger pages leave the
/// file that a commit makes durable.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// Longest stream name, in bytes.
pub const STREAM_BYTES_MAX: usize = 512;

/// Longest kind, in bytes.
pub const KIND_BYTES_MAX: usize = 128;

/// Largest append, in bytes of its stored records.
pub const APPEND_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Most bytes that may wait to be written; an append that would exceed it is refused as busy.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most payload bytes one read returns, save that it returns at least one record.
pub const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Where the records of one acknowledged append are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Position of its first record.
    pub first: Position,
    /// Position of its last record; the records between lie side by side.
    pub last: Position,
    /// Version of its last record: the next append to this stream expects it.
    pub version: Version,
}

/// An append-only log of records, grouped into streams.
///
/// Linearizable: once an append resolves, every later read sees its records, on every handle, also
/// after a crash or a power cut. Nothing is acknowledged before it is durable.
pub trait EventStore: Debug + Send + Sync + 'static {
    /// Appends `records` to `stream`, all or none, if the stream still ends at `expected`.
    ///
    /// The append takes its place in the queue when this is called, not when the future is first
    /// polled, and appends are decided in that order. So a caller may queue under a lock and await
    /// after releasing it. Dropping the future does not take the append back.
    fn append(
        &self,
        stream: &str,
        expected: Version,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'static, Result<Appended, AppendError>>;

    /// At most `limit` records of `stream` after version `after`, oldest first.
    ///
    /// A page is also bounded by [`READ_BYTES_MAX`], so a page shorter than `limit` is not the
    /// end; an empty one is. An unknown stream is an empty one.
    fn read(
        &self,
        stream: &str,
        after: Version,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>>;

    /// At most `limit` records of the log after position `after`, oldest first; paged as `read`.
    fn read_all(
        &self,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>>;

    /// The position of the newest durable record, now and whenever it moves.
    fn watch(&self) -> watch::Receiver<Position>;
}
