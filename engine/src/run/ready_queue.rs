//! What can be done next, kept up to date step by step, so that the work per event is
//! proportional to the jobs it touches and not to the size of the run.
//!
//! Derived: everything here can be rebuilt from the jobs (`ReadyQueue::build`), and a test
//! compares.

mod gates;
mod wants;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::Job;
use crate::{
    ids::{Digest, JobName, StageName},
    job::JobState,
    plan::{OnFailure, When},
    time::Timestamp,
};
pub use wants::{Want, Wanted};

/// How many jobs hold each named lock.
pub type LockUsage = BTreeMap<String, u32>;

/// How many jobs are in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Not decided, not ready, or ready and not yet leased.
    pub waiting: u32,
    /// Behind a gate that waits for a person.
    pub at_gate: u32,
    /// Leased.
    pub running: u32,
    /// Waiting for another attempt.
    pub backing_off: u32,
    /// Ended well.
    pub succeeded: u32,
    /// Ended badly, time-outs included.
    pub failed: u32,
    /// Of the failed ones, those that took too long.
    pub timed_out: u32,
    /// Not run.
    pub skipped: u32,
    /// Ended with the run.
    pub cancelled: u32,
    /// Kept behind a gate.
    pub rejected: u32,
}

impl Counts {
    fn add(&mut self, state: &JobState, sign: i32) {
        let field = match state {
            JobState::Waiting
            | JobState::Admitted
            | JobState::Declined
            | JobState::Approved
            | JobState::Requeued => &mut self.waiting,
            JobState::AtGate(_) => &mut self.at_gate,
            JobState::Leased(..) => &mut self.running,
            JobState::BackingOff(_) => &mut self.backing_off,
            JobState::Succeeded => &mut self.succeeded,
            JobState::Failed | JobState::TimedOut => &mut self.failed,
            JobState::Skipped => &mut self.skipped,
            JobState::Cancelled => &mut self.cancelled,
            JobState::Rejected => &mut self.rejected,
        };
        *field = field.wrapping_add_signed(sign);
        // Counted twice on purpose, as failed and as timed out: the outcome of a run asks whether
        // all failures were time-outs.
        if *state == JobState::TimedOut {
            self.timed_out = self.timed_out.wrapping_add_signed(sign);
        }
    }
}

/// In which index a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum QueueState {
    #[default]
    NotQueued,
    Unevaluated,
    Blocked,
    Gate,
    Ready,
    Backoff(Timestamp),
    Leased,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReadyQueue {
    pub(super) counts: Counts,
    stage_of: Vec<u32>,
    stage_jobs: Vec<Vec<u32>>,
    stage_left: Vec<u32>,
    open_stage: usize,
    last_stage_lost: u32,
    needs: Vec<Vec<u32>>,
    dependents: Vec<Vec<u32>>,
    unmet: Vec<u32>,
    class_of: Vec<u32>,
    classes: Vec<Arc<Want>>,
    place: Vec<QueueState>,
    ready: Vec<BTreeSet<u32>>,
    backoff: BTreeSet<(Timestamp, u32)>,
    leased: BTreeSet<u32>,
    /// How many of the leased jobs hold each lock.
    busy: LockUsage,
    gates: BTreeSet<u32>,
    unevaluated: BTreeSet<u32>,
    /// Jobs that cannot run any more, with the need that ended badly.
    blocked: BTreeMap<u32, u32>,
    abort_due: Option<u32>,
    /// Gates whose approvals expire, by when and by job.
    lapses: BTreeSet<(Timestamp, u32)>,
    lapse_of: BTreeMap<u32, Timestamp>,
    /// Gates that `--yes` of the requester covers and whose approval is not recorded yet.
    preapproved: BTreeSet<u32>,
    /// Whether any job has a gate: else the digest of results is not computed.
    has_gates: bool,
    /// Over the results of all stages before the open one.
    results_before: Option<Digest>,
}

