//! `tow import`.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Serialize;
use towpath_engine::code::ErrorCode;
use towpath_engine::event::ImportedResult;
use towpath_pipeline::pulsaride_jsonl::{self, SeedRun};
use towpath_proto::v1;

use super::{App, CommandResult, pipeline, validate::counted};
use crate::{
    args::{Output, WhichFile},
    connect::{ServerConnection, is_new_store},
    embedded, exit,
    failure::Failure,
    render::safe,
};

/// Largest record, in bytes: what one request carries.
const RECORD_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Problems that are shown of a record that cannot be used.
const PROBLEMS_SHOWN_MAX: usize = 10;

/// Import the JSONL run file of another tool
///
/// The record becomes a run of the pipeline file: a `DONE` job is recorded as succeeded and does
/// not run again, `tow resume` runs the rest. Of several lines about a job the last one is used. A
/// truncated last line is ignored with a warning; for any other damage the whole record is refused.
#[derive(Debug, clap::Args)]
pub(crate) struct ImportArgs {
    /// The record, one JSON object after the other; `-` is standard input
    record: PathBuf,
    #[command(flatten)]
    file: WhichFile,
}

#[derive(Serialize)]
struct ImportJson {
    run: String,
    short_id: String,
    /// The run's id in the record.
    recorded_run: String,
    jobs: usize,
    succeeded: usize,
    failed: usize,
    skipped: usize,
    /// The line at which the record is cut off.
    torn_tail: Option<usize>,
}

/// Makes a run out of a record.
pub(crate) async fn import(app: &App, args: ImportArgs) -> CommandResult {
    let path = pipeline::locate(args.file.file.as_deref())?;
    let bytes = record_of(&args.record)?;
    // Checked here as well as in the server, so that all problems are shown with their lines.
    let record = understood(&args.record, &bytes)?;
    let pipeline = pipeline::read(app, &path)?;
    if let Some(line) = record.torn_tail {
        app.say(&format!("warning: line {line} of the record is truncated and was ignored."));
    }
    let request = v1::ImportRunRequest {
        file: Some(pipeline.message()),
        record: bytes.into(),
        actor: app.actor(),
    };
    let url = app.url();
    if is_new_store(&url) {
        // What is refused leaves nothing behind, and opening would make a store.
        embedded::check_import_run(request.clone()).await?;
    }
    let server = ServerConnection::connect(&url).await?;
    let imported = server.runs().import_run(request).await;
    server.close().await;
    let run = imported?.into_inner().run.unwrap_or_default();
    report(app, &run, &record, pipeline.plan.jobs.len())?;
    Ok(exit::DONE)
}

fn record_of(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: io::Error| Failure::file(path, &error);
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file of exactly the bound from a larger one.
    let mut take = |from: &mut dyn Read| from.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes);
    if path == Path::new("-") {
        take(&mut io::stdin().lock()).map_err(failed)?;
    } else {
        take(&mut fs::File::open(path).map_err(failed)?).map_err(failed)?;
    }
    if bytes.len() as u64 > RECORD_BYTES_MAX {
        return Err(Failure::new(
            ErrorCode::ArgumentOutOfBounds,
            format!("`{}` is larger than {RECORD_BYTES_MAX} bytes", path.display()),
            "Keep only the last line of every job.",
        ));
    }
    Ok(bytes)
}

/// The record, if all of it can be used.
fn understood(path: &Path, bytes: &[u8]) -> Result<SeedRun, Failure> {
    let name = path.display();
    let invalid = |message: String| {
        Failure::new(ErrorCode::ImportInvalid, message, "Correct the record; nothing was imported.")
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| invalid(format!("`{name}` is not UTF-8: {error}")))?;
    let record = pulsaride_jsonl::parse(text);
    if !record.problems.is_empty() {
        let mut message =
            format!("`{name}` has {}", counted(record.problems.len(), "unusable line"));
        for (line, what) in record.problems.iter().take(PROBLEMS_SHOWN_MAX) {
            message = format!("{message}; line {line}: {what}");
        }
        return Err(invalid(message));
    }
    if record.lines.is_empty() {
        return Err(invalid(format!("`{name}` says nothing about any job")));
    }
    Ok(record)
}

fn report(app: &App, run: &v1::Run, record: &SeedRun, jobs: usize) -> Result<(), Failure> {
    let count = |result| record.lines.iter().filter(|line| line.status == result).count();
    let succeeded = count(ImportedResult::Succeeded);
    let failed = count(ImportedResult::Failed);
    let skipped = count(ImportedResult::Skipped);
    if app.output() != Output::Text {
        return app.json(&ImportJson {
            run: run.id.clone(),
            short_id: run.short_id.clone(),
            recorded_run: record.run_id.clone(),
            jobs,
            succeeded,
            failed,
            skipped,
            torn_tail: record.torn_tail,
        });
    }
    let dot = app.style.dot();
    app.print(&format!(
        "run {}  {} {dot} {succeeded} done {dot} {failed} failed {dot} {skipped} skipped\n",
        run.id,
        safe(&run.pipeline),
    ))?;
    let rest = jobs - succeeded;
    if rest > 0 {
        let rest = counted(rest, "job");
        app.say(&format!("`tow resume {}` runs the rest ({rest}).", run.short_id));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        understood(Path::new("runs.jsonl"), text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_record_is_used_whole_or_not_at_all() {
        let line = r#"{"pipeline_run_id":"r","job":"a","stage":"s","status":"DONE"}"#;
        let record = understood(Path::new("r"), format!("{line}\n{{\"pipe").as_bytes()).unwrap();
        assert_eq!((record.lines.len(), record.torn_tail), (1, Some(2)));

        let odd = refused(&format!("{}\n{line}\n", line.replace("DONE", "FINE")));
        assert!(odd.contains("`runs.jsonl` has 1 unusable line; line 1: "), "{odd}");
        assert!(refused("\n").contains("says nothing about any job"));
    }
}
