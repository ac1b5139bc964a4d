//! Random plans and random histories.

use proptest::prelude::*;
use towpath_engine::{
    ids::StageName,
    plan::{JobPlan, OnFailure, Resource, RetryOn, RetryPolicy, When},
};

/// What somebody does. A `pick` chooses among the jobs that it can be done to.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Lease { tagged: bool },
    Report { pick: u8, how: u8, twice: bool },
    Lose { pick: u8 },
    Decide { pick: u8, approve: bool, stale: bool },
    Cancel,
    Resume { from: Option<u8> },
    Retry { pick: u8 },
    Time { ms: u64 },
}

/// What an `if` asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    Nothing,
    /// Whether the first need ended well, or, if not `well`, in any other way.
    Ended {
        well: bool,
    },
    /// Whether the first need put out `v: y`.
    SaidYes,
}

/// A job of a random plan.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) stage: usize,
    pub(crate) needs: Vec<usize>,
    pub(crate) when: When,
    pub(crate) aborts: bool,
    pub(crate) retries: u32,
    /// Only exit code 75 is retried.
    pub(crate) picky: bool,
    pub(crate) asks: Asks,
    pub(crate) locked: bool,
    pub(crate) tagged: bool,
}

/// A plan and what happens to it.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) stage_count: usize,
    pub(crate) specs: Vec<Spec>,
    pub(crate) parallelism: u32,
    pub(crate) preapproved: bool,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) ops: Vec<Op>,
}

pub(crate) fn job_name(job: usize) -> String {
    format!("j{job}")
}

pub(crate) fn stage_name(stage: usize) -> String {
    format!("s{stage}")
}

/// The wait before try number `failures` + 1, in milliseconds.
pub(crate) fn wait_ms(failures: u32) -> u64 {
    [1_000, 2_000, 3_000][usize::try_from(failures - 1).map_or(2, |place| place.min(2))]
}

impl Scenario {
    pub(crate) fn stages(&self) -> Vec<StageName> {
        (0..self.stage_count).map(|stage| stage_name(stage).into()).collect()
    }

    pub(crate) fn jobs(&self) -> Vec<JobPlan> {
        self.specs.iter().enumerate().map(|(job, spec)| spec.plan(job)).collect()
    }
}

impl Spec {
    fn plan(&self, job: usize) -> JobPlan {
        let retry = (self.retries > 0).then(|| RetryPolicy {
            max: self.retries,
            backoff_ms: 1_000,
            factor_percent: 200,
            backoff_max_ms: 3_000,
            jitter_percent: 0,
            on: if self.picky { vec![RetryOn::ExitCode(75)] } else { Vec::new() },
        });
        let first = self.needs.first().map(|need| job_name(*need)).unwrap_or_default();
        JobPlan {
            needs: self.needs.iter().map(|need| job_name(*need).into()).collect(),
            when: self.when,
            on_failure: if self.aborts { OnFailure::Abort } else { OnFailure::Continue },
            retry,
            condition: match self.asks {
                Asks::Nothing => None,
                Asks::Ended { well: true } => Some(format!("needs.{first}.outcome == 'succeeded'")),
                Asks::Ended { well: false } => {
                    Some(format!("needs.{first}.outcome != 'succeeded'"))
                }
                Asks::SaidYes => Some(format!("needs.{first}.outputs.v == 'y'")),
            },
            resource: self.locked.then(|| Resource { name: "target".to_owned(), limit: 1 }),
            tags: if self.tagged { vec!["t".to_owned()] } else { Vec::new() },
            ..JobPlan::new(&job_name(job), &stage_name(self.stage), "true")
        }
    }
}

type Draw = (usize, u16, u8, (bool, u32, bool), u8, (bool, bool));

fn draws() -> impl Strategy<Value = Draw> {
    let failure = (prop::bool::weighted(0.15), 0..3_u32, any::<bool>());
    let placing = (prop::bool::weighted(0.2), prop::bool::weighted(0.15));
    (0..3_usize, any::<u16>(), 0..8_u8, failure, 0..6_u8, placing)
}

/// Jobs whose needs come before them, in the file and in the stages.
fn specs(draws: Vec<Draw>, stage_count: usize) -> Vec<Spec> {
    let mut specs: Vec<Spec> = Vec::new();
    for (stage, mask, when, (aborts, retries, picky), asks, (locked, tagged)) in draws {
        let stage = stage % stage_count;
        let fits = |(job, other): (usize, &Spec)| {
            let drawn = mask & (1 << job) != 0 && mask & (1 << (job + 8)) != 0;
            (drawn && other.stage <= stage).then_some(job)
        };
        let needs: Vec<usize> = specs.iter().enumerate().filter_map(fits).collect();
        let when = match when {
            0..=4 => When::OnSuccess,
            5 | 6 => When::Always,
            _ => When::Manual,
        };
        let asks = match asks {
            _ if needs.is_empty() => Asks::Nothing,
            0 if when == When::Always => Asks::Ended { well: true },
            1 if when == When::Always => Asks::Ended { well: false },
            0 => Asks::SaidYes,
            _ => Asks::Nothing,
        };
        specs.push(Spec { stage, needs, when, aborts, retries, picky, asks, locked, tagged });
    }
    specs
}

fn op() -> impl Strategy<Value = Op> {
    let pick = any::<u8>();
    prop_oneof![
        8 => prop::bool::weighted(0.8).prop_map(|tagged| Op::Lease { tagged }),
        8 => (pick, 0..10_u8, prop::bool::weighted(0.1))
            .prop_map(|(pick, how, twice)| Op::Report { pick, how, twice }),
        1 => pick.prop_map(|pick| Op::Lose { pick }),
        3 => (pick, prop::bool::weighted(0.8), prop::bool::weighted(0.1))
            .prop_map(|(pick, approve, stale)| Op::Decide { pick, approve, stale }),
        1 => Just(Op::Cancel),
        2 => prop::option::of(0..3_u8).prop_map(|from| Op::Resume { from }),
        2 => pick.prop_map(|pick| Op::Retry { pick }),
        3 => (0..4_000_u64).prop_map(|ms| Op::Time { ms }),
    ]
}

pub(crate) fn scenario() -> impl Strategy<Value = Scenario> {
    let timeout_ms = prop::option::weighted(0.3, 5_000..60_000_u64);
    let plan = (1..4_usize, prop::collection::vec(draws(), 1..8), 1..4_u32);
    let ops = prop::collection::vec(op(), 1..80);
    (plan, prop::bool::weighted(0.15), timeout_ms, ops).prop_map(
        |((stage_count, draws, parallelism), preapproved, timeout_ms, ops)| Scenario {
            stage_count,
            specs: specs(draws, stage_count),
            parallelism,
            preapproved,
            timeout_ms,
            ops,
        },
    )
}
