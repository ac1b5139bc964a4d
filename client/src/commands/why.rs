//! `tow why`.

use serde::Serialize;
use towpath_proto::v1;

use super::{App, CommandResult, status::JobJson};
use crate::{
    cli::{Output, RunArg},
    exit,
    render::safe,
};

/// Explain why a job is in its state
///
/// One answer: it waits for needs, a stage, a gate, a lock, a back-off, a worker, or it has ended
/// and why.
#[derive(Debug, clap::Args)]
pub(crate) struct WhyArgs {
    /// The job
    job: String,
    #[command(flatten)]
    run: RunArg,
}

#[derive(Serialize)]
struct WhyJson {
    waits_for: String,
    sentence: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_command: String,
    job: JobJson,
}

/// Asks the server and says what it says.
pub(crate) async fn why(app: &App, args: WhyArgs) -> CommandResult {
    let server = app.server().await?;
    let request = v1::ExplainJobRequest { run: args.run.run, job: args.job };
    let explained = server.runs().explain_job(request).await?.into_inner();
    let v1::ExplainJobResponse { job, waits_for, sentence, next_command } = explained;
    if app.output() == Output::Text {
        app.print(&format!("{}\n", safe(&sentence)))?;
        if !next_command.is_empty() {
            app.print(&format!("  {}\n", safe(&next_command)))?;
        }
    } else {
        let job = job.unwrap_or_default().into();
        app.json(&WhyJson { waits_for, sentence, next_command, job })?;
    }
    server.close().await;
    Ok(exit::DONE)
}
