//! `towpath.v1.BlobsService`: bundles come in before their runs, and go out to those who hold an
//! attempt that needs them.

use std::time::Duration;

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};
use towpath_proto::{
    streams::Piece as _,
    v1::{self, blobs_service_server::BlobsService, put_blob_request::Part},
};

use super::{CHUNK_QUEUE, Streamed, streamed};
use crate::{
    auth::{self, guard::PartWithin},
    bundles::Bundles,
    command_error::CommandError,
    limits::Limit,
    status, wire,
};

/// The handlers of the service.
#[derive(Clone, Debug)]
pub(crate) struct BlobsApi {
    pub(crate) bundles: Bundles,
}

#[tonic::async_trait]
impl BlobsService for BlobsApi {
    type FetchBlobStream = Streamed<v1::FetchBlobResponse>;

    async fn find_blob(
        &self,
        request: Request<v1::FindBlobRequest>,
    ) -> Result<Response<v1::FindBlobResponse>, Status> {
        let blob = wire::named_blob(request.into_inner().blob).map_err(status::of)?;
        let found = self.bundles.contains(blob).await.map_err(status::of)?;
        Ok(Response::new(v1::FindBlobResponse { found }))
    }

    async fn put_blob(
        &self,
        request: Request<Streaming<v1::PutBlobRequest>>,
    ) -> Result<Response<v1::PutBlobResponse>, Status> {
        let within = request.extensions().get().map(|PartWithin(within)| *within);
        let mut parts = request.into_inner();
        let Some(Part::Blob(name)) = next(&mut parts, within).await?.and_then(|part| part.part)
        else {
            return Err(invalid("the first part of a blob is its name"));
        };
        let blob = wire::blob(&name).map_err(status::of)?;
        let mut upload = self.bundles.upload(blob).map_err(status::of)?;
        while let Some(part) = next(&mut parts, within).await? {
            let Some(Part::Content(content)) = part.part else {
                // Bytes of two blobs in one request would have to be stored under one of the names.
                return Err(invalid("a second name"));
            };
            upload.take(&content).await.map_err(status::of)?;
        }
        upload.finish().await.map_err(status::of)?;
        Ok(Response::new(v1::PutBlobResponse { blob: Some(name) }))
    }

    async fn fetch_blob(
        &self,
        request: Request<v1::FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let (_, extensions, request) = request.into_parts();
        let v1::FetchBlobRequest { attempt, worker, sha256 } = request;
        // The name in the message is a claim. Its certificate or token decides which attempts are
        // its own.
        auth::is_worker(&extensions, &worker).map_err(status::of)?;
        let key = wire::named_attempt(attempt).map_err(status::of)?;
        let sha256 = wire::digest(&sha256).map_err(status::of)?;
        self.bundles.check_fetch(&worker, &key, &sha256).await.map_err(status::of)?;
        let (send, stream) = streamed(CHUNK_QUEUE, v1::FetchBlobResponse::of);
        let bundles = self.bundles.clone();
        tokio::spawn(async move { bundles.send(&sha256, &send).await });
        Ok(Response::new(stream))
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

fn invalid(what: &str) -> Status {
    status::of(CommandError::MessageInvalid { what: what.to_owned() })
}
