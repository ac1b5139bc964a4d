//! Resuming a run: what runs again, and what is refused.

use super::*;
use crate::{
    decide::{Command, Ended, testing::*},
    ids::Attempt,
    plan::{JobPlan, When},
};

#[test]
fn a_run_that_succeeded_without_a_job_that_its_condition_left_out_is_not_resumed() {
    let mut optional = needing(job("b"), "a");
    optional.condition = Some("needs.a.outputs.rows == 'many'".to_owned());
    let mut fixture = Fixture::begin(vec![job("a"), optional]);
    fixture.leases();
    fixture.succeeds_with("a", &[("rows", "few")]);
    assert_eq!(*fixture.run.phase(), Phase::Finished(RunOutcome::Succeeded));

    assert_eq!(fixture.refused(&resume()), Refusal::NothingToResume);
    assert!(matches!(
        fixture.refused(&Command::Retry("b".into())),
        Refusal::JobNotRetryable { .. }
    ));
}

fn resume() -> Command {
    Command::Resume(ResumeRun::default())
}

fn edited(jobs: Vec<JobPlan>, accept_changes: bool) -> Command {
    let create = creation(jobs);
    let file = EditedPlan {
        file_sha256: Digest([9; 32]),
        plan: create.plan,
        source: None,
        requester: Identity::default(),
        authors: None,
    };
    let (from, may_lift_gates) = (None, true);
    Command::Resume(ResumeRun { file: Some(file), accept_changes, from, may_lift_gates })
}

#[test]
fn a_succeeded_job_never_runs_again() {
    let jobs = vec![job("a"), needing(job("b"), "a"), needing(job("c"), "b")];
    let mut fixture = Fixture::begin(jobs);
    fixture.runs("a");
    fixture.leases();
    fixture.fails("b", 1);

    fixture.carries_out(&resume());

    assert_eq!(fixture.leases().as_deref(), Some("b"));
    fixture.succeeds("b");
    fixture.runs("c");
    assert_eq!(*fixture.run.phase(), Phase::Finished(RunOutcome::Succeeded));
    let leased = fixture.facts.iter().filter(|fact| fact.event.kind() == "job_leased");
    assert_eq!(leased.count(), 4);
}

#[test]
fn from_a_stage_on_everything_runs_again_and_says_so() {
    let mut fixture = Fixture::begin(vec![job("a"), staged(job("z"), "late")]);
    fixture.runs("a");
    fixture.runs("z");

    let again = ResumeRun { from: Some("late".into()), ..ResumeRun::default() };
    fixture.carries_out(&Command::Resume(again));

    assert_eq!(fixture.kinds().last(), Some(&"jobs_invalidated"));
    assert_eq!(fixture.leases().as_deref(), Some("z"));
}

#[test]
fn a_finished_run_has_nothing_to_resume() {
    let mut fixture = Fixture::begin(vec![job("a")]);
    fixture.runs("a");
    assert_eq!(fixture.refused(&resume()), Refusal::NothingToResume);
}

#[test]
fn an_interrupted_run_continues_without_an_event() {
    let mut fixture = Fixture::begin(vec![job("a")]);
    let before = fixture.facts.len();
    fixture.carries_out(&resume());
    assert_eq!(fixture.facts.len(), before);
}

#[test]
fn an_edited_file_is_refused_unless_it_is_accepted() {
    let mut fixture = Fixture::begin(vec![job("a"), needing(job("b"), "a")]);
    fixture.runs("a");
    fixture.leases();
    fixture.fails("b", 1);
    let mut better = needing(job("b"), "a");
    better.script = "better".into();
    let jobs = vec![job("a"), better, needing(job("c"), "b")];

    assert_eq!(fixture.refused(&edited(jobs.clone(), false)).code().as_str(), "PLAN_CHANGED");
    fixture.carries_out(&edited(jobs, true));

    assert_eq!(fixture.run.job("a").unwrap().state.word(), "succeeded");
    assert_eq!(fixture.leases().as_deref(), Some("b"));
    assert_eq!(&*fixture.run.job("b").unwrap().plan.script, "better");
    assert_eq!(fixture.run.job("b").unwrap().attempt.0, 2, "the fence continues");
}

