//! Applying a fact: what it changes, and whether it is legal.

use super::{GateDecision, Header, Imported, Job, Phase, Run};
use crate::{
    any_event::IllegalEvent,
    event::{Fact, RunEvent},
    gate::Approval,
    ids::{Actor, Attempt, JobName, StageName},
    job::JobState,
};

impl Run {
    /// Applies one more fact. After an error the run is as it was.
    pub fn evolve(&mut self, fact: &Fact) -> Result<(), IllegalEvent> {
        // Equal times are legal: one append decides all of its events at one moment. An earlier
        // time would make due times and durations negative for every later reader of the log.
        if fact.at < self.newest_at {
            return Err(IllegalEvent::new(
                &fact.event,
                format!("it is {} already", self.newest_at),
            ));
        }
        // Checked here and assigned last: after an error the caller still has the run as it was,
        // and keeps it in memory.
        let phase = self.phase.next(&fact.event)?;
        match &fact.event {
            RunEvent::RunCreated { .. } => self.create(fact),
            RunEvent::JobsPlanned { jobs } => {
                for plan in jobs {
                    self.plan_job(plan.clone(), fact);
                }
            }
            RunEvent::RunStarted {} => self.start(fact)?,
            RunEvent::PlanReplaced { .. } => self.replace_plan(fact),
            RunEvent::RunAborted { root } => {
                self.abort_root = Some(root.clone());
                // One event ends all open jobs. An event for each would make the abort of a large
                // run larger than one append.
                self.end_open_jobs(&JobState::Skipped, fact);
            }
            RunEvent::RunCancelRequested { .. } | RunEvent::RunTimedOut {} => {
                self.end_open_jobs(&JobState::Cancelled, fact);
            }
            RunEvent::RunFinished { .. } => self.finish(fact)?,
            RunEvent::RunResumed {} => self.reset(fact, |job| job.state.is_over_badly()),
            RunEvent::JobsInvalidated { from } => self.invalidate_from(from, fact)?,
            RunEvent::JobRetried { job } => self.retry(job, fact)?,
            RunEvent::ConditionEvaluated { job, .. }
            | RunEvent::GateReached { job, .. }
            | RunEvent::GateApproved { job, .. }
            | RunEvent::GateVoided { job, .. }
            | RunEvent::GateRejected { job, .. }
            | RunEvent::JobLeased { job, .. }
            | RunEvent::JobSucceeded { job, .. }
            | RunEvent::JobAttemptFailed { job, .. }
            | RunEvent::JobFailed { job, .. }
            | RunEvent::JobCancelled { job, .. }
            | RunEvent::JobLost { job, .. }
            | RunEvent::JobSkipped { job, .. }
            | RunEvent::JobImported { job, .. } => self.step(job, fact)?,
        }
        // Only now is nothing left that can fail.
        self.phase = phase;
        self.newest_at = fact.at;
        Ok(())
    }

    fn create(&mut self, fact: &Fact) {
        let RunEvent::RunCreated { jobs, due, .. } = &fact.event else { return };
        (self.announced, self.due) = (*jobs, *due);
        self.header = Header::begin(fact);
    }

    /// Takes the header of an edited file over, and keeps the jobs aside until the new plan says
    /// which of them there still are.
    fn replace_plan(&mut self, fact: &Fact) {
        let RunEvent::PlanReplaced { jobs, .. } = &fact.event else { return };
        if let Some(header) = &mut self.header {
            header.replace(fact);
        }
        self.set_due(fact);
        let old = std::mem::take(&mut self.jobs);
        self.carried = old.into_iter().map(|job| (job.plan.name.clone(), job)).collect();
        self.announced = *jobs;
        self.reopen(fact);
        // The indexes refer to jobs that are no longer in `jobs`: a query before `start` would
        // otherwise index out of bounds.
        self.reindex();
    }

    fn invalidate_from(&mut self, from: &StageName, fact: &Fact) -> Result<(), IllegalEvent> {
        let stages = self.header.as_ref().map(|header| header.stages.clone());
        let stages = stages.unwrap_or_default();
        // `decide` refuses an unknown stage already. A log that names one was not written by this
        // program.
        let Some(first) = stages.iter().position(|stage| stage == from) else {
            return Err(IllegalEvent::new(&fact.event, "no stage has that name"));
        };
        self.reset(fact, |job| stages[first..].contains(&job.plan.stage));
        Ok(())
    }

