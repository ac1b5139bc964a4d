//! The machines that do the work: each drives the shipped state machine of a worker. Simulated are
//! the scripts and what they print, the machines' clocks and sleeps, and the connections.
//!
//! Their clocks are wrong by up to a day and do not run evenly, so nothing but lengths of time may
//! be taken from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use towpath_engine::ids::{AttemptId, RunId};
use towpath_worker::protocol::{
    ANSWER_WITHIN, Cause, ConnectionId, Effect, EndReason, Greeting, Input, Message, Part,
    Protocol, Settings,
};

use crate::{
    book::Key,
    driver::{id_of, key_of},
    plans::{TAG, run_id},
    random::Rng,
    script::{Outcome, Script, outcome_of},
    server::LEASE,
    world::{Ms, Plant, Step, World},
};

/// Jobs that one worker runs at once.
pub(crate) const SLOTS: u32 = 2;

#[derive(Debug)]
pub(crate) enum ToServer {
    Hello {
        worker: usize,
        life: u64,
        greeting: Greeting,
    },
    Heartbeat,
    Drain,
    /// It holds nothing and leaves.
    Goodbye,
    Output {
        key: Key,
        offset: u64,
        length: u64,
    },
    File {
        key: Key,
        offset: u64,
        length: u64,
    },
    Report {
        key: Key,
        outcome: Outcome,
        output_bytes: u64,
    },
}

#[derive(Debug)]
pub(crate) enum FromServer {
    Welcome { held: BTreeMap<Key, u64> },
    NameTaken,
    Assignment { key: Key, fence: usize },
    Cancel(Key),
    Recorded(Key),
    Heartbeat,
}

pub(crate) struct Worker {
    pub(crate) up: bool,
    pub(crate) life: u64,
    /// It is not started again.
    pub(crate) buried: bool,
    pub(crate) asleep_until: Ms,
    /// Its jobs sleep with it.
    pub(crate) all_asleep: bool,
    pub(crate) conn: Option<u64>,
    /// The state machine that ships, of the process that is up. It is passed the fence of a job.
    protocol: Option<Protocol<usize>>,
    /// How the state machine numbers the connection.
    connection: ConnectionId,
    /// What it may send something about in this connection.
    confirmed: BTreeSet<Key>,
    booted: Ms,
    /// The newest alarm that was set.
    alarm: Option<(Ms, u64)>,
    pub(crate) scripts: BTreeMap<Key, Script>,
    /// Its clock, against true time: how far off, and how fast in parts of a thousand.
    clock_off: i64,
    clock_rate: u64,
    rude: bool,
    jobs_max: Option<u32>,
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
            protocol: None,
            connection: ConnectionId(0),
            confirmed: BTreeSet::new(),
            booted: 0,
            alarm: None,
            scripts: BTreeMap::new(),
            clock_off: i64::try_from(rng.below(2 * 86_400_000)).unwrap_or(0) - 86_400_000,
            clock_rate: rng.between(950, 1_050),
            rude,
            jobs_max: rng.chance(20).then(|| u32::try_from(rng.between(1, 4)).unwrap_or(1)),
            only: (number == 2 && rng.chance(25)).then(|| run_id(0)),
        }
    }

    fn clock(&self, at: Ms) -> i64 {
        i64::try_from(at * self.clock_rate / 1_000).unwrap_or(0) + self.clock_off
    }

    /// The time of the state machine: since its process began, by the clock of its machine.
    fn elapsed(&self, now: Ms) -> Duration {
        Duration::from_millis(u64::try_from(self.clock(now) - self.clock(self.booted)).unwrap_or(0))
    }

    /// The true length of what this machine takes for `length`.
    fn true_length(&self, now: Ms, length: Ms) -> Ms {
        let goal = self.clock(now) + i64::try_from(length).unwrap_or(0);
        let back = u64::try_from(goal - self.clock_off).unwrap_or(0) * 1_000 / self.clock_rate;
        back.saturating_sub(now) + 1
    }
}

impl World {
    pub(crate) fn sleeps(&self, worker: usize) -> Option<Ms> {
        let until = self.workers[worker].asleep_until;
        (until > self.now).then(|| until - self.now)
    }

