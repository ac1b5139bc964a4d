//! Messages of the sessions of workers, in both directions.

use bytes::Bytes;
use tonic::Status;
use towpath_engine::{
    decide::Ended,
    event::{Artifact, CAUSE_BYTES_MAX, FailureCause, bounded_text},
    ids::{AttemptId, WorkerName},
    run::{Job, Run},
    scheduler::SessionView,
};
use towpath_proto::{
    time::{duration, duration_ms},
    v1::{
        self, failed::Cause, report, session_request::Message as Sent, session_response::Message,
    },
};
use towpath_wire::views::{blob as blob_message, source as source_message, time};

use super::{attempt_message, blob, named_attempt};
use crate::{command_error::CommandError, status, telemetry};

/// What a worker says.
#[derive(Debug)]
pub(crate) enum WorkerMessage {
    /// Who it is and what it holds: the first message.
    Hello(v1::Hello),
    /// Part of what an attempt printed.
    Output { key: AttemptId, offset: u64, content: Bytes },
    /// Part of a file that an attempt left behind.
    Artifact { key: AttemptId, path: String, offset: u64, content: Bytes },
    /// How an attempt ended.
    Report(WorkerReport),
    /// It wants no more jobs.
    Drain,
    /// It is there.
    Heartbeat,
    /// It stops.
    Goodbye,
    /// What a newer worker says.
    Unknown,
}

/// How an attempt ended, as its worker says.
#[derive(Debug)]
pub(crate) struct WorkerReport {
    pub(crate) key: AttemptId,
    /// How long it ran, in milliseconds by the worker's clock.
    pub(crate) ran_ms: u64,
    pub(crate) ended: Reported,
    /// Bytes of output that the worker has sent.
    pub(crate) output_bytes: u64,
}

/// The next message of a worker; an error is what is wrong with it, or nothing if the connection was
/// lost.
pub(crate) type Received = Result<WorkerMessage, Option<CommandError>>;

/// What a worker says in `message`.
pub(crate) fn received(message: Result<v1::SessionRequest, Status>) -> Received {
    let request = message.map_err(|lost| status::misread(&lost))?;
    worker_message(request).map_err(Some)
}

fn worker_message(request: v1::SessionRequest) -> Result<WorkerMessage, CommandError> {
    Ok(match request.message {
        Some(Sent::Hello(hello)) => WorkerMessage::Hello(hello),
        Some(Sent::Output(v1::Output { attempt, offset, content })) => {
            WorkerMessage::Output { key: named_attempt(attempt)?, offset, content }
        }
        Some(Sent::Artifact(v1::ArtifactPart { attempt, path, content, offset })) => {
            WorkerMessage::Artifact { key: named_attempt(attempt)?, path, offset, content }
        }
        Some(Sent::Report(v1::Report { attempt, run_time, ended, output_bytes })) => {
            WorkerMessage::Report(WorkerReport {
                key: named_attempt(attempt)?,
                // A time that is none is not worth a job: it is recorded as none.
                ran_ms: run_time.as_ref().and_then(duration_ms).unwrap_or_default(),
                ended: reported(ended),
                output_bytes,
            })
        }
        Some(Sent::Drain(v1::Drain {})) => WorkerMessage::Drain,
        Some(Sent::Heartbeat(v1::Heartbeat {})) => WorkerMessage::Heartbeat,
        Some(Sent::Goodbye(v1::Goodbye {})) => WorkerMessage::Goodbye,
        // A field that this version does not know leaves the message empty. A newer worker must be
        // able to say more without losing its session.
        None => WorkerMessage::Unknown,
    })
}

fn outgoing(message: Message) -> v1::SessionResponse {
    v1::SessionResponse { message: Some(message) }
}

/// Tells a worker to end an attempt.
pub(crate) fn cancel(key: &AttemptId) -> v1::SessionResponse {
    outgoing(Message::Cancel(v1::Cancel { attempt: Some(attempt_message(key)) }))
}

/// Tells a worker that the report of an attempt is durable.
pub(crate) fn recorded(key: &AttemptId) -> v1::SessionResponse {
    outgoing(Message::Recorded(attempt_message(key)))
}

/// Answers a heartbeat of a worker.
pub(crate) fn heartbeat() -> v1::SessionResponse {
    outgoing(Message::Heartbeat(v1::Heartbeat {}))
}

/// Tells a worker what still counts of what it said it holds.
pub(crate) fn welcome(
    held: impl Iterator<Item = (AttemptId, u64)>,
    lease_ms: u64,
) -> v1::SessionResponse {
    let held = held
        .map(|(key, output_bytes)| v1::HeldAttempt {
            attempt: Some(attempt_message(&key)),
            output_bytes,
        })
        .collect();
    outgoing(Message::Welcome(v1::Welcome { held, lease: Some(duration(lease_ms)) }))
}