    /// Adds one job. What it achieved under the plan before this one stays achieved.
    fn plan_job(&mut self, plan: crate::plan::JobPlan, fact: &Fact) {
        let carried = self.carried.remove(&plan.name);
        let mut plan = plan;
        // Every event carries the script of each job in full. The jobs of a matrix stand beside
        // each other, and share one copy here: 200,000 of them would otherwise hold gigabytes.
        if let Some(before) = self.jobs.last().filter(|before| before.plan.script == plan.script) {
            plan.script = std::sync::Arc::clone(&before.plan.script);
        }
        let mut job = Job::new(plan, fact.at);
        if let Some((attempt, asked)) = self.retired.remove(&job.plan.name) {
            // Attempt numbers continue, so that a late report of the job's earlier life names an
            // attempt that is not the newest.
            (job.attempt, job.asked) = (attempt, asked);
        }
        if let Some(old) = carried {
            // The new plan with the old results: the script of a job may have changed, but its
            // recorded result has not.
            let plan = std::mem::replace(&mut job.plan, std::sync::Arc::clone(&old.plan));
            if old.state == JobState::Succeeded {
                job = Job { plan, ..old };
            } else {
                job = Job { plan, attempt: old.attempt, asked: old.asked, ..job };
            }
        }
        self.jobs.push(job);
    }

    fn start(&mut self, fact: &Fact) -> Result<(), IllegalEvent> {
        // A plan comes in several events. Without this check a log that lost one of them would
        // replay as a smaller run.
        let planned = self.jobs.len();
        if planned != self.announced as usize {
            let state = format!("{planned} of {} jobs are planned", self.announced);
            return Err(IllegalEvent::new(&fact.event, state));
        }
        self.reindex();
        // Names are the keys of needs and of reports: with two equal ones the index would keep the
        // last, and the first could never be reported.
        if self.by_name.len() != planned {
            return Err(IllegalEvent::new(&fact.event, "two jobs have one name"));
        }
        for (name, job) in std::mem::take(&mut self.carried) {
            // Only numbers that were used have to be remembered. A plan with 200,000 jobs that
            // never began leaves nothing.
            if job.attempt > Attempt(0) || job.asked > 0 {
                self.retired.insert(name, (job.attempt, job.asked));
            }
        }
        Ok(())
    }

    fn finish(&mut self, fact: &Fact) -> Result<(), IllegalEvent> {
        // A run that is finished with open jobs would never schedule them again, because nothing
        // wakes it.
        if !self.ready_queue.is_over() {
            return Err(IllegalEvent::new(&fact.event, "jobs are still open"));
        }
        self.finished_at = Some(fact.at);
        Ok(())
    }

    /// Ends what has not begun. What is leased ends by its own report: until then its script may
    /// still be running, and a run that is over must not change anything any more.
    fn end_open_jobs(&mut self, state: &JobState, fact: &Fact) {
        for job in &mut self.jobs {
            let leased = matches!(job.state, JobState::Leased(..));
            if !leased && !job.state.is_over() {
                job.state = state.clone();
                job.since = fact.at;
            }
        }
        // Every job may have changed: building the indexes once costs less than moving each job
        // through them.
        self.reindex();
    }

    /// Gives the run the time that a new one would have.
    fn set_due(&mut self, fact: &Fact) {
        let timeout_ms = self.header.as_ref().and_then(|header| header.timeout_ms);
        self.due = timeout_ms.map(|allowed| fact.at.plus_ms(allowed));
    }

    /// Notes that a run goes on, if it had finished.
    fn reopen(&mut self, fact: &Fact) {
        if self.finished_at.take().is_some() {
            self.reopened_at = Some(fact.at);
        }
    }

    fn reset(&mut self, fact: &Fact, which: impl Fn(&Job) -> bool) {
        for job in &mut self.jobs {
            if which(job) {
                job.reset(fact.at);
            }
        }
        // The job that aborted the run runs again; kept, the next abort could not name another
        // root.
        self.abort_root = None;
        self.reopen(fact);
        self.set_due(fact);
        self.reindex();
    }

