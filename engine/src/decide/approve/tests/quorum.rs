//! Gates that want more than any one person: who counts, and who does not.

use super::*;

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
    for again in [person("Bob", &[], &[]), person("bob-laptop", &[], &["bob@example.org"])] {
        assert_eq!(fixture.refuses(&again), "APPROVER_HAS_APPROVED", "{again:?}");
    }

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

    let reject = RejectGate { job: "switch".into(), approval_digest: None, comment: String::new() };
    fixture.carries_out_of(&Actor::human("cleo"), &Command::Reject(reject));

    assert_eq!(fixture.state(), "rejected");
    assert_eq!(fixture.refuses(&person("dana", &[], &[])), "GATE_DECIDED");
}
