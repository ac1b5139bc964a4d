//! Tests of gates that want more than any one person, rule by rule.

use super::{ApproveGate, Command, CreateRun, EditedPlan, Ended, ResumeRun, stage_set::*};
use crate::{
    event::{RunEvent, VoidCause},
    gate::{Approver, Authors, Excluded, GatePolicy, OWNER, Standing},
    ids::{Actor, ActorKind, Digest},
    job::JobState,
    plan::JobPlan,
    time::Timestamp,
};

fn person(name: &str, roles: &[&str], emails: &[&str]) -> (Actor, Standing) {
    let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    (Actor::human(name), Standing { roles: all(roles), emails: all(emails) })
}

/// A gate behind `a`, with a policy.
fn jobs(policy: GatePolicy) -> Vec<JobPlan> {
    let mut gate = gated(needing(job("switch"), "a"));
    gate.gate = Some(policy);
    vec![job("a"), gate]
}

/// A run of ana's that has come to the gate.
fn at_the_gate(policy: GatePolicy, edit: impl FnOnce(&mut CreateRun)) -> Stage {
    let mut house = Stage::begin_with(jobs(policy), edit);
    house.runs("a");
    assert_eq!(house.state(), "at_gate");
    house
}

fn two() -> GatePolicy {
    GatePolicy { min: 2, ..GatePolicy::default() }
}

fn not(who: &[Excluded]) -> GatePolicy {
    GatePolicy { not: who.to_vec(), ..GatePolicy::default() }
}

fn expiring(ms: u64) -> GatePolicy {
    GatePolicy { expires_ms: Some(ms), ..GatePolicy::default() }
}

impl Stage {
    fn state(&self) -> &'static str {
        self.run.job("switch").unwrap().state.word()
    }

    fn approval_with(&self, standing: &Standing) -> Command {
        let Command::Approve(approve) = self.approval("switch") else { unreachable!() };
        Command::Approve(ApproveGate { standing: standing.clone(), ..approve })
    }

    fn approves_as(&mut self, (by, standing): &(Actor, Standing)) {
        let approval = self.approval_with(standing);
        self.carries_out_of(by, &approval);
    }

    fn refuses(&mut self, (by, standing): &(Actor, Standing)) -> &'static str {
        let approval = self.approval_with(standing);
        self.refused_of(by, &approval).code().as_str()
    }

    /// Why approvals were void, in order.
    fn voids(&self) -> Vec<VoidCause> {
        let mut causes = Vec::new();
        for fact in &self.facts {
            if let RunEvent::GateVoided { because, .. } = &fact.event {
                causes.push(because.clone());
            }
        }
        causes
    }
}

#[test]
fn two_people_open_a_gate_that_wants_two() {
    let mut house = at_the_gate(two(), |_| {});

    house.approves_as(&person("bob", &[], &[]));
    assert_eq!(house.run.job("switch").unwrap().quorum_words(), "1 of 2 approvals, by human:bob");
    assert_eq!((house.state(), house.leases()), ("at_gate", None));
    house.approves_as(&person("cleo", &[], &[]));

    assert_eq!(house.leases().as_deref(), Some("switch"));
}

#[test]
fn one_person_counts_once_by_whatever_name() {
    let mut house = at_the_gate(two(), |_| {});
    house.approves_as(&person("bob", &[], &["bob@example.org"]));
    let before = house.facts.len();

    house.approves_as(&person("bob", &[], &[]));
    house.approves_as(&person("Bob", &[], &[]));
    house.approves_as(&person("bob-laptop", &[], &["bob@example.org"]));

    assert_eq!(house.facts.len(), before);
    assert_eq!(house.state(), "at_gate");
}

#[test]
fn of_two_who_want_to_be_the_last_one_is() {
    let mut house = at_the_gate(two(), |_| {});
    house.approves_as(&person("bob", &[], &[]));
    let late = house.approval_with(&Standing::default());
    house.approves_as(&person("cleo", &[], &[]));
    let before = house.facts.len();

    house.carries_out_of(&Actor::human("dana"), &late);

    assert_eq!(house.facts.len(), before);
}

#[test]
fn no_program_opens_a_gate_with_a_policy_or_without_one() {
    for kind in [ActorKind::Agent, ActorKind::Service, ActorKind::Worker] {
        let program = (Actor { kind, name: "bob".into() }, person("", &[OWNER], &[]).1);
        let mut house = Stage::begin(vec![gated(job("switch"))]);
        assert_eq!(house.refuses(&program), "APPROVER_NOT_HUMAN");
        let mut house = at_the_gate(two(), |_| {});
        assert_eq!(house.refuses(&program), "APPROVER_NOT_HUMAN");
    }
}

