//! Telling a server about one attempt: its output from where the server is, then the files it left,
//! then how it ended. Can be broken off at any point and begun again in the next session.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use tokio::sync::mpsc;
use towpath_engine::event::FailureCause;
use towpath_proto::{
    time::duration,
    v1::{self, failed::Cause, report, session_request::Message as ToServer},
};

use crate::{
    Adopted, Ended,
    held::{HeldAttempt, attempt_message},
};

/// Bytes of output, or of a file, in one message.
const PART_BYTES: usize = 64 * 1024;
/// Longest explanation in a report, in bytes: it must fit an event beside everything else.
const EXPLANATION_BYTES_MAX: usize = 2 * 1024;

/// Sends a message. Without a session nobody hears it; the session's end is noticed elsewhere.
pub(crate) async fn say(send: &mpsc::Sender<v1::SessionRequest>, message: ToServer) {
    drop(send.send(v1::SessionRequest { message: Some(message) }).await);
}

/// Tells everything about `attempt`, of whose output the server has `offset` bytes.
pub(crate) async fn tell(
    attempt: Arc<HeldAttempt>,
    mut offset: u64,
    send: mpsc::Sender<v1::SessionRequest>,
) {
    let of = attempt_message(&attempt.key);
    let mut progress = attempt.progress();
    let mut unreadable = None;
    loop {
        let now = progress.borrow_and_update().clone();
        while offset < now.length && unreadable.is_none() {
            let length = (now.length - offset).min(PART_BYTES as u64);
            match attempt.read(offset, length) {
                Ok(content) => {
                    let content = content.into();
                    let output = v1::Output { attempt: Some(of.clone()), offset, content };
                    say(&send, ToServer::Output(output)).await;
                    offset += length;
                }
                Err(error) => unreadable = Some(error.to_string()),
            }
        }
        if let Some((adopted, kept)) = now.ended {
            if attempt.is_worker_paused() {
                // Before the report: the server gives the job out again as soon as it has that, and
                // must not give it to this worker.
                say(&send, ToServer::Drain(v1::Drain {})).await;
            }
            let incomplete = kept.err().or(unreadable);
            return report(of, adopted, incomplete, offset, &send).await;
        }
        if progress.changed().await.is_err() {
            return;
        }
    }
}

async fn report(
    of: v1::AttemptId,
    adopted: Adopted,
    incomplete: Option<String>,
    output_bytes: u64,
    send: &mpsc::Sender<v1::SessionRequest>,
) {
    let (ran_ms, ended) = match (adopted, incomplete) {
        (Adopted::Ended(Ended::Succeeded { ran_ms, .. }), Some(why)) => {
            let why = format!("its output is not complete: {why}");
            (ran_ms, failed(FailureCause::OutputUnusable(why)))
        }
        (Adopted::Ended(Ended::Succeeded { ran_ms, outputs, artifacts }), None) => {
            let mut references = Vec::new();
            let mut unusable = None;
            for file in artifacts {
                if let Err(error) = upload(&of, &file.path, &file.absolute, send).await {
                    unusable = Some(format!("artifact `{}`: {error}", file.path));
                    break;
                }
                let (size, sha256) = (file.size, file.sha256.to_string());
                references
                    .push(v1::Artifact { path: file.path, blob: Some(v1::Blob { size, sha256 }) });
            }
            let ended = match unusable {
                Some(why) => failed(FailureCause::OutputUnusable(why)),
                None => report::Ended::Succeeded(v1::Succeeded { outputs, artifacts: references }),
            };
            (ran_ms, ended)
        }
        (Adopted::Ended(Ended::Failed { cause, ran_ms }), _) => (ran_ms, failed(cause)),
        (Adopted::Ended(Ended::Cancelled { ran_ms }), _) => {
            (ran_ms, report::Ended::Cancelled(v1::Cancelled {}))
        }
        (Adopted::Lost(reason), _) => {
            (0, report::Ended::Lost(v1::Lost { reason: explanation(&reason) }))
        }
        (Adopted::NeverStarted, _) => {
            let reason = "it was never started".to_owned();
            (0, report::Ended::Lost(v1::Lost { reason }))
        }
    };
    let report = v1::Report {
        attempt: Some(of),
        run_time: Some(duration(ran_ms)),
        ended: Some(ended),
        output_bytes,
    };
    say(send, ToServer::Report(report)).await;
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

async fn upload(
    of: &v1::AttemptId,
    path: &str,
    absolute: &Path,
    send: &mpsc::Sender<v1::SessionRequest>,
) -> io::Result<()> {
    let mut file = File::open(absolute)?;
    let mut offset = 0;
    loop {
        let mut part = Vec::with_capacity(PART_BYTES);
        let read = (&mut file).take(PART_BYTES as u64).read_to_end(&mut part)?;
        let part = v1::ArtifactPart {
            attempt: Some(of.clone()),
            path: path.to_owned(),
            content: part.into(),
            offset,
        };
        say(send, ToServer::Artifact(part)).await;
        offset += read as u64;
        if read < PART_BYTES {
            return Ok(());
        }
    }
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
