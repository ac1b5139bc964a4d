//! The run files of the *File-Driven Migration Pipeline* format: one JSON object per transition
//! of a job, appended as the run continues.
//!
//! They are read to take over a run that another tool began, and written for those who want them.
//! A file whose last object is cut off was being written when its machine died; that is reported
//! and the rest is used. Any other damage is an error with its line.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::diagnostics::shown;
use towpath_engine::{
    event::ImportedResult,
    ids::{JobName, StageName},
    time::Timestamp,
};

/// Most objects of one file. Source: a few transitions for each job of the largest plan.
pub const LINES_MAX: usize = 1_000_000;
/// Most problems that are listed.
const PROBLEMS_MAX: usize = 100;

/// One transition of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeedLine {
    /// The run it belongs to.
    pub pipeline_run_id: String,
    /// The job.
    pub job: JobName,
    /// Its stage.
    pub stage: StageName,
    /// How it ended.
    #[serde(serialize_with = "write_status")]
    pub status: ImportedResult,
    /// When it began. Failed jobs often do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// The exit code of its script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// What went wrong, in that tool's words. May be empty.
    pub error: String,
}

/// An object as in the file. Unknown keys are kept: the format is
/// not ours to freeze.
#[derive(Deserialize)]
struct Written {
    pipeline_run_id: String,
    job: String,
    stage: String,
    status: String,
    #[serde(default, deserialize_with = "moment")]
    started_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "moment")]
    finished_at: Option<Timestamp>,
    #[serde(default)]
    exit_code: Option<i32>,
    #[serde(default)]
    error: Option<String>,
}

/// A run file as far as it could be understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeedRun {
    /// The run that the file is about. Empty if it holds nothing.
    pub run_id: String,
    /// The last word on every job, in the order in which the jobs first appear.
    pub lines: Vec<SeedLine>,
    /// The line at which the last object begins, if it is cut off.
    pub torn_tail: Option<usize>,
    /// What cannot be used, with the line it begins at. Empty, or the file should not be imported.
    pub problems: Vec<(usize, String)>,
}

/// Reads a run file. Objects may span lines, or share one.
pub fn parse(text: &str) -> SeedRun {
    let mut run = SeedRun::default();
    let mut places: BTreeMap<JobName, usize> = BTreeMap::new();
    let mut lines = Lines { text, counted: 0, line: 1 };
    let mut rest = start(text);
    let mut objects = 0;
    // Bounded, because a wrong file has a problem on each of a million lines.
    while rest < text.len() && run.problems.len() < PROBLEMS_MAX {
        objects += 1;
        let line = lines.at(rest);
        if objects > LINES_MAX {
            run.problems.push((line, format!("the file has more than {LINES_MAX} objects")));
            break;
        }
        // A new deserializer for each object: after an error it would not continue, and all
        // problems are to be shown.
        let mut stream = serde_json::Deserializer::from_str(&text[rest..]).into_iter();
        match stream.next() {
            Some(Ok(value)) => {
                rest += stream.byte_offset();
                match understood(value, &run.run_id) {
                    Ok(seed) => keep(&mut run, &mut places, seed),
                    Err(why) => run.problems.push((line, why)),
                }
            }
            Some(Err(error)) if error.is_eof() => {
                // The other tool died while it wrote this object. Refusing the file would lose a
                // record that is good up to here.
                run.torn_tail = Some(line);
                break;
            }
            Some(Err(error)) => {
                // What is damaged ends where the next line with an object begins.
                let next = text[rest..].find("\n{").map(|at| rest + at + 1);
                // The last object may also be damaged in its middle, when a file system filled the
                // lost end with zero bytes.
                if next.is_none() && is_cut_off(&text[rest..]) {
                    run.torn_tail = Some(line);
                    break;
                }
                run.problems.push((line, format!("not JSON: {}", without_place(&error))));
                rest = next.unwrap_or(text.len());
            }
            None => break,
        }
        // Objects may be separated by any white space, also by none.
        rest += text[rest..].len() - text[rest..].trim_start().len();
    }
    run
}

fn start(text: &str) -> usize {
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.len() - body.trim_start().len()
}

