//! Bundles and files of runs: what must be there before a run begins, what a client sends, and what
//! a worker may fetch.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use towpath_engine::{
    ids::{AttemptId, Blob, Digest},
    job::JobState,
    run::Run,
    source::{BUNDLE_BYTES_MAX, Origin, Source},
};
use towpath_storage::{BlobRef, Blobs, StoreError, UnfinishedBlob};

use crate::{blob_pieces::send_blob, command_error::CommandError, runs::Runs, streams::Loaded};

/// Bytes that are gathered before they are written: parts of messages are small, and each write is a
/// task on another thread.
const GATHERED_BYTES: usize = 1024 * 1024;

/// The bundles of a store, and who may have them.
#[derive(Clone, Debug)]
pub(crate) struct Bundles {
    runs: Arc<Runs>,
    blobs: Arc<Blobs>,
}

impl Bundles {
    pub(crate) fn new(runs: Arc<Runs>, blobs: Arc<Blobs>) -> Self {
        Self { runs, blobs }
    }

    /// Refuses a run whose bundle was not sent: its jobs would be leased, and fail one by one.
    pub(crate) async fn check_source(&self, source: Option<&Source>) -> Result<(), CommandError> {
        let Some(Source { origin: Origin::Bundle(bundle), .. }) = source else { return Ok(()) };
        if self.contains(*bundle).await? {
            return Ok(());
        }
        Err(CommandError::SourceMissing { sha256: bundle.sha256 })
    }

    /// Whether `blob` is stored with the bytes that its digest names.
    pub(crate) async fn contains(&self, blob: Blob) -> Result<bool, CommandError> {
        let blobs = Arc::clone(&self.blobs);
        let Blob { size, sha256: Digest(sha256) } = blob;
        on_disk(move || Ok(blobs.is_sound(&BlobRef { size, sha256 }))).await
    }

    /// Begins to take in the bundle that `blob` names.
    pub(crate) fn upload(&self, blob: Blob) -> Result<Upload, CommandError> {
        if blob.size > BUNDLE_BYTES_MAX {
            let (bytes, bytes_max) = (blob.size, BUNDLE_BYTES_MAX);
            return Err(CommandError::SourceTooLarge { bytes, bytes_max });
        }
        let (arrived, gathered) = (Arrived { blob, bytes: 0 }, Vec::new());
        Ok(Upload { blobs: Arc::clone(&self.blobs), arrived, gathered, unfinished: None })
    }

    /// Sends the blob that `sha256` names, a piece at a time.
    pub(crate) async fn send(
        &self,
        sha256: &Digest,
        send: &mpsc::Sender<Result<Bytes, CommandError>>,
    ) {
        send_blob(&self.blobs, sha256, 0, send).await;
    }

    /// Refuses a worker that fetches a blob which no attempt needs that it holds: a blob may be what
    /// another team's job printed, and its digest alone is no right to read it.
    pub(crate) async fn check_fetch(
        &self,
        worker: &str,
        key: &AttemptId,
        sha256: &Digest,
    ) -> Result<(), CommandError> {
        let run = self.runs.find(key.run.as_str())?;
        let may = |loaded: &Loaded| needs(&loaded.state, key, worker, sha256);
        if self.runs.read_durable(&run, may).await? {
            return Ok(());
        }
        let what = format!("blob {}, which no attempt that it holds needs", sha256.short());
        Err(CommandError::Forbidden { who: format!("worker:{worker}"), what })
    }
}

/// A bundle on its way in. One that is dropped leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Upload {
    blobs: Arc<Blobs>,
    arrived: Arrived,
    /// Arrived, and not written yet.
    gathered: Vec<u8>,
    /// What is written. `None` before the first write: an upload that stops at once makes no file.
    unfinished: Option<UnfinishedBlob>,
}

/// How much of a bundle has arrived.
#[derive(Debug)]
struct Arrived {
    blob: Blob,
    bytes: u64,
}

impl Arrived {
    /// Refuses more bytes than the bundle's name says: they are refused before they are kept.
    fn take(&mut self, bytes: usize) -> Result<(), CommandError> {
        self.bytes += bytes as u64;
        if self.bytes > self.blob.size { Err(wrong_length()) } else { Ok(()) }
    }

    /// Refuses fewer bytes, at the end.
    fn end(&self) -> Result<(), CommandError> {
        if self.bytes < self.blob.size { Err(wrong_length()) } else { Ok(()) }
    }
}

fn wrong_length() -> CommandError {
    invalid("a blob of another length than its name says")
}

impl Upload {
    /// Takes in the next part.
    pub(crate) async fn take(&mut self, part: &[u8]) -> Result<(), CommandError> {
        self.arrived.take(part.len())?;
        self.gathered.extend_from_slice(part);
        if self.gathered.len() >= GATHERED_BYTES {
            self.unfinished = Some(self.written().await?);
        }
        Ok(())
    }

