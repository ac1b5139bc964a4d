//! The assignment of a worker: a job with its placeholders filled in.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Job, LockUsage, Run, Want, Wanted};
use crate::{expression::fill_shell, ids::JobName, time::Timestamp};

/// A job, ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The shell text, with every placeholder replaced by one shell word.
    pub script: String,
    /// The environment, with every placeholder replaced as it is.
    pub env: BTreeMap<String, String>,
}

impl Run {
    /// The first job, in file order, that a worker with `tags` may be given at `now`, while other
    /// runs hold the locks in `busy`.
    pub fn next_for(&self, tags: &[String], busy: &LockUsage, now: Timestamp) -> Option<&Job> {
        let index = self.ready_queue.next_for(tags, &self.with_own(busy)?, now)?;
        Some(&self.jobs[index as usize])
    }

    /// The job called `name`, if a worker may be given it at `now`, while other runs hold the locks
    /// in `busy`.
    pub fn leasable(&self, name: &JobName, busy: &LockUsage, now: Timestamp) -> Option<&Job> {
        let index = self.index_of(name.as_str())?;
        let fits = self.ready_queue.may_be_leased(index, &self.with_own(busy)?, now);
        fits.then(|| &self.jobs[index as usize])
    }

    /// The locks of all runs, if the parallelism of this run allows another job.
    fn with_own(&self, others: &LockUsage) -> Option<LockUsage> {
        // Checked before the copy of all locks, because the scheduler asks for many runs that are
        // full.
        if self.room() == 0 {
            return None;
        }
        let mut held = self.busy().clone();
        for (name, count) in others {
            // A lock is shared by all runs of the store; the run knows its own holders only.
            *held.entry(name.clone()).or_default() += count;
        }
        Some(held)
    }

    /// Whether it matters which of the workers that could take a job is given it.
    pub fn has_preferences(&self) -> bool {
        self.ready_queue.has_preferences()
    }

    /// How many jobs more may be leased before the run's parallelism is reached.
    pub fn room(&self) -> u32 {
        let parallelism = self.header().map_or(0, |header| header.parallelism);
        // Saturating: `--accept-changes` may lower the parallelism below what already runs.
        let room = parallelism.saturating_sub(self.counts().running);
        if self.phase().is_running() { room } else { 0 }
    }

    /// What could be leased at `now`, but for locks that are held and for the parallelism.
    pub fn wants(&self, now: Timestamp) -> Vec<Wanted> {
        self.ready_queue.wants(now)
    }

    /// What the job called `name` wants of a worker, if it could be leased at `now` but for its
    /// lock and the parallelism.
    pub fn want_of(&self, name: &JobName, now: Timestamp) -> Option<Arc<Want>> {
        self.ready_queue.want_of(self.index_of(name.as_str())?, now).cloned()
    }

    /// The names of the locks that its jobs need.
    pub fn locks(&self) -> BTreeSet<&str> {
        self.ready_queue.locks()
    }

    /// What the worker that leased `job` runs, or why it cannot be put together.
    pub fn assignment(&self, job: &Job) -> Result<Assignment, String> {
        let has_placeholder = |text: &str| text.contains("${{");
        let in_env = job.plan.env.values().any(|value| has_placeholder(value));
        // Most jobs have none, and building the context copies the outputs of every job before.
        if !has_placeholder(&job.plan.script) && !in_env {
            let script = job.plan.script.to_string();
            return Ok(Assignment { script, env: job.plan.env.clone() });
        }
        let (context, env) = self.filled_context(job).map_err(|error| format!("`env`: {error}"))?;
        let script = fill_shell(&job.plan.script, &context)
            .map_err(|error| format!("`command`: {error}"))?;
        Ok(Assignment { script, env })
    }
}
