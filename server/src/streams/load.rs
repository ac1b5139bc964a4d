//! Reading a stream, and the list of the streams of one kind, back from the log. Snapshots shorten
//! the way; whatever is wrong with one, the log alone is enough.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use towpath_engine::{
    aggregate::{Aggregate, stream_of},
    codec,
    ids::Digest,
    views::List,
};
use towpath_storage::{EventStore, Position, Record, RunningHash, StoreError, Version, durable_fs};

use crate::command_error::CommandError;

/// Records read at a time.
const PAGE: usize = 4_096;
/// The version of the snapshot format. A snapshot of another version is passed over.
const FORMAT: u32 = 5;
/// A snapshot holds what the log holds, so only its owner may read it.
const SNAPSHOT_MODE: u32 = 0o600;

/// The first line of a snapshot.
#[derive(Serialize, Deserialize)]
struct Cover {
    format: u32,
    /// The stream version, or log position, that it covers.
    upto: u64,
    /// The running hash of the log after that record.
    hash: Digest,
    /// Digest of the bytes that follow.
    body_sha256: Digest,
}

/// A state as the records of its stream left it.
#[derive(Debug, Default)]
pub(crate) struct Replayed<A> {
    pub(crate) state: A,
    pub(crate) version: Version,
    pub(crate) position: Position,
    pub(crate) snapshot_version: Version,
}

/// Replays stream `id`, from its snapshot if there is a good one.
pub(crate) async fn stream<A: Aggregate>(
    store: &dyn EventStore,
    snapshots: &Path,
    id: &A::Id,
) -> Result<Replayed<A>, CommandError> {
    let name = stream_of::<A>(id);
    // A snapshot is never trusted alone: it names a record and its hash, and what follows is read
    // from the log.
    let mut replayed = from_snapshot::<A>(store, snapshots, id).await.unwrap_or_default();
    loop {
        let page = store.read(&name, replayed.version, PAGE).await?;
        // Only an empty page is the end: a page is bounded in bytes too and may be shorter than
        // asked for.
        if page.is_empty() {
            return Ok(replayed);
        }
        for record in page {
            evolve(&mut replayed.state, &name, &record)?;
            replayed.version = record.version;
            replayed.position = record.position;
        }
    }
}

fn evolve<A: Aggregate>(state: &mut A, stream: &str, record: &Record) -> Result<(), CommandError> {
    let unreplayable = |why: String| CommandError::Unreplayable {
        stream: stream.to_owned(),
        version: record.version,
        why,
    };
    let fact = codec::decode(&record.bytes).map_err(|error| unreplayable(error.to_string()))?;
    state.evolve(&fact).map_err(|error| unreplayable(error.to_string()))
}

async fn from_snapshot<A: Aggregate>(
    store: &dyn EventStore,
    snapshots: &Path,
    id: &A::Id,
) -> Option<Replayed<A>> {
    let (cover, body) = read_covered(&snapshots.join(state_file::<A>(id)))?;
    // An error here is no reason to fail: the log is read from its beginning, and says what is
    // wrong.
    let page = store.read(&stream_of::<A>(id), cover.upto.checked_sub(1)?, 1).await.ok()?;
    let record = page.first()?;
    // The running hash covers every record of the log up to this one. It differs where records were
    // lost, and others were written in their place.
    if record.version != cover.upto || record.hash != cover.hash.0 {
        return None;
    }
    let state = A::from_snapshot(&body).ok()?;
    let (version, position) = (cover.upto, record.position);
    Some(Replayed { state, version, position, snapshot_version: version })
}

/// The file that holds the state of a stream. Ids may hold any character, and what comes first in
/// the name keeps apart the streams of two kinds that have one id.
fn state_file<A: Aggregate>(id: &A::Id) -> String {
    let text = id.as_ref();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.len() <= 100 && text.chars().all(plain) {
        format!("{}-{text}.json", A::KIND)
    } else {
        // Longer than a file name may be, or with characters that mean something to a file system.
        format!("{}-{}.json", A::KIND, Digest::of(text.as_bytes()))
    }
}

/// The file that holds the list of the streams of one kind.
fn list_file<A: Aggregate>() -> String {
    format!("list-{}.json", A::KIND)
}

/// Keeps the state of stream `id` after `version`.
pub(crate) fn write_snapshot<A: Aggregate>(
    snapshots: &Path,
    id: &A::Id,
    version: Version,
    hash: &RunningHash,
    state: &A,
) -> io::Result<()> {
    write_covered(&snapshots.join(state_file::<A>(id)), version, hash, &state.to_snapshot())
}

/// The list of the streams of one kind, from its snapshot if there is a good one.
pub(crate) async fn list<A: Aggregate>(
    store: &dyn EventStore,
    snapshots: &Path,
) -> Result<List<A>, StoreError> {
    let mut list = list_from_snapshot(store, snapshots).await.unwrap_or_default();
    loop {
        let page = store.read_all(list.position(), PAGE).await?;
        if page.is_empty() {
            return Ok(list);
        }
        for record in page {
            // Records of other kinds are passed as well: the position of the list is that of the
            // log.
            list.read(&record.stream, record.position, record.version, &record.bytes);
        }
    }
}

async fn list_from_snapshot<A: Aggregate>(
    store: &dyn EventStore,
    snapshots: &Path,
) -> Option<List<A>> {
    let (cover, body) = read_covered(&snapshots.join(list_file::<A>()))?;
    let page = store.read_all(cover.upto.checked_sub(1)?, 1).await.ok()?;
    let record = page.first()?;
    // As for one stream: another log at this position means another list.
    if record.position != cover.upto || record.hash != cover.hash.0 {
        return None;
    }
    serde_json::from_slice(&body).ok()
}

/// Keeps the list of the streams of one kind.
pub(crate) async fn write_list<A: Aggregate>(
    store: &dyn EventStore,
    snapshots: &Path,
    list: &List<A>,
) -> io::Result<()> {
    // An empty log has no record whose hash the snapshot could name.
    let Some(before) = list.position().checked_sub(1) else { return Ok(()) };
    let page = store.read_all(before, 1).await.map_err(io::Error::other)?;
    let Some(record) = page.first() else { return Ok(()) };
    let body = serde_json::to_vec(list)?;
    write_covered(&snapshots.join(list_file::<A>()), list.position(), &record.hash, &body)
}

fn write_covered(path: &Path, upto: u64, hash: &RunningHash, body: &[u8]) -> io::Result<()> {
    let cover = Cover { format: FORMAT, upto, hash: Digest(*hash), body_sha256: Digest::of(body) };
    let mut bytes = serde_json::to_vec(&cover)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(body);
    // Replaced as a whole: a half of it would be noticed by its digest, but the next start would
    // then read the whole log.
    durable_fs::replace_file(path, SNAPSHOT_MODE, &bytes)
}

fn read_covered(path: &Path) -> Option<(Cover, Vec<u8>)> {
    let mut bytes = fs::read(path).ok()?;
    // JSON on one line has no line feed, so the first one ends the cover.
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let cover: Cover = serde_json::from_slice(&bytes[..end]).ok()?;
    let body = bytes.split_off(end + 1);
    (cover.format == FORMAT && Digest::of(&body) == cover.body_sha256).then_some((cover, body))
}
