//! What a server says of a run: its state, and its events as they come.

use tokio_stream::StreamExt as _;
use towpath_engine::{code::ErrorCode, codec, event::Fact, run::Run};
use towpath_proto::{streams::Records, v1};

use super::LAST_WORD_WITHIN;
use crate::{connect::ServerConnection, failure::Failure};

/// Run `id` as its records left it, up to now.
pub(crate) async fn folded(server: &ServerConnection, id: &str) -> Result<Run, Failure> {
    let request = v1::FollowRequest { run: id.to_owned(), after: 0, follow: false };
    let mut records = Records::new(server.log().follow(request).await?.into_inner());
    let mut run = Run::default();
    while let Some(record) = records.next().await {
        apply(&mut run, &record?)?;
    }
    Ok(run)
}

/// The run of which `records` are the first, as it was at `version`.
pub(super) async fn folded_to(records: &mut Records, version: u64) -> Result<Run, Failure> {
    let (mut run, mut seen) = (Run::default(), 0);
    while seen < version {
        let record = heard(records.next().await)?;
        seen = record.version;
        apply(&mut run, &record)?;
    }
    Ok(run)
}

/// Lets `run` take in `record`; answers what it says.
pub(super) fn apply(run: &mut Run, record: &v1::Record) -> Result<Fact, Failure> {
    let unreadable = |what: String| {
        let what = format!("record {}: {what}", record.position);
        Failure::new(ErrorCode::LogDamaged, what, "docs/errors/ says what to do.")
    };
    let fact = codec::decode(&record.payload).map_err(|error| unreadable(error.to_string()))?;
    run.evolve(&fact).map_err(|error| unreadable(error.to_string()))?;
    Ok(fact)
}

/// The next record, or why there is none.
pub(super) fn heard(
    record: Option<Result<v1::Record, tonic::Status>>,
) -> Result<v1::Record, Failure> {
    Ok(record.ok_or_else(connection_lost)??)
}

/// A stream that has no end of its own ended without a word: its server is being stopped.
pub(crate) fn connection_lost() -> Failure {
    let advice = "Nothing that was acknowledged is lost; `tow resume` continues.";
    Failure::new(ErrorCode::Unreachable, "the connection to the server was lost", advice)
}

/// Why the store takes nothing more: the stream's last word, if that comes.
pub(super) async fn why_stopped(records: &mut Records) -> Failure {
    let last_word = async {
        loop {
            match records.next().await {
                // Recorded before the commit that failed.
                Some(Ok(_)) => {}
                Some(Err(status)) => return Some(Failure::from(status)),
                None => return None,
            }
        }
    };
    let said = tokio::time::timeout(LAST_WORD_WITHIN, last_word).await.ok().flatten();
    said.unwrap_or_else(|| {
        Failure::new(ErrorCode::StoreUnavailable, "the store stopped because a commit failed", "")
    })
}
