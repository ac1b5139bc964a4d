//! `towpath.v1.GatesService`.

use tonic::{Request, Response, Status};
use towpath_engine::{
    decide::{ApproveGate, Command, RejectGate},
    ids::RunId,
};
use towpath_proto::v1::{self, gates_service_server::GatesService};
use towpath_storage::Position;

use super::runs::reads::{PAGE_MAX, Seen, page_size, token_invalid};
use crate::{
    Server, auth, command_error::CommandError, status, streams::Loaded, sync::locked,
    telemetry::calls::RequestRun, wire,
};

#[tonic::async_trait]
impl GatesService for Server {
    async fn list_gates(
        &self,
        request: Request<v1::ListGatesRequest>,
    ) -> Result<Response<v1::ListGatesResponse>, Status> {
        let gates = self.waiting_gates(request.into_inner()).await;
        gates.map(Response::new).map_err(status::of)
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
    /// The gates that wait, oldest run first. A page ends after a gate, named by where its run
    /// begins in the log and its place in the file: both stay, whatever happens in between.
    async fn waiting_gates(
        &self,
        request: v1::ListGatesRequest,
    ) -> Result<v1::ListGatesResponse, CommandError> {
        let size = page_size(request.page_size, PAGE_MAX);
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(place(token).ok_or_else(|| token_invalid(token))?),
        };
        let point = wire::point(request.at)?;
        if point.is_some() && request.run.is_empty() {
            let what = "gates of the past are listed for one run".to_owned();
            return Err(CommandError::MessageInvalid { what });
        }
        let ids = match request.run.as_str() {
            "" => self.runs().live(),
            asked => vec![self.find(asked)?],
        };
        let mut runs: Vec<(Position, RunId)> = {
            let list = locked(&self.runs().list);
            let begun = |id: &RunId| list.get(id).map_or(0, |listed| listed.created);
            ids.into_iter().map(|id| (begun(&id), id)).collect()
        };
        runs.sort();
        let mut answer = v1::ListGatesResponse::default();
        for (begun, id) in runs {
            if after.is_some_and(|(last, _)| begun < last) {
                continue;
            }
            let waiting = |seen: Seen<'_>| {
                let gates = seen.run.gates().filter_map(|job| {
                    let nth = seen.run.index_of(job.plan.name.as_str())?;
                    let is_new = after.is_none_or(|last| (begun, nth) > last);
                    is_new.then(|| Some((nth, wire::gate(&id, seen.run, job)?))).flatten()
                });
                gates.take(size + 1).collect::<Vec<_>>()
            };
            let (waiting, as_of) = self.read_run(&id, point, waiting).await?;
            answer.as_of = as_of;
            for (nth, gate) in waiting {
                if answer.gates.len() == size {
                    return Ok(answer);
                }
                answer.gates.push(gate);
                answer.next_page_token = format!("{begun}/{nth}");
            }
        }
        answer.next_page_token.clear();
        Ok(answer)
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
        // None once the gate is decided, be it by another person meanwhile.
        let gate = |loaded: &Loaded| {
            about.link(&loaded.state);
            let waiting = loaded.state.gates().find(|waiting| waiting.plan.name == job);
            waiting.and_then(|job| wire::gate(&id, &loaded.state, job))
        };
        let gate = self.runs().read_durable(&id, gate).await?;
        Ok(v1::ApproveGateResponse { run: Some(self.view(&id).await?), gate })
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
        self.runs().read_durable(&id, |loaded| about.link(&loaded.state)).await?;
        Ok(v1::RejectGateResponse { run: Some(self.view(&id).await?) })
    }
}

/// What the token of a page says: the last gate that was answered.
fn place(token: &str) -> Option<(Position, u32)> {
    let (begun, nth) = token.split_once('/')?;
    Some((begun.parse().ok()?, nth.parse().ok()?))
}
