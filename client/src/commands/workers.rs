//! `tow workers`.

use clap::Subcommand;
use towpath_proto::v1;

use super::{App, CommandResult};
use crate::{
    args::Output,
    connect::ServerConnection,
    exit,
    failure::Failure,
    json,
    render::{safe, words::moment},
};

/// List, drain and resume workers
#[derive(Debug, clap::Args)]
pub(crate) struct WorkersArgs {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the workers that are connected or drained
    List,
    /// Assign no new jobs to a worker; its running jobs finish
    Drain {
        /// The worker
        name: String,
    },
    /// Assign jobs to a worker again
    Resume {
        /// The worker
        name: String,
    },
}

/// Lists workers, or says which of them shall be given nothing new.
pub(crate) async fn workers(app: &App, args: WorkersArgs) -> CommandResult {
    let server = app.server().await?;
    let shown = match args.what.unwrap_or(What::List) {
        What::List => list(app, all(&server).await?),
        What::Drain { name } => {
            let request = v1::DrainWorkerRequest { name, drain: true, actor: app.actor() };
            let worker = server.workers().drain_worker(request).await?.into_inner().worker;
            one(app, worker.unwrap_or_default())
        }
        What::Resume { name } => {
            let request = v1::DrainWorkerRequest { name, drain: false, actor: app.actor() };
            let worker = server.workers().drain_worker(request).await?.into_inner().worker;
            one(app, worker.unwrap_or_default())
        }
    };
    server.close().await;
    shown.map(|()| exit::DONE)
}

/// All workers of the server, page after page.
pub(crate) async fn all(server: &ServerConnection) -> Result<Vec<v1::Worker>, Failure> {
    let (mut request, mut workers) = (v1::ListWorkersRequest::default(), Vec::new());
    loop {
        let page = server.workers().list_workers(request.clone()).await?.into_inner();
        workers.extend(page.workers);
        if page.next_page_token.is_empty() {
            return Ok(workers);
        }
        request.page_token = page.next_page_token;
    }
}

fn list(app: &App, workers: Vec<v1::Worker>) -> Result<(), Failure> {
    match app.output() {
        Output::Text if workers.is_empty() => app.say("No worker is connected or drained."),
        Output::Text => {
            for worker in &workers {
                app.print(&(line(app, worker) + "\n"))?;
            }
        }
        Output::Json => {
            app.json(&workers.iter().map(json::of).collect::<Vec<_>>())?;
        }
        Output::Jsonl => {
            for worker in workers {
                app.json(&json::of(&worker))?;
            }
        }
    }
    Ok(())
}

fn one(app: &App, worker: v1::Worker) -> Result<(), Failure> {
    match app.output() {
        Output::Text => app.print(&(line(app, &worker) + "\n")),
        Output::Json | Output::Jsonl => app.json(&json::of(&worker)),
    }
}

fn is_draining(worker: &v1::Worker) -> bool {
    worker.state() == v1::WorkerState::Draining
}

fn line(app: &App, worker: &v1::Worker) -> String {
    let state = if is_draining(worker) { "draining" } else { "ready" };
    if !worker.connected {
        let name = app.style.pad(&safe(&worker.name), 24);
        return format!("{name} {:>9}  {state:<8}  not connected", "");
    }
    let text = format!(
        "{} {:>9}  {state:<8}  since {}  {:<7}  {}",
        app.style.pad(&safe(&worker.name), 24),
        format!("{}/{} jobs", worker.running, worker.slots),
        moment(worker.since.as_ref()).unwrap_or_default(),
        safe(&worker.version),
        safe(&worker.tags.join(",")),
    );
    text.trim_end().to_owned()
}