impl ReadyQueue {
    pub(super) fn build(
        stages: &[StageName],
        jobs: &[Job],
        by_name: &HashMap<JobName, u32>,
    ) -> Self {
        let stage_index: HashMap<&StageName, u32> = stages.iter().zip(0..).collect();
        // Jobs with equal requirements share a class. A matrix of 100,000 jobs is one class, so
        // matching a worker compares tags once and not 100,000 times.
        let mut class_ids = BTreeMap::new();
        let mut all = Self { stage_jobs: vec![Vec::new(); stages.len()], ..Self::default() };
        all.stage_left = vec![0; stages.len()];
        all.dependents = vec![Vec::new(); jobs.len()];
        all.place = vec![QueueState::NotQueued; jobs.len()];
        for (job, index) in jobs.iter().zip(0_u32..) {
            // A plan of the log names its own stages only. The fallback avoids a panic for a
            // damaged snapshot.
            let stage = stage_index.get(&job.plan.stage).copied().unwrap_or(0);
            all.stage_of.push(stage);
            all.stage_jobs[stage as usize].push(index);
            all.counts.add(&job.state, 1);
            if !job.state.is_over() {
                all.stage_left[stage as usize] += 1;
            }
            let needs = job.plan.needs.iter().filter_map(|need| by_name.get(need).copied());
            let needs: Vec<u32> = needs.collect();
            // Counts needs that have not ended. Whether they ended well is decided later, because
            // it differs for `when: always`.
            let open = needs.iter().filter(|need| !jobs[**need as usize].state.is_over()).count();
            all.unmet.push(u32::try_from(open).unwrap_or(u32::MAX));
            for need in &needs {
                all.dependents[*need as usize].push(index);
            }
            all.needs.push(needs);
            let next = u32::try_from(class_ids.len()).unwrap_or(u32::MAX);
            all.class_of.push(*class_ids.entry(Want::of(job)).or_insert(next));
        }
        let mut classes: Vec<(u32, Want)> =
            class_ids.into_iter().map(|(class, id)| (id, class)).collect();
        // In the order of their ids, because `class_of` refers to them by number.
        classes.sort();
        all.classes = classes.into_iter().map(|(_, class)| Arc::new(class)).collect();
        all.ready = vec![BTreeSet::new(); all.classes.len()];
        all.has_gates = jobs.iter().any(|job| job.plan.when == When::Manual);
        // A loop, because empty stages and stages that ended before a resume are passed at once.
        while all.stage_left.get(all.open_stage) == Some(&0) {
            all.pass_stage(jobs);
        }
        all.last_stage_lost = all.lost_in_last_stage(jobs);
        // After the open stage is known: filing a job depends on it.
        for index in 0..u32::try_from(jobs.len()).unwrap_or(u32::MAX) {
            all.note_end(index, jobs);
            all.file(index, jobs);
        }
        all
    }

    fn lost_in_last_stage(&self, jobs: &[Job]) -> u32 {
        let last = self.stage_jobs.iter().rev().find(|jobs| !jobs.is_empty());
        let lost = last.map_or(0, |last| {
            last.iter().filter(|index| jobs[**index as usize].state.is_over_badly()).count()
        });
        u32::try_from(lost).unwrap_or(u32::MAX)
    }

    /// Applies that job `index` changed from `before` to the state it has in `jobs`.
    pub(super) fn moved(&mut self, index: u32, before: &JobState, jobs: &[Job]) {
        let now = &jobs[index as usize].state;
        self.counts.add(before, -1);
        self.counts.add(now, 1);
        // Out of its old index first. A job in two indexes could be leased while its gate waits.
        self.dequeue(index);
        if now.is_over() && !before.is_over() {
            self.ended(index, jobs);
        }
        self.file(index, jobs);
    }

