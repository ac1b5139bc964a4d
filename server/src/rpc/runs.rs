//! `towpath.v1.RunsService`.

use tonic::{Request, Response, Status};
use towpath_engine::{decide::Command, trace::TraceContext};
use towpath_proto::{
    streams::Piece as _,
    v1::{self, runs_service_server::RunsService},
};

use super::{CHUNK_QUEUE, Streamed, streamed};
use crate::{
    auth::{Claims, Requester},
    command_error::CommandError,
    output_reads::OutputReads,
    pages::PageRequest,
    run_commands::{ResumeRequest, RunCommands, StartRun},
    run_reads::{RunFilter, RunReads},
    status,
    telemetry::calls::{RequestRun, caller, is_told},
    wire,
};

/// The handlers of the service.
#[derive(Clone, Debug)]
pub(crate) struct RunsApi {
    pub(crate) reads: RunReads,
    pub(crate) commands: RunCommands,
    pub(crate) outputs: OutputReads,
}

#[tonic::async_trait]
impl RunsService for RunsApi {
    type ReadOutputStream = Streamed<v1::ReadOutputResponse>;
    type ReadArtifactStream = Streamed<v1::ReadArtifactResponse>;

    async fn start_run(
        &self,
        request: Request<v1::StartRunRequest>,
    ) -> Result<Response<v1::StartRunResponse>, Status> {
        let run = Some(self.start(request).await.map_err(status::of)?);
        Ok(Response::new(v1::StartRunResponse { run }))
    }

