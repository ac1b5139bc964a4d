//! `towpath.v1.WorkersService`: one session for each worker.

use std::sync::Arc;

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};
use towpath_engine::ids::WorkerName;
use towpath_proto::v1::{self, workers_service_server::WorkersService};

use super::{STREAM_QUEUE, Streamed, streamed};
use crate::{
    auth::{self, Requester},
    demand::{DemandWatch, FittingDemand, LaunchOffer},
    outbox::{Outgoing, outbox},
    pages::PageRequest,
    settings::StoredSettings,
    shared_scheduler::SharedScheduler,
    status, wire, worker_list,
    worker_sessions::WorkerSessions,
};

/// The handlers of the service.
#[derive(Clone, Debug)]
pub(crate) struct WorkersApi {
    pub(crate) sessions: WorkerSessions,
    pub(crate) settings: Arc<StoredSettings>,
    pub(crate) scheduler: Arc<SharedScheduler>,
    pub(crate) demand: DemandWatch,
}

#[tonic::async_trait]
impl WorkersService for WorkersApi {
    type SessionStream = Outgoing;
    type WatchDemandStream = Streamed<v1::WatchDemandResponse>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbox, outgoing) = outbox();
        let (_, extensions, incoming) = request.into_parts();
        let incoming = incoming.map(wire::received);
        let check_name = move |name: &str| auth::is_worker(&extensions, name);
        // A task of its own: the answer is the stream, which begins before the first message.
        tokio::spawn(self.sessions.clone().serve(incoming, check_name, outbox));
        Ok(Response::new(outgoing))
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let v1::ListWorkersRequest { page_size, page_token } = request.into_inner();
        let drained = self.settings.drained().await.map_err(status::of)?;
        let workers = self.scheduler.inspect(|all| wire::workers(all.workers(), &drained));
        let page = PageRequest { size: page_size, token: page_token };
        let (workers, next_page_token) = worker_list::page_of(workers, &page);
        Ok(Response::new(v1::ListWorkersResponse { workers, next_page_token }))
    }

    async fn drain_worker(
        &self,
        request: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        let by = Requester::of(&request).map_err(status::of)?.actor;
        let v1::DrainWorkerRequest { name, drain, actor: _ } = request.into_inner();
        let name = WorkerName::from(name);
        self.settings.set_drained(name.clone(), drain, &by).await.map_err(status::of)?;
        let connected =
            self.scheduler.inspect(|all| all.worker(&name).map(|view| wire::worker(&view)));
        let worker = connected.unwrap_or_else(|| wire::absent_worker(&name, drain));
        Ok(Response::new(v1::DrainWorkerResponse { worker: Some(worker) }))
    }

    async fn watch_demand(
        &self,
        request: Request<v1::WatchDemandRequest>,
    ) -> Result<Response<Self::WatchDemandStream>, Status> {
        let v1::WatchDemandRequest { tags, all } = request.into_inner();
        let (send, stream) = streamed(STREAM_QUEUE, wire::demand);
        let (demand, offer) = (self.demand.clone(), LaunchOffer { tags, all });
        tokio::spawn(async move {
            demand.follow(|demand| FittingDemand::of(demand, &offer), send).await;
        });
        Ok(Response::new(stream))
    }
}
