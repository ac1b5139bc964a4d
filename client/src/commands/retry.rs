//! `tow retry`.

use towpath_proto::v1;

use super::{
    App, CommandResult,
    follow::{Follow, work_on},
};
use crate::cli::RunArg;

/// Give one job another chance
///
/// What was skipped because of it is taken along. The run goes on in this process.
#[derive(Debug, clap::Args)]
pub(crate) struct RetryArgs {
    /// The job
    job: String,
    #[command(flatten)]
    run: RunArg,
    /// Stay at a gate until somebody decides it elsewhere
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
