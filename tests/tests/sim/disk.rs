//! The log on its disk: records in order, of which a first part would survive a power cut.

use std::collections::BTreeMap;

use towpath_engine::{codec, event::Fact, ids::RunId};

/// One record. Its position is its place in the log, from 1.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) run: RunId,
    pub(crate) version: u64,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) records: Vec<Record>,
    /// How many records are safe.
    pub(crate) durable: usize,
    /// Where appends end: a crash keeps whole appends only.
    ends: Vec<usize>,
    tails: BTreeMap<RunId, u64>,
}

impl Disk {
    /// The version of the newest record of `run`, safe or not.
    pub(crate) fn tail(&self, run: &RunId) -> u64 {
        self.tails.get(run).copied().unwrap_or(0)
    }

    /// Queues records. `None`: another process wrote first.
    pub(crate) fn append(
        &mut self,
        run: &RunId,
        expected: u64,
        all: Vec<Vec<u8>>,
    ) -> Option<usize> {
        if self.tail(run) != expected {
            return None;
        }
        for (bytes, version) in all.into_iter().zip(expected + 1..) {
            self.records.push(Record { run: run.clone(), version, bytes });
            self.tails.insert(run.clone(), version);
        }
        self.ends.push(self.records.len());
        Some(self.records.len())
    }

    /// The power goes: what is safe stays, and perhaps some appends that were being written.
    pub(crate) fn cut(&mut self, written: usize) {
        let whole = self.ends.iter().rev().find(|end| **end <= written).copied().unwrap_or(0);
        let kept = whole.max(self.durable);
        self.records.truncate(kept);
        self.ends.retain(|end| *end <= kept);
        self.durable = kept;
        self.tails.clear();
        for record in &self.records {
            self.tails.insert(record.run.clone(), record.version);
        }
    }

    /// What is said of `run` in the first `upto` records, and the version of the last of it.
    pub(crate) fn read(&self, run: &RunId, upto: usize) -> Result<(Vec<Fact>, u64), String> {
        let mut facts = Vec::new();
        let mut version = 0;
        for record in self.records[..upto].iter().filter(|record| record.run == *run) {
            facts.push(codec::decode(&record.bytes).map_err(|error| error.to_string())?);
            version = record.version;
        }
        Ok((facts, version))
    }

    pub(crate) fn runs(&self) -> Vec<RunId> {
        self.tails.keys().cloned().collect()
    }
}
