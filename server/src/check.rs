//! `tow doctor`: the whole log is walked, every view is rebuilt from it, and the two are compared.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::mpsc;
use towpath_engine::{
    aggregate::Aggregate as _,
    ids::{Blob, Digest},
    run::Run,
};
use towpath_storage::{Blobs, StoreError, verify};

use crate::{
    command_error::CommandError,
    open_log::{Checked, OpenLog},
};

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
        let mut found = CheckReport::default();
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
            for (kind, check) in kinds.iter().zip(&mut checks) {
                self.take(kind.kind(), check.settle().await?, &mut found).await?;
            }
        }
        found.findings.extend(unknown.iter().map(|kind| {
            format!("streams `{kind}/…` are of a kind that this version of tow does not know")
        }));
        for (kind, check) in kinds.iter().zip(checks) {
            self.take(kind.kind(), check.finish().await?, &mut found).await?;
        }
        let (records, log_hash) = (verified.records, Digest(verified.hash).to_string());
        Ok(CheckReport { records, done: true, log_hash, ..found })
    }

    /// Takes what a check of streams of `kind` found into `found`, and checks the blobs that these
    /// name.
    async fn take(
        &self,
        kind: &str,
        checked: Checked,
        found: &mut CheckReport,
    ) -> Result<(), CommandError> {
        if kind == Run::KIND {
            found.runs += checked.streams;
        }
        found.findings.extend(checked.findings);
        let (stored, named) = (Arc::clone(&self.blobs), checked.blobs);
        // Every blob that an event names must be there, with the bytes that were meant. Beside the
        // threads that answer requests: to read all blobs of a store may take minutes.
        let verified = tokio::task::spawn_blocking(move || {
            let verify = |(name, blob): (String, Blob)| {
                let error = stored.verify(&blob.sha256.0).err()?;
                Some(format!("{name}: {error}"))
            };
            named.into_iter().filter_map(verify).collect::<Vec<_>>()
        });
        found.findings.extend(verified.await.map_err(|_| StoreError::Closed)?);
        Ok(())
    }
}
