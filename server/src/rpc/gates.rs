//! `towpath.v1.GatesService`.

use prost::Message as _;
use tonic::{Request, Response, Status};
use towpath_engine::{
    decide::{ApproveGate, Command, RejectGate},
    ids::RunId,
};
use towpath_proto::v1::{self, gates_service_server::GatesService};
use towpath_storage::{Position, StoreError};

use super::runs::reads::{PAGE_BYTES_MAX, PAGE_MAX, Seen, page_size, token_invalid};
use crate::{
    Server, auth, command_error::CommandError, status, streams::Loaded, sync::locked,
    telemetry::calls::RequestRun, wire,
};

/// Most runs of one page that could not be read.
const UNREAD_MAX: usize = 100;

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
        let is_of_all = request.run.is_empty();
        let (mut answer, mut bytes) = (v1::ListGatesResponse::default(), 0);
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
            let (waiting, as_of) = match self.read_run(&id, point, waiting).await {
                Ok(read) => read,
                // The gates of the others are listed all the same. This run is named: an approver
                // must not take it for one without gates.
                Err(error)
                    if is_of_all
                        && is_of_one_run(&error)
                        && answer.unread_runs.len() < UNREAD_MAX =>
                {
                    tracing::warn!(run = %id, %error, "gates of a run left out of the list");
                    answer.unread_runs.push(id.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            answer.as_of = as_of;
            for (nth, gate) in waiting {
                bytes += gate.encoded_len();
                // Comments and policies repeat in each gate, and no client reads more than 4 MiB.
                let is_full = bytes > PAGE_BYTES_MAX && !answer.gates.is_empty();
                if is_full || answer.gates.len() == size {
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

/// Whether `error` may be that of one run alone.
fn is_of_one_run(error: &CommandError) -> bool {
    matches!(
        error,
        CommandError::Unreplayable { .. }
            | CommandError::Contended
            | CommandError::Store(StoreError::Damaged { .. } | StoreError::Unavailable { .. })
    )
}

/// What the token of a page says: the last gate that was answered.
fn place(token: &str) -> Option<(Position, u32)> {
    let (begun, nth) = token.split_once('/')?;
    Some((begun.parse().ok()?, nth.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use towpath_engine::{aggregate::stream_of, run::Run};
    use towpath_proto::v1::runs_service_server::RunsService as _;
    use towpath_storage::NewRecord;

    use super::*;
    use crate::SystemClock;

    const FILE: &str =
        "version: \"1.0\"\nstages: [s]\njobs:\n  a: {stage: s, command: x, when: manual}\n";

    async fn start(server: &Server) -> v1::Run {
        let file = v1::PipelineFile {
            name: "towpath.yml".to_owned(),
            folder: "/".to_owned(),
            content: FILE.into(),
            ..Default::default()
        };
        let start = v1::StartRunRequest {
            file: Some(file),
            parallelism: 1,
            actor: "human:ana".to_owned(),
            ..Default::default()
        };
        server.start_run(Request::new(start)).await.unwrap().into_inner().run.unwrap()
    }

    #[tokio::test]
    async fn a_run_that_cannot_be_read_hides_no_gate_of_another() {
        let server = Server::open("memory:", Arc::new(SystemClock)).await.unwrap();
        let (broken, other) = (start(&server).await, start(&server).await);
        let id = RunId::from(broken.id.as_str());
        let records = vec![NewRecord::new("nonsense", "{}")];
        let stream = stream_of::<Run>(&id);
        server.log().store.append(&stream, broken.version, records).await.unwrap();
        // It is read from the log again, which nobody has done since.
        locked(&server.runs().cells).remove(&id);
        let list = async |run: &str| {
            let request = v1::ListGatesRequest { run: run.to_owned(), ..Default::default() };
            server.list_gates(Request::new(request)).await.map(Response::into_inner)
        };

        let listed = list("").await.unwrap();
        assert_eq!(listed.gates.iter().map(|gate| &gate.run).collect::<Vec<_>>(), [&other.id]);
        assert_eq!(listed.unread_runs, std::slice::from_ref(&broken.id));
        assert!(list(&broken.id).await.is_err(), "asked for alone, it says why");
        server.close().await;
    }
}
