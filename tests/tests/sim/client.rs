//! People and programs that begin runs, insist until they are answered, and meddle.

use towpath_engine::{
    decide::{ApproveGate, Command, CreateRun, EditedPlan, RejectGate, ResumeRun},
    gate::Identity,
    ids::{Actor, Digest, RunId},
    job::JobState,
    refusal::Refusal,
};

use crate::{
    plans,
    random::Rng,
    server::{No, Then},
    world::{Step, World},
};

/// Those who ask something of runs that have begun, two of them one person and one no person.
const PEOPLE: [&str; 5] = ["human:ana", "human:bob", "human:Bob", "human:cleo", "agent:bot"];
/// How long an answer is waited for.
const ANSWER_WITHIN: u64 = 5_000;

/// What somebody asks of the server.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) run: RunId,
    pub(crate) command: Command,
    pub(crate) by: Actor,
    /// The request for a run, by number, if it is one.
    pub(crate) request: Option<u64>,
}

pub(crate) struct Request {
    pub(crate) create: CreateRun,
    pub(crate) answered: bool,
}

pub(crate) struct Clients {
    /// How many jobs may hold the lock.
    limit: u32,
    pub(crate) requests: Vec<Request>,
    /// Positions of records that somebody was told about, and their bytes at that time.
    pub(crate) acknowledged: Vec<(usize, Vec<u8>)>,
}

impl Clients {
    pub(crate) fn new(rng: &mut Rng, limit: u32) -> Self {
        let count = rng.between(1, 4);
        let request =
            |number| Request { create: plans::creation(rng, number, limit), answered: false };
        let requests = (0..count).map(request).collect();
        Self { limit, requests, acknowledged: Vec::new() }
    }
}

impl World {
    /// Asks for a run, and again until there is an answer.
    pub(crate) fn client_insists(&mut self, request: u64) {
        let Some(place) = usize::try_from(request).ok() else { return };
        let Request { create, answered } = &self.clients.requests[place];
        if *answered {
            return;
        }
        let (run, command) = (create.run.clone(), Command::Create(create.clone()));
        self.ask(Ask { run, command, by: Actor::human("ana"), request: Some(request) });
        let wait = ANSWER_WITHIN + self.rng.below(2_000);
        self.after(wait, Step::ClientInsists { request });
    }

    /// A question goes its way: it may be lost, or late, or come twice.
    fn ask(&mut self, ask: Ask) {
        let times = if self.calm { 1 } else { [0, 1, 1, 1, 1, 1, 1, 2][self.rng.index(8)] };
        for _ in 0..times {
            let wait = self.rng.mostly(50, 8_000);
            self.after(wait, Step::Asked(Box::new(ask.clone())));
        }
    }

    pub(crate) fn server_is_asked(&mut self, ask: Ask) {
        if !self.server.up {
            return;
        }
        let mut queued = self.queue_up(&ask.run, std::slice::from_ref(&ask.command), &ask.by);
        if queued.as_ref().err() == Some(&No::Refused(Refusal::RunExists)) {
            // Asked again: the answer waits until the run is safe.
            queued = self.queue_up(&ask.run, &[Command::PassTime], &Actor::timer());
        }
        if let Ok(queued) = queued {
            let records = (queued.first, queued.first + queued.facts.len());
            let records = if queued.facts.is_empty() {
                (queued.rests_on, queued.rests_on + 1)
            } else {
                records
            };
            self.once_safe(queued.rests_on, Then::Answer { ask: Box::new(ask), records });
        }
    }

    /// The answer leaves: from here on what it says must stand.
    pub(crate) fn answer(&mut self, ask: &Ask, (from, to): (usize, usize)) {
        for position in from.max(1)..to {
            if let Some(record) = self.server.disk.records.get(position - 1) {
                self.clients.acknowledged.push((position, record.bytes.clone()));
            }
        }
        let heard = self.calm || !self.rng.chance(20);
        if let Some(place) = ask.request.and_then(|request| usize::try_from(request).ok()) {
            self.clients.requests[place].answered |= heard;
        }
    }

    /// Somebody does something to some run.
    pub(crate) fn client_acts(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.rng.between(200, 8_000);
        self.after(wait, Step::ClientActs);
        let runs = self.server.disk.runs();
        if runs.is_empty() {
            return;
        }
        let run = runs[self.rng.index(runs.len())].clone();
        if let Some(command) = self.whim(&run) {
            let by =
                PEOPLE[self.rng.index(PEOPLE.len())].parse().unwrap_or_else(|_| Actor::timer());
            self.ask(Ask { run, command, by, request: None });
        }
    }

    /// The pipeline file was edited, and that is accepted.
    fn edit(&mut self) -> ResumeRun {
        let limit = self.clients.limit;
        let plan = plans::creation(&mut self.rng, 0, limit).plan;
        let file = EditedPlan {
            file_sha256: Digest([2; 32]),
            plan,
            source: None,
            requester: Identity::default(),
            authors: None,
        };
        // Nobody in this world has roles: as on the socket of a store.
        let (accept_changes, may_lift_gates) = (true, true);
        ResumeRun { file: Some(file), accept_changes, from: None, may_lift_gates }
    }

    fn whim(&mut self, run: &RunId) -> Option<Command> {
        let state = &self.server.cells.get(run)?.run;
        let gate = state.gates().next().map(|job| (job.plan.name.clone(), job.state.clone()));
        let stages = state.header()?.stages.clone();
        let lost = state.jobs().iter().find(|job| job.state.is_over_badly());
        let lost = lost.map(|job| job.plan.name.clone());
        let comment = String::new();
        match self.rng.below(20) {
            0..10 => {
                let (job, JobState::AtGate(approval_digest)) = gate? else { return None };
                let identity = Identity::default();
                Some(Command::Approve(ApproveGate { job, approval_digest, comment, identity }))
            }
            10 => {
                let (job, _) = gate?;
                Some(Command::Reject(RejectGate { job, approval_digest: None, comment }))
            }
            11 => Some(Command::Cancel(comment)),
            12..14 => Some(Command::Resume(ResumeRun::default())),
            14 => Some(Command::Resume(self.edit())),
            15 => {
                let from = Some(stages[self.rng.index(stages.len())].clone());
                Some(Command::Resume(ResumeRun { from, ..ResumeRun::default() }))
            }
            _ => lost.map(Command::Retry),
        }
    }
}
