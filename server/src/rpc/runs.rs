//! `towpath.v1.RunsService`.

pub(super) mod reads;

use tonic::{Request, Response, Status};
use towpath_engine::{
    decide::{Command, CreateRun, EditedPlan, ImportRun, ImportedJob, ResumeRun},
    gate::Identity,
    ids::{Actor, Digest, RunId},
    refusal::Refusal,
    trace::TraceContext,
};
use towpath_pipeline::pulsaride_jsonl;
use towpath_proto::{
    streams::Piece as _,
    v1::{self, runs_service_server::RunsService},
};

use super::{CHUNK_QUEUE, Streamed, streamed};
use crate::{
    Server,
    auth::{self, roles::Role},
    command_error::CommandError,
    run_ids::{id_of, new_id},
    status,
    streams::Loaded,
    sync::locked,
    telemetry::calls::{RequestRun, caller, is_told},
    wire,
};

#[tonic::async_trait]
impl RunsService for Server {
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
        let by = auth::actor(&request).map_err(status::of)?;
        let about = RequestRun::of(request.extensions());
        let v1::RetryJobRequest { run, job, actor: _ } = request.into_inner();
        let command = Command::Retry(wire::job_name(&job));
        let run = self.command(&run, command, (&by, about)).await.map_err(status::of)?;
        Ok(Response::new(v1::RetryJobResponse { run: Some(run) }))
    }

    async fn cancel_run(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        let by = auth::actor(&request).map_err(status::of)?;
        let about = RequestRun::of(request.extensions());
        let v1::CancelRunRequest { run, reason, actor: _ } = request.into_inner();
        let command = Command::Cancel(reason);
        let run = self.command(&run, command, (&by, about)).await.map_err(status::of)?;
        Ok(Response::new(v1::CancelRunResponse { run: Some(run) }))
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
        let outputs = self.output_reads();
        let found = outputs.find(&run, &job, attempt).await.map_err(status::of)?;
        let (send, stream) = streamed(CHUNK_QUEUE, v1::ReadOutputResponse::of);
        tokio::spawn(async move { outputs.send(&found, follow, &send).await });
        Ok(Response::new(stream))
    }

    async fn read_artifact(
        &self,
        request: Request<v1::ReadArtifactRequest>,
    ) -> Result<Response<Self::ReadArtifactStream>, Status> {
        let v1::ReadArtifactRequest { run, job, path } = request.into_inner();
        let outputs = self.output_reads();
        let blob = outputs.artifact(&run, job, path).await.map_err(status::of)?;
        let (send, stream) = streamed(CHUNK_QUEUE, v1::ReadArtifactResponse::of);
        tokio::spawn(async move { outputs.send_blob(&blob, &send).await });
        Ok(Response::new(stream))
    }
}

impl Server {
    async fn command(
        &self,
        run: &str,
        command: Command,
        (by, about): (&Actor, RequestRun),
    ) -> Result<v1::Run, CommandError> {
        let id = self.find(run)?;
        self.runs().execute(&id, command, by).await?;
        self.runs().read_durable(&id, |loaded| about.link(&loaded.state)).await?;
        self.view(&id).await
    }

    async fn start(&self, request: Request<v1::StartRunRequest>) -> Result<v1::Run, CommandError> {
        let by = auth::actor(&request)?;
        if request.get_ref().gates_preapproved {
            auth::needs(&request, &[Role::Approver], "a run whose gates are open")?;
        }
        let (caller, told) = (caller(&request), is_told(request.metadata()));
        let requester = auth::identity(&request, &request.get_ref().emails);
        let v1::StartRunRequest {
            file,
            parallelism,
            gates_preapproved,
            traceparent,
            idempotency_key: key,
            ..
        } = request.into_inner();
        let mut create = creation(wire::pipeline_file(file).await?, parallelism, requester);
        self.bundles().check_source(create.source.as_ref()).await?;
        create.gates_preapproved = gates_preapproved;
        let asked = traceparent.parse::<TraceContext>().ok().filter(|_| !told).or(caller);
        create.traceparent = asked.map(|context| context.to_string());
        if key.is_empty() {
            let id = create.run.clone();
            self.runs().execute(&id, Command::Create(create), &by).await?;
            return self.view(&id).await;
        }
        let begun = locked(&self.runs().list).begun_by(&by, &key).cloned();
        if let Some(id) = begun {
            return self.begun(&id, &create).await;
        }
        // An id that follows from the key: of two requests at once, one finds that the run exists.
        // No name holds a line feed, so no two pairs of name and key make the same text.
        create.run = id_of(&Digest::of(format!("request {by}\n{key}").as_bytes()));
        create.idempotency_key = Some(key);
        let id = create.run.clone();
        match self.runs().execute(&id, Command::Create(create.clone()), &by).await {
            Ok(_) => self.view(&id).await,
            Err(CommandError::Refused(Refusal::RunExists)) => self.begun(&id, &create).await,
            Err(error) => Err(error),
        }
    }

