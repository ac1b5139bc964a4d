//! What settings change in the server: the scheduler gives drained workers nothing new.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex as SyncMutex},
};

use towpath_engine::{
    event::Fact,
    ids::{Actor, SettingsId, WorkerName},
    scheduler::Input,
    settings::{SERVER_SETTINGS, Settings, SettingsCommand, SettingsEvent},
    time::Timestamp,
};
use towpath_storage::Version;

use crate::{
    command_error::CommandError,
    shared_scheduler::SharedScheduler,
    streams::{StreamHooks, Streams},
    sync::locked,
};

/// The settings of a store.
pub(crate) type StoredSettings = Streams<Settings, SettingsHooks>;

/// See the module.
#[derive(Debug)]
pub(crate) struct SettingsHooks {
    scheduler: Arc<SharedScheduler>,
    told: SyncMutex<Told>,
}

/// What the scheduler was told of the settings.
#[derive(Debug, Default)]
struct Told {
    /// Everything up to this version.
    version: Version,
    /// Durable facts that came before an earlier one, by their version. Empty at rest.
    early: BTreeMap<Version, SettingsEvent>,
}

impl SettingsHooks {
    pub(crate) fn new(scheduler: Arc<SharedScheduler>) -> Self {
        Self { scheduler, told: SyncMutex::default() }
    }

    fn tell(&self, event: &SettingsEvent) {
        let Some((worker, drained)) = event.drain() else { return };
        tracing::info!(%worker, drained, "worker drain changed");
        self.scheduler.on(Input::DrainChanged { worker: worker.clone(), drained });
    }
}

impl StreamHooks<Settings> for SettingsHooks {
    type Pending = ();

    fn prepare<'c>(
        &self,
        _id: &SettingsId,
        _settings: &Settings,
        command: &'c SettingsCommand,
    ) -> Result<Cow<'c, SettingsCommand>, CommandError> {
        let SettingsCommand::SetDrained { worker, drained, .. } = command;
        let connected = self.scheduler.inspect(|all| all.worker(worker).is_some());
        let (worker, drained) = (worker.clone(), *drained);
        Ok(Cow::Owned(SettingsCommand::SetDrained { worker, drained, connected }))
    }

    fn loaded(&self, _id: &SettingsId, settings: &Settings, version: Version, _at: Timestamp) {
        let mut told = locked(&self.told);
        for worker in settings.drained() {
            let (worker, drained) = (worker.clone(), true);
            self.scheduler.on(Input::DrainChanged { worker, drained });
        }
        told.version = told.version.max(version);
    }

    // Once it is durable and not before: a drain that is refused by the disk has not happened, and
    // nothing would give the worker jobs again.
    fn durable(&self, _id: &SettingsId, version: Version, facts: &[Fact<SettingsEvent>], (): ()) {
        let mut told = locked(&self.told);
        let first = version + 1 - facts.len() as Version;
        let numbered = (first..).zip(facts).filter(|(nth, _)| *nth > told.version);
        let numbered: Vec<_> = numbered.map(|(nth, fact)| (nth, fact.event.clone())).collect();
        told.early.extend(numbered);
        // In the order of the log: a drain and its end that change places would last for ever.
        loop {
            let next = told.version + 1;
            let Some(event) = told.early.remove(&next) else { break };
            self.tell(&event);
            told.version = next;
        }
    }
}

impl StoredSettings {
    /// Gives the worker of this name nothing new, or jobs again.
    pub(crate) async fn set_drained(
        self: &Arc<Self>,
        worker: WorkerName,
        drained: bool,
        by: &Actor,
    ) -> Result<(), CommandError> {
        let command = SettingsCommand::SetDrained { worker, drained, connected: false };
        self.execute(&SERVER_SETTINGS.into(), command, by).await.map(drop)
    }

    /// The workers that are drained, connected or not.
    pub(crate) async fn drained(&self) -> Result<Vec<WorkerName>, CommandError> {
        let drained = |settings: &crate::streams::Loaded<Settings>| {
            settings.state.drained().cloned().collect()
        };
        self.read_durable(&SERVER_SETTINGS.into(), drained).await
    }
}
