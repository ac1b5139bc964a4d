//! The machines that do the work. Their clocks are wrong by up to a day and do not run evenly, so
//! nothing but lengths of time may be taken from them.

use std::collections::{BTreeMap, BTreeSet};

use towpath_engine::ids::RunId;

use crate::{
    book::Key,
    plans::{TAG, run_id},
    random::Rng,
    server::LEASE,
    world::{Ms, Step, World},
};

/// Jobs that one worker runs at once.
pub(crate) const SLOTS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    Failed(i32),
    Cancelled,
    Lost,
}

#[derive(Debug)]
pub(crate) enum ToServer {
    Hello {
        worker: usize,
        life: u64,
        held: BTreeSet<Key>,
    },
    Beat,
    /// It holds nothing and goes.
    Goodbye,
    Report {
        key: Key,
        outcome: Outcome,
    },
}

#[derive(Debug)]
pub(crate) enum FromServer {
    Welcome { held: BTreeSet<Key> },
    NameTaken,
    Assignment { key: Key, fence: usize },
    Cancel(Key),
    Recorded(Key),
}

/// An attempt on its machine, whoever watches over it.
struct Attempt {
    fence: usize,
    /// How it will end, or has ended.
    outcome: Outcome,
    running: bool,
    cancelled: bool,
    had_effect: bool,
    /// Which of several ends that are on their way is the true one.
    serial: u64,
}

pub(crate) struct Worker {
    pub(crate) up: bool,
    pub(crate) life: u64,
    /// Nobody starts it again.
    pub(crate) buried: bool,
    pub(crate) asleep_until: Ms,
    /// Its jobs sleep with it.
    pub(crate) all_asleep: bool,
    pub(crate) conn: Option<u64>,
    welcome: bool,
    attempts: BTreeMap<Key, Attempt>,
    /// Attempts that are no longer valid and are being ended.
    void: BTreeSet<Key>,
    /// What waits for the end of an older attempt of the same job.
    later: Vec<(Key, usize)>,
    /// Its clock, against true time: how far off, and how fast in parts of a thousand.
    clock_off: i64,
    clock_rate: u64,
    rude: bool,
    /// It works for this run alone.
    pub(crate) only: Option<RunId>,
}

/// The name of worker `number`.
pub(crate) fn name(number: usize) -> String {
    format!("w{number}")
}

/// The worker of this name.
pub(crate) fn number(name: &str) -> Option<usize> {
    name.strip_prefix('w')?.parse().ok()
}

pub(crate) fn tags(number: usize) -> Vec<String> {
    if number < 2 { vec![TAG.to_owned()] } else { Vec::new() }
}

impl Worker {
    pub(crate) fn new(number: usize, rude: bool, rng: &mut Rng) -> Self {
        Self {
            up: false,
            life: 0,
            buried: false,
            asleep_until: 0,
            all_asleep: false,
            conn: None,
            welcome: false,
            attempts: BTreeMap::new(),
            void: BTreeSet::new(),
            later: Vec::new(),
            clock_off: i64::try_from(rng.below(2 * 86_400_000)).unwrap_or(0) - 86_400_000,
            clock_rate: rng.between(950, 1_050),
            rude,
            only: (number == 2 && rng.chance(25)).then(|| run_id(0)),
        }
    }

    fn clock(&self, at: Ms) -> i64 {
        i64::try_from(at * self.clock_rate / 1_000).unwrap_or(0) + self.clock_off
    }

    /// The true length of what this machine takes for `length`.
    fn true_length(&self, now: Ms, length: Ms) -> Ms {
        let goal = self.clock(now) + i64::try_from(length).unwrap_or(0);
        let back = u64::try_from(goal - self.clock_off).unwrap_or(0) * 1_000 / self.clock_rate;
        back.saturating_sub(now) + 1
    }
}

impl World {
    fn sleeps(&self, worker: usize) -> Option<Ms> {
        let until = self.workers[worker].asleep_until;
        (until > self.now).then(|| until - self.now)
    }

    pub(crate) fn worker_up(&mut self, number: usize) {
        let worker = &mut self.workers[number];
        if worker.up || worker.buried {
            return;
        }
        worker.up = true;
        worker.life += 1;
        worker.asleep_until = 0;
        self.dial_soon(number);
    }

    fn dial_soon(&mut self, number: usize) {
        let life = self.workers[number].life;
        let pause = self.rng.mostly(1_000, 10_000);
        let wait = self.workers[number].true_length(self.now, pause);
        self.after(wait, Step::Dial { worker: number, life });
    }

