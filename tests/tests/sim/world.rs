//! Virtual time: one queue of steps, taken one at a time, and what is checked after each.

use std::collections::{BTreeMap, VecDeque};

use towpath_engine::{
    event::Fact,
    ids::RunId,
    run::{Phase, Run},
    scheduler::Effect,
};
use towpath_worker::protocol::ConnectionId;

use crate::{
    book::{Book, Key},
    client::{Ask, Clients},
    random::Rng,
    script::ScriptEvent,
    server::{Report, Server},
    worker::{FromServer, ToServer, Worker},
};

/// Virtual milliseconds.
pub(crate) type Ms = u64;

/// How long after the last fault every run must have come to rest.
const REST_WITHIN: Ms = 3_600_000;
/// More steps than any history takes; beyond it something turns in a circle.
const STEPS_MAX: u64 = 200_000;

/// A rule that is broken on purpose, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    Nothing,
    /// Answers and assignments leave before what they rest on is safe.
    AnswerEarly,
    /// A report counts whatever attempt it is about.
    NoFence,
    /// A lease that lapses is not recorded as lost.
    ForgetLost,
    /// A welcome does not wait for what is being written.
    WelcomeEarly,
    /// After a failed append a run is read again without what is being written.
    StaleReload,
    /// After a failed append the locks of a run are not read again.
    StaleLocks,
    /// No run sees the locks that others hold.
    NoLocks,
    /// The time of the log stands still while the wall clock is behind it.
    FrozenClock,
    /// Orders to end an attempt do not always leave the server.
    LoseCancels,
    /// Leases expire after a quarter of their time.
    ExpireEarly,
    /// The same run is always given the free slot.
    UnfairTurns,
    /// A report of an attempt that the session does not hold is answered at once.
    AnswerUnheld,
    /// What operators say about workers does not reach the scheduler.
    IgnoreDrains,
    /// A worker forgets an attempt as soon as its report is sent.
    ForgetReported,
    /// A worker continues output from what it has, and not from what the server has.
    ResumeWrong,
    /// A worker continues attempts that the welcome did not confirm.
    KeepVoid,
    /// A worker assumes that its server is there, whatever it receives.
    TrustServer,
}

/// Something that happens at a moment.
#[derive(Debug)]
pub(crate) enum Step {
    ToServer { conn: u64, message: ToServer },
    ToWorker { conn: u64, message: FromServer },
    ServerSeesCut { conn: u64 },
    WorkerSeesCut { conn: u64 },
    Asked(Box<Ask>),
    Committed { life: u64, upto: usize },
    Recording { life: u64, report: Report },
    Look { life: u64 },
    Work { life: u64, effect: Effect },
    Deliver { life: u64, conn: u64 },
    Due { life: u64 },
    ServerUp,
    Unreached { worker: usize, life: u64, connection: ConnectionId },
    Alarm { worker: usize, serial: u64 },
    Script { worker: usize, life: u64, key: Key, event: ScriptEvent },
    Print { worker: usize, key: Key },
    Effect { worker: usize, key: Key },
    End { worker: usize, key: Key, serial: u64 },
    WorkerUp { worker: usize },
    ClientActs,
    ClientInsists { request: u64 },
    Chaos,
    Calm,
}

impl Step {
    /// Whether it waits while the server's machine sleeps.
    fn is_of_server(&self) -> bool {
        match self {
            Self::ToServer { .. }
            | Self::ServerSeesCut { .. }
            | Self::Asked(_)
            | Self::Committed { .. }
            | Self::Recording { .. }
            | Self::Look { .. }
            | Self::Work { .. }
            | Self::Deliver { .. }
            | Self::Due { .. } => true,
            Self::ToWorker { .. }
            | Self::WorkerSeesCut { .. }
            | Self::ServerUp
            | Self::Unreached { .. }
            | Self::Alarm { .. }
            | Self::Script { .. }
            | Self::Print { .. }
            | Self::Effect { .. }
            | Self::End { .. }
            | Self::WorkerUp { .. }
            | Self::ClientActs
            | Self::ClientInsists { .. }
            | Self::Chaos
            | Self::Calm => false,
        }
    }
}

/// A line between a worker and the server.
pub(crate) struct Conn {
    pub(crate) worker: usize,
    pub(crate) broken: bool,
    /// Nothing arrives at either end any more, and the worker is not told when it is cut.
    pub(crate) half_open: bool,
    /// When the newest message of either direction arrives: those after it arrive later.
    arrivals: [Ms; 2],
}

/// What became of one history.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) steps: u64,
    pub(crate) records: u64,
    pub(crate) crashes: u64,
    pub(crate) rest_after: Ms,
    pub(crate) dead_reports: u64,
}

