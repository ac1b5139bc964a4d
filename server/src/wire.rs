//! Between messages and the engine: commands one way in, views one way out. Nothing is decided.

mod explain;
mod sessions;

use towpath_engine::{
    gate::{self as gates, AUTHORS_MAX, Authors},
    ids::{Actor, Attempt, Blob, Digest, JobName, invisible_in},
    source::{Origin, Source},
    time::Timestamp,
};
use towpath_proto::{time::timestamp_ms, v1};
use towpath_storage::Record;

pub(crate) use explain::explanation;
pub(crate) use sessions::{
    Received, Reported, WorkerMessage, WorkerReport, absent_worker, assignment, cancel, heartbeat,
    received, recorded, welcome, worker, workers,
};
pub(crate) use towpath_wire::views::{gate, job, outcome, run, summary, time};

use crate::{
    check::CheckReport,
    command_error::CommandError,
    demand::{FittingDemand, Wanted},
    outputs::Key,
    past_reads::{AsOf, Point},
    pipeline_files::SentFile,
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
    // Before the addresses are read: a list of millions would be read to refuse it.
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
    // proto3 does not tell an empty text from an absent one.
    let parent = (!parent.is_empty()).then_some(parent);
    let source = Source { commit, origin, folder, parent, dirty };
    // The folder and the address end up in commands of git on a worker.
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

/// The job that a request names.
pub(crate) fn job_name(text: &str) -> JobName {
    text.into()
}