#[test]
fn other_files_are_taken_over_only_if_the_edit_is_accepted() {
    let source = |commit: &str| Source {
        commit: commit.repeat(40),
        origin: crate::source::Origin::Bundle(crate::ids::Blob::of(commit.as_bytes())),
        folder: String::new(),
        parent: None,
        dirty: false,
    };
    let mut fixture =
        Fixture::begin_with(vec![job("a")], |create| create.source = Some(source("a")));
    fixture.leases();
    fixture.fails("a", 1);
    let plan = fixture.run.plan().unwrap();
    let resumed = |accept_changes| {
        let (file_sha256, source) = (Digest([1; 32]), Some(source("b")));
        let requester = Identity::default();
        let plan = plan.clone();
        let file = EditedPlan { file_sha256, plan, source, requester, authors: None };
        let file = Some(file);
        let (from, may_lift_gates) = (None, true);
        Command::Resume(ResumeRun { file, accept_changes, from, may_lift_gates })
    };

    fixture.carries_out(&resumed(false));
    assert_eq!(fixture.run.header().unwrap().source, Some(source("a")));
    fixture.leases();
    fixture.fails("a", 2);
    fixture.carries_out(&resumed(true));

    assert_eq!(fixture.run.header().unwrap().source, Some(source("b")));
    assert_eq!(fixture.leases().as_deref(), Some("a"));
}

#[test]
fn an_approval_covers_the_files() {
    let approval_digest = |commit: Option<&str>| {
        let fixture = Fixture::begin_with(vec![gated(job("x"))], |create| {
            create.source = commit.map(|commit| Source {
                commit: commit.repeat(40),
                origin: crate::source::Origin::Remote("git@host:a".into()),
                folder: String::new(),
                parent: None,
                dirty: false,
            });
        });
        fixture.run.approval_digest(fixture.run.job("x").unwrap())
    };
    assert_ne!(approval_digest(Some("a")), approval_digest(Some("b")));
    assert_ne!(approval_digest(Some("a")), approval_digest(None));
}

#[test]
fn a_gate_asks_again_after_a_resume() {
    let mut fixture = Fixture::begin(vec![gated(job("x"))]);
    fixture.approves("x");
    fixture.leases();
    fixture.fails("x", 1);

    fixture.carries_out(&resume());

    assert_eq!(fixture.kinds().last(), Some(&"gate_reached"));
    assert_eq!(fixture.leases(), None);
}

#[test]
fn every_resume_gives_the_same_time_and_an_edit_may_change_it() {
    let mut fixture = Fixture::begin_with(vec![job("a"), job("b")], |create| {
        create.plan.timeout_ms = Some(60_000);
    });
    for _ in 0..3 {
        fixture.passes(10_000);
        fixture.leases();
        fixture.leases();
        fixture.fails("a", 1);
        fixture.fails("b", 1);
        fixture.carries_out(&resume());
        assert_eq!(fixture.run.next_due(fixture.now), Some(fixture.now.plus_ms(60_000)));
    }
    let mut plan = creation(vec![job("a")]).plan;
    plan.timeout_ms = Some(5_000);
    let file = EditedPlan {
        file_sha256: Digest([9; 32]),
        plan: plan.clone(),
        source: None,
        requester: Identity::default(),
        authors: None,
    };
    let edited = ResumeRun { file: Some(file), accept_changes: true, ..ResumeRun::default() };
    fixture.carries_out(&Command::Resume(edited));

    assert_eq!(fixture.run.next_due(fixture.now), Some(fixture.now.plus_ms(5_000)));
    assert_eq!(fixture.run.plan().unwrap().digest(), plan.digest());
}

#[test]
fn a_job_that_was_removed_and_added_again_continues_with_the_next_attempt() {
    let mut fixture = Fixture::begin(vec![job("a"), job("b")]);
    fixture.runs("a");
    fixture.leases();
    let late = fixture.report("b", Ended::Cancelled);
    fixture.loses("b");
    let edited = |jobs: Vec<JobPlan>, digest: u8| {
        let file = EditedPlan {
            file_sha256: Digest([digest; 32]),
            plan: creation(jobs).plan,
            source: None,
            requester: Identity::default(),
            authors: None,
        };
        Command::Resume(ResumeRun {
            file: Some(file),
            accept_changes: true,
            ..ResumeRun::default()
        })
    };

    fixture.carries_out(&edited(vec![job("a"), job("c")], 7));
    fixture.carries_out(&edited(vec![job("a"), job("b")], 8));

    assert_eq!(fixture.leases().as_deref(), Some("b"));
    assert_eq!(fixture.run.job("b").unwrap().attempt, Attempt(2));
    assert_eq!(fixture.refused(&late).code().as_str(), "ATTEMPT_STALE");
}

#[test]
fn what_was_approved_in_advance_is_the_plan_of_whoever_approved_it() {
    for (by, preapproved) in [("ana", true), ("bob", false)] {
        let plan = |script: &str| {
            let mut gate = gated(needing(job("switch"), "a"));
            gate.script = script.into();
            vec![job("a"), gate]
        };
        let mut fixture =
            Fixture::begin_with(plan("theirs"), |create| create.gates_preapproved = true);
        fixture.leases();
        fixture.fails("a", 1);

        fixture.carries_out_of(&Actor::human(by), &edited(plan("edited"), true));
        fixture.runs("a");

        let switch = fixture.run.job("switch").unwrap();
        assert_eq!(switch.state.word() == "at_gate", !preapproved, "{by}");
        assert_eq!(switch.approvals.is_empty(), !preapproved, "{by}");
    }
}

