//! `tow approve`: a person opens a gate.

use crate::{
    admission::is_human,
    event::RunEvent,
    gate::Identity,
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
            match known.approval_of(by, &identity) {
                None => Ok(vec![approval]),
                // The same request again is not an error.
                Some(given) if given.by == *by => Ok(Vec::new()),
                // "Approved" would say that it counts, and it does not.
                Some(given) => {
                    let (by, before) = (by.to_string(), given.by.to_string());
                    Err(Refusal::ApproverHasApproved { job, by, before })
                }
            }
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
mod tests;
