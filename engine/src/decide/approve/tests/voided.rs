//! What ends an approval: time, and whatever changes under it.

use super::*;

#[test]
fn approvals_expire_together_and_the_gate_asks_again() {
    let mut fixture = at_the_gate(GatePolicy { min: 2, ..expiring(60_000) }, |_| {});
    fixture.approves_as(&person("bob", &[], &[]));
    let until = fixture.now.plus_ms(60_000);
    let first = fixture.approval_with(&Identity::default());
    assert_eq!(fixture.run.next_due(fixture.now), Some(until));
    fixture.passes(59_999);
    fixture.carries_out(&Command::PassTime);
    fixture.approves_as(&person("cleo", &[], &[]));
    assert_eq!(fixture.state(), "approved");
    fixture.passes(1);

    fixture.carries_out(&Command::PassTime);

    assert_eq!(fixture.voids(), [VoidCause::Expired(until)]);
    assert_eq!((fixture.state(), fixture.leases()), ("at_gate", None));
    assert!(fixture.run.job("switch").unwrap().approvals.is_empty());
    assert_eq!(fixture.run.next_due(fixture.now), None);
    assert_eq!(fixture.refused_of(&Actor::human("dana"), &first).code().as_str(), "APPROVAL_STALE");
}

#[test]
fn what_has_expired_is_not_leased_and_not_added_to_however_late_the_timer_is() {
    let mut fixture = at_the_gate(expiring(1_000), |_| {});
    fixture.approves_as(&person("bob", &[], &[]));
    fixture.passes(1_000);
    assert_eq!(fixture.leases(), None);
    assert_eq!(fixture.voids().len(), 1);

    let mut fixture = at_the_gate(GatePolicy { min: 2, ..expiring(1_000) }, |_| {});
    fixture.approves_as(&person("bob", &[], &[]));
    fixture.passes(1_000);
    assert_eq!(fixture.refuses(&person("cleo", &[], &[])), "APPROVAL_EXPIRED");
}

#[test]
fn an_approval_does_not_expire_once_the_job_has_begun() {
    let mut fixture = at_the_gate(expiring(1_000), |_| {});
    fixture.approves_as(&person("bob", &[], &[]));
    assert_eq!(fixture.leases().as_deref(), Some("switch"));
    fixture.loses("switch");
    fixture.passes(5_000);

    fixture.carries_out(&Command::PassTime);

    assert_eq!(fixture.run.next_due(fixture.now), None);
    assert_eq!(fixture.leases().as_deref(), Some("switch"));
}

