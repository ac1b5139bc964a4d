//! Runs, jobs and gates as messages. Nothing is put into words here: the client does that, and draws
//! a run that it follows with the same messages that it reads.

use towpath_engine::{
    event::{FailureCause, RunOutcome, SkipCause},
    gate::{Approval, Excluded, GatePolicy},
    ids::{Blob, RunId},
    job::JobState,
    plan::{JobPlan, OnFailure, RetryOn, RetryPolicy, When},
    run::{Imported, Job, Phase, Run},
    source::{Origin, Source},
    time::Timestamp,
    trace::TraceContext,
    views::{EndCounts, Listed},
};
use towpath_proto::{
    prost_types::Timestamp as WireTimestamp,
    time::{duration, timestamp},
    v1::{self, JobView},
    words::Word as _,
};

/// A moment of the log as a message has it.
pub fn time(at: Timestamp) -> WireTimestamp {
    timestamp(at.0)
}

/// The phase of a run, and its outcome once it has ended.
pub fn phase(phase: &Phase) -> (v1::RunPhase, v1::RunOutcome) {
    let none = v1::RunOutcome::Unspecified;
    match phase {
        Phase::Unborn | Phase::Planning => (v1::RunPhase::Planning, none),
        Phase::Running => (v1::RunPhase::Running, none),
        Phase::Aborting => (v1::RunPhase::Aborting, none),
        Phase::Cancelling => (v1::RunPhase::Cancelling, none),
        Phase::TimingOut => (v1::RunPhase::TimingOut, none),
        Phase::Finished(ended) => (v1::RunPhase::Finished, outcome(*ended)),
    }
}

/// How a run ended.
pub fn outcome(outcome: RunOutcome) -> v1::RunOutcome {
    match outcome {
        RunOutcome::Succeeded => v1::RunOutcome::Succeeded,
        RunOutcome::Partial => v1::RunOutcome::Partial,
        RunOutcome::Failed => v1::RunOutcome::Failed,
        RunOutcome::Rejected => v1::RunOutcome::Rejected,
        RunOutcome::Cancelled => v1::RunOutcome::Cancelled,
        RunOutcome::TimedOut => v1::RunOutcome::TimedOut,
    }
}

/// The state of a job.
pub fn job_state(state: &JobState) -> v1::JobState {
    match state {
        JobState::Waiting => v1::JobState::Waiting,
        JobState::Admitted => v1::JobState::Admitted,
        JobState::Declined => v1::JobState::Declined,
        JobState::AtGate(_) => v1::JobState::AtGate,
        JobState::Approved => v1::JobState::Approved,
        JobState::Leased(..) => v1::JobState::Running,
        JobState::BackingOff(_) => v1::JobState::BackingOff,
        JobState::Requeued => v1::JobState::Requeued,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::TimedOut => v1::JobState::TimedOut,
        JobState::Skipped => v1::JobState::Skipped,
        JobState::Cancelled => v1::JobState::Cancelled,
        JobState::Rejected => v1::JobState::Rejected,
    }
}

/// A run, without its jobs.
pub fn run(run: &Run, version: u64, position: u64, short_id: &str) -> v1::Run {
    // A stream whose first record is not there yet. Nothing is shown of it, and nothing can be
    // asked of it.
    let Some(header) = run.header() else { return v1::Run::default() };
    let counts = run.counts();
    let (phase, outcome) = phase(run.phase());
    v1::Run {
        id: header.run.to_string(),
        short_id: short_id.to_owned(),
        pipeline: header.pipeline.clone(),
        file: header.file.clone(),
        folder: header.folder.clone(),
        phase: phase.into(),
        outcome: outcome.into(),
        version,
        position,
        stages: header.stages.iter().map(ToString::to_string).collect(),
        parallelism: header.parallelism,
        requested_by: header.requested_by.to_string(),
        created_at: Some(time(header.created_at)),
        finished_at: run.finished_at().map(time),
        counts: Some(v1::JobCounts {
            waiting: counts.waiting,
            at_gate: counts.at_gate,
            running: counts.running,
            backing_off: counts.backing_off,
            succeeded: counts.succeeded,
            failed: counts.failed,
            skipped: counts.skipped,
            cancelled: counts.cancelled,
            rejected: counts.rejected,
        }),
        plan_sha256: header.plan_sha256.to_string(),
        file_sha256: header.file_sha256.to_string(),
        can_move: run.can_move(),
        abort_root: run.abort_root().map(ToString::to_string).unwrap_or_default(),
        source: header.source.as_ref().map(source),
        traceparent: run.span().map(|span| span.to_string()).unwrap_or_default(),
    }
}

