//! Who is given which job: the sessions of the simulated server, by the rules of the real one.

use std::collections::BTreeSet;

use towpath_engine::{
    decide::{Command, Ended, LeaseJob, LoseJob, ReportJob},
    event::{Fact, FailureCause, RunEvent},
    ids::{Actor, Attempt, RunId},
    run::Busy,
};

use crate::{
    book::Key,
    server::{LEASE, No, Queued, Report, Then},
    worker::{self, FromServer, Outcome, SLOTS, ToServer},
    world::{Ms, Plant, Step, World},
};

pub(crate) struct Session {
    pub(crate) worker: usize,
    /// Which process of that worker.
    life: u64,
    replaced: bool,
    held: BTreeSet<Key>,
    /// Leases that are not safe yet.
    coming: u32,
    heard: Ms,
}

impl Session {
    fn free(&self) -> u32 {
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        if self.replaced { 0 } else { SLOTS.saturating_sub(held).saturating_sub(self.coming) }
    }
}

impl World {
    pub(crate) fn server_hears(&mut self, conn: u64, message: ToServer) {
        if !self.server.up || !self.carries(conn) {
            return;
        }
        if let ToServer::Hello { worker, life, holding } = message {
            return self.hello(conn, worker, life, holding);
        }
        let now = self.now;
        let gullible = self.server.gullible;
        let Some(session) = self.server.sessions.get_mut(&conn) else { return self.cut(conn) };
        session.heard = now;
        let ToServer::Report { key, outcome } = message else { return };
        if !session.held.contains(&key) && !gullible {
            return self.cut(conn);
        }
        let worker = session.worker;
        let wait = self.rng.mostly(30, 2 * LEASE);
        let life = self.server.life;
        self.after(wait, Step::Recording { life, report: Report { conn, worker, key, outcome } });
    }

    fn hello(&mut self, conn: u64, worker: usize, life: u64, holding: BTreeSet<Key>) {
        if self.server.opening.is_some() {
            let message = ToServer::Hello { worker, life, holding };
            return self.after(5, Step::ToServer { conn, message });
        }
        let taken = |session: &Session| {
            session.worker == worker && !session.replaced && session.life != life
        };
        if self.server.sessions.values().any(taken) {
            self.send_to_worker(conn, FromServer::NameTaken);
            return;
        }
        for session in self.server.sessions.values_mut() {
            session.replaced |= session.worker == worker;
        }
        let all = self.server.disk.records.len();
        let mut rests_on = if self.plant == Plant::WelcomeEarly { 0 } else { all };
        let mut held = BTreeSet::new();
        for key in self.leased_by(worker) {
            if holding.contains(&key) {
                held.insert(key);
                continue;
            }
            match self.lose(&key) {
                Ok(queued) => rests_on = rests_on.max(queued.rests_on),
                Err(No::Refused(refusal)) => self.fail(format!("{key:?} not lost: {refusal}")),
                Err(No::Later) => {
                    let now = self.now;
                    self.server.gone.entry(worker).or_insert(now);
                    return self.cut(conn);
                }
            }
        }
        self.server.opening = Some(worker);
        self.once_safe(rests_on, Then::Welcome { conn, worker, life, held });
    }

    /// The session begins: its welcome is the first that the worker hears.
    pub(crate) fn welcome(&mut self, conn: u64, worker: usize, life: u64, held: BTreeSet<Key>) {
        self.server.opening = None;
        self.server.gone.remove(&worker);
        let heard = self.now;
        let session =
            Session { worker, life, replaced: false, held: held.clone(), coming: 0, heard };
        self.server.sessions.insert(conn, session);
        if !self.carries(conn) {
            return self.close_session(conn);
        }
        self.send_to_worker(conn, FromServer::Welcome { held: held.clone() });
        for key in held {
            if self.is_ending(&key.0) {
                self.send_to_worker(conn, FromServer::Cancel(key));
            }
        }
        self.give_out();
    }

    fn is_ending(&mut self, run: &RunId) -> bool {
        self.load(run);
        self.server.cells.get(run).is_some_and(|cell| cell.run.phase().is_ending())
    }