    /// Runs `name` again, and with it the jobs that were skipped because of it.
    fn retry(&mut self, name: &JobName, fact: &Fact) -> Result<(), IllegalEvent> {
        let Some(index) = self.index_of(name.as_str()) else {
            return Err(IllegalEvent::new(&fact.event, "no job has that name"));
        };
        // For its check only. The state itself is reset below with those of the jobs it freed.
        self.jobs[index as usize].state.next(&fact.event)?;
        let freed = self.freed_by(name);
        // The reset clears the root. If another job aborted the run, it stays the root although
        // this one runs again.
        let root = self.abort_root.take().filter(|root| root != name);
        self.reset(fact, freed);
        self.abort_root = root;
        Ok(())
    }

    fn step(&mut self, name: &JobName, fact: &Fact) -> Result<(), IllegalEvent> {
        let Some(index) = self.index_of(name.as_str()) else {
            return Err(IllegalEvent::new(&fact.event, "no job has that name"));
        };
        let before = self.jobs[index as usize].state.clone();
        // All checks come before the first change, so that an illegal event leaves no trace.
        let after = before.next(&fact.event)?;
        self.may_begin(index, fact)?;
        if after.is_over() {
            // Before `moved`, which would otherwise find the job still blocked and leave it in that
            // index.
            self.ready_queue.unblock(index);
        }
        // Read before the job is borrowed mutably: an approval in advance is that of the requester,
        // whom the header names.
        let approver = self.approver(fact);
        let job = &mut self.jobs[index as usize];
        job.note(fact);
        job.approved(approver, fact);
        // A gate that wants more people has waited since it was reached.
        if after != before {
            job.since = fact.at;
        }
        job.state = after;
        self.ready_queue.moved(index, &before, &self.jobs);
        // Last, because it depends on the new state and on the approvals so far.
        self.note_preapproval(index);
        Ok(())
    }

    /// A lease or a gate is legal only for a job whose needs and stage allow it, and a lease only
    /// under the next attempt number.
    fn may_begin(&self, index: u32, fact: &Fact) -> Result<(), IllegalEvent> {
        let job = &self.jobs[index as usize];
        match &fact.event {
            RunEvent::JobLeased { attempt, .. } => {
                // A gap or a repetition would let two workers report under one number.
                if *attempt != job.attempt.next() {
                    let state = format!("attempt {} is next", job.attempt.next());
                    return Err(IllegalEvent::new(&fact.event, state));
                }
                // The scheduler leases ready jobs only. This check keeps a bug in it, or a forged
                // log, from starting a job before its needs.
                if !self.ready_queue.is_due(index, fact.at) && !self.ready_queue.is_ready(index) {
                    return Err(IllegalEvent::new(&fact.event, "the job is not ready"));
                }
                // The timer voids expired approvals, but it may be late. A lease must not depend on
                // how busy the server was.
                if job.has_lapsed(fact.at) {
                    return Err(IllegalEvent::new(&fact.event, "its approvals have expired"));
                }
                // Compared here and not only in the scheduler, so that no order of commands exceeds
                // what the user asked for.
                if self.counts().running >= self.header().map_or(1, |header| header.parallelism) {
                    return Err(IllegalEvent::new(&fact.event, "the parallelism is used up"));
                }
            }
            RunEvent::GateReached { .. } | RunEvent::ConditionEvaluated { .. } => {
                // Ended is enough, not succeeded: a job with `when: always` has its condition and
                // its gate decided after failures too.
                let open = self
                    .ready_queue
                    .needs(index)
                    .iter()
                    .all(|need| self.jobs[*need as usize].state.is_over());
                if !open || !self.ready_queue.stage_is_open(index) {
                    return Err(IllegalEvent::new(&fact.event, "a job before it has not ended"));
                }
            }
            RunEvent::GateApproved { .. } => self.may_count(job, fact)?,
            RunEvent::GateVoided { approval_digest, .. }
                if job.approval_digest != Some(*approval_digest) =>
            {
                return Err(IllegalEvent::new(&fact.event, "it is for another approval digest"));
            }
            RunEvent::RunCreated { .. }
            | RunEvent::JobsPlanned { .. }
            | RunEvent::RunStarted {}
            | RunEvent::GateVoided { .. }
            | RunEvent::GateRejected { .. }
            | RunEvent::JobSucceeded { .. }
            | RunEvent::JobAttemptFailed { .. }
            | RunEvent::JobFailed { .. }
            | RunEvent::JobCancelled { .. }
            | RunEvent::JobLost { .. }
            | RunEvent::JobSkipped { .. }
            | RunEvent::RunAborted { .. }
            | RunEvent::RunCancelRequested { .. }
            | RunEvent::RunTimedOut {}
            | RunEvent::RunFinished { .. }
            | RunEvent::RunResumed {}
            | RunEvent::JobsInvalidated { .. }
            | RunEvent::JobRetried { .. }
            | RunEvent::PlanReplaced { .. }
            | RunEvent::JobImported { .. } => {}
        }
        Ok(())
    }
}

