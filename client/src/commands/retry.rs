//! `tow retry`.

use towpath_proto::v1;

use super::{
    App, CommandResult,
    follow::{Follow, work_on},
};
use crate::args::RunArg;

/// Run a failed or skipped job again
///
/// Jobs that were skipped because of it run again, too. The run continues in this process.
#[derive(Debug, clap::Args)]
pub(crate) struct RetryArgs {
    /// The job
    job: String,
    #[command(flatten)]
    run: RunArg,
    /// Wait at a gate until it is decided elsewhere
    #[arg(long)]
    wait: bool,
    /// What this machine offers to jobs with `tags`
    #[arg(long, value_delimiter = ',', value_name = "TAG")]
    tags: Vec<String>,
}

/// Retries a job and works on its run.
pub(crate) async fn retry(app: &App, args: RetryArgs) -> CommandResult {
    let server = app.server().await?;
    let request = v1::RetryJobRequest { run: args.run.run, job: args.job, actor: app.actor() };
    let run = server.runs().retry_job(request).await?.into_inner().run.unwrap_or_default();
    let following = Follow {
        run: run.id.as_str().into(),
        short_id: run.short_id,
        known: run.version,
        slots: Some(run.parallelism),
        wait: args.wait,
        tags: args.tags,
    };
    work_on(app, server, following).await
}
