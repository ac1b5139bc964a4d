//! The state of gates: who may approve, how many approvals remain, and when they expire.

use super::{Job, Run};
use crate::{
    admission::{Asking, is_human},
    any_event::IllegalEvent,
    event::{Fact, RunEvent, SkipCause, VoidCause},
    gate::{Approval, GatePolicy, Identity, is_same_person},
    ids::{Actor, Digest, JobName},
    job::JobState,
    refusal::Refusal,
    time::Timestamp,
};

impl Job {
    /// The policy of its gate.
    pub fn policy(&self) -> GatePolicy {
        self.plan.gate.clone().unwrap_or_default()
    }

    /// How many more approvals its gate needs.
    pub fn approvals_remaining(&self) -> u32 {
        let min = self.plan.gate.as_ref().map_or(1, |policy| policy.min);
        min.saturating_sub(u32::try_from(self.approvals.len()).unwrap_or(u32::MAX))
    }

    /// When the approvals expire, unless the job is leased before: all of them with the first.
    pub fn approvals_expire_at(&self) -> Option<Timestamp> {
        let untils = self.approvals.iter().filter_map(|approval| approval.expires_at);
        // With the first to expire all of them are void: a quorum whose members approved at
        // different times must have been complete at one moment. Once leased, the job runs, and
        // time does not stop it.
        untils.min().filter(|_| match &self.state {
            JobState::AtGate(_) | JobState::Approved => true,
            JobState::Waiting
            | JobState::Admitted
            | JobState::Declined
            | JobState::Leased(..)
            | JobState::BackingOff(_)
            | JobState::Requeued
            | JobState::Succeeded
            | JobState::Failed
            | JobState::TimedOut
            | JobState::Skipped
            | JobState::Cancelled
            | JobState::Rejected => false,
        })
    }

    /// Whether its approvals have expired by `now`.
    pub(crate) fn has_lapsed(&self, now: Timestamp) -> bool {
        self.approvals_expire_at().is_some_and(|until| until <= now)
    }

    /// The approval of the same person, if they gave theirs already.
    pub(crate) fn approval_of(&self, by: &Actor, identity: &Identity) -> Option<&Approval> {
        self.approvals
            .iter()
            .find(|given| is_same_person((&given.by, &given.identity), (by, identity)))
    }

    /// What an approval of it covers, if its gate was reached and its approvals may still be void.
    fn voidable(&self) -> Option<Digest> {
        match &self.state {
            JobState::AtGate(approval_digest) => Some(*approval_digest),
            // Opened, but not running: the next attempt still depends on the approval.
            JobState::Approved | JobState::BackingOff(_) | JobState::Requeued => {
                self.approval_digest
            }
            JobState::Waiting
            | JobState::Admitted
            | JobState::Declined
            | JobState::Leased(..)
            | JobState::Succeeded
            | JobState::Failed
            | JobState::TimedOut
            | JobState::Skipped
            | JobState::Cancelled
            | JobState::Rejected => None,
        }
    }

    fn voided(&self, cause: &VoidCause) -> Option<RunEvent> {
        let (job, cause) = (self.plan.name.clone(), cause.clone());
        self.voidable().map(|approval_digest| RunEvent::GateVoided { job, approval_digest, cause })
    }
}

impl Run {
    /// The approval of `by` at the gate of `job`, decided at `at`; or why they may not give it.
    pub(crate) fn approval(
        &self,
        job: &Job,
        by: (&Actor, &Identity),
        comment: String,
        at: Timestamp,
        in_advance: bool,
    ) -> Result<RunEvent, Refusal> {
        let name = &job.plan.name;
        self.may_approve(job, by)?;
        let JobState::AtGate(approval_digest) = job.state else {
            return Err(Refusal::GateNotWaiting { job: name.clone(), state: job.state.word() });
        };
        let policy = job.plan.gate.as_ref();
        Ok(RunEvent::GateApproved {
            job: name.clone(),
            approval_digest,
            comment,
            approvals_remaining: job.approvals_remaining().saturating_sub(1),
            identity: policy.map(|_| by.1.clone()).unwrap_or_default(),
            expires_at: policy.and_then(|policy| policy.expires_ms).map(|ms| at.plus_ms(ms)),
            in_advance,
        })
    }

