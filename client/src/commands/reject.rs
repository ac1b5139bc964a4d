//! `tow reject`.

use towpath_proto::v1;

use super::{App, CommandResult, approve::waiting_gate};
use crate::{
    args::RunArg,
    exit,
    render::{safe, words},
};

/// Reject the gate of a job
///
/// Jobs that need this job are skipped, and the run ends as rejected.
#[derive(Debug, clap::Args)]
pub(crate) struct RejectArgs {
    /// The job behind the gate [default: the only gate that waits]
    job: Option<String>,
    #[command(flatten)]
    run: RunArg,
    /// A comment for the log
    #[arg(short = 'm', long, default_value = "", hide_default_value = true)]
    comment: String,
}

/// Rejects a gate.
pub(crate) async fn reject(app: &App, args: RejectArgs) -> CommandResult {
    let server = app.server().await?;
    let gate = waiting_gate(&server, &args.run.run, args.job.as_deref()).await?;
    let request = v1::RejectGateRequest {
        run: gate.run,
        job: gate.job.clone(),
        approval_digest: String::new(),
        comment: args.comment,
        actor: app.actor(),
    };
    let run = server.gates().reject_gate(request).await?.into_inner().run.unwrap_or_default();
    let phase = words::phase(&run).replace('_', " ");
    app.say(&format!("Rejected `{}`; the run is {phase}.", safe(&gate.job)));
    server.close().await;
    Ok(exit::DONE)
}
