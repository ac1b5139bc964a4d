//! Tests of gates that want more than any one person, rule by rule.

use super::{ApproveGate, Command, CreateRun, EditedPlan, Ended, ResumeRun, testing::*};
use crate::{
    event::{RunEvent, VoidCause},
    gate::{Approver, Authors, Excluded, GatePolicy, Identity, OWNER},
    ids::{Actor, ActorKind, Digest},
    job::JobState,
    plan::JobPlan,
    time::Timestamp,
};

fn person(name: &str, roles: &[&str], emails: &[&str]) -> (Actor, Identity) {
    let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    (Actor::human(name), Identity { roles: all(roles), emails: all(emails) })
}

/// A gate behind `a`, with a policy.
fn jobs(policy: GatePolicy) -> Vec<JobPlan> {
    let mut gate = gated(needing(job("switch"), "a"));
    gate.gate = Some(policy);
    vec![job("a"), gate]
}

/// A run of ana's that has come to the gate.
fn at_the_gate(policy: GatePolicy, edit: impl FnOnce(&mut CreateRun)) -> Fixture {
    let mut fixture = Fixture::begin_with(jobs(policy), edit);
    fixture.runs("a");
    assert_eq!(fixture.state(), "at_gate");
    fixture
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

impl Fixture {
    fn state(&self) -> &'static str {
        self.run.job("switch").unwrap().state.word()
    }

    fn approval_with(&self, identity: &Identity) -> Command {
        let Command::Approve(approve) = self.approval("switch") else { unreachable!() };
        Command::Approve(ApproveGate { identity: identity.clone(), ..approve })
    }

    fn approves_as(&mut self, (by, identity): &(Actor, Identity)) {
        let approval = self.approval_with(identity);
        self.carries_out_of(by, &approval);
    }

    fn refuses(&mut self, (by, identity): &(Actor, Identity)) -> &'static str {
        let approval = self.approval_with(identity);
        self.refused_of(by, &approval).code().as_str()
    }

    /// Why approvals were void, in order.
    fn voids(&self) -> Vec<VoidCause> {
        let mut causes = Vec::new();
        for fact in &self.facts {
            if let RunEvent::GateVoided { cause, .. } = &fact.event {
                causes.push(cause.clone());
            }
        }
        causes
    }
}

#[test]
fn two_people_open_a_gate_that_wants_two() {
    let mut fixture = at_the_gate(two(), |_| {});

    fixture.approves_as(&person("bob", &[], &[]));
    let given = fixture.run.job("switch").unwrap().approvals.iter().map(|one| one.by.to_string());
    assert_eq!(given.collect::<Vec<_>>(), ["human:bob"]);
    assert_eq!((fixture.state(), fixture.leases()), ("at_gate", None));
    fixture.approves_as(&person("cleo", &[], &[]));

    assert_eq!(fixture.leases().as_deref(), Some("switch"));
}

#[test]
fn one_person_counts_once_by_whatever_name() {
    let mut fixture = at_the_gate(two(), |_| {});
    fixture.approves_as(&person("bob", &[], &["bob@example.org"]));
    let before = fixture.facts.len();

    fixture.approves_as(&person("bob", &[], &[]));
    fixture.approves_as(&person("Bob", &[], &[]));
    fixture.approves_as(&person("bob-laptop", &[], &["bob@example.org"]));

    assert_eq!(fixture.facts.len(), before);
    assert_eq!(fixture.state(), "at_gate");
}

#[test]
fn of_two_who_want_to_be_the_last_one_is() {
    let mut fixture = at_the_gate(two(), |_| {});
    fixture.approves_as(&person("bob", &[], &[]));
    let late = fixture.approval_with(&Identity::default());
    fixture.approves_as(&person("cleo", &[], &[]));
    let before = fixture.facts.len();

    fixture.carries_out_of(&Actor::human("dana"), &late);

    assert_eq!(fixture.facts.len(), before);
}

#[test]
fn no_program_opens_a_gate_with_a_policy_or_without_one() {
    for kind in [ActorKind::Agent, ActorKind::Service, ActorKind::Worker] {
        let program = (Actor { kind, name: "bob".into() }, person("", &[OWNER], &[]).1);
        let mut fixture = Fixture::begin(vec![gated(job("switch"))]);
        assert_eq!(fixture.refuses(&program), "APPROVER_NOT_HUMAN");
        let mut fixture = at_the_gate(two(), |_| {});
        assert_eq!(fixture.refuses(&program), "APPROVER_NOT_HUMAN");
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
        let mut fixture = at_the_gate(named.clone(), |_| {});
        match answer {
            Some(code) => assert_eq!(fixture.refuses(&who), code, "{who:?}"),
            None => fixture.approves_as(&who),
        }
        let expected = if answer.is_some() { "at_gate" } else { "approved" };
        assert_eq!(fixture.state(), expected, "{who:?}");
    }
}