    pub(crate) fn worker_up(&mut self, number: usize) {
        let random = self.rng.below(u64::MAX);
        let now = self.now;
        let worker = &mut self.workers[number];
        if worker.up || worker.buried {
            return;
        }
        worker.up = true;
        worker.life += 1;
        worker.asleep_until = 0;
        (worker.booted, worker.alarm) = (now, None);
        let settings = Settings {
            slots: SLOTS,
            jobs_max: worker.jobs_max,
            reconnect: true,
            idle: None,
            report_within: None,
            answer_within: ANSWER_WITHIN,
        };
        let found = worker.scripts.keys().map(id_of);
        worker.protocol = Some(Protocol::new(settings, found, random));
        self.feed_worker(number, Input::Tick);
    }

    /// Feeds the state machine of a worker what happened, and does what it says.
    pub(crate) fn feed_worker(&mut self, number: usize, input: Input<usize>) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let now = self.now;
            let worker = &mut self.workers[number];
            let elapsed = worker.elapsed(now);
            let Some(protocol) = &mut worker.protocol else { return };
            let mut effects = Vec::new();
            protocol.on(input, elapsed, &mut effects);
            for effect in effects {
                self.note(|| format!("  {} {effect:?}", name(number)));
                inputs.extend(self.carry_out(number, effect));
            }
        }
        self.send_waiting(number);
        self.set_alarm(number);
    }

    /// Does what a worker's state machine wants done. Answers what comes of it at once.
    fn carry_out(&mut self, number: usize, effect: Effect<usize>) -> Option<Input<usize>> {
        match effect {
            Effect::Connect { connection, greeting } => self.connect(number, connection, greeting),
            Effect::Disconnect { .. } => {
                if let Some(conn) = self.workers[number].conn.take() {
                    self.cut(conn);
                }
            }
            Effect::Begin { attempt, job } => self.begin(number, key_of(&attempt), job),
            Effect::Adopt { attempt, output_bytes } => {
                self.adopt(number, &key_of(&attempt), output_bytes);
            }
            Effect::Cancel { attempt } => self.cancel(number, &key_of(&attempt)),
            Effect::Forget { attempt, .. } => {
                let key = key_of(&attempt);
                self.check_dead(number, &key);
                if self.workers[number].scripts.remove(&key).is_some_and(|script| script.running) {
                    self.fail(format!("{key:?} is forgotten while it runs"));
                }
                return Some(Input::Cleared { attempt });
            }
            Effect::Stop(reason) => self.worker_stops(number, reason),
            Effect::CheckDisk | Effect::Notice(_) => {}
        }
        None
    }

    fn connect(&mut self, number: usize, connection: ConnectionId, greeting: Greeting) {
        let life = self.workers[number].life;
        self.workers[number].connection = connection;
        self.workers[number].confirmed.clear();
        if !self.server.up || self.parted[number] > self.now {
            let wait = self.rng.mostly(50, 5_000);
            return self.after(wait, Step::Unreached { worker: number, life, connection });
        }
        let conn = self.open_line(number);
        self.workers[number].conn = Some(conn);
        self.send_to_server(conn, ToServer::Hello { worker: number, life, greeting });
    }

    pub(crate) fn unreached(&mut self, number: usize, life: u64, connection: ConnectionId) {
        if self.workers[number].life == life {
            let cause = Cause::Lost;
            self.feed_worker(number, Input::Disconnected { connection, cause });
        }
    }

    /// Sends what the state machine wants sent: the connection of a simulated worker has room.
    fn send_waiting(&mut self, number: usize) {
        while let Some(conn) = self.workers[number].conn {
            let Some(protocol) = &mut self.workers[number].protocol else { return };
            let message = protocol.next_control().or_else(|| protocol.next_upload(|_| true));
            let Some(message) = message else { return };
            if let Message::Part { attempt, .. } = &message {
                // What a simulated worker sends is read at once.
                protocol.part_sent(attempt);
            }
            let message = match message {
                Message::Heartbeat => ToServer::Heartbeat,
                Message::Drain => ToServer::Drain,
                Message::Goodbye => ToServer::Goodbye,
                Message::Part { attempt, part: Part::Output { offset, length } } => {
                    ToServer::Output { key: key_of(&attempt), offset, length }
                }
                Message::Part { attempt, part: Part::Artifact { offset, length, .. } } => {
                    ToServer::File { key: key_of(&attempt), offset, length }
                }
                Message::Report { attempt, outcome, output_bytes } => {
                    let (key, outcome) = (key_of(&attempt), outcome_of(&outcome));
                    if self.plant == Plant::ForgetReported {
                        let connection = self.workers[number].connection;
                        self.send_to_server(conn, ToServer::Report { key, outcome, output_bytes });
                        self.feed_worker(number, Input::Recorded { connection, attempt });
                        continue;
                    }
                    ToServer::Report { key, outcome, output_bytes }
                }
            };
            self.send_checked(number, conn, message);
        }
    }

    /// A worker sends nothing about what the server has not confirmed or assigned in this session.
    fn send_checked(&mut self, number: usize, conn: u64, message: ToServer) {
        let (ToServer::Output { key, .. }
        | ToServer::File { key, .. }
        | ToServer::Report { key, .. }) = &message
        else {
            return self.send_to_server(conn, message);
        };
        if !self.workers[number].confirmed.contains(key) {
            self.fail(format!("{} sends something of {key:?}, which is void", name(number)));
        }
        if let ToServer::Report { key, outcome, output_bytes } = &message
            && self.rng.chance(15)
        {
            let (key, outcome, output_bytes) = (key.clone(), *outcome, *output_bytes);
            self.send_to_server(conn, ToServer::Report { key, outcome, output_bytes });
        }
        self.send_to_server(conn, message);
    }

    fn set_alarm(&mut self, number: usize) {
        let now = self.now;
        let worker = &self.workers[number];
        let wake = worker.protocol.as_ref().and_then(Protocol::next_wake);
        let Some(wake) = wake else { return };
        let wait = wake.saturating_sub(worker.elapsed(now));
        let at = now + worker.true_length(now, u64::try_from(wait.as_millis()).unwrap_or(0) + 1);
        if worker.alarm.is_some_and(|(before, _)| before > now && before <= at) {
            // It rings first, and is set again then.
            return;
        }
        let serial = self.unique();
        self.workers[number].alarm = Some((at, serial));
        self.after(at - now, Step::Alarm { worker: number, serial });
    }

    pub(crate) fn alarm(&mut self, number: usize, serial: u64) {
        if self.workers[number].alarm.is_none_or(|(_, newest)| newest != serial) {
            return;
        }
        if let Some(wait) = self.sleeps(number) {
            return self.after(wait, Step::Alarm { worker: number, serial });
        }
        self.workers[number].alarm = None;
        if self.plant == Plant::TrustServer {
            let connection = self.workers[number].connection;
            self.feed_worker(number, Input::Heartbeat { connection });
        }
        self.feed_worker(number, Input::Tick);
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
        self.disconnect(number, Cause::Lost);
    }

    fn disconnect(&mut self, number: usize, cause: Cause) {
        let connection = self.workers[number].connection;
        self.feed_worker(number, Input::Disconnected { connection, cause });
    }

    pub(crate) fn worker_receives(&mut self, conn: u64, message: FromServer) {
        let Some(line) = self.conns.get(&conn) else { return };
        let (number, broken) = (line.worker, line.broken);
        if broken || self.workers[number].conn != Some(conn) {
            return;
        }
        if let Some(wait) = self.sleeps(number) {
            return self.after(wait, Step::ToWorker { conn, message });
        }
        let connection = self.workers[number].connection;
        let input = match message {
            FromServer::Welcome { held } => return self.welcome(number, conn, held),
            FromServer::NameTaken => {
                self.workers[number].conn = None;
                return self.disconnect(number, Cause::NameTaken);
            }
            FromServer::Assignment { key, fence } => {
                self.workers[number].confirmed.insert(key.clone());
                Input::Assigned { connection, attempt: id_of(&key), job: fence }
            }
            FromServer::Cancel(key) => Input::CancelRequested { connection, attempt: id_of(&key) },
            FromServer::Recorded(key) => Input::Recorded { connection, attempt: id_of(&key) },
            FromServer::Heartbeat => Input::Heartbeat { connection },
        };
        self.feed_worker(number, input);
    }

    /// What the server confirms continues, and all else is ended in the same step.
    fn welcome(&mut self, number: usize, conn: u64, held: BTreeMap<Key, u64>) {
        self.workers[number].confirmed = held.keys().cloned().collect();
        let ended = |script: &Script| (!script.running).then_some((script.outcome, script.output));
        let scripts = self.workers[number].scripts.iter();
        let all: Vec<_> = scripts.map(|(key, script)| (key.clone(), ended(script))).collect();
        for (key, ended) in all.iter().filter(|(key, _)| !held.contains_key(key)) {
            self.check_dead(number, key);
            if let (Some((outcome, output_bytes)), true) = (*ended, self.workers[number].rude) {
                // A worker that does not keep the rules: the fence must hold all the same.
                let key = key.clone();
                self.send_to_server(conn, ToServer::Report { key, outcome, output_bytes });
            }
        }
        let mut confirmed: BTreeMap<AttemptId, u64> =
            held.iter().map(|(key, bytes)| (id_of(key), *bytes)).collect();
        if self.plant == Plant::ResumeWrong {
            for (key, script) in &self.workers[number].scripts {
                confirmed.entry(id_of(key)).and_modify(|bytes| *bytes = script.output);
            }
        }
        if self.plant == Plant::KeepVoid {
            for (key, _) in &all {
                confirmed.entry(id_of(key)).or_default();
            }
        }
        let connection = self.workers[number].connection;
        let lease = Duration::from_millis(LEASE);
        self.feed_worker(number, Input::Welcome { connection, held: confirmed, lease });
        let scripts = &self.workers[number].scripts;
        let continues = |(key, script): &(&Key, &Script)| {
            script.running && !script.cancelled && !held.contains_key(*key)
        };
        let spared = scripts.iter().find(continues).map(|(key, _)| key.clone());
        if let Some(key) = spared {
            self.fail(format!("{key:?} is no longer valid, and {} continues it", name(number)));
        }
    }

    /// No worker ends an attempt, or throws its result away, that the safe part of the log counts on.
    fn check_dead(&mut self, number: usize, key: &Key) {
        if self.settled.counts_on(key) {
            self.fail(format!("{} gives {key:?} up, which the log counts on", name(number)));
        }
    }

    /// An order to stop: the process ends once it holds nothing.
    pub(crate) fn worker_leaves(&mut self, number: usize) {
        if self.sleeps(number).is_none() {
            self.feed_worker(number, Input::DrainRequested);
        }
    }

    fn worker_stops(&mut self, number: usize, reason: EndReason) {
        match reason {
            EndReason::Done if !self.workers[number].scripts.is_empty() => {
                self.fail(format!("{} stops and has not reported everything", name(number)));
            }
            // Another process has the name. It is started again later.
            EndReason::Done | EndReason::Refused => {}
            EndReason::Disconnected | EndReason::Unreported { .. } => {
                self.fail(format!("{} gives up: {reason:?}", name(number)));
            }
        }
        self.worker_dies(number, false);
    }

    /// The process dies. Its jobs continue and wait for the next one, or die with their machine.
    pub(crate) fn worker_dies(&mut self, number: usize, machine: bool) {
        let remembers = self.rng.chance(50);
        let left = self.rng.below(100);
        let worker = &mut self.workers[number];
        if !worker.up {
            return;
        }
        (worker.up, worker.protocol, worker.asleep_until) = (false, None, 0);
        if machine {
            // Its journal may remember what ran.
            worker.scripts.retain(|_, script| !script.running || remembers);
            for script in worker.scripts.values_mut() {
                // Output on its way to the disk is lost.
                script.output = script.output * left / 100;
                if script.running {
                    (script.running, script.outcome) = (false, Outcome::Lost);
                }
            }
        }
        if let Some(conn) = self.workers[number].conn.take() {
            self.cut(conn);
        }
        let down = self.rng.mostly(10_000, 3 * LEASE);
        self.after(down, Step::WorkerUp { worker: number });
    }
}
