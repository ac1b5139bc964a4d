//! `towpath.v1.GatesService`.

use tonic::{Request, Response, Status};
use towpath_engine::{
    decide::{ApproveGate, Command, RejectGate},
    run::Job,
};
use towpath_proto::v1::{self, gates_service_server::GatesService};

use crate::{
    Server, auth,
    runs::{CommandError, Loaded},
    status,
    telemetry::calls::RequestRun,
    wire,
};

#[tonic::async_trait]
impl GatesService for Server {
    async fn list_gates(
        &self,
        request: Request<v1::ListGatesRequest>,
    ) -> Result<Response<v1::ListGatesResponse>, Status> {
        let run = request.into_inner().run;
        let gates = self.waiting_gates(&run).await.map_err(status::of)?;
        Ok(Response::new(v1::ListGatesResponse { gates }))
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

impl Server {
    async fn waiting_gates(&self, run: &str) -> Result<Vec<v1::Gate>, CommandError> {
        let runs = match run {
            "" => self.runs().live(),
            asked => vec![self.find(asked)?],
        };
        let mut gates = Vec::new();
        for id in runs {
            let waiting = |loaded: &Loaded| {
                let gates = loaded.run.gates();
                gates.filter_map(|job| wire::gate(&id, &loaded.run, job)).collect::<Vec<_>>()
            };
            gates.extend(self.runs().read_durable(&id, waiting).await?);
        }
        Ok(gates)
    }

    async fn approve(
        &self,
        request: Request<v1::ApproveGateRequest>,
    ) -> Result<v1::ApproveGateResponse, CommandError> {
        let by = auth::actor(&request)?;
        let about = RequestRun::of(request.extensions());
        let identity = auth::identity(&request, &request.get_ref().emails);
        let v1::ApproveGateRequest { run, job, approval_digest, comment, .. } =
            request.into_inner();
        let (id, job) = (self.find(&run)?, wire::job_name(&job));
        let approval_digest = wire::digest(&approval_digest)?;
        let approve = ApproveGate { job: job.clone(), approval_digest, comment, identity };
        self.runs().execute(&id, Command::Approve(approve), &by).await?;
        let answer = |loaded: &Loaded| {
            about.link(&loaded.run);
            // None once the gate is decided, be it by another person meanwhile.
            let waiting = loaded.run.gates().find(|waiting| waiting.plan.name == job);
            v1::ApproveGateResponse {
                phase: loaded.run.phase().word().to_owned(),
                approvals_remaining: waiting.map(Job::approvals_remaining).unwrap_or_default(),
                waits_for: waiting.map(wire::waits_for).unwrap_or_default(),
            }
        };
        self.runs().read_durable(&id, answer).await
    }

    async fn reject(
        &self,
        request: Request<v1::RejectGateRequest>,
    ) -> Result<v1::RejectGateResponse, CommandError> {
        let by = auth::actor(&request)?;
        let about = RequestRun::of(request.extensions());
        let v1::RejectGateRequest { run, job, approval_digest, comment, .. } = request.into_inner();
        let id = self.find(&run)?;
        let approval_digest =
            (!approval_digest.is_empty()).then(|| wire::digest(&approval_digest)).transpose()?;
        let reject = RejectGate { job: wire::job_name(&job), approval_digest, comment };
        self.runs().execute(&id, Command::Reject(reject), &by).await?;
        let answer = |loaded: &Loaded| {
            about.link(&loaded.run);
            v1::RejectGateResponse { phase: loaded.run.phase().word().to_owned() }
        };
        self.runs().read_durable(&id, answer).await
    }
}
