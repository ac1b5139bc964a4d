//! The scripts that a simulated machine runs: what they print, what effect they have, how they end.
//! Each continues whether or not a worker process watches it.

use std::collections::BTreeMap;

use towpath_engine::{event::FailureCause, ids::Digest};
use towpath_worker::{Adopted, ArtifactFile, Ended, protocol::Input};

use crate::{
    book::Key,
    driver::id_of,
    server::LEASE,
    worker::{SLOTS, name, number},
    world::{Step, World},
};

/// The one file that some attempts leave behind.
const FILE: &str = "file";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded { file: Option<u64> },
    Failed(i32),
    Cancelled,
    Lost,
}

/// What happens to a script, and is an event for the process that watches it.
#[derive(Debug)]
pub(crate) enum ScriptEvent {
    Printed,
    Ended,
}

/// An attempt on its machine, whichever process watches it.
pub(crate) struct Script {
    pub(crate) fence: usize,
    /// How it will end, or has ended.
    pub(crate) outcome: Outcome,
    pub(crate) running: bool,
    pub(crate) cancelled: bool,
    had_effect: bool,
    /// Which of several ends that are on their way is the true one.
    serial: u64,
    /// How much of its output is on this machine, in bytes.
    pub(crate) output: u64,
    /// The worker process that began or adopted it.
    watched_by: u64,
}

impl World {
    pub(crate) fn begin(&mut self, number: usize, key: Key, fence: usize) {
        let past = |other: &Key| other.0 == key.0 && other.1 == key.1 && *other != key;
        if let Some(other) = self.started.insert(key.clone(), number) {
            self.fail(format!("{key:?} runs on {} and {}", name(other), name(number)));
        }
        let mut all = self.workers[number].scripts.iter();
        if let Some((other, _)) = all.find(|(other, script)| past(other) && script.running) {
            self.fail(format!("{key:?} runs beside {other:?}"));
        }
        let running = self.workers[number].scripts.values().filter(|script| script.running);
        if running.filter(|script| !script.cancelled).count() >= SLOTS as usize {
            self.fail(format!("{key:?} is one job too many for {}", name(number)));
        }
        // Some run longer than a lease lasts: so that an attempt can be invalid while it runs.
        let longest = if self.rng.chance(20) { 3 * LEASE } else { 8_000 };
        let length = self.rng.between(1, longest);
        let outcome = match self.rng.below(100) {
            0..78 => {
                let file = self.rng.chance(20).then(|| self.rng.below(150_000));
                Outcome::Succeeded { file }
            }
            _ => Outcome::Failed(1),
        };
        let serial = self.unique();
        let script = Script {
            fence,
            outcome,
            running: true,
            cancelled: false,
            had_effect: false,
            serial,
            output: 0,
            watched_by: self.workers[number].life,
        };
        self.workers[number].scripts.insert(key.clone(), script);
        for _ in 0..self.rng.below(3) {
            let at = self.rng.below(length);
            self.after(at, Step::Print { worker: number, key: key.clone() });
        }
        let effect = self.rng.below(length);
        self.after(effect, Step::Effect { worker: number, key: key.clone() });
        self.after(length, Step::End { worker: number, key, serial });
    }

    /// The process continues what an earlier one began. Where the server has more output than this
    /// machine, its place is filled.
    pub(crate) fn adopt(&mut self, number: usize, key: &Key, output_bytes: u64) {
        let worker = &mut self.workers[number];
        let life = worker.life;
        let Some(script) = worker.scripts.get_mut(key) else {
            return self.fail(format!("{key:?} is adopted, and there is no such script"));
        };
        script.output = script.output.max(output_bytes);
        script.watched_by = life;
        let running = script.running;
        self.report_script(number, key, ScriptEvent::Printed);
        if !running {
            self.report_script(number, key, ScriptEvent::Ended);
        }
    }

    /// Sends the process that watches a script an event, a little later.
    fn report_script(&mut self, number: usize, key: &Key, event: ScriptEvent) {
        let life = self.workers[number].life;
        // In the order in which it happened: all of it takes the same time.
        self.after(2, Step::Script { worker: number, life, key: key.clone(), event });
    }

    pub(crate) fn script_changed(
        &mut self,
        number: usize,
        life: u64,
        key: Key,
        event: ScriptEvent,
    ) {
        if let Some(wait) = self.sleeps(number) {
            return self.after(wait, Step::Script { worker: number, life, key, event });
        }
        let worker = &self.workers[number];
        let script = worker.scripts.get(&key).filter(|script| script.watched_by == life);
        let Some(script) = script.filter(|_| worker.up && worker.life == life) else { return };
        let attempt = id_of(&key);
        let input = match event {
            ScriptEvent::Printed => Input::OutputGrew { attempt, length: script.output },
            ScriptEvent::Ended => {
                let outcome = adopted(script.outcome);
                Input::Ended { attempt, outcome, incomplete: None }
            }
        };
        self.feed_worker(number, input);
    }

