//! The engine against a model: random plans, random histories, and after every command the same
//! answer from both. The model (`model.rs`) keeps no indexes and works everything out from scratch.
//!
//! `TOW_CASES` asks for more than 256 histories, `TOW_SEED` for the ones of an earlier failure.

mod model;
mod plans;

use std::{
    env,
    hash::{BuildHasher as _, RandomState},
};

use model::{Model, Outcome};
use plans::{Op, Scenario, scenario};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use towpath_engine::{
    decide::{
        ApproveGate, CarryOutError, Command, CreateRun, Ended, LeaseJob, LoseJob, RejectGate,
        ReportJob, ResumeRun, carry_out,
    },
    event::{Fact, FailureCause, RunEvent, SkipCause},
    gate::Identity,
    ids::{Actor, Attempt, Digest},
    job::JobState,
    plan::Plan,
    run::{LockUsage, Run},
    time::Timestamp,
};

const WORKER: &str = "w";

/// A run, its facts, and the model of it.
struct Both {
    run: Run,
    facts: Vec<Fact>,
    model: Model,
    now: Timestamp,
}

impl Both {
    fn begin(scenario: &Scenario) -> Result<Self, TestCaseError> {
        let now = Timestamp(1_000_000);
        let plan = Plan {
            pipeline: "random".to_owned(),
            stages: scenario.stages(),
            jobs: scenario.jobs(),
            timeout_ms: scenario.timeout_ms,
        };
        let model = Model::new(scenario, now);
        let mut both = Self { run: Run::default(), facts: Vec::new(), model, now };
        let create = Command::Create(CreateRun {
            run: "0123456789abcdef".into(),
            file: "towpath.yml".to_owned(),
            folder: String::new(),
            file_sha256: Digest([1; 32]),
            plan,
            parallelism: scenario.parallelism,
            gates_preapproved: scenario.preapproved,
            traceparent: None,
            idempotency_key: None,
            source: None,
            requester: Identity::default(),
            authors: None,
        });
        both.carry_out(&create, true)?;
        Ok(both)
    }

    /// Lets the engine carry out `command`, which the model has taken in or refused already.
    fn carry_out(&mut self, command: &Command, accepted: bool) -> Result<(), TestCaseError> {
        let before = self.run.clone();
        match carry_out(&mut self.run, command, &Actor::human("ana"), self.now) {
            Ok(written) => {
                prop_assert!(accepted, "the model refuses {:?}", command);
                for (fact, _) in written {
                    self.witness(&fact)?;
                    self.facts.push(fact);
                }
            }
            Err(CarryOutError::Refused(refusal)) => {
                prop_assert!(!accepted, "the engine refuses {:?}: {}", command, refusal);
                prop_assert!(before == self.run, "a refusal left a trace");
            }
            Err(error @ (CarryOutError::Unwritable(_) | CarryOutError::Bug(_))) => {
                return Err(TestCaseError::fail(format!("{error} after {command:?}")));
            }
        }
        self.model.settle();
        self.compare()
    }

    /// Takes over from the log what the model leaves open: because of whom a job was skipped.
    fn witness(&mut self, fact: &Fact) -> Result<(), TestCaseError> {
        if let RunEvent::JobSkipped { job, cause: SkipCause::NeedUnmet { need, root } } =
            &fact.event
        {
            self.model.skipped_because(job.as_str(), need.as_str(), root.as_str())?;
        }
        Ok(())
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let words = |job: &towpath_engine::run::Job| {
            // That its `if` held is no state of its own in the model.
            let admitted = job.state == JobState::Admitted;
            if admitted { "waiting" } else { job.state.word() }
        };
        let engine: Vec<_> =
            self.run.jobs().iter().map(|job| (words(job), job.attempt.0)).collect();
        prop_assert_eq!(engine, self.model.states());
        prop_assert_eq!(self.run.phase().word(), self.model.phase_word());
        prop_assert_eq!(self.run.can_move(), self.model.can_move());
        prop_assert!(self.run.counts().running <= self.model.parallelism());
        for tags in [&[][..], &["t".to_owned()][..]] {
            let next = self.run.next_for(tags, &LockUsage::new(), self.now);
            let next = next.map(|job| job.plan.name.to_string());
            prop_assert_eq!(next, self.model.next(!tags.is_empty(), self.now));
        }
        let replayed = Run::replay(&self.facts);
        prop_assert!(replayed.as_ref() == Ok(&self.run), "the replay differs");
        let reopened = Run::from_snapshot(&self.run.to_snapshot()).expect("a snapshot is JSON");
        prop_assert!(reopened == self.run, "the snapshot differs");
        Ok(())
    }

