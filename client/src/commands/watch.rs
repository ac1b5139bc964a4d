//! `tow watch`.

use crate::clock::now;
use towpath_proto::v1;

use super::{
    App, CommandResult,
    follow::{Follow, follow, work_on},
    status,
};
use crate::{args::WhichRun, at::AtArg, exit, render::board};

/// Follow a run until it ends or waits
///
/// The exit code is the run's.
#[derive(Debug, clap::Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    run: WhichRun,
    /// Wait at a gate until it is decided
    #[arg(long)]
    wait: bool,
}

/// Follows a run that another process works on.
pub(crate) async fn watch(app: &App, args: WatchArgs) -> CommandResult {
    let server = app.server().await?;
    let run = server.run(&args.run.run).await?;
    if server.is_ours() {
        // No process has the store open, so none works on the run.
        let read = status::read(&server, &run.id, v1::JobView::Basic, AtArg::default()).await?;
        let (run, jobs) = (read.run, read.jobs);
        server.close().await;
        app.print(&board::whole(&run, &jobs, now(), &app.style))?;
        if run.phase() == v1::RunPhase::Finished {
            return Ok(exit::of_run(&run));
        }
        app.say(&format!(
            "No process works on this run; `tow resume {}` continues it.",
            run.short_id
        ));
        return Ok(if board::is_at_gate(&run) { exit::AT_GATE } else { exit::CONFLICT });
    }
    let following = Follow {
        run: run.id.as_str().into(),
        short_id: run.short_id,
        known: run.version,
        slots: None,
        wait: args.wait,
        tags: Vec::new(),
    };
    if server.is_remote() {
        return work_on(app, server, following).await;
    }
    follow(app, &server, &following).await
}