#[test]
fn a_plan_lifts_a_gate_that_it_does_not_have() {
    let jobs = vec![gated(job("done")), gated(needing(job("x"), "done"))];
    let mut fixture = Fixture::begin(jobs.clone());
    fixture.approves("done");
    fixture.runs("done");
    let lifted = |jobs: Vec<JobPlan>| {
        let plan = creation(jobs).plan;
        fixture.run.lifted_gate(&plan).map(ToString::to_string)
    };

    assert_eq!(lifted(jobs), None);
    // `tow resume --from` runs it again, and asks at its gate again.
    let opened = vec![job("done"), gated(needing(job("x"), "done"))];
    assert_eq!(lifted(opened).as_deref(), Some("done"), "also one that was opened");
    assert_eq!(lifted(vec![gated(job("done")), job("x")]).as_deref(), Some("x"));
    assert_eq!(lifted(vec![gated(job("done")), gated(job("y"))]).as_deref(), Some("x"));
}

#[test]
fn a_plan_lifts_a_gate_that_other_jobs_do_not_stand_behind_any_more() {
    let old = || {
        vec![
            job("early"),
            gated(needing(job("ask"), "early")),
            needing(job("deploy"), "ask"),
            needing(job("check"), "deploy"),
            staged(job("late"), "late"),
        ]
    };
    let fixture = Fixture::begin(old());
    let edited = |edit: fn(&mut Vec<JobPlan>)| {
        let mut jobs = old();
        edit(&mut jobs);
        let plan = creation(jobs).plan;
        fixture.run.lifted_gate(&plan).map(ToString::to_string)
    };
    let at = Some("ask".to_owned());

    assert_eq!(edited(|jobs| jobs[2].needs = vec!["early".into()]), at, "no need");
    assert_eq!(edited(|jobs| jobs[3].needs.clear()), at, "no need of a need");
    assert_eq!(edited(|jobs| jobs[2].when = When::Always), at, "whatever becomes of the gate");
    assert_eq!(edited(|jobs| jobs[4].stage = "main".into()), at, "no barrier of a stage");
    let skipped = |jobs: &mut Vec<JobPlan>| jobs[1].condition = Some("'a' == 'b'".into());
    assert_eq!(edited(skipped), at, "the gate is skipped, and its stage ends");
    let mut swapped = creation(old()).plan;
    swapped.stages.reverse();
    assert_eq!(fixture.run.lifted_gate(&swapped).map(ToString::to_string), at);

    assert_eq!(edited(|jobs| jobs[0].script = "better".into()), None, "another script");
    assert_eq!(edited(|jobs| jobs.push(job("more"))), None, "a new job");
    assert_eq!(edited(|jobs| drop(jobs.remove(4))), None, "a job less behind it");
    let through_another = |jobs: &mut Vec<JobPlan>| {
        jobs.push(needing(job("between"), "ask"));
        jobs[2].needs = vec!["between".into()];
    };
    assert_eq!(edited(through_another), None, "it is before it all the same");
}

#[test]
fn an_edit_that_lifts_a_gate_is_decided_on_the_plan_that_it_replaces() {
    let plan = || vec![gated(job("switch")), needing(job("after"), "switch")];
    let mut fixture = Fixture::begin(plan());
    let edit = |may_lift_gates: bool, jobs: Vec<JobPlan>| {
        let mut command = edited(jobs, true);
        if let Command::Resume(resume) = &mut command {
            resume.may_lift_gates = may_lift_gates;
        }
        command
    };

    let around = || edit(false, vec![gated(job("switch")), job("after")]);
    let refusal = fixture.refused(&around());
    assert_eq!(refusal, Refusal::GateLifted { job: "switch".into() });
    let plain = edit(true, vec![job("switch"), job("after")]);
    let agent: Actor = "agent:bot".parse().unwrap();
    assert_eq!(fixture.refused_of(&agent, &plain).code().as_str(), "APPROVER_NOT_HUMAN");
    fixture.carries_out(&plain);
    fixture.carries_out(&around());
    assert_eq!(fixture.run.gates().count(), 1, "there was no gate to lift any more");
}

#[test]
fn an_unknown_stage_is_refused() {
    let mut fixture = Fixture::begin(vec![job("a")]);
    let again = ResumeRun { from: Some("nowhere".into()), ..ResumeRun::default() };
    assert_eq!(fixture.refused(&Command::Resume(again)).code().as_str(), "STAGE_UNKNOWN");
}
