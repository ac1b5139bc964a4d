//! One answer to: why does this job stand where it stands?

use towpath_engine::{
    ids::RunId,
    job::JobState,
    plan::When,
    run::{Job, LockUsage, Phase, Run},
    time::{Timestamp, duration_words},
};
use towpath_proto::v1;

use super::views;

/// What an explanation needs to know beyond the run itself.
pub(crate) struct ExplainContext<'a> {
    pub(crate) id: &'a RunId,
    pub(crate) short_id: &'a str,
    pub(crate) now: Timestamp,
    /// Locks held by other runs.
    pub(crate) busy: &'a LockUsage,
    /// Whether any worker is connected for this run.
    pub(crate) has_worker: bool,
    /// Whether any connected worker offers the job's tags.
    pub(crate) has_tags: bool,
}

type Answer = (&'static str, String, String);

/// Why `job` stands where it stands.
pub(crate) fn explanation(run: &Run, job: &Job, around: &ExplainContext<'_>) -> v1::Explanation {
    let (waits_for, sentence, next_command) = answer(run, job, around);
    v1::Explanation {
        job: Some(views::job(run, job)),
        waits_for: waits_for.to_owned(),
        sentence,
        next_command,
    }
}

fn answer(run: &Run, job: &Job, around: &ExplainContext<'_>) -> Answer {
    let (name, id) = (&job.plan.name, around.short_id);
    let took = job.ran_ms.map(duration_words).unwrap_or_default();
    match &job.state {
        JobState::Succeeded => ("ended", format!("`{name}` succeeded in {took}."), String::new()),
        JobState::Failed | JobState::TimedOut => (
            "ended",
            format!("`{name}` failed: {}.", views::reason(run, job)),
            format!("tow retry {} --run {id}", quoted(name.as_str())),
        ),
        JobState::Skipped => (
            "ended",
            format!("`{name}` was skipped: {}.", views::reason(run, job)),
            format!("tow resume {id}"),
        ),
        JobState::Cancelled => {
            ("ended", format!("`{name}` was cancelled with its run."), format!("tow resume {id}"))
        }
        JobState::Rejected => (
            "ended",
            format!("`{name}` is behind a gate that stays shut: {}.", views::reason(run, job)),
            format!("tow resume {id}"),
        ),
        JobState::Leased(attempt, worker) => {
            let own = worker.as_str().starts_with(crate::LOCAL_WORKER_PREFIX);
            let worker = if own { "this machine" } else { worker.as_str() };
            let since = duration_words(around.now.ms_since(job.since));
            if !around.has_worker {
                let sentence = format!(
                    "`{name}` was given to {worker} (attempt {attempt}, {since} ago), which is not \
                     here. The job may still be running; what it does is not lost."
                );
                return ("paused", sentence, format!("tow resume {id}"));
            }
            let doing = if run.phase().is_ending() { "is being ended" } else { "runs" };
            let sentence = format!("`{name}` {doing} on {worker} (attempt {attempt}, {since}).");
            ("running", sentence, format!("tow logs {} --run {id} -f", quoted(name.as_str())))
        }
        JobState::AtGate(approval_digest) => (
            "gate",
            format!(
                "`{name}` waits at its gate for a person since {} ({}){}.",
                duration_words(around.now.ms_since(job.since)),
                approval_digest.short(),
                quorum(job),
            ),
            format!("tow approve {} --run {id}", quoted(name.as_str())),
        ),
        JobState::BackingOff(due) if *due > around.now => {
            let wait = duration_words(due.ms_since(around.now));
            let why = views::reason(run, job);
            let sentence = format!("`{name}` is tried again in {wait} (at {due}): {why}.");
            ("backoff", sentence, String::new())
        }
        JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::Approved
        | JobState::Requeued
        | JobState::BackingOff(_) => waiting(run, job, around),
    }
}

fn waiting(run: &Run, job: &Job, around: &ExplainContext<'_>) -> Answer {
    let (name, id) = (&job.plan.name, around.short_id);
    let open: Vec<&Job> = job
        .plan
        .needs
        .iter()
        .filter_map(|need| run.job(need.as_str()))
        .filter(|need| !need.state.is_over())
        .collect();
    if !open.is_empty() {
        let list: Vec<String> = open
            .iter()
            .map(|need| format!("`{}` ({})", need.plan.name, need.state.word()))
            .collect();
        let next = format!("tow why {} --run {id}", quoted(open[0].plan.name.as_str()));
        return ("needs", format!("`{name}` waits for {}.", list.join(", ")), next);
    }
    if let Some(first) = earlier_open(run, job) {
        let sentence = format!(
            "`{name}` waits for stage `{}`: `{}` is {}.",
            first.plan.stage,
            first.plan.name,
            first.state.word()
        );
        return (
            "stage",
            sentence,
            format!("tow why {} --run {id}", quoted(first.plan.name.as_str())),
        );
    }
    if let Some(resource) = &job.plan.resource {
        let held = around.busy.get(&resource.name).copied().unwrap_or(0)
            + run.busy().get(&resource.name).copied().unwrap_or(0);
        if held >= resource.limit {
            let (lock, limit) = (&resource.name, resource.limit);
            let sentence =
                format!("`{name}` waits for the lock `{lock}` ({held} of {limit} taken).");
            return ("lock", sentence, String::new());
        }
    }
    if *run.phase() != Phase::Running {
        return (
            "ended",
            format!("`{name}` waits, but the run is {}.", run.phase().word()),
            String::new(),
        );
    }
    let parallelism = run.header().map_or(1, |header| header.parallelism);
    if run.counts().running >= parallelism {
        let sentence = format!("`{name}` is ready; all {parallelism} places of the run are taken.");
        return ("slots", sentence, String::new());
    }
    if !around.has_worker {
        let sentence = format!("`{name}` is ready, but nothing is working on run {}.", around.id);
        return ("paused", sentence, format!("tow resume {id}"));
    }
    if !around.has_tags {
        let tags = job.plan.tags.join(", ");
        return (
            "tags",
            format!("`{name}` is ready, but no worker offers: {tags}."),
            String::new(),
        );
    }
    let gate = if job.plan.when == When::Manual { " and approved" } else { "" };
    (
        "slots",
        format!("`{name}` is ready{gate} and will be given to the next free worker."),
        String::new(),
    )
}

/// What a gate with a policy wants, as the end of a sentence.
fn quorum(job: &Job) -> String {
    let words = views::waits_for(job);
    if words.is_empty() { words } else { format!(": {words}") }
}

/// The first job of an earlier stage that has not ended.
fn earlier_open<'a>(run: &'a Run, job: &Job) -> Option<&'a Job> {
    let stages = &run.header()?.stages;
    let place = |job: &Job| stages.iter().position(|stage| *stage == job.plan.stage);
    let own = place(job)?;
    run.jobs()
        .iter()
        .filter(|other| !other.state.is_over() && place(other).is_some_and(|at| at < own))
        .min_by_key(|other| place(other))
}

/// `text` as one shell word.
fn quoted(text: &str) -> String {
    towpath_engine::expression::quoted(text).into_owned()
}
