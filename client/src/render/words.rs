//! What messages of the contract mean, in words for people. The server sends facts only.

use towpath_engine::time::{Timestamp, duration_words};
use towpath_proto::{
    prost_types,
    time::{duration_ms, timestamp_ms},
    v1,
    words::Word as _,
};
use towpath_wire::read_back::{failure_cause, gate_policy};

/// The moment that a message names. A server sends no other than valid ones.
pub(crate) fn moment(time: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    time.and_then(timestamp_ms).map(Timestamp)
}

/// How long an attempt ran, in words; empty: it is not known.
pub(crate) fn ran(job: &v1::Job) -> String {
    job.run_time.as_ref().and_then(duration_ms).map(duration_words).unwrap_or_default()
}

/// Why an attempt failed.
pub(crate) fn failure(failure: &v1::JobFailure) -> String {
    failure_cause(failure).map_or_else(|| failure.message.clone(), |cause| cause.to_string())
}

/// The phase of a run, or its outcome once it has ended, in one word.
pub(crate) fn phase(run: &v1::Run) -> String {
    let outcome = run.outcome();
    if outcome == v1::RunOutcome::Unspecified { run.phase().word() } else { outcome.word() }
}

/// Why a job failed, was skipped or was rejected, as the end of a sentence; empty: nothing to say.
pub(crate) fn reason(job: &v1::Job) -> String {
    if let Some(why) = &job.failure {
        return failure(why);
    }
    if let Some(skip) = &job.skip {
        return skipped(skip);
    }
    match (&job.decision, job.state()) {
        (Some(decision), v1::JobState::Rejected) if decision.comment.is_empty() => {
            format!("rejected by {}", decision.by)
        }
        (Some(decision), v1::JobState::Rejected) => {
            format!("rejected by {}: {}", decision.by, decision.comment)
        }
        (_, _) => String::new(),
    }
}

fn skipped(skip: &v1::JobSkip) -> String {
    let v1::JobSkip { need, root, .. } = skip;
    let ended = match skip.root_state() {
        v1::JobState::TimedOut => "took too long",
        v1::JobState::Skipped => "was skipped",
        v1::JobState::Cancelled => "was cancelled",
        v1::JobState::Rejected => "was rejected",
        v1::JobState::Unspecified
        | v1::JobState::Waiting
        | v1::JobState::Admitted
        | v1::JobState::Declined
        | v1::JobState::AtGate
        | v1::JobState::Approved
        | v1::JobState::Running
        | v1::JobState::BackingOff
        | v1::JobState::Requeued
        | v1::JobState::Succeeded
        | v1::JobState::Failed => "failed",
    };
    match skip.cause() {
        v1::SkipCause::NeedUnmet if need == root => format!("needs {need}, which {ended}"),
        v1::SkipCause::NeedUnmet => format!("needs {need}, and {root} {ended}"),
        v1::SkipCause::ConditionFalse => "its `if` is false".to_owned(),
        v1::SkipCause::RunAborted => format!("the run was aborted: {root} {ended}"),
        v1::SkipCause::Imported => "recorded as skipped".to_owned(),
        v1::SkipCause::Unspecified => String::new(),
    }
}

/// Who opens a gate: `2 people of role:approver, not the requester`.
pub(crate) fn policy(policy: &v1::GatePolicy) -> String {
    gate_policy(policy).words()
}

/// How far a gate is: `1 of 2 approvals, by human:ana`. Empty where any one person opens it and
/// none has approved.
pub(crate) fn approvals(policy: Option<&v1::GatePolicy>, given: &[v1::GateApproval]) -> String {
    if policy.is_none() && given.is_empty() {
        return String::new();
    }
    let by: Vec<&str> = given.iter().map(|approval| approval.by.as_str()).collect();
    let wanted = policy.map_or(1, |policy| policy.min);
    let word = if wanted == 1 { "approval" } else { "approvals" };
    let have = format!("{} of {wanted} {word}", by.len());
    if by.is_empty() { have } else { format!("{have}, by {}", by.join(", ")) }
}

/// How far a gate is and who is waited for, as the end of a sentence; empty where any one person
/// opens it.
pub(crate) fn gate_waits_for(gate: &GateFacts<'_>) -> String {
    let words = approvals(gate.policy, gate.approvals);
    if words.is_empty() {
        return words;
    }
    let until = moment(gate.expire_at).map(|at| format!(", until {at}")).unwrap_or_default();
    let policy = gate.policy.map(gate_policy).unwrap_or_default();
    format!("{words}{until}; waits for {}", policy.waits_for(gate.remaining))
}

/// What a gate waits for, from the message of the gate or of its job.
pub(crate) struct GateFacts<'a> {
    policy: Option<&'a v1::GatePolicy>,
    approvals: &'a [v1::GateApproval],
    remaining: u32,
    expire_at: Option<&'a prost_types::Timestamp>,
}

impl<'a> From<&'a v1::Gate> for GateFacts<'a> {
    fn from(gate: &'a v1::Gate) -> Self {
        Self {
            policy: gate.policy.as_ref(),
            approvals: &gate.approvals,
            remaining: gate.approvals_remaining,
            expire_at: gate.approvals_expire_at.as_ref(),
        }
    }
}

impl<'a> From<&'a v1::Job> for GateFacts<'a> {
    fn from(job: &'a v1::Job) -> Self {
        Self {
            policy: job.policy.as_ref(),
            approvals: &job.approvals,
            remaining: job.approvals_remaining,
            expire_at: job.approvals_expire_at.as_ref(),
        }
    }
}