#[test]
fn a_gate_lets_in_whom_it_names() {
    let named = GatePolicy {
        approvers: vec![
            Approver::Role("admin".into()),
            Approver::Person(Actor::human("dana@example.org")),
        ],
        ..GatePolicy::default()
    };
    for (who, answer) in [
        (person("bob", &["approver"], &[]), Some("APPROVER_NOT_ALLOWED")),
        (person("bob", &[], &[]), Some("APPROVER_NOT_ALLOWED")),
        (person("dаna@example.org", &[], &[]), Some("APPROVER_NOT_ALLOWED")),
        (person("bob", &["approver", "admin"], &[]), None),
        (person("bob", &[OWNER], &[]), None),
        (person("Dana+x@Example.org", &[], &[]), None),
    ] {
        let mut house = at_the_gate(named.clone(), |_| {});
        match answer {
            Some(code) => assert_eq!(house.refuses(&who), code, "{who:?}"),
            None => house.approves_as(&who),
        }
        let expected = if answer.is_some() { "at_gate" } else { "approved" };
        assert_eq!(house.state(), expected, "{who:?}");
    }
}

#[test]
fn whoever_asked_for_the_run_may_not_approve_it() {
    let begin = || {
        at_the_gate(not(&[Excluded::Requester]), |create| {
            create.requester.emails = vec!["ana@example.org".into()];
        })
    };
    for who in [
        person("ana", &[OWNER], &[]),
        person("ANA", &[], &[]),
        person("ana-two", &[], &["ana@example.org"]),
    ] {
        assert_eq!(begin().refuses(&who), "APPROVER_IS_REQUESTER", "{who:?}");
    }
    let mut house = begin();
    house.approves_as(&person("bob", &[], &["bob@example.org"]));
    assert_eq!(house.state(), "approved");
}

#[test]
fn whoever_replaced_the_plan_counts_as_a_requester() {
    let policy = not(&[Excluded::Requester]);
    let mut house = at_the_gate(policy.clone(), |_| {});
    let mut edited = jobs(policy);
    edited[1].script = "other".into();
    house.carries_out_of(&Actor::human("bob"), &accepted(edited));

    for name in ["ana", "bob"] {
        assert_eq!(house.refuses(&person(name, &[], &[])), "APPROVER_IS_REQUESTER");
    }
    house.approves_as(&person("cleo", &[], &[]));
}

#[test]
fn authors_may_not_approve_and_neither_may_whoever_could_be_one() {
    let authors = |uncommitted| Authors { emails: vec!["bob@example.org".into()], uncommitted };
    for (uncommitted, who, answer) in [
        (false, person("bob", &[OWNER], &["bob@example.org"]), Some("APPROVER_IS_AUTHOR")),
        (false, person("bob", &[OWNER], &[]), Some("APPROVER_EMAIL_UNKNOWN")),
        (false, person("ana", &[], &["ana@example.org"]), None),
        (true, person("ana", &[], &["ana@example.org"]), Some("APPROVER_IS_AUTHOR")),
        (true, person("cleo", &[], &["cleo@example.org"]), None),
    ] {
        let mut house = at_the_gate(not(&[Excluded::Author]), |create| {
            create.authors = Some(authors(uncommitted));
        });
        match answer {
            Some(code) => assert_eq!(house.refuses(&who), code, "{who:?}"),
            None => house.approves_as(&who),
        }
    }
}

#[test]
fn a_run_that_excludes_unknown_authors_does_not_begin() {
    let create = creation(jobs(not(&[Excluded::Author])));
    let refusal = Stage::empty().refused(&Command::Create(create));
    assert_eq!(refusal.code().as_str(), "AUTHORS_UNKNOWN");

    let mut house = at_the_gate(two(), |_| {});
    let edit = accepted(jobs(not(&[Excluded::Author])));
    assert_eq!(house.refused(&edit).code().as_str(), "AUTHORS_UNKNOWN");
}

#[test]
fn the_log_keeps_of_people_what_its_gates_ask_about() {
    let known = person("ana", &["operator"], &["ana@example.org"]).1;
    let authors = Some(Authors { emails: vec!["bob@example.org".into()], uncommitted: false });
    for (policy, requester, author) in [
        (None, false, false),
        (Some(two()), true, false),
        (Some(not(&[Excluded::Author])), true, true),
    ] {
        let mut plan = jobs(two());
        plan[1].gate = policy;
        let house = Stage::begin_with(plan, |create| {
            create.requester = known.clone();
            create.authors = authors.clone();
        });
        let header = house.run.header().unwrap();
        assert_eq!((!header.requester.is_empty(), header.authors.is_some()), (requester, author));
    }
}

