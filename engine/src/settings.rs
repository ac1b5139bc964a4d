//! What operators decided about a server, whatever runs there are: which workers are drained.
//!
//! One stream, `settings/server`. A setting that is not here does not survive a restart.

mod decide;
mod evolve;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use decide::{DRAINED_MAX, SettingsCommand};

use crate::{
    aggregate::{Aggregate, Event, IllegalEvent, Summary},
    event::Fact,
    ids::{Actor, SettingsId, WorkerName},
    refusal::Refusal,
    time::Timestamp,
};

/// The only settings that there are.
pub const SERVER_SETTINGS: &str = "server";

/// One thing that an operator decided.
///
/// Past tense, as [`crate::event::RunEvent`]: a variant is never renamed, never removed and never
/// given a second meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SettingsEvent {
    /// A worker is given nothing new from now on, whichever process has its name.
    WorkerDrained {
        /// The worker.
        worker: WorkerName,
    },
    /// A drained worker is given jobs again.
    WorkerResumed {
        /// The worker.
        worker: WorkerName,
    },
}

impl Event for SettingsEvent {
    fn kind(&self) -> &'static str {
        match self {
            Self::WorkerDrained { .. } => "worker_drained",
            Self::WorkerResumed { .. } => "worker_resumed",
        }
    }
}

impl SettingsEvent {
    /// The worker that is drained from now on (`true`) or is given jobs again, if the event is about
    /// that.
    pub fn drain(&self) -> Option<(&WorkerName, bool)> {
        match self {
            Self::WorkerDrained { worker } => Some((worker, true)),
            Self::WorkerResumed { worker } => Some((worker, false)),
        }
    }
}

/// The settings as their events left them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    drained: BTreeSet<WorkerName>,
    newest_at: Timestamp,
    /// Who changed them last. `None`: nobody has.
    changed_by: Option<Actor>,
}

impl Settings {
    /// The workers that are given nothing new, by name, connected or not.
    pub fn drained(&self) -> impl Iterator<Item = &WorkerName> {
        self.drained.iter()
    }

    /// Whether the worker of this name is drained.
    pub fn is_drained(&self, worker: &WorkerName) -> bool {
        self.drained.contains(worker)
    }
}

/// What a list shows of settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsSummary {
    /// When they were changed last.
    pub changed_at: Timestamp,
    /// Who changed them last. `None`: that record cannot be read.
    pub changed_by: Option<Actor>,
}

impl Summary for SettingsSummary {
    type Event = SettingsEvent;

    fn begin(fact: &Fact<SettingsEvent>) -> Option<Self> {
        Some(Self { changed_at: fact.at, changed_by: Some(fact.by.clone()) })
    }

    fn take(&mut self, fact: &Fact<SettingsEvent>) {
        (self.changed_at, self.changed_by) = (fact.at, Some(fact.by.clone()));
    }

    fn unreadable(_id: &str, at: Timestamp) -> Self {
        Self { changed_at: at, changed_by: None }
    }

    fn is_live(&self) -> bool {
        // Always: a server must know its settings before it leases anything.
        true
    }
}

impl Aggregate for Settings {
    const KIND: &'static str = "settings";
    type Id = SettingsId;
    type Event = SettingsEvent;
    type Command = SettingsCommand;
    type Summary = SettingsSummary;

    fn decide(
        &self,
        command: &SettingsCommand,
        _by: &Actor,
        _now: Timestamp,
    ) -> Result<Vec<SettingsEvent>, Refusal> {
        decide::decide(self, command)
    }

    fn evolve(&mut self, fact: &Fact<SettingsEvent>) -> Result<(), IllegalEvent> {
        self.step(fact)
    }

    fn newest_at(&self) -> Timestamp {
        self.newest_at
    }

    fn is_idle(&self) -> bool {
        false
    }

    fn changes_idle(_event: &SettingsEvent) -> bool {
        false
    }

    fn to_snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("BUG: settings are always JSON")
    }

    fn from_snapshot(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    fn memory_bytes(&self) -> usize {
        let workers: usize = self.drained.iter().map(|worker| worker.as_str().len() + 64).sum();
        size_of::<Self>() + workers
    }

    fn summary(&self) -> Option<SettingsSummary> {
        let changed_by = Some(self.changed_by.clone()?);
        Some(SettingsSummary { changed_at: self.newest_at, changed_by })
    }
}