#[test]
fn the_requester_of_a_run_may_not_approve_it() {
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
    let mut fixture = begin();
    fixture.approves_as(&person("bob", &[], &["bob@example.org"]));
    assert_eq!(fixture.state(), "approved");
}

#[test]
fn the_actor_who_replaced_the_plan_counts_as_a_requester() {
    let policy = not(&[Excluded::Requester]);
    let mut fixture = at_the_gate(policy.clone(), |_| {});
    let mut edited = jobs(policy);
    edited[1].script = "other".into();
    fixture.carries_out_of(&Actor::human("bob"), &accepted(edited));

    for name in ["ana", "bob"] {
        assert_eq!(fixture.refuses(&person(name, &[], &[])), "APPROVER_IS_REQUESTER");
    }
    fixture.approves_as(&person("cleo", &[], &[]));
}

#[test]
fn authors_and_possible_authors_may_not_approve() {
    let authors = |uncommitted| Authors { emails: vec!["bob@example.org".into()], uncommitted };
    for (uncommitted, who, answer) in [
        (false, person("bob", &[OWNER], &["bob@example.org"]), Some("APPROVER_IS_AUTHOR")),
        (false, person("bob", &[OWNER], &[]), Some("APPROVER_EMAIL_UNKNOWN")),
        (false, person("ana", &[], &["ana@example.org"]), None),
        (true, person("ana", &[], &["ana@example.org"]), Some("APPROVER_IS_AUTHOR")),
        (true, person("cleo", &[], &["cleo@example.org"]), None),
    ] {
        let mut fixture = at_the_gate(not(&[Excluded::Author]), |create| {
            create.authors = Some(authors(uncommitted));
        });
        match answer {
            Some(code) => assert_eq!(fixture.refuses(&who), code, "{who:?}"),
            None => fixture.approves_as(&who),
        }
    }
}

#[test]
fn a_run_that_excludes_unknown_authors_does_not_begin() {
    let create = creation(jobs(not(&[Excluded::Author])));
    let refusal = Fixture::empty().refused(&Command::Create(create));
    assert_eq!(refusal.code().as_str(), "AUTHORS_UNKNOWN");

    let mut fixture = at_the_gate(two(), |_| {});
    let edit = accepted(jobs(not(&[Excluded::Author])));
    assert_eq!(fixture.refused(&edit).code().as_str(), "AUTHORS_UNKNOWN");
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
        let fixture = Fixture::begin_with(plan, |create| {
            create.requester = known.clone();
            create.authors = authors.clone();
        });
        let header = fixture.run.header().unwrap();
        assert_eq!((!header.requester.is_empty(), header.authors.is_some()), (requester, author));
    }
}

#[test]
fn yes_is_one_approval_of_the_requester_under_the_same_rules() {
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
        let mut fixture = Fixture::begin_with(jobs(policy.clone()), yes);
        fixture.leases();
        // The report comes from a worker; the approval is not the worker's.
        let report =
            fixture.report("a", Ended::Succeeded { outputs: [].into(), artifacts: vec![] });
        fixture.carries_out_of(&Actor::worker("w1"), &report);
        assert_eq!(fixture.state(), state, "{policy:?}");
        let approvals = &fixture.run.job("switch").unwrap().approvals;
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
        let mut fixture = Fixture::empty();
        let agent = Actor { kind: ActorKind::Agent, name: "copilot".into() };
        fixture.carries_out_of(&agent, &Command::Create(create));
        fixture.runs("a");
        assert_eq!(fixture.state(), "at_gate");
        assert!(fixture.run.job("switch").unwrap().approvals.is_empty());
    }
}

#[test]
fn a_rejection_shuts_the_gate_whatever_was_approved_before() {
    let mut fixture = at_the_gate(two(), |_| {});
    fixture.approves_as(&person("bob", &[], &[]));

    let reject =
        super::RejectGate { job: "switch".into(), approval_digest: None, comment: String::new() };
    fixture.carries_out_of(&Actor::human("cleo"), &Command::Reject(reject));

    assert_eq!(fixture.state(), "rejected");
    assert_eq!(fixture.refuses(&person("dana", &[], &[])), "GATE_DECIDED");
}

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

fn accepted(jobs: Vec<JobPlan>) -> Command {
    let (file_sha256, plan) = (Digest([9; 32]), creation(jobs).plan);
    let requester = Identity::default();
    let file = EditedPlan { file_sha256, plan, source: None, requester, authors: None };
    Command::Resume(ResumeRun { file: Some(file), accept_changes: true, from: None })
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

            // Whoever resumes after an approval means what was approved.
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
