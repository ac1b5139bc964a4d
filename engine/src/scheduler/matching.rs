//! Free slots meet jobs: runs take turns, the least busy worker comes first, and of workers that a
//! job prefers the one that it prefers most.
//!
//! One lease of a run is decided at a time, because which job it is follows from the one before.

use std::{cmp::Reverse, time::Duration};

use super::{
    Blame, Effect, LeaseStage, Leased, Notice, RETRY_AFTER, Scheduler, SessionId,
    demand::{WantId, turn_of},
    runs::{RunRecord, RunWant},
    session::Session,
    supply::Rank,
};
use crate::{decide::LeaseJob, ids::RunId, run::LockUsage};

/// Longest time between two trials of a store that takes no leases.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Shortest such time. A store whose queue is full is free again within a few commits.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// For each tag that a job prefers, so many free workers that offer it are compared, the least
/// busy first: a preference is a wish, and must not cost more the more workers there are.
const PREFERRED_MAX: usize = 64;

/// A lease that is being decided.
#[derive(Debug)]
pub(super) struct Deciding {
    pub(super) session: SessionId,
    /// The lock of which a place is kept for it.
    lock: Option<String>,
}

/// Whether the store takes leases.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// Nothing is leased until then.
    until: Option<Duration>,
    /// How long the next pause is.
    wait: Duration,
    /// It took none when it was last tried: one lease at a time is tried until one is durable.
    trying: bool,
    /// Leases that are being decided or written.
    in_flight: u32,
}

impl Pause {
    pub(super) fn until(&self) -> Option<Duration> {
        self.until
    }

    fn holds(&self) -> bool {
        self.until.is_some() || (self.trying && self.in_flight > 0)
    }
}

impl Scheduler {
    /// Whether nothing may be leased now.
    pub(super) fn is_paused(&self) -> bool {
        self.pause.holds()
    }

    /// Gives a job of `run` to a worker, if it has one and a worker is free. The next follows when
    /// this one is decided.
    pub(super) fn match_run(&mut self, run: &RunId) {
        // The run first: a new job looks for the best session among all that are free.
        if self.is_paused() || !self.is_available(run) {
            return;
        }
        if let Some(session) = self.choose_session(run) {
            self.ask_lease(session, run.clone());
        }
    }

    /// Fills the free slots of a session, a job of each run in turn.
    pub(super) fn match_session(&mut self, id: SessionId) {
        // A loop, because a session may have several free slots; each lease changes `indexed`,
        // which ends it.
        while !self.is_paused()
            && let Some(session) = self.sessions.get(&id).filter(|session| session.indexed > 0)
            && let Some(run) = self.next_run_for(session)
        {
            self.ask_lease(id, run);
        }
    }

    /// Other numbers of places of these locks are taken: what waited for one may begin.
    pub(super) fn match_locks(&mut self, names: &[String]) {
        for name in names {
            // Only kinds that the change has opened: a lock that is taken can only close some.
            for kind in self.demand.lock_changed(name, &self.supply, &self.locks) {
                self.match_kind(kind);
                // Workers of one run are not for the others: their run may not be the next one.
                let own = self.supply.runs().filter(|run| self.demand.has_run(kind, run));
                for run in own.cloned().collect::<Vec<RunId>>() {
                    self.match_run(&run);
                }
            }
        }
    }

    fn match_kind(&mut self, kind: WantId) {
        while !self.is_paused()
            && let Some(run) = self.demand.next_of(kind, &self.turn).cloned()
            && let Some(session) = self.choose_session(&run)
        {
            self.ask_lease(session, run);
        }
    }

    /// Gives out whatever can be given out, after nothing could be for a while.
    pub(super) fn match_all(&mut self) {
        // Collected first, because every lease changes the index that is walked.
        let free: Vec<SessionId> = self.supply.free().collect();
        for session in free {
            self.match_session(session);
        }
        let alone: Vec<SessionId> = self.supply.alone().collect();
        for session in alone {
            self.match_session(session);
        }
    }

    /// The run that has a job for `session` and whose turn it is.
    pub(super) fn next_run_for(&self, session: &Session) -> Option<RunId> {
        let Some(only) = &session.hello.only else {
            return self.demand.next_run(&session.hello.tags, &self.turn).cloned();
        };
        let record = self.runs.get(only).filter(|record| record.indexed)?;
        self.has_job_for(record, session).then(|| only.clone())
    }

    fn has_job_for(&self, record: &RunRecord, session: &Session) -> bool {
        match &session.hello.job {
            Some(job) => record
                .ready_jobs
                .get(job)
                .is_some_and(|want| want.is_free(|it| self.locks.taken(it))),
            None => self.next_want(record, &session.hello.tags).is_some(),
        }
    }

