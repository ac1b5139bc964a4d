//! `tow status`.

use std::collections::BTreeMap;

use serde::Serialize;
use towpath_proto::v1::{self, source::Origin};

use super::{
    App, CommandResult,
    follow::{now, snapshot},
};
use crate::{
    cli::{Output, WhichRun},
    connect::ServerConnection,
    exit,
    failure::Failure,
    render::board,
};

/// Show a run and its jobs
///
/// The exit code is the run's: 0 while it is under way or once it has succeeded, 12 while it waits
/// at a gate.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    run: WhichRun,
}

/// Shows the state of a run.
pub(crate) async fn status(app: &App, args: StatusArgs) -> CommandResult {
    let server = app.server().await?;
    let finished = show(app, &server, args).await;
    server.close().await;
    finished
}

async fn show(app: &App, server: &ServerConnection, args: StatusArgs) -> CommandResult {
    let request = v1::GetRunRequest { run: args.run.run };
    let run = server.runs().get_run(request).await?.into_inner().run.unwrap_or_default();
    let counts = run.counts.unwrap_or_default();
    let waits = counts.at_gate > 0 && !run.can_move;
    let code = exit::of_word(&run.phase, waits);
    if app.output() == Output::Text {
        let (state, _) = snapshot(server, &run.id).await?;
        app.print(&board::whole(&state, &run.short_id, now(), &app.style))?;
        if server.is_ours() && state.can_move() && state.phase().is_live() {
            app.say(&format!("Nobody works on this run. `tow resume {}` does.", run.short_id));
        }
        return Ok(code);
    }
    let jobs = jobs(server, &run.id).await?;
    let jobs = jobs.into_iter().map(JobJson::from).collect();
    app.json(&StatusJson { run: RunJson::from(run), jobs })?;
    Ok(code)
}

/// Every job of a run, page by page.
pub(crate) async fn jobs(server: &ServerConnection, run: &str) -> Result<Vec<v1::Job>, Failure> {
    let mut jobs = Vec::new();
    loop {
        let after = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        let request = v1::ListJobsRequest { run: run.to_owned(), after, limit: 0 };
        let page = server.runs().list_jobs(request).await?.into_inner();
        jobs.extend(page.jobs);
        if !page.more {
            return Ok(jobs);
        }
    }
}

#[derive(Serialize)]
struct StatusJson {
    #[serde(flatten)]
    run: RunJson,
    jobs: Vec<JobJson>,
}

/// A run, as machines read it. Names are stable.
#[derive(Serialize)]
pub(crate) struct RunJson {
    id: String,
    short_id: String,
    pipeline: String,
    file: String,
    folder: String,
    phase: String,
    stages: Vec<String>,
    parallelism: u32,
    requested_by: String,
    created_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    finished_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    abort_root: String,
    counts: BTreeMap<&'static str, u32>,
    plan_sha256: String,
    file_sha256: String,
    version: u64,
    position: u64,
    can_move: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    traceparent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceJson>,
}

/// The files of a run, as machines read them.
#[derive(Serialize)]
struct SourceJson {
    commit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<BlobJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<String>,
    folder: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    parent: String,
    dirty: bool,
}

impl From<v1::Source> for SourceJson {
    fn from(source: v1::Source) -> Self {
        let v1::Source { commit, origin, folder, parent, dirty } = source;
        let (bundle, remote) = match origin {
            Some(Origin::Bundle(blob)) => (Some(blob.into()), None),
            Some(Origin::Remote(address)) => (None, Some(address)),
            None => (None, None),
        };
        Self { commit, bundle, remote, folder, parent, dirty }
    }
}