    pub(crate) fn dial(&mut self, number: usize, life: u64) {
        let worker = &self.workers[number];
        if !worker.up || worker.life != life || worker.conn.is_some() {
            return;
        }
        if let Some(wait) = self.sleeps(number) {
            return self.after(wait, Step::Dial { worker: number, life });
        }
        if !self.server.up || self.parted[number] > self.now {
            return self.dial_soon(number);
        }
        let held = self.workers[number].held_attempts();
        let conn = self.open_line(number);
        self.workers[number].conn = Some(conn);
        self.workers[number].welcome = false;
        self.send_to_server(conn, ToServer::Hello { worker: number, life, held });
    }

    pub(crate) fn worker_sees_cut(&mut self, conn: u64) {
        let Some(number) = self.conns.get(&conn).map(|line| line.worker) else { return };
        if self.workers[number].conn != Some(conn) {
            return;
        }
        if let Some(wait) = self.sleeps(number) {
            return self.after(wait, Step::WorkerSeesCut { conn });
        }
        self.workers[number].conn = None;
        self.workers[number].welcome = false;
        self.dial_soon(number);
    }

    pub(crate) fn beat(&mut self, number: usize, conn: u64) {
        if self.workers[number].conn != Some(conn) {
            return;
        }
        if let Some(wait) = self.sleeps(number) {
            return self.after(wait, Step::Beat { worker: number, conn });
        }
        self.send_to_server(conn, ToServer::Beat);
        let wait = self.workers[number].true_length(self.now, LEASE / 3);
        self.after(wait, Step::Beat { worker: number, conn });
    }

    pub(crate) fn worker_hears(&mut self, conn: u64, message: FromServer) {
        let Some(line) = self.conns.get(&conn) else { return };
        let (number, broken) = (line.worker, line.broken);
        if broken || self.workers[number].conn != Some(conn) {
            return;
        }
        if let Some(wait) = self.sleeps(number) {
            return self.after(wait, Step::ToWorker { conn, message });
        }
        match message {
            FromServer::Welcome { held } => self.take_up(number, conn, &held),
            FromServer::NameTaken => {
                // The process ends; somebody starts it again.
                self.worker_dies(number, false);
            }
            FromServer::Assignment { key, fence } => self.begin(number, key, fence),
            FromServer::Cancel(key) => self.cancel(number, &key),
            FromServer::Recorded(key) => self.forget(number, &key),
        }
    }

    /// Goes on with what counts, ends the rest, and tells what has ended.
    fn take_up(&mut self, number: usize, conn: u64, held: &BTreeSet<Key>) {
        self.workers[number].welcome = true;
        self.after(1, Step::Beat { worker: number, conn });
        let worker = &self.workers[number];
        let keys: Vec<Key> = worker.attempts.keys().cloned().collect();
        for key in keys {
            let counts = held.contains(&key);
            let worker = &self.workers[number];
            let ended = worker.attempts.get(&key).filter(|attempt| !attempt.running);
            let outcome = ended.map(|attempt| attempt.outcome);
            if let Some(outcome) = outcome.filter(|_| counts || worker.rude) {
                self.send_to_server(conn, ToServer::Report { key: key.clone(), outcome });
            }
            if !counts {
                self.check_dead(number, &key);
                self.workers[number].void.insert(key.clone());
                self.cancel(number, &key);
                if outcome.is_some() {
                    self.forget(number, &key);
                }
            }
        }
    }

    /// Nobody ends an attempt, or throws its result away, that the safe part of the log counts on.
    fn check_dead(&mut self, number: usize, key: &Key) {
        if self.settled.counts_on(key) {
            self.fail(format!("{} gives {key:?} up, which the log counts on", name(number)));
        }
    }

    fn begin(&mut self, number: usize, key: Key, fence: usize) {
        let past = |other: &Key| other.0 == key.0 && other.1 == key.1 && *other != key;
        if self.workers[number].void.iter().any(past) {
            self.workers[number].later.push((key, fence));
            return;
        }
        if let Some(other) = self.started.insert(key.clone(), number) {
            self.fail(format!("{key:?} runs on {} and {}", name(other), name(number)));
        }
        let mut all = self.workers[number].attempts.iter();
        if let Some((other, _)) = all.find(|(other, held)| past(other) && held.running) {
            self.fail(format!("{key:?} runs beside {other:?}"));
        }
        let length = self.rng.mostly(8_000, 2 * LEASE);
        let outcome = match self.rng.below(100) {
            0..78 => Outcome::Succeeded,
            _ => Outcome::Failed(1),
        };
        let serial = self.unique();
        let (running, cancelled, had_effect) = (true, false, false);
        let attempt = Attempt { fence, outcome, running, cancelled, had_effect, serial };
        self.workers[number].attempts.insert(key.clone(), attempt);
        let effect = self.rng.below(length);
        self.after(effect, Step::Effect { worker: number, key: key.clone() });
        self.after(length, Step::End { worker: number, key, serial });
    }