    /// What the next job of a run wants that a worker with `tags` would be given.
    fn next_want<'r>(&self, record: &'r RunRecord, tags: &[String]) -> Option<&'r RunWant> {
        let fits =
            |want: &&RunWant| want.want.fits(tags) && self.demand.is_free(want.id, &self.locks);
        record.wants.iter().filter(fits).min_by_key(|want| want.first)
    }

    /// The free session that the next job of `run` goes to.
    fn choose_session(&self, run: &RunId) -> Option<SessionId> {
        let record = self.runs.get(run).filter(|record| record.indexed)?;
        // Sessions of this run alone come into question as well, and are in no index of tags.
        let mut candidates: Vec<Rank> = self
            .supply
            .of_run(run)
            .filter_map(|id| Some((id, self.sessions.get(&id)?)))
            .filter(|(_, session)| session.indexed > 0 && self.has_job_for(record, session))
            .map(|(id, session)| (Reverse(session.indexed), id))
            .collect();
        let free =
            |want: &&RunWant| !self.supply.is_empty() && self.demand.is_free(want.id, &self.locks);
        for RunWant { want, .. } in record.wants.iter().filter(free) {
            candidates.extend(self.fitting(&want.tags, &want.tags).next());
            for tag in want.prefer.keys() {
                let preferred = self.fitting(std::slice::from_ref(tag), &want.tags);
                candidates.extend(preferred.take(PREFERRED_MAX));
            }
        }
        let weight = |(_, id): &Rank| -> u32 {
            let tags = self.sessions.get(id).map_or(&[][..], |session| &session.hello.tags);
            self.next_want(record, tags).map_or(0, |want| want.want.weight(tags))
        };
        // Weights are computed only then: they cost a look at the tags of every candidate.
        let best = if record.has_preferences {
            candidates.into_iter().min_by_key(|rank| (Reverse(weight(rank)), *rank))
        } else {
            candidates.into_iter().min()
        };
        best.map(|(_, id)| id)
    }

    /// Free sessions that offer one of the tags `by` that is rare, and all of `tags`.
    fn fitting(&self, by: &[String], tags: &[String]) -> impl Iterator<Item = Rank> {
        self.supply.candidates(by).filter(move |(_, id)| {
            let offered = self.sessions.get(id).map_or(&[][..], |session| &session.hello.tags);
            tags.iter().all(|tag| offered.contains(tag))
        })
    }

    /// Asks for a lease of `run` for a slot of `session`, which is kept for it.
    fn ask_lease(&mut self, id: SessionId, run: RunId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let Some(record) = self.runs.get(&run) else { return };
        let want = match &session.hello.job {
            Some(job) => record.ready_jobs.get(job),
            None => self.next_want(record, &session.hello.tags).map(|want| &want.want),
        };
        let lock = want.and_then(|want| want.lock.as_ref()).map(|(name, _)| name.clone());
        // The slot is taken before the lease is decided, or a second run could be promised the same
        // one.
        let Some(lease) = self.reserve(id) else { return };
        if let Some(name) = &lock {
            self.locks.keep(name);
            // It can only close kinds.
            drop(self.demand.lock_changed(name, &self.supply, &self.locks));
        }
        self.deciding.insert(run.clone(), Deciding { session: id, lock });
        self.pause.in_flight += 1;
        // Out of the index until the decision is back: one lease of a run at a time, because the
        // second depends on what the first changes.
        self.index_run(&run);
        self.take_turn(id, &run);
        self.out.push(Effect::Lease { session: id, run, lease });
    }

    /// Keeps a free slot of a session for a lease.
    pub(super) fn reserve(&mut self, id: SessionId) -> Option<LeaseJob> {
        if self.capacity(id) == 0 {
            return None;
        }
        let session = self.sessions.get_mut(&id)?;
        // Counted apart from what is held: a lease that fails gives the slot back.
        session.reserved += 1;
        let lease = LeaseJob {
            worker: session.hello.worker.clone(),
            tags: session.hello.tags.clone(),
            lease_ms: u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX),
            // Filled in where it is decided: by then others may hold more.
            busy: LockUsage::new(),
            only: session.hello.job.clone(),
        };
        self.index_session(id);
        Some(lease)
    }

    /// Gives a kept slot back.
    pub(super) fn unreserve(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.reserved = session.reserved.saturating_sub(1);
            self.index_session(id);
        }
    }

    /// Whether the slot that a report frees goes to the run that the report is about: if it is
    /// that run's turn, or no other wants the slot. What its jobs want is known only when the
    /// report is recorded, so a run with preferences is not asked.
    pub(super) fn takes_turn(&self, id: SessionId, run: &RunId) -> bool {
        let Some(session) = self.sessions.get(&id) else { return false };
        let Some(record) = self.runs.get(run) else { return false };
        let settled = !self.is_paused() && !self.pause.trying && record.held_back.is_none();
        if !settled || record.has_preferences || !session.takes(run) {
            return false;
        }
        let other = self.next_run_for(session);
        other.is_none_or(|other| turn_of(run, &self.turn) <= turn_of(&other, &self.turn))
    }

    /// A slot of session `id` goes to `run`: the next one is another run's turn. A session that
    /// takes jobs of this run alone takes no turn. The order would begin again after its run each
    /// time, and a run further on would not get as far as its turn while that session works.
    pub(super) fn take_turn(&mut self, id: SessionId, run: &RunId) {
        let takes_any = |session: &Session| session.hello.only.is_none();
        if self.sessions.get(&id).is_some_and(takes_any) {
            // The turn moves with the request and not with its success, so that a run whose leases
            // fail does not keep it.
            self.turn = run.clone();
        }
    }

    pub(super) fn lease_decided(&mut self, id: SessionId, run: &RunId, recorded: bool) {
        let changed = self.end_deciding(id, run);
        if !recorded {
            // Every answer is counted, also a refusal: a pause ends when none is out any more.
            self.pause.in_flight = self.pause.in_flight.saturating_sub(1);
            self.unreserve(id);
            let session = self.sessions.get(&id);
            let record = self.runs.get(run);
            // The engine had nothing for the worker although the index has: tried again at once
            // that would go on for ever.
            if let (Some(session), Some(record)) = (session, record)
                && self.has_job_for(record, session)
            {
                self.hold_back(run, self.now + RETRY_AFTER);
            }
        }
        self.index_run(run);
        self.match_run(run);
        self.match_locks(&changed);
        if !recorded {
            self.match_session(id);
        }
    }

    /// A lease is decided, one way or the other. Answers the lock of which a place was kept.
    fn end_deciding(&mut self, id: SessionId, run: &RunId) -> Vec<String> {
        if self.deciding.get(run).is_none_or(|deciding| deciding.session != id) {
            return Vec::new();
        }
        let lock = self.deciding.remove(run).and_then(|deciding| deciding.lock);
        if let Some(name) = &lock {
            self.locks.unkeep(name);
        }
        lock.into_iter().collect()
    }

    pub(super) fn lease_failed(
        &mut self,
        id: SessionId,
        run: &RunId,
        stage: LeaseStage,
        blame: Blame,
    ) {
        self.pause.in_flight = self.pause.in_flight.saturating_sub(1);
        self.unreserve(id);
        let changed = match stage {
            LeaseStage::Decide => self.end_deciding(id, run),
            LeaseStage::Write => Vec::new(),
        };
        match blame {
            // Only this run: one damaged run must not stop the leases of all others.
            Blame::Run => self.hold_back(run, self.now + RETRY_AFTER),
            Blame::Store => self.pause_leasing(),
        }
        self.index_run(run);
        self.match_run(run);
        self.match_locks(&changed);
        self.match_session(id);
    }

    fn pause_leasing(&mut self) {
        if self.pause.until.is_some() {
            // Another lease of the same moment.
            return;
        }
        // The first failure of an outage is reported. Later ones only make the pause longer.
        if !std::mem::replace(&mut self.pause.trying, true) {
            self.pause.wait = PAUSE_MIN;
            self.out.push(Effect::Notice(Notice::LeasingPaused));
        }
        self.pause.until = Some(self.now + self.pause.wait);
        self.pause.wait = (self.pause.wait * 2).min(PAUSE_MAX);
    }

    /// Ends pauses that are over.
    pub(super) fn end_pauses(&mut self) {
        while let Some((until, run)) = self.held_back.first().cloned()
            && until <= self.now
        {
            self.release_run(&run);
            // In any case, or the loop would not end.
            self.held_back.remove(&(until, run.clone()));
            self.index_run(&run);
            self.match_run(&run);
        }
        if self.pause.until.is_some_and(|until| until <= self.now) {
            self.pause.until = None;
            self.match_all();
        }
    }

    pub(super) fn lease_durable(&mut self, id: SessionId, leased: Vec<Leased>) {
        self.pause.in_flight = self.pause.in_flight.saturating_sub(1);
        self.unreserve(id);
        for leased in &leased {
            if let Some(record) = self.runs.get_mut(&leased.attempt.run) {
                record.failing = false;
            }
        }
        self.give(id, leased);
        // After a pause one lease is tried. If it is durable the store works again, and all
        // sessions are matched.
        let resumed = self.pause.until.is_none() && std::mem::take(&mut self.pause.trying);
        if resumed {
            self.out.push(Effect::Notice(Notice::LeasingResumed));
            self.match_all();
        }
        self.match_session(id);
    }
}
