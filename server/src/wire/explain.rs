//! The reason for which a job waits, as a message. The client has the words.

use towpath_engine::{ids::JobName, run::Run, views::WaitReason};
use towpath_proto::v1;
use towpath_wire::views::job_state;

/// The reason for which a job of `run` waits.
pub(crate) fn explanation(run: &Run, reason: &WaitReason) -> v1::Explanation {
    use v1::WaitReason as R;
    let of = |reason: R| v1::Explanation { reason: reason.into(), ..v1::Explanation::default() };
    let waited = |name: &JobName| v1::WaitedJob {
        name: name.to_string(),
        stage: run.job(name.as_str()).map(|job| job.plan.stage.to_string()).unwrap_or_default(),
        state: run
            .job(name.as_str())
            .map_or(v1::JobState::Unspecified, |job| job_state(&job.state))
            .into(),
    };
    match reason {
        WaitReason::Ended => of(R::Ended),
        WaitReason::Running { ending: false, .. } => of(R::Running),
        WaitReason::Running { ending: true, .. } => of(R::Ending),
        WaitReason::WorkerAbsent { .. } => of(R::WorkerAbsent),
        WaitReason::Gate { .. } => of(R::Gate),
        WaitReason::Backoff { .. } => of(R::Backoff),
        WaitReason::Needs { open, count } => v1::Explanation {
            waits_for: open.iter().map(waited).collect(),
            waits_for_count: *count,
            ..of(R::Needs)
        },
        WaitReason::EarlierStage { job } => {
            v1::Explanation { waits_for: vec![waited(job)], ..of(R::EarlierStage) }
        }
        WaitReason::Lock { name, held, limit } => {
            let lock = v1::LockUsage { name: name.clone(), held: *held, limit: *limit };
            v1::Explanation { lock: Some(lock), ..of(R::Lock) }
        }
        WaitReason::RunNotRunning { .. } => of(R::RunNotRunning),
        WaitReason::Parallelism { limit } => {
            v1::Explanation { parallelism: *limit, ..of(R::Parallelism) }
        }
        WaitReason::NoWorker => of(R::NoWorker),
        WaitReason::WorkersDrained => of(R::WorkersDrained),
        WaitReason::Tags { tags } => v1::Explanation { tags: tags.clone(), ..of(R::Tags) },
        WaitReason::LeasingPaused => of(R::LeasingPaused),
        WaitReason::FreeSlot => of(R::FreeSlot),
    }
}
