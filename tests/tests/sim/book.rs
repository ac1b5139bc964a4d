//! What the log says, kept by simple means of its own: one map per run and no indexes. Every record
//! is held against it.

use std::collections::{BTreeMap, BTreeSet};

use towpath_engine::{
    event::{Fact, RunEvent, SkipCause},
    ids::{JobName, RunId},
    plan::{JobPlan, When},
    time::Timestamp,
};

use crate::eyes::Eyes;

/// Which attempt of which job.
pub(crate) type Key = (RunId, JobName, u32);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    Open,
    Leased { attempt: u32, worker: String, fence: usize },
    Succeeded,
    Failed,
    Skipped(Option<JobName>),
    Cancelled,
}

impl Stand {
    fn is_over(&self) -> bool {
        !matches!(self, Self::Open | Self::Leased { .. })
    }

    fn is_leased(&self) -> bool {
        matches!(self, Self::Leased { .. })
    }
}

#[derive(Clone, Default)]
struct RunPages {
    version: u64,
    newest: Timestamp,
    parallelism: u32,
    stages: Vec<String>,
    jobs: BTreeMap<JobName, (JobPlan, Stand)>,
    /// What had succeeded when the plan was replaced.
    carried: BTreeSet<JobName>,
    leased: BTreeSet<(JobName, u32)>,
    abort_root: Option<JobName>,
    eyes: Eyes,
}

#[derive(Clone, Default)]
pub(crate) struct Book {
    runs: BTreeMap<RunId, RunPages>,
    newest: Timestamp,
}

impl Book {
    /// The holder of the newest lease of a job, if it counts still.
    pub(crate) fn lease(&self, run: &RunId, job: &JobName) -> Option<(u32, &str, usize)> {
        match &self.runs.get(run)?.jobs.get(job)?.1 {
            Stand::Leased { attempt, worker, fence } => Some((*attempt, worker, *fence)),
            Stand::Open
            | Stand::Succeeded
            | Stand::Failed
            | Stand::Skipped(_)
            | Stand::Cancelled => None,
        }
    }

    pub(crate) fn counts_on(&self, key: &Key) -> bool {
        self.lease(&key.0, &key.1).is_some_and(|(attempt, ..)| attempt == key.2)
    }

    /// Applies the record at `position`, or says which rule it breaks.
    pub(crate) fn take(
        &mut self,
        run: &RunId,
        version: u64,
        position: usize,
        fact: &Fact,
    ) -> Result<(), String> {
        let pages = self.runs.entry(run.clone()).or_default();
        if version != pages.version + 1 {
            return Err(format!("version {version} follows {}", pages.version));
        }
        if fact.at < pages.newest || fact.at < self.newest {
            return Err(format!("time goes back from {} to {}", self.newest, fact.at));
        }
        (pages.version, pages.newest, self.newest) = (version, fact.at, fact.at);
        pages.take(position, fact)?;
        if matches!(fact.event, RunEvent::JobLeased { .. }) {
            self.check_locks()?;
        }
        Ok(())
    }

    fn check_locks(&self) -> Result<(), String> {
        let mut busy: BTreeMap<&str, u32> = BTreeMap::new();
        for (plan, stand) in self.runs.values().flat_map(|pages| pages.jobs.values()) {
            if let (Some(resource), Stand::Leased { .. }) = (&plan.resource, stand) {
                let count = busy.entry(&resource.name).or_default();
                *count += 1;
                if *count > resource.limit {
                    return Err(format!("{count} jobs hold `{}`", resource.name));
                }
            }
        }
        Ok(())
    }
}

