//! `tow plan`. What is looked at is in `plan/outlook.rs`, how it is shown in `plan/shown.rs`.

mod report;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use towpath_engine::{ids::JobName, job::JobState, plan::Plan, run::Run};
use towpath_proto::{time::duration_ms, v1};

use super::{
    App, CommandResult,
    follow::folded,
    pipeline::{self, Pipeline},
    status,
};
use crate::{
    args::{Output, WhichFile},
    at::AtArg,
    connect::{ServerConnection, store_folder},
    exit,
    failure::Failure,
};

use report::{PlanReport, Resume};

/// Runs that are looked through for one to estimate by.
const RUNS_SEARCHED: u32 = 50;

/// Show what a run would do, without doing it
///
/// Jobs of one line can run at the same time; a line begins when the one above has ended. Times are
/// those of the last run of this pipeline that succeeded, if the store has one. Exit code 4 if
/// nothing would run.
#[derive(Debug, clap::Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    file: WhichFile,
    /// Show what `tow resume RUN` would do instead
    #[arg(long, value_name = "RUN")]
    resume: Option<String>,
}

/// What jobs took before, and in which run.
#[derive(Default)]
struct Estimates {
    run: Option<String>,
    ran_ms: BTreeMap<String, u64>,
}

/// Shows what would run.
pub(crate) fn plan(app: &App, args: PlanArgs) -> CommandResult {
    let PlanArgs { file: WhichFile { file }, resume } = args;
    let outlook = match resume {
        Some(run) => wait(|| resumed(app, &run, file.as_deref()))?,
        None => {
            let pipeline = pipeline::read(app, &pipeline::locate(file.as_deref())?)?;
            let estimates = estimates(app, &pipeline.plan.pipeline);
            let everything = |_: &JobName| true;
            let outlook = PlanReport::of(&pipeline.plan, everything, |job| estimates.of(job));
            outlook.in_file(&pipeline.name).estimated_from(estimates.run)
        }
    };
    if app.output() == Output::Text {
        app.print(&text::text(&outlook, &app.style))?;
    } else {
        app.json(&outlook)?;
    }
    Ok(if outlook.would_run == 0 { exit::NOTHING_TO_DO } else { exit::DONE })
}

/// The result of what `begin` begins. It gets a thread and a runtime of its own, because the
/// caller's runtime may have no other thread that could go on while this one waits.
fn wait<T: Send, F>(begin: impl FnOnce() -> F + Send) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let on_its_own = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(begin())
    };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(on_its_own);
        waiting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Estimates {
    /// Milliseconds; without an earlier run every job is as long as any other.
    fn of(&self, job: &JobName) -> u64 {
        // Without an earlier run every job has the weight 1, so that the longest chain is that with
        // most jobs. With one, a new job has none.
        let unknown = u64::from(self.run.is_none());
        self.ran_ms.get(job.as_str()).copied().unwrap_or(unknown)
    }
}

/// What the jobs of `pipeline` took the last time all went well. Only an estimate: on any error
/// there is none.
fn estimates(app: &App, pipeline: &str) -> Estimates {
    let url = app.url();
    // `tow plan` must not create a store, and must not wait for a server that is not needed.
    if store_folder(&url).is_none_or(|folder| !folder.exists()) {
        return Estimates::default();
    }
    let found = wait(|| async {
        let server = ServerConnection::connect_existing(&url).await?;
        let found = took_before(&server, pipeline).await;
        server.close().await;
        found
    });
    found.unwrap_or_default()
}

async fn took_before(server: &ServerConnection, pipeline: &str) -> Result<Estimates, Failure> {
    let request = v1::ListRunsRequest {
        page_size: RUNS_SEARCHED,
        outcomes: vec![v1::RunOutcome::Succeeded.into()],
        ..Default::default()
    };
    let runs = server.runs().list_runs(request).await?.into_inner().runs;
    let Some(run) = runs.into_iter().find(|run| run.pipeline == pipeline) else {
        return Ok(Estimates::default());
    };
    let view = v1::JobView::Basic;
    let jobs = status::read(server, &run.id, view, AtArg::default()).await?.jobs;
    let took = |job: v1::Job| Some((job.name, duration_ms(job.run_time.as_ref()?)?));
    let ran_ms = jobs.into_iter().filter_map(took).collect();
    Ok(Estimates { run: Some(run.short_id), ran_ms })
}

/// What a resume would do.
async fn resumed(app: &App, run: &str, file: Option<&Path>) -> Result<PlanReport, Failure> {
    let server = app.server().await?;
    let found = read_run(&server, run).await;
    let estimates = match &found {
        Ok((short, _)) => took_before(&server, &short.pipeline).await.unwrap_or_default(),
        Err(_) => Estimates::default(),
    };
    server.close().await;
    let (view, run) = found?;
    let now = file_now(app, &view, file)?;
    Ok(outlook_of_resume(&view, &run, now.as_ref(), &estimates))
}

async fn read_run(server: &ServerConnection, run: &str) -> Result<(v1::Run, Run), Failure> {
    let view = server.run(run).await?;
    let run = folded(server, &view.id).await?;
    Ok((view, run))
}

/// The pipeline file as it is now: the one that was named, or the run's own if it is still there.
fn file_now(app: &App, run: &v1::Run, file: Option<&Path>) -> Result<Option<Pipeline>, Failure> {
    let own = || Path::new(&run.folder).join(Path::new(&run.file).file_name().unwrap_or_default());
    let path: PathBuf = match file {
        Some(file) => file.to_owned(),
        None if own().is_file() => own(),
        None => return Ok(None),
    };
    pipeline::read(app, &path).map(Some)
}

fn outlook_of_resume(
    view: &v1::Run,
    run: &Run,
    now: Option<&Pipeline>,
    estimates: &Estimates,
) -> PlanReport {
    let frozen = Plan {
        pipeline: view.pipeline.clone(),
        stages: view.stages.iter().map(|stage| stage.as_str().into()).collect(),
        jobs: run.jobs().iter().map(|job| (*job.plan).clone()).collect(),
        timeout_ms: None,
    };
    let digest_now = now.map(|now| now.plan.digest().to_string());
    // Compared by digest, as the server does: the report says what `tow resume` would really
    // answer.
    let changed = digest_now.as_ref().is_some_and(|now| *now != view.plan_sha256);
    let plan = now.filter(|_| changed).map_or(&frozen, |now| &now.plan);
    let kept: BTreeSet<&JobName> = run
        .jobs()
        .iter()
        .filter(|job| job.state == JobState::Succeeded)
        .map(|job| &job.plan.name)
        .collect();
    let outlook = PlanReport::of(plan, |job| !kept.contains(job), |job| estimates.of(job));
    let kept = plan.jobs.iter().filter(|job| kept.contains(&job.name));
    let resume = Resume {
        run: view.id.clone(),
        short_id: view.short_id.clone(),
        kept: kept.map(|job| job.name.to_string()).collect(),
        plan_changed: changed,
        plan_sha256_frozen: view.plan_sha256.clone(),
        plan_sha256_now: digest_now,
    };
    let name = now.map_or(view.file.as_str(), |now| now.name.as_str());
    outlook.in_file(name).estimated_from(estimates.run.clone()).resuming(resume)
}
