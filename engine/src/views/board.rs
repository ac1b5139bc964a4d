//! What a picture of a run shows that is drawn while the run moves: the stages that are not over,
//! the jobs that run, the gates that wait, and what one event adds for good. How it looks is up to
//! the client.

use std::collections::HashMap;

use crate::{
    event::{Fact, RunEvent, VoidCause},
    ids::{Actor, JobName, StageName},
    run::{Job, Phase, Run},
};

/// A run while it moves.
#[derive(Clone, Debug)]
pub struct Board<'a> {
    /// The stages with a job that has not ended, in their order.
    pub stages: Vec<BoardStage<'a>>,
    /// The jobs whose gate waits for a person, in file order.
    pub gates: Vec<&'a Job>,
}

/// One stage of a [`Board`].
#[derive(Clone, Debug)]
pub struct BoardStage<'a> {
    /// Its name.
    pub name: &'a StageName,
    /// All of its jobs, in file order.
    pub jobs: Vec<&'a Job>,
}

impl<'a> Board<'a> {
    /// What is shown of `run` now. Costs what there are jobs.
    pub fn of(run: &'a Run) -> Self {
        let stages = run.header().map(|header| &header.stages[..]).unwrap_or_default();
        let jobs = run.jobs().iter().map(|job| (job.plan.stage.as_str(), job));
        // Of a long run most stages are over, and a terminal has few rows.
        let is_open = |stage: &BoardStage<'_>| stage.jobs.iter().any(|job| !job.state.is_over());
        let stages = by_stage(stages, jobs).into_iter();
        let stages = stages.map(|(name, jobs)| BoardStage { name, jobs }).filter(is_open);
        Self { stages: stages.collect(), gates: run.gates().collect() }
    }
}

impl<'a> BoardStage<'a> {
    /// The jobs that run, in file order.
    pub fn running(&self) -> impl Iterator<Item = &'a Job> {
        self.jobs.iter().copied().filter(|job| job.state.lease().is_some())
    }
}

/// The jobs of each stage, in one pass: stages in their order, jobs in theirs. A job of an unknown
/// stage is omitted.
pub fn by_stage<'a, S: AsRef<str>, J>(
    stages: &'a [S],
    jobs: impl Iterator<Item = (&'a str, J)>,
) -> Vec<(&'a S, Vec<J>)> {
    // A scan of all jobs for each stage would be too slow for a picture that is drawn ten times a
    // second.
    let place: HashMap<&str, usize> = stages.iter().map(AsRef::as_ref).zip(0..).collect();
    let mut grouped: Vec<(&S, Vec<J>)> = stages.iter().map(|stage| (stage, Vec::new())).collect();
    for (stage, job) in jobs {
        if let Some(place) = place.get(stage) {
            grouped[*place].1.push(job);
        }
    }
    grouped
}

impl Run {
    /// Whether nothing can happen in a run that is not ending until a person opens a gate.
    pub fn waits_for_people(&self) -> bool {
        // A job that backs off or waits for a lock continues by itself: `can_move` covers both.
        *self.phase() == Phase::Running && !self.can_move() && self.counts().at_gate > 0
    }
}

