//! `tow status`.

use serde::Serialize;
use towpath_proto::v1;

use super::{App, CommandResult, follow::now};
use crate::{
    cli::{Output, WhichRun},
    connect::ServerConnection,
    exit,
    failure::Failure,
    json::{self, Json},
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

/// A run with its jobs.
#[derive(Serialize)]
struct StatusJson {
    #[serde(flatten)]
    run: Json,
    jobs: Vec<Json>,
}

/// Shows the state of a run.
pub(crate) async fn status(app: &App, args: StatusArgs) -> CommandResult {
    let server = app.server().await?;
    let finished = show(app, &server, args).await;
    server.close().await;
    finished
}

async fn show(app: &App, server: &ServerConnection, args: StatusArgs) -> CommandResult {
    let run = server.run(&args.run.run).await?;
    let is_text = app.output() == Output::Text;
    let view = if is_text { v1::JobView::Basic } else { v1::JobView::Full };
    let (run, jobs) = read(server, &run.id, view).await?;
    let code = exit::of_run(&run);
    if is_text {
        app.print(&board::whole(&run, &jobs, now(), &app.style))?;
        let is_live = run.phase() != v1::RunPhase::Finished;
        if server.is_ours() && run.can_move && is_live {
            app.say(&format!(
                "No process works on this run; `tow resume {}` continues it.",
                run.short_id
            ));
        }
        return Ok(code);
    }
    app.json(&StatusJson { run: json::of(&run), jobs: jobs.iter().map(json::of).collect() })?;
    Ok(code)
}

/// How often the pages of a run are read again because it changed in between. Then the newest of
/// each is shown, which is never wrong about a job, but may be about their number.
const READS_MAX: usize = 3;

/// Run `id` with all its jobs, as they were at one moment.
pub(crate) async fn read(
    server: &ServerConnection,
    id: &str,
    view: v1::JobView,
) -> Result<(v1::Run, Vec<v1::Job>), Failure> {
    let mut reads = 0;
    loop {
        reads += 1;
        let (mut jobs, mut versions, mut page_token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let request = v1::ListJobsRequest {
                run: id.to_owned(),
                page_size: 0,
                page_token,
                view: view.into(),
            };
            let page = server.runs().list_jobs(request).await?.into_inner();
            let run = page.run.unwrap_or_default();
            versions.push(run.version);
            jobs.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                let agree = versions.iter().all(|version| *version == run.version);
                if agree || reads >= READS_MAX {
                    return Ok((run, jobs));
                }
                break;
            }
        }
    }
}