/// A run that has ended, from the list of runs alone. `None`: it goes on.
pub fn summary(listed: &Listed<Run>, short_id: &str) -> Option<v1::Run> {
    let Listed { summary, position, version, .. } = listed;
    let (header, end) = (&summary.header, summary.end.as_ref()?);
    let EndCounts { succeeded, failed, skipped, cancelled, rejected } = end.counts;
    let counts = v1::JobCounts {
        succeeded,
        failed,
        skipped,
        cancelled,
        rejected,
        ..v1::JobCounts::default()
    };
    Some(v1::Run {
        id: header.run.to_string(),
        short_id: short_id.to_owned(),
        pipeline: header.pipeline.clone(),
        file: header.file.clone(),
        folder: header.folder.clone(),
        phase: v1::RunPhase::Finished.into(),
        outcome: outcome(end.outcome).into(),
        version: *version,
        position: *position,
        stages: header.stages.iter().map(ToString::to_string).collect(),
        parallelism: header.parallelism,
        requested_by: header.requested_by.to_string(),
        created_at: Some(time(header.created_at)),
        finished_at: Some(time(end.at)),
        counts: Some(counts),
        plan_sha256: header.plan_sha256.to_string(),
        file_sha256: header.file_sha256.to_string(),
        // Every job has ended.
        can_move: false,
        abort_root: summary.abort_root.as_ref().map(ToString::to_string).unwrap_or_default(),
        source: header.source.as_ref().map(source),
        traceparent: summary.span().map(|span| span.to_string()).unwrap_or_default(),
    })
}

/// The files of a run.
pub fn source(source: &Source) -> v1::Source {
    let Source { commit, origin, folder, parent, dirty } = source;
    v1::Source {
        commit: commit.clone(),
        origin: Some(match origin {
            Origin::Bundle(bundle) => v1::source::Origin::Bundle(blob(bundle)),
            Origin::Remote(address) => v1::source::Origin::Remote(address.clone()),
        }),
        folder: folder.clone(),
        parent: parent.clone().unwrap_or_default(),
        dirty: *dirty,
    }
}

/// A job, as much of it as `view` asks for.
pub fn job(run: &Run, job: &Job, view: JobView) -> v1::Job {
    let (mut worker, mut retry_at, mut approval_digest) = Default::default();
    match &job.state {
        JobState::Leased(_, by) => worker = by.to_string(),
        JobState::BackingOff(due) => retry_at = Some(time(*due)),
        JobState::AtGate(digest) => approval_digest = digest.to_string(),
        JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::Approved
        | JobState::Requeued
        | JobState::Succeeded
        | JobState::Failed
        | JobState::TimedOut
        | JobState::Skipped
        | JobState::Cancelled
        | JobState::Rejected => {}
    }
    // Approvals stay on record after the gate was opened, and then nothing remains to be given.
    let at_gate = matches!(job.state, JobState::AtGate(_));
    // Scripts and outputs are most of the bytes of a job: a list of 200,000 jobs does without them.
    let full = view == JobView::Full;
    v1::Job {
        name: job.plan.name.to_string(),
        stage: job.plan.stage.to_string(),
        state: job_state(&job.state).into(),
        since: Some(time(job.since)),
        attempt: job.attempt.0,
        leased_at: job.leased_at.map(time),
        run_time: job.ran_ms.map(duration),
        exit_code: exit_code(job),
        failure: failure(job),
        skip: skip(run, job),
        worker,
        needs: job.plan.needs.iter().map(ToString::to_string).collect(),
        when: condition(job.plan.when).into(),
        irreversible: job.plan.irreversible,
        retry_at,
        approval_digest,
        policy: job.plan.gate.as_ref().map(policy),
        approvals: job.approvals.iter().map(approval).collect(),
        approvals_remaining: if at_gate { job.approvals_remaining() } else { 0 },
        approvals_expire_at: job.approvals_expire_at().map(time),
        decision: job.gate.as_ref().map(|gate| v1::GateDecision {
            approved: gate.approved,
            by: gate.by.to_string(),
            at: Some(time(gate.at)),
            comment: gate.comment.clone(),
        }),
        captured_output: job.captured_output.as_ref().map(blob),
        outputs: if full { job.outputs.clone() } else { Default::default() },
        artifacts: if full { job.artifacts.iter().map(artifact).collect() } else { Vec::new() },
        imported: job.imported.as_ref().map(imported),
        traceparent: attempt_span(run, job).map(|span| span.to_string()).unwrap_or_default(),
        spec: full.then(|| spec(&job.plan)),
    }
}

