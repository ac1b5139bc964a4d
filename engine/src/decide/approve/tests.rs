//! Approvals: what opens a gate, who may give one, and what makes them void.

mod quorum;
mod voided;

use super::*;
use crate::{
    decide::{Command, CreateRun, EditedPlan, Ended, RejectGate, ResumeRun, testing::*},
    event::VoidCause,
    gate::{Approver, Authors, Excluded, GatePolicy, OWNER},
    ids::ActorKind,
    plan::JobPlan,
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

/// The plan of these jobs, accepted in place of the one there was.
fn accepted(jobs: Vec<JobPlan>) -> Command {
    let (file_sha256, plan) = (Digest([9; 32]), creation(jobs).plan);
    let requester = Identity::default();
    let file = EditedPlan { file_sha256, plan, source: None, requester, authors: None };
    let (accept_changes, may_lift_gates) = (true, true);
    Command::Resume(ResumeRun { file: Some(file), accept_changes, from: None, may_lift_gates })
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
fn a_gate_blocks_until_a_person_opens_it() {
    let mut fixture = Fixture::begin(vec![job("a"), gated(needing(job("cutover"), "a"))]);
    fixture.runs("a");

    assert_eq!(fixture.kinds().last(), Some(&"gate_reached"));
    assert_eq!(fixture.leases(), None);
    assert!(!fixture.run.can_move(), "a gate holds no slot");
    fixture.approves("cutover");
    assert_eq!(fixture.leases().as_deref(), Some("cutover"));
}

#[test]
fn a_gate_stays_shut_while_a_need_is_open() {
    let mut fixture = Fixture::begin(vec![job("a"), gated(needing(job("cutover"), "a"))]);

    let early = fixture.approval("cutover");

    let state = "waiting";
    assert_eq!(fixture.refused(&early), Refusal::GateNotWaiting { job: "cutover".into(), state });
}

#[test]
fn an_approval_of_something_else_is_refused() {
    let mut fixture = Fixture::begin(vec![gated(job("cutover"))]);
    let Command::Approve(approve) = fixture.approval("cutover") else { unreachable!() };

    let stale = Command::Approve(ApproveGate { approval_digest: Digest([7; 32]), ..approve });

    assert_eq!(fixture.refused(&stale).code().as_str(), "APPROVAL_STALE");
}

#[test]
fn what_an_approval_covers_changes_with_the_results_before_it() {
    let approval_digest = |rows: &str| {
        let mut fixture = Fixture::begin(vec![job("a"), gated(needing(job("cutover"), "a"))]);
        fixture.leases();
        fixture.succeeds_with("a", &[("rows", rows)]);
        fixture.run.approval_digest(fixture.run.job("cutover").unwrap())
    };
    assert_eq!(approval_digest("10"), approval_digest("10"));
    assert_ne!(approval_digest("10"), approval_digest("11"));
}

#[test]
fn one_approval_opens_one_gate() {
    let mut fixture = Fixture::begin(vec![gated(job("x")), gated(job("y"))]);

    fixture.approves("x");

    assert_eq!(fixture.leases().as_deref(), Some("x"));
    assert_eq!(fixture.leases(), None);
}

#[test]
fn a_second_approval_changes_nothing() {
    let mut fixture = Fixture::begin(vec![gated(job("x"))]);
    let approval = fixture.approval("x");
    fixture.carries_out(&approval);
    let before = fixture.facts.len();

    fixture.carries_out(&approval);

    assert_eq!(fixture.facts.len(), before);
}
