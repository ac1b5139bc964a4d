//! `tow list`.

use towpath_engine::time::{Timestamp, duration_words};
use towpath_proto::v1;

use super::{App, CommandResult, follow::now, status::RunJson};
use crate::{
    cli::Output,
    connect::store_folder,
    exit,
    render::{Mark, safe},
};

/// List runs, newest first
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// At most this many
    #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
    limit: u32,
    /// Only runs in this phase: running, succeeded, failed, partial, rejected, cancelled, timed_out
    #[arg(long, value_delimiter = ',', value_name = "PHASE")]
    phase: Vec<String>,
}

/// Lists the runs of the store.
pub(crate) async fn list(app: &App, args: ListArgs) -> CommandResult {
    let nothing = store_folder(&app.url()).is_some_and(|folder| !folder.exists());
    let mut reply = v1::ListRunsResponse::default();
    if !nothing {
        let server = app.server().await?;
        let request =
            v1::ListRunsRequest { before: String::new(), limit: args.limit, phases: args.phase };
        reply = server.runs().list_runs(request).await?.into_inner();
        server.close().await;
    }
    match app.output() {
        Output::Text => {
            for run in &reply.runs {
                app.print(&(line(app, run) + "\n"))?;
            }
            if reply.runs.is_empty() {
                app.say("No runs yet. `tow run` begins one.");
            } else if reply.more {
                app.say("Older runs are not shown; use `--limit`.");
            }
        }
        Output::Json => {
            let runs: Vec<RunJson> = reply.runs.into_iter().map(RunJson::from).collect();
            app.json(&runs)?;
        }
        Output::Jsonl => {
            for run in reply.runs {
                app.json(&RunJson::from(run))?;
            }
        }
    }
    Ok(exit::DONE)
}

fn line(app: &App, run: &v1::Run) -> String {
    let counts = run.counts.unwrap_or_default();
    let at_gate = counts.at_gate > 0 && !run.can_move;
    let mark = match run.phase.as_str() {
        "succeeded" => Mark::Done,
        "running" if at_gate => Mark::Gate,
        "running" => Mark::Running,
        "cancelled" => Mark::Skipped,
        _ => Mark::Failed,
    };
    let word = if at_gate { "at a gate".to_owned() } else { run.phase.replace('_', " ") };
    let over =
        counts.succeeded + counts.failed + counts.skipped + counts.cancelled + counts.rejected;
    let total = over + counts.waiting + counts.at_gate + counts.running + counts.backing_off;
    let ago = Timestamp::parse(&run.created_at)
        .map(|at| format!("{} ago", duration_words(now().ms_since(at))))
        .unwrap_or_default();
    let style = &app.style;
    let text = format!(
        "{:<8} {} {} {:>11}  {:>10}  {}",
        run.short_id,
        style.pad(&word, 10),
        style.pad(&safe(&run.pipeline), 18),
        format!("{over}/{total} jobs"),
        ago,
        run.requested_by,
    );
    let room = style.width.saturating_sub(style.mark_width() + 1);
    format!("{} {}", style.mark(mark), style.fit(&text, room).trim_end())
}