pub(crate) struct World {
    pub(crate) now: Ms,
    pub(crate) rng: Rng,
    pub(crate) plant: Plant,
    pub(crate) server: Server,
    pub(crate) workers: Vec<Worker>,
    pub(crate) clients: Clients,
    pub(crate) conns: BTreeMap<u64, Conn>,
    pub(crate) calm: bool,
    /// No new sessions and no lost time before this moment, by worker.
    pub(crate) parted: Vec<Ms>,
    pub(crate) stalled: Vec<Ms>,
    /// New connections are half open before this moment, by worker.
    pub(crate) unanswered: Vec<Ms>,
    /// What all records say, and what the safe ones say.
    pub(crate) ahead: Book,
    pub(crate) settled: Book,
    pub(crate) shadows: BTreeMap<RunId, Run>,
    /// Every effect that any attempt had: its fence and its worker.
    pub(crate) ledger: BTreeMap<Key, Vec<(usize, usize)>>,
    pub(crate) started: BTreeMap<Key, usize>,
    pub(crate) tally: Tally,
    queue: BTreeMap<(Ms, u64), Step>,
    serial: u64,
    verbose: bool,
    pub(crate) trace: VecDeque<String>,
    failure: Option<String>,
}

impl World {
    pub(crate) fn new(seed: u64, plant: Plant, verbose: bool) -> Self {
        let mut rng = Rng::new(seed);
        let limit = u32::try_from(rng.between(1, 2)).unwrap_or(1);
        let rude = rng.chance(30);
        let workers = (0..3).map(|number| Worker::new(number, rude, &mut rng)).collect();
        let clients = Clients::new(&mut rng, limit);
        let mut world = Self {
            now: 0,
            plant,
            server: Server::new(rude, &mut rng),
            workers,
            clients,
            rng,
            conns: BTreeMap::new(),
            calm: false,
            parted: vec![0; 3],
            stalled: vec![0; 3],
            unanswered: vec![0; 3],
            ahead: Book::default(),
            settled: Book::default(),
            shadows: BTreeMap::new(),
            ledger: BTreeMap::new(),
            started: BTreeMap::new(),
            tally: Tally::default(),
            queue: BTreeMap::new(),
            serial: 0,
            verbose,
            trace: VecDeque::new(),
            failure: None,
        };
        world.server.freezes = plant == Plant::FrozenClock;
        let calm_at = world.rng.between(40_000, 150_000);
        world.after(calm_at, Step::Calm);
        world.after(1, Step::ServerUp);
        for worker in 0..3 {
            world.after(2, Step::WorkerUp { worker });
        }
        world.after(3, Step::ClientActs);
        world.after(5_000, Step::Chaos);
        for request in 0..world.clients.requests.len() as u64 {
            let at = world.rng.below(calm_at / 2);
            world.after(at, Step::ClientInsists { request });
        }
        world
    }