#[test]
fn yes_is_one_approval_of_whoever_asked_under_the_same_rules() {
    let yes = |create: &mut CreateRun| {
        create.gates_preapproved = true;
        create.requester = person("ana", &["approver"], &[]).1;
    };
    let role = |role: &str| GatePolicy {
        approvers: vec![Approver::Role(role.into())],
        ..GatePolicy::default()
    };
    for (policy, state, given) in [
        (GatePolicy::default(), "approved", 1),
        (role("approver"), "approved", 1),
        (role("admin"), "at_gate", 0),
        (two(), "at_gate", 1),
        (not(&[Excluded::Requester]), "at_gate", 0),
    ] {
        let mut house = Stage::begin_with(jobs(policy.clone()), yes);
        house.leases();
        // The report comes from a worker; the approval is not the worker's.
        let report = house.report("a", Ended::Succeeded { outputs: [].into(), artifacts: vec![] });
        house.carries_out_of(&Actor::worker("w1"), &report);
        assert_eq!(house.state(), state, "{policy:?}");
        let approvals = &house.run.job("switch").unwrap().approvals;
        let by: Vec<_> = approvals.iter().map(|approval| approval.by.to_string()).collect();
        assert_eq!(by, vec!["human:ana"; given], "{policy:?}");
    }
}

#[test]
fn the_yes_of_a_program_opens_nothing() {
    for policy in [None, Some(two())] {
        let mut plan = jobs(two());
        plan[1].gate = policy;
        let create = CreateRun { gates_preapproved: true, ..creation(plan) };
        let mut house = Stage::empty();
        let agent = Actor { kind: ActorKind::Agent, name: "copilot".into() };
        house.carries_out_of(&agent, &Command::Create(create));
        house.runs("a");
        assert_eq!(house.state(), "at_gate");
        assert!(house.run.job("switch").unwrap().approvals.is_empty());
    }
}

#[test]
fn a_rejection_shuts_the_gate_whatever_was_approved_before() {
    let mut house = at_the_gate(two(), |_| {});
    house.approves_as(&person("bob", &[], &[]));

    let reject = super::RejectGate { job: "switch".into(), binds: None, comment: String::new() };
    house.carries_out_of(&Actor::human("cleo"), &Command::Reject(reject));

    assert_eq!(house.state(), "rejected");
    assert_eq!(house.refuses(&person("dana", &[], &[])), "GATE_DECIDED");
}

#[test]
fn approvals_expire_together_and_the_gate_asks_again() {
    let mut house = at_the_gate(GatePolicy { min: 2, ..expiring(60_000) }, |_| {});
    house.approves_as(&person("bob", &[], &[]));
    let until = house.now.plus_ms(60_000);
    let first = house.approval_with(&Standing::default());
    assert_eq!(house.run.next_due(house.now), Some(until));
    house.passes(59_999);
    house.carries_out(&Command::PassTime);
    house.approves_as(&person("cleo", &[], &[]));
    assert_eq!(house.state(), "approved");
    house.passes(1);

    house.carries_out(&Command::PassTime);

    assert_eq!(house.voids(), [VoidCause::Expired(until)]);
    assert_eq!((house.state(), house.leases()), ("at_gate", None));
    assert!(house.run.job("switch").unwrap().approvals.is_empty());
    assert_eq!(house.run.next_due(house.now), None);
    assert_eq!(house.refused_of(&Actor::human("dana"), &first).code().as_str(), "APPROVAL_STALE");
}

#[test]
fn what_has_expired_is_not_leased_and_not_added_to_however_late_the_timer_is() {
    let mut house = at_the_gate(expiring(1_000), |_| {});
    house.approves_as(&person("bob", &[], &[]));
    house.passes(1_000);
    assert_eq!(house.leases(), None);
    assert_eq!(house.voids().len(), 1);

    let mut house = at_the_gate(GatePolicy { min: 2, ..expiring(1_000) }, |_| {});
    house.approves_as(&person("bob", &[], &[]));
    house.passes(1_000);
    assert_eq!(house.refuses(&person("cleo", &[], &[])), "APPROVAL_EXPIRED");
}

#[test]
fn an_approval_does_not_expire_once_the_job_has_begun() {
    let mut house = at_the_gate(expiring(1_000), |_| {});
    house.approves_as(&person("bob", &[], &[]));
    assert_eq!(house.leases().as_deref(), Some("switch"));
    house.loses("switch");
    house.passes(5_000);

    house.carries_out(&Command::PassTime);

    assert_eq!(house.run.next_due(house.now), None);
    assert_eq!(house.leases().as_deref(), Some("switch"));
}

