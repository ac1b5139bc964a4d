//! Messages back as what the engine knows, for those who show them: the engine has the words.

use towpath_engine::{
    event::FailureCause,
    gate::{Approver, Excluded, GatePolicy},
};
use towpath_proto::{time::duration_ms, v1};

/// Why an attempt failed. `None`: it is not known, or another tool recorded it.
pub fn failure_cause(failure: &v1::JobFailure) -> Option<FailureCause> {
    use v1::FailureKind as K;
    let message = || failure.message.clone();
    match failure.kind() {
        K::Unspecified | K::Imported => None,
        K::ExitCode => failure.exit_code.map(FailureCause::ExitCode),
        K::Signal => failure.signal.map(FailureCause::Signal),
        K::TimedOut => {
            failure.time_limit.as_ref().and_then(duration_ms).map(FailureCause::TimedOut)
        }
        K::Lost => failure.lost_attempts.map(FailureCause::Lost),
        K::NotStarted => Some(FailureCause::NotStarted(message())),
        K::OutputUnusable => Some(FailureCause::OutputUnusable(message())),
        K::ReportInvalid => Some(FailureCause::ReportInvalid(message())),
    }
}

/// Who opens a gate. Names that this version cannot read are left out.
pub fn gate_policy(policy: &v1::GatePolicy) -> GatePolicy {
    let not = policy.not().filter_map(|excluded| match excluded {
        v1::GateExclusion::Unspecified => None,
        v1::GateExclusion::Requester => Some(Excluded::Requester),
        v1::GateExclusion::Author => Some(Excluded::Author),
    });
    GatePolicy {
        approvers: policy.approvers.iter().filter_map(|name| approver(name)).collect(),
        min: policy.min,
        not: not.collect(),
        expires_ms: policy.expires_after.as_ref().and_then(duration_ms),
    }
}

fn approver(name: &str) -> Option<Approver> {
    match name.strip_prefix("role:") {
        Some(role) => Some(Approver::Role(role.to_owned())),
        None => name.parse().ok().map(Approver::Person),
    }
}

#[cfg(test)]
mod tests {
    use towpath_engine::ids::Actor;

    use super::*;
    use crate::views;

    #[test]
    fn a_policy_and_a_cause_come_back_as_they_were() {
        let policy = GatePolicy {
            approvers: vec![
                Approver::Role("approver".into()),
                Approver::Person(Actor::human("ana")),
            ],
            min: 2,
            not: vec![Excluded::Requester, Excluded::Author],
            expires_ms: Some(3_600_000),
        };
        assert_eq!(gate_policy(&views::policy(&policy)), policy);
        for cause in [
            FailureCause::ExitCode(-1),
            FailureCause::Signal(9),
            FailureCause::TimedOut(1_500),
            FailureCause::Lost(20),
            FailureCause::NotStarted("no shell".into()),
            FailureCause::OutputUnusable("too long".into()),
            FailureCause::ReportInvalid("no digest".into()),
        ] {
            assert_eq!(failure_cause(&views::cause_message(&cause)), Some(cause));
        }
    }
}
