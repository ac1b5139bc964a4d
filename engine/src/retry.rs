//! When a failed job is retried, and for how long it waits first.

use crate::{
    event::FailureCause,
    ids::{Attempt, Digest, JobName, RunId},
    plan::{RetryOn, RetryPolicy},
};

/// How many lost workers a job may have before it fails. Enough for a night of restarts,
/// few enough that a job which kills its worker does not go round for ever.
pub const LOSSES_MAX: u32 = 20;

/// Whether `policy` answers to `cause` after `failures` failures, this one included.
pub fn retries(policy: &RetryPolicy, cause: &FailureCause, failures: u32) -> bool {
    let covers = |on: &RetryOn| match (on, cause) {
        (RetryOn::ExitCode(wanted), FailureCause::ExitCode(code)) => wanted == code,
        // A shell reports a signal as 128 and its number, and the two cannot be distinguished.
        (RetryOn::ExitCode(wanted), FailureCause::Signal(signal)) => *wanted == 128 + signal,
        (RetryOn::Timeout, FailureCause::TimedOut(_))
        | (RetryOn::Signal, FailureCause::Signal(_))
        | (RetryOn::Spawn, FailureCause::NotStarted(_)) => true,
        (RetryOn::ExitCode(_) | RetryOn::Timeout | RetryOn::Signal | RetryOn::Spawn, _) => false,
    };
    // `max` counts retries, and the failure number `max` is followed by the last of them.
    failures <= policy.max && (policy.on.is_empty() || policy.on.iter().any(covers))
}

/// The wait before the attempt that follows failure number `failures` (from 1), in milliseconds.
///
/// The jitter comes from the names, so the same history gives the same wait on every machine.
pub fn backoff_ms(
    policy: &RetryPolicy,
    failures: u32,
    run: &RunId,
    job: &JobName,
    attempt: Attempt,
) -> u64 {
    let mut wait = policy.backoff_ms;
    // A loop with a stop at the bound, because a power of the factor would overflow long before 100
    // retries.
    for _ in 1..failures {
        wait = wait.saturating_mul(u64::from(policy.factor_percent)) / 100;
        if wait >= policy.backoff_max_ms {
            break;
        }
    }
    let wait = wait.min(policy.backoff_max_ms);
    let spread = wait.saturating_mul(u64::from(policy.jitter_percent.min(100))) / 100;
    // Also keeps the remainder below from a division by one, which would be harmless, and the hash
    // from being computed for nothing.
    if spread == 0 {
        return wait;
    }
    // The engine has no random numbers. A hash spreads jobs of one matrix as well, and a replay
    // gets the same due time.
    let seed = Digest::of(format!("{run}\n{job}\n{attempt}").as_bytes());
    let draw = seed.0.iter().take(8).fold(0_u64, |all, byte| (all << 8) | u64::from(*byte));
    wait - spread + draw % (2 * spread + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(on: Vec<RetryOn>) -> RetryPolicy {
        RetryPolicy {
            max: 3,
            backoff_ms: 1_000,
            factor_percent: 200,
            backoff_max_ms: 5_000,
            jitter_percent: 0,
            on,
        }
    }

    fn wait(policy: &RetryPolicy, failures: u32) -> u64 {
        backoff_ms(policy, failures, &"r".into(), &"j".into(), Attempt(failures))
    }

    #[test]
    fn waits_double_up_to_the_bound() {
        let waits = [1, 2, 3, 4, 40].map(|failures| wait(&policy(vec![]), failures));
        assert_eq!(waits, [1_000, 2_000, 4_000, 5_000, 5_000]);
    }

    #[test]
    fn jitter_stays_within_its_share_and_is_not_constant() {
        let policy = RetryPolicy { jitter_percent: 20, backoff_max_ms: 1_000, ..policy(vec![]) };
        let waits: Vec<u64> = (1..200).map(|failures| wait(&policy, failures)).collect();
        assert!(waits.iter().all(|wait| (800..=1_200).contains(wait)));
        assert!(waits.iter().any(|wait| *wait < 900) && waits.iter().any(|wait| *wait > 1_100));
    }

    #[test]
    fn only_listed_failures_are_retried_and_only_so_often() {
        let listed = policy(vec![RetryOn::ExitCode(75), RetryOn::Timeout]);
        assert!(retries(&listed, &FailureCause::ExitCode(75), 1));
        assert!(retries(&listed, &FailureCause::TimedOut(9), 3));
        assert!(!retries(&listed, &FailureCause::ExitCode(1), 1));
        assert!(!retries(&listed, &FailureCause::ExitCode(75), 4));
        assert!(retries(&policy(vec![]), &FailureCause::Signal(9), 1));
    }
}
