//! A run as its events left it: the fold, and nothing else.
//!
//! What may happen to one job is the table in `job`, what may happen to the whole is the table in
//! `run::phase`. What follows by itself is in `run::consequences`; the indexes that make every
//! step cost only what it touches are in `run::ready_queue` and can be rebuilt from the rest.

mod aggregate;
mod assignment;
mod consequences;
mod evolve;
mod header;
mod lifted_gates;
mod memory;
mod phase;
mod quorum;
mod ready_queue;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use assignment::Assignment;
pub use header::Header;
pub use phase::Phase;
pub use ready_queue::{Counts, LockUsage, Want, Wanted};

use crate::{
    any_event::IllegalEvent,
    event::{Artifact, Fact, FailureCause, SkipCause},
    gate::Approval,
    ids::{Actor, Attempt, Blob, Digest, JobName},
    job::JobState,
    plan::{JobPlan, Plan},
    time::Timestamp,
};
use ready_queue::ReadyQueue;

/// What a person said at a gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateDecision {
    /// Whether the gate was opened.
    pub approved: bool,
    /// The person; of several approvers the last.
    pub by: Actor,
    /// When.
    pub at: Timestamp,
    /// The comment.
    pub comment: String,
}

/// One job as its events left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The plan of the job.
    pub plan: Arc<JobPlan>,
    /// Its state.
    pub state: JobState,
    /// The newest attempt, 0 before the first.
    pub attempt: Attempt,
    /// Failed attempts since the run began or was resumed.
    pub failures: u32,
    /// Lost attempts since the run began or was resumed.
    pub losses: u32,
    /// When it got into its state.
    pub since: Timestamp,
    /// When the newest attempt was leased.
    pub leased_at: Option<Timestamp>,
    /// How long the newest ended attempt ran, in milliseconds.
    pub ran_ms: Option<u64>,
    /// Why the newest failed attempt failed.
    pub cause: Option<FailureCause>,
    /// Why it was skipped.
    pub skipped: Option<SkipCause>,
    /// What the newest ended attempt printed.
    pub captured_output: Option<Blob>,
    /// Its outputs, for later jobs.
    pub outputs: BTreeMap<String, String>,
    /// Its artifacts.
    pub artifacts: Vec<Artifact>,
    /// What was decided at its gate.
    pub gate: Option<GateDecision>,
    /// The approvals of its gate, oldest first, as far as they are not void.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    /// The newest approval digest of its gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_digest: Option<Digest>,
    /// How often its gate was reached.
    #[serde(default)]
    pub asked: u32,
    /// The record it came from, if another tool ran it.
    pub imported: Option<Imported>,
}

/// What another tool's record said of a job, beyond its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// When it began, if the record says so.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The exit code, if the record says so.
    pub exit_code: Option<i32>,
    /// What went wrong, in the record's words.
    pub error: String,
}

impl Job {
    fn new(plan: JobPlan, at: Timestamp) -> Self {
        Self {
            plan: Arc::new(plan),
            state: JobState::Waiting,
            attempt: Attempt(0),
            failures: 0,
            losses: 0,
            since: at,
            leased_at: None,
            ran_ms: None,
            cause: None,
            skipped: None,
            captured_output: None,
            outputs: BTreeMap::new(),
            artifacts: Vec::new(),
            gate: None,
            approvals: Vec::new(),
            approval_digest: None,
            asked: 0,
            imported: None,
        }
    }

    /// Back to the beginning. Only the numbers stay that are fences: of attempts and of gates.
    fn reset(&mut self, at: Timestamp) {
        let plan = Arc::clone(&self.plan);
        // Without them a late report or a late approval of the time before would be accepted.
        let (attempt, asked) = (self.attempt, self.asked);
        *self = Self { plan, attempt, asked, ..Self::new(JobPlan::new("", "", ""), at) };
    }
}

/// A run as its events left it. Plain data: no handle, no lock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    header: Option<Header>,
    phase: Phase,
    jobs: Vec<Job>,
    /// Jobs of the plan that is being replaced, by name.
    carried: BTreeMap<JobName, Job>,
    /// The newest attempt, and how often the gate was reached, of jobs that an earlier plan had: if
    /// a plan has a job of that name again, it continues from there. Else a late report of the old
    /// job would pass for one of the new.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    retired: BTreeMap<JobName, (Attempt, u32)>,
    /// When the whole run has taken too long.
    #[serde(default)]
    due: Option<Timestamp>,
    /// How many jobs the plan announced.
    announced: u32,
    /// The job that aborted the run.
    abort_root: Option<JobName>,
    /// When the newest event was decided.
    newest_at: Timestamp,
    /// When the run finished.
    finished_at: Option<Timestamp>,
    /// When an actor last resumed the run after it had finished.
    #[serde(default)]
    reopened_at: Option<Timestamp>,
    #[serde(skip)]
    ready_queue: ReadyQueue,
    #[serde(skip)]
    by_name: HashMap<JobName, u32>,
}

impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        self.header == other.header
            && self.phase == other.phase
            && self.jobs == other.jobs
            && self.carried == other.carried
            && self.retired == other.retired
            && self.due == other.due
            && self.announced == other.announced
            && self.abort_root == other.abort_root
            && self.newest_at == other.newest_at
            && self.finished_at == other.finished_at
            && self.reopened_at == other.reopened_at
            // Without `by_name`, which follows from the jobs.
            && self.ready_queue == other.ready_queue
    }
}

impl Run {
    /// The run that `facts` describe.
    pub fn replay<'a>(facts: impl IntoIterator<Item = &'a Fact>) -> Result<Self, IllegalEvent> {
        let mut run = Self::default();
        for fact in facts {
            run.evolve(fact)?;
        }
        Ok(run)
    }

    /// The run that a snapshot holds. The indexes are rebuilt.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let mut run: Self = serde_json::from_slice(bytes)?;
        // Not in the snapshot: an index that disagrees with its run would be worse than a slower
        // start.
        run.reindex();
        Ok(run)
    }

    /// The state as bytes, for [`Run::from_snapshot`].
    pub fn to_snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("BUG: a run is always JSON")
    }

    /// What the request for the run said. `None` before its first event.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// The phase of the run.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Its jobs in file order.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    /// The job called `name`.
    pub fn job(&self, name: &str) -> Option<&Job> {
        self.index_of(name).map(|index| &self.jobs[index as usize])
    }

    /// How many jobs are in which state.
    pub fn counts(&self) -> &Counts {
        &self.ready_queue.counts
    }

    /// The job whose failure aborted the run.
    pub fn abort_root(&self) -> Option<&JobName> {
        self.abort_root.as_ref()
    }

    /// When the whole run has taken too long. `None`: it may take as long as it takes.
    pub fn due(&self) -> Option<Timestamp> {
        self.due
    }

    /// When the newest event was decided.
    pub fn newest_at(&self) -> Timestamp {
        self.newest_at
    }

    /// When the run finished. `None` while it has not.
    pub fn finished_at(&self) -> Option<Timestamp> {
        self.finished_at
    }

    /// When an actor last resumed the run after it had finished. `None`: never.
    pub fn reopened_at(&self) -> Option<Timestamp> {
        self.reopened_at
    }

    /// The jobs that hold a lease, in file order.
    pub fn leased(&self) -> impl Iterator<Item = &Job> {
        self.ready_queue.leased().map(|index| &self.jobs[index as usize])
    }

    /// The jobs whose gate waits for a person, in file order.
    pub fn gates(&self) -> impl Iterator<Item = &Job> {
        self.ready_queue.gates().map(|index| &self.jobs[index as usize])
    }

    /// Whether anything may be leased now or later without a person doing something first.
    pub fn can_move(&self) -> bool {
        self.ready_queue.has_work()
    }

    /// The earliest moment from `now` on at which time itself changes what may happen.
    pub fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        // A finished run changes only by a request.
        if !self.phase.is_live() {
            return None;
        }
        if self.consequence().is_some() {
            // More follows from the last command than one append may hold.
            return Some(now);
        }
        let due = self.due.filter(|_| self.phase == Phase::Running);
        let expires = self.ready_queue.next_lapse().filter(|_| self.phase == Phase::Running);
        // The earliest only: the timer asks again afterwards.
        [due, expires, self.ready_queue.next_backoff(now)].into_iter().flatten().min()
    }

    /// The files that the direct needs of `job` left behind, with the need that left each.
    pub fn needed_files<'a>(
        &'a self,
        job: &'a Job,
    ) -> impl Iterator<Item = (&'a JobName, &'a Artifact)> {
        let needs = job.plan.needs.iter().filter_map(|need| self.job(need.as_str()));
        needs.flat_map(|need| need.artifacts.iter().map(|file| (&need.plan.name, file)))
    }

    /// How many jobs hold each lock.
    pub fn busy(&self) -> &LockUsage {
        self.ready_queue.busy()
    }

    /// What the run would do if it began now.
    pub fn plan(&self) -> Option<Plan> {
        let header = self.header.as_ref()?;
        Some(Plan {
            pipeline: header.pipeline.clone(),
            stages: header.stages.clone(),
            jobs: self.jobs.iter().map(|job| (*job.plan).clone()).collect(),
            timeout_ms: header.timeout_ms,
        })
    }

    /// The place of the job called `name` in file order, from 0.
    pub fn index_of(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Files whether the gate of job `index` was approved in advance.
    fn note_preapproval(&mut self, index: u32) {
        let approved = self.is_preapproved(&self.jobs[index as usize]);
        self.ready_queue.set_preapproved(index, approved);
    }

    fn reindex(&mut self) {
        self.by_name =
            self.jobs.iter().zip(0..).map(|(job, index)| (job.plan.name.clone(), index)).collect();
        let stages = self.header.as_ref().map_or(&[][..], |header| &header.stages);
        self.ready_queue = ReadyQueue::build(stages, &self.jobs, &self.by_name);
        // Collected, because filing changes the index that is walked.
        for index in self.ready_queue.gates().collect::<Vec<u32>>() {
            self.note_preapproval(index);
        }
    }
}
