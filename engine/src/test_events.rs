//! One event of each kind, with every field filled. The golden bytes of the format and the drawn
//! tables are made from these.

use std::collections::BTreeMap;

use crate::{
    event::{Artifact, FailureCause, ImportedResult, RunEvent, RunOutcome, SkipCause, VoidCause},
    gate::Identity,
    ids::{Attempt, Blob, Digest},
    plan::{JobPlan, OnFailure, Resource, RetryOn, RetryPolicy, When},
    time::Timestamp,
};

/// One event of each kind, in the order of the enum.
#[expect(clippy::too_many_lines, reason = "one list, read from top to bottom")]
pub fn one_of_each_kind() -> Vec<RunEvent> {
    let job = || "copy/orders: ü".into();
    let (attempt, approval_digest) = (Attempt(2), Digest::of(b"approval_digest"));
    let captured_output = Some(Blob::of(b"3 o done\n"));
    let text = |text: &str| text.to_owned();
    vec![
        RunEvent::RunCreated {
            run: "7f3ca10b2d4e6f80".into(),
            pipeline: text("shop"),
            file: text("towpath.yml"),
            file_sha256: Digest::of(b"file"),
            plan_sha256: Digest::of(b"plan"),
            stages: vec!["copy".into(), "cutover".into()],
            jobs: 1,
            parallelism: 4,
            gates_preapproved: true,
            due: Some(Timestamp(1_700_000_600_000)),
            traceparent: Some(text("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
            folder: text("/srv/shop"),
            idempotency_key: Some(text("ci-4711")),
            source: None,
            requester: Identity::default(),
            authors: None,
        },
        RunEvent::JobsPlanned { jobs: vec![full_job()] },
        RunEvent::RunStarted {},
        RunEvent::ConditionEvaluated {
            job: job(),
            holds: true,
            inputs: BTreeMap::from([(text("needs.check.outputs.rows"), text("12"))]),
            long_inputs: BTreeMap::new(),
        },
        RunEvent::GateReached { job: job(), approval_digest },
        RunEvent::GateApproved {
            job: job(),
            approval_digest,
            comment: text("counts read"),
            approvals_remaining: 0,
            identity: Identity::default(),
            expires_at: None,
            in_advance: false,
        },
        RunEvent::GateVoided {
            job: job(),
            approval_digest,
            cause: VoidCause::JobRepeated("check".into()),
        },
        RunEvent::GateRejected { job: job(), approval_digest, comment: text("not on a Friday") },
        RunEvent::JobLeased { job: job(), attempt, worker: "eu-2".into(), lease_ms: 30_000 },
        RunEvent::JobSucceeded {
            job: job(),
            attempt,
            ran_ms: 6_020,
            outputs: BTreeMap::from([(text("rows"), text("1200000"))]),
            captured_output,
            artifacts: vec![Artifact { path: text("report.json"), blob: Blob::of(b"{}") }],
        },
        RunEvent::JobAttemptFailed {
            job: job(),
            attempt,
            cause: FailureCause::ExitCode(75),
            ran_ms: 40,
            captured_output,
            retry_due: Timestamp(1_700_000_008_000),
        },
        RunEvent::JobFailed {
            job: job(),
            attempt,
            cause: FailureCause::TimedOut(60_000),
            ran_ms: 60_004,
            captured_output,
        },
        RunEvent::JobCancelled { job: job(), attempt, ran_ms: 90, captured_output },
        RunEvent::JobLost {
            job: job(),
            attempt,
            worker: "eu-2".into(),
            reason: text("its process is gone"),
        },
        RunEvent::JobSkipped {
            job: job(),
            cause: SkipCause::NeedUnmet { need: "b".into(), root: "a".into() },
        },
        RunEvent::RunAborted { root: "check".into() },
        RunEvent::RunCancelRequested { reason: text("wrong target") },
        RunEvent::RunTimedOut {},
        RunEvent::RunFinished {
            outcome: RunOutcome::Partial,
            succeeded: 7,
            failed: 1,
            skipped: 2,
            cancelled: 0,
            rejected: 0,
        },
        RunEvent::RunResumed {},
        RunEvent::JobsInvalidated { from: "copy".into() },
        RunEvent::JobRetried { job: job() },
        RunEvent::PlanReplaced {
            file_sha256: Digest::of(b"new file"),
            plan_sha256: Digest::of(b"new plan"),
            stages: vec!["copy".into()],
            jobs: 2,
            timeout_ms: Some(3_600_000),
            source: None,
            requester: Identity::default(),
            authors: None,
        },
        RunEvent::JobImported {
            job: job(),
            result: ImportedResult::Failed,
            started_at: Some(Timestamp(1_775_570_400_000)),
            finished_at: Some(Timestamp(1_775_571_301_000)),
            exit_code: Some(1),
            error: text("exit code 1"),
        },
    ]
}

/// A job with every option set.
fn full_job() -> JobPlan {
    let text = |text: &str| text.to_owned();
    JobPlan {
        shell: vec![text("bash"), text("-c")],
        needs: vec!["check".into()],
        when: When::Manual,
        on_failure: OnFailure::Abort,
        retry: Some(RetryPolicy {
            max: 3,
            backoff_ms: 1_000,
            factor_percent: 200,
            backoff_max_ms: 60_000,
            jitter_percent: 20,
            on: vec![RetryOn::ExitCode(75), RetryOn::Timeout, RetryOn::Signal, RetryOn::Spawn],
        }),
        timeout_ms: Some(3_600_000),
        grace_ms: Some(5_000),
        env: BTreeMap::from([(text("PGHOST"), text("db1"))]),
        secrets: vec![text("PGPASSWORD")],
        tags: vec![text("eu")],
        prefer: BTreeMap::from([(text("ssd"), 10)]),
        resource: Some(Resource { name: text("target"), limit: 2 }),
        condition: Some(text("needs.check.outputs.rows | int > 0")),
        matrix: BTreeMap::from([(text("table"), text("orders"))]),
        artifacts: vec![text("report.json")],
        undo: Some(text("drop table orders")),
        irreversible: true,
        ..JobPlan::new("copy (orders)", "copy", "copy orders")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_here_once() {
        let kinds: std::collections::BTreeSet<_> =
            one_of_each_kind().iter().map(RunEvent::kind).collect();
        assert_eq!(kinds.len(), one_of_each_kind().len());
        // The number of arms in `RunEvent::kind`: a new kind that is missing here is noticed.
        let arms = include_str!("event.rs").matches("} => \"").count();
        assert_eq!(kinds.len(), arms);
    }
}
