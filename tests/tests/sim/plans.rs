//! Random plans.

use towpath_engine::{
    decide::CreateRun,
    gate::{Excluded, GatePolicy, Identity},
    ids::{Digest, RunId, StageName},
    plan::{JobPlan, OnFailure, Plan, Resource, RetryPolicy, When},
};

use crate::random::Rng;

/// The lock that all runs share.
pub(crate) const LOCK: &str = "target";
/// What only some workers offer.
pub(crate) const TAG: &str = "t";

/// The run that a request of this number begins.
pub(crate) fn run_id(request: u64) -> RunId {
    format!("run{request:013}").into()
}

/// A request for a run, always the same for the same state of `rng`.
pub(crate) fn creation(rng: &mut Rng, request: u64, limit: u32) -> CreateRun {
    let stage_count = rng.between(1, 3);
    let stages: Vec<StageName> = (0..stage_count).map(|at| format!("s{at}").into()).collect();
    let mut jobs: Vec<JobPlan> = Vec::new();
    for number in 0..rng.between(1, 8) {
        let stage = rng.index(stages.len());
        jobs.push(job(rng, number, stage, &jobs, limit));
    }
    let timeout_ms = rng.chance(15).then(|| rng.between(20_000, 200_000));
    CreateRun {
        run: run_id(request),
        file: "towpath.yml".to_owned(),
        folder: "/srv".to_owned(),
        file_sha256: Digest([1; 32]),
        plan: Plan { pipeline: "random".to_owned(), stages, jobs, timeout_ms },
        parallelism: u32::try_from(rng.between(1, 4)).unwrap_or(1),
        gates_preapproved: rng.chance(20),
        traceparent: None,
        idempotency_key: Some(format!("request-{request}")),
        source: None,
        requester: Identity::default(),
        authors: None,
    }
}

fn job(rng: &mut Rng, number: u64, stage: usize, before: &[JobPlan], limit: u32) -> JobPlan {
    let name = |stage: usize| format!("s{stage}");
    let mut job = JobPlan::new(&format!("j{number}"), &name(stage), "true");
    for other in before {
        let earlier = (0..=stage).any(|at| other.stage.as_str() == name(at));
        if earlier && rng.chance(30) {
            job.needs.push(other.name.clone());
        }
    }
    job.when = match rng.below(10) {
        0..6 => When::OnSuccess,
        6..8 => When::Always,
        _ => When::Manual,
    };
    if job.when == When::Manual && rng.chance(60) {
        job.gate = Some(GatePolicy {
            min: u32::try_from(rng.between(1, 2)).unwrap_or(1),
            not: rng.chance(30).then_some(Excluded::Requester).into_iter().collect(),
            expires_ms: rng.chance(50).then(|| rng.between(1_000, 60_000)),
            ..GatePolicy::default()
        });
    }
    if rng.chance(10) {
        job.on_failure = OnFailure::Abort;
    }
    if rng.chance(60) {
        job.retry = Some(RetryPolicy {
            max: u32::try_from(rng.between(1, 3)).unwrap_or(1),
            backoff_ms: rng.below(4_000),
            factor_percent: 200,
            backoff_max_ms: 8_000,
            jitter_percent: 20,
            on: Vec::new(),
        });
    }
    if rng.chance(30) {
        job.resource = Some(Resource { name: LOCK.to_owned(), limit });
    }
    if rng.chance(20) {
        job.tags = vec![TAG.to_owned()];
    }
    if let Some(need) = job.needs.first().filter(|_| rng.chance(15)) {
        job.condition = Some(format!("needs.{need}.outcome == 'succeeded'"));
    }
    job
}
