//! Times and durations of the contract as the milliseconds that the rest of Towpath counts in, and
//! back.

use prost_types::{Duration, Timestamp};

const MS_PER_SECOND: u64 = 1_000;
const NANOS_PER_MS: i32 = 1_000_000;
const NANOS_PER_SECOND: i32 = 1_000_000_000;

/// The time `ms` milliseconds after 1970-01-01 UTC.
pub fn timestamp(ms: i64) -> Timestamp {
    let per_second = 1_000;
    let rest = i32::try_from(ms.rem_euclid(per_second)).unwrap_or(0);
    Timestamp { seconds: ms.div_euclid(per_second), nanos: rest * NANOS_PER_MS }
}

/// `time` in milliseconds after 1970-01-01 UTC, rounded down. `None`: it is not a valid time, or
/// does not fit.
pub fn timestamp_ms(time: &Timestamp) -> Option<i64> {
    if !(0..NANOS_PER_SECOND).contains(&time.nanos) {
        return None;
    }
    time.seconds.checked_mul(1_000)?.checked_add(i64::from(time.nanos / NANOS_PER_MS))
}

/// A duration of `ms` milliseconds.
pub fn duration(ms: u64) -> Duration {
    let seconds = i64::try_from(ms / MS_PER_SECOND).unwrap_or(i64::MAX);
    let rest = i32::try_from(ms % MS_PER_SECOND).unwrap_or(0);
    Duration { seconds, nanos: rest * NANOS_PER_MS }
}

/// `duration` in milliseconds, rounded down. `None`: it is negative, or not a valid duration.
pub fn duration_ms(duration: &Duration) -> Option<u64> {
    // A message may hold any numbers: seconds and nanoseconds of different signs among them.
    if !(0..NANOS_PER_SECOND).contains(&duration.nanos) {
        return None;
    }
    let nanos = u64::try_from(duration.nanos / NANOS_PER_MS).ok()?;
    u64::try_from(duration.seconds).ok()?.checked_mul(MS_PER_SECOND)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_come_back_as_they_were() {
        for ms in [0, 1, 999, 1_000, 1_763_715_723_007, -1, -1_000, -1_001] {
            assert_eq!(timestamp_ms(&timestamp(ms)), Some(ms));
        }
        for ms in [0, 1, 999, 1_000, 86_400_001, u64::MAX] {
            assert_eq!(duration_ms(&duration(ms)), Some(ms));
        }
        assert_eq!(timestamp(-1), Timestamp { seconds: -1, nanos: 999_000_000 });
    }

    #[test]
    fn what_is_no_time_is_none() {
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0)] {
            assert_eq!(timestamp_ms(&Timestamp { seconds, nanos }), None, "{seconds} {nanos}");
        }
        for (seconds, nanos) in [(-1, 0), (0, -1), (1, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
            assert_eq!(duration_ms(&Duration { seconds, nanos }), None, "{seconds} {nanos}");
        }
    }
}