    fn ended(&mut self, index: u32, jobs: &[Job]) {
        let stage = self.stage_of[index as usize] as usize;
        self.stage_left[stage] -= 1;
        let dependents = std::mem::take(&mut self.dependents[index as usize]);
        for dependent in &dependents {
            self.unmet[*dependent as usize] -= 1;
        }
        self.dependents[index as usize] = dependents;
        // Blocks dependents of a bad end before they are filed below; the other order would file
        // them as ready for a moment.
        self.note_end(index, jobs);
        for place in 0..self.dependents[index as usize].len() {
            let dependent = self.dependents[index as usize][place];
            self.dequeue(dependent);
            self.file(dependent, jobs);
        }
        let last = self.stage_jobs.iter().rposition(|jobs| !jobs.is_empty());
        // Kept as a count, because the outcome would otherwise scan the last stage for every end in
        // it.
        if last == Some(stage) && jobs[index as usize].state.is_over_badly() {
            self.last_stage_lost += 1;
        }
        // The end of one job can open several stages, if those between have no open jobs.
        while self.stage_left.get(self.open_stage) == Some(&0) {
            self.pass_stage(jobs);
            for place in 0..self.stage_jobs.get(self.open_stage).map_or(0, Vec::len) {
                let member = self.stage_jobs[self.open_stage][place];
                self.dequeue(member);
                self.file(member, jobs);
            }
        }
    }

    /// What a bad end means for others: dependents are blocked, or the run is to be aborted.
    fn note_end(&mut self, index: u32, jobs: &[Job]) {
        let job = &jobs[index as usize];
        if !job.state.is_over_badly() {
            return;
        }
        for place in 0..self.dependents[index as usize].len() {
            let dependent = self.dependents[index as usize][place];
            let other = &jobs[dependent as usize];
            // A job that has begun or waits at its gate is not blocked: its needs had succeeded
            // when it got there, and a later failure of a need, after a retry, does not change
            // that.
            if other.plan.when != When::Always && is_open(&other.state) {
                self.dequeue(dependent);
                // The first bad need is kept. A second one would change the recorded reason of the
                // skip with the order of reports.
                self.blocked.entry(dependent).or_insert(index);
                self.place[dependent as usize] = QueueState::Blocked;
            }
        }
        let aborts = match job.state {
            JobState::Failed | JobState::TimedOut | JobState::Rejected => true,
            JobState::Waiting
            | JobState::Admitted
            | JobState::Declined
            | JobState::AtGate(_)
            | JobState::Approved
            | JobState::Leased(..)
            | JobState::BackingOff(_)
            | JobState::Requeued
            | JobState::Succeeded
            | JobState::Skipped
            | JobState::Cancelled => false,
        };
        if aborts && job.plan.on_failure == OnFailure::Abort {
            // The first in file order, so that the root does not depend on the order of reports.
            self.abort_due = Some(self.abort_due.map_or(index, |due| due.min(index)));
        }
    }

    fn file(&mut self, index: u32, jobs: &[Job]) {
        let at = index as usize;
        let job = &jobs[at];
        if self.place[at] == QueueState::Blocked {
            // It waits to be skipped. Were it filed as ready meanwhile, a worker could be given a
            // job whose need has failed.
            return;
        }
        let open = self.unmet[at] == 0 && self.stage_of[at] as usize <= self.open_stage;
        let place = match &job.state {
            // What has begun continues; whatever has not waits for its needs and its stage, also
            // when they were opened again behind its back.
            JobState::Waiting
            | JobState::Admitted
            | JobState::Approved
            | JobState::Requeued
            | JobState::BackingOff(_)
                if !open =>
            {
                QueueState::NotQueued
            }
            // A condition first, then the gate: no person should approve a job that its condition
            // then skips.
            JobState::Waiting if job.plan.condition.is_some() => QueueState::Unevaluated,
            JobState::Waiting | JobState::Admitted if job.plan.when == When::Manual => {
                QueueState::Unevaluated
            }
            JobState::Declined => QueueState::Unevaluated,
            JobState::Waiting | JobState::Admitted | JobState::Approved | JobState::Requeued => {
                QueueState::Ready
            }
            JobState::AtGate(_) => QueueState::Gate,
            JobState::BackingOff(due) => QueueState::Backoff(*due),
            JobState::Leased(..) => QueueState::Leased,
            JobState::Succeeded
            | JobState::Failed
            | JobState::TimedOut
            | JobState::Skipped
            | JobState::Cancelled
            | JobState::Rejected => QueueState::NotQueued,
        };
        self.place[at] = place;
        // Also for jobs that are ready: an approved job may wait for a worker longer than its
        // approvals are valid.
        if let Some(until) = job.approvals_expire_at() {
            self.lapses.insert((until, index));
            self.lapse_of.insert(index, until);
        }
        match place {
            QueueState::NotQueued | QueueState::Blocked => true,
            QueueState::Unevaluated => self.unevaluated.insert(index),
            QueueState::Gate => self.gates.insert(index),
            QueueState::Ready => self.ready[self.class_of[at] as usize].insert(index),
            QueueState::Backoff(due) => self.backoff.insert((due, index)),
            QueueState::Leased => self.hold(index),
        };
    }