    /// Whether `by` may approve at the gate of `job`.
    fn may_approve(&self, job: &Job, by: (&Actor, &Identity)) -> Result<(), Refusal> {
        // Before the policy, and also without one: a program must not open a gate whose file has no
        // policy.
        is_human(&job.plan.name, by.0)?;
        let (Some(policy), Some(header)) = (&job.plan.gate, &self.header) else { return Ok(()) };
        let mut requesters = vec![(&header.requested_by, &header.requester)];
        // Replacing the plan is asking for another run: the actor could otherwise edit the file,
        // accept it, and approve the result.
        requesters.extend(header.accepted.iter().map(|(by, identity)| (by, identity)));
        policy.admits(&Asking {
            job: &job.plan.name,
            by,
            requesters: &requesters,
            authors: header.authors.as_ref(),
        })
    }

    /// Whether the gate of `job` is to be approved by `--yes` of the requester, who may do so.
    pub(super) fn is_preapproved(&self, job: &Job) -> bool {
        let Some(header) = self.header.as_ref().filter(|header| header.gates_preapproved) else {
            return false;
        };
        let by = (&header.requested_by, &header.requester);
        // Rules may refuse the requester. `--yes` is then no approval, and the gate waits for
        // others.
        matches!(job.state, JobState::AtGate(_))
            && job.approval_of(by.0, by.1).is_none()
            && self.may_approve(job, by).is_ok()
    }

    /// The approval of the first gate that `--yes` of the requester covers.
    pub(super) fn preapproval(&self) -> Option<RunEvent> {
        let job = &self.jobs[self.ready_queue.first_preapproved()? as usize];
        let header = self.header.as_ref()?;
        let by = (&header.requested_by, &header.requester);
        // A fixed text: the log shows that no person read the results behind this approval.
        let comment = "approved in advance by `--yes`".to_owned();
        // What follows from an event is decided at its moment.
        self.approval(job, by, comment, self.newest_at, true).ok()
    }

    /// Whether an approval is legal: it is of a person who has not approved yet, and its number of
    /// remaining approvals is correct.
    pub(super) fn may_count(&self, job: &Job, fact: &Fact) -> Result<(), IllegalEvent> {
        let RunEvent::GateApproved { approvals_remaining, identity, .. } = &fact.event else {
            return Ok(());
        };
        let illegal = |state: &str| Err(IllegalEvent::new(&fact.event, state));
        let by = self.approver(fact);
        if job.approval_of(&by, identity).is_some() {
            return illegal("that person has approved already");
        }
        // The event carries the number so that readers need no policy. A wrong one would open the
        // gate early.
        if job.approvals_remaining() != approvals_remaining.saturating_add(1) {
            return illegal("the number of remaining approvals differs");
        }
        if job.has_lapsed(fact.at) {
            illegal("the approvals before it have expired")
        } else {
            Ok(())
        }
    }

    /// Whose approval `fact` is, if it is one; else who issued its command.
    pub fn approver(&self, fact: &Fact) -> Actor {
        let in_advance = matches!(fact.event, RunEvent::GateApproved { in_advance: true, .. });
        let requester = self.header.as_ref().filter(|_| in_advance);
        requester.map_or_else(|| fact.by.clone(), |header| header.requested_by.clone())
    }

    /// The approvals that have expired by `now`.
    pub(crate) fn lapsed(&self, now: Timestamp) -> Vec<RunEvent> {
        let jobs = self.ready_queue.lapsed(now).map(|index| &self.jobs[index as usize]);
        jobs.filter_map(|job| job.voided(&VoidCause::Expired(job.approvals_expire_at()?))).collect()
    }

