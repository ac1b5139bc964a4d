//! `tow cancel`.

use towpath_proto::v1;

use super::{
    App, CommandResult,
    follow::{Follow, follow},
};
use crate::{args::WhichRun, exit, render::words};

/// End a run
///
/// Running jobs are ended (SIGTERM, then SIGKILL). Jobs that have not begun do not run, unless the
/// run is resumed.
#[derive(Debug, clap::Args)]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    run: WhichRun,
    /// A comment for the log
    #[arg(short = 'm', long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// Ends a run. Jobs that outlived their `tow` are ended by this one.
pub(crate) async fn cancel(app: &App, args: CancelArgs) -> CommandResult {
    let server = app.server().await?;
    let request =
        v1::CancelRunRequest { run: args.run.run, reason: args.reason, actor: app.actor() };
    let run = server.runs().cancel_run(request).await?.into_inner().run.unwrap_or_default();
    let mut phase = words::phase(&run);
    if run.phase() == v1::RunPhase::Cancelling && server.is_ours() {
        let following = Follow {
            run: run.id.as_str().into(),
            short_id: run.short_id.clone(),
            known: run.version,
            slots: Some(1),
            wait: false,
            tags: Vec::new(),
        };
        follow(app, &server, &following).await?;
        phase = "cancelled".to_owned();
    }
    app.say(&format!("Run {} is {phase}.", run.short_id));
    server.close().await;
    Ok(exit::DONE)
}
