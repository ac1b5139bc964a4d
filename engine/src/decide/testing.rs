//! What the tests of commands share: a run to play with, and words to play it.

use std::collections::BTreeMap;

use super::{ApproveGate, CarryOutError, Command, CreateRun, Ended, LeaseJob, LoseJob, ReportJob};
use crate::{
    event::{Fact, FailureCause},
    gate::Identity,
    ids::{Actor, Digest},
    job::JobState,
    plan::{JobPlan, Plan, When},
    refusal::Refusal,
    run::{LockUsage, Run},
    time::Timestamp,
};

pub(crate) fn job(name: &str) -> JobPlan {
    JobPlan::new(name, "main", "true")
}

pub(crate) fn needing(mut job: JobPlan, need: &str) -> JobPlan {
    job.needs.push(need.into());
    job
}

pub(crate) fn staged(mut job: JobPlan, stage: &str) -> JobPlan {
    job.stage = stage.into();
    job
}

pub(crate) fn gated(mut job: JobPlan) -> JobPlan {
    job.when = When::Manual;
    job
}

pub(crate) fn ana() -> Actor {
    Actor::human("ana")
}

pub(crate) fn creation(jobs: Vec<JobPlan>) -> CreateRun {
    let stages = vec!["main".into(), "late".into()];
    CreateRun {
        run: "0123456789abcdef".into(),
        file: "towpath.yml".into(),
        folder: "/srv".into(),
        file_sha256: Digest([1; 32]),
        plan: Plan { pipeline: "shop".into(), stages, jobs, timeout_ms: None },
        parallelism: 2,
        gates_preapproved: false,
        traceparent: None,
        idempotency_key: None,
        source: None,
        requester: Identity::default(),
        authors: None,
    }
}

/// A run, its facts, and a clock that the test moves.
pub(crate) struct Fixture {
    pub(crate) run: Run,
    pub(crate) facts: Vec<Fact>,
    pub(crate) now: Timestamp,
}

impl Fixture {
    pub(crate) fn empty() -> Self {
        Self { run: Run::default(), facts: Vec::new(), now: Timestamp(1_000) }
    }

    pub(crate) fn begin(jobs: Vec<JobPlan>) -> Self {
        Self::begin_with(jobs, |_| {})
    }

    pub(crate) fn begin_with(jobs: Vec<JobPlan>, edit: impl FnOnce(&mut CreateRun)) -> Self {
        let mut create = creation(jobs);
        edit(&mut create);
        let mut stage = Self::empty();
        stage.carries_out(&Command::Create(create));
        stage
    }

    /// Carries out `command`, and checks what must hold after every command.
    pub(crate) fn carries_out(&mut self, command: &Command) {
        self.carries_out_of(&ana(), command);
    }

    pub(crate) fn carries_out_of(&mut self, by: &Actor, command: &Command) {
        let written = super::carry_out(&mut self.run, command, by, self.now).unwrap();
        self.facts.extend(written.into_iter().map(|(fact, _)| fact));
        let replayed = Run::replay(&self.facts).unwrap();
        assert!(replayed == self.run, "the replay differs");
        let reopened = Run::from_snapshot(&self.run.to_snapshot()).unwrap();
        assert!(reopened == self.run, "the snapshot differs");
    }

    pub(crate) fn refused(&mut self, command: &Command) -> Refusal {
        self.refused_of(&ana(), command)
    }

    pub(crate) fn refused_of(&mut self, by: &Actor, command: &Command) -> Refusal {
        let before = self.run.clone();
        match super::carry_out(&mut self.run, command, by, self.now) {
            Err(CarryOutError::Refused(refusal)) => {
                assert!(before == self.run, "a refusal left a trace");
                refusal
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(crate) fn passes(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }

    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        self.facts.iter().map(|fact| fact.event.kind()).collect()
    }

    pub(crate) fn leases(&mut self) -> Option<String> {
        self.leases_with(&[], LockUsage::new())
    }

    pub(crate) fn leases_with(&mut self, tags: &[&str], busy: LockUsage) -> Option<String> {
        self.leases_what(tags, busy, None)
    }

    pub(crate) fn leases_only(&mut self, only: &str, busy: LockUsage) -> Option<String> {
        self.leases_what(&[], busy, Some(only.into()))
    }

    fn leases_what(
        &mut self,
        tags: &[&str],
        busy: LockUsage,
        only: Option<crate::ids::JobName>,
    ) -> Option<String> {
        let before = self.facts.len();
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let lease = LeaseJob { worker: "w1".into(), tags, lease_ms: 30_000, busy, only };
        self.carries_out(&Command::Lease(lease));
        let leased = self.facts[before..].iter().find(|fact| fact.event.kind() == "job_leased");
        leased.and_then(|fact| fact.event.job()).map(ToString::to_string)
    }

    pub(crate) fn report(&self, job: &str, ended: Ended) -> Command {
        let attempt = self.run.job(job).unwrap().attempt;
        Command::Report(ReportJob {
            job: job.into(),
            attempt,
            worker: "w1".into(),
            ended,
            ran_ms: 5,
            captured_output: None,
        })
    }

    pub(crate) fn reports(&mut self, job: &str, ended: Ended) {
        let report = self.report(job, ended);
        self.carries_out(&report);
    }

    pub(crate) fn succeeds(&mut self, job: &str) {
        self.succeeds_with(job, &[]);
    }

    pub(crate) fn succeeds_with(&mut self, job: &str, outputs: &[(&str, &str)]) {
        let outputs: BTreeMap<String, String> =
            outputs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.reports(job, Ended::Succeeded { outputs, artifacts: Vec::new() });
    }

    pub(crate) fn fails(&mut self, job: &str, code: i32) {
        self.reports(job, Ended::Failed(FailureCause::ExitCode(code)));
    }

    /// Leases `job`, which must be next, and lets it succeed.
    pub(crate) fn runs(&mut self, job: &str) {
        assert_eq!(self.leases().as_deref(), Some(job));
        self.succeeds(job);
    }

    pub(crate) fn loses(&mut self, job: &str) {
        let attempt = self.run.job(job).unwrap().attempt;
        let reason = "killed".to_owned();
        self.carries_out(&Command::Lose(LoseJob { job: job.into(), attempt, reason }));
    }

    pub(crate) fn approval(&self, job: &str) -> Command {
        let state = &self.run.job(job).unwrap().state;
        let approval_digest = if let JobState::AtGate(approval_digest) = state {
            *approval_digest
        } else {
            Digest([0; 32])
        };
        Command::Approve(ApproveGate {
            job: job.into(),
            approval_digest,
            comment: "go".to_owned(),
            identity: Identity::default(),
        })
    }

    pub(crate) fn approves(&mut self, job: &str) {
        let approval = self.approval(job);
        self.carries_out(&approval);
    }

    pub(crate) fn cancels(&mut self) {
        self.carries_out(&Command::Cancel("enough".to_owned()));
    }
}
