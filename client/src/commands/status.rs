//! `tow status`.

use serde::Serialize;
use towpath_proto::v1;

use super::{App, CommandResult};
use crate::clock::now;
use crate::{
    args::{Output, WhichRun},
    at::{AtArg, as_of_line},
    connect::ServerConnection,
    exit,
    failure::Failure,
    json::{self, Json},
    render::{board, words::moment},
};

/// Show a run and its jobs
///
/// The exit code is the run's: 0 while it is under way or once it has succeeded, 12 while it waits
/// at a gate.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    run: WhichRun,
    #[command(flatten)]
    at: AtArg,
}

/// A run with its jobs.
#[derive(Serialize)]
struct StatusJson {
    #[serde(flatten)]
    run: Json,
    jobs: Vec<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    as_of: Option<Json>,
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
    let Read { run, jobs, as_of } = read(server, &run.id, view, args.at).await?;
    if let Some(as_of) = &as_of {
        app.say(&as_of_line(as_of));
    }
    let code = exit::of_run(&run);
    if is_text {
        let then = as_of.as_ref().and_then(|as_of| moment(as_of.time.as_ref()));
        app.print(&board::whole(&run, &jobs, then.unwrap_or_else(now), &app.style))?;
        let is_live = run.phase() != v1::RunPhase::Finished;
        if server.is_ours() && run.can_move && is_live && as_of.is_none() {
            app.say(&format!(
                "No process works on this run; `tow resume {}` continues it.",
                run.short_id
            ));
        }
        return Ok(code);
    }
    app.json(&StatusJson {
        run: json::of(&run),
        jobs: jobs.iter().map(json::of).collect(),
        as_of: as_of.as_ref().map(json::of),
    })?;
    Ok(code)
}

/// How often the pages of a run are read again because it changed in between. Then the newest of
/// each is shown, which is never wrong about a job, but may be about their number.
const READS_MAX: usize = 3;

/// A run with all its jobs, as they are or were at one moment.
pub(crate) struct Read {
    pub(crate) run: v1::Run,
    pub(crate) jobs: Vec<v1::Job>,
    pub(crate) as_of: Option<v1::AsOf>,
}

/// Run `id` with all its jobs.
pub(crate) async fn read(
    server: &ServerConnection,
    id: &str,
    view: v1::JobView,
    at: AtArg,
) -> Result<Read, Failure> {
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
                at: at.message(),
            };
            let page = server.runs().list_jobs(request).await?.into_inner();
            let run = page.run.unwrap_or_default();
            versions.push(run.version);
            jobs.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                let agree = versions.iter().all(|version| *version == run.version);
                if agree || reads >= READS_MAX {
                    return Ok(Read { run, jobs, as_of: page.as_of });
                }
                break;
            }
        }
    }
}
