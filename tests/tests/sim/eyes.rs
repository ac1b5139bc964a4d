//! Who let what through, by the log alone: every lease of a gated job stands on enough approvals
//! of what was read, by people who may, and none of it has changed or expired since.

use std::collections::BTreeMap;

use towpath_engine::{
    event::{Fact, RunEvent},
    gate::Excluded,
    ids::{ActorKind, Digest, JobName},
    plan::{JobPlan, When},
    time::Timestamp,
};

/// What was asked at a gate, and who approved, until when.
#[derive(Clone)]
struct Gate {
    approval_digest: Digest,
    approvals: Vec<(String, Option<Timestamp>)>,
    begun: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Eyes {
    requester: String,
    gates: BTreeMap<JobName, Gate>,
}

impl Eyes {
    pub(crate) fn see(
        &mut self,
        fact: &Fact,
        plan: impl Fn(&JobName) -> Option<JobPlan>,
    ) -> Result<(), String> {
        if let RunEvent::RunCreated { .. } = &fact.event {
            self.requester = fact.by.to_string();
        }
        let Some(plan) = fact.event.job().and_then(plan).filter(|plan| plan.when == When::Manual)
        else {
            return Ok(());
        };
        let policy = plan.gate.clone().unwrap_or_default();
        let gate = self.gates.get_mut(&plan.name);
        match (&fact.event, gate) {
            (RunEvent::GateReached { approval_digest, .. }, None) => {
                let gate =
                    Gate { approval_digest: *approval_digest, approvals: Vec::new(), begun: false };
                self.gates.insert(plan.name, gate);
            }
            (RunEvent::GateReached { .. }, Some(_)) => return Err("reached twice".to_owned()),
            (RunEvent::GateVoided { approval_digest, .. }, Some(gate))
                if gate.approval_digest == *approval_digest =>
            {
                self.gates.remove(&plan.name);
            }
            (
                RunEvent::GateApproved { approval_digest, expires_at: until, in_advance, .. },
                Some(gate),
            ) => {
                let by = fact.by.to_string();
                let by = if *in_advance { self.requester.clone() } else { by.to_lowercase() };
                let human = *in_advance || fact.by.kind == ActorKind::Human;
                let own = policy.excludes(Excluded::Requester) && by == self.requester;
                let twice = gate.approvals.iter().any(|(other, _)| *other == by);
                if !human || own || twice || gate.approval_digest != *approval_digest {
                    return Err(format!("{by} approves {} of {:?}", plan.name, self.requester));
                }
                gate.approvals.push((by, *until));
            }
            (RunEvent::JobLeased { .. }, Some(gate)) => {
                let lapsed =
                    |until: &Option<Timestamp>| until.is_some_and(|until| until <= fact.at);
                let late = !gate.begun && gate.approvals.iter().any(|(_, until)| lapsed(until));
                if late || gate.approvals.len() != policy.min as usize {
                    return Err(format!("{} is leased on {:?}", plan.name, gate.approvals));
                }
                gate.begun = true;
            }
            (RunEvent::JobLeased { .. } | RunEvent::GateVoided { .. }, _) => {
                return Err(format!("{} is behind a gate that nobody has reached", plan.name));
            }
            (_, _) => {}
        }
        Ok(())
    }

    /// The plan is another one: every gate asks again.
    pub(crate) fn replaced(&mut self) {
        self.gates.clear();
    }

    /// These jobs run again: no gate that stands on one of them may have been left as it was.
    /// `over`: the job has ended, and nothing of it is left to approve.
    pub(crate) fn reopened(
        &mut self,
        again: &[JobPlan],
        stage: impl Fn(&JobPlan) -> usize,
        plan: impl Fn(&JobName) -> Option<(JobPlan, bool)>,
    ) -> Result<(), String> {
        for job in again {
            self.gates.remove(&job.name);
        }
        for name in self.gates.keys() {
            let Some((gate, over)) = plan(name) else { continue };
            let changed = again
                .iter()
                .find(|job| stage(job) < stage(&gate) || gate.needs.contains(&job.name));
            if let Some(changed) = changed.filter(|_| !over) {
                return Err(format!("{name} stands on {}, which runs again", changed.name));
            }
        }
        Ok(())
    }
}
