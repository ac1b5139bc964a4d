//! `tow approve`: a person opens a gate.

use crate::{
    event::RunEvent,
    gate::{Standing, is_human},
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
    pub binds: Digest,
    /// What they say.
    pub comment: String,
    /// What is known about them beside their name.
    pub standing: Standing,
}

/// Records that somebody approved at the gate of a job; the last of those that the gate wants opens
/// it. A gate is reached only once everything before it has ended, so an approval always speaks
/// about results the approver could have read, and `binds` says which.
pub(super) fn decide(
    run: &Run,
    approve: &ApproveGate,
    by: &Actor,
    now: Timestamp,
) -> Result<Vec<RunEvent>, Refusal> {
    let ApproveGate { job, binds, comment, standing } = approve.clone();
    let known = super::known(run, &job)?;
    let comment = super::bounded_comment(&comment)?;
    is_human(&job, by)?;
    match (&known.state, &known.gate) {
        (JobState::AtGate(waiting), _) if *waiting == binds => {
            if known.has_lapsed(now) {
                return Err(Refusal::ApprovalExpired { job });
            }
            let approval = run.approval(known, (by, &standing), comment, now, false)?;
            // Whoever has approved already counts once.
            let given = known.approval_of(by, &standing).is_some();
            Ok(if given { Vec::new() } else { vec![approval] })
        }
        (JobState::AtGate(waiting), _) => {
            Err(Refusal::ApprovalStale { job, waiting: *waiting, given: binds })
        }
        (JobState::Rejected, Some(gate)) => {
            Err(Refusal::GateDecided { job, decision: "rejected", by: gate.by.to_string() })
        }
        (_, Some(gate)) if gate.approved => Ok(Vec::new()),
        (state, _) => Err(Refusal::GateNotWaiting { job, state: state.word() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Command, stage_set::*};

    #[test]
    fn a_gate_blocks_until_a_person_opens_it() {
        let mut house = Stage::begin(vec![job("a"), gated(needing(job("cutover"), "a"))]);
        house.runs("a");

        assert_eq!(house.kinds().last(), Some(&"gate_reached"));
        assert_eq!(house.leases(), None);
        assert!(!house.run.can_move(), "a gate holds no slot");
        house.approves("cutover");
        assert_eq!(house.leases().as_deref(), Some("cutover"));
    }

    #[test]
    fn a_gate_stays_shut_while_a_need_is_open() {
        let mut house = Stage::begin(vec![job("a"), gated(needing(job("cutover"), "a"))]);

        let early = house.approval("cutover");

        let state = "waiting";
        assert_eq!(house.refused(&early), Refusal::GateNotWaiting { job: "cutover".into(), state });
    }

    #[test]
    fn an_approval_of_something_else_is_refused() {
        let mut house = Stage::begin(vec![gated(job("cutover"))]);
        let Command::Approve(approve) = house.approval("cutover") else { unreachable!() };

        let stale = Command::Approve(ApproveGate { binds: Digest([7; 32]), ..approve });

        assert_eq!(house.refused(&stale).code().as_str(), "APPROVAL_STALE");
    }

    #[test]
    fn what_an_approval_covers_changes_with_the_results_before_it() {
        let binds = |rows: &str| {
            let mut house = Stage::begin(vec![job("a"), gated(needing(job("cutover"), "a"))]);
            house.leases();
            house.succeeds_with("a", &[("rows", rows)]);
            house.run.binds(house.run.job("cutover").unwrap())
        };
        assert_eq!(binds("10"), binds("10"));
        assert_ne!(binds("10"), binds("11"));
    }

    #[test]
    fn one_approval_opens_one_gate() {
        let mut house = Stage::begin(vec![gated(job("x")), gated(job("y"))]);

        house.approves("x");

        assert_eq!(house.leases().as_deref(), Some("x"));
        assert_eq!(house.leases(), None);
    }

    #[test]
    fn a_second_approval_changes_nothing() {
        let mut house = Stage::begin(vec![gated(job("x"))]);
        let approval = house.approval("x");
        house.carries_out(&approval);
        let before = house.facts.len();

        house.carries_out(&approval);

        assert_eq!(house.facts.len(), before);
    }
}
