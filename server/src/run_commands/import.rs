//! The run file of another tool as results of jobs.

use towpath_engine::decide::ImportedJob;
use towpath_pipeline::pulsaride_jsonl;

use crate::command_error::CommandError;

/// The jobs that `record` names, each with the last result that it has there.
pub(super) fn jobs(record: &[u8]) -> Result<Vec<ImportedJob>, CommandError> {
    let invalid = |what: String| CommandError::ImportInvalid { what };
    let text = std::str::from_utf8(record)
        .map_err(|error| invalid(format!("the record is not UTF-8: {error}")))?;
    let run = pulsaride_jsonl::parse(text);
    if let Some((line, what)) = run.problems.first() {
        return Err(invalid(format!("line {line}: {what}")));
    }
    // The parser has kept the last word on every job.
    let job = |line: pulsaride_jsonl::SeedLine| ImportedJob {
        job: line.job,
        stage: line.stage,
        result: line.status,
        started_at: line.started_at,
        finished_at: line.finished_at,
        exit_code: line.exit_code,
        error: line.error,
    };
    Ok(run.lines.into_iter().map(job).collect())
}
