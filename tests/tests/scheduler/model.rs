//! A run as a page of the design would describe it: no events, no indexes, no shortcuts. Every
//! question is answered by looking at all jobs.

use proptest::prelude::*;
use towpath_engine::{plan::When, retry::LOSSES_MAX, time::Timestamp};

use crate::plans::{Asks, Scenario, Spec, job_name, wait_ms};

/// How an attempt of a job ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Succeeded(&'static str),
    /// With exit code 75, if so.
    Failed(bool),
    TimedOut,
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    AtGate,
    Approved,
    Running,
    BackingOff(Timestamp),
    Requeued,
    Succeeded,
    Failed,
    TimedOut,
    Skipped,
    Cancelled,
    Rejected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Aborting,
    Cancelling,
    TimingOut,
    Finished(&'static str),
}

#[derive(Clone, Debug)]
struct Job {
    spec: Spec,
    state: State,
    attempt: u32,
    failures: u32,
    losses: u32,
    said: &'static str,
    /// The job at which the chain of skips began.
    root: Option<usize>,
    /// What came of its own condition, which is asked once.
    holds: Option<bool>,
}

/// The model.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    jobs: Vec<Job>,
    stage_count: usize,
    parallelism: u32,
    preapproved: bool,
    phase: Phase,
    abort_root: Option<usize>,
    timeout_ms: Option<u64>,
    due: Option<Timestamp>,
}

impl Job {
    fn is_over(&self) -> bool {
        use State as S;
        let over = [S::Succeeded, S::Failed, S::TimedOut, S::Skipped, S::Cancelled, S::Rejected];
        over.contains(&self.state)
    }

    fn is_over_badly(&self) -> bool {
        self.is_over() && self.state != State::Succeeded
    }

    fn reset(&mut self) {
        let (spec, attempt) = (self.spec.clone(), self.attempt);
        *self = Self { attempt, ..Self::new(spec) };
    }

    fn new(spec: Spec) -> Self {
        Self {
            spec,
            state: State::Waiting,
            attempt: 0,
            failures: 0,
            losses: 0,
            said: "",
            root: None,
            holds: None,
        }
    }
}

impl Model {
    pub(crate) fn new(scenario: &Scenario, now: Timestamp) -> Self {
        Self {
            jobs: scenario.specs.iter().cloned().map(Job::new).collect(),
            stage_count: scenario.stage_count,
            parallelism: scenario.parallelism,
            preapproved: scenario.preapproved,
            phase: Phase::Running,
            abort_root: None,
            timeout_ms: scenario.timeout_ms,
            due: scenario.timeout_ms.map(|limit| now.plus_ms(limit)),
        }
    }

    pub(crate) fn parallelism(&self) -> u32 {
        self.parallelism
    }

    pub(crate) fn stages(&self) -> usize {
        self.stage_count
    }

    /// Whether everything that must come before `job` has come to its end.
    fn is_open(&self, job: &Job) -> bool {
        let earlier = self.jobs.iter().filter(|other| other.spec.stage < job.spec.stage);
        let mut needs = job.spec.needs.iter().map(|need| &self.jobs[*need]);
        earlier.into_iter().all(Job::is_over) && needs.all(Job::is_over)
    }

    /// Whether the job could be leased as far as its own run goes.
    fn is_ready(&self, job: &Job) -> bool {
        let state = (job.state == State::Waiting && job.spec.when != When::Manual)
            || [State::Approved, State::Requeued].contains(&job.state);
        state && self.is_open(job)
    }

    pub(crate) fn can_move(&self) -> bool {
        self.jobs.iter().any(|job| {
            // An attempt that is due waits for a need that was given another chance meanwhile.
            let due = matches!(job.state, State::BackingOff(_)) && self.is_open(job);
            job.state == State::Running || due || self.is_ready(job)
        })
    }

    fn count(&self, state: State) -> usize {
        self.jobs.iter().filter(|job| job.state == state).count()
    }

