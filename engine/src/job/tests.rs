//! The life of a job: its table of states as a drawing, and what no row allows.

use std::fmt::Write as _;

use super::*;
use crate::{
    event::{SkipCause, VoidCause},
    gate::Identity,
};

fn states() -> Vec<JobState> {
    let worker = WorkerName::from("w");
    vec![
        JobState::Waiting,
        JobState::Admitted,
        JobState::Declined,
        JobState::AtGate(Digest([0; 32])),
        JobState::Approved,
        JobState::Leased(Attempt(1), worker),
        JobState::BackingOff(Timestamp(0)),
        JobState::Requeued,
        JobState::Succeeded,
        JobState::Failed,
        JobState::TimedOut,
        JobState::Skipped,
        JobState::Cancelled,
        JobState::Rejected,
    ]
}

fn failed(cause: FailureCause) -> RunEvent {
    RunEvent::JobFailed {
        job: "j".into(),
        attempt: Attempt(1),
        cause,
        ran_ms: 0,
        captured_output: None,
    }
}

fn approved(approval_digest: Digest, approvals_remaining: u32) -> RunEvent {
    RunEvent::GateApproved {
        job: "j".into(),
        approval_digest,
        comment: String::new(),
        approvals_remaining,
        identity: Identity::default(),
        expires_at: None,
        in_advance: false,
    }
}

#[expect(clippy::too_many_lines, reason = "one list, read from top to bottom")]
fn events() -> Vec<(&'static str, RunEvent)> {
    let job = || "j".into();
    let (attempt, approval_digest) = (Attempt(1), Digest([0; 32]));
    let worker = || WorkerName::from("w");
    let condition = |holds| RunEvent::ConditionEvaluated {
        job: job(),
        holds,
        inputs: std::collections::BTreeMap::new(),
        long_inputs: std::collections::BTreeMap::new(),
    };
    let imported = |result| RunEvent::JobImported {
        job: job(),
        result,
        started_at: None,
        finished_at: None,
        exit_code: None,
        error: String::new(),
    };
    vec![
        ("condition holds", condition(true)),
        ("condition fails", condition(false)),
        ("gate_reached", RunEvent::GateReached { job: job(), approval_digest }),
        ("gate_approved", approved(approval_digest, 0)),
        ("approved (1 more)", approved(approval_digest, 1)),
        (
            "gate_rejected",
            RunEvent::GateRejected { job: job(), approval_digest, comment: String::new() },
        ),
        ("approved (other)", approved(Digest([1; 32]), 0)),
        (
            "gate_voided",
            RunEvent::GateVoided {
                job: job(),
                approval_digest,
                cause: VoidCause::Expired(Timestamp(0)),
            },
        ),
        ("job_leased", RunEvent::JobLeased { job: job(), attempt, worker: worker(), lease_ms: 1 }),
        (
            "job_succeeded",
            RunEvent::JobSucceeded {
                job: job(),
                attempt,
                ran_ms: 0,
                outputs: std::collections::BTreeMap::new(),
                captured_output: None,
                artifacts: Vec::new(),
            },
        ),
        (
            "attempt failed",
            RunEvent::JobAttemptFailed {
                job: job(),
                attempt,
                cause: FailureCause::ExitCode(1),
                ran_ms: 0,
                captured_output: None,
                retry_due: Timestamp(0),
            },
        ),
        ("failed (code)", failed(FailureCause::ExitCode(1))),
        ("failed (time)", failed(FailureCause::TimedOut(1))),
        ("failed (unstarted)", failed(FailureCause::NotStarted(String::new()))),
        (
            "job_cancelled",
            RunEvent::JobCancelled { job: job(), attempt, ran_ms: 0, captured_output: None },
        ),
        (
            "job_lost",
            RunEvent::JobLost { job: job(), attempt, worker: worker(), reason: String::new() },
        ),
        (
            "late success",
            RunEvent::JobCancelled {
                job: job(),
                attempt: Attempt(9),
                ran_ms: 0,
                captured_output: None,
            },
        ),
        ("job_skipped", RunEvent::JobSkipped { job: job(), cause: SkipCause::ConditionFalse }),
        ("job_retried", RunEvent::JobRetried { job: job() }),
        ("imported DONE", imported(ImportedResult::Succeeded)),
        ("imported FAILED", imported(ImportedResult::Failed)),
        ("imported SKIPPED", imported(ImportedResult::Skipped)),
    ]
}

/// Every state × every event about a job: the drawing of the table above.
#[test]
fn the_whole_life_of_a_job() {
    let mut table = format!("{:18}", "event");
    for state in states() {
        write!(table, "|{:11}", state.word()).unwrap();
    }
    table.push('\n');
    for (name, event) in events() {
        write!(table, "{name:18}").unwrap();
        for state in states() {
            let next = state.next(&event).map_or("-", |next| next.word());
            write!(table, "|{next:11}").unwrap();
        }
        table.push('\n');
    }
    let golden = include_str!("../../golden/job_life.txt");
    assert_eq!(table, golden, "the table is now:\n{table}");
}

#[test]
fn every_event_about_a_job_has_a_legal_step() {
    for (name, event) in events() {
        let legal = states().iter().filter(|state| state.next(&event).is_ok()).count();
        let never = ["approved (other)", "late success"].contains(&name);
        assert_eq!(legal == 0, never, "{name}");
    }
}

#[test]
fn an_ended_job_takes_no_report() {
    for state in states().into_iter().filter(JobState::is_over) {
        for (name, event) in events() {
            let reopened = name == "job_retried";
            assert!(reopened || state.next(&event).is_err(), "{} took {name}", state.word());
        }
    }
}
