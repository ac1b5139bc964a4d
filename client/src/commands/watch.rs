//! `tow watch`.

use towpath_proto::v1;

use super::{
    App, CommandResult,
    follow::{Follow, follow, now, snapshot, work_on},
};
use crate::{cli::WhichRun, exit, render::board};

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
    let request = v1::GetRunRequest { run: args.run.run };
    let run = server.runs().get_run(request).await?.into_inner().run.unwrap_or_default();
    if server.is_ours() {
        // No process has the store open, so nobody works on the run.
        let (state, _) = snapshot(&server, &run.id).await?;
        app.print(&board::whole(&state, &run.short_id, now(), &app.style))?;
        let code = exit::of_phase(state.phase());
        if code.is_none() {
            app.say(&format!("Nobody works on this run. `tow resume {}` does.", run.short_id));
        }
        server.close().await;
        let at_gate = state.counts().at_gate > 0 && !state.can_move();
        return Ok(code.unwrap_or(if at_gate { exit::AT_GATE } else { exit::CONFLICT }));
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