    /// The run that an earlier request of the same name began.
    async fn begun(&self, id: &RunId, again: &CreateRun) -> Result<v1::Run, CommandError> {
        // Whatever changes what the run does: an answer with a run of other arguments would hide
        // that the one that was asked for was not begun.
        let same = |loaded: &Loaded| {
            loaded.state.header().is_some_and(|header| {
                header.file_sha256 == again.file_sha256
                    && header.source == again.source
                    && header.parallelism == again.parallelism
                    && header.gates_preapproved == again.gates_preapproved
                    // A run that brings its files along runs in a folder of its worker.
                    && (again.source.is_some() || header.folder == again.folder)
            })
        };
        if !self.runs().read_durable(id, same).await? {
            return Err(CommandError::KeyReused);
        }
        self.view(id).await
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeRunRequest>,
    ) -> Result<v1::Run, CommandError> {
        let by = auth::actor(&request)?;
        let about = RequestRun::of(request.extensions());
        let requester = auth::identity(&request, &[]);
        // Whether the edit takes a gate away is decided together with it, on the state it changes.
        let lifts = auth::needs(&request, &[Role::Approver], "a plan that takes a gate away");
        let may_lift_gates = lifts.is_ok();
        let v1::ResumeRunRequest { run, from_stage, file, accept_changes, .. } =
            request.into_inner();
        let file = match file {
            Some(file) => Some(wire::pipeline_file(Some(file)).await?),
            None => None,
        };
        self.bundles().check_source(file.as_ref().and_then(|file| file.source.as_ref())).await?;
        let resume = ResumeRun {
            from: (!from_stage.is_empty()).then(|| from_stage.as_str().into()),
            file: file.map(|file| edited(file, requester)),
            accept_changes,
            may_lift_gates,
        };
        self.command(&run, Command::Resume(resume), (&by, about)).await
    }

    async fn import(
        &self,
        request: Request<v1::ImportRunRequest>,
    ) -> Result<v1::Run, CommandError> {
        let by = auth::actor(&request)?;
        let requester = auth::identity(&request, &[]);
        let v1::ImportRunRequest { file, record, actor: _ } = request.into_inner();
        let create = creation(wire::pipeline_file(file).await?, 4, requester);
        let jobs = imported(&record)?;
        let id = create.run.clone();
        self.runs().execute(&id, Command::Import(ImportRun { create, jobs }), &by).await?;
        self.view(&id).await
    }
}

/// What `file` means now, and who sends it.
fn edited(file: wire::ReadFile, requester: Identity) -> EditedPlan {
    let wire::ReadFile { sha256, plan, source, authors, .. } = file;
    EditedPlan { file_sha256: sha256, plan, source, requester, authors }
}

/// A new run of `file`, under an id of its own.
fn creation(file: wire::ReadFile, parallelism: u32, requester: Identity) -> CreateRun {
    CreateRun {
        authors: file.authors,
        requester,
        run: new_id(),
        file: file.name,
        folder: file.folder,
        file_sha256: file.sha256,
        plan: file.plan,
        source: file.source,
        parallelism,
        gates_preapproved: false,
        traceparent: None,
        idempotency_key: None,
    }
}

fn imported(record: &[u8]) -> Result<Vec<ImportedJob>, CommandError> {
    let invalid = |what: String| CommandError::ImportInvalid { what };
    let text = std::str::from_utf8(record)
        .map_err(|error| invalid(format!("the record is not UTF-8: {error}")))?;
    let run = pulsaride_jsonl::parse(text);
    if let Some((line, what)) = run.problems.first() {
        return Err(invalid(format!("line {line}: {what}")));
    }
    // The parser has kept the last word on every job.
    let job = |line: pulsaride_jsonl::SeedLine| ImportedJob {
        job: line.job,
        stage: line.stage,
        result: line.status,
        started_at: line.started_at,
        finished_at: line.finished_at,
        exit_code: line.exit_code,
        error: line.error,
    };
    Ok(run.lines.into_iter().map(job).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::SystemClock;

    const FILE: &str =
        "version: \"1.0\"\nstages: [s]\njobs:\n  a: {stage: s, command: x, on_failure: abort}\n";

    async fn open(folder: &std::path::Path) -> Server {
        let url = format!("sled:{}", folder.display());
        Server::open(&url, Arc::new(SystemClock)).await.unwrap()
    }

    async fn list(server: &Server) -> Vec<v1::Run> {
        let request = Request::new(v1::ListRunsRequest::default());
        server.list_runs(request).await.unwrap().into_inner().runs
    }

    #[tokio::test]
    async fn a_list_reads_no_run_that_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let server = open(folder.path()).await;
        let file = v1::PipelineFile {
            name: "towpath.yml".to_owned(),
            folder: "/".to_owned(),
            content: FILE.into(),
            ..Default::default()
        };
        let actor = "human:ana".to_owned();
        let start = v1::StartRunRequest {
            file: Some(file),
            parallelism: 1,
            actor: actor.clone(),
            ..Default::default()
        };
        let run = server.start_run(Request::new(start)).await.unwrap().into_inner().run.unwrap().id;
        let cancel = v1::CancelRunRequest { run: run.clone(), reason: "enough".to_owned(), actor };
        let ended =
            server.cancel_run(Request::new(cancel)).await.unwrap().into_inner().run.unwrap();
        assert_eq!(
            list(&server).await,
            std::slice::from_ref(&ended),
            "the list shows what the run shows"
        );
        server.close().await;
        drop(server);

        let server = open(folder.path()).await;
        assert_eq!(list(&server).await, [ended]);
        assert!(locked(&server.runs().cells).all().is_empty(), "nothing was replayed");
        server.close().await;
    }
}
