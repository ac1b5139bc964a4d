//! What a plan comes to: what runs beside what, what stands in the way, and what it needs. Pure,
//! but for one look at which variables are set.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use towpath_engine::{
    ids::JobName,
    plan::{JobPlan, OnFailure, Plan, RetryOn, When},
};
use towpath_pipeline::graph::{Graph, Wave};

/// What would run. The names of the fields are stable: programs read them.
#[derive(Debug, Serialize)]
pub(super) struct PlanReport {
    pub(super) pipeline: String,
    pub(super) file: String,
    pub(super) plan_sha256: String,
    /// Jobs of the plan.
    pub(super) jobs: usize,
    /// Jobs that would run.
    pub(super) would_run: usize,
    /// Only stages in which something would run.
    pub(super) stages: Vec<Stage>,
    /// Jobs of the largest wave.
    pub(super) widest_wave: usize,
    pub(super) critical_path: Chain,
    pub(super) gates: Vec<String>,
    pub(super) points_of_no_return: Vec<String>,
    pub(super) aborting: Vec<String>,
    pub(super) locks: Vec<Lock>,
    pub(super) conditional: Vec<Conditional>,
    pub(super) retries: Vec<Retry>,
    pub(super) tags: Vec<String>,
    pub(super) secrets: Vec<Secret>,
    pub(super) timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resume: Option<Resume>,
}

/// A stage, and in which groups its jobs would run.
#[derive(Debug, Serialize)]
pub(super) struct Stage {
    pub(super) name: String,
    pub(super) waves: Vec<Vec<String>>,
}

/// The chain that a run cannot be shorter than.
#[derive(Debug, Serialize)]
pub(super) struct Chain {
    pub(super) jobs: Vec<String>,
    /// Absent without an earlier run.
    pub(super) total_ms: Option<u64>,
    pub(super) estimated_from: Option<String>,
}

/// A lock that jobs share, also with other runs.
#[derive(Debug, Serialize)]
pub(super) struct Lock {
    pub(super) name: String,
    pub(super) limit: u32,
    pub(super) jobs: Vec<String>,
}

/// A job that may be omitted.
#[derive(Debug, Serialize)]
pub(super) struct Conditional {
    pub(super) job: String,
    #[serde(rename = "if")]
    pub(super) condition: String,
}

/// A job that is retried.
#[derive(Debug, Serialize)]
pub(super) struct Retry {
    pub(super) job: String,
    pub(super) max: u32,
    pub(super) backoff_ms: u64,
    /// `exit code 7`, `timeout`, …; empty: every failure.
    pub(super) on: Vec<String>,
}

/// A variable that jobs need.
#[derive(Debug, Serialize)]
pub(super) struct Secret {
    pub(super) name: String,
    /// Whether it is set in the environment of this command. Its value is never looked at.
    pub(super) set: bool,
}

/// What a resume would keep, and whether the file still says the same.
#[derive(Debug, Serialize)]
pub(super) struct Resume {
    pub(super) run: String,
    pub(super) short_id: String,
    /// Jobs that succeeded and do not run again.
    pub(super) kept: Vec<String>,
    /// `tow resume` refuses, unless `--accept-changes` is given.
    pub(super) plan_changed: bool,
    pub(super) plan_sha256_frozen: String,
    /// Absent: the file was deleted.
    pub(super) plan_sha256_now: Option<String>,
}

