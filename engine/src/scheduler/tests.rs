//! Given what happened, what is to be done. The log here is real runs in memory, and everything is
//! durable at once unless a test says otherwise.

mod absence;
mod life;
mod store;
mod turns;

use std::collections::VecDeque;

use super::*;
use crate::{
    decide::{
        Command, CreateRun, Ended, LeaseJob, LoseJob, ReportJob, carry_out,
        testing::{creation, job, needing},
    },
    event::{Fact, RunEvent},
    ids::{Actor, Attempt, JobName},
    job::JobState,
    plan::{JobPlan, Resource},
    run::Run,
    time::Timestamp,
};

const LEASE: Duration = Duration::from_secs(30);
const AT: Timestamp = Timestamp(1_000);

/// A scheduler and everything around it.
struct World {
    scheduler: Scheduler,
    now: Duration,
    runs: BTreeMap<RunId, Run>,
    position: u64,
    version: u64,
    newest: u64,
    /// What was to be done and has not been: while the store stands still, all that needs it.
    waiting: VecDeque<Effect>,
    stands_still: bool,
    working: bool,
    /// What every lease comes to.
    leases_fail: Option<Blame>,
    /// What is decided is not written, and the run is read again.
    writes_fail: bool,
    losses_fail: BTreeSet<JobName>,
    /// Workers take what is sent to them.
    read: bool,
    /// What sessions were told and what an operator would read, oldest first.
    said: Vec<String>,
    /// How often a lease was asked for.
    asked: usize,
}

impl World {
    fn new() -> Self {
        Self {
            scheduler: Scheduler::new(LEASE),
            now: Duration::ZERO,
            runs: BTreeMap::new(),
            position: 0,
            version: 0,
            newest: 0,
            waiting: VecDeque::new(),
            stands_still: false,
            working: false,
            leases_fail: None,
            writes_fail: false,
            losses_fail: BTreeSet::new(),
            read: true,
            said: Vec::new(),
            asked: 0,
        }
    }

    /// A run of these jobs that leases as many as it has room for.
    fn run(&mut self, id: &str, jobs: Vec<JobPlan>) -> RunId {
        self.run_like(CreateRun { run: id.into(), parallelism: 64, ..creation(jobs) })
    }

    fn run_like(&mut self, create: CreateRun) -> RunId {
        let run = create.run.clone();
        self.carry_out(&run, &[Command::Create(create)]);
        run
    }

    fn hello(&mut self, worker: &str, change: impl FnOnce(&mut Hello)) -> SessionId {
        let mut hello = Hello {
            worker: worker.into(),
            worker_instance_id: "one".into(),
            version: String::new(),
            slots: 1,
            tags: Vec::new(),
            only: None,
            job: None,
            jobs_max: None,
            draining: false,
            held: BTreeSet::new(),
            since: AT,
        };
        change(&mut hello);
        self.newest += 1;
        let session = SessionId(self.newest);
        self.on(Input::Hello { session, hello });
        session
    }

    fn worker(&mut self, worker: &str) -> SessionId {
        self.hello(worker, |_| {})
    }

    fn on(&mut self, input: Input<'_>) {
        let mut effects = Vec::new();
        self.scheduler.on(input, self.now, &mut effects);
        self.waiting.extend(effects);
        self.work();
    }

    /// Does what is to be done, one thing after the other, as a driver does.
    fn work(&mut self) {
        if std::mem::replace(&mut self.working, true) {
            return;
        }
        let mut stuck = VecDeque::new();
        while let Some(effect) = self.waiting.pop_front() {
            let needs_store = matches!(
                effect,
                Effect::Lease { .. } | Effect::Lose { .. } | Effect::Reconcile { .. }
            );
            if needs_store && self.stands_still {
                stuck.push_back(effect);
            } else {
                self.effect(effect);
            }
        }
        self.waiting = stuck;
        self.working = false;
    }

