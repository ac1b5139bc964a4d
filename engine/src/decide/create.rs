//! `tow run`: a run begins, with its plan frozen into its first events.

use crate::{
    codec::FACT_BYTES_MAX,
    event::RunEvent,
    gate::{Authors, Excluded, Identity},
    ids::{Digest, RunId},
    plan::{JobPlan, Plan},
    refusal::Refusal,
    run::Run,
    source::Source,
    time::Timestamp,
};

/// Most jobs of one run that may run at once.
pub const PARALLELISM_MAX: u32 = 1_024;

/// Longest name that a client may give its request, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

/// Room for the envelope of a fact beside its jobs, in bytes.
const ENVELOPE_BYTES: usize = 1_024;

/// Begin a run.
#[derive(Clone, Debug)]
pub struct CreateRun {
    /// Its id, chosen by the server.
    pub run: RunId,
    /// The pipeline file, as the client named it.
    pub file: String,
    /// The folder the scripts run in, as the client named it.
    pub folder: String,
    /// Digest of the file's bytes.
    pub file_sha256: Digest,
    /// What the file means.
    pub plan: Plan,
    /// Most jobs that run at once.
    pub parallelism: u32,
    /// Gates are approved by the requester as soon as they are reached.
    pub gates_preapproved: bool,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// What the client called its request.
    pub idempotency_key: Option<String>,
    /// The files of the run. `None`: they are in `folder`, and workers share it.
    pub source: Option<Source>,
    /// What is known about the requester.
    pub requester: Identity,
    /// Who wrote the file. `None`: unknown.
    pub authors: Option<Authors>,
}

pub(super) fn decide(
    run: &Run,
    create: &CreateRun,
    now: Timestamp,
) -> Result<Vec<RunEvent>, Refusal> {
    // Ids are random; the same one twice is a request that was sent twice.
    if run.header().is_some() {
        return Err(Refusal::RunExists);
    }
    if !(1..=PARALLELISM_MAX).contains(&create.parallelism) {
        let bounds = format!("1 to {PARALLELISM_MAX}");
        return Err(Refusal::ArgumentOutOfBounds { what: "the parallelism", bounds });
    }
    // The key is stored in the first event and in the list of runs, which stays in memory.
    let key_fits = |key: &String| (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len());
    if !create.idempotency_key.as_ref().is_none_or(key_fits) {
        let bounds = format!("1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes");
        return Err(Refusal::ArgumentOutOfBounds { what: "the idempotency key", bounds });
    }
    let (requester, authors) = concerned(&create.plan, &create.requester, create.authors.as_ref())?;
    let mut events = vec![RunEvent::RunCreated {
        run: create.run.clone(),
        pipeline: create.plan.pipeline.clone(),
        file: create.file.clone(),
        file_sha256: create.file_sha256,
        plan_sha256: create.plan.digest(),
        stages: create.plan.stages.clone(),
        jobs: u32::try_from(create.plan.jobs.len()).unwrap_or(u32::MAX),
        parallelism: create.parallelism,
        gates_preapproved: create.gates_preapproved,
        due: create.plan.timeout_ms.map(|limit| now.plus_ms(limit)),
        traceparent: create.traceparent.clone(),
        folder: create.folder.clone(),
        idempotency_key: create.idempotency_key.clone(),
        source: create.source.clone(),
        requester,
        authors,
    }];
    events.extend(plan_chunks(&create.plan.jobs));
    events.push(RunEvent::RunStarted {});
    Ok(events)
}

/// What the gates of `plan` depend on, and nothing more: the log is not an address book. A plan
/// that excludes authors is refused if they are unknown, before any job runs.
pub(super) fn concerned(
    plan: &Plan,
    requester: &Identity,
    authors: Option<&Authors>,
) -> Result<(Identity, Option<Authors>), Refusal> {
    let with_policy = plan.jobs.iter().filter_map(|job| Some((job, job.gate.as_ref()?)));
    let (mut policies, mut excluding) = (false, None);
    for (job, policy) in with_policy {
        policies = true;
        if policy.excludes(Excluded::Author) {
            // The first in file order, for a stable message.
            excluding = excluding.or(Some(job));
        }
    }
    // Refused now and not at the gate: by then the copy may have run for hours, and no approval
    // would be possible.
    if let (Some(job), None) = (excluding, authors) {
        return Err(Refusal::AuthorsUnknown { job: job.name.clone() });
    }
    let requester = if policies { requester.clone() } else { Identity::default() };
    Ok((requester, authors.filter(|_| excluding.is_some()).cloned()))
}

/// The jobs as events, as few as the bound of a record allows.
pub fn plan_chunks(jobs: &[JobPlan]) -> Vec<RunEvent> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut bytes = 0;
    for job in jobs {
        // One byte for the comma between jobs.
        let own = serde_json::to_vec(job).map_or(0, |text| text.len() + 1);
        // A job alone always fits: the pipeline crate refuses larger ones (`JOB_TOO_LARGE`).
        if bytes + own > FACT_BYTES_MAX - ENVELOPE_BYTES && !chunk.is_empty() {
            chunks.push(RunEvent::JobsPlanned { jobs: std::mem::take(&mut chunk) });
            bytes = 0;
        }
        bytes += own;
        chunk.push(job.clone());
    }
    if !chunk.is_empty() {
        chunks.push(RunEvent::JobsPlanned { jobs: chunk });
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Command, testing::*};

    #[test]
    fn a_run_freezes_its_plan() {
        let fixture = Fixture::begin(vec![job("a"), job("b")]);

        assert_eq!(fixture.kinds(), ["run_created", "jobs_planned", "run_started"]);
        assert_eq!(fixture.run.plan().unwrap().digest(), fixture.run.header().unwrap().plan_sha256);
    }

    #[test]
    fn a_run_is_created_once() {
        let mut fixture = Fixture::begin(vec![job("a")]);

        let again = Command::Create(creation(vec![job("a")]));

        assert_eq!(fixture.refused(&again), Refusal::RunExists);
    }

    #[test]
    fn a_large_plan_is_written_in_pieces_that_fit() {
        let jobs: Vec<JobPlan> = (0..3_000).map(|n| job(&format!("job-{n:05}"))).collect();

        let fixture = Fixture::begin(jobs.clone());

        assert!(fixture.facts.len() >= 5, "{} events", fixture.facts.len());
        assert_eq!(fixture.run.jobs().len(), 3_000);
        assert_eq!(fixture.run.jobs()[2_999].plan.name, jobs[2_999].name);
    }

    #[test]
    fn no_parallelism_or_too_much_of_it_is_refused() {
        for parallelism in [0, PARALLELISM_MAX + 1] {
            let create = CreateRun { parallelism, ..creation(vec![job("a")]) };
            let refusal = decide(&Run::default(), &create, Timestamp(0)).unwrap_err();
            assert_eq!(refusal.code().as_str(), "ARGUMENT_OUT_OF_BOUNDS");
        }
    }
}