    /// The job that a worker is given, if it is given one.
    pub(crate) fn next(&self, tagged: bool, now: Timestamp) -> Option<String> {
        let running = self.count(State::Running);
        if self.phase != Phase::Running || running >= self.parallelism as usize {
            return None;
        }
        let lock_taken = self.jobs.iter().any(|job| job.spec.locked && job.state == State::Running);
        let place = self.jobs.iter().position(|job| {
            let due = matches!(job.state, State::BackingOff(due) if due <= now);
            let ready = self.is_ready(job) || (due && self.is_open(job));
            ready && (!job.spec.tagged || tagged) && !(job.spec.locked && lock_taken)
        });
        place.map(job_name)
    }

    pub(crate) fn lease(&mut self, name: &str) {
        let job = self.jobs.iter_mut().zip(0..).find(|(_, place)| job_name(*place) == name);
        let (job, _) = job.expect("the model gave it out");
        job.state = State::Running;
        job.attempt += 1;
    }

    pub(crate) fn report(&mut self, job: usize, outcome: Outcome, now: Timestamp) {
        let running = self.phase == Phase::Running;
        let job = &mut self.jobs[job];
        job.state = match outcome {
            Outcome::Succeeded(said) => {
                job.said = said;
                State::Succeeded
            }
            Outcome::Cancelled if running => {
                job.losses += 1;
                State::Requeued
            }
            Outcome::Cancelled => State::Cancelled,
            Outcome::Failed(_) | Outcome::TimedOut => {
                job.failures += 1;
                let covered = !job.spec.picky || matches!(outcome, Outcome::Failed(true));
                if running && covered && job.failures <= job.spec.retries {
                    State::BackingOff(now.plus_ms(wait_ms(job.failures)))
                } else if matches!(outcome, Outcome::TimedOut) {
                    State::TimedOut
                } else {
                    State::Failed
                }
            }
        };
    }

    pub(crate) fn lose(&mut self, job: usize) {
        let running = self.phase == Phase::Running;
        let job = &mut self.jobs[job];
        job.state = match (running, job.losses + 1 >= LOSSES_MAX) {
            (false, _) => State::Cancelled,
            (true, true) => State::Failed,
            (true, false) => State::Requeued,
        };
        job.losses += u32::from(job.state == State::Requeued);
    }

    pub(crate) fn decide(&mut self, job: usize, approve: bool) {
        self.jobs[job].state = if approve { State::Approved } else { State::Rejected };
    }

    pub(crate) fn cancel(&mut self) -> bool {
        match self.phase {
            Phase::Finished(outcome) => outcome == "cancelled",
            Phase::Cancelling => true,
            Phase::Running | Phase::Aborting | Phase::TimingOut => {
                self.end(Phase::Cancelling, State::Cancelled);
                true
            }
        }
    }

    pub(crate) fn pass_time(&mut self, now: Timestamp) {
        if self.phase == Phase::Running && self.due.is_some_and(|due| due <= now) {
            self.end(Phase::TimingOut, State::Cancelled);
        }
    }

    fn end(&mut self, phase: Phase, state: State) {
        self.phase = phase;
        for job in &mut self.jobs {
            if !job.is_over() && job.state != State::Running {
                job.state = state;
            }
        }
    }

    fn go_on(&mut self, now: Timestamp) {
        self.phase = Phase::Running;
        self.due = self.timeout_ms.map(|limit| now.plus_ms(limit));
    }

    /// Whether what a person read at the gate of `job` runs again: any job of an earlier stage, a
    /// need, or a need of a need.
    fn stands_on(&self, job: usize, again: &[bool]) -> bool {
        let spec = &self.jobs[job].spec;
        let earlier = self.jobs.iter().zip(again);
        let mut earlier = earlier.filter(|(other, _)| other.spec.stage < spec.stage);
        earlier.any(|(_, again)| *again)
            || spec.needs.iter().any(|need| again[*need] || self.stands_on(*need, again))
    }

    /// Whether a gate that a person has opened would shut.
    fn would_void(&self, again: &[bool]) -> bool {
        (0..self.jobs.len()).any(|job| {
            let state = self.jobs[job].state;
            let opened = [State::Approved, State::Requeued].contains(&state)
                || matches!(state, State::BackingOff(_));
            opened && self.jobs[job].spec.when == When::Manual && self.stands_on(job, again)
        })
    }

