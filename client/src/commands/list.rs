//! `tow list`.

use towpath_engine::time::duration_words;
use towpath_proto::{
    v1::{self, RunOutcome, RunPhase},
    words::Word as _,
};

use super::{App, CommandResult};
use crate::clock::now;
use crate::{
    args::Output,
    at::{AtArg, as_of_line},
    connect::store_folder,
    exit, json,
    render::{
        Mark, board, safe,
        words::{self, moment},
    },
};

/// List runs, newest first
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// At most this many
    #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
    limit: u32,
    /// Only runs in this phase or with this outcome, such as running, failed or partial
    #[arg(long, value_delimiter = ',', value_name = "PHASE", value_parser = which)]
    phase: Vec<Which>,
    #[command(flatten)]
    at: AtArg,
}

/// Lists the runs of the store.
pub(crate) async fn list(app: &App, args: ListArgs) -> CommandResult {
    let nothing = store_folder(&app.url()).is_some_and(|folder| !folder.exists());
    let mut reply = v1::ListRunsResponse::default();
    if !nothing {
        let server = app.server().await?;
        let request = request(args);
        reply = server.runs().list_runs(request).await?.into_inner();
        server.close().await;
    }
    if let Some(as_of) = &reply.as_of {
        app.say(&as_of_line(as_of));
    }
    match app.output() {
        Output::Text => {
            for run in &reply.runs {
                app.print(&(line(app, run) + "\n"))?;
            }
            if reply.runs.is_empty() {
                app.say("No runs yet. `tow run` begins one.");
            } else if !reply.next_page_token.is_empty() {
                app.say("Older runs are not shown; use `--limit`.");
            }
        }
        Output::Json => {
            let runs: Vec<_> = reply.runs.iter().map(json::of).collect();
            app.json(&runs)?;
        }
        Output::Jsonl => {
            for run in reply.runs {
                app.json(&json::of(&run))?;
            }
        }
    }
    Ok(exit::DONE)
}

/// What a run may be asked for by.
#[derive(Clone, Copy, Debug)]
enum Which {
    Phase(RunPhase),
    Outcome(RunOutcome),
}

fn which(word: &str) -> Result<Which, String> {
    let phase = RunPhase::of_word(word).map(Which::Phase);
    let either = phase.or_else(|| RunOutcome::of_word(word).map(Which::Outcome));
    either.ok_or_else(|| "neither a phase nor an outcome of runs".to_owned())
}

fn request(args: ListArgs) -> v1::ListRunsRequest {
    let mut request =
        v1::ListRunsRequest { page_size: args.limit, at: args.at.message(), ..Default::default() };
    for which in args.phase {
        match which {
            Which::Phase(phase) => request.phases.push(phase.into()),
            Which::Outcome(outcome) => request.outcomes.push(outcome.into()),
        }
    }
    request
}

fn mark(run: &v1::Run) -> Mark {
    match run.outcome() {
        RunOutcome::Succeeded => Mark::Done,
        RunOutcome::Cancelled => Mark::Skipped,
        RunOutcome::Partial | RunOutcome::Failed | RunOutcome::Rejected | RunOutcome::TimedOut => {
            Mark::Failed
        }
        RunOutcome::Unspecified if board::is_at_gate(run) => Mark::Gate,
        RunOutcome::Unspecified if run.phase() == RunPhase::Running => Mark::Running,
        RunOutcome::Unspecified => Mark::Failed,
    }
}

fn line(app: &App, run: &v1::Run) -> String {
    let counts = run.counts.unwrap_or_default();
    let mark = mark(run);
    let phase = words::phase(run).replace('_', " ");
    let word = if board::is_at_gate(run) { "at a gate".to_owned() } else { phase };
    let over =
        counts.succeeded + counts.failed + counts.skipped + counts.cancelled + counts.rejected;
    let total = over + counts.waiting + counts.at_gate + counts.running + counts.backing_off;
    let ago = moment(run.created_at.as_ref())
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
