//! `tow run`.

use super::{
    Desk, Finished,
    follow::{Follow, work_on},
    pipeline,
};
use crate::{cli::WhichFile, connect::Server};

/// Jobs at once when nobody says how many. Source: the file-driven pipeline format.
pub(crate) const PARALLELISM: u32 = 4;

/// Run a pipeline file to its end
///
/// The jobs run in this process. It stops at a gate (exit code 12) unless a person at the terminal
/// opens it, `--yes` was given, or `--wait` lets it stay. Ctrl-C lets running jobs finish, twice
/// ends them; `tow resume` goes on where it stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    file: WhichFile,
    /// Most jobs that run at once, 1 to 1024
    #[arg(short, long, default_value_t = PARALLELISM, value_name = "N")]
    parallelism: u32,
    /// Approve every gate in advance, in your name
    #[arg(short, long)]
    yes: bool,
    /// Stay at a gate until somebody decides it elsewhere
    #[arg(long)]
    wait: bool,
    /// What this machine offers to jobs with `tags`
    #[arg(long, value_delimiter = ',', value_name = "TAG")]
    tags: Vec<String>,
}

/// Begins a run and works on it.
pub(crate) async fn run(desk: &Desk, args: RunArgs) -> Finished {
    let path = pipeline::locate(args.file.file.as_deref())?;
    let pipeline = pipeline::read(desk, &path)?;
    let server = Server::reach(&desk.url()).await?;
    let request = towpath_proto::v1::StartRunRequest {
        file: Some(pipeline.message()),
        parallelism: args.parallelism,
        gates_preapproved: args.yes,
        traceparent: std::env::var("TRACEPARENT").unwrap_or_default(),
        actor: desk.actor(),
    };
    let run = server.runs().start_run(request).await?.into_inner();
    let following = Follow {
        run: run.id.as_str().into(),
        short_id: run.short_id,
        known: 0,
        slots: Some(args.parallelism),
        wait: args.wait,
        tags: args.tags,
    };
    work_on(desk, server, following).await
}