/// What a worker is told to do under the lease of this fence, if that still stands.
pub(crate) fn assignment(key: &AttemptId, fence: u64, run: &Run) -> Option<v1::SessionResponse> {
    let AttemptId { job: name, attempt, .. } = key;
    // The lease may have ended between its record and this message: an assignment then would start
    // a script that nobody waits for.
    let job = run.job(name.as_str()).filter(|job| job.attempt == *attempt)?;
    let header = run.header()?;
    let filled = run.assignment(job).ok()?;
    let (files, files_left_out) =
// Without a source the jobs of a run share one folder, and find there what earlier jobs left.
        if header.source.is_some() { needed_files(run, job) } else { Default::default() };
    let assignment = v1::Assignment {
        attempt: Some(attempt_message(key)),
        fence,
        script: filled.script,
        shell: job.plan.shell.clone(),
        env: filled.env,
        secrets: job.plan.secrets.clone(),
        folder: header.folder.clone(),
        timeout: job.plan.timeout_ms.map(duration),
        grace: job.plan.grace_ms.map(duration),
        artifacts: job.plan.artifacts.clone(),
        traceparent: telemetry::of_attempt(run, name, *attempt),
        stage: job.plan.stage.to_string(),
        source: header.source.as_ref().map(source_message),
        files,
        files_left_out,
    };
    Some(outgoing(Message::Assignment(assignment)))
}

/// Most bytes of an assignment that name files of needed jobs. With the script and the environment,
/// which take at most 1 MiB each, all must fit a message: a worker ends its session over one of
/// more than 4 MiB, and does so again in every new session.
const NEEDED_FILES_BYTES_MAX: usize = 3 * 512 * 1024;
/// What a needed file takes besides its names, in bytes.
const NEEDED_FILE_BYTES: usize = 100;

/// What the needs of `job` left behind, and how many files more than fit.
fn needed_files(run: &Run, job: &Job) -> (Vec<v1::NeededFile>, u32) {
    let (mut files, mut left_out, mut bytes) = (Vec::new(), 0, 0);
    for (need, artifact) in run.needed_files(job) {
        // Estimated and not encoded: each file would be encoded twice, and the bound has room for
        // the difference.
        bytes += need.as_str().len() + artifact.path.len() + NEEDED_FILE_BYTES;
        if bytes > NEEDED_FILES_BYTES_MAX {
            left_out += 1;
            // Counted to the end, so that the worker can say how many files its script does not
            // find.
            continue;
        }
        let blob = Some(blob_message(&artifact.blob));
        files.push(v1::NeededFile { job: need.to_string(), path: artifact.path.clone(), blob });
    }
    (files, left_out)
}

/// How an attempt ended, or why that is not known.
#[derive(Debug)]
pub(crate) enum Reported {
    Ended(Ended),
    Lost(String),
}

impl Reported {
    /// This report, unless it says that the job succeeded: then the job failed, because `why` is
    /// wrong with what arrived. Other ends stand as they are; a failure keeps its own cause.
    pub(crate) fn unless_invalid(self, why: String) -> Self {
        match self {
            Self::Ended(Ended::Succeeded { .. }) => invalid_report(why),
            ended @ (Self::Ended(Ended::Failed(_) | Ended::Cancelled) | Self::Lost(_)) => ended,
        }
    }
}

fn invalid_report(why: impl Into<String>) -> Reported {
    Reported::Ended(Ended::Failed(FailureCause::ReportInvalid(why.into()).bounded()))
}