    /// The store works again.
    fn go_on(&mut self) {
        self.stands_still = false;
        self.work();
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Lease { session, run, lease } => self.lease(session, run, lease),
            Effect::Record { .. } => panic!("a report is fed by `report`"),
            Effect::Lose { attempt, reason } => self.lose(attempt, reason),
            Effect::Reconcile { session, worker, runs } => {
                let leased = self.leased(&worker, &runs);
                self.on(Input::Reconciled { session, leased: Some(leased) });
            }
            Effect::Opened { .. } => {}
            Effect::Deliver { session } if self.read => self.deliver(session),
            Effect::Deliver { .. } => {}
            Effect::CheckJob { session, run, job } => {
                if self.runs[&run].job(job.as_str()).unwrap().state.is_over() {
                    self.said.push(format!("{}: job ended", session.0));
                    self.on(Input::Disconnected { session });
                } else {
                    self.decide(&run, &[]);
                }
            }
            Effect::Close { session, reason } => {
                self.said.push(format!("{}: closed, {reason:?}", session.0));
            }
            Effect::Notice(notice) => self.said.push(format!("{notice:?}")),
        }
    }

    fn deliver(&mut self, session: SessionId) {
        let mut effects = Vec::new();
        while let Some(message) = self.scheduler.next_message(session, &mut effects) {
            let name = |of: &AttemptId| format!("{}/{}/{}", of.run, of.job, of.attempt);
            let said = match message {
                Message::Welcome { held } => {
                    let held: Vec<String> = held.iter().map(name).collect();
                    format!("welcome [{}]", held.join(", "))
                }
                Message::Assign { attempt, .. } => format!("assign {}", name(&attempt)),
                Message::Cancel(attempt) => format!("cancel {}", name(&attempt)),
                Message::Recorded(attempt) => format!("recorded {}", name(&attempt)),
            };
            self.said.push(format!("{}: {said}", session.0));
        }
        self.waiting.extend(effects);
        self.work();
    }

    fn leased(&self, worker: &WorkerName, runs: &BTreeSet<RunId>) -> Vec<AttemptId> {
        let mut all = Vec::new();
        for (id, run) in self.runs.iter().filter(|(id, _)| runs.contains(*id)) {
            for job in run.leased() {
                let (attempt, by) = job.state.lease().unwrap();
                if by == worker {
                    all.push(AttemptId { run: id.clone(), job: job.plan.name.clone(), attempt });
                }
            }
        }
        all
    }

    /// Decides commands, and tells the scheduler what came of it.
    fn decide(&mut self, run: &RunId, commands: &[Command]) -> Vec<Fact> {
        let mut facts = Vec::new();
        let mut state = self.runs.remove(run).unwrap_or_default();
        for command in commands {
            let mut command = command.clone();
            if let Command::Lease(lease) = &mut command {
                lease.busy = self.scheduler.locks_of_others(run, state.locks());
            }
            let written = carry_out(&mut state, &command, &Actor::human("ana"), AT).unwrap();
            facts.extend(written.into_iter().map(|(fact, _)| fact));
        }
        self.runs.insert(run.clone(), state.clone());
        self.version += 1;
        let version = self.version;
        self.on(Input::RunDecided { run, state: &state, version, facts: &facts, at: AT });
        facts
    }

    fn settle(&mut self, run: &RunId, facts: &[Fact]) -> Vec<Leased> {
        self.on(Input::RunDurable { run, version: self.version, facts });
        let mut leased = Vec::new();
        for fact in facts {
            self.position += 1;
            if let RunEvent::JobLeased { job, attempt, .. } = &fact.event {
                let (run, job, attempt) = (run.clone(), job.clone(), *attempt);
                let attempt = AttemptId { run, job, attempt };
                leased.push(Leased { attempt, fence: self.position });
            }
        }
        leased
    }

    fn carry_out(&mut self, run: &RunId, commands: &[Command]) -> Vec<Leased> {
        let facts = self.decide(run, commands);
        self.settle(run, &facts)
    }

    fn lease(&mut self, session: SessionId, run: RunId, lease: LeaseJob) {
        self.asked += 1;
        if let Some(blame) = self.leases_fail {
            let stage = LeaseStage::Decide;
            return self.on(Input::LeaseFailed { session, run, stage, blame });
        }
        let before = self.runs[&run].clone();
        let facts = self.decide(&run, &[Command::Lease(lease)]);
        let recorded = !facts.is_empty();
        self.on(Input::LeaseDecided { session, run: run.clone(), recorded });
        if self.writes_fail {
            self.runs.insert(run.clone(), before.clone());
            self.on(Input::RunLoaded { run: &run, state: &before, at: AT });
            let (stage, blame) = (LeaseStage::Write, Blame::Store);
            return self.on(Input::LeaseFailed { session, run, stage, blame });
        }
        if recorded {
            let leased = self.settle(&run, &facts);
            self.on(Input::LeaseDurable { session, leased });
        }
    }

    fn lose(&mut self, attempt: AttemptId, reason: LossReason) {
        let ok = !self.losses_fail.contains(&attempt.job);
        if ok {
            let (job, number) = (attempt.job.clone(), attempt.attempt);
            let reason = reason.words().to_owned();
            let lose = LoseJob { job, attempt: number, reason };
            self.carry_out(&attempt.run, &[Command::Lose(lose)]);
        }
        self.on(Input::Lost { attempt, ok });
    }

    /// The session reports that a job succeeded; answers whether it holds it.
    fn report(&mut self, session: SessionId, run: &RunId, job: &str) -> bool {
        let attempt = self.runs[run].job(job).unwrap().attempt;
        let id = AttemptId { run: run.clone(), job: job.into(), attempt };
        let mut effects = Vec::new();
        self.scheduler.on(Input::Report { session, attempt: &id }, self.now, &mut effects);
        let mut record = None;
        for effect in effects {
            if let Effect::Record { worker, lease } = effect {
                record = Some((worker, lease));
            } else {
                self.waiting.push_back(effect);
            }
        }
        let Some((worker, lease)) = record else { return false };
        let ended = Ended::Succeeded { outputs: BTreeMap::new(), artifacts: Vec::new() };
        let job = job.into();
        let report = ReportJob { job, attempt, worker, ended, ran_ms: 1, captured_output: None };
        let mut commands = vec![Command::Report(report)];
        let with_lease = lease.is_some();
        commands.extend(lease.map(Command::Lease));
        let leased = self.carry_out(run, &commands);
        self.on(Input::Recorded { session, attempt: id, with_lease, leased });
        true
    }

    fn state(&self, run: &RunId, job: &str) -> &JobState {
        &self.runs[run].job(job).unwrap().state
    }

    /// Lets time pass as a server does that is never late.
    fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        while self.now < end {
            let step = self.scheduler.next_wake().map_or(LEASE / 4, |at| {
                at.saturating_sub(self.now).clamp(Duration::from_millis(1), LEASE / 4)
            });
            self.now = (self.now + step).min(end);
            self.on(Input::Tick);
        }
    }

    /// What was said since this was last asked, without what operators read.
    fn said(&mut self) -> Vec<String> {
        let said = std::mem::take(&mut self.said);
        said.into_iter().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).collect()
    }

    fn noticed(&mut self) -> Vec<String> {
        let said = std::mem::take(&mut self.said);
        said.into_iter().filter(|line| !line.starts_with(|c: char| c.is_ascii_digit())).collect()
    }
}

