//! Applying a fact: what it changes, and whether it is legal.

use super::{GateDecision, Header, Imported, Job, Phase, Run};
use crate::{
    event::{Fact, RunEvent},
    gate::Approval,
    ids::{Actor, Attempt, JobName, StageName},
    job::{IllegalEvent, JobState},
};

impl Run {
    /// Applies one more fact. After an error the run is as it was.
    pub fn evolve(&mut self, fact: &Fact) -> Result<(), IllegalEvent> {
        if fact.at < self.newest_at {
            return Err(IllegalEvent::new(
                &fact.event,
                format!("it is {} already", self.newest_at),
            ));
        }
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
        self.phase = phase;
        self.newest_at = fact.at;
        Ok(())
    }

    fn create(&mut self, fact: &Fact) {
        let RunEvent::RunCreated {
            run,
            pipeline,
            file,
            file_sha256,
            plan_sha256,
            stages,
            jobs,
            parallelism,
            gates_preapproved,
            due,
            traceparent,
            folder,
            idempotency_key: _,
            source,
            requester,
            authors,
        } = &fact.event
        else {
            return;
        };
        self.announced = *jobs;
        self.header = Some(Header {
            run: run.clone(),
            pipeline: pipeline.clone(),
            file: file.clone(),
            folder: folder.clone(),
            file_sha256: *file_sha256,
            plan_sha256: *plan_sha256,
            stages: stages.clone(),
            parallelism: *parallelism,
            gates_preapproved: *gates_preapproved,
            timeout_ms: due.map(|due| due.ms_since(fact.at)),
            due: *due,
            traceparent: traceparent.clone(),
            source: source.clone(),
            requested_by: fact.by.clone(),
            requester: requester.clone(),
            accepted: Vec::new(),
            authors: authors.clone(),
            created_at: fact.at,
        });
    }

    /// Takes the header of an edited file over, and keeps the jobs aside until the new plan says
    /// which of them there still are.
    fn replace_plan(&mut self, fact: &Fact) {
        let RunEvent::PlanReplaced {
            file_sha256,
            plan_sha256,
            stages,
            jobs,
            timeout_ms,
            source,
            requester,
            authors,
        } = &fact.event
        else {
            return;
        };
        if let Some(header) = &mut self.header {
            header.file_sha256 = *file_sha256;
            header.plan_sha256 = *plan_sha256;
            header.stages.clone_from(stages);
            header.timeout_ms = *timeout_ms;
            if source.is_some() {
                header.source.clone_from(source);
            }
            header.due = timeout_ms.map(|allowed| fact.at.plus_ms(allowed));
            header.authors.clone_from(authors);
            header.accepted.retain(|(by, _)| *by != fact.by);
            header.accepted.push((fact.by.clone(), requester.clone()));
        }
        let old = std::mem::take(&mut self.jobs);
        self.carried = old.into_iter().map(|job| (job.plan.name.clone(), job)).collect();
        self.announced = *jobs;
        self.reopen(fact);
        self.reindex();
    }

    fn invalidate_from(&mut self, from: &StageName, fact: &Fact) -> Result<(), IllegalEvent> {
        let stages = self.header.as_ref().map(|header| header.stages.clone());
        let stages = stages.unwrap_or_default();
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
            (job.attempt, job.asked) = (attempt, asked);
        }
        if let Some(old) = carried {
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
        let planned = self.jobs.len();
        if planned != self.announced as usize {
            let state = format!("{planned} of {} jobs are planned", self.announced);
            return Err(IllegalEvent::new(&fact.event, state));
        }
        self.reindex();
        if self.by_name.len() != planned {
            return Err(IllegalEvent::new(&fact.event, "two jobs have one name"));
        }
        for (name, job) in std::mem::take(&mut self.carried) {
            if job.attempt > Attempt(0) || job.asked > 0 {
                self.retired.insert(name, (job.attempt, job.asked));
            }
        }
        Ok(())
    }

    fn finish(&mut self, fact: &Fact) -> Result<(), IllegalEvent> {
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
        self.reindex();
    }

    /// Notes that a run continues, if it had finished.
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
        self.abort_root = None;
        self.reopen(fact);
        if let Some(header) = &mut self.header {
            // A resumed run has the time that a new one would have.
            header.due = header.timeout_ms.map(|allowed| fact.at.plus_ms(allowed));
        }
        self.reindex();
    }

    /// Runs `name` again, and with it the jobs that were skipped because of it.
    fn retry(&mut self, name: &JobName, fact: &Fact) -> Result<(), IllegalEvent> {
        let Some(index) = self.index_of(name.as_str()) else {
            return Err(IllegalEvent::new(&fact.event, "no job has that name"));
        };
        self.jobs[index as usize].state.next(&fact.event)?;
        let freed = self.freed_by(name);
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
            self.ready_queue.settle_doomed(index);
        }
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
        self.note_preapproval(index);
        Ok(())
    }

    /// A lease or a gate is legal only for a job whose needs and stage allow it, and a lease only
    /// under the next attempt number.
    fn may_begin(&self, index: u32, fact: &Fact) -> Result<(), IllegalEvent> {
        let job = &self.jobs[index as usize];
        match &fact.event {
            RunEvent::JobLeased { attempt, .. } => {
                if *attempt != job.attempt.next() {
                    let state = format!("attempt {} is next", job.attempt.next());
                    return Err(IllegalEvent::new(&fact.event, state));
                }
                if !self.ready_queue.is_due(index, fact.at) && !self.ready_queue.is_ready(index) {
                    return Err(IllegalEvent::new(&fact.event, "the job is not ready"));
                }
                if job.has_lapsed(fact.at) {
                    return Err(IllegalEvent::new(&fact.event, "its approvals have expired"));
                }
                if self.counts().running >= self.header().map_or(1, |header| header.parallelism) {
                    return Err(IllegalEvent::new(&fact.event, "as many jobs run as may"));
                }
            }
            RunEvent::GateReached { .. } | RunEvent::ConditionEvaluated { .. } => {
                let open = self
                    .ready_queue
                    .needs(index)
                    .iter()
                    .all(|need| self.jobs[*need as usize].state.is_over());
                if !open || !self.ready_queue.stage_is_open(index) {
                    return Err(IllegalEvent::new(&fact.event, "something before it is open"));
                }
            }
            RunEvent::GateApproved { .. } => self.may_count(job, fact)?,
            RunEvent::GateVoided { approval_digest, .. }
                if job.approval_digest != Some(*approval_digest) =>
            {
                return Err(IllegalEvent::new(&fact.event, "something else was asked"));
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
                self.cause = None;
            }
            RunEvent::JobAttemptFailed { cause, ran_ms, captured_output, .. }
            | RunEvent::JobFailed { cause, ran_ms, captured_output, .. } => {
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
                self.asked += 1;
            }
            RunEvent::GateRejected { comment, .. } => {
                let (by, comment) = (fact.by.clone(), comment.clone());
                self.gate = Some(GateDecision { approved: false, by, at: fact.at, comment });
            }
            RunEvent::GateVoided { .. } => {
                self.approval_digest = None;
                self.gate = None;
                self.approvals.clear();
            }
            RunEvent::JobImported { started_at, finished_at, exit_code, error, .. } => {
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
