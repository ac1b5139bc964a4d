//! `towpath.v1.LogService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use towpath_proto::{
    time::duration,
    v1::{self, log_service_server::LogService},
};

use super::{STREAM_QUEUE, Streamed, streamed};
use crate::{
    StoreUrl, auth, check::Doctor, log_reader::LogReader, open_log::OpenLog, runs::Runs, status,
    wire,
};

/// The handlers of the service.
#[derive(Clone, Debug)]
pub(crate) struct LogApi {
    pub(crate) store: StoreUrl,
    pub(crate) log: Arc<OpenLog>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) reader: LogReader,
    pub(crate) doctor: Doctor,
}

#[tonic::async_trait]
impl LogService for LogApi {
    type FollowStream = Streamed<v1::FollowResponse>;
    type CheckStream = Streamed<v1::CheckResponse>;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let v1::FollowRequest { run, after, follow } = request.into_inner();
        let run = match run.as_str() {
            "" => None,
            asked => Some(self.runs.find(asked).map_err(status::of)?),
        };
        let (send, stream) = streamed(STREAM_QUEUE, wire::records);
        let reader = self.reader.clone();
        tokio::spawn(async move { reader.read(run, after, follow, send).await });
        Ok(Response::new(stream))
    }

    async fn check(
        &self,
        _: Request<v1::CheckRequest>,
    ) -> Result<Response<Self::CheckStream>, Status> {
        let (send, stream) = streamed(STREAM_QUEUE, wire::check_report);
        let doctor = self.doctor.clone();
        tokio::spawn(async move { doctor.check(send).await });
        Ok(Response::new(stream))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        let store = match auth::may_see_store(&request) {
            true => self.store.to_string(),
            false => self.store.scheme().to_owned(),
        };
        Ok(Response::new(v1::DescribeResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            position: self.log.position(),
            store,
            clock_ahead: Some(duration(self.log.clock_ahead_ms())),
        }))
    }
}