    async fn get_run(
        &self,
        request: Request<v1::GetRunRequest>,
    ) -> Result<Response<v1::GetRunResponse>, Status> {
        self.get(request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn list_runs(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        self.list(request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        self.job(request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        self.jobs(request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        self.explain(request.into_inner()).await.map(Response::new).map_err(status::of)
    }

    async fn resume_run(
        &self,
        request: Request<v1::ResumeRunRequest>,
    ) -> Result<Response<v1::ResumeRunResponse>, Status> {
        let run = Some(self.resume(request).await.map_err(status::of)?);
        Ok(Response::new(v1::ResumeRunResponse { run }))
    }

    async fn retry_job(
        &self,
        request: Request<v1::RetryJobRequest>,
    ) -> Result<Response<v1::RetryJobResponse>, Status> {
        let v1::RetryJobRequest { run, job, actor: _ } = request.get_ref();
        let (run, command) = (run.clone(), Command::Retry(wire::job_name(job)));
        let run = Some(self.execute(&request, &run, command).await.map_err(status::of)?);
        Ok(Response::new(v1::RetryJobResponse { run }))
    }

    async fn cancel_run(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        let v1::CancelRunRequest { run, reason, actor: _ } = request.get_ref();
        let (run, command) = (run.clone(), Command::Cancel(reason.clone()));
        let run = Some(self.execute(&request, &run, command).await.map_err(status::of)?);
        Ok(Response::new(v1::CancelRunResponse { run }))
    }

    async fn import_run(
        &self,
        request: Request<v1::ImportRunRequest>,
    ) -> Result<Response<v1::ImportRunResponse>, Status> {
        let run = Some(self.import(request).await.map_err(status::of)?);
        Ok(Response::new(v1::ImportRunResponse { run }))
    }

    async fn read_output(
        &self,
        request: Request<v1::ReadOutputRequest>,
    ) -> Result<Response<Self::ReadOutputStream>, Status> {
        let v1::ReadOutputRequest { run, job, attempt, follow } = request.into_inner();
        // Before the stream begins: an attempt that does not exist is the status of the request,
        // and not the first item of its answer.
        let found = self.outputs.find(&run, &job, attempt).await.map_err(status::of)?;
        let (send, stream) = streamed(CHUNK_QUEUE, v1::ReadOutputResponse::of);
        let outputs = self.outputs.clone();
        tokio::spawn(async move { outputs.send(&found, follow, &send).await });
        Ok(Response::new(stream))
    }

    async fn read_artifact(
        &self,
        request: Request<v1::ReadArtifactRequest>,
    ) -> Result<Response<Self::ReadArtifactStream>, Status> {
        let v1::ReadArtifactRequest { run, job, path } = request.into_inner();
        let blob = self.outputs.artifact(&run, job, path).await.map_err(status::of)?;
        let (send, stream) = streamed(CHUNK_QUEUE, v1::ReadArtifactResponse::of);
        let outputs = self.outputs.clone();
        tokio::spawn(async move { outputs.send_blob(&blob, &send).await });
        Ok(Response::new(stream))
    }
}

impl RunsApi {
    /// Carries out `command` on the run that `asked` names; answers the run as it is then.
    async fn execute<T: Claims>(
        &self,
        request: &Request<T>,
        asked: &str,
        command: Command,
    ) -> Result<v1::Run, CommandError> {
        let requester = Requester::of(request)?;
        let id = self.commands.execute(asked, command, &requester.actor).await?;
        self.reads.view_linked(&id, &RequestRun::of(request.extensions())).await
    }

    async fn start(&self, request: Request<v1::StartRunRequest>) -> Result<v1::Run, CommandError> {
        let requester = Requester::of(&request)?;
        let (caller, told) = (caller(&request), is_told(request.metadata()));
        let request = request.into_inner();
        // What the call itself carries is closer to it than what the message says: a proxy may have
        // put a span between the two.
        let asked = request.traceparent.parse::<TraceContext>().ok();
        let start = StartRun {
            file: wire::sent_file(request.file)?,
            parallelism: request.parallelism,
            gates_preapproved: request.gates_preapproved,
            traceparent: asked.filter(|_| !told).or(caller),
            idempotency_key: request.idempotency_key,
            emails: request.emails,
        };
        let id = self.commands.start(start, &requester).await?;
        self.reads.view(&id).await
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeRunRequest>,
    ) -> Result<v1::Run, CommandError> {
        let requester = Requester::of(&request)?;
        // Taken before the message is taken apart: the extensions go with the request.
        let about = RequestRun::of(request.extensions());
        let v1::ResumeRunRequest { run, from_stage, file, accept_changes, .. } =
            request.into_inner();
        // proto3 does not tell an empty text from an absent one.
        let from = (!from_stage.is_empty()).then(|| from_stage.as_str().into());
        let file = file.map(|file| wire::sent_file(Some(file))).transpose()?;
        let resume = ResumeRequest { run, from, file, accept_changes };
        let id = self.commands.resume(resume, &requester).await?;
        self.reads.view_linked(&id, &about).await
    }

    async fn import(
        &self,
        request: Request<v1::ImportRunRequest>,
    ) -> Result<v1::Run, CommandError> {
        let requester = Requester::of(&request)?;
        let v1::ImportRunRequest { file, record, actor: _ } = request.into_inner();
        let file = wire::sent_file(file)?;
        let id = self.commands.import(file, &record, &requester).await?;
        self.reads.view(&id).await
    }

    async fn get(&self, request: v1::GetRunRequest) -> Result<v1::GetRunResponse, CommandError> {
        let (run, as_of) = self.reads.run(&request.run, wire::point(request.at)?).await?;
        Ok(v1::GetRunResponse { run: Some(run), as_of: as_of.map(wire::as_of) })
    }

    async fn list(
        &self,
        request: v1::ListRunsRequest,
    ) -> Result<v1::ListRunsResponse, CommandError> {
        let filter = RunFilter {
            phases: request.phases().collect(),
            outcomes: request.outcomes().collect(),
        };
        let page = PageRequest { size: request.page_size, token: request.page_token };
        let (list, as_of) = self.reads.list(&filter, &page, wire::point(request.at)?).await?;
        Ok(v1::ListRunsResponse {
            runs: list.runs,
            next_page_token: list.next,
            as_of: as_of.map(wire::as_of),
        })
    }

    async fn job(&self, request: v1::GetJobRequest) -> Result<v1::GetJobResponse, CommandError> {
        let (view, point) = (request.view(), wire::point(request.at)?);
        let (job, as_of) = self.reads.job(&request.run, &request.job, view, point).await?;
        Ok(v1::GetJobResponse { job: Some(job), as_of: as_of.map(wire::as_of) })
    }

    async fn jobs(
        &self,
        request: v1::ListJobsRequest,
    ) -> Result<v1::ListJobsResponse, CommandError> {
        let (view, point) = (request.view(), wire::point(request.at)?);
        let page = PageRequest { size: request.page_size, token: request.page_token };
        let (page, as_of) = self.reads.jobs(&request.run, &page, view, point).await?;
        Ok(v1::ListJobsResponse {
            jobs: page.jobs,
            next_page_token: page.next,
            run: Some(page.run),
            as_of: as_of.map(wire::as_of),
        })
    }

    async fn explain(
        &self,
        request: v1::ExplainJobRequest,
    ) -> Result<v1::ExplainJobResponse, CommandError> {
        let v1::ExplainJobRequest { run, job, at } = request;
        let (explained, as_of) = self.reads.explain(&run, &job, wire::point(at)?).await?;
        Ok(v1::ExplainJobResponse {
            job: Some(explained.job),
            explanation: Some(explained.explanation),
            run: Some(explained.run),
            as_of: as_of.map(wire::as_of),
        })
    }
}