impl PlanReport {
    /// What those jobs of `plan` come to that `runs` accepts.
    pub(super) fn of(
        plan: &Plan,
        runs: impl Fn(&JobName) -> bool,
        estimate_ms: impl Fn(&JobName) -> u64,
    ) -> Self {
        let jobs: Vec<JobPlan> = plan.jobs.iter().filter(|job| runs(&job.name)).cloned().collect();
        // The graph of the rest, so that a resume is estimated without the jobs that it keeps.
        let rest = Plan { jobs, ..plan.clone() };
        let graph = Graph::of(&rest);
        let waves = graph.waves();
        let path = graph.critical_path(estimate_ms);
        let named = |wanted: fn(&JobPlan) -> bool| -> Vec<String> {
            rest.jobs.iter().filter(|job| wanted(job)).map(|job| job.name.to_string()).collect()
        };
        Self {
            pipeline: plan.pipeline.clone(),
            file: String::new(),
            // Of the whole plan: that is the digest that a resume compares.
            plan_sha256: plan.digest().to_string(),
            jobs: plan.jobs.len(),
            would_run: rest.jobs.len(),
            widest_wave: waves.iter().map(|wave| wave.jobs.len()).max().unwrap_or(0),
            stages: stages(waves),
            critical_path: Chain {
                jobs: path.jobs.iter().map(ToString::to_string).collect(),
                total_ms: Some(path.total_ms),
                estimated_from: None,
            },
            gates: named(|job| job.when == When::Manual),
            points_of_no_return: graph
                .points_of_no_return()
                .iter()
                .map(ToString::to_string)
                .collect(),
            aborting: named(|job| job.on_failure == OnFailure::Abort),
            locks: locks(&rest),
            conditional: rest.jobs.iter().filter_map(conditional).collect(),
            retries: rest.jobs.iter().filter_map(retry).collect(),
            tags: set_of(&rest, |job| &job.tags),
            secrets: set_of(&rest, |job| &job.secrets).into_iter().map(secret).collect(),
            timeout_ms: plan.timeout_ms,
            resume: None,
        }
    }

    pub(super) fn in_file(mut self, file: &str) -> Self {
        file.clone_into(&mut self.file);
        self
    }

    /// Which run the estimates are from; without one they were no times at all.
    pub(super) fn estimated_from(mut self, run: Option<String>) -> Self {
        self.critical_path.total_ms =
            // An estimate of 0 would look like a promise; no estimate is shown instead.
            self.critical_path.total_ms.filter(|ms| run.is_some() && *ms > 0);
        self.critical_path.estimated_from = run;
        self
    }

    pub(super) fn resuming(mut self, resume: Resume) -> Self {
        self.resume = Some(resume);
        self
    }
}

fn stages(waves: Vec<Wave>) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for wave in waves {
        let jobs = wave.jobs.iter().map(ToString::to_string).collect();
        // Waves are in the order of the stages, so those of one stage follow each other.
        match stages.last_mut().filter(|stage| stage.name == wave.stage.as_str()) {
            Some(stage) => stage.waves.push(jobs),
            None => stages.push(Stage { name: wave.stage.to_string(), waves: vec![jobs] }),
        }
    }
    stages
}

fn locks(plan: &Plan) -> Vec<Lock> {
    let mut locks: BTreeMap<&str, Lock> = BTreeMap::new();
    for job in &plan.jobs {
        let Some(resource) = &job.resource else { continue };
        // The check of the file ensures that all jobs name the same limit.
        let lock = locks.entry(&resource.name).or_insert_with(|| Lock {
            name: resource.name.clone(),
            limit: resource.limit,
            jobs: Vec::new(),
        });
        lock.jobs.push(job.name.to_string());
    }
    locks.into_values().collect()
}

fn conditional(job: &JobPlan) -> Option<Conditional> {
    let condition = job.condition.clone()?;
    Some(Conditional { job: job.name.to_string(), condition })
}

fn retry(job: &JobPlan) -> Option<Retry> {
    let policy = job.retry.as_ref()?;
    let word = |on: &RetryOn| match on {
        RetryOn::ExitCode(code) => format!("exit code {code}"),
        RetryOn::Timeout => "timeout".to_owned(),
        RetryOn::Signal => "signal".to_owned(),
        RetryOn::Spawn => "spawn".to_owned(),
    };
    Some(Retry {
        job: job.name.to_string(),
        max: policy.max,
        backoff_ms: policy.backoff_ms,
        on: policy.on.iter().map(word).collect(),
    })
}