fn attempt_span(run: &Run, job: &Job) -> Option<TraceContext> {
    // Before the first lease there is no attempt, and its span would name one that may never be.
    run.attempt_span(&job.plan.name, job.attempt).filter(|_| job.attempt.0 > 0)
}

fn condition(when: When) -> v1::JobCondition {
    match when {
        When::OnSuccess => v1::JobCondition::OnSuccess,
        When::Always => v1::JobCondition::Always,
        When::Manual => v1::JobCondition::Manual,
    }
}

fn exit_code(job: &Job) -> Option<i32> {
    if let Some(imported) = &job.imported {
        // What another tool recorded is shown as it is.
        return imported.exit_code;
    }
    match (&job.state, &job.cause) {
        // A cause of an earlier attempt stays with the job, so the state is asked first.
        (JobState::Succeeded, _) => Some(0),
        (_, Some(FailureCause::ExitCode(code))) => Some(*code),
        (_, _) => None,
    }
}

/// Why the newest attempt failed, as long as that is why the job is in its state.
fn failure(job: &Job) -> Option<v1::JobFailure> {
    match &job.state {
        JobState::Failed | JobState::TimedOut | JobState::BackingOff(_) => {}
        JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::AtGate(_)
        | JobState::Approved
        | JobState::Leased(..)
        | JobState::Requeued
        | JobState::Succeeded
        | JobState::Skipped
        | JobState::Cancelled
        | JobState::Rejected => return None,
    }
    // A job that failed here after it was imported has a cause of its own, which is the newer one.
    if let Some(cause) = &job.cause {
        return Some(cause_message(cause));
    }
    job.imported.as_ref().map(|imported| v1::JobFailure {
        kind: v1::FailureKind::Imported.into(),
        exit_code: imported.exit_code,
        message: imported.error.clone(),
        ..v1::JobFailure::default()
    })
}

pub(super) fn cause_message(cause: &FailureCause) -> v1::JobFailure {
    let of = |kind: v1::FailureKind| v1::JobFailure { kind: kind.into(), ..Default::default() };
    let saying = |kind, message: &str| v1::JobFailure { message: message.to_owned(), ..of(kind) };
    use v1::FailureKind as K;
    match cause {
        FailureCause::ExitCode(code) => {
            v1::JobFailure { exit_code: Some(*code), ..of(K::ExitCode) }
        }
        FailureCause::Signal(signal) => v1::JobFailure { signal: Some(*signal), ..of(K::Signal) },
        FailureCause::TimedOut(ms) => {
            v1::JobFailure { time_limit: Some(duration(*ms)), ..of(K::TimedOut) }
        }
        FailureCause::Lost(times) => v1::JobFailure { lost_attempts: Some(*times), ..of(K::Lost) },
        FailureCause::NotStarted(why) => saying(K::NotStarted, why),
        FailureCause::OutputUnusable(why) => saying(K::OutputUnusable, why),
        FailureCause::ReportInvalid(why) => saying(K::ReportInvalid, why),
    }
}

/// Why a job was skipped.
fn skip(run: &Run, job: &Job) -> Option<v1::JobSkip> {
    if job.state != JobState::Skipped {
        return None;
    }
    let state_of = |name: &str| {
        run.job(name).map_or(v1::JobState::Unspecified, |root| job_state(&root.state)).into()
    };
    let of = |cause: v1::SkipCause| v1::JobSkip { cause: cause.into(), ..Default::default() };
    Some(match &job.skipped {
        Some(SkipCause::NeedUnmet { need, root }) => v1::JobSkip {
            need: need.to_string(),
            root: root.to_string(),
            root_state: state_of(root.as_str()),
            ..of(v1::SkipCause::NeedUnmet)
        },
        Some(SkipCause::ConditionFalse) => of(v1::SkipCause::ConditionFalse),
        // The event of a skip that an abort caused names no job: one abort can skip thousands.
        None => match run.abort_root() {
            Some(root) => v1::JobSkip {
                root: root.to_string(),
                root_state: state_of(root.as_str()),
                ..of(v1::SkipCause::RunAborted)
            },
            None => of(v1::SkipCause::Imported),
        },
    })
}

fn imported(imported: &Imported) -> v1::ImportedJob {
    let Imported { started_at, finished_at, exit_code, error } = imported;
    v1::ImportedJob {
        started_at: started_at.map(time),
        finished_at: finished_at.map(time),
        exit_code: *exit_code,
        error: error.clone(),
    }
}