    pub(crate) fn effect(&mut self, number: usize, key: Key) {
        if let Some(wait) = self.sleeps(number).filter(|_| self.workers[number].all_asleep) {
            return self.after(wait, Step::Effect { worker: number, key });
        }
        let Some(attempt) = self.workers[number].attempts.get_mut(&key) else { return };
        if !attempt.running || attempt.had_effect {
            return;
        }
        attempt.had_effect = true;
        let fence = attempt.fence;
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
        let worker = &mut self.workers[number];
        let Some(attempt) = worker.attempts.get_mut(&key) else { return };
        if !attempt.running || attempt.serial != serial {
            return;
        }
        if attempt.outcome == Outcome::Succeeded && !attempt.had_effect {
            self.effect(number, key.clone());
        }
        let worker = &mut self.workers[number];
        let Some(attempt) = worker.attempts.get_mut(&key) else { return };
        attempt.running = false;
        let outcome = attempt.outcome;
        if !worker.up {
            return;
        }
        if worker.void.contains(&key) {
            return self.forget(number, &key);
        }
        if let (true, Some(conn)) = (worker.welcome, worker.conn) {
            let times = if self.rng.chance(15) { 2 } else { 1 };
            for _ in 0..times {
                self.send_to_server(conn, ToServer::Report { key: key.clone(), outcome });
            }
        }
    }

    fn cancel(&mut self, number: usize, key: &Key) {
        let serial = self.unique();
        let wait = self.rng.mostly(500, 5_000);
        let worker = &mut self.workers[number];
        let waiting = worker.later.extract_if(.., |(other, _)| other == key).next();
        if let Some((_, fence)) = waiting {
            // It never began.
            let (outcome, running, had_effect) = (Outcome::Cancelled, false, false);
            let attempt = Attempt { fence, outcome, running, cancelled: true, had_effect, serial };
            worker.attempts.insert(key.clone(), attempt);
            if let (true, Some(conn)) = (worker.welcome, worker.conn) {
                self.send_to_server(conn, ToServer::Report { key: key.clone(), outcome });
            }
        }
        let Some(attempt) = self.workers[number].attempts.get_mut(key) else { return };
        if !attempt.running || attempt.cancelled {
            return;
        }
        (attempt.cancelled, attempt.outcome, attempt.serial) = (true, Outcome::Cancelled, serial);
        self.after(wait, Step::End { worker: number, key: key.clone(), serial });
    }

    fn forget(&mut self, number: usize, key: &Key) {
        self.check_dead(number, key);
        let worker = &mut self.workers[number];
        worker.attempts.remove(key);
        worker.void.remove(key);
        let same = |other: &Key| other.0 == key.0 && other.1 == key.1;
        let waiting: Vec<(Key, usize)> =
            worker.later.extract_if(.., |(other, _)| same(other)).collect();
        for (key, fence) in waiting {
            self.begin(number, key, fence);
        }
    }

    /// The process ends in good order, if it holds nothing.
    pub(crate) fn worker_leaves(&mut self, number: usize) {
        let worker = &self.workers[number];
        let (Some(conn), true) = (worker.conn, worker.up && worker.welcome) else { return };
        if !worker.attempts.is_empty() || !worker.later.is_empty() || self.sleeps(number).is_some()
        {
            return;
        }
        self.send_to_server(conn, ToServer::Goodbye);
        let worker = &mut self.workers[number];
        (worker.up, worker.welcome, worker.conn) = (false, false, None);
        let down = self.rng.mostly(10_000, 3 * LEASE);
        self.after(down, Step::WorkerUp { worker: number });
    }

    /// The process dies. Its jobs continue and wait for the next one, or die with their machine.
    pub(crate) fn worker_dies(&mut self, number: usize, machine: bool) {
        let remembers = self.rng.chance(50);
        let worker = &mut self.workers[number];
        if !worker.up {
            return;
        }
        worker.up = false;
        worker.welcome = false;
        worker.void.clear();
        worker.later.clear();
        worker.asleep_until = 0;
        if machine {
            // Its journal may remember what ran.
            worker.attempts.retain(|_, attempt| !attempt.running || remembers);
            for attempt in worker.attempts.values_mut().filter(|attempt| attempt.running) {
                (attempt.running, attempt.outcome) = (false, Outcome::Lost);
            }
        }
        if let Some(conn) = self.workers[number].conn.take() {
            self.cut(conn);
        }
        let down = self.rng.mostly(10_000, 3 * LEASE);
        self.after(down, Step::WorkerUp { worker: number });
    }
}

fn number_of(worker: &str) -> usize {
    number(worker).unwrap_or(usize::MAX)
}

impl Worker {
    fn held_attempts(&self) -> BTreeSet<Key> {
        let later = self.later.iter().map(|(key, _)| key.clone());
        self.attempts.keys().filter(|key| !self.void.contains(*key)).cloned().chain(later).collect()
    }
}
