//! A plan: what a pipeline file means, resolved and frozen. A run carries its plan in its first
//! events, so that an edit of the file never changes a run that has begun.
//!
//! How a file becomes a plan is in `pipeline_file`; how a plan becomes work is in `run`.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    gate::GatePolicy,
    ids::{Digest, JobName, StageName},
};

/// Most jobs of one plan, after matrices are expanded.
pub const JOBS_MAX: usize = 200_000;
/// Most bytes of one plan, as JSON, matrices expanded. Source: a plan is written in one append of
/// 32 MiB, and 200,000 small jobs take half of that. Counted before jobs are multiplied: a file of
/// 35 KB can mean 200,000 jobs of 32 KB each.
pub const PLAN_BYTES_MAX: usize = 30 * 1024 * 1024;
/// Longest script of one job, in bytes: half of what an event can carry.
pub const SCRIPT_BYTES_MAX: usize = 32 * 1024;
/// Most attempts that a `retry` may ask for. Source: a bound so that a typo cannot loop for a year.
pub const RETRIES_MAX: u32 = 100;

/// Everything a run will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What people call the pipeline: the `name:` of the file, or its file name.
    pub pipeline: String,
    /// The stages in order. Each is a barrier for the next.
    pub stages: Vec<StageName>,
    /// The jobs in file order, matrices expanded.
    pub jobs: Vec<JobPlan>,
    /// The whole run ends after this many milliseconds. `None`: no limit.
    pub timeout_ms: Option<u64>,
}

impl Plan {
    /// The digest that approvals and resumes are bound to: over everything that is planned.
    pub fn digest(&self) -> Digest {
        #[derive(Serialize)]
        // Without the name of the pipeline: renaming it changes nothing that an approval covers.
        struct Frozen<'a> {
            stages: &'a [StageName],
            jobs: &'a [JobPlan],
            timeout_ms: Option<u64>,
        }
        let frozen = Frozen { stages: &self.stages, jobs: &self.jobs, timeout_ms: self.timeout_ms };
        Digest::of(&serde_json::to_vec(&frozen).expect("BUG: a plan is always JSON"))
    }
}

/// When a job runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Once all its needs have succeeded.
    #[default]
    OnSuccess,
    /// Once all its needs have ended, however they ended.
    Always,
    /// As `on_success`, and then only after a person has opened its gate.
    Manual,
}

/// What the failure of a job means for the rest of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Only what needs the job is skipped.
    #[default]
    Continue,
    /// What runs is cancelled and the rest is skipped.
    Abort,
}

/// What a retry may answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// This exit code.
    ExitCode(i32),
    /// The job outlived its `timeout`.
    Timeout,
    /// The job was ended by a signal that the engine did not send.
    Signal,
    /// The script could not be started at all.
    Spawn,
}

/// Heaviest preference of one tag.
pub const WEIGHT_MAX: u32 = 100;

/// How often and when a failed job is retried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// Most attempts after the first, 1 to [`RETRIES_MAX`].
    pub max: u32,
    /// Wait before the first retry, in milliseconds. 0: at once.
    pub backoff_ms: u64,
    /// The wait is multiplied by this for every further retry, in percent (200 doubles).
    pub factor_percent: u32,
    /// No wait is longer, in milliseconds.
    pub backoff_max_ms: u64,
    /// The wait varies by up to this share to either side, in percent, 0 to 100.
    pub jitter_percent: u32,
    /// What is retried. Empty: every failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<RetryOn>,
}

/// A named lock over all runs of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// The name that runs share.
    pub name: String,
    /// How many jobs may hold it at once, from 1.
    pub limit: u32,
}

/// One job of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobPlan {
    /// Its name, unique in the plan.
    pub name: JobName,
    /// The stage it belongs to.
    pub stage: StageName,
    /// The shell text it runs. May hold `${{ }}`, filled in when the job is leased. Shared by the
    /// jobs of a matrix whose script is the same.
    pub script: Arc<str>,
    /// The program that reads the script, which is appended as the last argument.
    /// Empty: `sh -c`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// The jobs that must have ended first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<JobName>,
    /// When it runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub when: When,
    /// Who opens its gate, if it has one. `None`: any one person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GatePolicy>,
    /// What its failure means.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_failure: OnFailure,
    /// Whether and how it is retried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// Longest time one attempt may take, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// From SIGTERM to SIGKILL, in milliseconds. `None`: the worker's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// Environment of the script. Values may hold `${{ }}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Names of secrets. Their values come from the worker's environment and never from here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// What a worker must offer to be given this job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// How much a worker is preferred for each tag that it offers, 1 to [`WEIGHT_MAX`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prefer: BTreeMap<String, u32>,
    /// The lock it holds while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<Resource>,
    /// The `if` expression, evaluated once, when everything before the job has ended.
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// The matrix values that made this job out of its template.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub matrix: BTreeMap<String, String>,
    /// Paths and globs, relative to the working folder, that are kept when the job succeeds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// The shell text that takes the job's effect back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<String>,
    /// The effect of this job cannot be undone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub irreversible: bool,
}

impl JobPlan {
    /// A job that runs `script` in `stage`, with every option at its default.
    pub fn new(name: &str, stage: &str, script: &str) -> Self {
        Self {
            name: name.into(),
            stage: stage.into(),
            script: script.into(),
            shell: Vec::new(),
            needs: Vec::new(),
            when: When::default(),
            gate: None,
            on_failure: OnFailure::default(),
            retry: None,
            timeout_ms: None,
            grace_ms: None,
            env: BTreeMap::new(),
            secrets: Vec::new(),
            tags: Vec::new(),
            prefer: BTreeMap::new(),
            resource: None,
            condition: None,
            matrix: BTreeMap::new(),
            artifacts: Vec::new(),
            undo: None,
            irreversible: false,
        }
    }

    /// How much a worker that offers `tags` is preferred for this job; 0: no more than any other.
    pub fn preference(&self, tags: &[String]) -> u32 {
        let offered = self.prefer.iter().filter(|(tag, _)| tags.contains(tag));
        offered.fold(0, |sum, (_, weight)| sum.saturating_add(*weight))
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
