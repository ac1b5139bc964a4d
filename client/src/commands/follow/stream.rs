//! What a server says of a run: its state, and its events as they come.

use tokio_stream::StreamExt as _;
use towpath_engine::code::ErrorCode;
use towpath_engine::run::Run;
use towpath_proto::{streams::Records, v1};

use super::LAST_WORD_WITHIN;
use crate::{connect::ServerConnection, failure::Failure};

/// The state of run `id` and its version.
pub(crate) async fn snapshot(server: &ServerConnection, id: &str) -> Result<(Run, u64), Failure> {
    let request = v1::ReadSnapshotRequest { run: id.to_owned() };
    let mut parts = server.runs().read_snapshot(request).await?.into_inner();
    let (mut version, mut bytes) = (0, Vec::new());
    while let Some(part) = parts.next().await {
        let v1::ReadSnapshotResponse { version: shown, content } = part?;
        version = shown;
        bytes.extend_from_slice(&content);
    }
    let run = Run::from_snapshot(&bytes).map_err(|_| {
        Failure::new(
            ErrorCode::VersionMismatch,
            "the server keeps runs in another form",
            "Use the same version of `tow` on both sides.",
        )
    })?;
    Ok((run, version))
}

/// The next record, or why there is none.
pub(super) fn heard(
    record: Option<Result<v1::Record, tonic::Status>>,
) -> Result<v1::Record, Failure> {
    Ok(record.ok_or_else(server_went_away)??)
}

/// A stream that has no end of its own ended without a word: its server is being stopped.
pub(crate) fn server_went_away() -> Failure {
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
