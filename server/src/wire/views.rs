//! Runs and jobs as messages.

use towpath_engine::{
    event::{FailureCause, SkipCause},
    gate::{Approval, GatePolicy},
    ids::{Blob, RunId},
    job::JobState,
    plan::When,
    run::{Job, Run},
    source::{Origin, Source},
    time::Timestamp,
    trace::TraceContext,
    views::EndCounts,
};
use towpath_proto::{prost_types::Timestamp as WireTimestamp, time::timestamp, v1};
use towpath_storage::{Position, Version};

use crate::run_list::RunListEntry;

/// A moment of the log as a message has it.
pub(crate) fn time(at: Timestamp) -> WireTimestamp {
    timestamp(at.0)
}

/// A run, without its jobs.
pub(crate) fn run(run: &Run, version: Version, position: Position, short_id: &str) -> v1::Run {
    let Some(header) = run.header() else { return v1::Run::default() };
    let counts = run.counts();
    v1::Run {
        id: header.run.to_string(),
        pipeline: header.pipeline.clone(),
        file: header.file.clone(),
        folder: header.folder.clone(),
        phase: run.phase().word().to_owned(),
        version,
        position,
        stages: header.stages.iter().map(ToString::to_string).collect(),
        parallelism: header.parallelism,
        requested_by: header.requested_by.to_string(),
        created_at: header.created_at.to_string(),
        finished_at: run.finished_at().map(|at| at.to_string()).unwrap_or_default(),
        counts: Some(v1::Counts {
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
        short_id: short_id.to_owned(),
        traceparent: run.span().map(|span| span.to_string()).unwrap_or_default(),
        source: header.source.as_ref().map(source),
    }
}

/// A run that has ended, from the list of runs alone. `None`: it goes on.
pub(crate) fn summary(listed: &RunListEntry, short_id: &str) -> Option<v1::Run> {
    let RunListEntry { summary, position, version, .. } = listed;
    let end = summary.end.as_ref()?;
    let EndCounts { succeeded, failed, skipped, cancelled, rejected } = end.counts;
    let counts =
        v1::Counts { succeeded, failed, skipped, cancelled, rejected, ..v1::Counts::default() };
    Some(v1::Run {
        id: summary.run.to_string(),
        pipeline: summary.pipeline.clone(),
        file: summary.file.clone(),
        folder: summary.folder.clone(),
        phase: end.outcome.word().to_owned(),
        version: *version,
        position: *position,
        stages: summary.stages.iter().map(ToString::to_string).collect(),
        parallelism: summary.parallelism,
        requested_by: summary.requested_by.to_string(),
        created_at: summary.created_at.to_string(),
        finished_at: end.at.to_string(),
        counts: Some(counts),
        plan_sha256: summary.plan_sha256.to_string(),
        file_sha256: summary.file_sha256.to_string(),
        // Every job has ended.
        can_move: false,
        abort_root: summary.abort_root.as_ref().map(ToString::to_string).unwrap_or_default(),
        short_id: short_id.to_owned(),
        traceparent: summary.span().map(|span| span.to_string()).unwrap_or_default(),
        source: summary.source.as_ref().map(source),
    })
}

/// The files of a run.
pub(crate) fn source(source: &Source) -> v1::Source {
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

/// A job as it stands.
pub(crate) fn job(run: &Run, job: &Job) -> v1::Job {
    let (worker, retry_due, approval_digest) = match &job.state {
        JobState::Leased(_, worker) => (worker.to_string(), String::new(), String::new()),
        JobState::BackingOff(due) => (String::new(), due.to_string(), String::new()),
        JobState::AtGate(approval_digest) => {
            (String::new(), String::new(), approval_digest.to_string())
        }
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
        | JobState::Rejected => Default::default(),
    };
    let when = match job.plan.when {
        When::OnSuccess => "on_success",
        When::Always => "always",
        When::Manual => "manual",
    };
    v1::Job {
        name: job.plan.name.to_string(),
        stage: job.plan.stage.to_string(),
        state: job.state.word().to_owned(),
        attempt: job.attempt.0,
        since: job.since.to_string(),
        leased_at: job.leased_at.map(|at| at.to_string()).unwrap_or_default(),
        ran_ms: job.ran_ms,
        reason: reason(run, job),
        worker,
        needs: job.plan.needs.iter().map(ToString::to_string).collect(),
        when: when.to_owned(),
        approval_digest,
        outputs: job.outputs.clone(),
        artifacts: job.artifacts.iter().map(artifact).collect(),
        gate: job.gate.as_ref().map(|gate| v1::GateDecision {
            approved: gate.approved,
            by: gate.by.to_string(),
            at: gate.at.to_string(),
            comment: gate.comment.clone(),
            ..v1::GateDecision::default()
        }),
        captured_output: job.captured_output.map(|captured_output| blob(&captured_output)),
        irreversible: job.plan.irreversible,
        retry_due,
        exit_code: exit_code(job),
        traceparent: attempt_span(run, job).map(|span| span.to_string()).unwrap_or_default(),
        policy: job.plan.gate.as_ref().map(policy),
        approvals: job.approvals.iter().map(approval).collect(),
        approvals_remaining: if matches!(job.state, JobState::AtGate(_)) {
            job.approvals_remaining()
        } else {
            0
        },
        expires_at: job.approvals_expire_at().map(|at| at.to_string()).unwrap_or_default(),
    }
}

fn attempt_span(run: &Run, job: &Job) -> Option<TraceContext> {
    run.attempt_span(&job.plan.name, job.attempt).filter(|_| job.attempt.0 > 0)
}

fn exit_code(job: &Job) -> Option<i32> {
    if let Some(imported) = &job.imported {
        return imported.exit_code;
    }
    match (&job.state, &job.cause) {
        (JobState::Succeeded, _) => Some(0),
        (_, Some(FailureCause::ExitCode(code))) => Some(*code),
        (_, _) => None,
    }
}

/// Why a job failed, was skipped or does not run, in words.
pub(super) fn reason(run: &Run, job: &Job) -> String {
    match &job.state {
        JobState::Failed | JobState::TimedOut | JobState::BackingOff(_) => match &job.cause {
            Some(cause) => cause.to_string(),
            None => job.imported.as_ref().map(|old| old.error.clone()).unwrap_or_default(),
        },
        JobState::Skipped => match &job.skipped {
            Some(SkipCause::NeedUnmet { need, root }) if need == root => {
                format!("needs {need}, which {}", end_of(run, root.as_str()))
            }
            Some(SkipCause::NeedUnmet { need, root }) => {
                format!("needs {need}, and {root} {}", end_of(run, root.as_str()))
            }
            Some(SkipCause::ConditionFalse) => "its `if` is false".to_owned(),
            None => match run.abort_root() {
                Some(root) => {
                    format!("the run was aborted: {root} {}", end_of(run, root.as_str()))
                }
                None => "recorded as skipped".to_owned(),
            },
        },
        JobState::Rejected => match &job.gate {
            Some(gate) if gate.comment.is_empty() => format!("rejected by {}", gate.by),
            Some(gate) => format!("rejected by {}: {}", gate.by, gate.comment),
            None => String::new(),
        },
        JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::AtGate(_)
        | JobState::Approved
        | JobState::Leased(..)
        | JobState::Requeued
        | JobState::Succeeded
        | JobState::Cancelled => String::new(),
    }
}

fn end_of(run: &Run, job: &str) -> &'static str {
    match run.job(job).map(|job| &job.state) {
        Some(JobState::TimedOut) => "took too long",
        Some(JobState::Skipped) => "was skipped",
        Some(JobState::Cancelled) => "was cancelled",
        Some(JobState::Rejected) => "was rejected",
        Some(_) | None => "failed",
    }
}

pub(crate) fn blob(blob: &Blob) -> v1::Blob {
    v1::Blob { size: blob.size, sha256: blob.sha256.to_string() }
}

fn artifact(artifact: &towpath_engine::event::Artifact) -> v1::Artifact {
    v1::Artifact { path: artifact.path.clone(), blob: Some(blob(&artifact.blob)) }
}

/// The kept file `path` of `job`.
pub(crate) fn artifact_of(job: &Job, path: &str) -> Option<Blob> {
    job.artifacts.iter().find(|artifact| artifact.path == path).map(|artifact| artifact.blob)
}

fn policy(policy: &GatePolicy) -> v1::GatePolicy {
    v1::GatePolicy {
        approvers: policy.approvers.iter().map(ToString::to_string).collect(),
        min: policy.min,
        not: policy.not.iter().map(|excluded| excluded.word().to_owned()).collect(),
        expires_ms: policy.expires_ms.unwrap_or(0),
        words: policy.words(),
    }
}

fn approval(approval: &Approval) -> v1::GateDecision {
    v1::GateDecision {
        approved: true,
        by: approval.by.to_string(),
        at: approval.at.to_string(),
        comment: approval.comment.clone(),
        roles: approval.identity.roles.clone(),
        expires_at: approval.expires_at.map(|at| at.to_string()).unwrap_or_default(),
        in_advance: approval.in_advance,
    }
}

/// How far the gate of `job` is and who is waited for, in a sentence's worth of words; empty where
/// any one person will do.
pub(crate) fn waits_for(job: &Job) -> String {
    let words = job.quorum_words();
    if words.is_empty() {
        return words;
    }
    let until = job.approvals_expire_at().map(|at| format!(", until {at}")).unwrap_or_default();
    format!("{words}{until}; waits for {}", job.policy().waits_for(job.approvals_remaining()))
}

/// A gate that waits.
pub(crate) fn gate(id: &RunId, run: &Run, job: &Job) -> Option<v1::Gate> {
    let JobState::AtGate(approval_digest) = &job.state else { return None };
    Some(v1::Gate {
        run: id.to_string(),
        pipeline: run.header()?.pipeline.clone(),
        job: job.plan.name.to_string(),
        approval_digest: approval_digest.to_string(),
        since: job.since.to_string(),
        irreversible: job.plan.irreversible,
        policy: job.plan.gate.as_ref().map(policy),
        approvals: job.approvals.iter().map(approval).collect(),
        approvals_remaining: job.approvals_remaining(),
        expires_at: job.approvals_expire_at().map(|at| at.to_string()).unwrap_or_default(),
    })
}
