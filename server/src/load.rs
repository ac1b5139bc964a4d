//! Reading a run, and the list of runs, back from the log. Snapshots shorten the way; whatever is
//! wrong with one, the log alone is enough.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use towpath_engine::{
    codec,
    ids::{Digest, RunId},
    run::Run,
};
use towpath_storage::{EventStore, Position, Record, RunningHash, Version, durable_fs};

use crate::{
    run_list::RunList,
    runs::{CommandError, stream},
};

/// Records read at a time.
const PAGE: usize = 4_096;
/// The version of the snapshot format. A snapshot of another version is passed over.
const FORMAT: u32 = 4;
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

/// A run as its records left it.
pub(crate) struct LoadedRun {
    pub(crate) run: Run,
    pub(crate) version: Version,
    pub(crate) position: Position,
    pub(crate) snapshot_version: Version,
}

/// Replays run `id`, from its snapshot if there is a good one.
pub(crate) async fn run(
    store: &dyn EventStore,
    snapshots: &Path,
    id: &RunId,
) -> Result<LoadedRun, CommandError> {
    let mut loaded = match from_snapshot(store, snapshots, id).await {
        Some(loaded) => loaded,
        None => LoadedRun { run: Run::default(), version: 0, position: 0, snapshot_version: 0 },
    };
    loop {
        let page = store.read(&stream(id), loaded.version, PAGE).await?;
        if page.is_empty() {
            return Ok(loaded);
        }
        for record in page {
            evolve(&mut loaded.run, id, &record)?;
            loaded.version = record.version;
            loaded.position = record.position;
        }
    }
}

fn evolve(run: &mut Run, id: &RunId, record: &Record) -> Result<(), CommandError> {
    let unreplayable =
        |why: String| CommandError::Unreplayable { run: id.clone(), version: record.version, why };
    let fact = codec::decode(&record.bytes).map_err(|error| unreplayable(error.to_string()))?;
    run.evolve(&fact).map_err(|error| unreplayable(error.to_string()))
}

async fn from_snapshot(store: &dyn EventStore, snapshots: &Path, id: &RunId) -> Option<LoadedRun> {
    let (cover, body) = read_covered(&snapshot_path(snapshots, id)?)?;
    let page = store.read(&stream(id), cover.upto.checked_sub(1)?, 1).await.ok()?;
    let record = page.first()?;
    if record.version != cover.upto || record.hash != cover.hash.0 {
        return None;
    }
    let run = Run::from_snapshot(&body).ok()?;
    let (version, position) = (cover.upto, record.position);
    Some(LoadedRun { run, version, position, snapshot_version: version })
}

/// Keeps the state of run `id` after `version`.
pub(crate) fn write_snapshot(
    snapshots: &Path,
    id: &RunId,
    version: Version,
    hash: &RunningHash,
    run: &Run,
) -> io::Result<()> {
    let Some(path) = snapshot_path(snapshots, id) else { return Ok(()) };
    write_covered(&path, version, hash, &run.to_snapshot())
}

/// Where the snapshot of run `id` is. `None`: the id is none that this server makes, and might lead
/// out of the folder.
fn snapshot_path(snapshots: &Path, id: &RunId) -> Option<PathBuf> {
    let is_name = !id.as_str().is_empty() && id.as_str().bytes().all(|b| b.is_ascii_alphanumeric());
    is_name.then(|| snapshots.join(format!("{id}.json")))
}

/// The list of runs, from its snapshot if there is a good one.
pub(crate) async fn list(
    store: &dyn EventStore,
    snapshots: &Path,
) -> Result<RunList, CommandError> {
    let mut list = list_from_snapshot(store, snapshots).await.unwrap_or_default();
    read_on(store, &mut list).await?;
    Ok(list)
}

/// Lets `list` take in what the log holds beyond it.
pub(crate) async fn read_on(
    store: &dyn EventStore,
    list: &mut RunList,
) -> Result<(), CommandError> {
    loop {
        let page = store.read_all(list.position(), PAGE).await?;
        if page.is_empty() {
            return Ok(());
        }
        for record in page {
            list.read(&record);
        }
    }
}

async fn list_from_snapshot(store: &dyn EventStore, snapshots: &Path) -> Option<RunList> {
    let (cover, body) = read_covered(&snapshots.join("runs.json"))?;
    let page = store.read_all(cover.upto.checked_sub(1)?, 1).await.ok()?;
    let record = page.first()?;
    if record.position != cover.upto || record.hash != cover.hash.0 {
        return None;
    }
    serde_json::from_slice(&body).ok()
}

/// Keeps the list of runs.
pub(crate) async fn write_list(
    store: &dyn EventStore,
    snapshots: &Path,
    list: &RunList,
) -> io::Result<()> {
    let Some(before) = list.position().checked_sub(1) else { return Ok(()) };
    let page = store.read_all(before, 1).await.map_err(io::Error::other)?;
    let Some(record) = page.first() else { return Ok(()) };
    let body = serde_json::to_vec(list)?;
    write_covered(&snapshots.join("runs.json"), list.position(), &record.hash, &body)
}

fn write_covered(path: &Path, upto: u64, hash: &RunningHash, body: &[u8]) -> io::Result<()> {
    let cover = Cover { format: FORMAT, upto, hash: Digest(*hash), body_sha256: Digest::of(body) };
    let mut bytes = serde_json::to_vec(&cover)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(body);
    durable_fs::replace_file(path, SNAPSHOT_MODE, &bytes)
}

fn read_covered(path: &Path) -> Option<(Cover, Vec<u8>)> {
    let mut bytes = fs::read(path).ok()?;
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let cover: Cover = serde_json::from_slice(&bytes[..end]).ok()?;
    let body = bytes.split_off(end + 1);
    (cover.format == FORMAT && Digest::of(&body) == cover.body_sha256).then_some((cover, body))
}
