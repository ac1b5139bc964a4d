//! Which gates an edited plan takes away.
//!
//! A gate guards more than its own job: what needs that job does not begin unless the gate was
//! opened, and what stands in a later stage does not begin before the gate was decided. Both follow
//! from the plans, so an edit is compared with the plan that it replaces: once as if nothing had run,
//! because a gate that was opened asks again after `tow resume --from`, and once as the run is now,
//! because a job that has succeeded waits for nothing, and holds up nothing that needs it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Run;
use crate::{
    ids::{JobName, StageName},
    job::JobState,
    plan::{JobPlan, Plan, When},
};

/// Gates that are compared in one walk over the two plans: one bit of a number each.
const GATES_AT_ONCE: usize = u64::BITS as usize;
/// Most gates of a plan that are compared. An edit that moves a job of a plan with more counts as one
/// that lifts a gate: each walk over 200,000 jobs takes some milliseconds of the run's lock.
const GATES_MAX: usize = 1_024;

impl Run {
    /// The first job whose gate `plan` takes away: in `plan` it has none or is not there, it is
    /// skipped by a condition that it did not have, or another job does not stand behind it any
    /// more. A person who replaces the plan by that one does what the gate leaves to approvers.
    pub fn lifted_gate(&self, plan: &Plan) -> Option<&JobName> {
        let old: Vec<&JobPlan> = self.jobs.iter().map(|job| &*job.plan).collect();
        let gates: Vec<&JobPlan> = old.iter().copied().filter(is_gated).collect();
        if gates.is_empty() {
            return None;
        }
        let new: HashMap<&JobName, &JobPlan> =
            plan.jobs.iter().map(|job| (&job.name, job)).collect();
        let keeps = |gate: &&JobPlan| {
            let edited = new.get(&gate.name).filter(|edited| is_gated(edited));
            // A gate whose condition is false is skipped without a person, and its stage ends.
            edited.is_some_and(|it| it.condition.is_none() || it.condition == gate.condition)
        };
        if let Some(gate) = gates.iter().find(|gate| !keeps(gate)) {
            return Some(&gate.name);
        }
        let stages = self.header().map_or(&[][..], |header| &header.stages);
        let is_in_place = |job: &&JobPlan| {
            let edited = new.get(&job.name);
            edited.is_none_or(|edited| {
                (&edited.stage, &edited.needs, edited.when) == (&job.stage, &job.needs, job.when)
            })
        };
        // Most edits mend a script, and move no job.
        if stages == plan.stages && old.iter().all(is_in_place) {
            return None;
        }
        if gates.len() > GATES_MAX {
            return gates.first().map(|gate| &gate.name);
        }
        let (before, after) = (Order::of(stages, old), Order::of(&plan.stages, plan.jobs.iter()));
        let succeeded = self.jobs.iter().filter(|job| job.state == JobState::Succeeded);
        let (succeeded, none) = (succeeded.map(|job| &job.plan.name).collect(), HashSet::new());
        gates.chunks(GATES_AT_ONCE).find_map(|gates| {
            let lost = before.lost(&after, gates, &none) | before.lost(&after, gates, &succeeded);
            gates.get(lost.trailing_zeros() as usize).map(|gate| &gate.name)
        })
    }
}

fn is_gated(job: &&JobPlan) -> bool {
    job.when == When::Manual
}

/// The jobs of a plan, each after all that it needs.
struct Order<'p> {
    jobs: Vec<&'p JobPlan>,
    place: HashMap<&'p JobName, usize>,
    stage: BTreeMap<&'p StageName, usize>,
    /// Places of jobs, needs first.
    sorted: Vec<usize>,
}

/// The gates that a job stands behind, as bits.
#[derive(Clone, Copy, Default)]
struct Behind {
    /// It does not begin unless their jobs have succeeded.
    opened: u64,
    /// It does not begin before they are decided.
    decided: u64,
}

impl<'p> Order<'p> {
    fn of(stages: &'p [StageName], jobs: impl IntoIterator<Item = &'p JobPlan>) -> Self {
        let jobs: Vec<&JobPlan> = jobs.into_iter().collect();
        let place: HashMap<&JobName, usize> =
            jobs.iter().zip(0..).map(|(job, at)| (&job.name, at)).collect();
        let needs_of = |at: usize| jobs[at].needs.iter().filter_map(|need| place.get(need));
        let mut dependents = vec![Vec::new(); jobs.len()];
        let mut open: Vec<usize> = vec![0; jobs.len()];
        for (at, open) in open.iter_mut().enumerate() {
            for need in needs_of(at) {
                dependents[*need].push(at);
                *open += 1;
            }
        }
        let mut sorted: Vec<usize> = (0..jobs.len()).filter(|at| open[*at] == 0).collect();
        let mut next = 0;
        while let Some(at) = sorted.get(next).copied() {
            next += 1;
            for dependent in &dependents[at] {
                open[*dependent] -= 1;
                if open[*dependent] == 0 {
                    sorted.push(*dependent);
                }
            }
        }
        let stage = stages.iter().zip(0..).collect();
        Self { jobs, place, stage, sorted }
    }

    /// What each job stands behind, of `gates`, by its place. What is `done` stands behind none, and
    /// nothing stands behind it; nor does a job of a cycle, which no plan that was checked has.
    fn behind(&self, gates: &[&JobPlan], done: &HashSet<&JobName>) -> Vec<Behind> {
        let open = gates.iter().zip(0..).filter(|(gate, _)| !done.contains(&gate.name));
        let bits: HashMap<&JobName, u64> = open.map(|(gate, bit)| (&gate.name, 1 << bit)).collect();
        let own = |at: usize| bits.get(&self.jobs[at].name).copied().unwrap_or_default();
        let stage_of = |at: usize| self.stage.get(&self.jobs[at].stage).copied();
        let mut earlier = vec![0; self.stage.len() + 1];
        for at in 0..self.jobs.len() {
            if let Some(stage) = stage_of(at) {
                earlier[stage + 1] |= own(at);
            }
        }
        for stage in 1..earlier.len() {
            earlier[stage] |= earlier[stage - 1];
        }
        let mut behind = vec![Behind::default(); self.jobs.len()];
        for &at in &self.sorted {
            if done.contains(&self.jobs[at].name) {
                continue;
            }
            let mut all =
                Behind { opened: 0, decided: stage_of(at).map_or(0, |stage| earlier[stage]) };
            for need in self.jobs[at].needs.iter().filter_map(|need| self.place.get(need)) {
                all.opened |= behind[*need].opened | own(*need);
                all.decided |= behind[*need].decided | own(*need);
            }
            // It begins once its needs have ended, however they ended.
            if self.jobs[at].when == When::Always {
                all.opened = 0;
            }
            behind[at] = all;
        }
        behind
    }

    /// Those of `gates`, as bits, that a job of this plan stands behind and does not in `after`. A job
    /// that `after` does not have does not run, and a new one never stood behind any.
    fn lost(&self, after: &Order<'_>, gates: &[&JobPlan], done: &HashSet<&JobName>) -> u64 {
        let (old, new) = (self.behind(gates, done), after.behind(gates, done));
        let pairs = self.jobs.iter().zip(&old);
        let pairs = pairs.filter_map(|(job, old)| Some((old, new[*after.place.get(&job.name)?])));
        pairs.fold(0, |lost, (old, new)| {
            lost | (old.opened & !new.opened) | (old.decided & !new.decided)
        })
    }
}
