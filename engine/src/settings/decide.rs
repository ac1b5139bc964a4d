//! What an operator wants of the settings.

use super::{Settings, SettingsEvent};
use crate::{ids::WorkerName, refusal::Refusal};

/// Most workers that are drained at once. Names of workers that come and go would else pile up in
/// memory and in every snapshot.
pub const DRAINED_MAX: usize = 10_000;

/// What is wanted of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsCommand {
    /// Give the worker nothing new, or jobs again.
    SetDrained {
        /// The worker.
        worker: WorkerName,
        /// Whether it is to be drained.
        drained: bool,
        /// Whether it is connected now. The server fills it in.
        connected: bool,
    },
}

/// The events that `command` means. None: the settings are so already.
pub(super) fn decide(
    settings: &Settings,
    command: &SettingsCommand,
) -> Result<Vec<SettingsEvent>, Refusal> {
    match command {
        SettingsCommand::SetDrained { worker, drained, connected } => {
            set_drained(settings, worker, *drained, *connected)
        }
    }
}

fn set_drained(
    settings: &Settings,
    worker: &WorkerName,
    drained: bool,
    connected: bool,
) -> Result<Vec<SettingsEvent>, Refusal> {
    let worker = worker.clone();
    match (settings.is_drained(&worker), drained) {
        // A name with a typing error would else be drained for ever.
        (false, _) if !connected => Err(Refusal::WorkerUnknown { worker }),
        (false, true) if settings.drained.len() >= DRAINED_MAX => {
            let bounds = format!("at most {DRAINED_MAX}");
            Err(Refusal::ArgumentOutOfBounds { what: "the number of drained workers", bounds })
        }
        (false, true) => Ok(vec![SettingsEvent::WorkerDrained { worker }]),
        (true, false) => Ok(vec![SettingsEvent::WorkerResumed { worker }]),
        (true, true) | (false, false) => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        aggregate::{Aggregate as _, carry_out},
        event::Fact,
        ids::Actor,
        time::Timestamp,
    };

    /// What `commands` record, one after the other, and the settings after them.
    fn recorded(commands: &[SettingsCommand]) -> (Vec<SettingsEvent>, Settings) {
        let (mut settings, mut all) = (Settings::default(), Vec::new());
        for command in commands {
            let by = Actor::human("ana");
            all.extend(carry_out(&mut settings, command, &by, Timestamp(1)).unwrap());
        }
        let facts: Vec<Fact<SettingsEvent>> = all.into_iter().map(|(fact, _)| fact).collect();
        let mut replayed = Settings::default();
        for fact in &facts {
            replayed.evolve(fact).unwrap();
        }
        assert_eq!(replayed, settings, "a replay reaches the same settings");
        assert_eq!(Settings::from_snapshot(&settings.to_snapshot()).unwrap(), settings);
        (facts.into_iter().map(|fact| fact.event).collect(), settings)
    }

    fn set(worker: &str, drained: bool) -> SettingsCommand {
        SettingsCommand::SetDrained { worker: worker.into(), drained, connected: true }
    }

    #[test]
    fn a_worker_is_drained_once_and_resumed_once() {
        let commands = [set("w", true), set("w", true), set("v", false), set("w", false)];

        let (events, settings) = recorded(&commands);

        let (drained, resumed) = ("w".into(), "w".into());
        assert_eq!(
            events,
            [
                SettingsEvent::WorkerDrained { worker: drained },
                SettingsEvent::WorkerResumed { worker: resumed }
            ]
        );
        assert_eq!(settings.drained().count(), 0);
    }

    #[test]
    fn a_worker_that_is_not_connected_is_resumed_and_not_drained() {
        let away = |worker: &str, drained| SettingsCommand::SetDrained {
            worker: worker.into(),
            drained,
            connected: false,
        };
        let (_, mut settings) = recorded(&[set("w", true), away("w", true), away("w", false)]);
        assert_eq!(settings.drained().count(), 0);

        let by = Actor::human("ana");
        let refused = carry_out(&mut settings, &away("typo", true), &by, Timestamp(2));
        let unknown = Refusal::WorkerUnknown { worker: "typo".into() };
        assert_eq!(refused, Err(unknown.into()));
    }

    #[test]
    fn no_more_workers_are_drained_than_may_be() {
        let many: Vec<_> = (0..DRAINED_MAX).map(|n| set(&format!("w{n}"), true)).collect();
        let (_, mut settings) = recorded(&many);
        let by = Actor::human("ana");

        let refused = carry_out(&mut settings, &set("one more", true), &by, Timestamp(2));

        assert!(refused.is_err());
        assert!(carry_out(&mut settings, &set("w1", false), &by, Timestamp(2)).is_ok());
        assert!(carry_out(&mut settings, &set("one more", true), &by, Timestamp(2)).is_ok());
    }

    #[test]
    fn what_cannot_have_happened_is_not_replayed() {
        let fact = |at, event| Fact { at: Timestamp(at), by: Actor::human("ana"), event };
        let drained = || SettingsEvent::WorkerDrained { worker: "w".into() };
        let mut settings = Settings::default();
        settings.evolve(&fact(5, drained())).unwrap();
        let before = settings.clone();

        for illegal in [
            fact(5, drained()),
            fact(4, SettingsEvent::WorkerResumed { worker: "w".into() }),
            fact(5, SettingsEvent::WorkerResumed { worker: "v".into() }),
        ] {
            assert!(settings.evolve(&illegal).is_err(), "{illegal:?}");
            assert_eq!(settings, before);
        }
    }
}