    /// The gates whose approvals become void once the jobs for which `again` holds run again.
    pub(crate) fn voids(&self, cause: &VoidCause, again: impl Fn(&Job) -> bool) -> Vec<RunEvent> {
        // Evaluated once for each job: the closure is asked again for every need of every gate
        // below.
        let changed: Vec<bool> = self.jobs.iter().map(again).collect();
        let touched = (0..).zip(&changed).filter(|(_, again)| **again);
        // A gate covers everything in the stages before it, so any gate of a later stage than the
        // first change is affected, whatever it needs.
        let Some(first) = touched.map(|(index, _)| self.ready_queue.stage(index)).min() else {
            return Vec::new();
        };
        let stands_on = |index: u32| {
            changed[index as usize]
                || self.ready_queue.stage(index) > first
                // Within the stage of the change only needs connect jobs.
                || (self.ready_queue.stage(index) == first
                    && self
                        .ready_queue
                        .within_stage(index)
                        .iter()
                        .any(|need| changed[*need as usize]))
        };
        let gates = (0..).zip(&self.jobs).filter(|(_, job)| job.voidable().is_some());
        gates
            .filter(|(index, _)| stands_on(*index))
            .filter_map(|(_, job)| job.voided(cause))
            .collect()
    }

    /// Whether approvals that were given would be void, if the jobs for which `again` holds ran
    /// again.
    pub(crate) fn would_void(&self, again: impl Fn(&Job) -> bool) -> bool {
        let events = self.voids(&VoidCause::JobRepeated("".into()), again);
        let mut gates = events.iter().filter_map(|event| self.job(event.job()?.as_str()));
        gates.any(|job| !job.approvals.is_empty())
    }

    /// What an approval of `job` covers: the run, its plan and its files, the job, how often its
    /// gate was reached, and every result before it: of the earlier stages, and of its needs and
    /// theirs. Any change of them is another digest, and an approval of the old one opens nothing.
    pub fn approval_digest(&self, job: &Job) -> Digest {
        let header = self.header.as_ref();
        let plan = header.map(|header| header.plan_sha256.to_string()).unwrap_or_default();
        let run = header.map(|header| header.run.as_str()).unwrap_or_default();
        // The job's own plan beside the digest of the whole: after an accepted edit a job keeps its
        // old result and may have a new script.
        let own = serde_json::to_string(&job.plan).expect("BUG: a job is always JSON");
        let before = self.ready_queue.results_before();
        let files = header.and_then(|header| header.source.as_ref());
        let files = files.map(|source| source.commit.as_str()).unwrap_or_default();
        // One field on a line, each without line feeds, so that no two sets of fields give one
        // text. The run is part of it, so that an approval cannot be replayed in another run.
        let mut text = format!("{run}\n{plan}\n{own}\n{}\n{files}\n{before}\n", job.asked);
        let index = self.index_of(job.plan.name.as_str());
        // Results of earlier stages are in `before` already. Those of the own stage are added for
        // needs only: the others may still be running.
        for need in index.map(|index| self.ready_queue.within_stage(index)).unwrap_or_default() {
            text.push_str(&self.jobs[need as usize].result_line());
            text.push('\n');
        }
        Digest::of(text.as_bytes())
    }

    /// The jobs that run again together with `name`: those that were skipped because of it.
    pub(crate) fn freed_by(&self, name: &JobName) -> impl Fn(&Job) -> bool + use<> {
        let (name, aborted) = (name.clone(), self.abort_root.as_ref() == Some(name));
        move |job| match &job.skipped {
            _ if job.plan.name == name => true,
            Some(SkipCause::NeedUnmet { root, .. }) => *root == name,
            // Its own condition skipped it: the retried job had no part in that.
            Some(SkipCause::ConditionFalse) => false,
            None => aborted && job.state == JobState::Skipped,
        }
    }
}

impl Job {
    /// The result of an ended job, as one line: what it was, and all that it left behind.
    pub(super) fn result_line(&self) -> String {
        let captured_output = self.captured_output.map(|captured_output| captured_output.sha256);
        let (name, state) = (&self.plan.name, self.state.word());
        let result = (name, self.attempt, state, captured_output, &self.outputs, &self.artifacts);
        serde_json::to_string(&result).expect("BUG: a result is always JSON")
    }
}
