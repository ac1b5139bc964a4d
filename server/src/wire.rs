//! Between messages and the engine: commands one way in, views one way out. Nothing is decided.

mod explain;

use towpath_engine::{
    decide::Ended,
    event::{Artifact, CAUSE_BYTES_MAX, FailureCause, bounded_text},
    gate::{self as gates, AUTHORS_MAX, Authors},
    ids::{Actor, Attempt, Blob, Digest, JobName, WorkerName, invisible_in},
    run::{Job, Run},
    scheduler::SessionView,
    source::{Origin, Source},
    time::Timestamp,
};
use towpath_proto::{
    time::{duration, duration_ms, timestamp_ms},
    v1::{self, failed::Cause, report, session_response::Message},
};
use towpath_storage::Record;

pub(crate) use explain::explanation;
use towpath_wire::views::blob as blob_message;
pub(crate) use towpath_wire::views::{
    gate, job, outcome, run, source as source_message, summary, time,
};

use crate::{
    check::CheckReport,
    command_error::CommandError,
    demand::{FittingDemand, Wanted},
    outputs::Key,
    past_reads::Point,
    pipeline_files::SentFile,
    run_reads::AsOf,
    telemetry,
};

/// Where in the log a request looks. `None`: at the newest record.
pub(crate) fn point(at: Option<v1::ReadPoint>) -> Result<Option<Point>, CommandError> {
    use v1::read_point::Point as Sent;
    let Some(at) = at else { return Ok(None) };
    Ok(Some(match at.point.ok_or_else(|| invalid("a read point without a point"))? {
        Sent::Position(position) => Point::Position(position),
        Sent::Time(time) => {
            let ms = timestamp_ms(&time).ok_or_else(|| invalid("a time that is none"))?;
            Point::Time(Timestamp(ms))
        }
    }))
}

/// Which point of the past an answer shows.
pub(crate) fn as_of(as_of: AsOf) -> v1::AsOf {
    v1::AsOf { position: as_of.position, time: as_of.time.map(time) }
}

fn invalid(what: impl Into<String>) -> CommandError {
    CommandError::MessageInvalid { what: what.into() }
}

/// Who issued a command, by its own word.
pub(crate) fn actor(text: &str) -> Result<Actor, CommandError> {
    let actor: Actor = text
        .parse()
        .map_err(|error: towpath_engine::ids::ActorMalformed| invalid(error.to_string()))?;
    // Not in the type itself: logs that were written before this rule are read as they are.
    match invisible_in(&actor.name) {
        Some(c) => Err(invalid(format!(
            "the name of an actor holds a character that cannot be seen, U+{:04X}",
            u32::from(c)
        ))),
        None => Ok(actor),
    }
}

/// The digest that `text` writes.
pub(crate) fn digest(text: &str) -> Result<Digest, CommandError> {
    text.parse().map_err(|error: towpath_engine::ids::DigestMalformed| invalid(error.to_string()))
}

/// The pipeline file of a request, which it must have.
pub(crate) fn sent_file(file: Option<v1::PipelineFile>) -> Result<SentFile, CommandError> {
    let v1::PipelineFile { name, folder, content, source: files, authors: told } =
        file.ok_or_else(|| invalid("the pipeline file is missing"))?;
    let source = files.map(source).transpose()?;
    let authors = told.map(authors).transpose()?;
    Ok(SentFile { name, folder, content, source, authors })
}

fn authors(told: v1::Authors) -> Result<Authors, CommandError> {
    let v1::Authors { emails, uncommitted } = told;
    if emails.len() > AUTHORS_MAX {
        return Err(invalid("a pipeline file of too many authors"));
    }
    let address = |text: String| gates::email(&text).ok_or_else(|| invalid("no e-mail address"));
    let emails = emails.into_iter().map(address).collect::<Result<_, _>>()?;
    Ok(Authors { emails, uncommitted })
}

/// The files of a run that a message names.
fn source(source: v1::Source) -> Result<Source, CommandError> {
    use v1::source::Origin as Sent;
    let v1::Source { commit, origin, folder, parent, dirty } = source;
    let origin = match origin.ok_or_else(|| invalid("a source without an origin"))? {
        Sent::Bundle(bundle) => Origin::Bundle(blob(&bundle)?),
        Sent::Remote(address) => Origin::Remote(address),
    };
    let parent = (!parent.is_empty()).then_some(parent);
    let source = Source { commit, origin, folder, parent, dirty };
    source.problem().map_or(Ok(source), |problem| Err(invalid(problem)))
}

/// The blob that a message names.
pub(crate) fn blob(blob: &v1::Blob) -> Result<Blob, CommandError> {
    Ok(Blob { size: blob.size, sha256: digest(&blob.sha256)? })
}

/// The blob that a request must name.
pub(crate) fn named_blob(blob: Option<v1::Blob>) -> Result<Blob, CommandError> {
    let missing = || invalid("no blob named");
    self::blob(&blob.ok_or_else(missing)?)
}