/// What a job runs. No field of a plan is left out unseen: a new one does not compile.
fn spec(plan: &JobPlan) -> v1::JobSpec {
    let JobPlan {
        // In the job itself.
        name: _,
        stage: _,
        needs: _,
        when: _,
        gate: _,
        irreversible: _,
        script,
        shell,
        on_failure,
        retry,
        timeout_ms,
        grace_ms,
        env,
        secrets,
        tags,
        prefer,
        resource,
        condition,
        matrix,
        artifacts,
        undo,
    } = plan;
    let on_failure = match on_failure {
        OnFailure::Continue => v1::FailurePolicy::Continue,
        OnFailure::Abort => v1::FailurePolicy::Abort,
    };
    v1::JobSpec {
        script: script.to_string(),
        shell: shell.clone(),
        env: env.clone(),
        secrets: secrets.clone(),
        tags: tags.clone(),
        prefer: prefer.clone(),
        resource: resource
            .as_ref()
            .map(|lock| v1::ResourceLock { name: lock.name.clone(), limit: lock.limit }),
        condition: condition.clone().unwrap_or_default(),
        matrix: matrix.clone(),
        artifacts: artifacts.clone(),
        undo: undo.clone().unwrap_or_default(),
        on_failure: on_failure.into(),
        retry: retry.as_ref().map(retry_policy),
        timeout: timeout_ms.map(duration),
        grace: grace_ms.map(duration),
    }
}

fn retry_policy(retry: &RetryPolicy) -> v1::RetryPolicy {
    let RetryPolicy { max, backoff_ms, factor_percent, backoff_max_ms, jitter_percent, on } = retry;
    let on = on.iter().map(|on| {
        let (kind, exit_code) = match on {
            RetryOn::ExitCode(code) => (v1::FailureKind::ExitCode, Some(*code)),
            RetryOn::Timeout => (v1::FailureKind::TimedOut, None),
            RetryOn::Signal => (v1::FailureKind::Signal, None),
            RetryOn::Spawn => (v1::FailureKind::NotStarted, None),
        };
        v1::RetryCondition { kind: kind.into(), exit_code }
    });
    v1::RetryPolicy {
        max: *max,
        backoff: Some(duration(*backoff_ms)),
        factor_percent: *factor_percent,
        backoff_max: Some(duration(*backoff_max_ms)),
        jitter_percent: *jitter_percent,
        on: on.collect(),
    }
}

/// A blob by its name.
pub fn blob(blob: &Blob) -> v1::Blob {
    v1::Blob { size: blob.size, sha256: blob.sha256.to_string() }
}

fn artifact(artifact: &towpath_engine::event::Artifact) -> v1::Artifact {
    v1::Artifact { path: artifact.path.clone(), blob: Some(blob(&artifact.blob)) }
}

pub(super) fn policy(policy: &GatePolicy) -> v1::GatePolicy {
    let GatePolicy { approvers, min, not, expires_ms } = policy;
    let not = not.iter().map(|excluded| match excluded {
        Excluded::Requester => v1::GateExclusion::Requester.into(),
        Excluded::Author => v1::GateExclusion::Author.into(),
    });
    v1::GatePolicy {
        approvers: approvers.iter().map(ToString::to_string).collect(),
        min: *min,
        not: not.collect(),
        expires_after: expires_ms.map(duration),
    }
}

fn approval(approval: &Approval) -> v1::GateApproval {
    // Events name roles by word: of a later version there may be others.
    let role = |word: &String| v1::Role::of_word(word).unwrap_or_default().into();
    v1::GateApproval {
        by: approval.by.to_string(),
        at: Some(time(approval.at)),
        comment: approval.comment.clone(),
        roles: approval.identity.roles.iter().map(role).collect(),
        expires_at: approval.expires_at.map(time),
        in_advance: approval.in_advance,
    }
}

/// A gate that waits.
pub fn gate(id: &RunId, run: &Run, job: &Job) -> Option<v1::Gate> {
    let JobState::AtGate(digest) = &job.state else { return None };
    Some(v1::Gate {
        run: id.to_string(),
        pipeline: run.header()?.pipeline.clone(),
        job: job.plan.name.to_string(),
        approval_digest: digest.to_string(),
        since: Some(time(job.since)),
        irreversible: job.plan.irreversible,
        policy: job.plan.gate.as_ref().map(policy),
        approvals: job.approvals.iter().map(approval).collect(),
        approvals_remaining: job.approvals_remaining(),
        approvals_expire_at: job.approvals_expire_at().map(time),
    })
}