    /// These jobs run again, and gates that stand on them ask again unless their job runs.
    fn run_again(&mut self, again: &[bool]) {
        for job in 0..self.jobs.len() {
            let state = self.jobs[job].state;
            let voidable = [State::AtGate, State::Approved, State::Requeued].contains(&state)
                || matches!(state, State::BackingOff(_));
            let gated = self.jobs[job].spec.when == When::Manual && self.phase == Phase::Running;
            if gated && voidable && self.stands_on(job, again) {
                self.jobs[job].state = State::Waiting;
                self.jobs[job].holds = None;
            }
        }
        for (job, again) in self.jobs.iter_mut().zip(again) {
            if *again {
                job.reset();
            }
        }
    }

    pub(crate) fn resume(&mut self, from: Option<usize>, now: Timestamp) -> bool {
        let ending = !matches!(self.phase, Phase::Running | Phase::Finished(_));
        if ending || (from.is_some() && self.count(State::Running) > 0) {
            return false;
        }
        if from.is_none() && self.phase == Phase::Finished("succeeded") {
            return false;
        }
        let lost = self.jobs.iter().any(Job::is_over_badly);
        if !lost && from.is_none() {
            return self.phase == Phase::Running;
        }
        let repeats =
            |job: &Job| job.is_over_badly() || from.is_some_and(|from| job.spec.stage >= from);
        let again: Vec<bool> = self.jobs.iter().map(repeats).collect();
        if from.is_none() && self.phase == Phase::Running && self.would_void(&again) {
            return true;
        }
        self.run_again(&again);
        self.abort_root = None;
        self.go_on(now);
        true
    }

    pub(crate) fn retry(&mut self, chosen: usize, now: Timestamp) -> bool {
        let ending = !matches!(self.phase, Phase::Running | Phase::Finished(_));
        let job = &self.jobs[chosen];
        let left_out = job.state == State::Skipped && job.holds == Some(false);
        if ending || left_out || !job.is_over_badly() {
            return false;
        }
        let aborted = self.abort_root == Some(chosen);
        let freed = |(place, job): (usize, &Job)| {
            let by_abort =
                job.state == State::Skipped && job.root.is_none() && job.holds != Some(false);
            place == chosen || job.root == Some(chosen) || (aborted && by_abort)
        };
        let again: Vec<bool> = self.jobs.iter().enumerate().map(freed).collect();
        self.run_again(&again);
        if aborted {
            self.abort_root = None;
        }
        self.go_on(now);
        true
    }

    /// Lets everything follow that follows by itself.
    pub(crate) fn settle(&mut self) {
        while self.phase == Phase::Running && self.step() {}
        if !matches!(self.phase, Phase::Finished(_)) && self.jobs.iter().all(Job::is_over) {
            self.phase = Phase::Finished(self.outcome());
        }
    }

    fn step(&mut self) -> bool {
        let aborts = |job: &Job| {
            let bad = [State::Failed, State::TimedOut, State::Rejected];
            job.spec.aborts && bad.contains(&job.state)
        };
        if let Some(root) = self.jobs.iter().position(aborts) {
            self.abort_root = Some(root);
            self.end(Phase::Aborting, State::Skipped);
            return true;
        }
        for place in 0..self.jobs.len() {
            let job = &self.jobs[place];
            if job.state == State::AtGate && self.preapproved {
                self.jobs[place].state = State::Approved;
                return true;
            }
            if job.state != State::Waiting {
                continue;
            }
            let doomed = job.spec.needs.iter().any(|need| self.jobs[*need].is_over_badly());
            if doomed && job.spec.when != When::Always {
                self.jobs[place].state = State::Skipped;
                return true;
            }
            if !self.is_open(job) {
                continue;
            }
            if job.holds.is_none() {
                let holds = self.holds(job);
                self.jobs[place].holds = Some(holds);
                if !holds {
                    self.jobs[place].state = State::Skipped;
                }
                return true;
            }
            if job.spec.when == When::Manual {
                self.jobs[place].state = State::AtGate;
                return true;
            }
        }
        false
    }

