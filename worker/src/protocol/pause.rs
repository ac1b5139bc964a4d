//! When a worker that takes no jobs, because it cannot write its own files, checks again whether it
//! can.

use std::time::Duration;

/// Shortest time until a paused worker looks again; it doubles with every look in vain.
const CHECK_MIN: Duration = Duration::from_secs(1);
/// Longest time between two looks.
const CHECK_MAX: Duration = Duration::from_secs(60);

/// Whether the worker is paused, and when it checks again.
#[derive(Debug, Default)]
pub(super) struct Pause {
    checks: u32,
    /// When to look. `None`: the worker is not paused.
    check_at: Option<Duration>,
    /// It is being looked.
    checking: bool,
    ended: Option<Duration>,
}

impl Pause {
    pub(super) fn is_paused(&self) -> bool {
        self.check_at.is_some()
    }

    /// When to look next.
    pub(super) fn check_at(&self) -> Option<Duration> {
        self.check_at.filter(|_| !self.checking)
    }

    /// The worker takes no jobs from `now` on. `false`: it is paused already.
    pub(super) fn begin(&mut self, now: Duration) -> bool {
        if self.is_paused() {
            return false;
        }
        // A disk that is full again as soon as it is used is not asked more often for it.
        let recent = self.ended.is_some_and(|ended| now.saturating_sub(ended) < CHECK_MAX);
        if !recent {
            self.checks = 0;
        }
        self.put_off(now);
        true
    }

    fn put_off(&mut self, now: Duration) {
        let wait = CHECK_MIN.saturating_mul(1 << self.checks.min(16)).min(CHECK_MAX);
        self.check_at = Some(now + wait);
        self.checks += 1;
    }

    /// Whether it is time to look. It is asked for once.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        let due = self.check_at().is_some_and(|at| at <= now);
        self.checking |= due;
        due
    }

    /// The worker looked. `true`: it takes jobs again from `now` on.
    pub(super) fn checked(&mut self, usable: bool, now: Duration) -> bool {
        if !std::mem::take(&mut self.checking) {
            return false;
        }
        if usable {
            (self.check_at, self.ended) = (None, Some(now));
        } else {
            self.put_off(now);
        }
        usable
    }
}
