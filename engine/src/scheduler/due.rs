//! When time itself changes something in a run: a retry, a timeout, an approval that expires.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ids::RunId, time::Timestamp};

/// Shortest time after which a run is retried whose time could not be passed.
const RETRY_MS_MIN: u64 = 1_000;
/// Longest such time.
const RETRY_MS_MAX: u64 = 60_000;

/// When each run is due, the next one first.
#[derive(Debug, Default)]
pub struct DueTimes {
    of_run: BTreeMap<RunId, Due>,
    order: BTreeSet<(Timestamp, RunId)>,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    /// By the run's own account. `None`: only a failed trial is left of it.
    at: Option<Timestamp>,
    /// When it is looked at: later than `at` after failures.
    look: Timestamp,
    /// How long the last pause after a failure was, in milliseconds; 0: there was none.
    pause_ms: u64,
}

impl DueTimes {
    /// `run` is due at `at`, or time changes nothing in it. Answers whether the earliest of all
    /// moments is another one now.
    pub fn set(&mut self, run: &RunId, at: Option<Timestamp>) -> bool {
        let before = self.next();
        let known = self.of_run.get(run).copied();
        if let (Some(at), Some(known)) = (at, known)
            && known.pause_ms > 0
        {
            // The run says so again whenever it is read. That it failed is not forgotten by that:
            // on a full disk it would be retried at once, for ever.
            self.place(run, Due { at: Some(at), look: known.look.max(at), ..known });
            return self.next() != before;
        }
        match at {
            Some(at) => self.place(run, Due { at: Some(at), look: at, pause_ms: 0 }),
            None => self.remove(run),
        }
        self.next() != before
    }

    fn place(&mut self, run: &RunId, due: Due) {
        self.remove(run);
        self.order.insert((due.look, run.clone()));
        self.of_run.insert(run.clone(), due);
    }

    fn remove(&mut self, run: &RunId) {
        if let Some(due) = self.of_run.remove(run) {
            self.order.remove(&(due.look, run.clone()));
        }
    }

    /// The earliest moment at which a run is to be looked at.
    pub fn next(&self) -> Option<Timestamp> {
        self.order.first().map(|(at, _)| *at)
    }

    /// The runs that are to be looked at by `now`.
    pub fn due(&self, now: Timestamp) -> Vec<RunId> {
        let due = self.order.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, run)| run.clone()).collect()
    }

    /// As [`DueTimes::next`], without the runs in `except`.
    pub fn next_except(&self, except: &BTreeSet<RunId>) -> Option<Timestamp> {
        self.order.iter().find(|(_, run)| !except.contains(run)).map(|(at, _)| *at)
    }

    /// As [`DueTimes::due`], without the runs in `except`, and `most` at most.
    pub fn due_except(&self, now: Timestamp, except: &BTreeSet<RunId>, most: usize) -> Vec<RunId> {
        let due = self.order.iter().take_while(|(at, _)| *at <= now);
        let others = due.filter(|(_, run)| !except.contains(run));
        others.take(most).map(|(_, run)| run.clone()).collect()
    }

    /// What is due in `run` was done: what it says from here on counts at once.
    pub fn done(&mut self, run: &RunId) {
        if let Some(due) = self.of_run.get(run).copied().filter(|due| due.pause_ms > 0) {
            match due.at {
                Some(at) => self.place(run, Due { at: Some(at), look: at, pause_ms: 0 }),
                None => self.remove(run),
            }
        }
    }

    /// What is due in `run` could not be done at `now`: it is retried, ever later. Answers
    /// whether this is the first failure.
    pub fn failed(&mut self, run: &RunId, now: Timestamp) -> bool {
        let known = self.of_run.get(run).copied();
        let before = known.map_or(0, |due| due.pause_ms);
        // Doubled up to a minute: on a full disk every run with a due time would otherwise be tried
        // each second.
        let pause_ms = (before * 2).clamp(RETRY_MS_MIN, RETRY_MS_MAX);
        let at = known.and_then(|due| due.at);
        self.place(run, Due { at, look: now.plus_ms(pause_ms), pause_ms });
        before == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_is_found_without_looking_at_the_others() {
        let mut due = DueTimes::default();
        let (a, b) = (RunId::from("a"), RunId::from("b"));

        assert!(due.set(&a, Some(Timestamp(20))));
        assert!(due.set(&b, Some(Timestamp(10))));
        assert!(!due.set(&a, Some(Timestamp(30))), "b is earlier still");

        assert_eq!(due.due(Timestamp(10)), std::slice::from_ref(&b));
        let except = BTreeSet::from([b.clone()]);
        assert_eq!(due.next_except(&except), Some(Timestamp(30)));
        assert_eq!(due.due_except(Timestamp(30), &except, 9), std::slice::from_ref(&a));
        assert_eq!(due.due_except(Timestamp(30), &BTreeSet::new(), 1), std::slice::from_ref(&b));
        assert!(due.set(&b, None));
        assert_eq!((due.next(), due.due(Timestamp(29))), (Some(Timestamp(30)), vec![]));
    }

    #[test]
    fn a_run_whose_time_cannot_be_passed_is_tried_ever_later() {
        let mut due = DueTimes::default();
        let run = RunId::from("r");
        due.set(&run, Some(Timestamp(0)));
        let (mut now, mut trials) = (Timestamp(0), 0);

        // The store is full for an hour, and the run is read again after every failure.
        while now < Timestamp(3_600_000) {
            trials += 1;
            assert_eq!(due.failed(&run, now), trials == 1, "it is said once");
            due.set(&run, Some(Timestamp(0)));
            now = due.next().unwrap();
        }

        assert_eq!(trials, 65);
        due.done(&run);
        assert_eq!(due.due(Timestamp(0)), [run], "and then it is used at once");
    }
}