/// Whether a last line was never finished: it has no line end, or zero bytes fill it up, as some
/// file systems leave them after a power cut.
fn is_cut_off(tail: &str) -> bool {
    tail.trim_end_matches(['\n', '\r']).ends_with('\0') || !tail.ends_with('\n')
}

fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    shown(text.split(" at line ").next().unwrap_or_default())
}

fn understood(value: serde_json::Value, run_id: &str) -> Result<SeedLine, String> {
    let written: Written = serde_json::from_value(value).map_err(|error| without_place(&error))?;
    let status = match written.status.as_str() {
        "DONE" => ImportedResult::Succeeded,
        "FAILED" => ImportedResult::Failed,
        "SKIPPED" => ImportedResult::Skipped,
        other => {
            let other = shown(other);
            return Err(format!("the status is `DONE`, `FAILED` or `SKIPPED`, not `{other}`"));
        }
    };
    // An empty id would match the marker for "no run yet" below.
    if written.job.is_empty() || written.pipeline_run_id.is_empty() {
        return Err("`job` and `pipeline_run_id` cannot be empty".to_owned());
    }
    // Two runs in one file would be merged into a state that never existed.
    if !run_id.is_empty() && run_id != written.pipeline_run_id {
        let (this, other) = (shown(run_id), shown(&written.pipeline_run_id));
        return Err(format!("the file is about run `{this}`, and this about `{other}`"));
    }
    Ok(SeedLine {
        pipeline_run_id: written.pipeline_run_id,
        job: written.job.into(),
        stage: written.stage.into(),
        status,
        started_at: written.started_at,
        finished_at: written.finished_at,
        exit_code: written.exit_code,
        error: written.error.unwrap_or_default(),
    })
}

fn keep(run: &mut SeedRun, places: &mut BTreeMap<JobName, usize>, line: SeedLine) {
    if run.run_id.is_empty() {
        run.run_id.clone_from(&line.pipeline_run_id);
    }
    match places.get(&line.job) {
        // The last line about a job is its newest state. Its place stays that of the first, so that
        // the order is that of the run.
        Some(place) => run.lines[*place] = line,
        None => {
            places.insert(line.job.clone(), run.lines.len());
            run.lines.push(line);
        }
    }
}

/// Counts lines once over the whole text.
struct Lines<'t> {
    text: &'t str,
    counted: usize,
    line: usize,
}

impl Lines<'_> {
    fn at(&mut self, offset: usize) -> usize {
        let newlines = self.text[self.counted..offset].bytes().filter(|byte| *byte == b'\n');
        self.line += newlines.count();
        // Counted from the last place on: counting from the start each time would be quadratic in a
        // file of a million lines.
        self.counted = offset;
        self.line
    }
}

/// Writes a run file, one object a line.
pub fn write(lines: &[SeedLine]) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str(&serde_json::to_string(line).expect("BUG: a seed line is always JSON"));
        text.push('\n');
    }
    text
}

/// The word for a result.
pub fn status_word(result: ImportedResult) -> &'static str {
    match result {
        ImportedResult::Succeeded => "DONE",
        ImportedResult::Failed => "FAILED",
        ImportedResult::Skipped => "SKIPPED",
    }
}

fn write_status<S: serde::Serializer>(result: &ImportedResult, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(status_word(*result))
}

/// A moment, or nothing where it is missing, null or empty.
fn moment<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let text: Option<String> = Option::deserialize(from)?;
    match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => match Timestamp::parse(text) {
            Some(moment) => Ok(Some(moment)),
            None => Err(serde::de::Error::custom(format!("`{}` is not a valid time", shown(text)))),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PRINTED: &str = r#"{"pipeline_run_id":"abc123","job":"migrate-customers","stage":"migrate",
 "status":"DONE","started_at":"2026-04-07T14:00:00Z","finished_at":"2026-04-07T14:12:33Z",
 "exit_code":0,"error":""}
{"pipeline_run_id":"abc123","job":"migrate-orders","stage":"migrate",
 "status":"FAILED","finished_at":"2026-04-07T14:15:01Z","exit_code":1,"error":"exit code 1"}