/// What one event changes on a board that is seen while the run moves.
#[derive(Clone, Debug, PartialEq)]
pub enum BoardChange<'a> {
    /// An attempt of the job began.
    AttemptBegan(&'a Job),
    /// An attempt of the job ended and another one follows, or the job itself has ended.
    AttemptEnded(&'a Job),
    /// A person approved at the gate of the job.
    GateApproved {
        /// The job behind the gate.
        job: &'a Job,
        /// Whose approval it is.
        by: Actor,
        /// It was the last one that the gate needed.
        open: bool,
    },
    /// The approvals at the gate of the job are void.
    GateVoided {
        /// The job behind the gate.
        job: &'a Job,
        /// Why.
        cause: &'a VoidCause,
    },
    /// The run is aborted because this job failed.
    RunAborted {
        /// The job that failed.
        root: &'a JobName,
    },
}

/// What `fact`, which `run` has taken in, changes on its board. `None`: nothing beyond the board
/// itself.
pub fn board_change<'a>(run: &'a Run, fact: &'a Fact) -> Option<BoardChange<'a>> {
    let known = |job: &JobName| run.job(job.as_str());
    match &fact.event {
        RunEvent::JobLeased { job, .. } => known(job).map(BoardChange::AttemptBegan),
        // Each attempt has its line: else a job that is retried for an hour would look as if it had
        // run once.
        RunEvent::JobAttemptFailed { job, .. } => known(job).map(BoardChange::AttemptEnded),
        // A skip, an import and a rejection end a job without an attempt; on a board they look alike.
        RunEvent::JobSucceeded { job, .. }
        | RunEvent::JobFailed { job, .. }
        | RunEvent::JobCancelled { job, .. }
        | RunEvent::JobSkipped { job, .. }
        | RunEvent::JobImported { job, .. }
        | RunEvent::GateRejected { job, .. } => known(job).map(BoardChange::AttemptEnded),
        RunEvent::GateApproved { job, approvals_remaining, .. } => {
            let (by, open) = (run.approver(fact), *approvals_remaining == 0);
            known(job).map(|job| BoardChange::GateApproved { job, by, open })
        }
        RunEvent::GateVoided { job, cause, .. } => {
            known(job).map(|job| BoardChange::GateVoided { job, cause })
        }
        // The line of the job says that it failed, and not that this ended the run.
        RunEvent::RunAborted { root } => Some(BoardChange::RunAborted { root }),
        // A lost attempt is not shown for good: the same job runs again, and its row stays.
        RunEvent::JobLost { .. }
        | RunEvent::RunCreated { .. }
        | RunEvent::JobsPlanned { .. }
        | RunEvent::RunStarted {}
        | RunEvent::ConditionEvaluated { .. }
        | RunEvent::GateReached { .. }
        | RunEvent::RunCancelRequested { .. }
        | RunEvent::RunTimedOut {}
        | RunEvent::RunFinished { .. }
        | RunEvent::RunResumed {}
        | RunEvent::JobsInvalidated { .. }
        | RunEvent::JobRetried { .. }
        | RunEvent::PlanReplaced { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{
        Ended,
        testing::{Fixture, gated, job, needing, staged},
    };

    fn names<'a>(jobs: impl Iterator<Item = &'a Job>) -> Vec<&'a str> {
        jobs.map(|job| job.plan.name.as_str()).collect()
    }

    #[test]
    fn a_board_has_the_stages_that_are_not_over_with_what_runs_and_waits() {
        let jobs = vec![job("a"), needing(job("b"), "a"), gated(staged(job("gate"), "late"))];
        let mut fixture = Fixture::begin(jobs);
        assert_eq!(fixture.leases().as_deref(), Some("a"));

        let board = Board::of(&fixture.run);
        let stages: Vec<_> = board.stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(stages, ["main", "late"]);
        assert_eq!(names(board.stages[0].jobs.iter().copied()), ["a", "b"]);
        assert_eq!(names(board.stages[0].running()), ["a"]);
        assert!(board.gates.is_empty() && !fixture.run.waits_for_people());

        fixture.succeeds("a");
        fixture.runs("b");
        let board = Board::of(&fixture.run);
        assert_eq!((board.stages.len(), board.stages[0].name.as_str()), (1, "late"));
        assert_eq!(names(board.gates.into_iter()), ["gate"]);
        assert!(fixture.run.waits_for_people());
    }

    #[test]
    fn the_changes_of_a_board_are_what_stays_on_the_screen() {
        let mut last = job("last");
        last.on_failure = crate::plan::OnFailure::Abort;
        let mut fixture = Fixture::begin(vec![gated(job("gate")), needing(last, "gate")]);
        fixture.approves("gate");
        fixture.runs("gate");
        assert_eq!(fixture.leases().as_deref(), Some("last"));
        fixture.fails("last", 1);

        let changes = fixture.facts.iter().filter_map(|fact| board_change(&fixture.run, fact));
        let said: Vec<String> = changes
            .map(|change| match change {
                BoardChange::AttemptBegan(job) => format!("began {}", job.plan.name),
                BoardChange::AttemptEnded(job) => format!("ended {}", job.plan.name),
                BoardChange::GateApproved { job, by, open } => {
                    format!("{} approved by {by}, open: {open}", job.plan.name)
                }
                BoardChange::GateVoided { job, .. } => format!("{} void", job.plan.name),
                BoardChange::RunAborted { root } => format!("aborted by {root}"),
            })
            .collect();
        let expected = [
            "gate approved by human:ana, open: true",
            "began gate",
            "ended gate",
            "began last",
            "ended last",
            "aborted by last",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn each_job_is_shown_once_it_has_ended_and_not_before() {
        let jobs = vec![job("a"), needing(job("b"), "a"), gated(job("c")), job("d"), job("e")];
        let mut fixture = Fixture::begin(jobs);
        assert_eq!(fixture.leases().as_deref(), Some("a"));
        fixture.loses("a");
        assert_eq!(fixture.leases().as_deref(), Some("a"));
        fixture.fails("a", 1);
        fixture.runs("d");
        assert_eq!(fixture.leases().as_deref(), Some("e"));
        fixture.cancels();
        fixture.reports("e", Ended::Cancelled);

        let (mut run, mut ended) = (Run::default(), Vec::new());
        for fact in &fixture.facts {
            run.evolve(fact).unwrap();
            let about = fact.event.job().and_then(|job| run.job(job.as_str()));
            if let Some(job) = about.filter(|job| job.state.is_over()) {
                assert_eq!(board_change(&run, fact), Some(BoardChange::AttemptEnded(job)));
                ended.push(job.plan.name.to_string());
            } else {
                let change = board_change(&run, fact);
                assert!(!matches!(change, Some(BoardChange::AttemptEnded(_))), "{fact:?}");
            }
        }
        assert_eq!(ended, ["a", "b", "d", "e"]);
    }
}