/// What a change is, and what the log says about the approvals that it makes void.
type Change = (&'static str, fn(&mut Fixture), Option<VoidCause>);

#[test]
#[expect(clippy::too_many_lines, reason = "one table of changes, each with what it must void")]
fn whatever_changes_under_an_approval_voids_it_and_says_why() {
    // Before the gate: `early` in a stage of its own, `side` which fails; behind it: `after`.
    let plan = || {
        let mut gate = staged(needing(gated(job("switch")), "a"), "late");
        gate.gate = Some(two());
        let after = staged(needing(job("after"), "switch"), "late");
        vec![job("a"), job("side"), gate, after]
    };
    let replaced = {
        let mut edited = plan();
        edited[3].script = "other".into();
        VoidCause::PlanReplaced(creation(edited).plan.digest())
    };
    let changes: Vec<Change> = vec![
        (
            "the plan is replaced, be it behind the gate",
            |fixture| {
                let mut edited: Vec<JobPlan> = fixture.run.plan().unwrap().jobs;
                edited[3].script = "other".into();
                fixture.carries_out(&accepted(edited));
            },
            Some(replaced),
        ),
        (
            "a stage before the gate runs again",
            |fixture| fixture.carries_out(&from("main")),
            Some(VoidCause::StageRepeated("main".into())),
        ),
        (
            "the stage of the gate runs again",
            |fixture| fixture.carries_out(&from("late")),
            Some(VoidCause::StageRepeated("late".into())),
        ),
        (
            "a job before the gate is retried",
            |fixture| fixture.carries_out(&Command::Retry("side".into())),
            Some(VoidCause::JobRepeated("side".into())),
        ),
        (
            "the run is resumed, and with it what failed before the gate",
            |fixture| fixture.carries_out(&Command::Resume(ResumeRun::default())),
            Some(VoidCause::JobRepeated("side".into())),
        ),
        ("time passes", |fixture| fixture.carries_out(&Command::PassTime), None),
    ];
    for (what, change, cause) in changes {
        for people in 0..=2 {
            let mut fixture = Fixture::begin(plan());
            fixture.runs("a");
            fixture.leases();
            fixture.fails("side", 1);
            let read = fixture.run.job("switch").unwrap().state.clone();
            let JobState::AtGate(read) = read else { panic!("{what}: {read:?}") };
            for name in ["bob", "cleo"].into_iter().take(people) {
                fixture.approves_as(&person(name, &[], &[]));
            }
            let approved = fixture.state();

            change(&mut fixture);

            // The person who resumes after an approval means what was approved.
            let kept = people > 0 && what.starts_with("the run is resumed");
            let cause = cause.clone().filter(|_| !kept);
            assert_eq!(fixture.voids(), cause.iter().cloned().collect::<Vec<_>>(), "{what}");
            let Some(_) = &cause else {
                assert_eq!(fixture.state(), approved, "{what}");
                continue;
            };
            while let Some(job) = fixture.leases() {
                assert_ne!(job, "switch", "{what}");
                fixture.succeeds(&job);
            }
            let gate = fixture.run.job("switch").unwrap();
            assert!(gate.approvals.is_empty(), "{what}");
            assert_ne!(gate.state, JobState::AtGate(read), "{what}");
            assert_eq!(gate.state.word(), "at_gate", "{what}");
        }
    }
}

fn from(stage: &str) -> Command {
    Command::Resume(ResumeRun { from: Some(stage.into()), ..ResumeRun::default() })
}

#[test]
fn what_is_behind_a_gate_may_run_again_without_asking() {
    let mut fixture = Fixture::begin(vec![gated(job("switch")), staged(job("z"), "late")]);
    fixture.approves("switch");
    fixture.runs("switch");
    fixture.leases();
    fixture.fails("z", 1);
    fixture.carries_out(&Command::Retry("z".into()));
    assert_eq!(fixture.voids(), []);
    assert_eq!(fixture.leases().as_deref(), Some("z"));
}

#[test]
fn what_an_approval_covers_is_every_result_before_it() {
    // `far` is needed by what the gate needs, `aside` by nobody, in the stage before.
    let approval_digest = |far: &str, aside: &str| {
        let mut plan = vec![job("aside"), staged(job("far"), "late")];
        plan.push(staged(needing(job("near"), "far"), "late"));
        plan.push(staged(needing(gated(job("switch")), "near"), "late"));
        let mut fixture = Fixture::begin(plan);
        fixture.leases();
        fixture.succeeds_with("aside", &[("rows", aside)]);
        fixture.leases();
        fixture.succeeds_with("far", &[("rows", far)]);
        fixture.runs("near");
        fixture.run.job("switch").unwrap().approval_digest.unwrap()
    };
    assert_eq!(approval_digest("1", "1"), approval_digest("1", "1"));
    assert_ne!(approval_digest("1", "1"), approval_digest("2", "1"));
    assert_ne!(approval_digest("1", "1"), approval_digest("1", "2"));
}

#[test]
fn a_log_that_counts_a_person_twice_or_miscounts_is_not_replayed() {
    let mut fixture = at_the_gate(GatePolicy { min: 3, ..expiring(1_000) }, |_| {});
    fixture.approves_as(&person("bob", &[], &[]));
    let last = fixture.facts.last().unwrap().clone();
    let JobState::AtGate(digest) = fixture.run.job("switch").unwrap().state else { unreachable!() };
    let approved = |approvals_remaining| RunEvent::GateApproved {
        job: "switch".into(),
        approval_digest: digest,
        comment: String::new(),
        approvals_remaining,
        identity: Identity::default(),
        expires_at: None,
        in_advance: false,
    };
    for (by, at, missing, legal) in [
        ("cleo", 0, 1, true),
        ("Bob", 0, 1, false),
        ("cleo", 0, 0, false),
        ("cleo", 0, 2, false),
        ("cleo", 1_000, 1, false),
    ] {
        let (at, event) = (Timestamp(last.at.0 + at), approved(missing));
        let fact = crate::event::Fact { at, by: Actor::human(by), event };
        assert_eq!(fixture.run.clone().evolve(&fact).is_ok(), legal, "{by} {at} {missing}");
    }
}