"#;

    fn line(run: &str, job: &str, status: &str) -> String {
        format!(r#"{{"pipeline_run_id":"{run}","job":"{job}","stage":"s","status":"{status}"}}"#)
    }

    #[test]
    fn objects_over_several_lines_are_read() {
        let run = parse(PRINTED);

        assert_eq!(run.problems, []);
        assert_eq!((run.run_id.as_str(), run.torn_tail), ("abc123", None));
        let failed = &run.lines[1];
        assert_eq!(failed.status, ImportedResult::Failed);
        assert_eq!((failed.started_at, failed.exit_code), (None, Some(1)));
        assert_eq!(failed.error, "exit code 1");
        assert_eq!(run.lines[0].started_at, Timestamp::parse("2026-04-07T14:00:00Z"));
    }

    #[test]
    fn what_is_written_reads_back() {
        let run = parse(PRINTED);
        let text = write(&run.lines);
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with(r#"{"pipeline_run_id":"abc123","job":"migrate-customers","#));
        assert_eq!(parse(&text), run);
    }

    #[test]
    fn the_last_word_on_a_job_counts() {
        let text = [line("r", "a", "FAILED"), line("r", "b", "SKIPPED"), line("r", "a", "DONE")];
        let run = parse(&text.concat());
        assert_eq!(run.lines.len(), 2);
        assert_eq!(run.lines[0].status, ImportedResult::Succeeded);
    }

    #[test]
    fn a_torn_tail_is_reported_wherever_it_is_torn() {
        let whole = format!("{}\n{}\n", line("r", "a", "DONE"), line("r", "b", "DONE"));
        let first = line("r", "a", "DONE").len() + 1;
        for cut in first + 1..whole.len() - 1 {
            let run = parse(&whole[..cut]);
            assert_eq!((run.lines.len(), run.torn_tail), (1, Some(2)), "{}", &whole[..cut]);
            assert_eq!(run.problems, []);
        }
        assert_eq!(parse(&format!("{whole}\0\0\0\n")).torn_tail, Some(3));
        assert_eq!(parse(&whole).torn_tail, None);
    }

    #[test]
    fn damage_in_the_middle_is_an_error_with_its_line() {
        let good = line("r", "a", "DONE");
        let text =
            format!("{good}\n{{\"pipeline_run_id\": oops\n{good}\n{}\n", line("r", "b", "OK"));
        let run = parse(&text);
        let places: Vec<usize> = run.problems.iter().map(|(line, _)| *line).collect();
        assert_eq!(places, [2, 4]);
        assert!(run.problems[1].1.contains("not `OK`"), "{:?}", run.problems);
        assert_eq!(run.torn_tail, None);
    }

    #[test]
    fn runs_are_not_mixed_and_fields_are_needed() {
        let run = parse(&format!("{}\n{}\n", line("r", "a", "DONE"), line("x", "b", "DONE")));
        assert!(run.problems[0].1.contains("run `r`, and this about `x`"));
        for bad in ["{}", "[1]", "3", "\"x\"", "null", "{\"job\":1}"] {
            assert_eq!(parse(&format!("{bad}\n")).problems.len(), 1, "{bad}");
        }
        let moment = line("r", "a", "DONE").replace("\"s\"", "\"s\",\"started_at\":\"noon\"");
        assert!(parse(&moment).problems[0].1.contains("`noon` is not a valid time"));
    }

    #[test]
    fn an_empty_file_is_an_empty_run() {
        for text in ["", "\n\n", "\u{feff} "] {
            assert_eq!(parse(text), SeedRun::default());
        }
    }

    #[test]
    fn a_flood_of_problems_ends() {
        let run = parse(&"{\"a\":1}\n".repeat(5_000));
        assert_eq!(run.problems.len(), PROBLEMS_MAX);
    }

    proptest! {
        #[test]
        fn a_file_of_anything_is_survived(
            at in 0_usize..600, junk in "[ -~\n\0é{}\"]{0,12}",
        ) {
            let at = PRINTED.floor_char_boundary(at.min(PRINTED.len()));
            let text = format!("{}{junk}{}", &PRINTED[..at], &PRINTED[at..]);
            let _ = parse(&text);
            let _ = parse(&junk);
        }
    }
}
