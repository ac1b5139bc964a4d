//! `tow export`.

use std::path::PathBuf;

use towpath_engine::event::ImportedResult;
use towpath_pipeline::pulsaride_jsonl::{self, SeedLine};
use towpath_proto::v1::{self, JobState};

use super::{
    App, CommandResult,
    status::{self, Read},
    validate::counted,
};
use crate::{
    args::WhichRun,
    at::{AtArg, as_of_line},
    atomic_file::replace_file,
    exit,
    failure::Failure,
    render::{board, words::moment},
};

/// Write a run as a JSONL run file
///
/// One line for each job that has ended, in file order: `DONE`, `FAILED` or `SKIPPED`. Jobs that
/// were cancelled or rejected are `SKIPPED`, and `error` says why. `tow import` reads it back.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    run: WhichRun,
    #[command(flatten)]
    at: AtArg,
    /// Write to this file, replacing it [default: standard output]
    #[arg(short = 'o', long = "to-file", value_name = "FILE")]
    to_file: Option<PathBuf>,
}

/// Writes what has ended.
pub(crate) async fn export(app: &App, args: ExportArgs) -> CommandResult {
    let server = app.server().await?;
    let read = match server.run(&args.run.run).await {
        Ok(run) => status::read(&server, &run.id, v1::JobView::Basic, args.at).await,
        Err(failure) => Err(failure),
    };
    server.close().await;
    let Read { run, jobs, as_of } = read?;
    if let Some(as_of) = &as_of {
        app.say(&as_of_line(as_of));
    }
    let lines = lines_of(&run.id, &jobs);
    let text = pulsaride_jsonl::write(&lines);
    let Some(path) = args.to_file else {
        app.print(&text)?;
        return Ok(exit::DONE);
    };
    replace_file(&path, text.as_bytes()).map_err(|error| Failure::file(&path, &error))?;
    let open = jobs.len() - lines.len();
    let mut said = format!("Wrote {} to `{}`.", counted(lines.len(), "job"), path.display());
    if open > 0 {
        said = format!("{said} {} not ended yet and omitted.", have(open));
    }
    app.say(&said);
    Ok(exit::DONE)
}

fn have(count: usize) -> String {
    if count == 1 { "1 job has".to_owned() } else { format!("{count} jobs have") }
}

/// A line for each job that has ended.
fn lines_of(run: &str, jobs: &[v1::Job]) -> Vec<SeedLine> {
    jobs.iter().filter_map(|job| line_of(run, job)).collect()
}

fn line_of(run: &str, job: &v1::Job) -> Option<SeedLine> {
    let status = match job.state() {
        JobState::Succeeded => ImportedResult::Succeeded,
        JobState::Failed | JobState::TimedOut => ImportedResult::Failed,
        JobState::Skipped | JobState::Cancelled | JobState::Rejected => ImportedResult::Skipped,
        JobState::Unspecified
        | JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::AtGate
        | JobState::Approved
        | JobState::Running
        | JobState::BackingOff
        | JobState::Requeued => return None,
    };
    let line = SeedLine {
        pipeline_run_id: run.to_owned(),
        job: job.name.as_str().into(),
        stage: job.stage.as_str().into(),
        status,
        started_at: moment(job.leased_at.as_ref()),
        finished_at: moment(job.since.as_ref()),
        // A job that was skipped or ended with its run may have failed before: that is not its end.
        exit_code: job.exit_code.filter(|_| status != ImportedResult::Skipped),
        error: board::note(job).trim_end().to_owned(),
    };
    // What another tool recorded goes out as it came in.
    Some(match &job.imported {
        Some(imported) => SeedLine {
            started_at: moment(imported.started_at.as_ref()),
            finished_at: moment(imported.finished_at.as_ref()),
            exit_code: imported.exit_code,
            error: imported.error.clone(),
            ..line
        },
        None => line,
    })
}

#[cfg(test)]
mod tests {
    use towpath_engine::{
        decide::{Command, CreateRun, ImportRun, ImportedJob, carry_out},
        ids::{Actor, Digest},
        plan::{JobPlan, Plan},
        run::Run,
        time::Timestamp,
    };

    use towpath_wire::views;

    use super::*;

    const RECORD: &str = r#"{"pipeline_run_id":"old","job":"a","stage":"s","status":"DONE","started_at":"2026-04-07T14:00:00.000Z","finished_at":"2026-04-07T14:12:33.000Z","exit_code":0,"error":""}
{"pipeline_run_id":"old","job":"b","stage":"s","status":"FAILED","finished_at":"2026-04-07T14:15:01.000Z","exit_code":1,"error":"exit code 1"}
"#;

    fn imported() -> Run {
        let create = CreateRun {
            run: "new".into(),
            file: "towpath.yml".into(),
            folder: "/srv".into(),
            file_sha256: Digest([0; 32]),
            plan: Plan {
                pipeline: "p".into(),
                stages: vec!["s".into()],
                jobs: ["a", "b", "c"].map(|name| JobPlan::new(name, "s", "true")).into(),
                timeout_ms: None,
            },
            parallelism: 1,
            gates_preapproved: false,
            traceparent: None,
            idempotency_key: None,
            source: None,
            requester: towpath_engine::gate::Identity::default(),
            authors: None,
        };
        let job = |line: SeedLine| ImportedJob {
            job: line.job,
            stage: line.stage,
            result: line.status,
            started_at: line.started_at,
            finished_at: line.finished_at,
            exit_code: line.exit_code,
            error: line.error,
        };
        let jobs = pulsaride_jsonl::parse(RECORD).lines.into_iter().map(job).collect();
        let mut run = Run::default();
        let import = Command::Import(ImportRun { create, jobs });
        carry_out(&mut run, &import, &Actor::human("ana"), Timestamp(9)).unwrap();
        run
    }

    fn lines() -> Vec<SeedLine> {
        let run = imported();
        let jobs: Vec<v1::Job> =
            run.jobs().iter().map(|job| views::job(&run, job, v1::JobView::Basic)).collect();
        lines_of("new", &jobs)
    }

    #[test]
    fn what_was_imported_goes_out_as_it_came_in() {
        let text = pulsaride_jsonl::write(&lines());
        assert_eq!(text, RECORD.replace("\"old\"", "\"new\""));
    }

    #[test]
    fn what_has_not_ended_is_left_out() {
        let run = imported();
        assert_eq!((run.jobs().len(), lines().len()), (3, 2));
    }
}
