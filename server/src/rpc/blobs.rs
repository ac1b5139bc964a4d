//! `towpath.v1.BlobsService`: bundles come in before their runs, and go out to those who hold an attempt
//! that needs them.

use std::time::Duration;

use tokio_stream::StreamExt as _;
use tonic::{Extensions, Request, Response, Status, Streaming};
use towpath_engine::{
    ids::{Blob, Digest},
    job::JobState,
    run::Run,
    source::{BUNDLE_BYTES_MAX, Origin, Source},
};
use towpath_proto::v1::{self, blobs_service_server::BlobsService, put_blob_request::Part};
use towpath_storage::{BlobRef, StoreError};

use super::{CHUNK_QUEUE, Streamed, channel};
use crate::{
    Server,
    auth::{self, guard::PartWithin},
    command_error::CommandError,
    limits::Limit,
    outputs::Key,
    status,
    streams::Loaded,
    wire,
};

/// Bytes that are gathered before they are written.
const GATHERED_BYTES: usize = 1024 * 1024;

#[tonic::async_trait]
impl BlobsService for Server {
    type FetchBlobStream = Streamed<v1::FetchBlobResponse>;

    async fn find_blob(
        &self,
        request: Request<v1::FindBlobRequest>,
    ) -> Result<Response<v1::FindBlobResponse>, Status> {
        let blob = named(request.into_inner().blob).map_err(status::of)?;
        let found = self.has_blob(blob).await.map_err(status::of)?;
        Ok(Response::new(v1::FindBlobResponse { found }))
    }

    async fn put_blob(
        &self,
        request: Request<Streaming<v1::PutBlobRequest>>,
    ) -> Result<Response<v1::PutBlobResponse>, Status> {
        let within = request.extensions().get().map(|PartWithin(within)| *within);
        let blob = self.put(request.into_inner(), within).await?;
        Ok(Response::new(v1::PutBlobResponse { blob: Some(blob) }))
    }

    async fn fetch_blob(
        &self,
        request: Request<v1::FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let (_, extensions, request) = request.into_parts();
        let sha256 = self.needed(&extensions, request).await.map_err(status::of)?;
        let (send, stream) = channel(CHUNK_QUEUE);
        let server = self.clone();
        tokio::spawn(async move { server.send_blob(&sha256, 0, &send).await });
        Ok(Response::new(stream))
    }
}

impl Server {
    /// Refuses a bundle that nobody has sent.
    pub(super) async fn has_source(&self, source: Option<&Source>) -> Result<(), CommandError> {
        let Some(Source { origin: Origin::Bundle(bundle), .. }) = source else { return Ok(()) };
        if self.has_blob(*bundle).await? {
            return Ok(());
        }
        Err(CommandError::SourceMissing { sha256: bundle.sha256 })
    }

    async fn has_blob(&self, blob: Blob) -> Result<bool, CommandError> {
        self.on_disk(move |server| {
            let Blob { size, sha256: Digest(sha256) } = blob;
            Ok(server.outputs().blobs.is_sound(&BlobRef { size, sha256 }))
        })
        .await
    }

    /// Takes in a bundle. Whatever ends this early leaves nothing behind.
    async fn put(
        &self,
        mut parts: Streaming<v1::PutBlobRequest>,
        within: Option<Duration>,
    ) -> Result<v1::Blob, Status> {
        let first = next(&mut parts, within).await?.and_then(|part| part.part);
        let Some(Part::Blob(name)) = first else {
            return Err(invalid("the first part of a blob is its name"));
        };
        let blob = wire::blob(&name).map_err(status::of)?;
        if blob.size > BUNDLE_BYTES_MAX {
            let (bytes, bytes_max) = (blob.size, BUNDLE_BYTES_MAX);
            return Err(status::of(CommandError::SourceTooLarge { bytes, bytes_max }));
        }
        let size = blob.size;
        let begun = self.on_disk(move |server| Ok(server.outputs().blobs.begin(size)?));
        let mut unfinished = begun.await;
        let (mut gathered, mut arrived, mut ended) = (Vec::new(), 0, false);
        while !ended {
            match next(&mut parts, within).await?.map(|part| part.part) {
                Some(Some(Part::Content(content))) => {
                    arrived += content.len() as u64;
                    gathered.extend_from_slice(&content);
                }
                Some(Some(Part::Blob(_)) | None) => return Err(invalid("a second name")),
                None => ended = true,
            }
            if arrived > blob.size || (ended && arrived < blob.size) {
                return Err(invalid("a blob of another length than its name says"));
            }
            if ended || gathered.len() >= GATHERED_BYTES {
                let (mut writing, piece) =
                    (unfinished.map_err(status::of)?, std::mem::take(&mut gathered));
                unfinished = self
                    .on_disk(move |_| {
                        writing.write(&piece)?;
                        Ok(writing)
                    })
                    .await;
            }
        }
        let whole = unfinished.map_err(status::of)?;
        if whole.name().sha256 != blob.sha256.0 {
            return Err(invalid("a blob with other bytes than its name says"));
        }
        let kept = self.on_disk(move |server| Ok(server.outputs().blobs.keep(whole)?)).await;
        kept.map(|_| name).map_err(status::of)
    }

    /// The blob that is asked for, if the attempt needs it and the worker holds the attempt.
    async fn needed(
        &self,
        extensions: &Extensions,
        request: v1::FetchBlobRequest,
    ) -> Result<Digest, CommandError> {
        let v1::FetchBlobRequest { attempt: of, worker, sha256 } = request;
        auth::is_worker(extensions, &worker)?;
        let missing = || CommandError::MessageInvalid { what: "no attempt named".to_owned() };
        let key = wire::key(of.ok_or_else(missing)?);
        let sha256 = wire::digest(&sha256)?;
        let run = self.find(key.run.as_str())?;
        let may = |loaded: &Loaded| needs(&loaded.state, &key, &worker, &sha256);
        if self.runs().read_durable(&run, may).await? {
            return Ok(sha256);
        }
        let what = format!("blob {}, which no attempt that it holds needs", sha256.short());
        Err(CommandError::Forbidden { who: format!("worker:{worker}"), what })
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, CommandError> + Send + 'static,
    ) -> Result<T, CommandError> {
        let server = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&server)).await;
        done.unwrap_or(Err(CommandError::Store(StoreError::Closed)))
    }
}

/// The next part, which must come `within` some time, if there is a bound. Without one a sender that
/// stands still would keep what has arrived on disk, and its place among the requests.
async fn next(
    parts: &mut Streaming<v1::PutBlobRequest>,
    within: Option<Duration>,
) -> Result<Option<v1::PutBlobRequest>, Status> {
    let Some(within) = within else { return parts.next().await.transpose() };
    match tokio::time::timeout(within, parts.next()).await {
        Ok(part) => part.transpose(),
        Err(_) => Err(status::of(Limit::RequestTimedOut { within }.into())),
    }
}

/// Whether `worker` holds the attempt `key`, and that attempt works on the blob.
fn needs(run: &Run, key: &Key, worker: &str, sha256: &Digest) -> bool {
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

fn named(blob: Option<v1::Blob>) -> Result<Blob, CommandError> {
    let missing = || CommandError::MessageInvalid { what: "no blob named".to_owned() };
    wire::blob(&blob.ok_or_else(missing)?)
}

fn invalid(what: &str) -> Status {
    status::of(CommandError::MessageInvalid { what: what.to_owned() })
}
