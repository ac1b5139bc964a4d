//! Whatever an edit changes: where nobody may take a gate away, it lets no job begin that a gate kept
//! back.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{Command, EditedPlan, ResumeRun, carry_out, testing::*};
use crate::{
    gate::Identity,
    ids::Digest,
    plan::{JobPlan, When},
};

/// Jobs of a plan.
const JOBS: usize = 6;

/// A job in few numbers: whether it is in the late stage, which jobs before it it needs, as bits, and
/// when it runs.
type Sketch = (bool, u8, u8);

fn sketch() -> impl Strategy<Value = Sketch> {
    (any::<bool>(), any::<u8>(), 0..6_u8)
}

fn jobs(sketches: &[Sketch]) -> Vec<JobPlan> {
    let plan = |at: usize| {
        let (late, needs, when) = sketches[at];
        let mut plan = staged(job(&format!("j{at}")), if late { "late" } else { "main" });
        let may_need = |need: &usize| needs & (1 << need) != 0 && (late || !sketches[*need].0);
        plan.needs = (0..at).filter(may_need).map(|need| format!("j{need}").into()).collect();
        plan.when = match when {
            0 | 1 => When::Manual,
            2 => When::Always,
            _ => When::OnSuccess,
        };
        plan
    };
    (0..sketches.len()).map(plan).collect()
}

/// Runs what can be run, at most `most` jobs, while nobody opens a gate. Answers what ran.
fn proceeds(fixture: &mut Fixture, most: usize) -> BTreeSet<String> {
    let mut ran = BTreeSet::new();
    while ran.len() < most
        && let Some(job) = fixture.leases()
    {
        fixture.succeeds(&job);
        ran.insert(job);
    }
    ran
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn an_edit_lets_no_job_begin_that_a_gate_kept_back(
        old in prop::collection::vec(sketch(), JOBS),
        edits in prop::collection::vec((0..JOBS, sketch()), 1..3),
        progress in 0..JOBS,
    ) {
        let mut new = old.clone();
        for (at, to) in edits {
            new[at] = to;
        }
        let mut fixture = Fixture::begin(jobs(&old));
        let mut allowed = proceeds(&mut fixture, progress);
        let mut unedited =
            Fixture { run: fixture.run.clone(), facts: fixture.facts.clone(), now: fixture.now };
        allowed.extend(proceeds(&mut unedited, JOBS));
        let file = EditedPlan {
            file_sha256: Digest([9; 32]),
            plan: creation(jobs(&new)).plan,
            source: None,
            requester: Identity::default(),
            authors: None,
        };
        let edit = Command::Resume(ResumeRun {
            from: None,
            file: Some(file),
            accept_changes: true,
            may_lift_gates: false,
        });

        let edited = carry_out(&mut fixture.run, &edit, &ana(), fixture.now);
        if let Ok(written) = edited {
            fixture.facts.extend(written.into_iter().map(|(fact, _)| fact));
            let ran = proceeds(&mut fixture, JOBS);
            prop_assert!(ran.is_subset(&allowed), "{ran:?} ran, and only {allowed:?} could");
        }
    }
}
