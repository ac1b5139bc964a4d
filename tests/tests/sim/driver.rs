//! Drives the shipped scheduler: what the simulated server does for each of its effects, and what
//! it tells it. As in the real server, nothing is decided here.

use std::{collections::BTreeSet, time::Duration};

use towpath_engine::{
    decide::{Command, Ended, LoseJob, ReportJob},
    event::{Fact, FailureCause, RunEvent},
    ids::{Actor, Attempt, AttemptId, RunId, WorkerName},
    scheduler::{
        Blame, CloseReason, Effect, Hello, Input, LeaseStage, Leased, LossReason, Message,
        SessionId,
    },
    time::Timestamp,
};
use towpath_worker::protocol::Greeting;

use crate::{
    book::Key,
    script::Outcome,
    server::{No, Queued, Report, Server, Then},
    uploads::Part,
    worker::{self, FromServer, SLOTS, ToServer},
    world::{Plant, Step, World},
};

pub(crate) fn id_of((run, job, attempt): &Key) -> AttemptId {
    AttemptId { run: run.clone(), job: job.clone(), attempt: Attempt(*attempt) }
}

pub(crate) fn key_of(id: &AttemptId) -> Key {
    (id.run.clone(), id.job.clone(), id.attempt.0)
}

impl World {
    /// The scheduler's time: since the server began.
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.now - self.server.booted)
    }

    /// Tells the scheduler what happened. Answers what a report is to be recorded with.
    pub(crate) fn tell(&mut self, input: Input<'_>) -> Option<Effect> {
        let (now, mut effects) = (self.elapsed(), Vec::new());
        self.server.scheduler.on(input, now, &mut effects);
        self.route(effects)
    }

    pub(crate) fn tell_decided(&mut self, run: &RunId, facts: &[Fact]) {
        let (now, at) = (self.elapsed(), self.log_time());
        let Server { scheduler, cells, .. } = &mut self.server;
        let Some(cell) = cells.get(run) else { return };
        let mut effects = Vec::new();
        let version = cell.version + facts.len() as u64;
        let decided = Input::RunDecided { run, state: &cell.run, version, facts, at };
        scheduler.on(decided, now, &mut effects);
        self.route(effects);
    }

    pub(crate) fn tell_loaded(&mut self, run: &RunId) {
        let (now, at) = (self.elapsed(), self.log_time());
        let Server { scheduler, cells, .. } = &mut self.server;
        let Some(cell) = cells.get(run) else { return };
        let mut effects = Vec::new();
        scheduler.on(Input::RunLoaded { run, state: &cell.run, at }, now, &mut effects);
        self.route(effects);
    }

    /// Has done what is to be done, each thing a little later, as tasks of a server are.
    fn route(&mut self, effects: Vec<Effect>) -> Option<Effect> {
        let mut record = None;
        let life = self.server.life;
        for effect in effects {
            self.note(|| format!("  {effect:?}"));
            match effect {
                Effect::Lease { ref lease, .. } => {
                    self.check_drained(&lease.worker);
                    // Leases are decided one after the other, in the order of their turns.
                    let at = self.now + self.rng.mostly(3, 60);
                    self.server.lease_at = self.server.lease_at.max(at);
                    self.after(self.server.lease_at - self.now, Step::Work { life, effect });
                }
                Effect::Lose { ref attempt, reason } => {
                    self.check_expiry(attempt, reason);
                    let wait = self.rng.mostly(3, 60);
                    self.after(wait, Step::Work { life, effect });
                }
                Effect::Reconcile { .. } | Effect::CheckJob { .. } => {
                    let wait = self.rng.mostly(3, 60);
                    self.after(wait, Step::Work { life, effect });
                }
                Effect::Record { ref worker, ref lease } => {
                    if lease.is_some() {
                        self.check_drained(worker);
                    }
                    record = Some(effect);
                }
                Effect::Deliver { session } => {
                    let wait = self.rng.mostly(3, 60);
                    self.after(wait, Step::Deliver { life, conn: session.0 });
                }
                Effect::Close { session, reason: CloseReason::NameTaken } => {
                    self.send_to_worker(session.0, FromServer::NameTaken);
                }
                Effect::Close { session, .. } => self.cut(session.0),
                Effect::Opened { .. } | Effect::Notice(_) => {}
            }
        }
        record
    }

    pub(crate) fn work(&mut self, life: u64, effect: Effect) {
        if life != self.server.life || !self.server.up {
            return;
        }
        match effect {
            Effect::Lease { session, run, lease } => self.decide_lease(session, run, lease),
            Effect::Lose { attempt, reason } => self.lose(attempt, reason),
            Effect::Reconcile { session, worker, runs } => {
                self.reconcile(session, &worker, &runs);
            }
            Effect::CheckJob { .. }
            | Effect::Record { .. }
            | Effect::Opened { .. }
            | Effect::Deliver { .. }
            | Effect::Close { .. }
            | Effect::Notice(_) => {}
        }
    }

    fn decide_lease(
        &mut self,
        session: SessionId,
        run: RunId,
        lease: towpath_engine::decide::LeaseJob,
    ) {
        let by = Actor::worker(lease.worker.as_str());
        let given = self.favoured(&lease).unwrap_or_else(|| run.clone());
        self.check_turn(&given, &lease);
        let blame = Blame::Store;
        match self.queue_up(&given, &[Command::Lease(lease)], &by) {
            Ok(queued) => {
                let recorded = !queued.facts.is_empty();
                self.tell(Input::LeaseDecided { session, run, recorded });
                if recorded {
                    let leased = leased(&given, &queued);
                    self.once_safe(queued.rests_on, Then::LeaseDurable { session, leased });
                }
            }
            Err(No::Later) if self.rng.chance(50) => {
                let recorded = true;
                self.tell(Input::LeaseDecided { session, run: run.clone(), recorded });
                let stage = LeaseStage::Write;
                self.tell(Input::LeaseFailed { session, run, stage, blame });
            }
            Err(No::Later) => {
                let stage = LeaseStage::Decide;
                self.tell(Input::LeaseFailed { session, run, stage, blame });
            }
            Err(No::Refused(_)) => {
                let (stage, blame) = (LeaseStage::Decide, Blame::Run);
                self.tell(Input::LeaseFailed { session, run, stage, blame });
            }
        }
    }

    /// With the planted bug: the first run that has a job for the worker, whosever turn it is.
    fn favoured(&mut self, lease: &towpath_engine::decide::LeaseJob) -> Option<RunId> {
        if self.plant != Plant::UnfairTurns {
            return None;
        }
        let now = self.log_time();
        let Server { scheduler, cells, .. } = &self.server;
        let wants = |run: &RunId, state: &towpath_engine::run::Run| {
            let busy = scheduler.locks_of_others(run, state.locks());
            state.next_for(&lease.tags, &busy, now).is_some()
        };
        cells.iter().find(|(run, cell)| wants(run, &cell.run)).map(|(run, _)| run.clone())
    }

    fn lose(&mut self, attempt: AttemptId, reason: LossReason) {
        if self.plant == Plant::ForgetLost {
            self.tell(Input::Lost { attempt, ok: true });
            return;
        }
        let (job, number) = (attempt.job.clone(), attempt.attempt);
        let lose = LoseJob { job, attempt: number, reason: reason.words().to_owned() };
        match self.queue_up(&attempt.run.clone(), &[Command::Lose(lose)], &Actor::timer()) {
            Ok(queued) => self.once_safe(queued.rests_on, Then::Lost { attempt }),
            Err(No::Refused(refusal)) => self.fail(format!("{attempt:?} not lost: {refusal}")),
            Err(No::Later) => drop(self.tell(Input::Lost { attempt, ok: false })),
        }
    }

    fn reconcile(&mut self, session: SessionId, worker: &WorkerName, runs: &BTreeSet<RunId>) {
        if self.now < self.server.full_until && self.rng.chance(20) {
            self.tell(Input::Reconciled { session, leased: None });
            return;
        }
        let known = self.server.disk.runs();
        let mut leased = Vec::new();
        for run in known.into_iter().filter(|run| runs.contains(run)) {
            self.load(&run);
            let Some(cell) = self.server.cells.get(&run) else { continue };
            for job in cell.run.leased() {
                if let Some((attempt, by)) = job.state.lease()
                    && by == worker
                {
                    let (run, job) = (run.clone(), job.plan.name.clone());
                    leased.push(AttemptId { run, job, attempt });
                }
            }
        }
        let all = self.server.disk.records.len();
        let rests_on = if self.plant == Plant::WelcomeEarly { 0 } else { all };
        self.once_safe(rests_on, Then::Reconciled { session, leased });
    }

    /// Sends what waits for a session.
    pub(crate) fn deliver(&mut self, life: u64, conn: u64) {
        if life != self.server.life || !self.server.up {
            return;
        }
        let session = SessionId(conn);
        let mut effects = Vec::new();
        while let Some(message) = self.server.scheduler.next_message(session, &mut effects) {
            let message = match message {
                Message::Welcome { held } => {
                    let arrived = |id| (key_of(id), self.server.uploads.output(id));
                    FromServer::Welcome { held: held.iter().map(arrived).collect() }
                }
                Message::Assign { attempt, fence } => FromServer::Assignment {
                    key: key_of(&attempt),
                    fence: usize::try_from(fence).unwrap_or(usize::MAX),
                },
                Message::Cancel(_) if self.plant == Plant::LoseCancels && self.rng.chance(30) => {
                    continue;
                }
                Message::Cancel(attempt) => {
                    self.server.checks.cancelled(conn, &attempt);
                    FromServer::Cancel(key_of(&attempt))
                }
                Message::Recorded(attempt) => FromServer::Recorded(key_of(&attempt)),
            };
            self.send_to_worker(conn, message);
        }
        self.route(effects);
    }

    pub(crate) fn server_hears(&mut self, conn: u64, message: ToServer) {
        if !self.server.up || !self.carries(conn) {
            return;
        }
        let session = SessionId(conn);
        if let ToServer::Hello { worker, life, greeting } = message {
            let hello = self.hello(worker, life, greeting);
            self.tell(Input::Hello { session, hello });
            // A process that is turned away does not speak for the one that has the name.
            if self.server.scheduler.is_open(session) {
                self.server.checks.heard[worker] = self.now;
            }
            return;
        }
        if let ToServer::Goodbye = message {
            self.tell(Input::Goodbye { session });
            return;
        }
        if !self.server.scheduler.is_open(session) {
            return self.cut(conn);
        }
        let worker = self.conns[&conn].worker;
        self.server.checks.heard[worker] = self.now;
        self.tell(Input::Heartbeat { session });
        match message {
            ToServer::Hello { .. } | ToServer::Goodbye => {}
            ToServer::Heartbeat => self.send_to_worker(conn, FromServer::Heartbeat),
            ToServer::Drain => drop(self.tell(Input::DrainRequested { session })),
            ToServer::Output { key, offset, length } => {
                self.take_part(session, &key, Part::Output, offset, length);
            }
            ToServer::File { key, offset, length } => {
                self.take_part(session, &key, Part::File, offset, length);
            }
            ToServer::Report { key, outcome, output_bytes } => {
                if self.server.scheduler.holds(session, &id_of(&key)) {
                    self.check_uploads(&key, outcome, output_bytes);
                } else if !self.server.gullible {
                    return self.answer_unheld(conn, worker, key);
                }
                // What the attempt left is kept first.
                let wait = self.rng.mostly(30, 2 * crate::server::LEASE);
                let life = self.server.life;
                let report = Report { conn, worker, key, outcome };
                self.after(wait, Step::Recording { life, report });
            }
        }
    }

    fn hello(&self, worker: usize, life: u64, greeting: Greeting) -> Hello {
        Hello {
            worker: worker::name(worker).into(),
            worker_instance_id: life.to_string(),
            version: String::new(),
            slots: SLOTS,
            tags: worker::tags(worker),
            only: self.workers[worker].only.clone(),
            job: None,
            jobs_max: greeting.jobs_max,
            draining: greeting.draining,
            held: greeting.held,
            since: Timestamp(0),
        }
    }

    /// A report of what the session does not hold: forgotten once the log does not count on it.
    fn answer_unheld(&mut self, conn: u64, worker: usize, key: Key) {
        let name = worker::name(worker);
        self.load(&key.0);
        let state = self.server.cells.get(&key.0).and_then(|cell| cell.run.job(key.1.as_str()));
        let lease = state.and_then(|job| job.state.lease());
        let counts = lease.is_some_and(|(attempt, by)| attempt.0 == key.2 && by.as_str() == name);
        let (session, attempt) = (SessionId(conn), id_of(&key));
        if self.plant == Plant::AnswerUnheld {
            self.tell(Input::ReportVoid { session, attempt });
        } else if !counts {
            self.once_safe(self.newest_of(&key.0), Then::Void { session, attempt });
        }
    }

    /// The position of the newest record of a run, safe or not.
    fn newest_of(&self, run: &RunId) -> usize {
        let records = &self.server.disk.records;
        records.iter().rposition(|record| record.run == *run).map_or(0, |at| at + 1)
    }

    /// Records how an attempt ended, and uses its slot again in the same append.
    pub(crate) fn record_report(&mut self, life: u64, report: Report) {
        if life != self.server.life || !self.server.up {
            return;
        }
        let Report { conn, worker, key, outcome } = report;
        let (session, attempt) = (SessionId(conn), id_of(&key));
        let held = self.server.scheduler.holds(session, &attempt);
        let recorded = self.tell(Input::Report { session, attempt: &attempt });
        let lease = match recorded {
            Some(Effect::Record { lease, .. }) => lease,
            Some(_) | None if self.server.gullible => None,
            Some(_) | None => return self.answer_unheld(conn, worker, key),
        };
        if let Some(lease) = &lease {
            self.check_turn(&key.0, lease);
        }
        let with_lease = lease.is_some();
        let name = worker::name(worker);
        let known = self.ahead.lease(&key.0, &key.1);
        let alive = known.is_some_and(|(attempt, by, _)| attempt == key.2 && by == name);
        let mut commands = vec![self.report(&key, &name, outcome)];
        commands.extend(lease.map(Command::Lease));
        let recorded = self.queue_up(&key.0, &commands, &Actor::worker(&name));
        self.check_fence(&key, alive, recorded.as_ref().ok());
        match recorded {
            Ok(queued) => {
                let leased = leased(&key.0, &queued);
                let recorded = Then::Recorded { session, attempt, with_lease, leased, held };
                self.once_safe(queued.rests_on, recorded);
            }
            Err(No::Refused(_)) => {
                // What made the attempt invalid must be durable before it is removed.
                let leased = Vec::new();
                let recorded = Then::Recorded { session, attempt, with_lease, leased, held };
                self.once_safe(self.newest_of(&key.0), recorded);
            }
            Err(No::Later) => {
                self.tell(Input::RecordFailed { session, with_lease });
                self.tell(Input::Disconnected { session });
                self.cut(conn);
            }
        }
    }

    fn report(&self, key: &Key, name: &str, outcome: Outcome) -> Command {
        let ended = match outcome {
            Outcome::Succeeded { .. } => {
                Ended::Succeeded { outputs: [].into(), artifacts: Vec::new() }
            }
            Outcome::Failed(code) => Ended::Failed(FailureCause::ExitCode(code)),
            Outcome::Cancelled => Ended::Cancelled,
            Outcome::Lost => {
                let (job, attempt) = (key.1.clone(), Attempt(key.2));
                let reason = "the process has disappeared".to_owned();
                return Command::Lose(LoseJob { job, attempt, reason });
            }
        };
        let mut command = ReportJob {
            job: key.1.clone(),
            attempt: Attempt(key.2),
            worker: name.into(),
            ended,
            ran_ms: 1,
            captured_output: None,
        };
        let known = self.ahead.lease(&key.0, &key.1);
        if let (Plant::NoFence, Some((attempt, by, _))) = (self.plant, known) {
            (command.attempt, command.worker) = (Attempt(attempt), by.into());
        }
        Command::Report(command)
    }

    /// A report of an attempt that does not count any more must have changed nothing.
    fn check_fence(&mut self, key: &Key, alive: bool, queued: Option<&Queued>) {
        if alive {
            return;
        }
        self.tally.dead_reports += 1;
        let ends = |fact: &Fact| {
            matches!(
                fact.event,
                RunEvent::JobSucceeded { .. }
                    | RunEvent::JobAttemptFailed { .. }
                    | RunEvent::JobFailed { .. }
                    | RunEvent::JobCancelled { .. }
                    | RunEvent::JobLost { .. }
            ) && fact.event.job() == Some(&key.1)
        };
        if queued.is_some_and(|queued| queued.facts.iter().any(ends)) {
            self.fail(format!("the report of {key:?}, which is dead, was recorded"));
        }
    }

    /// An operator drains a worker, or lets it have jobs again.
    pub(crate) fn drain(&mut self, number: usize, drained: bool) {
        if drained {
            self.server.drained.insert(number);
        } else {
            self.server.drained.remove(&number);
        }
        if self.server.up && self.plant != Plant::IgnoreDrains {
            let worker = worker::name(number).into();
            self.tell(Input::DrainChanged { worker, drained });
        }
    }

    pub(crate) fn close_session(&mut self, conn: u64) {
        if self.server.up {
            self.tell(Input::Disconnected { session: SessionId(conn) });
        }
        self.cut(conn);
    }
}

fn leased(run: &RunId, queued: &Queued) -> Vec<Leased> {
    let mut leased = Vec::new();
    for (fact, position) in queued.facts.iter().zip(queued.first..) {
        if let RunEvent::JobLeased { job, attempt, .. } = &fact.event {
            let (job, attempt) = (job.clone(), *attempt);
            let attempt = AttemptId { run: run.clone(), job, attempt };
            leased.push(Leased { attempt, fence: position as u64 });
        }
    }
    leased
}
