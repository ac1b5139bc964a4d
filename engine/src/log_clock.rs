//! The time of the log: it never goes back, and it always advances.
//!
//! Pure: a reading of both clocks of the machine goes in, a stamp comes out. The log's time follows
//! the wall clock, and continues at the pace of the monotonic clock while the wall clock is behind
//! it.

use std::time::Duration;

use crate::time::Timestamp;

/// The least jump of the wall clock, and the least lead of the log's time over it, that is
/// reported. Smaller ones are the daily work of a time server.
pub const JUMP_MS_MIN: u64 = 60_000;

/// What the two clocks of a machine show at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The wall clock. It may be set at any time, in both directions.
    pub wall: Timestamp,
    /// The time since a moment that stays the same for as long as the process lives. Never goes
    /// back.
    pub elapsed: Duration,
}

/// A wall clock that is not where it should be. Reported once for each jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jump {
    /// The wall clock went ahead by this many milliseconds at once: it was set, or the machine
    /// slept. The log's time follows, because nothing distinguishes the two.
    Ahead(u64),
    /// The wall clock is behind the log by this many milliseconds. The log's time continues without
    /// it.
    Behind(u64),
}

/// The stamp of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// When the event is said to have happened.
    pub at: Timestamp,
    /// What is to be said about the wall clock, if anything is.
    pub jump: Option<Jump>,
}

/// Turns readings into stamps.
#[derive(Clone, Copy, Debug)]
pub struct LogClock {
    /// A stamp, and the monotonic clock at that moment: later stamps are measured from here. Stamps
    /// are not added up step by step, because each step would lose what is below a millisecond.
    origin: (Timestamp, Duration),
    newest: Timestamp,
    /// Whether the wall clock set the origin. Until then the time since the newest event of the log
    /// is unknown, and a wall clock far ahead of it did not jump: the server was not running.
    follows_wall: bool,
    reported_behind: bool,
}

impl LogClock {
    /// The time of a log whose newest event is from `newest`, on a process that opens it when its
    /// monotonic clock shows `elapsed`.
    pub fn new(newest: Timestamp, elapsed: Duration) -> Self {
        Self { origin: (newest, elapsed), newest, follows_wall: false, reported_behind: false }
    }

    /// Has a log that nothing was stamped for yet go on from `newest`, if that is later: its newest
    /// event is known only once the streams of every kind are read.
    pub fn go_on_from(&mut self, newest: Timestamp, elapsed: Duration) {
        if newest > self.newest {
            *self = Self::new(newest, elapsed);
        }
    }

    /// The time of the log at `reading`.
    pub fn stamp(&mut self, reading: Reading) -> Stamp {
        let Reading { wall, elapsed } = reading;
        let expected = self.expected(elapsed);
        let mut jump = None;
        // The wall clock is followed as soon as it is not behind: the log then has the time that
        // people and other logs have.
        if wall >= expected {
            let ahead = wall.ms_since(expected);
            if self.follows_wall && ahead >= JUMP_MS_MIN {
                jump = Some(Jump::Ahead(ahead));
            }
            // Each reading that is followed becomes the origin, so that a slow drift of the
            // monotonic clock never adds up.
            self.origin = (wall, elapsed);
            (self.follows_wall, self.reported_behind) = (true, false);
        } else {
            let behind = expected.ms_since(wall);
            if behind >= JUMP_MS_MIN && !self.reported_behind {
                // Only reported: the log does not go back, because due times and durations of
                // running jobs would become negative.
                jump = Some(Jump::Behind(behind));
                self.reported_behind = true;
            }
        }
        // Two threads may read the clocks in one order and come here in the other.
        self.newest = self.newest.max(expected).max(wall);
        Stamp { at: self.newest, jump }
    }

    /// How far the log's time is ahead of the wall clock, in milliseconds.
    pub fn ahead_ms(&self, reading: Reading) -> u64 {
        self.expected(reading.elapsed).ms_since(reading.wall)
    }

