//! `tow workers`.

use clap::Subcommand;
use serde::Serialize;
use towpath_proto::v1;

use super::{Desk, Finished};
use crate::{cli::Output, exit, failure::Failure, render::safe};

/// Show who runs jobs, and let workers finish
#[derive(Debug, clap::Args)]
pub(crate) struct WorkersArgs {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the workers that are connected
    List,
    /// Give a worker nothing new; what it runs it finishes
    Drain {
        /// The worker
        name: String,
    },
    /// Give a worker jobs again
    Resume {
        /// The worker
        name: String,
    },
}

/// A worker, as machines read it. Names are stable.
#[derive(Serialize)]
struct WorkerJson {
    name: String,
    slots: u32,
    running: u32,
    draining: bool,
    since: String,
    version: String,
    tags: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    run: String,
}

impl From<v1::Worker> for WorkerJson {
    fn from(worker: v1::Worker) -> Self {
        let v1::Worker { name, tags, slots, running, since, version, draining, run } = worker;
        Self { name, slots, running, draining, since, version, tags, run }
    }
}

/// Lists workers, or says which of them shall be given nothing new.
pub(crate) async fn workers(desk: &Desk, args: WorkersArgs) -> Finished {
    let server = desk.server().await?;
    let shown = match args.what.unwrap_or(What::List) {
        What::List => {
            let reply = server.workers().list_workers(v1::ListWorkersRequest {}).await?;
            list(desk, reply.into_inner().workers)
        }
        What::Drain { name } => {
            let request = v1::DrainWorkerRequest { name, drain: true };
            let worker = server.workers().drain_worker(request).await?.into_inner();
            one(desk, worker)
        }
        What::Resume { name } => {
            let request = v1::DrainWorkerRequest { name, drain: false };
            let worker = server.workers().drain_worker(request).await?.into_inner();
            one(desk, worker)
        }
    };
    server.close().await;
    shown.map(|()| exit::DONE)
}

fn list(desk: &Desk, workers: Vec<v1::Worker>) -> Result<(), Failure> {
    match desk.output() {
        Output::Text if workers.is_empty() => desk.say("No worker is connected."),
        Output::Text => {
            for worker in &workers {
                desk.print(&(line(desk, worker) + "\n"))?;
            }
        }
        Output::Json => {
            desk.json(&workers.into_iter().map(WorkerJson::from).collect::<Vec<_>>())?;
        }
        Output::Jsonl => {
            for worker in workers {
                desk.json(&WorkerJson::from(worker))?;
            }
        }
    }
    Ok(())
}

fn one(desk: &Desk, worker: v1::Worker) -> Result<(), Failure> {
    match desk.output() {
        Output::Text => desk.print(&(line(desk, &worker) + "\n")),
        Output::Json | Output::Jsonl => desk.json(&WorkerJson::from(worker)),
    }
}

fn line(desk: &Desk, worker: &v1::Worker) -> String {
    let state = if worker.draining { "draining" } else { "ready" };
    let text = format!(
        "{} {:>9}  {state:<8}  since {}  {:<7}  {}",
        desk.style.pad(&safe(&worker.name), 24),
        format!("{}/{} jobs", worker.running, worker.slots),
        worker.since,
        safe(&worker.version),
        safe(&worker.tags.join(",")),
    );
    text.trim_end().to_owned()
}