/// A worker that is connected, as people are shown it.
pub(crate) fn worker(view: &SessionView<'_>) -> v1::Worker {
    let hello = view.hello;
    v1::Worker {
        name: hello.worker.to_string(),
        tags: hello.tags.clone(),
        slots: hello.slots,
        running: u32::try_from(view.running).unwrap_or(u32::MAX),
        since: Some(time(hello.since)),
        version: hello.version.clone(),
        state: if view.draining { v1::WorkerState::Draining } else { v1::WorkerState::Active }
            .into(),
        connected: true,
        run: hello.only.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// The workers that are connected, and those that are drained, by name.
pub(crate) fn workers<'v>(
    connected: impl Iterator<Item = SessionView<'v>>,
    drained: &[WorkerName],
) -> Vec<v1::Worker> {
    let mut workers: Vec<_> = connected.map(|view| worker(&view)).collect();
    for name in drained {
        // A drain outlives the session: a worker that is drained and away must not disappear from
        // the list, or nobody would know why it gets no jobs when it returns.
        if !workers.iter().any(|worker| worker.name == name.as_str()) {
            workers.push(absent_worker(name, true));
        }
    }
    // By name, because a page begins after a name: sessions come and go between two pages.
    workers.sort_by(|one, other| one.name.cmp(&other.name));
    workers
}

/// A worker that is not connected, as people are shown it.
pub(crate) fn absent_worker(name: &WorkerName, drained: bool) -> v1::Worker {
    let state = if drained { v1::WorkerState::Draining } else { v1::WorkerState::Active }.into();
    v1::Worker { name: name.to_string(), state, ..v1::Worker::default() }
}

/// What a report says. One that says nothing that can be recorded is a failure of its job.
pub(crate) fn reported(ended: Option<report::Ended>) -> Reported {
    // A report that is refused would be sent again in each session, for ever. Recorded as a failure
    // of its job, it ends.
    let Some(ended) = ended else { return invalid_report("it does not say how the job ended") };
    Reported::Ended(match ended {
        report::Ended::Succeeded(v1::Succeeded { outputs, artifacts }) => {
            let artifacts: Option<Vec<Artifact>> = artifacts.into_iter().map(artifact).collect();
            match artifacts {
                Some(artifacts) => Ended::Succeeded { outputs, artifacts },
                // Success without the artifact would be answered as recorded, and later jobs would
                // miss the file.
                None => return invalid_report("the digest of an artifact is malformed"),
            }
        }
        report::Ended::Failed(v1::Failed { cause }) => match cause {
            None => return invalid_report("it names no cause of the failure"),
            Some(Cause::ExitCode(code)) => Ended::Failed(FailureCause::ExitCode(code)),
            Some(Cause::Signal(signal)) => Ended::Failed(FailureCause::Signal(signal)),
            Some(Cause::TimedOut(limit)) => match duration_ms(&limit) {
                Some(ms) => Ended::Failed(FailureCause::TimedOut(ms)),
                None => return invalid_report("its time limit is not a duration"),
            },
            Some(Cause::NotStarted(why)) => Ended::Failed(FailureCause::NotStarted(why).bounded()),
            Some(Cause::OutputUnusable(why)) => {
                Ended::Failed(FailureCause::OutputUnusable(why).bounded())
            }
        },
        report::Ended::Cancelled(v1::Cancelled {}) => Ended::Cancelled,
        report::Ended::Lost(v1::Lost { reason }) => {
            // Cut and not refused: the length of a reason is no cause to lose the report.
            return Reported::Lost(bounded_text(reason, CAUSE_BYTES_MAX));
        }
    })
}

fn artifact(artifact: v1::Artifact) -> Option<Artifact> {
    let v1::Artifact { path, blob: named } = artifact;
    Some(Artifact { path, blob: blob(&named?).ok()? })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use towpath_engine::{
        decide::{Command, ReportJob},
        ids::{Attempt, Blob, Digest},
        results::ARTIFACT_BYTES_MAX,
    };

    use super::*;
    use crate::{
        limits::ANSWER_BYTES_MAX,
        testing::{Fixture, WORKER, job as planned, lease},
    };

    /// A need that left as many files as its event holds, and an output of the greatest length.
    fn left_much(need: &str) -> Command {
        let blob = Blob { size: ARTIFACT_BYTES_MAX, sha256: Digest([255; 32]) };
        let artifact = |n: usize| Artifact { path: format!("{n:010}"), blob };
        let outputs = BTreeMap::from([("v".to_owned(), "x".repeat(4 * 1024))]);
        Command::Report(ReportJob {
            job: need.into(),
            attempt: Attempt(1),
            worker: WORKER.into(),
            ended: Ended::Succeeded { outputs, artifacts: (0..330).map(artifact).collect() },
            ran_ms: 1,
            captured_output: None,
        })
    }

    #[tokio::test]
    async fn the_largest_assignment_fits_a_message() {
        let fixture = Fixture::new();
        let needs: Vec<String> = (0..60).map(|n| format!("n{n}")).collect();
        let mut jobs: Vec<_> = needs.iter().map(|need| planned(need, &[])).collect();
        let names: Vec<&str> = needs.iter().map(String::as_str).collect();
        let mut last = planned("last", &names);
        last.script = "${{ needs.n0.outputs.v }} ".repeat(255).into();
        last.env = BTreeMap::from([("E".to_owned(), "${{ needs.n0.outputs.v }}".repeat(255))]);
        jobs.push(last);
        let run = fixture.begins("r", jobs).await;
        let mut leased = Vec::new();
        for need in &needs {
            fixture.queues(&run, left_much(need)).await.done.await.unwrap();
            leased = fixture.queues(&run, lease()).await.done.await.unwrap().facts;
        }

        let loaded = fixture.runs.lock_latest(&run).await.unwrap();
        let key = AttemptId { run: run.clone(), job: "last".into(), attempt: Attempt(1) };
        let Some(message) = assignment(&key, 1, &loaded.state) else {
            panic!("not leased: {leased:?}")
        };
        assert_eq!(leased[0].event.job(), Some(&key.job));
        let bytes = prost::Message::encoded_len(&message);
        let Some(Message::Assignment(sent)) = message.message else { panic!("another message") };
        assert!(sent.script.len() > 1_000_000 && sent.env["E"].len() > 1_000_000, "both at bounds");
        assert!(bytes > 2_000_000 && bytes < ANSWER_BYTES_MAX, "{bytes}");
        let (files, left_out) = needed_files(&loaded.state, loaded.state.job("last").unwrap());
        assert!(left_out > 0, "the bound of files is reached too");
        let files: usize = files.iter().map(prost::Message::encoded_len).sum();
        // What else there is, is bounded by the events it comes from: 60 KiB each.
        let rest = 4 * 60 * 1024;
        assert!(bytes + files + rest < ANSWER_BYTES_MAX, "{bytes} and {files}");
    }
}
