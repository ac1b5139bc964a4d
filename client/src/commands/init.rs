//! `tow init`. What is looked for in a folder is in `init/found.rs`; which jobs follow from it is
//! in `init/written.rs`.

mod detected;
mod templates;

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use clap::ValueEnum;
use serde::Serialize;
use towpath_pipeline::file::{Parsed, parse};

use super::{App, CommandResult, pipeline, validate::contents};
use crate::{args::Output, exit, failure::Failure, render::safe};
use towpath_engine::code::ErrorCode;

use detected::Detected;

/// The file that is written.
const FILE_NAME: &str = "towpath.yml";

/// Write a first pipeline file
///
/// Looks at what is in this folder (Alembic, dbt, Atlas, sqlc, SQL files in migrations/, SQLite
/// databases) and writes jobs that fit, with comments. An existing pipeline file is never touched.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// Write this template, whatever is in the folder
    #[arg(short, long, value_enum)]
    template: Option<Template>,
    /// Print the file instead of writing it
    #[arg(long)]
    print: bool,
}

/// What to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Template {
    /// Three jobs and a gate that run without a change
    Empty,
    /// SQL files, one job for each
    Sql,
    /// Alembic
    Alembic,
    /// dbt
    Dbt,
}

#[derive(Serialize)]
struct InitJson {
    file: &'static str,
    found: Vec<String>,
    jobs: usize,
    stages: usize,
}

/// Writes the file, and says what to do with it.
pub(crate) fn init(app: &App, args: InitArgs) -> CommandResult {
    let found = match args.template {
        None => Detected::in_folder(Path::new(".")),
        Some(Template::Empty) => Detected::default(),
        Some(Template::Alembic) => Detected { alembic: true, ..Detected::default() },
        Some(Template::Dbt) => Detected { dbt: true, ..Detected::default() },
        Some(Template::Sql) => Detected::in_folder(Path::new(".")).only_sql(),
    };
    let text = templates::text(&found);
    if args.print {
        app.print(&text)?;
        return Ok(exit::DONE);
    }
    if let Ok(there) = pipeline::locate(None) {
        return Err(exists(&there));
    }
    write_new(Path::new(FILE_NAME), &text)?;
    let plan = match parse(FILE_NAME, &text) {
        Ok(Parsed { plan, .. }) => plan,
        Err(problems) => {
            let message = format!("the file that was written has {}", problems.summary());
            let advice = "Please report it, with what is in this folder.";
            return Err(Failure::new(ErrorCode::EngineBug, message, advice));
        }
    };
    if app.output() != Output::Text {
        app.json(&InitJson {
            file: FILE_NAME,
            found: found.words(),
            jobs: plan.jobs.len(),
            stages: plan.stages.len(),
        })?;
        return Ok(exit::DONE);
    }
    let found = found.words();
    if !found.is_empty() {
        app.print(&format!("Detected {}.\n", safe(&found.join(", "))))?;
    }
    app.print(&format!("Wrote {FILE_NAME}: {}.\n\n{}", contents(&plan), next_steps(&plan)))?;
    Ok(exit::DONE)
}

fn exists(there: &Path) -> Failure {
    let message = format!("`{}` is there already, and was left as it is", there.display());
    Failure::new(
        ErrorCode::FileExists,
        message,
        "`tow plan` shows what it does; move it away to write a new one.",
    )
}

/// The file appears only where none is.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let opened = fs::OpenOptions::new().write(true).create_new(true).open(path);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        let is_there = error.kind() == io::ErrorKind::AlreadyExists;
        if is_there { exists(path) } else { Failure::file(path, &error) }
    })
}

fn next_steps(plan: &towpath_engine::plan::Plan) -> String {
    let mut secrets: Vec<&str> =
        plan.jobs.iter().flat_map(|job| &job.secrets).map(String::as_str).collect();
    secrets.sort_unstable();
    secrets.dedup();
    let mut steps = String::from("Next:\n");
    if !secrets.is_empty() {
        steps.push_str(&format!("  export {}=…   jobs need it\n", secrets.join("=… ")));
    }
    steps.push_str("  tow plan        see what would run, and in what order\n");
    steps.push_str("  tow run         run it\n");
    if Path::new(".git").exists() {
        steps.push_str("  echo .towpath/ >> .gitignore\n");
    }
    steps
}