    fn dequeue(&mut self, index: u32) {
        let at = index as usize;
        if let Some(until) = self.lapse_of.remove(&index) {
            self.lapses.remove(&(until, index));
        }
        match std::mem::take(&mut self.place[at]) {
            QueueState::NotQueued => true,
            QueueState::Blocked => {
                // It stays so until its skip is recorded: to dequeue it must not revive it.
                if self.blocked.contains_key(&index) {
                    self.place[at] = QueueState::Blocked;
                }
                true
            }
            QueueState::Unevaluated => self.unevaluated.remove(&index),
            QueueState::Gate => self.gates.remove(&index),
            QueueState::Ready => self.ready[self.class_of[at] as usize].remove(&index),
            QueueState::Backoff(due) => self.backoff.remove(&(due, index)),
            QueueState::Leased => self.let_go(index),
        };
    }

    /// Forgets that `index` is blocked, because it has been skipped.
    pub(super) fn unblock(&mut self, index: u32) {
        self.blocked.remove(&index);
        if self.place[index as usize] == QueueState::Blocked {
            self.place[index as usize] = QueueState::NotQueued;
        }
    }

    pub(super) fn first_blocked(&self) -> Option<(u32, u32)> {
        self.blocked.first_key_value().map(|(index, need)| (*index, *need))
    }

    pub(super) fn first_unevaluated(&self) -> Option<u32> {
        self.unevaluated.first().copied()
    }

    pub(super) fn abort_due(&self) -> Option<u32> {
        self.abort_due
    }

    /// The first moment after `now` at which an attempt in back-off is due.
    pub(super) fn next_backoff(&self, now: Timestamp) -> Option<Timestamp> {
        // Attempts that are due by `now` are not the next wake-up: they wait for a worker, and a
        // timer for them would fire without end.
        let after = std::ops::Bound::Excluded((now, u32::MAX));
        self.backoff.range((after, std::ops::Bound::Unbounded)).next().map(|(due, _)| *due)
    }

    /// Whether an attempt in back-off may begin at `now`.
    pub(super) fn is_due(&self, index: u32, now: Timestamp) -> bool {
        matches!(self.place[index as usize], QueueState::Backoff(due) if due <= now)
    }

    pub(super) fn leased(&self) -> impl Iterator<Item = u32> {
        self.leased.iter().copied()
    }

    pub(super) fn needs(&self, index: u32) -> &[u32] {
        &self.needs[index as usize]
    }

    pub(super) fn is_over(&self) -> bool {
        self.open_stage >= self.stage_left.len()
    }

    /// Whether every job of the last stage succeeded.
    pub(super) fn last_stage_is_whole(&self) -> bool {
        self.last_stage_lost == 0
    }

    pub(super) fn has_work(&self) -> bool {
        !self.leased.is_empty()
            || !self.backoff.is_empty()
            || self.ready.iter().any(|class| !class.is_empty())
    }

    pub(super) fn is_ready(&self, index: u32) -> bool {
        self.place[index as usize] == QueueState::Ready
    }

    pub(super) fn stage_is_open(&self, index: u32) -> bool {
        self.stage_of[index as usize] as usize <= self.open_stage
    }
}

fn is_open(state: &JobState) -> bool {
    match state {
        JobState::Waiting | JobState::Admitted | JobState::Declined => true,
        JobState::AtGate(_)
        | JobState::Approved
        | JobState::Leased(..)
        | JobState::BackingOff(_)
        | JobState::Requeued
        | JobState::Succeeded
        | JobState::Failed
        | JobState::TimedOut
        | JobState::Skipped
        | JobState::Cancelled
        | JobState::Rejected => false,
    }
}
