//! `tow graph`.

use clap::ValueEnum;
use serde_json::Value;
use towpath_engine::plan::{JobPlan, OnFailure, Plan, When};
use towpath_pipeline::graph::{Graph, drawing};
use towpath_proto::{v1, words::Word as _};

use super::{
    App, CommandResult, pipeline,
    status::{self, Read},
};
use crate::{
    args::{Output, WhichFile},
    at::{AtArg, as_of_line},
    exit,
    failure::Failure,
    json,
};

/// Draw a pipeline's jobs and needs
///
/// In text, a job is shown below the last of its needs in the same stage; its other needs follow an
/// arrow. With `--run` or `--at`, the plan of a run is drawn with the states of its jobs.
#[derive(Debug, clap::Args)]
// A file has no past and no states.
#[command(mut_arg("file", |file| file.conflicts_with_all(["run", "at"])))]
pub(crate) struct GraphArgs {
    #[command(flatten)]
    file: WhichFile,
    /// The plan of this run, not of a file: an id, the beginning of one, or `@latest`
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    #[command(flatten)]
    at: AtArg,
    /// How to draw
    #[arg(short, long, value_enum, default_value = "text")]
    format: Format,
}

impl GraphArgs {
    /// The run whose plan is drawn. `None`: a file is.
    pub(crate) fn run(&self) -> Option<&str> {
        let latest = self.at.at.map(|_| "@latest");
        self.run.as_deref().or(latest)
    }
}

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A tree for the terminal
    Text,
    /// For Graphviz: `tow graph -f dot | dot -Tsvg > pipeline.svg`
    Dot,
    /// For Markdown that is shown by GitHub and GitLab
    Mermaid,
    /// Jobs, needs, order and waves for programs
    Json,
}

/// Draws the pipeline.
pub(crate) async fn graph(app: &App, args: GraphArgs) -> CommandResult {
    match args.run() {
        // From the server and not from the file: the plan of a run may have been edited since.
        Some(run) => graph_of_run(app, run, &args).await,
        None => {
            let path = pipeline::locate(args.file.file.as_deref())?;
            let pipeline = pipeline::read(app, &path)?;
            draw(app, &Graph::of(&pipeline.plan), args.format, |_| {})?;
            Ok(exit::DONE)
        }
    }
}

async fn graph_of_run(app: &App, run: &str, args: &GraphArgs) -> CommandResult {
    let server = app.server().await?;
    let read = match server.run(run).await {
        Ok(run) => status::read(&server, &run.id, v1::JobView::Full, args.at).await,
        Err(failure) => Err(failure),
    };
    server.close().await;
    let Read { run, jobs, as_of } = read?;
    if let Some(as_of) = &as_of {
        app.say(&as_of_line(as_of));
    }
    // The plan has the jobs in the order of the messages, so states and notes belong by number.
    let (plan, states) = (plan_of(&run, &jobs), jobs.iter().map(|job| job.state().word()));
    let graph = Graph::of(&plan).with_notes(states.clone().map(|state| state.replace('_', " ")));
    draw(app, &graph, args.format, |drawn| {
        drawn["run"] = run.id.clone().into();
        if let Some(as_of) = &as_of {
            drawn["as_of"] = serde_json::to_value(json::of(as_of)).unwrap_or_default();
        }
        let drawn = drawn["jobs"].as_array_mut().into_iter().flatten();
        drawn.zip(states.clone()).for_each(|(job, state)| job["state"] = state.into());
    })?;
    Ok(exit::DONE)
}

/// Prints `graph`; what `more` adds is part of its JSON.
fn draw(
    app: &App,
    graph: &Graph<'_>,
    format: Format,
    more: impl FnOnce(&mut Value),
) -> Result<(), Failure> {
    let format = match (app.output(), format) {
        (Output::Json | Output::Jsonl, Format::Text) => Format::Json,
        (_, format) => format,
    };
    match format {
        Format::Text => {
            // What goes to a file or a pager is not cut.
            let width = if app.style.live { app.style.width } else { usize::MAX };
            app.print(&drawing::draw_text(graph, width, app.style.ascii))
        }
        Format::Dot => app.print(&drawing::dot(graph)),
        Format::Mermaid => app.print(&drawing::mermaid(graph)),
        Format::Json => {
            let mut drawn = drawing::json(graph);
            more(&mut drawn);
            app.json(&drawn)
        }
    }
}

/// The plan of a run, as far as it is drawn.
fn plan_of(run: &v1::Run, jobs: &[v1::Job]) -> Plan {
    Plan {
        pipeline: run.pipeline.clone(),
        stages: run.stages.iter().map(|stage| stage.as_str().into()).collect(),
        jobs: jobs.iter().map(job_plan).collect(),
        timeout_ms: None,
    }
}

fn job_plan(job: &v1::Job) -> JobPlan {
    let spec = job.spec.clone().unwrap_or_default();
    JobPlan {
        needs: job.needs.iter().map(|need| need.as_str().into()).collect(),
        when: match job.when() {
            v1::JobCondition::Unspecified | v1::JobCondition::OnSuccess => When::OnSuccess,
            v1::JobCondition::Always => When::Always,
            v1::JobCondition::Manual => When::Manual,
        },
        on_failure: match spec.on_failure() {
            v1::FailurePolicy::Unspecified | v1::FailurePolicy::Continue => OnFailure::Continue,
            v1::FailurePolicy::Abort => OnFailure::Abort,
        },
        irreversible: job.irreversible,
        condition: Some(spec.condition).filter(|condition| !condition.is_empty()),
        ..JobPlan::new(&job.name, &job.stage, "")
    }
}
