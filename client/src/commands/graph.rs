//! `tow graph`.

use clap::ValueEnum;
use towpath_pipeline::graph::{Graph, drawing};

use super::{App, CommandResult, pipeline};
use crate::{
    cli::{Output, WhichFile},
    exit,
};

/// Draw a pipeline's jobs and needs
///
/// In text, a job is shown below the last of its needs in the same stage; its other needs follow an
/// arrow.
#[derive(Debug, clap::Args)]
pub(crate) struct GraphArgs {
    #[command(flatten)]
    file: WhichFile,
    /// How to draw
    #[arg(short, long, value_enum, default_value = "text")]
    format: Format,
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
pub(crate) fn graph(app: &App, args: GraphArgs) -> CommandResult {
    let path = pipeline::locate(args.file.file.as_deref())?;
    let pipeline = pipeline::read(app, &path)?;
    let graph = Graph::of(&pipeline.plan);
    let format = match (app.output(), args.format) {
        (Output::Json | Output::Jsonl, Format::Text) => Format::Json,
        (_, format) => format,
    };
    match format {
        Format::Text => {
            // What goes to a file or a pager is not cut.
            let width = if app.style.live { app.style.width } else { usize::MAX };
            app.print(&drawing::draw_text(&graph, width, app.style.ascii))?;
        }
        Format::Dot => app.print(&drawing::dot(&graph))?,
        Format::Mermaid => app.print(&drawing::mermaid(&graph))?,
        Format::Json => app.json(&drawing::json(&graph))?,
    }
    Ok(exit::DONE)
}