/// The attempt that a message is about.
pub(crate) fn key(held: v1::AttemptId) -> Key {
    let v1::AttemptId { run, job, attempt } = held;
    Key { run: run.into(), job: job.into(), attempt: Attempt(attempt) }
}

/// The attempt that a message must name.
pub(crate) fn named_attempt(of: Option<v1::AttemptId>) -> Result<Key, CommandError> {
    Ok(key(of.ok_or_else(|| invalid("no attempt named"))?))
}

/// The attempt, as a message names it.
pub(crate) fn attempt_message(key: &Key) -> v1::AttemptId {
    let Key { run, job, attempt } = key;
    v1::AttemptId { run: run.to_string(), job: job.to_string(), attempt: attempt.0 }
}

fn outgoing(message: Message) -> v1::SessionResponse {
    v1::SessionResponse { message: Some(message) }
}

/// Tells a worker to end an attempt.
pub(crate) fn cancel(key: &Key) -> v1::SessionResponse {
    outgoing(Message::Cancel(v1::Cancel { attempt: Some(attempt_message(key)) }))
}

/// Tells a worker that the report of an attempt is durable.
pub(crate) fn recorded(key: &Key) -> v1::SessionResponse {
    outgoing(Message::Recorded(attempt_message(key)))
}

/// Answers a heartbeat of a worker.
pub(crate) fn heartbeat() -> v1::SessionResponse {
    outgoing(Message::Heartbeat(v1::Heartbeat {}))
}

/// Tells a worker what still counts of what it said it holds.
pub(crate) fn welcome(
    held: impl Iterator<Item = (Key, u64)>,
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
pub(crate) fn assignment(key: &Key, fence: u64, run: &Run) -> Option<v1::SessionResponse> {
    let Key { job: name, attempt, .. } = key;
    let job = run.job(name.as_str()).filter(|job| job.attempt == *attempt)?;
    let header = run.header()?;
    let filled = run.assignment(job).ok()?;
    let (files, files_left_out) =
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
        bytes += need.as_str().len() + artifact.path.len() + NEEDED_FILE_BYTES;
        if bytes > NEEDED_FILES_BYTES_MAX {
            left_out += 1;
            continue;
        }
        let blob = Some(blob_message(&artifact.blob));
        files.push(v1::NeededFile { job: need.to_string(), path: artifact.path.clone(), blob });
    }
    (files, left_out)
}

/// How an attempt ended, or why nobody knows.
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

/// Records of the log. Their bytes are sent as they are stored.
pub(crate) fn records(group: Vec<Record>) -> v1::FollowResponse {
    let record = |record: Record| v1::Record {
        position: record.position,
        stream: record.stream.to_string(),
        version: record.version,
        kind: record.kind.to_string(),
        payload: record.bytes,
        log_hash: Digest(record.hash).to_string(),
    };
    v1::FollowResponse { records: group.into_iter().map(record).collect() }
}

/// What a check of the store found so far.
pub(crate) fn check_report(report: CheckReport) -> v1::CheckResponse {
    let CheckReport { records, runs, done, findings, log_hash } = report;
    v1::CheckResponse { records, runs, done, findings, log_hash }
}

/// The part of the demand for workers that fits an offer.
pub(crate) fn demand(fitting: FittingDemand) -> v1::WatchDemandResponse {
    let FittingDemand { sets, left_out } = fitting;
    let set = |(tags, Wanted { pending, leased })| v1::TagSet { tags, pending, leased };
    let sets = sets.into_iter().map(set).collect();
    v1::WatchDemandResponse { demand: Some(v1::Demand { sets, left_out }) }
}

/// A worker that is not connected, as people are shown it.
pub(crate) fn absent_worker(name: &WorkerName, drained: bool) -> v1::Worker {
    let state = if drained { v1::WorkerState::Draining } else { v1::WorkerState::Active }.into();
    v1::Worker { name: name.to_string(), state, ..v1::Worker::default() }
}

/// What a report says. One that says nothing that can be recorded is a failure of its job.
pub(crate) fn reported(ended: Option<report::Ended>) -> Reported {
    let Some(ended) = ended else { return invalid_report("it does not say how the job ended") };
    Reported::Ended(match ended {
        report::Ended::Succeeded(v1::Succeeded { outputs, artifacts }) => {
            let artifacts: Option<Vec<Artifact>> = artifacts.into_iter().map(artifact).collect();
            match artifacts {
                Some(artifacts) => Ended::Succeeded { outputs, artifacts },
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
            return Reported::Lost(bounded_text(reason, CAUSE_BYTES_MAX));
        }
    })
}

fn artifact(artifact: v1::Artifact) -> Option<Artifact> {
    let v1::Artifact { path, blob: named } = artifact;
    Some(Artifact { path, blob: blob(&named?).ok()? })
}

/// The job that a request names.
pub(crate) fn job_name(text: &str) -> JobName {
    text.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use towpath_engine::{
        decide::{Command, ReportJob},
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
        let key = Key { run: run.clone(), job: "last".into(), attempt: Attempt(1) };
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