    pub(crate) fn print(&mut self, number: usize, key: Key) {
        if let Some(wait) = self.sleeps(number).filter(|_| self.workers[number].all_asleep) {
            return self.after(wait, Step::Print { worker: number, key });
        }
        let bytes = self.rng.mostly(1_000, 150_000);
        let Some(script) = self.workers[number].scripts.get_mut(&key) else { return };
        if script.running {
            script.output += bytes;
            self.report_script(number, &key, ScriptEvent::Printed);
        }
    }

    pub(crate) fn effect(&mut self, number: usize, key: Key) {
        if let Some(wait) = self.sleeps(number).filter(|_| self.workers[number].all_asleep) {
            return self.after(wait, Step::Effect { worker: number, key });
        }
        let Some(script) = self.workers[number].scripts.get_mut(&key) else { return };
        if !script.running || script.had_effect {
            return;
        }
        script.had_effect = true;
        let fence = script.fence;
        let newer = self.ledger.iter().find(|((run, job, attempt), effects)| {
            let same = *run == key.0 && *job == key.1;
            same && (*attempt > key.2) != effects.iter().any(|(other, _)| *other > fence)
                && *attempt != key.2
        });
        let newer = newer.map(|(other, _)| other.clone());
        if let Some(other) = newer {
            self.fail(format!("the fences of {key:?} and {other:?} are in the wrong order"));
        }
        match self.settled.lease(&key.0, &key.1) {
            Some((attempt, by, at)) if attempt == key.2 => {
                if at != fence || number_of(by) != number {
                    self.fail(format!("{key:?} has an effect under fence {fence}, not {at}"));
                }
            }
            Some((attempt, _, at)) if attempt < key.2 || at < fence => {
                self.fail(format!("{key:?} has an effect before its lease is safe"));
            }
            Some(_) | None => {
                let safe = self.server.disk.durable;
                if fence > safe {
                    self.fail(format!("{key:?} has fence {fence}, and {safe} records are safe"));
                }
            }
        }
        self.ledger.entry(key).or_default().push((fence, number));
    }

    pub(crate) fn job_ends(&mut self, number: usize, key: Key, serial: u64) {
        if let Some(wait) = self.sleeps(number).filter(|_| self.workers[number].all_asleep) {
            return self.after(wait + 1, Step::End { worker: number, key, serial });
        }
        let Some(script) = self.workers[number].scripts.get(&key) else { return };
        if !script.running || script.serial != serial {
            return;
        }
        if matches!(script.outcome, Outcome::Succeeded { .. }) && !script.had_effect {
            self.effect(number, key.clone());
        }
        if let Some(script) = self.workers[number].scripts.get_mut(&key) {
            script.running = false;
        }
        self.report_script(number, &key, ScriptEvent::Ended);
    }

    pub(crate) fn cancel(&mut self, number: usize, key: &Key) {
        let serial = self.unique();
        let wait = self.rng.mostly(500, 5_000);
        let Some(script) = self.workers[number].scripts.get_mut(key) else { return };
        if !script.running || script.cancelled {
            return;
        }
        (script.cancelled, script.outcome, script.serial) = (true, Outcome::Cancelled, serial);
        self.after(wait, Step::End { worker: number, key: key.clone(), serial });
    }
}

/// The number of the worker of this name.
fn number_of(worker: &str) -> usize {
    number(worker).unwrap_or(usize::MAX)
}

/// The end of a script, as the state machine is fed it.
pub(crate) fn adopted(outcome: Outcome) -> Adopted {
    match outcome {
        Outcome::Succeeded { file } => {
            let artifacts = file.map(|size| ArtifactFile {
                path: FILE.to_owned(),
                absolute: FILE.into(),
                size,
                sha256: Digest::of(b""),
            });
            let artifacts = artifacts.into_iter().collect();
            Adopted::Ended(Ended::Succeeded { ran_ms: 1, outputs: BTreeMap::new(), artifacts })
        }
        Outcome::Failed(code) => {
            let cause = FailureCause::ExitCode(code);
            Adopted::Ended(Ended::Failed { cause, ran_ms: 1 })
        }
        Outcome::Cancelled => Adopted::Ended(Ended::Cancelled { ran_ms: 1 }),
        Outcome::Lost => Adopted::Lost("its process is gone".to_owned()),
    }
}

/// What a report says. Every cause but an exit code is found by the worker itself.
pub(crate) fn outcome_of(outcome: &Adopted) -> Outcome {
    match outcome {
        Adopted::Ended(Ended::Succeeded { artifacts, .. }) => {
            Outcome::Succeeded { file: artifacts.first().map(|file| file.size) }
        }
        Adopted::Ended(Ended::Failed { cause: FailureCause::ExitCode(code), .. }) => {
            Outcome::Failed(*code)
        }
        Adopted::Ended(Ended::Cancelled { .. }) => Outcome::Cancelled,
        Adopted::Ended(Ended::Failed { .. }) | Adopted::Lost(_) | Adopted::NeverStarted => {
            Outcome::Lost
        }
    }
}