    fn leased_by(&mut self, worker: usize) -> Vec<Key> {
        let mut keys = Vec::new();
        for run in self.server.disk.runs() {
            self.load(&run);
        }
        for (run, cell) in &self.server.cells {
            for job in cell.run.leased() {
                if let Some((attempt, by)) = job.state.lease()
                    && worker::number(by.as_str()) == Some(worker)
                {
                    keys.push((run.clone(), job.plan.name.clone(), attempt.0));
                }
            }
        }
        keys
    }

    fn lose(&mut self, (run, job, attempt): &Key) -> Result<Queued, No> {
        let reason = "silence".to_owned();
        let lose = LoseJob { job: job.clone(), attempt: Attempt(*attempt), reason };
        self.queue_up(run, &[Command::Lose(lose)], &Actor::timer())
    }

    pub(crate) fn close_session(&mut self, conn: u64) {
        let Some(session) = self.server.sessions.remove(&conn) else { return };
        if !session.replaced {
            self.server.gone.insert(session.worker, self.now);
        }
        self.cut(conn);
    }

    pub(crate) fn end_the_silent(&mut self) {
        let silent = |session: &Session| self.now >= session.heard + LEASE;
        let all = self.server.sessions.iter().filter(|(_, session)| silent(session));
        let ended: Vec<u64> = all.map(|(conn, _)| *conn).collect();
        for conn in ended {
            let Some(session) = self.server.sessions.remove(&conn) else { continue };
            if !session.replaced {
                self.server.gone.insert(session.worker, session.heard);
            }
        }
    }

    pub(crate) fn lose_the_gone(&mut self) {
        let opening = self.server.opening;
        let lapsed =
            |worker: &usize, since: Ms| self.now >= since + LEASE && opening != Some(*worker);
        let all = self.server.gone.iter().filter(|(worker, since)| lapsed(worker, **since));
        let lapsed: Vec<usize> = all.map(|(worker, _)| *worker).collect();
        for worker in lapsed {
            let mut lost = true;
            for key in self.leased_by(worker) {
                if self.plant != Plant::ForgetLost {
                    lost &= self.lose(&key).is_ok();
                }
            }
            // What could not be written now is tried again at the next look.
            if lost {
                self.server.gone.remove(&worker);
            }
        }
    }

    pub(crate) fn cancel_ending(&mut self, run: &RunId) {
        let mut messages = Vec::new();
        for (conn, session) in &self.server.sessions {
            let held = session.held.iter().filter(|key| key.0 == *run);
            messages.extend(held.map(|key| (*conn, key.clone())));
        }
        for (conn, key) in messages {
            self.send_to_worker(conn, FromServer::Cancel(key));
        }
    }

    /// Gives out what can be given out now, one job of each run in turn.
    pub(crate) fn give_out(&mut self) {
        if !self.server.up {
            return;
        }
        let mut runs = self.server.disk.runs();
        let last = runs.iter().position(|run| *run == self.server.turn);
        runs.rotate_left(last.map_or(0, |at| at + 1));
        let mut turns: std::collections::VecDeque<RunId> = runs.into();
        while let Some(run) = turns.pop_front() {
            let movable = self.server.cells.get(&run).is_none_or(|cell| cell.run.can_move());
            if !movable {
                continue;
            }
            let sessions = self.server.sessions.iter();
            let mut free: Vec<(u32, u64)> = sessions
                .map(|(conn, session)| (session.free(), *conn))
                .filter(|(free, _)| *free > 0)
                .collect();
            free.sort_by_key(|(free, conn)| (std::cmp::Reverse(*free), *conn));
            for (_, conn) in free {
                if self.lease_one(conn, &run) {
                    self.server.turn = run.clone();
                    turns.push_back(run);
                    break;
                }
            }
        }
    }

    fn reserve(&mut self, conn: u64) -> Option<(Command, Actor)> {
        let session = self.server.sessions.get_mut(&conn).filter(|session| session.free() > 0)?;
        session.coming += 1;
        let name = worker::name(session.worker);
        let tags = worker::tags(session.worker);
        let by = Actor::worker(&name);
        let worker = name.into();
        let lease = LeaseJob { worker, tags, lease_ms: LEASE, busy: Busy::new(), only: None };
        Some((Command::Lease(lease), by))
    }

