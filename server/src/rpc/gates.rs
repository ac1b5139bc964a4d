//! `towpath.v1.GatesService`.

use tonic::{Request, Response, Status};
use towpath_engine::decide::{ApproveGate, Command, RejectGate};
use towpath_proto::v1::{self, gates_service_server::GatesService};

use crate::{
    auth::Requester, command_error::CommandError, pages::PageRequest, run_commands::RunCommands,
    run_reads::RunReads, status, telemetry::calls::RequestRun, wire,
};

/// The handlers of the service.
#[derive(Clone, Debug)]
pub(crate) struct GatesApi {
    pub(crate) reads: RunReads,
    pub(crate) commands: RunCommands,
}

#[tonic::async_trait]
impl GatesService for GatesApi {
    async fn list_gates(
        &self,
        request: Request<v1::ListGatesRequest>,
    ) -> Result<Response<v1::ListGatesResponse>, Status> {
        self.list(request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn approve_gate(
        &self,
        request: Request<v1::ApproveGateRequest>,
    ) -> Result<Response<v1::ApproveGateResponse>, Status> {
        self.approve(request).await.map(Response::new).map_err(status::of)
    }

    async fn reject_gate(
        &self,
        request: Request<v1::RejectGateRequest>,
    ) -> Result<Response<v1::RejectGateResponse>, Status> {
        self.reject(request).await.map(Response::new).map_err(status::of)
    }
}

impl GatesApi {
    async fn list(
        &self,
        request: v1::ListGatesRequest,
    ) -> Result<v1::ListGatesResponse, CommandError> {
        let v1::ListGatesRequest { run, page_size, page_token, at } = request;
        let page = PageRequest { size: page_size, token: page_token };
        let (gates, as_of) = self.reads.waiting_gates(&run, &page, wire::point(at)?).await?;
        Ok(v1::ListGatesResponse {
            gates: gates.gates,
            next_page_token: gates.next,
            unread_runs: gates.unread.iter().map(ToString::to_string).collect(),
            as_of: as_of.map(wire::as_of),
        })
    }

    async fn approve(
        &self,
        request: Request<v1::ApproveGateRequest>,
    ) -> Result<v1::ApproveGateResponse, CommandError> {
        let requester = Requester::of(&request)?;
        let about = RequestRun::of(request.extensions());
        let v1::ApproveGateRequest { run, job, approval_digest, comment, emails, .. } =
            request.into_inner();
        let (job, identity) = (wire::job_name(&job), requester.identity(&emails));
        let approval_digest = wire::digest(&approval_digest)?;
        let approve = ApproveGate { job: job.clone(), approval_digest, comment, identity };
        let id = self.commands.execute(&run, Command::Approve(approve), &requester.actor).await?;
        let gate = self.reads.gate_linked(&id, &job, &about).await?;
        Ok(v1::ApproveGateResponse { run: Some(self.reads.view(&id).await?), gate })
    }

    async fn reject(
        &self,
        request: Request<v1::RejectGateRequest>,
    ) -> Result<v1::RejectGateResponse, CommandError> {
        let requester = Requester::of(&request)?;
        let about = RequestRun::of(request.extensions());
        let v1::RejectGateRequest { run, job, approval_digest, comment, .. } = request.into_inner();
        let approval_digest =
            (!approval_digest.is_empty()).then(|| wire::digest(&approval_digest)).transpose()?;
        let reject = RejectGate { job: wire::job_name(&job), approval_digest, comment };
        let id = self.commands.execute(&run, Command::Reject(reject), &requester.actor).await?;
        Ok(v1::RejectGateResponse { run: Some(self.reads.view_linked(&id, &about).await?) })
    }
}
