//! The reason for which a job waits, as a message: in words and with the command that helps.

use towpath_engine::{
    ids::WorkerName,
    job::JobState,
    plan::When,
    run::{Job, Run},
    time::{Timestamp, duration_words},
    views::WaitReason,
};
use towpath_proto::v1;

use super::views;

/// What `job` of `run`, whose short id is `id`, waits for at `now`.
pub(crate) fn explanation(
    run: &Run,
    job: &Job,
    reason: &WaitReason,
    (id, now): (&str, Timestamp),
) -> v1::ExplainJobResponse {
    v1::ExplainJobResponse {
        job: Some(views::job(run, job)),
        waits_for: reason.word().to_owned(),
        sentence: sentence(run, job, reason, now),
        next_command: next_command(job, reason, id),
    }
}

fn sentence(run: &Run, job: &Job, reason: &WaitReason, now: Timestamp) -> String {
    let name = &job.plan.name;
    let since = |at: Timestamp| duration_words(now.ms_since(at));
    let state = |job: &str| run.job(job).map_or("", |job| job.state.word());
    match reason {
        WaitReason::Ended => ended(run, job),
        WaitReason::WorkerAbsent { worker, attempt, since: at } => format!(
            "`{name}` was given to {} (attempt {attempt}, {} ago), which is not here. The job may \
             still be running; what it does is not lost.",
            shown(worker),
            since(*at)
        ),
        WaitReason::Running { worker, attempt, since: at, ending } => {
            let doing = if *ending { "is being ended" } else { "runs" };
            format!("`{name}` {doing} on {} (attempt {attempt}, {}).", shown(worker), since(*at))
        }
        WaitReason::Gate { since: at, digest, .. } => format!(
            "`{name}` waits at its gate for a person since {} ({}){}.",
            since(*at),
            digest.short(),
            quorum(job),
        ),
        WaitReason::Backoff { until } => {
            let (wait, why) = (duration_words(until.ms_since(now)), views::reason(run, job));
            format!("`{name}` is tried again in {wait} (at {until}): {why}.")
        }
        WaitReason::Needs { open, count } => {
            let named = open.iter().map(|need| format!("`{need}` ({})", state(need.as_str())));
            let mut list: Vec<String> = named.collect();
            let more = (*count as usize).saturating_sub(list.len());
            list.extend((more > 0).then(|| format!("and {more} more")));
            format!("`{name}` waits for {}.", list.join(", "))
        }
        WaitReason::EarlierStage { job: first } => {
            let stage = run.job(first.as_str()).map(|job| job.plan.stage.to_string());
            let (stage, state) = (stage.unwrap_or_default(), state(first.as_str()));
            format!("`{name}` waits for stage `{stage}`: `{first}` is {state}.")
        }
        WaitReason::Lock { name: lock, held, limit } => {
            format!("`{name}` waits for the lock `{lock}` ({held} of {limit} taken).")
        }
        WaitReason::RunNotRunning { phase } => {
            format!("`{name}` waits, but the run is {}.", phase.word())
        }
        WaitReason::Parallelism { limit } => {
            format!("`{name}` is ready; all {limit} places of the run are taken.")
        }
        WaitReason::NoWorker => {
            format!("`{name}` is ready, but no worker is connected that takes jobs of its run.")
        }
        WaitReason::WorkersDrained => {
            format!("`{name}` is ready, but every worker that is connected is drained.")
        }
        WaitReason::Tags { tags } => {
            format!("`{name}` is ready, but no worker offers: {}.", tags.join(", "))
        }
        WaitReason::LeasingPaused => {
            format!("`{name}` is ready, but the store takes no leases now.")
        }
        WaitReason::FreeSlot => {
            let gate = if job.plan.when == When::Manual { " and approved" } else { "" };
            format!("`{name}` is ready{gate} and will be given to the next free worker.")
        }
    }
}

/// How a job ended.
fn ended(run: &Run, job: &Job) -> String {
    let name = &job.plan.name;
    let why = || views::reason(run, job);
    match &job.state {
        JobState::Succeeded => {
            format!("`{name}` succeeded in {}.", job.ran_ms.map(duration_words).unwrap_or_default())
        }
        JobState::Failed | JobState::TimedOut => format!("`{name}` failed: {}.", why()),
        JobState::Skipped => format!("`{name}` was skipped: {}.", why()),
        JobState::Rejected => format!("`{name}` is behind a gate that stays shut: {}.", why()),
        JobState::Cancelled
        | JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::AtGate(_)
        | JobState::Approved
        | JobState::Leased(..)
        | JobState::BackingOff(_)
        | JobState::Requeued => format!("`{name}` was cancelled with its run."),
    }
}

/// The command that helps, if one does.
fn next_command(job: &Job, reason: &WaitReason, id: &str) -> String {
    let name = quoted(job.plan.name.as_str());
    match reason {
        WaitReason::Ended => match job.state {
            JobState::Failed | JobState::TimedOut => format!("tow retry {name} --run {id}"),
            JobState::Skipped | JobState::Cancelled | JobState::Rejected => {
                format!("tow resume {id}")
            }
            JobState::Succeeded
            | JobState::Waiting
            | JobState::Admitted
            | JobState::Declined
            | JobState::AtGate(_)
            | JobState::Approved
            | JobState::Leased(..)
            | JobState::BackingOff(_)
            | JobState::Requeued => String::new(),
        },
        WaitReason::Running { .. } => format!("tow logs {name} --run {id} -f"),
        WaitReason::WorkerAbsent { .. } | WaitReason::NoWorker => format!("tow resume {id}"),
        WaitReason::Gate { .. } => format!("tow approve {name} --run {id}"),
        WaitReason::Needs { open, .. } => match open.first() {
            Some(first) => format!("tow why {} --run {id}", quoted(first.as_str())),
            None => String::new(),
        },
        WaitReason::EarlierStage { job } => {
            format!("tow why {} --run {id}", quoted(job.as_str()))
        }
        WaitReason::WorkersDrained => "tow workers".to_owned(),
        WaitReason::Backoff { .. }
        | WaitReason::Lock { .. }
        | WaitReason::RunNotRunning { .. }
        | WaitReason::Parallelism { .. }
        | WaitReason::Tags { .. }
        | WaitReason::LeasingPaused
        | WaitReason::FreeSlot => String::new(),
    }
}

/// A worker, as a sentence names it.
fn shown(worker: &WorkerName) -> &str {
    let own = worker.as_str().starts_with(crate::LOCAL_WORKER_PREFIX);
    if own { "this machine" } else { worker.as_str() }
}

/// What a gate with a policy wants, as the end of a sentence.
fn quorum(job: &Job) -> String {
    let words = views::waits_for(job);
    if words.is_empty() { words } else { format!(": {words}") }
}

/// `text` as one shell word.
fn quoted(text: &str) -> String {
    towpath_engine::expression::quoted(text).into_owned()
}