    fn play(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Lease { tagged } => self.lease(tagged),
            Op::Report { pick, how, twice } => self.report(pick, how, twice),
            Op::Lose { pick } => {
                let Some((job, attempt)) = self.model.running(pick) else { return Ok(()) };
                self.model.lose(job);
                let lose =
                    LoseJob { job: name(job), attempt: Attempt(attempt), reason: String::new() };
                self.carry_out(&Command::Lose(lose), true)
            }
            Op::Decide { pick, approve, stale } => self.decide(pick, approve, stale),
            Op::Cancel => {
                let accepted = self.model.cancel();
                self.carry_out(&Command::Cancel(String::new()), accepted)
            }
            Op::Resume { from } => {
                let from = from.map(|stage| usize::from(stage) % self.model.stages());
                let accepted = self.model.resume(from, self.now);
                let from = from.map(|stage| plans::stage_name(stage).as_str().into());
                let resume = ResumeRun { from, ..ResumeRun::default() };
                self.carry_out(&Command::Resume(resume), accepted)
            }
            Op::Retry { pick } => {
                let job = self.model.any(pick);
                let accepted = self.model.retry(job, self.now);
                self.carry_out(&Command::Retry(name(job)), accepted)
            }
            Op::Time { ms } => {
                self.now = self.now.plus_ms(ms);
                self.model.pass_time(self.now);
                self.carry_out(&Command::PassTime, true)
            }
        }
    }

    fn lease(&mut self, tagged: bool) -> Result<(), TestCaseError> {
        let next = self.model.next(tagged, self.now);
        if let Some(name) = &next {
            self.model.lease(name);
        }
        let tags = if tagged { vec!["t".to_owned()] } else { Vec::new() };
        let worker = WORKER.into();
        let lease = LeaseJob { worker, tags, lease_ms: 30_000, busy: LockUsage::new(), only: None };
        self.carry_out(&Command::Lease(lease), true)
    }

    fn report(&mut self, pick: u8, how: u8, twice: bool) -> Result<(), TestCaseError> {
        let Some((job, attempt)) = self.model.running(pick) else { return Ok(()) };
        let value = if how.is_multiple_of(2) { "y" } else { "n" };
        let (ended, outcome) = match how {
            0..=5 => {
                let outputs = [("v".to_owned(), value.to_owned())].into();
                (Ended::Succeeded { outputs, artifacts: Vec::new() }, Outcome::Succeeded(value))
            }
            6 => (Ended::Failed(FailureCause::ExitCode(75)), Outcome::Failed(true)),
            7 => (Ended::Failed(FailureCause::ExitCode(1)), Outcome::Failed(false)),
            8 => (Ended::Failed(FailureCause::TimedOut(5)), Outcome::TimedOut),
            _ => (Ended::Cancelled, Outcome::Cancelled),
        };
        let report = Command::Report(ReportJob {
            job: name(job),
            attempt: Attempt(attempt),
            worker: WORKER.into(),
            ended,
            ran_ms: 5,
            captured_output: None,
        });
        self.model.report(job, outcome, self.now);
        self.carry_out(&report, true)?;
        if twice {
            // Heard again: either it ended the job, or a newer try is what counts.
            let accepted = self.model.is_over(job);
            self.carry_out(&report, accepted)?;
        }
        Ok(())
    }

    fn decide(&mut self, pick: u8, approve: bool, stale: bool) -> Result<(), TestCaseError> {
        let Some(job) = self.model.at_gate(pick) else { return Ok(()) };
        let JobState::AtGate(waiting) = self.run.jobs()[job].state else {
            return Err(TestCaseError::fail(format!("j{job} waits at no gate")));
        };
        let approval_digest = if stale { Digest([9; 32]) } else { waiting };
        let comment = String::new();
        if !stale {
            self.model.decide(job, approve);
        }
        let command = if approve {
            Command::Approve(ApproveGate {
                job: name(job),
                approval_digest,
                comment,
                identity: Identity::default(),
            })
        } else {
            Command::Reject(RejectGate {
                job: name(job),
                approval_digest: Some(approval_digest),
                comment,
            })
        };
        self.carry_out(&command, !stale)
    }
}

fn name(job: usize) -> towpath_engine::ids::JobName {
    plans::job_name(job).as_str().into()
}

#[test]
fn the_engine_does_what_a_simple_model_does() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TOW_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let cases = number("TOW_CASES").and_then(|cases| u32::try_from(cases).ok()).unwrap_or(256);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);

    let played = TestRunner::new_with_rng(config, rng).run(&scenario(), |scenario| {
        let mut both = Both::begin(&scenario)?;
        for op in &scenario.ops {
            both.play(op)?;
        }
        Ok(())
    });

    if let Err(failure) = played {
        panic!("TOW_SEED={seed}: {failure}");
    }
}
