//! `towpath.v1.Gates`.

use tonic::{Request, Response, Status};
use towpath_engine::{
    decide::{ApproveGate, Command, RejectGate},
    run::Job,
};
use towpath_proto::v1::{self, gates_server::Gates};

use crate::{
    Server, auth,
    runs::{CommandError, Loaded},
    status,
    telemetry::calls::RequestRun,
    wire,
};

#[tonic::async_trait]
impl Gates for Server {
    async fn list_gates(
        &self,
        request: Request<v1::ListGatesRequest>,
    ) -> Result<Response<v1::ListGatesReply>, Status> {
        let run = request.into_inner().run;
        let gates = self.waiting_gates(&run).await.map_err(status::of)?;
        Ok(Response::new(v1::ListGatesReply { gates }))
    }

    async fn approve_gate(
        &self,
        request: Request<v1::DecideGateRequest>,
    ) -> Result<Response<v1::DecideGateReply>, Status> {
        self.decide_gate(request, true).await.map(Response::new).map_err(status::of)
    }

    async fn reject_gate(
        &self,
        request: Request<v1::DecideGateRequest>,
    ) -> Result<Response<v1::DecideGateReply>, Status> {
        self.decide_gate(request, false).await.map(Response::new).map_err(status::of)
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

    async fn decide_gate(
        &self,
        request: Request<v1::DecideGateRequest>,
        approve: bool,
    ) -> Result<v1::DecideGateReply, CommandError> {
        let by = auth::actor(&request)?;
        let about = RequestRun::of(request.extensions());
        let identity = auth::identity(&request, &request.get_ref().emails);
        let v1::DecideGateRequest { run, job, approval_digest, comment, .. } = request.into_inner();
        let (id, job) = (self.find(&run)?, wire::job_name(&job));
        let command = if approve {
            Command::Approve(ApproveGate {
                job: job.clone(),
                approval_digest: wire::digest(&approval_digest)?,
                comment,
                identity,
            })
        } else {
            let approval_digest = (!approval_digest.is_empty())
                .then(|| wire::digest(&approval_digest))
                .transpose()?;
            Command::Reject(RejectGate { job: job.clone(), approval_digest, comment })
        };
        self.runs().execute(&id, command, &by).await?;
        let reply = |loaded: &Loaded| {
            about.link(&loaded.run);
            // Empty once the gate is decided, be it by somebody else meanwhile.
            let waiting = loaded.run.gates().find(|waiting| waiting.plan.name == job);
            v1::DecideGateReply {
                phase: loaded.run.phase().word().to_owned(),
                approvals_remaining: waiting.map(Job::approvals_remaining).unwrap_or_default(),
                waits_for: waiting.map(wire::waits_for).unwrap_or_default(),
            }
        };
        self.runs().read_durable(&id, reply).await
    }
}
