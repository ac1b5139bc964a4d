//! `tow import`: the record of another tool becomes a run that can be resumed here.

use super::create::{self, CreateRun};
use crate::{
    event::{ImportedResult, RunEvent},
    ids::JobName,
    refusal::Refusal,
    run::Run,
    time::Timestamp,
};

/// One job's result, as recorded.
#[derive(Clone, Debug)]
pub struct ImportedJob {
    /// The job.
    pub job: JobName,
    /// Its result.
    pub result: ImportedResult,
    /// When it began, if the record says so.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The exit code, if the record says so.
    pub exit_code: Option<i32>,
    /// What went wrong, in the record's words.
    pub error: String,
}

/// Take over another tool's record.
#[derive(Clone, Debug)]
pub struct ImportRun {
    /// The run that the record becomes.
    pub create: CreateRun,
    /// What the record says, at most one result for each job.
    pub jobs: Vec<ImportedJob>,
}

pub(super) fn decide(
    run: &Run,
    import: &ImportRun,
    now: Timestamp,
) -> Result<Vec<RunEvent>, Refusal> {
    let plan = &import.create.plan;
    let mut events = create::decide(run, &import.create, now)?;
    let names: std::collections::HashSet<_> = plan.jobs.iter().map(|job| &job.name).collect();
    for imported in &import.jobs {
        if !names.contains(&imported.job) {
            return Err(Refusal::ImportMismatch { job: imported.job.clone() });
        }
        let ImportedJob { job, result, started_at, finished_at, exit_code, error } =
            imported.clone();
        events.push(RunEvent::JobImported {
            job,
            result,
            started_at,
            finished_at,
            exit_code,
            error,
        });
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Command, carry_out, stage_set::*};

    fn imported(job: &str, result: ImportedResult) -> ImportedJob {
        ImportedJob {
            job: job.into(),
            result,
            started_at: None,
            finished_at: None,
            exit_code: None,
            error: String::new(),
        }
    }

    #[test]
    fn an_imported_run_goes_on_after_what_is_done() {
        let create = creation(vec![job("a"), needing(job("b"), "a")]);
        let jobs = vec![imported("a", ImportedResult::Succeeded)];
        let mut house = Stage::empty();

        house.carries_out(&Command::Import(ImportRun { create, jobs }));

        assert_eq!(house.leases().as_deref(), Some("b"));
    }

    #[test]
    fn an_imported_run_has_the_time_that_a_new_one_has() {
        let mut create = creation(vec![job("a")]);
        create.plan.timeout_ms = Some(60_000);
        let mut house = Stage::empty();

        house.carries_out(&Command::Import(ImportRun { create, jobs: Vec::new() }));

        assert_eq!(house.run.next_due(house.now), Some(house.now.plus_ms(60_000)));
    }

    #[test]
    fn a_record_of_another_pipeline_is_refused() {
        let create = creation(vec![job("a")]);
        let jobs = vec![imported("elsewhere", ImportedResult::Failed)];
        let import = Command::Import(ImportRun { create, jobs });

        let refused = carry_out(&mut Run::default(), &import, &ana(), Timestamp(0)).unwrap_err();

        assert!(refused.to_string().contains("elsewhere"));
    }
}
