//! `tow doctor`: the whole log is walked, every view is rebuilt from it, and the two are compared.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::mpsc;
use towpath_engine::{aggregate::Aggregate as _, ids::Digest, run::Run};
use towpath_storage::{Blobs, verify};

use crate::{command_error::CommandError, open_log::OpenLog};

/// Records read at a time.
const PAGE: usize = 4_096;
/// Most kinds of streams that are named because this version does not know them.
const UNKNOWN_MAX: usize = 20;
/// Records between two reports of progress.
const REPORT_EVERY: u64 = 20_000;

/// How far a check has come, or what it found.
#[derive(Debug, Default)]
pub(crate) struct CheckReport {
    /// Records that were checked.
    pub(crate) records: u64,
    /// Runs that could be replayed; 0 until the end.
    pub(crate) runs: u64,
    /// It is the last report.
    pub(crate) done: bool,
    /// What is wrong, in sentences.
    pub(crate) findings: Vec<String>,
    /// The running hash after the last record; empty until the end.
    pub(crate) log_hash: String,
}

/// Checks a store that is open.
#[derive(Clone, Debug)]
pub(crate) struct Doctor {
    log: Arc<OpenLog>,
    blobs: Arc<Blobs>,
}

impl Doctor {
    pub(crate) fn new(log: Arc<OpenLog>, blobs: Arc<Blobs>) -> Self {
        Self { log, blobs }
    }

    /// Checks everything and says what it found.
    pub(crate) async fn check(&self, send: mpsc::Sender<Result<CheckReport, CommandError>>) {
        let done = self.check_all(&send).await;
        drop(send.send(done).await);
    }

    async fn check_all(
        &self,
        send: &mpsc::Sender<Result<CheckReport, CommandError>>,
    ) -> Result<CheckReport, CommandError> {
        let verified = verify(&*self.log.store, |position| {
            if position % REPORT_EVERY == 0 {
                let progress = CheckReport { records: position, ..CheckReport::default() };
                // Dropped if the client is slow: the check does not wait for a sign of life.
                drop(send.try_send(Ok(progress)));
            }
        })
        .await?;
        let kinds = self.log.kinds();
        let mut checks: Vec<_> = kinds.iter().map(|kind| Arc::clone(kind).begin_check()).collect();
        let mut findings = Vec::new();
        let (mut after, mut unknown) = (0, BTreeSet::new());
        loop {
            let page = self.log.store.read_all(after, PAGE).await?;
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
                if let Err(error) = self.blobs.verify(&blob.sha256.0) {
                    findings.push(format!("{named}: {error}"));
                }
            }
        }
        let (records, log_hash) = (verified.records, Digest(verified.hash).to_string());
        Ok(CheckReport { records, runs, done: true, findings, log_hash })
    }
}
