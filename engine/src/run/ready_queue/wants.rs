//! What the ready jobs of a run require of a worker: tags, a lock, and which workers they prefer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Job, LockUsage, QueueState, ReadyQueue};
use crate::time::Timestamp;

/// What a job wants of a worker. Jobs that want the same share one value, so that the workers are
/// matched once for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want {
    /// What the worker must offer, in alphabetical order.
    pub tags: Vec<String>,
    /// The lock that the job holds while it is leased, and how many jobs of all runs may hold it.
    pub lock: Option<(String, u32)>,
    /// How much a worker is preferred for each tag that it offers.
    pub prefer: BTreeMap<String, u32>,
}

impl Want {
    pub(super) fn of(job: &Job) -> Self {
        let mut tags = job.plan.tags.clone();
        // Sorted, so that `[a, b]` and `[b, a]` are one class.
        tags.sort();
        let lock = job.plan.resource.as_ref().map(|lock| (lock.name.clone(), lock.limit));
        Self { tags, lock, prefer: job.plan.prefer.clone() }
    }

    /// Whether a worker that offers `tags` may be given such a job.
    pub fn fits(&self, tags: &[String]) -> bool {
        self.tags.iter().all(|tag| tags.contains(tag))
    }

    /// How much a worker that offers `tags` is preferred; 0: no more than any other.
    pub fn weight(&self, tags: &[String]) -> u32 {
        let offered = self.prefer.iter().filter(|(tag, _)| tags.contains(tag));
        offered.fold(0, |sum, (_, weight)| sum.saturating_add(*weight))
    }

    /// Whether its lock has a free place, if `taken` places of a lock are taken.
    pub fn is_free(&self, taken: impl FnOnce(&str) -> u32) -> bool {
        self.lock.as_ref().is_none_or(|(name, limit)| taken(name) < *limit)
    }
}

/// How many jobs of a run want the same and could begin now, but for locks and parallelism.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What they want.
    pub want: Arc<Want>,
    /// How many they are; at least one.
    pub jobs: u32,
    /// The place of the first of them in the file: it is leased first.
    pub first: u32,
}

impl ReadyQueue {
    /// Whether a job that waits for a worker prefers some of them.
    pub(in crate::run) fn has_preferences(&self) -> bool {
        let waits = |class: usize| {
            let backing_off =
                |(_, index): &(Timestamp, u32)| self.class_of[*index as usize] as usize == class;
            !self.ready[class].is_empty() || self.backoff.iter().any(backing_off)
        };
        (0..self.classes.len()).any(|class| !self.classes[class].prefer.is_empty() && waits(class))
    }

    /// What could be leased at `now`, but for locks and parallelism.
    pub(in crate::run) fn wants(&self, now: Timestamp) -> Vec<Wanted> {
        let mut due: BTreeMap<usize, (u32, u32)> = BTreeMap::new();
        // Due attempts stay in the back-off index until they are leased: moving them when they
        // become due would need an event of its own.
        for (_, index) in self.backoff.range(..=(now, u32::MAX)) {
            let class = self.class_of[*index as usize] as usize;
            let (jobs, first) = due.entry(class).or_insert((0, *index));
            (*jobs, *first) = (*jobs + 1, (*first).min(*index));
        }
        let of_class = |(class, want): (usize, &Arc<Want>)| {
            let ready = &self.ready[class];
            let (due, first_due) = due.get(&class).copied().unwrap_or((0, u32::MAX));
            let jobs = u32::try_from(ready.len()).unwrap_or(u32::MAX).saturating_add(due);
            let first = ready.first().copied().unwrap_or(u32::MAX).min(first_due);
            (jobs > 0).then(|| Wanted { want: Arc::clone(want), jobs, first })
        };
        self.classes.iter().enumerate().filter_map(of_class).collect()
    }

    /// The names of the locks that jobs of the run need.
    pub(in crate::run) fn locks(&self) -> BTreeSet<&str> {
        let locks = self.classes.iter().filter_map(|want| want.lock.as_ref());
        locks.map(|(name, _)| name.as_str()).collect()
    }

    /// How many jobs hold each lock.
    pub(in crate::run) fn busy(&self) -> &LockUsage {
        &self.busy
    }

    pub(super) fn hold(&mut self, index: u32) -> bool {
        if let Some((name, _)) = &self.classes[self.class_of[index as usize] as usize].lock {
            *self.busy.entry(name.clone()).or_default() += 1;
        }
        self.leased.insert(index)
    }

    pub(super) fn let_go(&mut self, index: u32) -> bool {
        if let Some((name, _)) = &self.classes[self.class_of[index as usize] as usize].lock
            && let Some(held) = self.busy.get_mut(name)
        {
            *held -= 1;
            if *held == 0 {
                // Absent and zero mean the same: distinguished, two equal queues would differ.
                self.busy.remove(name);
            }
        }
        self.leased.remove(&index)
    }

    /// Whether a job may be leased at `now`, to any worker.
    pub(in crate::run) fn may_be_leased(
        &self,
        index: u32,
        busy: &LockUsage,
        now: Timestamp,
    ) -> bool {
        let want = self.want_of(index, now);
        want.is_some_and(|want| want.is_free(|name| held(busy, name)))
    }

    /// What a job wants of a worker, if it could begin at `now` but for its lock.
    pub(in crate::run) fn want_of(&self, index: u32, now: Timestamp) -> Option<&Arc<Want>> {
        let is_due = match self.place[index as usize] {
            QueueState::Ready => true,
            QueueState::Backoff(due) => due <= now,
            QueueState::NotQueued
            | QueueState::Unevaluated
            | QueueState::Blocked
            | QueueState::Gate
            | QueueState::Leased => false,
        };
        is_due.then(|| &self.classes[self.class_of[index as usize] as usize])
    }

    /// The first job, in file order, that a worker with `tags` may be given at `now`.
    pub(in crate::run) fn next_for(
        &self,
        tags: &[String],
        busy: &LockUsage,
        now: Timestamp,
    ) -> Option<u32> {
        let fitting = |class: &usize| {
            let want = &self.classes[*class];
            want.is_free(|name| held(busy, name)) && want.fits(tags)
        };
        let ready = (0..self.classes.len())
            // Before the comparison of tags, which costs more and would be paid for every class
            // that has ended.
            .filter(|class| !self.ready[*class].is_empty())
            .filter(fitting)
            .filter_map(|class| self.ready[class].first().copied())
            .min();
        let due = self
            .backoff
            .range(..=(now, u32::MAX))
            .map(|(_, index)| *index)
            .filter(|index| fitting(&(self.class_of[*index as usize] as usize)))
            .min();
        match (ready, due) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

fn held(busy: &LockUsage, name: &str) -> u32 {
    busy.get(name).copied().unwrap_or(0)
}
