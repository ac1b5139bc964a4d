//! Messages between worker and server, turned into what the state machine is told, and back.

use std::time::Duration;

use towpath_engine::{
    event::FailureCause,
    ids::{Attempt, AttemptId},
};
use towpath_proto::{
    time::{duration, duration_ms},
    v1::{
        self, failed::Cause, report, session_request::Message as ToServer,
        session_response::Message as FromServer,
    },
};

use crate::{
    Adopted, Ended, Script, WorkerOptions,
    attempt::{Job, Needed},
    protocol::{ConnectionId, Greeting, Input, Part},
};

/// Longest explanation in a report, in bytes: it must fit an event beside everything else.
const EXPLANATION_BYTES_MAX: usize = 2 * 1024;

/// The attempt that a message is about.
pub(crate) fn attempt_of(of: v1::AttemptId) -> AttemptId {
    let v1::AttemptId { run, job, attempt } = of;
    AttemptId { run: run.into(), job: job.into(), attempt: Attempt(attempt) }
}

/// The attempt, as a message names it.
pub(crate) fn attempt_message(attempt: &AttemptId) -> v1::AttemptId {
    let AttemptId { run, job, attempt } = attempt;
    v1::AttemptId { run: run.to_string(), job: job.to_string(), attempt: attempt.0 }
}

/// The first message of a connection.
pub(crate) fn hello(options: &WorkerOptions, instance: &str, greeting: Greeting) -> ToServer {
    ToServer::Hello(v1::Hello {
        worker: options.name.clone(),
        slots: options.slots,
        tags: options.tags.clone(),
        run: options.run.clone().unwrap_or_default(),
        held: greeting.held.iter().map(attempt_message).collect(),
        worker_instance_id: instance.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        jobs_max: greeting.jobs_max.unwrap_or_default(),
        draining: greeting.draining,
        job: options.job.clone().unwrap_or_default(),
    })
}

/// What a server's message says. `None`: nothing that can be understood.
pub(crate) fn input(connection: ConnectionId, message: FromServer) -> Option<Input<Job>> {
    Some(match message {
        FromServer::Welcome(v1::Welcome { held, lease }) => {
            let held = held.into_iter();
            let held = held.filter_map(|held| Some((attempt_of(held.attempt?), held.output_bytes)));
            let lease = lease.as_ref().and_then(duration_ms).unwrap_or_default();
            let lease = Duration::from_millis(lease);
            Input::Welcome { connection, held: held.collect(), lease }
        }
        FromServer::Assignment(assignment) => {
            let (attempt, job) = assigned(assignment)?;
            Input::Assigned { connection, attempt, job }
        }
        FromServer::Cancel(v1::Cancel { attempt: of }) => {
            Input::CancelRequested { connection, attempt: attempt_of(of?) }
        }
        FromServer::Recorded(of) => Input::Recorded { connection, attempt: attempt_of(of) },
        FromServer::Heartbeat(v1::Heartbeat {}) => Input::Heartbeat { connection },
    })
}

fn assigned(assignment: v1::Assignment) -> Option<(AttemptId, Job)> {
    let v1::Assignment {
        attempt: of,
        fence,
        script,
        shell,
        env,
        secrets,
        folder,
        timeout,
        grace,
        artifacts,
        traceparent,
        stage: _,
        source,
        files,
        files_left_out: left_out,
    } = assignment;
    let attempt = attempt_of(of?);
    let needed = source.map(|source| Needed { source, files, left_out });
    let script = Script {
        run: attempt.run.clone(),
        job: attempt.job.clone(),
        attempt: attempt.attempt,
        fence,
        script,
        shell,
        env,
        secrets,
        folder: folder.into(),
        root: None,
        timeout: timeout.as_ref().and_then(duration_ms).map(Duration::from_millis),
        grace: grace.as_ref().and_then(duration_ms).map(Duration::from_millis),
        artifacts,
        traceparent: (!traceparent.is_empty()).then_some(traceparent),
    };
    Some((attempt, Job { script, needed }))
}

/// Part of an attempt, with its bytes.
pub(crate) fn part(attempt: &AttemptId, part: Part, content: Vec<u8>) -> ToServer {
    let (of, content) = (Some(attempt_message(attempt)), content.into());
    match part {
        Part::Output { offset, .. } => {
            ToServer::Output(v1::Output { attempt: of, offset, content })
        }
        Part::Artifact { file, offset, .. } => {
            ToServer::Artifact(v1::ArtifactPart { attempt: of, path: file.path, content, offset })
        }
    }
}

/// How an attempt ended.
pub(crate) fn report(attempt: &AttemptId, outcome: Adopted, output_bytes: u64) -> ToServer {
    let (ran_ms, ended) = match outcome {
        Adopted::Ended(Ended::Succeeded { ran_ms, outputs, artifacts }) => {
            let artifacts = artifacts.into_iter().map(|file| v1::Artifact {
                path: file.path,
                blob: Some(v1::Blob { size: file.size, sha256: file.sha256.to_string() }),
            });
            let artifacts = artifacts.collect();
            (ran_ms, report::Ended::Succeeded(v1::Succeeded { outputs, artifacts }))
        }
        Adopted::Ended(Ended::Failed { cause, ran_ms }) => (ran_ms, failed(cause)),
        Adopted::Ended(Ended::Cancelled { ran_ms }) => {
            (ran_ms, report::Ended::Cancelled(v1::Cancelled {}))
        }
        Adopted::Lost(reason) => (0, lost(&reason)),
        Adopted::NeverStarted => (0, lost("it was never started")),
    };
    let of = Some(attempt_message(attempt));
    ToServer::Report(v1::Report {
        attempt: of,
        run_time: Some(duration(ran_ms)),
        ended: Some(ended),
        output_bytes,
    })
}

fn lost(reason: &str) -> report::Ended {
    report::Ended::Lost(v1::Lost { reason: explanation(reason) })
}

/// A failure as a report says it. Explanations name files and repeat what programs said, so they
/// may be long and hold anything; the log takes neither.
fn failed(cause: FailureCause) -> report::Ended {
    let cause = match cause {
        FailureCause::ExitCode(code) => Cause::ExitCode(code),
        FailureCause::Signal(signal) => Cause::Signal(signal),
        FailureCause::TimedOut(ms) => Cause::TimedOut(duration(ms)),
        FailureCause::NotStarted(why) => Cause::NotStarted(explanation(&why)),
        // Servers alone find reports invalid.
        FailureCause::OutputUnusable(why) | FailureCause::ReportInvalid(why) => {
            Cause::OutputUnusable(explanation(&why))
        }
        FailureCause::Lost(_) => Cause::NotStarted("lost".to_owned()),
    };
    report::Ended::Failed(v1::Failed { cause: Some(cause) })
}

/// `why` as one line of at most [`EXPLANATION_BYTES_MAX`] bytes, with its control characters
/// escaped: a terminal that shows it later would obey them.
fn explanation(why: &str) -> String {
    let mut line = String::new();
    for character in why.chars() {
        if line.len() >= EXPLANATION_BYTES_MAX {
            line.push('…');
            break;
        }
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_is_one_line_of_bounded_length() {
        let why = format!("`a\tb\n\u{1b}[2J` {}", "x".repeat(100_000));
        let report::Ended::Failed(v1::Failed { cause: Some(Cause::NotStarted(why)) }) =
            failed(FailureCause::NotStarted(why))
        else {
            panic!("another cause")
        };
        assert!(why.starts_with("`a\\tb\\n\\u{1b}[2J` xxx"), "{}", &why[..40]);
        assert!(why.len() < 5_000, "{}", why.len());
    }
}