impl From<v1::Run> for RunJson {
    fn from(run: v1::Run) -> Self {
        let counts = run.counts.unwrap_or_default();
        Self {
            id: run.id,
            short_id: run.short_id,
            pipeline: run.pipeline,
            file: run.file,
            folder: run.folder,
            phase: run.phase,
            stages: run.stages,
            parallelism: run.parallelism,
            requested_by: run.requested_by,
            created_at: run.created_at,
            finished_at: run.finished_at,
            abort_root: run.abort_root,
            counts: BTreeMap::from([
                ("waiting", counts.waiting),
                ("at_gate", counts.at_gate),
                ("running", counts.running),
                ("backing_off", counts.backing_off),
                ("succeeded", counts.succeeded),
                ("failed", counts.failed),
                ("skipped", counts.skipped),
                ("cancelled", counts.cancelled),
                ("rejected", counts.rejected),
            ]),
            plan_sha256: run.plan_sha256,
            file_sha256: run.file_sha256,
            version: run.version,
            position: run.position,
            can_move: run.can_move,
            traceparent: run.traceparent,
            source: run.source.map(SourceJson::from),
        }
    }
}

/// A job, as machines read it. Names are stable.
#[derive(Serialize)]
pub(crate) struct JobJson {
    name: String,
    stage: String,
    state: String,
    attempt: u32,
    since: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    leased_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ran_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    worker: String,
    needs: Vec<String>,
    when: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    approval_digest: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    retry_due: String,
    irreversible: bool,
    outputs: BTreeMap<String, String>,
    artifacts: Vec<ArtifactJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    captured_output: Option<BlobJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<GateJson>,
    #[serde(skip_serializing_if = "String::is_empty")]
    traceparent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<PolicyJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    approvals: Vec<GateJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approvals_remaining: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    expires_at: String,
}

#[derive(Serialize)]
struct PolicyJson {
    approvers: Vec<String>,
    min: u32,
    not: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
}

#[derive(Serialize)]
struct BlobJson {
    size: u64,
    sha256: String,
}

#[derive(Serialize)]
struct ArtifactJson {
    path: String,
    #[serde(flatten)]
    blob: BlobJson,
}

#[derive(Serialize)]
struct GateJson {
    approved: bool,
    by: String,
    at: String,
    comment: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    roles: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    expires_at: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    in_advance: bool,
}

impl From<v1::GateDecision> for GateJson {
    fn from(gate: v1::GateDecision) -> Self {
        let v1::GateDecision { approved, by, at, comment, roles, expires_at, in_advance } = gate;
        Self { approved, by, at, comment, roles, expires_at, in_advance }
    }
}

impl From<v1::Blob> for BlobJson {
    fn from(blob: v1::Blob) -> Self {
        let v1::Blob { size, sha256 } = blob;
        Self { size, sha256 }
    }
}

impl From<v1::Job> for JobJson {
    fn from(job: v1::Job) -> Self {
        let artifact = |artifact: v1::Artifact| ArtifactJson {
            path: artifact.path,
            blob: artifact.blob.unwrap_or_default().into(),
        };
        let policy = |policy: v1::GatePolicy| PolicyJson {
            approvers: policy.approvers,
            min: policy.min,
            not: policy.not,
            expires_ms: (policy.expires_ms > 0).then_some(policy.expires_ms),
        };
        Self {
            name: job.name,
            stage: job.stage,
            state: job.state,
            attempt: job.attempt,
            since: job.since,
            leased_at: job.leased_at,
            ran_ms: job.ran_ms,
            exit_code: job.exit_code,
            reason: job.reason,
            worker: job.worker,
            needs: job.needs,
            when: job.when,
            approval_digest: job.approval_digest,
            retry_due: job.retry_due,
            irreversible: job.irreversible,
            outputs: job.outputs,
            artifacts: job.artifacts.into_iter().map(artifact).collect(),
            captured_output: job.captured_output.map(BlobJson::from),
            traceparent: job.traceparent,
            gate: job.gate.map(GateJson::from),
            policy: job.policy.map(policy),
            approvals: job.approvals.into_iter().map(GateJson::from).collect(),
            approvals_remaining: (job.approvals_remaining > 0).then_some(job.approvals_remaining),
            expires_at: job.expires_at,
        }
    }
}