    /// Stores the bundle, whose last part has arrived. Durable when it returns.
    pub(crate) async fn finish(mut self) -> Result<(), CommandError> {
        self.arrived.end()?;
        let unfinished = self.written().await?;
        if unfinished.name().sha256 != self.arrived.blob.sha256.0 {
            return Err(invalid("a blob with other bytes than its name says"));
        }
        let blobs = self.blobs;
        on_disk(move || Ok(blobs.keep(unfinished)?)).await.map(drop)
    }

    /// What has arrived, written.
    async fn written(&mut self) -> Result<UnfinishedBlob, CommandError> {
        let (blobs, size) = (Arc::clone(&self.blobs), self.arrived.blob.size);
        let (begun, piece) = (self.unfinished.take(), std::mem::take(&mut self.gathered));
        on_disk(move || {
            let mut unfinished = match begun {
                Some(unfinished) => unfinished,
                None => blobs.begin(size)?,
            };
            unfinished.write(&piece)?;
            Ok(unfinished)
        })
        .await
    }
}

/// Does `work` on a thread that may block: a disk that is slow must not hold up the heartbeats of
/// workers, which the runtime's few threads answer.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CommandError> + Send + 'static,
) -> Result<T, CommandError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(CommandError::Store(StoreError::Closed)))
}

fn invalid(what: &str) -> CommandError {
    CommandError::MessageInvalid { what: what.to_owned() }
}

/// Whether `worker` holds the attempt `key`, and that attempt works on the blob.
fn needs(run: &Run, key: &AttemptId, worker: &str, sha256: &Digest) -> bool {
    let Some(job) = run.job(key.job.as_str()) else { return false };
    let holds = matches!(&job.state, JobState::Leased(attempt, holder)
        if *attempt == key.attempt && holder.as_str() == worker);
    let bundle = run.header().and_then(|header| match &header.source {
        Some(Source { origin: Origin::Bundle(bundle), .. }) => Some(bundle.sha256),
        Some(Source { origin: Origin::Remote(_), .. }) | None => None,
    });
    let mut files = run.needed_files(job).map(|(_, file)| file.blob.sha256);
    holds && (bundle.as_ref() == Some(sha256) || files.any(|file| file == *sha256))
}

#[cfg(test)]
mod tests {
    use towpath_engine::{decide::CreateRun, ids::Attempt};

    use super::*;
    use crate::testing::{Fixture, WORKER, creation, job};

    fn upload(bytes: &[u8], dir: &tempfile::TempDir) -> Upload {
        let fixture = Fixture::new();
        let blobs = Arc::new(Blobs::open(&dir.path().join("blobs")).unwrap());
        Bundles::new(fixture.runs, blobs).upload(Blob::of(bytes)).unwrap()
    }

    #[tokio::test]
    async fn a_bundle_is_stored_with_exactly_the_bytes_that_its_name_says() {
        let dir = tempfile::tempdir().unwrap();
        for (sent, why) in [
            ("bundle", None),
            ("bundl", Some("another length")),
            ("bundles", Some("another length")),
            ("Bundle", Some("other bytes")),
        ] {
            let mut upload = upload(b"bundle", &dir);
            let blobs = Arc::clone(&upload.blobs);
            let taken = upload.take(sent.as_bytes()).await;
            let stored = match taken {
                Ok(()) => upload.finish().await,
                Err(error) => Err(error),
            };
            let told = stored.err().map(|error| error.to_string());
            assert_eq!(told.is_none(), why.is_none(), "{sent}: {told:?}");
            assert!(told.unwrap_or_default().contains(why.unwrap_or_default()), "{sent}");
            assert_eq!(blobs.list().unwrap().len(), 1, "the first alone is stored");
        }
    }

    #[tokio::test]
    async fn a_worker_fetches_only_what_an_attempt_needs_that_it_holds() {
        let fixture = Fixture::new();
        let bundle = Blob::of(b"bundle");
        let source = Source {
            commit: "c".repeat(40),
            origin: Origin::Bundle(bundle),
            folder: String::new(),
            parent: None,
            dirty: false,
        };
        let create = CreateRun { source: Some(source), ..creation("r", vec![job("a", &[])]) };
        let run = fixture.begins_as(create).await;
        let key = |attempt| AttemptId { run: run.clone(), job: "a".into(), attempt };
        let dir = tempfile::tempdir().unwrap();
        let blobs = Arc::new(Blobs::open(&dir.path().join("blobs")).unwrap());
        let bundles = Bundles::new(Arc::clone(&fixture.runs), blobs);

        let first = key(Attempt::FIRST);
        bundles.check_fetch(WORKER, &first, &bundle.sha256).await.unwrap();
        let other_blob = bundles.check_fetch(WORKER, &first, &Digest([7; 32])).await;
        let other_worker = bundles.check_fetch("other", &first, &bundle.sha256).await;
        let other_attempt = bundles.check_fetch(WORKER, &key(Attempt(2)), &bundle.sha256).await;
        for refused in [other_blob, other_worker, other_attempt] {
            assert_eq!(refused.unwrap_err().code().as_str(), "FORBIDDEN");
        }
    }
}
