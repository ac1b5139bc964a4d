//! `tow doctor`: the whole log is walked, every view is rebuilt from it, and the two are compared.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::mpsc;
use tonic::Status;
use towpath_engine::{aggregate::Aggregate as _, ids::Digest, run::Run};
use towpath_proto::v1;
use towpath_storage::verify;

use crate::{Server, command_error::CommandError, status};

/// Records read at a time.
const PAGE: usize = 4_096;
/// Most kinds of streams that are named because this version does not know them.
const UNKNOWN_MAX: usize = 20;
/// Records between two signs of life.
const REPORT_EVERY: u64 = 20_000;

/// Checks everything and says what it found.
pub(crate) async fn check(server: &Server, send: mpsc::Sender<Result<v1::CheckResponse, Status>>) {
    match check_all(server, &send).await {
        Ok(done) => drop(send.send(Ok(done)).await),
        Err(error) => drop(send.send(Err(status::of(error))).await),
    }
}

async fn check_all(
    server: &Server,
    send: &mpsc::Sender<Result<v1::CheckResponse, Status>>,
) -> Result<v1::CheckResponse, CommandError> {
    let log = server.log();
    let verified = verify(&*log.store, |position| {
        if position % REPORT_EVERY == 0 {
            let progress = v1::CheckResponse { records: position, ..Default::default() };
            drop(send.try_send(Ok(progress)));
        }
    })
    .await?;
    let kinds = log.kinds();
    let mut checks: Vec<_> = kinds.iter().map(|kind| Arc::clone(kind).begin_check()).collect();
    let mut findings = Vec::new();
    let (mut after, mut unknown) = (0, BTreeSet::new());
    loop {
        let page = log.store.read_all(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.position;
        for record in &page {
            checks.iter_mut().for_each(|check| check.take(record));
            let kind = record.stream.split('/').next().unwrap_or_default();
            if !kinds.iter().any(|known| known.kind() == kind) && unknown.len() < UNKNOWN_MAX {
                unknown.insert(kind.to_owned());
            }
        }
    }
    findings.extend(unknown.iter().map(|kind| {
        format!("streams `{kind}/…` are of a kind that this version of tow does not know")
    }));
    let mut runs = 0;
    for (kind, check) in kinds.iter().zip(checks) {
        let checked = check.finish().await?;
        if kind.kind() == Run::KIND {
            runs = checked.streams;
        }
        findings.extend(checked.findings);
        // Every blob that an event names must be there, with the bytes that were meant.
        for (named, blob) in checked.blobs {
            if let Err(error) = server.outputs().blobs.verify(&blob.sha256.0) {
                findings.push(format!("{named}: {error}"));
            }
        }
    }
    let (records, log_hash) = (verified.records, Digest(verified.hash).to_string());
    Ok(v1::CheckResponse { records, runs, done: true, findings, log_hash })
}
