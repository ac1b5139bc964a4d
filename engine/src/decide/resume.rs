//! `tow resume`: a run continues where it stopped.

use super::create::{concerned, plan_chunks};
use crate::{
    admission::is_human,
    event::{RunEvent, RunOutcome, VoidCause},
    gate::{Authors, Identity},
    ids::{Actor, Digest, StageName},
    plan::Plan,
    refusal::Refusal,
    run::{Job, Phase, Run},
    source::Source,
};

/// What the pipeline file means now.
#[derive(Clone, Debug)]
pub struct EditedPlan {
    /// Digest of the file's bytes.
    pub file_sha256: Digest,
    /// What it means.
    pub plan: Plan,
    /// The files of the run as they are now. `None`: not read.
    pub source: Option<Source>,
    /// What is known about who sends it.
    pub requester: Identity,
    /// Who wrote it. `None`: unknown.
    pub authors: Option<Authors>,
}

/// Continue the run.
#[derive(Clone, Debug, Default)]
pub struct ResumeRun {
    /// Run this stage and everything after it again, although it succeeded.
    pub from: Option<StageName>,
    /// The pipeline file as it is now. `None`: not read.
    pub file: Option<EditedPlan>,
    /// Take an edited file over.
    pub accept_changes: bool,
    /// An edit may take gates away: the requester may open them.
    pub may_lift_gates: bool,
}

/// Refuses a plan that takes a gate away, unless a person who may open gates sends it.
fn may_lift(run: &Run, plan: &Plan, is_approver: bool, by: &Actor) -> Result<(), Refusal> {
    let Some(job) = run.lifted_gate(plan) else { return Ok(()) };
    // It opens the gate in effect, and a program opens none, whatever its role.
    is_human(job, by)?;
    if is_approver { Ok(()) } else { Err(Refusal::GateLifted { job: job.clone() }) }
}

/// Succeeded jobs stay as they are unless `from` says otherwise; everything else that has ended
/// gets another chance. A plan that has changed is refused unless the edit is accepted; other files
/// than the frozen ones are taken over only together with it.
pub(super) fn decide(run: &Run, resume: &ResumeRun, by: &Actor) -> Result<Vec<RunEvent>, Refusal> {
    let header = run.header().ok_or(Refusal::RunUnknown)?;
    // Scripts of the run are still being ended. Started again now, a job could run beside its own
    // cancelled attempt.
    if run.phase().is_ending() {
        return Err(Refusal::RunEnding { phase: run.phase().clone() });
    }
    let mut events = Vec::new();
    let mut stages = &header.stages;
    let mut void = None;
    if let Some(EditedPlan { file_sha256, plan, source, requester, authors }) = &resume.file {
        let now = plan.digest();
        // Other files alone are no change of the plan, so without `--accept-changes` the frozen
        // commit is used and nothing is refused.
        let moved = source.is_some() && *source != header.source && resume.accept_changes;
        if now != header.plan_sha256 || moved {
            if !resume.accept_changes {
                return Err(Refusal::PlanChanged { frozen: header.plan_sha256, now });
            }
            // A running script belongs to the old plan; its report would be filed under a job that
            // may not exist any more.
            if run.counts().running > 0 {
                return Err(Refusal::JobsRunning { running: run.counts().running });
            }
            // Decided here, on the plan that is replaced: it may be another one than a moment ago.
            may_lift(run, plan, resume.may_lift_gates, by)?;
            let (requester, authors) = concerned(plan, requester, authors.as_ref())?;
            void = Some(VoidCause::PlanReplaced(now));
            events.push(RunEvent::PlanReplaced {
                file_sha256: *file_sha256,
                plan_sha256: now,
                stages: plan.stages.clone(),
                jobs: u32::try_from(plan.jobs.len()).unwrap_or(u32::MAX),
                timeout_ms: plan.timeout_ms,
                source: source.clone(),
                requester,
                authors,
            });
            // The whole plan again, not a difference: a replay then needs no earlier plan to read
            // this one.
            events.extend(plan_chunks(&plan.jobs));
            events.push(RunEvent::RunStarted {});
            stages = &plan.stages;
        }
    }
    if let Some(from) = &resume.from {
        if !stages.contains(from) {
            return Err(Refusal::StageUnknown { stage: from.clone() });
        }
        // Its result would be discarded while its script still writes.
        if run.counts().running > 0 {
            return Err(Refusal::JobsRunning { running: run.counts().running });
        }
        void = void.or(Some(VoidCause::StageRepeated(from.clone())));
        events.push(RunEvent::JobsInvalidated { from: from.clone() });
    }
    if events.is_empty() && matches!(run.phase(), Phase::Finished(RunOutcome::Succeeded)) {
        // Only jobs whose own `if` did not hold are left, and it reads what is frozen: to resume
        // the run would record that they are skipped again, and nothing else.
        return Err(Refusal::NothingToResume);
    }
    // The first of them names the cause in `gate_voided`; the digest covers all.
    let lost = run.jobs().iter().find(|job| job.state.is_over_badly());
    // A resume after an approval continues what was approved: without `--from` or an edited file no
    // job runs again that would make the approval void.
    let asked = !events.is_empty() || !run.would_void(|job| job.state.is_over_badly());
    if let Some(job) = lost.filter(|_| asked) {
        void = void.or(Some(VoidCause::JobRepeated(job.plan.name.clone())));
        events.push(RunEvent::RunResumed {});
    }
    // In a finished run no gate is open, so nothing has to be voided.
    if let Some(cause) = void.filter(|_| run.phase().is_running()) {
        let replaced = matches!(cause, VoidCause::PlanReplaced(_));
        let first = resume.from.as_ref().and_then(|from| place(&header.stages, from));
        let repeated = |job: &Job| {
            first.is_some_and(|first| place(&header.stages, &job.plan.stage) >= Some(first))
        };
        let again = |job: &Job| replaced || job.state.is_over_badly() || repeated(job);
        // In front: a gate must be void before its results change, or a replay would pass a state
        // in which it is open for results that no person saw.
        events.splice(0..0, run.voids(&cause, again));
    }
    // In a run that is not finished an empty answer is right: the process that resumes it works on
    // what is left.
    if events.is_empty() && matches!(run.phase(), Phase::Finished(_)) {
        return Err(Refusal::NothingToResume);
    }
    Ok(events)
}

fn place(stages: &[StageName], stage: &StageName) -> Option<usize> {
    stages.iter().position(|known| known == stage)
}

#[cfg(test)]
mod tests;