impl RunPages {
    #[expect(clippy::too_many_lines, reason = "one table: what each kind of event must find")]
    fn take(&mut self, position: usize, fact: &Fact) -> Result<(), String> {
        let jobs = &self.jobs;
        self.eyes.see(fact, |job| jobs.get(job).map(|(plan, _)| plan.clone()))?;
        match &fact.event {
            RunEvent::RunCreated { stages, parallelism, .. } => {
                self.stages = stages.iter().map(ToString::to_string).collect();
                self.parallelism = *parallelism;
            }
            RunEvent::JobsPlanned { jobs } => {
                for job in jobs {
                    // What succeeded under the plan before this one has still succeeded.
                    let done = self.carried.contains(&job.name);
                    let stand = if done { Stand::Succeeded } else { Stand::Open };
                    self.jobs.insert(job.name.clone(), (job.clone(), stand));
                }
            }
            RunEvent::PlanReplaced { stages, .. } => {
                if let Some((job, _)) = self.jobs.values().find(|(_, it)| it.is_leased()) {
                    return Err(format!("the plan is replaced while {} is leased", job.name));
                }
                self.stages = stages.iter().map(ToString::to_string).collect();
                let done = self.jobs.iter().filter(|(_, (_, stand))| *stand == Stand::Succeeded);
                self.carried = done.map(|(name, _)| name.clone()).collect();
                self.jobs.clear();
                self.abort_root = None;
                self.eyes.replaced();
            }
            RunEvent::JobLeased { job, attempt, worker, .. } => {
                self.may_lease(job, attempt.0)?;
                let worker = worker.to_string();
                self.put(job, Stand::Leased { attempt: attempt.0, worker, fence: position });
            }
            RunEvent::JobSucceeded { job, attempt, .. } => {
                self.end(job, attempt.0, Stand::Succeeded)?;
            }
            RunEvent::JobAttemptFailed { job, attempt, .. }
            | RunEvent::JobLost { job, attempt, .. } => self.end(job, attempt.0, Stand::Open)?,
            RunEvent::JobCancelled { job, attempt, .. } => {
                self.end(job, attempt.0, Stand::Cancelled)?;
            }
            RunEvent::JobFailed { job, .. } | RunEvent::GateRejected { job, .. } => {
                self.put(job, Stand::Failed);
            }
            RunEvent::JobSkipped { job, cause } => {
                let root = match cause {
                    SkipCause::NeedUnmet { root, .. } => Some(root.clone()),
                    SkipCause::ConditionFalse => None,
                };
                self.put(job, Stand::Skipped(root));
            }
            RunEvent::RunAborted { root } => {
                self.abort_root = Some(root.clone());
                self.end_open(&Stand::Skipped(Some(root.clone())));
            }
            RunEvent::RunCancelRequested { .. } | RunEvent::RunTimedOut {} => {
                self.end_open(&Stand::Cancelled);
            }
            RunEvent::RunResumed {} => {
                self.reopen(|_, stand| stand.is_over() && *stand != Stand::Succeeded)?;
            }
            RunEvent::JobsInvalidated { from } => {
                let from = self.stage_place(from.as_str());
                let stages = self.stages.clone();
                let place = |stage: &str| stages.iter().position(|other| other == stage);
                self.reopen(|plan, _| place(plan.stage.as_str()).unwrap_or(0) >= from)?;
            }
            RunEvent::JobRetried { job } => {
                let root = Some(job.clone());
                let freed = |plan: &JobPlan, stand: &Stand| {
                    plan.name == *job || *stand == Stand::Skipped(root.clone())
                };
                self.reopen(freed)?;
            }
            RunEvent::RunFinished { .. } => {
                if let Some(open) = self.jobs.values().find(|(_, stand)| !stand.is_over()) {
                    return Err(format!("finished while {} is open", open.0.name));
                }
            }
            RunEvent::RunStarted {}
            | RunEvent::ConditionEvaluated { .. }
            | RunEvent::GateReached { .. }
            | RunEvent::GateApproved { .. }
            | RunEvent::GateVoided { .. }
            | RunEvent::JobImported { .. } => {}
        }
        Ok(())
    }

    fn stage_place(&self, stage: &str) -> usize {
        self.stages.iter().position(|other| other == stage).unwrap_or(0)
    }

    fn put(&mut self, job: &JobName, stand: Stand) {
        if let Some((_, old)) = self.jobs.get_mut(job) {
            *old = stand;
        }
    }

    fn end(&mut self, job: &JobName, attempt: u32, stand: Stand) -> Result<(), String> {
        let before = self.jobs.get(job).map(|(_, stand)| stand);
        if !matches!(before, Some(Stand::Leased { attempt: held, .. }) if *held == attempt) {
            return Err(format!("attempt {attempt} of {job} ends, which is {before:?}"));
        }
        self.put(job, stand);
        Ok(())
    }

    fn end_open(&mut self, with: &Stand) {
        for (_, stand) in self.jobs.values_mut().filter(|(_, stand)| *stand == Stand::Open) {
            *stand = with.clone();
        }
    }

    fn reopen(&mut self, which: impl Fn(&JobPlan, &Stand) -> bool) -> Result<(), String> {
        let mut again = Vec::new();
        for (plan, stand) in self.jobs.values_mut() {
            if which(plan, stand) {
                *stand = Stand::Open;
                again.push(plan.clone());
            }
        }
        let (jobs, stages) = (&self.jobs, &self.stages);
        let place = |plan: &JobPlan| stages.iter().position(|stage| stage == plan.stage.as_str());
        let begun = |stand: &Stand| stand.is_over() || matches!(stand, Stand::Leased { .. });
        let known = |job: &JobName| jobs.get(job).map(|(plan, stand)| (plan.clone(), begun(stand)));
        self.eyes.reopened(&again, |plan| place(plan).unwrap_or(0), known)
    }

    fn may_lease(&mut self, job: &JobName, attempt: u32) -> Result<(), String> {
        let Some((plan, stand)) = self.jobs.get(job) else { return Err(format!("no job {job}")) };
        if *stand != Stand::Open {
            return Err(format!("{job} is leased while it is {stand:?}"));
        }
        let running = |(_, stand): &&(JobPlan, Stand)| matches!(stand, Stand::Leased { .. });
        if self.jobs.values().filter(running).count() as u32 >= self.parallelism {
            return Err(format!("{job} is one lease too many"));
        }
        for need in &plan.needs {
            let stand = self.jobs.get(need).map(|(_, stand)| stand);
            let met = match plan.when {
                When::Always => stand.is_some_and(Stand::is_over),
                When::OnSuccess | When::Manual => stand == Some(&Stand::Succeeded),
            };
            if !met {
                return Err(format!("{job} is leased while its need {need} is {stand:?}"));
            }
        }
        let place = self.stage_place(plan.stage.as_str());
        for (other, stand) in self.jobs.values() {
            if self.stage_place(other.stage.as_str()) < place && !stand.is_over() {
                return Err(format!("{job} is leased while {} before it is open", other.name));
            }
        }
        if self.leased.iter().any(|(other, older)| other == job && *older >= attempt) {
            return Err(format!("attempt {attempt} of {job} is leased, and is not the next"));
        }
        self.leased.insert((job.clone(), attempt));
        Ok(())
    }
}