impl Job {
    /// Keeps what the fact says beyond the new state.
    fn note(&mut self, fact: &Fact) {
        match &fact.event {
            RunEvent::JobLeased { attempt, .. } => {
                self.attempt = *attempt;
                self.leased_at = Some(fact.at);
            }
            RunEvent::JobSucceeded { ran_ms, outputs, captured_output, artifacts, .. } => {
                self.ran_ms = Some(*ran_ms);
                self.outputs.clone_from(outputs);
                self.captured_output = *captured_output;
                self.artifacts.clone_from(artifacts);
                // The cause of an earlier failed attempt is history now; `tow why` would otherwise
                // explain a success with it.
                self.cause = None;
            }
            RunEvent::JobAttemptFailed { cause, ran_ms, captured_output, .. }
            | RunEvent::JobFailed { cause, ran_ms, captured_output, .. } => {
                // Counted from events and not from the attempt number: lost attempts have numbers
                // too, and cost no retry.
                self.failures += 1;
                self.ran_ms = Some(*ran_ms);
                self.captured_output = *captured_output;
                self.cause = Some(cause.clone());
            }
            RunEvent::JobCancelled { ran_ms, captured_output, .. } => {
                self.ran_ms = Some(*ran_ms);
                self.captured_output = *captured_output;
            }
            RunEvent::JobLost { .. } => self.losses += 1,
            RunEvent::JobSkipped { cause, .. } => self.skipped = Some(cause.clone()),
            RunEvent::GateReached { approval_digest, .. } => {
                self.approval_digest = Some(*approval_digest);
                // Part of the approval digest: an approval of the gate as it was reached before
                // must not open it now.
                self.asked += 1;
            }
            RunEvent::GateRejected { comment, .. } => {
                let (by, comment) = (fact.by.clone(), comment.clone());
                self.gate = Some(GateDecision { approved: false, by, at: fact.at, comment });
            }
            RunEvent::GateVoided { .. } => {
                self.approval_digest = None;
                self.gate = None;
                // All approvals fall together. They were given for one digest, and the digest is
                // void.
                self.approvals.clear();
            }
            RunEvent::JobImported { started_at, finished_at, exit_code, error, .. } => {
                // As if it had run here: a retry gets number 2.
                self.attempt = Attempt::FIRST;
                self.ran_ms = started_at.zip(*finished_at).map(|(from, to)| to.ms_since(from));
                self.imported = Some(Imported {
                    started_at: *started_at,
                    finished_at: *finished_at,
                    exit_code: *exit_code,
                    error: error.clone(),
                });
            }
            RunEvent::ConditionEvaluated { .. }
            | RunEvent::GateApproved { .. }
            | RunEvent::RunCreated { .. }
            | RunEvent::JobsPlanned { .. }
            | RunEvent::RunStarted {}
            | RunEvent::RunAborted { .. }
            | RunEvent::RunCancelRequested { .. }
            | RunEvent::RunTimedOut {}
            | RunEvent::RunFinished { .. }
            | RunEvent::RunResumed {}
            | RunEvent::JobsInvalidated { .. }
            | RunEvent::JobRetried { .. }
            | RunEvent::PlanReplaced { .. } => {}
        }
    }

    /// One more person has approved.
    fn approved(&mut self, by: Actor, fact: &Fact) {
        let RunEvent::GateApproved {
            comment,
            approvals_remaining,
            identity,
            expires_at,
            in_advance,
            ..
        } = &fact.event
        else {
            return;
        };
        let (at, comment) = (fact.at, comment.clone());
        // The number is in the event, because the policy in the plan may be replaced later and the
        // log must still say who opened the gate.
        if *approvals_remaining == 0 {
            let (by, comment) = (by.clone(), comment.clone());
            self.gate = Some(GateDecision { approved: true, by, at, comment });
        }
        let (identity, expires_at, in_advance) = (identity.clone(), *expires_at, *in_advance);
        self.approvals.push(Approval { by, at, comment, identity, expires_at, in_advance });
    }
}

impl Phase {
    /// Whether jobs may be leased.
    pub fn is_running(&self) -> bool {
        *self == Self::Running
    }
}
