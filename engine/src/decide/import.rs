//! `tow import`: the record of another tool becomes a run that can be resumed here.

use std::collections::{HashMap, HashSet};

use super::create::{self, CreateRun};
use crate::{
    event::{ImportedResult, RunEvent},
    ids::{JobName, StageName},
    plan::{JobPlan, When},
    refusal::Refusal,
    run::Run,
    time::Timestamp,
};

/// One job's result, as recorded.
#[derive(Clone, Debug)]
pub struct ImportedJob {
    /// The job.
    pub job: JobName,
    /// Its stage.
    pub stage: StageName,
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
    // The record is one append with the run it makes: a crash between the two would leave an empty
    // run behind.
    let mut events = create::decide(run, &import.create, now)?;
    let by_name: HashMap<_, _> = plan.jobs.iter().map(|job| (&job.name, job)).collect();
    let mut seen = HashSet::new();
    for imported in &import.jobs {
        // A job that is in another stage now is not the one that was recorded: what ran before it
        // then may come after it now.
        let job = by_name.get(&imported.job).filter(|job| job.stage == imported.stage);
        let Some(job) = job else {
            let (job, stage) = (imported.job.clone(), imported.stage.clone());
            return Err(Refusal::ImportMismatch { job, stage });
        };
        // The reader of the record keeps the last line of each job. Two here are from another
        // client, and choosing one would be a guess.
        if !seen.insert(&imported.job) {
            let what = "the record of a job";
            let bounds = format!("given once, and `{}` comes twice", imported.job);
            return Err(Refusal::ArgumentOutOfBounds { what, bounds });
        }
        if imported.result == ImportedResult::Succeeded
            && let Some(gate) = gate_before(job, &by_name)
        {
            let (job, gate) = (imported.job.clone(), gate.name.clone());
            return Err(Refusal::ImportPassesGate { job, gate });
        }
        let ImportedJob { job, stage: _, result, started_at, finished_at, exit_code, error } =
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

/// The gate that `job` has itself, or that one of the jobs it needs has, however indirectly.
///
/// A record of another tool is a file that anyone can write. A result in it must not stand for
/// what a person of this store would have had to allow: neither for the gated job, nor for a job
/// behind it, whose success would let through what needs it.
fn gate_before<'p>(
    job: &'p JobPlan,
    by_name: &HashMap<&JobName, &'p JobPlan>,
) -> Option<&'p JobPlan> {
    let (mut open, mut seen) = (vec![job], HashSet::new());
    // Iterative, with the jobs seen: a chain of 100,000 needs would overflow the stack of a
    // recursion.
    while let Some(next) = open.pop() {
        if next.when == When::Manual {
            return Some(next);
        }
        let needs = next.needs.iter().filter_map(|need| by_name.get(need));
        open.extend(needs.filter(|need| seen.insert(&need.name)));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::{Command, carry_out, testing::*},
        job::JobState,
    };

    fn imported(job: &str, result: ImportedResult) -> ImportedJob {
        ImportedJob {
            job: job.into(),
            stage: "main".into(),
            result,
            started_at: None,
            finished_at: None,
            exit_code: None,
            error: String::new(),
        }
    }

    #[test]
    fn a_record_of_a_job_in_another_stage_is_refused() {
        let create = creation(vec![job("a")]);
        let mut record = imported("a", ImportedResult::Succeeded);
        record.stage = "other".into();

        let import = Command::Import(ImportRun { create, jobs: vec![record] });

        let refusal = Fixture::empty().refused(&import);
        assert_eq!(refusal.code().as_str(), "IMPORT_MISMATCH");
        assert!(refusal.to_string().contains("job `a` of stage `other`"), "{refusal}");
    }

    #[test]
    fn an_imported_run_continues_after_finished_jobs() {
        let create = creation(vec![job("a"), needing(job("b"), "a")]);
        let jobs = vec![imported("a", ImportedResult::Succeeded)];
        let mut fixture = Fixture::empty();

        fixture.carries_out(&Command::Import(ImportRun { create, jobs }));

        assert_eq!(fixture.leases().as_deref(), Some("b"));
    }

    #[test]
    fn an_imported_result_never_passes_a_gate() {
        let plan = || {
            let ask = gated(needing(job("ask"), "check"));
            let copy = needing(needing(job("copy"), "ask"), "check");
            creation(vec![job("check"), ask, copy, needing(job("switch"), "copy")])
        };
        let import = |jobs: &[(&str, ImportedResult)]| {
            let jobs = jobs.iter().map(|(job, result)| imported(job, *result)).collect();
            Command::Import(ImportRun { create: plan(), jobs })
        };
        use ImportedResult::{Failed, Skipped, Succeeded};

        for passes in ["ask", "copy", "switch"] {
            let import = import(&[("check", Succeeded), (passes, Succeeded)]);
            assert_eq!(
                Fixture::empty().refused(&import).code().as_str(),
                "IMPORT_PASSES_GATE",
                "{passes}"
            );
        }

        let mut stage = Fixture::empty();
        stage.carries_out(&import(&[("check", Succeeded), ("switch", Failed)]));
        assert!(matches!(stage.run.job("ask").unwrap().state, JobState::AtGate(_)));
        assert_eq!(stage.leases(), None, "nothing runs before a person opens the gate");
        for result in [Failed, Skipped] {
            let mut stage = Fixture::empty();
            stage.carries_out(&import(&[("check", Succeeded), ("ask", result)]));
            assert_eq!(stage.run.job("switch").unwrap().state, JobState::Skipped);
        }
    }

    #[test]
    fn a_job_has_one_result() {
        let create = creation(vec![job("a")]);
        let twice = [ImportedResult::Failed, ImportedResult::Succeeded];
        let jobs = twice.map(|result| imported("a", result)).to_vec();

        let refused = Fixture::empty().refused(&Command::Import(ImportRun { create, jobs }));

        assert_eq!(refused.code().as_str(), "ARGUMENT_OUT_OF_BOUNDS");
    }

    #[test]
    fn an_imported_run_has_the_time_that_a_new_one_has() {
        let mut create = creation(vec![job("a")]);
        create.plan.timeout_ms = Some(60_000);
        let mut fixture = Fixture::empty();

        fixture.carries_out(&Command::Import(ImportRun { create, jobs: Vec::new() }));

        assert_eq!(fixture.run.next_due(fixture.now), Some(fixture.now.plus_ms(60_000)));
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
