//! Runs and their jobs in numbers: gauges, which are read from the runs at each scrape, and
//! counters of events. What a series is called and how it is exported is up to the server.

use std::collections::BTreeMap;

use crate::{
    event::{Fact, RunEvent, RunOutcome},
    ids::WorkerName,
    run::{Counts, Phase, Run},
    time::Timestamp,
};

/// The gauges of all runs of a store, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunMetrics {
    /// Runs by phase, and by outcome once they have ended. Every word is there.
    pub runs: BTreeMap<&'static str, u64>,
    /// Jobs of live runs by state. Every state is there.
    pub jobs: BTreeMap<&'static str, u64>,
    /// Gates of live runs that wait for a person.
    pub gates: u64,
    /// Since when the gate waits that has waited longest.
    pub oldest_gate: Option<Timestamp>,
    /// Leases by the worker that holds them.
    pub leases: BTreeMap<WorkerName, u64>,
}

impl Default for RunMetrics {
    /// No run. Not an empty map: a series that comes and goes looks like a restart to a scraper.
    fn default() -> Self {
        // A run without a record is not there, and one that has ended is counted by its outcome.
        let live =
            [Phase::Planning, Phase::Running, Phase::Aborting, Phase::Cancelling, Phase::TimingOut];
        let ended = RunOutcome::ALL.into_iter().map(RunOutcome::word);
        let words = live.iter().map(Phase::word).chain(ended);
        Self {
            runs: words.map(|word| (word, 0)).collect(),
            jobs: by_state(&Counts::default()).into_iter().map(|(state, _)| (state, 0)).collect(),
            gates: 0,
            oldest_gate: None,
            leases: BTreeMap::new(),
        }
    }
}

impl RunMetrics {
    /// Counts a run that ended like this.
    pub fn count_ended(&mut self, outcome: RunOutcome) {
        *self.runs.entry(outcome.word()).or_default() += 1;
    }

    /// Counts a run that has not ended, and its jobs.
    pub fn count_live(&mut self, run: &Run) {
        *self.runs.entry(run.phase().word()).or_default() += 1;
        for (state, count) in by_state(run.counts()) {
            *self.jobs.entry(state).or_default() += u64::from(count);
        }
        for gate in run.gates() {
            self.gates += 1;
            // An alert is about the gate that was forgotten, which an average would hide.
            self.oldest_gate = Some(self.oldest_gate.map_or(gate.since, |at| at.min(gate.since)));
        }
        // By worker: which tags it offers is known to its session alone, and the server adds them.
        for job in run.leased() {
            if let Some((_, worker)) = job.state.lease() {
                *self.leases.entry(worker.clone()).or_default() += 1;
            }
        }
    }
}

/// How many jobs are in which state, each in one state only.
fn by_state(counts: &Counts) -> [(&'static str, u32); 10] {
    [
        ("waiting", counts.waiting),
        ("at_gate", counts.at_gate),
        ("running", counts.running),
        ("backing_off", counts.backing_off),
        ("succeeded", counts.succeeded),
        // The engine counts time-outs as failures too; as metrics the two are apart.
        ("failed", counts.failed.saturating_sub(counts.timed_out)),
        ("timed_out", counts.timed_out),
        ("skipped", counts.skipped),
        ("cancelled", counts.cancelled),
        ("rejected", counts.rejected),
    ]
}

/// Counters of events, folded one fact at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounters {
    /// Leases that expired or were given up.
    pub leases_lost: u64,
}

impl EventCounters {
    /// The counters of `facts` alone.
    pub fn of(facts: &[Fact]) -> Self {
        let mut counters = Self::default();
        facts.iter().for_each(|fact| counters.take(fact));
        counters
    }

    /// Takes in one more fact.
    pub fn take(&mut self, fact: &Fact) {
        match &fact.event {
            RunEvent::JobLost { .. } => self.leases_lost += 1,
            RunEvent::RunCreated { .. }
            | RunEvent::JobsPlanned { .. }
            | RunEvent::RunStarted {}
            | RunEvent::ConditionEvaluated { .. }
            | RunEvent::GateReached { .. }
            | RunEvent::GateApproved { .. }
            | RunEvent::GateVoided { .. }
            | RunEvent::GateRejected { .. }
            | RunEvent::JobLeased { .. }
            | RunEvent::JobSucceeded { .. }
            | RunEvent::JobAttemptFailed { .. }
            | RunEvent::JobFailed { .. }
            | RunEvent::JobCancelled { .. }
            | RunEvent::JobSkipped { .. }
            | RunEvent::RunAborted { .. }
            | RunEvent::RunCancelRequested { .. }
            | RunEvent::RunTimedOut {}
            | RunEvent::RunFinished { .. }
            | RunEvent::RunResumed {}
            | RunEvent::JobsInvalidated { .. }
            | RunEvent::JobRetried { .. }
            | RunEvent::PlanReplaced { .. }
            | RunEvent::JobImported { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::testing::{Fixture, gated, job, needing},
        ids::Actor,
        test_events::one_of_each_kind,
    };

    #[test]
    fn every_job_of_a_live_run_is_in_one_state_and_every_state_is_there() {
        let mut fixture =
            Fixture::begin(vec![job("a"), needing(job("b"), "a"), gated(job("gate"))]);
        let since = fixture.now;
        assert_eq!(fixture.leases().as_deref(), Some("a"));
        fixture.passes(10);

        let mut metrics = RunMetrics::default();
        metrics.count_live(&fixture.run);
        metrics.count_ended(RunOutcome::Partial);

        assert_eq!((metrics.runs["running"], metrics.runs["partial"]), (1, 1));
        assert_eq!(metrics.runs.len(), 11, "five live phases and six outcomes");
        let at_work = ["waiting", "at_gate", "running"].map(|state| metrics.jobs[state]);
        assert_eq!(at_work, [1, 1, 1]);
        assert_eq!((metrics.jobs.len(), metrics.jobs.values().sum::<u64>()), (10, 3));
        assert_eq!((metrics.gates, metrics.oldest_gate), (1, Some(since)));
        assert_eq!(metrics.leases, BTreeMap::from([("w1".into(), 1)]));
    }

    #[test]
    fn a_lost_lease_is_counted_and_nothing_else() {
        let fact = |event| Fact { at: Timestamp(1), by: Actor::timer(), event };
        let facts: Vec<Fact> = one_of_each_kind().into_iter().map(fact).collect();
        assert_eq!(EventCounters::of(&facts), EventCounters { leases_lost: 1 });
    }
}