fn set_of(plan: &Plan, list: impl Fn(&JobPlan) -> &Vec<String>) -> Vec<String> {
    // A set: sorted, and each once. Programs compare the output of two plans.
    let all: BTreeSet<&String> = plan.jobs.iter().flat_map(list).collect();
    all.into_iter().cloned().collect()
}

fn secret(name: String) -> Secret {
    // Only whether: a plan is pasted into reviews and issues.
    let set = std::env::var_os(&name).is_some();
    Secret { name, set }
}

#[cfg(test)]
pub(super) mod tests {
    use towpath_engine::plan::{Resource, RetryPolicy};

    use super::*;

    /// Two stages with one of everything.
    pub(in super::super) fn one_of_everything() -> Plan {
        let job = |name: &str, stage: &str, needs: &[&str]| {
            let mut job = JobPlan::new(name, stage, "true");
            job.needs = needs.iter().map(|need| (*need).into()).collect();
            job
        };
        let mut plan = Plan {
            pipeline: "shop".into(),
            stages: vec!["copy".into(), "cutover".into()],
            jobs: vec![
                job("customers", "copy", &[]),
                job("products", "copy", &[]),
                job("orders", "copy", &["customers", "products"]),
                job("switch", "cutover", &["orders"]),
            ],
            timeout_ms: Some(3_600_000),
        };
        plan.jobs[0].on_failure = OnFailure::Abort;
        plan.jobs[0].secrets = vec!["TOW_TEST_NEVER_SET".into()];
        plan.jobs[1].resource = Some(Resource { name: "target".into(), limit: 2 });
        plan.jobs[1].condition = Some("matrix.x == 1".into());
        plan.jobs[1].tags = vec!["eu".into()];
        plan.jobs[2].retry = Some(RetryPolicy {
            max: 3,
            backoff_ms: 1_000,
            factor_percent: 200,
            backoff_max_ms: 60_000,
            jitter_percent: 20,
            on: vec![RetryOn::ExitCode(7), RetryOn::Timeout],
        });
        plan.jobs[3].when = When::Manual;
        plan.jobs[3].irreversible = true;
        plan
    }

    #[test]
    fn everything_that_is_special_is_listed() {
        let outlook = PlanReport::of(&one_of_everything(), |_| true, |_| 1).estimated_from(None);

        assert_eq!((outlook.jobs, outlook.would_run, outlook.widest_wave), (4, 4, 2));
        assert_eq!(outlook.stages[0].waves, [vec!["customers", "products"], vec!["orders"]]);
        assert_eq!(outlook.gates, ["switch"]);
        assert_eq!(outlook.points_of_no_return, ["switch"]);
        assert_eq!(outlook.aborting, ["customers"]);
        assert_eq!((outlook.locks[0].limit, outlook.locks[0].jobs.len()), (2, 1));
        assert_eq!(outlook.conditional[0].condition, "matrix.x == 1");
        assert_eq!(outlook.retries[0].on, ["exit code 7", "timeout"]);
        assert_eq!(outlook.critical_path.total_ms, None);
        assert!(!outlook.secrets[0].set);
    }

    #[test]
    fn succeeded_jobs_block_no_other_job() {
        let took = |job: &JobName| if job.as_str() == "orders" { 7 } else { 1 };
        let outlook = PlanReport::of(&one_of_everything(), |job| job.as_str() > "d", took);

        assert_eq!((outlook.jobs, outlook.would_run), (4, 3));
        assert_eq!(outlook.critical_path.jobs, ["products", "orders", "switch"]);
        assert_eq!(outlook.critical_path.total_ms, Some(9));
    }

    #[test]
    fn nothing_left_is_no_stage() {
        let outlook = PlanReport::of(&one_of_everything(), |_| false, |_| 0);
        assert_eq!((outlook.would_run, outlook.stages.len(), outlook.widest_wave), (0, 0, 0));
        assert_eq!(outlook.critical_path.jobs, Vec::<String>::new());
    }
}
