//! `tow validate`.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::Serialize;
use towpath_engine::code::ErrorCode;
use towpath_engine::plan::Plan;
use towpath_pipeline::{
    diagnostics::{DiagnosticJson, Diagnostics},
    file::{FILE_BYTES_MAX, Parsed, parse_bytes},
};

use super::{App, CommandResult, pipeline};
use crate::{args::Output, exit, failure::Failure, render::safe};

/// What a file from standard input is called.
const STDIN_NAME: &str = "<stdin>";

/// Check a pipeline file and show every problem
///
/// Nothing is run and no store is opened. Exit code 5 if any file has errors; warnings do not
/// change the exit code.
#[derive(Debug, clap::Args)]
pub(crate) struct ValidateArgs {
    /// The pipeline files; `-` is standard input [default: towpath.yml, towpath.yaml or
    /// pulsaride-pipeline.yml]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// One file, read and judged.
struct Judged {
    name: String,
    bytes: Vec<u8>,
    /// What it means, unless it has errors.
    plan: Option<Plan>,
    problems: Diagnostics,
}

#[derive(Serialize)]
struct FileJson<'a> {
    file: &'a str,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stages: Option<usize>,
    problems: Vec<DiagnosticJson>,
    #[serde(skip_serializing_if = "is_zero")]
    left_off: usize,
}

#[derive(Serialize)]
struct FilesJson<'a> {
    valid: bool,
    files: Vec<FileJson<'a>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Judges every file.
pub(crate) fn validate(app: &App, args: ValidateArgs) -> CommandResult {
    let mut files = args.files;
    if files.is_empty() {
        files.push(pipeline::locate(None)?);
    }
    let mut judged = Vec::with_capacity(files.len());
    for file in &files {
        judged.push(judge(file)?);
    }
    let invalid: Vec<&Judged> = judged.iter().filter(|file| file.plan.is_none()).collect();
    // All files are checked before the result: an editor shows the problems of all of them.
    let code = if invalid.is_empty() { exit::DONE } else { exit::INVALID_FILE };
    match (app.output(), judged.as_slice()) {
        (Output::Text, _) => {
            for file in &judged {
                show(app, file)?;
            }
            return if invalid.is_empty() {
                Ok(code)
            } else {
                Err(failure(&invalid, judged.len()))
            };
        }
        (Output::Json, [file]) => app.json(&file.json())?,
        (Output::Json, files) => {
            let valid = invalid.is_empty();
            app.json(&FilesJson { valid, files: files.iter().map(Judged::json).collect() })?;
        }
        (Output::Jsonl, files) => {
            for file in files {
                app.json(&file.json())?;
            }
        }
    }
    Ok(code)
}

fn judge(path: &Path) -> Result<Judged, Failure> {
    let (name, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        // One byte more than may be: the parser then says what is wrong.
        io::stdin().lock().take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        (STDIN_NAME.to_owned(), bytes)
    } else {
        (path.to_string_lossy().into_owned(), pipeline::bytes_of(path)?)
    };
    let (plan, problems) = match parse_bytes(&name, &bytes) {
        Ok(Parsed { plan, warnings }) => (Some(plan), Diagnostics::of(warnings)),
        Err(problems) => (None, problems),
    };
    Ok(Judged { name, bytes, plan, problems })
}

/// The problems go to standard error, the verdict on a good file to standard output.
fn show(app: &App, file: &Judged) -> Result<(), Failure> {
    // A file that is not UTF-8 is reported as such, with the place; it still has to be shown.
    let text = String::from_utf8_lossy(&file.bytes);
    let (colour, width) = (app.style.stderr_colour, Some(app.style.width));
    for problem in &file.problems.list {
        app.say(&format!("{}\n", problem.render(&file.name, &text, colour, width).trim_end()));
    }
    let Some(plan) = &file.plan else { return Ok(()) };
    let mut verdict = format!("{}: {}", safe(&file.name), contents(plan));
    if !file.problems.list.is_empty() {
        verdict = format!("{verdict}, {}", file.problems.summary());
    }
    app.print(&format!("{verdict}\n"))
}

/// What a plan holds, such as `9 jobs in 4 stages`.
pub(super) fn contents(plan: &Plan) -> String {
    format!("{} in {}", counted(plan.jobs.len(), "job"), counted(plan.stages.len(), "stage"))
}

/// A number of things, such as `1 job` or `2 jobs`.
pub(super) fn counted(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

fn failure(invalid: &[&Judged], of: usize) -> Failure {
    let message = match invalid {
        [file] => format!("`{}` has {}", file.name, file.problems.summary()),
        several => format!("{} of {of} files have errors", several.len()),
    };
    Failure::new(ErrorCode::FileInvalid, message, "Correct what is marked above and check again.")
}

impl Judged {
    fn json(&self) -> FileJson<'_> {
        let text = String::from_utf8_lossy(&self.bytes);
        FileJson {
            file: &self.name,
            valid: self.plan.is_some(),
            jobs: self.plan.as_ref().map(|plan| plan.jobs.len()),
            stages: self.plan.as_ref().map(|plan| plan.stages.len()),
            problems: self.problems.json(&text),
            left_off: self.problems.left_off,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_counted_as_people_count_them() {
        let plan = Plan {
            pipeline: "p".into(),
            stages: vec!["a".into(), "b".into()],
            jobs: vec![towpath_engine::plan::JobPlan::new("x", "a", "true")],
            timeout_ms: None,
        };
        assert_eq!(contents(&plan), "1 job in 2 stages");
    }
}