    pub(crate) fn unique(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn after(&mut self, wait: Ms, step: Step) {
        let serial = self.unique();
        self.queue.insert((self.now + wait, serial), step);
    }

    pub(crate) fn fail(&mut self, what: impl Into<String>) {
        self.failure.get_or_insert(what.into());
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        if self.verbose {
            if self.trace.len() == 40 {
                self.trace.pop_front();
            }
            self.trace.push_back(format!("{:>8} {}", self.now, what()));
        }
    }

    /// Plays until everything is at rest, or a rule is broken.
    pub(crate) fn play(&mut self) -> Result<Tally, String> {
        let mut calm_since = None;
        while let Some(((at, _), step)) = self.queue.pop_first() {
            self.now = at;
            self.tally.steps += 1;
            self.note(|| format!("{step:?}"));
            self.take(step);
            if let Some(failure) = &self.failure {
                return Err(failure.clone());
            }
            if self.tally.steps > STEPS_MAX {
                return Err("this turns in a circle".to_owned());
            }
            if !self.calm {
                continue;
            }
            let since = *calm_since.get_or_insert(at);
            let open = self.unrest();
            if open.is_none() {
                self.tally.rest_after = at - since;
                break;
            }
            if at > since + REST_WITHIN {
                return Err(format!("no rest: {}", open.unwrap_or_default()));
            }
        }
        self.last_look()?;
        self.tally.records = self.server.disk.records.len() as u64;
        Ok(self.tally)
    }

    fn take(&mut self, step: Step) {
        if self.now < self.server.paused_until && step.is_of_server() {
            // In the order in which they came.
            return self.after(self.server.paused_until - self.now, step);
        }
        match step {
            Step::ToServer { conn, message } => self.server_hears(conn, message),
            Step::ToWorker { conn, message } => self.worker_receives(conn, message),
            Step::ServerSeesCut { conn } => self.close_session(conn),
            Step::WorkerSeesCut { conn } => self.worker_sees_cut(conn),
            Step::Asked(ask) => self.server_is_asked(*ask),
            Step::Committed { life, upto } => self.committed(life, upto),
            Step::Recording { life, report } => self.record_report(life, report),
            Step::Look { life } => self.look(life),
            Step::Work { life, effect } => self.work(life, effect),
            Step::Deliver { life, conn } => self.deliver(life, conn),
            Step::Due { life } => self.due(life),
            Step::ServerUp => self.server_up(),
            Step::Unreached { worker, life, connection } => {
                self.unreached(worker, life, connection);
            }
            Step::Alarm { worker, serial } => self.alarm(worker, serial),
            Step::Script { worker, life, key, event } => {
                self.script_changed(worker, life, key, event);
            }
            Step::Print { worker, key } => self.print(worker, key),
            Step::Effect { worker, key } => self.effect(worker, key),
            Step::End { worker, key, serial } => self.job_ends(worker, key, serial),
            Step::WorkerUp { worker } => self.worker_up(worker),
            Step::ClientActs => self.client_acts(),
            Step::ClientInsists { request } => self.client_insists(request),
            Step::Chaos => self.chaos(),
            Step::Calm => self.calm_down(),
        }
    }

    /// Sends along a line: in order, and never out of a line that is cut.
    pub(crate) fn send_to_server(&mut self, conn: u64, message: ToServer) {
        if let Some(wait) = self.transit(conn, 0) {
            self.after(wait, Step::ToServer { conn, message });
        }
    }

    pub(crate) fn send_to_worker(&mut self, conn: u64, message: FromServer) {
        if let Some(wait) = self.transit(conn, 1) {
            self.after(wait, Step::ToWorker { conn, message });
        }
    }

    fn transit(&mut self, conn: u64, direction: usize) -> Option<Ms> {
        let latency = self.rng.mostly(20, 900);
        let now = self.now;
        let line = self.conns.get_mut(&conn).filter(|line| !line.broken && !line.half_open)?;
        let held_up = self.stalled[line.worker].max(now);
        let arrival = (held_up + latency).max(line.arrivals[direction]);
        line.arrivals[direction] = arrival;
        Some(arrival - now)
    }

    pub(crate) fn open_line(&mut self, worker: usize) -> u64 {
        let conn = self.unique();
        let half_open = self.unanswered[worker] > self.now;
        self.conns.insert(conn, Conn { worker, broken: false, half_open, arrivals: [0; 2] });
        conn
    }

    /// Cuts a line. What is under way on it is lost; each side notices at a time of its own.
    pub(crate) fn cut(&mut self, conn: u64) {
        let Some(line) = self.conns.get_mut(&conn).filter(|line| !line.broken) else { return };
        line.broken = true;
        let half_open = line.half_open;
        let (server, worker) = (self.rng.mostly(50, 20_000), self.rng.mostly(50, 20_000));
        self.after(server, Step::ServerSeesCut { conn });
        if !half_open {
            self.after(worker, Step::WorkerSeesCut { conn });
        }
    }

    pub(crate) fn carries(&self, conn: u64) -> bool {
        self.conns.get(&conn).is_some_and(|line| !line.broken)
    }

    /// Holds a new record against the rules, and against what memory says.
    pub(crate) fn witness(&mut self, run: &RunId, version: u64, position: usize, fact: &Fact) {
        if let Err(broken) = self.ahead.take(run, version, position, fact) {
            self.fail(format!("record {position} of {run}: {broken}"));
        }
        if let Err(broken) = self.shadows.entry(run.clone()).or_default().evolve(fact) {
            self.fail(format!("record {position} of {run} cannot be replayed: {broken}"));
        }
        if let towpath_engine::event::RunEvent::JobSucceeded { job, attempt, .. } = &fact.event {
            let key = (run.clone(), job.clone(), attempt.0);
            let effects = self.ledger.get(&key).map_or(0, Vec::len);
            if effects != 1 {
                self.fail(format!("{key:?} succeeded with {effects} effects"));
            }
        }
    }

    /// What is not at rest yet.
    fn unrest(&self) -> Option<String> {
        if let Some(request) = self.clients.requests.iter().find(|request| !request.answered) {
            return Some(format!("{} was never answered", request.create.run));
        }
        if !self.server.up || self.server.disk.durable < self.server.disk.records.len() {
            return Some("something is being written".to_owned());
        }
        self.shadows.iter().find_map(|(run, state)| {
            let gates = state.counts().at_gate > 0 && !state.can_move();
            let rests = matches!(state.phase(), Phase::Finished(_))
                || (gates && *state.phase() == Phase::Running);
            let counts = state.counts();
            (!rests).then(|| format!("{run} is {} with {counts:?}", state.phase().word()))
        })
    }

    fn last_look(&self) -> Result<(), String> {
        let disk = &self.server.disk;
        for run in disk.runs() {
            let (facts, _) = disk.read(&run, disk.durable)?;
            let replayed = Run::replay(&facts).map_err(|error| error.to_string())?;
            if self.shadows.get(&run) != Some(&replayed) {
                return Err(format!("the replay of {run} differs"));
            }
        }
        for (position, bytes) in &self.clients.acknowledged {
            let found = disk.records.get(position - 1).map(|record| &record.bytes);
            if found != Some(bytes) {
                return Err(format!("what was acknowledged at {position} is not in the log"));
            }
        }
        Ok(())
    }
}
