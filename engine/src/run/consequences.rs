//! Consequences: skips, decided conditions, reached gates, the abort and the end.
//!
//! Each consequence is one event; the caller applies it and calls again, until there is none. The
//! indexes of the ready_queue make each answer cost the same in a run of ten jobs or of a million.
//!
//! Every answer must fit a record, whatever jobs wrote and however long their names are. No client
//! requested it, so no client can be refused: a consequence that cannot be written would undo the
//! command that it follows from, every time that command is given.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{Phase, Run};
use crate::{
    event::{FailureCause, RunEvent, RunOutcome, SkipCause},
    expression::{Context, ExprError, Inputs, NeedFacts, evaluate_condition, fill_env},
    job::JobState,
};

impl Run {
    /// The next event that follows from the run in its current state, or `None` when it is at rest.
    pub fn consequence(&self) -> Option<RunEvent> {
        match self.phase {
            // While a plan is being read its jobs are incomplete, so nothing can follow from them
            // yet.
            Phase::Unborn | Phase::Planning | Phase::Finished(_) => None,
            Phase::Aborting | Phase::Cancelling | Phase::TimingOut => self.end(),
            Phase::Running => self
                // First: what a run that aborts has not begun ends with it, and is not skipped.
                .abort()
                .or_else(|| self.skip())
                .or_else(|| self.open())
                .or_else(|| self.preapproval())
                .or_else(|| self.end()),
        }
    }

    fn abort(&self) -> Option<RunEvent> {
        let root = self.ready_queue.abort_due()?;
        Some(RunEvent::RunAborted { root: self.jobs[root as usize].plan.name.clone() })
    }

    fn skip(&self) -> Option<RunEvent> {
        let (index, need) = self.ready_queue.first_blocked()?;
        let need = &self.jobs[need as usize];
        // The root of the chain, not the need that was skipped itself: `tow retry ROOT` then frees
        // every job of the chain, however long it is.
        let root = match &need.skipped {
            Some(SkipCause::NeedUnmet { root, .. }) => root.clone(),
            Some(SkipCause::ConditionFalse) | None => need.plan.name.clone(),
        };
        let job = self.jobs[index as usize].plan.name.clone();
        let cause = SkipCause::NeedUnmet { need: need.plan.name.clone(), root };
        Some(RunEvent::JobSkipped { job, cause })
    }

    /// Decides the condition of a job, or says that its gate is reached.
    fn open(&self) -> Option<RunEvent> {
        let job = &self.jobs[self.ready_queue.first_unevaluated()? as usize];
        let name = job.plan.name.clone();
        Some(match (&job.state, &job.plan.condition) {
            (JobState::Declined, _) => {
                RunEvent::JobSkipped { job: name, cause: SkipCause::ConditionFalse }
            }
            (JobState::Waiting, Some(condition)) => {
                let decided = self
                    .filled_context(job)
                    .and_then(|(context, _)| evaluate_condition(condition, &context));
                match decided {
                    Ok((holds, Inputs { values, long })) => RunEvent::ConditionEvaluated {
                        job: name,
                        holds,
                        inputs: values,
                        long_inputs: long,
                    },
                    Err(error) => RunEvent::JobFailed {
                        job: name,
                        attempt: job.attempt,
                        cause: FailureCause::NotStarted(format!("`if`: {error}")).bounded(),
                        ran_ms: 0,
                        captured_output: None,
                    },
                }
            }
            (_, _) => {
                RunEvent::GateReached { job: name, approval_digest: self.approval_digest(job) }
            }
        })
    }

    fn end(&self) -> Option<RunEvent> {
        if !self.ready_queue.is_over() {
            return None;
        }
        let counts = self.counts();
        Some(RunEvent::RunFinished {
            outcome: self.outcome(),
            succeeded: counts.succeeded,
            failed: counts.failed,
            skipped: counts.skipped,
            cancelled: counts.cancelled + counts.rejected,
            rejected: counts.rejected,
        })
    }

    /// How a run whose jobs have all ended has ended.
    fn outcome(&self) -> RunOutcome {
        let counts = self.counts();
        match self.phase {
            Phase::Cancelling => return RunOutcome::Cancelled,
            Phase::TimingOut => return RunOutcome::TimedOut,
            Phase::Aborting if counts.rejected == 0 && counts.timed_out < counts.failed => {
                return RunOutcome::Failed;
            }
            Phase::Aborting
            | Phase::Unborn
            | Phase::Planning
            | Phase::Running
            | Phase::Finished(_) => {}
        }
        match (counts.failed, counts.rejected, self.ready_queue.last_stage_is_whole()) {
            (0, 0, _) => RunOutcome::Succeeded,
            (0, 1.., _) => RunOutcome::Rejected,
            (1.., 0, true) if self.phase == Phase::Running => RunOutcome::Partial,
            (failed, 0, _) if failed == counts.timed_out => RunOutcome::TimedOut,
            (1.., _, _) => RunOutcome::Failed,
        }
    }

    /// What expressions of `job` may read once its environment is filled in, and that environment.
    pub(super) fn filled_context(
        &self,
        job: &super::Job,
    ) -> Result<(Context, BTreeMap<String, String>), ExprError> {
        let context = self.context(job);
        let env = fill_env(&job.plan.env, &context)?;
        Ok((Context { env: env.clone(), ..context }, env))
    }

    /// What expressions of `job` may read.
    fn context(&self, job: &super::Job) -> Context {
        let mut context = Context {
            matrix: job.plan.matrix.clone(),
            env: job.plan.env.clone(),
            ..Context::default()
        };
        if let Some(header) = self.header() {
            context.run_id = header.run.to_string();
            context.pipeline.clone_from(&header.pipeline);
        }
        let mut open: Vec<u32> = self.index_of(job.plan.name.as_str()).into_iter().collect();
        while let Some(index) = open.pop() {
            for need in self.ready_queue.needs(index) {
                let need_job = &self.jobs[*need as usize];
                let name = need_job.plan.name.clone();
                if let Entry::Vacant(free) = context.needs.entry(name) {
                    free.insert(NeedFacts {
                        outcome: need_job.state.word().to_owned(),
                        outputs: need_job.outputs.clone(),
                    });
                    open.push(*need);
                }
            }
        }
        context
    }
}