    fn unreserve(&mut self, conn: u64, count: u32) {
        if let Some(session) = self.server.sessions.get_mut(&conn) {
            session.coming = session.coming.saturating_sub(count);
        }
    }

    fn lease_one(&mut self, conn: u64, run: &RunId) -> bool {
        let Some((lease, by)) = self.reserve(conn) else { return false };
        match self.queue_up(run, &[lease], &by) {
            Ok(queued) if !queued.facts.is_empty() => {
                let leases = leases(run, &queued);
                self.once_safe(queued.rests_on, Then::Assign { conn, leases, reserved: 1 });
                true
            }
            Ok(_) | Err(_) => {
                self.unreserve(conn, 1);
                false
            }
        }
    }

    /// Sends leases, which are safe by now, to their worker.
    pub(crate) fn assign(&mut self, conn: u64, leases: Vec<(Key, usize)>, reserved: u32) {
        self.unreserve(conn, reserved);
        for (key, fence) in leases {
            let session = self.server.sessions.get_mut(&conn);
            if let Some(session) = session.filter(|session| !session.replaced) {
                session.held.insert(key.clone());
                let ending = self.is_ending(&key.0);
                self.send_to_worker(conn, FromServer::Assignment { key: key.clone(), fence });
                if ending {
                    self.send_to_worker(conn, FromServer::Cancel(key));
                }
            } else {
                // Nobody was told, so nobody runs it.
                drop(self.lose(&key));
            }
        }
    }

    /// Records how an attempt ended, and uses its slot again in the same append.
    pub(crate) fn record_report(&mut self, life: u64, report: Report) {
        if life != self.server.life || !self.server.up {
            return;
        }
        let Report { conn, worker, key, outcome } = report;
        if let Some(session) = self.server.sessions.get_mut(&conn) {
            session.held.remove(&key);
        }
        let ended = match outcome {
            Outcome::Succeeded => Ended::Succeeded { outputs: [].into(), artifacts: Vec::new() },
            Outcome::Failed(code) => Ended::Failed(FailureCause::ExitCode(code)),
            Outcome::Cancelled => Ended::Cancelled,
            Outcome::Lost => {
                return match self.lose(&key) {
                    Ok(queued) => self.once_safe(queued.rests_on, Then::Recorded { conn, key }),
                    Err(No::Refused(_)) => self.send_to_worker(conn, FromServer::Recorded(key)),
                    Err(No::Later) => self.cut(conn),
                };
            }
        };
        let name = worker::name(worker);
        let lease = self.ahead.lease(&key.0, &key.1);
        let alive = lease.is_some_and(|(attempt, by, _)| attempt == key.2 && by == name);
        let mut command = ReportJob {
            job: key.1.clone(),
            attempt: Attempt(key.2),
            worker: name.as_str().into(),
            ended,
            ran_ms: 1,
            log: None,
        };
        if let (Plant::NoFence, Some((attempt, by, _))) = (self.plant, lease) {
            (command.attempt, command.worker) = (Attempt(attempt), by.into());
        }
        let mut commands = vec![Command::Report(command)];
        let reserved = self.reserve(conn);
        let count = u32::from(reserved.is_some());
        commands.extend(reserved.map(|(lease, _)| lease));
        let recorded = self.queue_up(&key.0, &commands, &Actor::worker(&name));
        self.check_fence(&key, alive, recorded.as_ref().ok());
        match recorded {
            Ok(queued) => {
                let leases = leases(&key.0, &queued);
                let assign = Then::Assign { conn, leases, reserved: count };
                self.once_safe(queued.rests_on, assign);
                self.once_safe(queued.rests_on, Then::Recorded { conn, key });
            }
            Err(No::Refused(_)) => {
                self.unreserve(conn, count);
                self.send_to_worker(conn, FromServer::Recorded(key));
            }
            Err(No::Later) => {
                self.unreserve(conn, count);
                self.cut(conn);
            }
        }
        self.give_out();
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
}

fn leases(run: &RunId, queued: &Queued) -> Vec<(Key, usize)> {
    let mut leases = Vec::new();
    for (fact, position) in queued.facts.iter().zip(queued.first..) {
        if let RunEvent::JobLeased { job, attempt, .. } = &fact.event {
            leases.push(((run.clone(), job.clone(), attempt.0), position));
        }
    }
    leases
}