    fn holds(&self, job: &Job) -> bool {
        let first = job.spec.needs.first().map(|need| &self.jobs[*need]);
        let Some(first) = first else { return true };
        match job.spec.asks {
            Asks::Nothing => true,
            Asks::Ended { well } => (first.state == State::Succeeded) == well,
            Asks::SaidYes => first.said == "y",
        }
    }

    fn outcome(&self) -> &'static str {
        let failed = self.count(State::Failed) + self.count(State::TimedOut);
        let rejected = self.count(State::Rejected);
        let last = self.jobs.iter().map(|job| job.spec.stage).max();
        let mut last = self.jobs.iter().filter(|job| Some(job.spec.stage) == last);
        let partial = self.phase == Phase::Running && last.all(|job| job.state == State::Succeeded);
        match (failed, rejected) {
            (_, _) if self.phase == Phase::Cancelling => "cancelled",
            (_, _) if self.phase == Phase::TimingOut => "timed_out",
            (0, 0) => "succeeded",
            (0, _) => "rejected",
            (_, 1..) => "failed",
            (_, 0) if partial => "partial",
            (_, 0) if failed == self.count(State::TimedOut) => "timed_out",
            (_, 0) => "failed",
        }
    }

    /// The engine says because of whom `job` was skipped. Several needs may be to blame; that one
    /// of them is named is what counts.
    pub(crate) fn skipped_because(
        &mut self,
        job: &str,
        need: &str,
        root: &str,
    ) -> Result<(), TestCaseError> {
        self.settle();
        let place = |name: &str| (0..self.jobs.len()).find(|place| job_name(*place) == name);
        let (Some(job), Some(need), Some(root)) = (place(job), place(need), place(root)) else {
            return Err(TestCaseError::fail("a name of no job"));
        };
        prop_assert!(self.jobs[job].spec.needs.contains(&need), "j{} needs no j{}", job, need);
        prop_assert!(self.jobs[need].is_over_badly(), "j{} did not end badly", need);
        prop_assert_eq!(self.jobs[need].root.unwrap_or(need), root);
        self.jobs[job].root = Some(root);
        Ok(())
    }

    /// Every job's state in a word, and its newest try.
    pub(crate) fn states(&self) -> Vec<(&'static str, u32)> {
        let word = |job: &Job| match job.state {
            State::Waiting => "waiting",
            State::AtGate => "at_gate",
            State::Approved => "approved",
            State::Running => "running",
            State::BackingOff(_) => "backing_off",
            State::Requeued => "requeued",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::TimedOut => "timed_out",
            State::Skipped => "skipped",
            State::Cancelled => "cancelled",
            State::Rejected => "rejected",
        };
        self.jobs.iter().map(|job| (word(job), job.attempt)).collect()
    }

    pub(crate) fn phase_word(&self) -> &'static str {
        match self.phase {
            Phase::Running => "running",
            Phase::Aborting => "aborting",
            Phase::Cancelling => "cancelling",
            Phase::TimingOut => "timing_out",
            Phase::Finished(outcome) => outcome,
        }
    }

    pub(crate) fn is_over(&self, job: usize) -> bool {
        self.jobs[job].is_over()
    }

    /// One of the jobs that run, with its try.
    pub(crate) fn running(&self, pick: u8) -> Option<(usize, u32)> {
        let job = self.pick(pick, State::Running)?;
        Some((job, self.jobs[job].attempt))
    }

    /// One of the jobs that wait at their gate.
    pub(crate) fn at_gate(&self, pick: u8) -> Option<usize> {
        self.pick(pick, State::AtGate)
    }

    /// One of all jobs.
    pub(crate) fn any(&self, pick: u8) -> usize {
        usize::from(pick) % self.jobs.len()
    }

    fn pick(&self, pick: u8, state: State) -> Option<usize> {
        let fitting: Vec<usize> =
            (0..self.jobs.len()).filter(|job| self.jobs[*job].state == state).collect();
        fitting.get(usize::from(pick) % fitting.len().max(1)).copied()
    }
}
