//! `towpath.v1.Gates`.

use tonic::{Request, Response, Status};
use towpath_engine::{
    decide::{ApproveGate, Command, RejectGate},
    run::Job,
};
use towpath_proto::v1::{self, gates_server::Gates};

use crate::{
    House, auth,
    runs::{CommandError, Loaded},
    status,
    telemetry::calls::About,
    wire,
};

#[tonic::async_trait]
impl Gates for House {
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

impl House {
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
            gates.extend(self.runs().look(&id, waiting).await?);
        }
        Ok(gates)
    }

    async fn decide_gate(
        &self,
        request: Request<v1::DecideGateRequest>,
        approve: bool,
    ) -> Result<v1::DecideGateReply, CommandError> {
        let by = auth::actor(&request)?;
        let about = About::of(request.extensions());
        let standing = auth::standing(&request, &request.get_ref().emails);
        let v1::DecideGateRequest { run, job, binds, comment, .. } = request.into_inner();
        let (id, job) = (self.find(&run)?, wire::job_name(&job));
        let command = if approve {
            Command::Approve(ApproveGate {
                job: job.clone(),
                binds: wire::digest(&binds)?,
                comment,
                standing,
            })
        } else {
            let binds = (!binds.is_empty()).then(|| wire::digest(&binds)).transpose()?;
            Command::Reject(RejectGate { job: job.clone(), binds, comment })
        };
        self.runs().execute(&id, command, &by).await?;
        let reply = |loaded: &Loaded| {
            about.link(&loaded.run);
            // Empty once the gate is decided, be it by somebody else meanwhile.
            let waiting = loaded.run.gates().find(|waiting| waiting.plan.name == job);
            v1::DecideGateReply {
                phase: loaded.run.phase().word().to_owned(),
                missing: waiting.map(Job::people_missing).unwrap_or_default(),
                waits_for: waiting.map(wire::waits_for).unwrap_or_default(),
            }
        };
        self.runs().look(&id, reply).await
    }
}