    /// The time of the log by the monotonic clock alone.
    fn expected(&self, elapsed: Duration) -> Timestamp {
        let (stamp, since) = self.origin;
        let ms = elapsed.saturating_sub(since).as_millis();
        stamp.plus_ms(u64::try_from(ms).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const YEAR_MS: i64 = 365 * 86_400_000;
    const START: i64 = 1_763_715_723_000;

    fn reading(wall: i64, elapsed_ms: u64) -> Reading {
        Reading { wall: Timestamp(wall), elapsed: Duration::from_millis(elapsed_ms) }
    }

    /// A clock of a server that began at `START` and knows what time it is.
    fn running() -> LogClock {
        let mut clock = LogClock::new(Timestamp(0), Duration::ZERO);
        assert_eq!(clock.stamp(reading(START, 0)), Stamp { at: Timestamp(START), jump: None });
        clock
    }

    #[test]
    fn a_clock_that_was_ahead_is_reported_and_time_continues() {
        let mut clock = running();

        let ahead = clock.stamp(reading(START + YEAR_MS, 10));
        assert_eq!(ahead.at, Timestamp(START + YEAR_MS));
        assert_eq!(ahead.jump, Some(Jump::Ahead(YEAR_MS as u64 - 10)));

        let back = clock.stamp(reading(START + 20, 20));
        assert_eq!(back.at, Timestamp(START + YEAR_MS + 10), "10 ms later, whatever the wall says");
        assert_eq!(back.jump, Some(Jump::Behind(YEAR_MS as u64 - 10)));
        let later = clock.stamp(reading(START + 5_020, 5_020));
        let expected = Stamp { at: Timestamp(START + YEAR_MS + 5_010), jump: None };
        assert_eq!(later, expected, "said once");
        assert_eq!(clock.ahead_ms(reading(START + 5_020, 5_020)), YEAR_MS as u64 - 10);
    }

    #[test]
    fn a_wall_clock_that_catches_up_is_followed_again() {
        let mut clock = running();
        clock.stamp(reading(START - 100_000, 10));

        let caught_up = clock.stamp(reading(START + 50, 50));
        assert_eq!(caught_up, Stamp { at: Timestamp(START + 50), jump: None });
        let behind_again = clock.stamp(reading(START - 100_000, 60));
        assert_eq!(behind_again.jump, Some(Jump::Behind(100_060)), "a second jump is said too");
    }

    #[test]
    fn after_a_restart_time_continues_from_the_newest_event() {
        let newest = Timestamp(START + YEAR_MS);
        let mut clock = LogClock::new(newest, Duration::from_millis(7));

        let first = clock.stamp(reading(START, 7));
        assert_eq!(first.at, newest);
        assert_eq!(first.jump, Some(Jump::Behind(YEAR_MS as u64)));
        assert_eq!(clock.stamp(reading(START, 1_007)).at, newest.plus_ms(1_000));
    }

    #[test]
    fn a_server_that_was_not_running_for_a_year_saw_no_jump() {
        let mut clock = LogClock::new(Timestamp(START), Duration::ZERO);
        let first = clock.stamp(reading(START + YEAR_MS, 0));
        assert_eq!(first, Stamp { at: Timestamp(START + YEAR_MS), jump: None });
    }

    #[test]
    fn what_is_below_a_millisecond_is_not_lost() {
        let mut clock = LogClock::new(Timestamp(START), Duration::ZERO);
        let step = Duration::from_micros(400);
        for nth in 1..=10_000 {
            clock.stamp(Reading { wall: Timestamp(0), elapsed: step * nth });
        }
        assert_eq!(clock.stamp(reading(0, 4_000)).at, Timestamp(START + 4_000));
    }

    proptest! {
        #[test]
        fn stamps_never_go_back_and_never_stand_still(
            walls in proptest::collection::vec((-YEAR_MS..YEAR_MS, 0u64..100_000), 1..40),
            newest in -YEAR_MS..YEAR_MS,
        ) {
            let mut clock = LogClock::new(Timestamp(START + newest), Duration::ZERO);
            let mut elapsed = 0;
            let mut before = Timestamp(START + newest);
            for (wall, step) in walls {
                elapsed += step;
                let stamp = clock.stamp(reading(START + wall, elapsed));
                prop_assert!(stamp.at.ms_since(before) >= step);
                prop_assert!(stamp.at >= Timestamp(START + wall));
                before = stamp.at;
            }
        }
    }
}
