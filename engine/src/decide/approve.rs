//! `tow approve`: a person opens a gate.

use crate::{
    event::RunEvent,
    gate::{Identity, is_human},
    ids::{Actor, Digest, JobName},
    job::JobState,
    refusal::Refusal,
    run::Run,
    time::Timestamp,
};

/// Open a gate.
#[derive(Clone, Debug)]
pub struct ApproveGate {
    /// The job behind it.
    pub job: JobName,
    /// Digest of what the person read. An approval of anything else is refused.
    pub approval_digest: Digest,
    /// What they say.
    pub comment: String,
    /// What is known about them beside their name.
    pub identity: Identity,
}

/// Records an approval at the gate of a job; the last approval that the gate needs opens it. A gate
/// is reached only once everything before it has ended, so an approval always speaks about results
/// the approver could have read, and `approval_digest` says which.
pub(super) fn decide(
    run: &Run,
    approve: &ApproveGate,
    by: &Actor,
    now: Timestamp,
) -> Result<Vec<RunEvent>, Refusal> {
    let ApproveGate { job, approval_digest, comment, identity } = approve.clone();
    let known = super::known(run, &job)?;
    let comment = super::bounded_comment(&comment)?;
    // Before the state of the gate: the answer to a program is the same whatever the gate waits
    // for.
    is_human(&job, by)?;
    match (&known.state, &known.gate) {
        (JobState::AtGate(waiting), _) if *waiting == approval_digest => {
            if known.has_lapsed(now) {
                return Err(Refusal::ApprovalExpired { job });
            }
            let approval = run.approval(known, (by, &identity), comment, now, false)?;
            // A person who has approved already is counted once.
            let given = known.approval_of(by, &identity).is_some();
            Ok(if given { Vec::new() } else { vec![approval] })
        }
        (JobState::AtGate(waiting), _) => {
            Err(Refusal::ApprovalStale { job, waiting: *waiting, given: approval_digest })
        }
        (JobState::Rejected, Some(gate)) => {
            Err(Refusal::GateDecided { job, decision: "rejected", by: gate.by.to_string() })
        }
        // Open already: a repeated request, or one that came second, is not an error.
        (_, Some(gate)) if gate.approved => Ok(Vec::new()),
        (state, _) => Err(Refusal::GateNotWaiting { job, state: state.word() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Command, testing::*};

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
        assert_eq!(
            fixture.refused(&early),
            Refusal::GateNotWaiting { job: "cutover".into(), state }
        );
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
}
