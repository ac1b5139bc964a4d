//! One more fact about the settings: what it changes, and whether it may.

use super::{Settings, SettingsEvent};
use crate::{any_event::IllegalEvent, event::Fact};

impl Settings {
    /// Takes in one more fact. After an error the settings are as they were.
    pub(super) fn step(&mut self, fact: &Fact<SettingsEvent>) -> Result<(), IllegalEvent> {
        let illegal = |state: &str| Err(IllegalEvent::new(&fact.event, state));
        if fact.at < self.newest_at {
            return illegal(&format!("it is {} already", self.newest_at));
        }
        match &fact.event {
            SettingsEvent::WorkerDrained { worker } => {
                if !self.drained.insert(worker.clone()) {
                    return illegal("the worker is drained already");
                }
            }
            SettingsEvent::WorkerResumed { worker } => {
                if !self.drained.remove(worker) {
                    return illegal("the worker is not drained");
                }
            }
        }
        self.newest_at = fact.at;
        self.changed_by = Some(fact.by.clone());
        Ok(())
    }
}