fn accepted(jobs: Vec<JobPlan>) -> Command {
    let (file_sha256, plan) = (Digest([9; 32]), creation(jobs).plan);
    let requester = Standing::default();
    let file = EditedPlan { file_sha256, plan, source: None, requester, authors: None };
    Command::Resume(ResumeRun { file: Some(file), accept_changes: true, from: None })
}

/// What a change is, and what the log says about the approvals that it makes void.
type Change = (&'static str, fn(&mut Stage), Option<VoidCause>);

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
            |house| {
                let mut edited: Vec<JobPlan> = house.run.plan().unwrap().jobs;
                edited[3].script = "other".into();
                house.carries_out(&accepted(edited));
            },
            Some(replaced),
        ),
        (
            "a stage before the gate runs again",
            |house| house.carries_out(&from("main")),
            Some(VoidCause::StageRepeated("main".into())),
        ),
        (
            "the stage of the gate runs again",
            |house| house.carries_out(&from("late")),
            Some(VoidCause::StageRepeated("late".into())),
        ),
        (
            "a job before the gate is retried",
            |house| house.carries_out(&Command::Retry("side".into())),
            Some(VoidCause::JobRepeated("side".into())),
        ),
        (
            "the run is resumed, and with it what failed before the gate",
            |house| house.carries_out(&Command::Resume(ResumeRun::default())),
            Some(VoidCause::JobRepeated("side".into())),
        ),
        ("time passes", |house| house.carries_out(&Command::PassTime), None),
    ];
    for (what, change, because) in changes {
        for people in 0..=2 {
            let mut house = Stage::begin(plan());
            house.runs("a");
            house.leases();
            house.fails("side", 1);
            let read = house.run.job("switch").unwrap().state.clone();
            let JobState::AtGate(read) = read else { panic!("{what}: {read:?}") };
            for name in ["bob", "cleo"].into_iter().take(people) {
                house.approves_as(&person(name, &[], &[]));
            }
            let approved = house.state();

            change(&mut house);

            // Whoever resumes after an approval means what was approved.
            let kept = people > 0 && what.starts_with("the run is resumed");
            let because = because.clone().filter(|_| !kept);
            assert_eq!(house.voids(), because.iter().cloned().collect::<Vec<_>>(), "{what}");
            let Some(_) = &because else {
                assert_eq!(house.state(), approved, "{what}");
                continue;
            };
            while let Some(job) = house.leases() {
                assert_ne!(job, "switch", "{what}");
                house.succeeds(&job);
            }
            let gate = house.run.job("switch").unwrap();
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
    let mut house = Stage::begin(vec![gated(job("switch")), staged(job("z"), "late")]);
    house.approves("switch");
    house.runs("switch");
    house.leases();
    house.fails("z", 1);
    house.carries_out(&Command::Retry("z".into()));
    assert_eq!(house.voids(), []);
    assert_eq!(house.leases().as_deref(), Some("z"));
}

#[test]
fn what_an_approval_covers_is_every_result_before_it() {
    // `far` is needed by what the gate needs, `aside` by nobody, in the stage before.
    let binds = |far: &str, aside: &str| {
        let mut plan = vec![job("aside"), staged(job("far"), "late")];
        plan.push(staged(needing(job("near"), "far"), "late"));
        plan.push(staged(needing(gated(job("switch")), "near"), "late"));
        let mut house = Stage::begin(plan);
        house.leases();
        house.succeeds_with("aside", &[("rows", aside)]);
        house.leases();
        house.succeeds_with("far", &[("rows", far)]);
        house.runs("near");
        house.run.job("switch").unwrap().binds.unwrap()
    };
    assert_eq!(binds("1", "1"), binds("1", "1"));
    assert_ne!(binds("1", "1"), binds("2", "1"));
    assert_ne!(binds("1", "1"), binds("1", "2"));
}

#[test]
fn a_log_that_counts_a_person_twice_or_miscounts_is_not_replayed() {
    let mut house = at_the_gate(GatePolicy { min: 3, ..expiring(1_000) }, |_| {});
    house.approves_as(&person("bob", &[], &[]));
    let last = house.facts.last().unwrap().clone();
    let JobState::AtGate(binds) = house.run.job("switch").unwrap().state else { unreachable!() };
    let approved = |missing| RunEvent::GateApproved {
        job: "switch".into(),
        binds,
        comment: String::new(),
        missing,
        standing: Standing::default(),
        until: None,
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
        assert_eq!(house.run.clone().evolve(&fact).is_ok(), legal, "{by} {at} {missing}");
    }
}