fn attempt(run: &str, job: &str, number: u32) -> AttemptId {
    AttemptId { run: run.into(), job: job.into(), attempt: Attempt(number) }
}

fn jobs(names: &[&str]) -> Vec<JobPlan> {
    names.iter().map(|name| job(name)).collect()
}

fn locking(name: &str, limit: u32) -> JobPlan {
    let mut locking = job(name);
    locking.resource = Some(Resource { name: "db".into(), limit });
    locking
}

fn tagged(name: &str, tags: &[&str]) -> JobPlan {
    let mut tagged = job(name);
    tagged.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    tagged
}

fn tags(tags: &[&str]) -> Vec<String> {
    tags.iter().map(|tag| (*tag).to_owned()).collect()
}

#[test]
fn a_chain_is_run_by_one_worker_in_appends_that_lease_the_next_job() {
    let mut world = World::new();
    let run = world.run("r", vec![job("a"), needing(job("b"), "a")]);
    let one = world.worker("w");
    assert_eq!(world.said(), ["1: welcome []", "1: assign r/a/1"]);

    assert!(world.report(one, &run, "a"));

    assert_eq!(world.said(), ["1: assign r/b/1", "1: recorded r/a/1"]);
    assert_eq!(world.asked, 1, "the second lease came with the report");
    assert!(!world.report(one, &run, "a"), "it is not held any more");
}
