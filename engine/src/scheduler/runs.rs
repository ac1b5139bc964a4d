//! What the scheduler knows of each live run, kept in step with what is decided on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{Effect, Notice, Scheduler, SessionId, demand::WantId};
use crate::{
    event::{Fact, RunEvent},
    ids::{Attempt, AttemptId, JobName, RunId, WorkerName},
    run::{LockUsage, Run, Want, Wanted},
    time::Timestamp,
};

/// A run that has not ended.
#[derive(Debug, Default)]
pub(super) struct RunRecord {
    pub(super) wants: Vec<RunWant>,
    /// How many jobs more may be leased before its parallelism is reached.
    pub(super) room: u32,
    /// Its kinds want more than that, and locks decide which of them can begin. Which are free
    /// changes without an event of this run, so its jobs are counted on request.
    shares_room: bool,
    /// A job that waits for a worker prefers some of them.
    pub(super) has_preferences: bool,
    /// It is ending, by what was decided.
    is_ending: bool,
    /// That is durable: what runs of it is cancelled.
    pub(super) cancels: bool,
    /// A lease of it failed: until then it is left alone.
    pub(super) held_back: Option<Duration>,
    /// That was said.
    pub(super) failing: bool,
    /// Whether the kinds of its jobs name it.
    pub(super) indexed: bool,
    /// Of the jobs for which a single session waits, those that could begin now, but for locks.
    pub(super) ready_jobs: BTreeMap<JobName, Arc<Want>>,
}

/// Jobs of one kind of one run.
#[derive(Debug)]
pub(super) struct RunWant {
    pub(super) id: WantId,
    pub(super) want: Arc<Want>,
    pub(super) first: u32,
    /// How many of them could begin now, but for locks and the run's parallelism; no more than may
    /// hold their lock.
    jobs: u32,
    /// How many of them are counted for the kind: see [`RunRecord::shares_room`].
    pending: u32,
}

/// Who holds an attempt.
#[derive(Debug)]
pub(super) struct LeaseRecord {
    pub(super) worker: WorkerName,
    /// The session that was given it; none before the lease is durable, or when it ended.
    pub(super) session: Option<SessionId>,
    tags: Arc<[String]>,
}

impl Scheduler {
    pub(super) fn run_loaded(&mut self, run: &RunId, state: &Run, at: Timestamp) {
        self.sync_leases(run, state);
        let changed = self.locks.replaced(run, state.busy());
        self.release_run(run);
        self.note_run(run, state, at);
        if let Some(record) = self.runs.get_mut(run) {
            record.cancels = record.is_ending;
        }
        self.match_changed(run, &changed);
    }

    pub(super) fn run_set_aside(&mut self, run: &RunId) {
        let leases: Vec<AttemptId> = self.leases_of(run).map(|(id, _)| id.clone()).collect();
        // A run that cannot be replayed can record nothing, so its leases would be tried for ever.
        for attempt in leases {
            self.drop_loss(&attempt);
            self.remove_lease(&attempt);
        }
        self.forget_run(run);
        // Whatever it held, nothing can tell that it still does.
        let changed = self.locks.replaced(run, &LockUsage::new());
        self.match_locks(&changed);
    }

    pub(super) fn run_decided(
        &mut self,
        run: &RunId,
        (state, version): (&Run, u64),
        facts: &[Fact],
        at: Timestamp,
    ) {
        for fact in facts {
            self.take_fact(run, state, &fact.event);
        }
        let changed = self.locks.decided(run, version, state.busy());
        if !facts.is_empty() {
            self.release_run(run);
        }
        // After the leases: the room of the run depends on them.
        self.note_run(run, state, at);
        self.match_changed(run, &changed);
    }

    pub(super) fn run_durable(&mut self, run: &RunId, facts: &[Fact], version: u64) {
        let changed = self.locks.durable(run, version);
        let ending = facts.iter().any(|fact| begins_the_end(&fact.event));
        // Workers get a cancellation only when it is durable; a crash before that
        // would leave a run that continues without its jobs.
        let record = self.runs.get_mut(run);
        // A run that was cancelled and resumed since must not have its new attempts cancelled.
        if let Some(record) = record.filter(|record| ending && record.is_ending) {
            record.cancels = true;
            self.cancel_held(run);
        }
        self.match_locks(&changed);
    }

    /// Cancels what sessions hold of `run`.
    fn cancel_held(&mut self, run: &RunId) {
        let held: Vec<(SessionId, AttemptId)> = self
            .leases_of(run)
            .filter_map(|(attempt, lease)| Some((lease.session?, attempt.clone())))
            .collect();
        for (session, attempt) in held {
            self.cancel(session, &attempt);
        }
    }

    fn leases_of(&self, run: &RunId) -> impl Iterator<Item = (&AttemptId, &LeaseRecord)> {
        let first = AttemptId { run: run.clone(), job: "".into(), attempt: Attempt(0) };
        let run = run.clone();
        // Leases are ordered by run, so those of one run are found without a walk over all.
        self.leases.range(first..).take_while(move |(attempt, _)| attempt.run == run)
    }

    fn take_fact(&mut self, run: &RunId, state: &Run, event: &RunEvent) {
        let id = |job: &JobName, attempt: Attempt| AttemptId {
            run: run.clone(),
            job: job.clone(),
            attempt,
        };
        match event {
            RunEvent::JobLeased { job, attempt, worker, .. } => {
                let tags = state.job(job.as_str()).map(|job| job.plan.tags.clone());
                self.insert_lease(id(job, *attempt), worker.clone(), tags.unwrap_or_default());
            }
            RunEvent::JobSucceeded { job, attempt, .. }
            | RunEvent::JobAttemptFailed { job, attempt, .. }
            | RunEvent::JobFailed { job, attempt, .. }
            | RunEvent::JobCancelled { job, attempt, .. }
            | RunEvent::JobLost { job, attempt, .. } => self.remove_lease(&id(job, *attempt)),
            RunEvent::PlanReplaced { .. } => self.sync_leases(run, state),
            RunEvent::RunCreated { .. }
            | RunEvent::JobsPlanned { .. }
            | RunEvent::RunStarted {}
            | RunEvent::ConditionEvaluated { .. }
            | RunEvent::GateReached { .. }
            | RunEvent::GateApproved { .. }
            | RunEvent::GateVoided { .. }
            | RunEvent::GateRejected { .. }
            | RunEvent::JobSkipped { .. }
            | RunEvent::JobRetried { .. }
            | RunEvent::JobImported { .. }
            | RunEvent::JobsInvalidated { .. }
            | RunEvent::RunAborted { .. }
            | RunEvent::RunCancelRequested { .. }
            | RunEvent::RunTimedOut {}
            | RunEvent::RunResumed {}
            | RunEvent::RunFinished { .. } => {}
        }
    }

    /// Makes the leases of `run` what its state says, whatever was known of them.
    fn sync_leases(&mut self, run: &RunId, state: &Run) {
        let mut leased = BTreeSet::new();
        for job in state.leased() {
            let Some((attempt, worker)) = job.state.lease() else { continue };
            let id = AttemptId { run: run.clone(), job: job.plan.name.clone(), attempt };
            leased.insert(id.clone());
            if !self.leases.contains_key(&id) {
                self.insert_lease(id, worker.clone(), job.plan.tags.clone());
                // Unless a session of that worker follows, nothing else would expire the lease.
                if self.workers.get(worker).is_none_or(|known| known.current.is_none()) {
                    self.await_reconnect(worker, self.now);
                }
            }
        }
        let known: Vec<AttemptId> = self
            .leases_of(run)
            .map(|(id, _)| id.clone())
            .filter(|id| !leased.contains(id))
            .collect();
        for id in known {
            self.remove_lease(&id);
        }
    }

    fn insert_lease(&mut self, id: AttemptId, worker: WorkerName, mut tags: Vec<String>) {
        tags.sort();
        let tags: Arc<[String]> = tags.into();
        self.demand.leased(&tags, true);
        self.workers.entry(worker.clone()).or_default().leases.insert(id.clone());
        self.leases.insert(id, LeaseRecord { worker, session: None, tags });
    }

    fn remove_lease(&mut self, id: &AttemptId) {
        let Some(lease) = self.leases.remove(id) else { return };
        self.demand.leased(&lease.tags, false);
        if let Some(worker) = self.workers.get_mut(&lease.worker) {
            worker.leases.remove(id);
        }
        self.forget_worker(&lease.worker);
    }

    /// Applies what a run wants now.
    fn note_run(&mut self, run: &RunId, state: &Run, at: Timestamp) {
        self.check_awaited(run, state);
        // An ended run is forgotten at once: a server with a million of them keeps none in the
        // scheduler.
        if !state.phase().is_live() {
            self.forget_run(run);
            return;
        }
        let wants = if state.phase().is_running() { state.wants(at) } else { Vec::new() };
        let ready_jobs = self.ready_jobs(run, state, at);
        let mut record = self.runs.remove(run).unwrap_or_default();
        record.room = state.room();
        self.note_wants(run, &mut record, &wants);
        record.has_preferences = state.has_preferences();
        record.is_ending = state.phase().is_ending();
        // A resume clears it.
        record.cancels &= record.is_ending;
        record.ready_jobs = ready_jobs;
        self.runs.insert(run.clone(), record);
        self.index_run(run);
    }

    /// Replaces what a run wants. The kinds stay as they are while only the counts change.
    fn note_wants(&mut self, run: &RunId, record: &mut RunRecord, wants: &[Wanted]) {
        let same = record.wants.len() == wants.len()
            && record.wants.iter().zip(wants).all(|(old, new)| old.want == new.want);
        // Most events change how many jobs are ready and not what they want, and the index need not
        // be touched.
        if !same {
            self.unindex(run, record);
            let old = std::mem::take(&mut record.wants);
            for Wanted { want, first, .. } in wants {
                let id = self.demand.refer(want);
                let want = Arc::clone(want);
                record.wants.push(RunWant { id, want, first: *first, jobs: 0, pending: 0 });
            }
            // After the new ones: a kind that both speak of is not forgotten in between.
            for RunWant { id, pending, .. } in old {
                self.demand.count(id, pending, 0);
                self.demand.unrefer(id);
            }
        }
        for (known, wanted) in record.wants.iter_mut().zip(wants) {
            let places = known.want.lock.as_ref().map_or(u32::MAX, |(_, limit)| *limit);
            (known.jobs, known.first) = (wanted.jobs.min(places), wanted.first);
        }
        let total: u64 = record.wants.iter().map(|want| u64::from(want.jobs)).sum();
        let locks = record.wants.iter().any(|want| want.want.lock.is_some());
        record.shares_room = total > u64::from(record.room) && locks;
        let mut left = if record.shares_room { 0 } else { record.room };
        for known in &mut record.wants {
            // What could really begin: demand drives the number of machines that are started.
            let pending = known.jobs.min(left);
            left -= pending;
            self.demand.count(known.id, known.pending, pending);
            known.pending = pending;
        }
        self.share_room(run, record.shares_room);
    }

    /// Notes whether the jobs of `run` are counted on request.
    fn share_room(&mut self, run: &RunId, shares: bool) {
        if shares {
            self.sharing.insert(run.clone());
            self.demand.touch();
        } else if self.sharing.remove(run) {
            self.demand.touch();
        }
    }

    /// How many jobs of each kind could begin now, of the runs whose kinds share what room they have.
    /// What a lock keeps back must not take the room from what could begin.
    pub(super) fn shared_pending(&self) -> BTreeMap<WantId, u64> {
        let mut pending = BTreeMap::new();
        for record in self.sharing.iter().filter_map(|run| self.runs.get(run)) {
            let mut left = record.room;
            let is_free = |want: &&RunWant| self.demand.is_free(want.id, &self.locks);
            for want in record.wants.iter().filter(is_free) {
                let jobs = want.jobs.min(left);
                left -= jobs;
                *pending.entry(want.id).or_default() += u64::from(jobs);
            }
        }
        pending
    }

    /// Of the jobs for which a single session waits, those that could begin now, but for locks.
    fn ready_jobs(&self, run: &RunId, state: &Run, at: Timestamp) -> BTreeMap<JobName, Arc<Want>> {
        let sessions = self.supply.of_run(run).filter_map(|id| self.sessions.get(&id));
        let jobs = sessions.filter_map(|session| session.hello.job.as_ref());
        jobs.filter_map(|job| Some((job.clone(), state.want_of(job, at)?))).collect()
    }

    /// Sessions that wait for one job which has ended without them are to be sent away.
    fn check_awaited(&mut self, run: &RunId, state: &Run) {
        for session in self.supply.of_run(run) {
            let known = self.sessions.get(&session).filter(|session| session.is_ready());
            let Some((run, job)) = known.and_then(|session| session.awaited()) else { continue };
            if state.job(job.as_str()).is_none_or(|job| job.state.is_over()) {
                let (run, job) = (run.clone(), job.clone());
                self.out.push(Effect::CheckJob { session, run, job });
            }
        }
    }

    fn forget_run(&mut self, run: &RunId) {
        let Some(mut record) = self.runs.remove(run) else { return };
        self.unindex(run, &mut record);
        self.share_room(run, false);
        if let Some(until) = record.held_back {
            self.held_back.remove(&(until, run.clone()));
        }
        for RunWant { id, pending, .. } in record.wants {
            self.demand.count(id, pending, 0);
            self.demand.unrefer(id);
        }
    }

    /// Lets a run that was left alone be given slots again.
    pub(super) fn release_run(&mut self, run: &RunId) {
        let until = self.runs.get_mut(run).and_then(|record| record.held_back.take());
        if let Some(until) = until {
            self.held_back.remove(&(until, run.clone()));
        }
    }

    /// Leaves a run alone until `until`.
    pub(super) fn hold_back(&mut self, run: &RunId, until: Duration) {
        self.release_run(run);
        let Some(record) = self.runs.get_mut(run) else { return };
        record.held_back = Some(until);
        self.held_back.insert((until, run.clone()));
        if !std::mem::replace(&mut record.failing, true) {
            self.out.push(Effect::Notice(Notice::RunHeldBack { run: run.clone() }));
        }
    }

    /// Whether a slot may be given to `run`, if it wants one.
    pub(super) fn is_available(&self, run: &RunId) -> bool {
        let record = self.runs.get(run);
        let is_free = |record: &RunRecord| record.room > 0 && record.held_back.is_none();
        record.is_some_and(is_free) && !self.deciding.contains_key(run)
    }

    /// Keeps the kinds of a run's jobs in step with whether it may be given slots.
    pub(super) fn index_run(&mut self, run: &RunId) {
        let available = self.is_available(run);
        let Some(mut record) = self.runs.remove(run) else { return };
        if available && !record.indexed {
            for RunWant { id, .. } in &record.wants {
                self.demand.add_run(*id, run, &self.supply, &self.locks);
            }
            record.indexed = true;
        } else if !available {
            self.unindex(run, &mut record);
        }
        self.runs.insert(run.clone(), record);
    }

    fn unindex(&mut self, run: &RunId, record: &mut RunRecord) {
        if std::mem::take(&mut record.indexed) {
            for RunWant { id, .. } in &record.wants {
                self.demand.remove_run(*id, run);
            }
        }
    }

    fn match_changed(&mut self, run: &RunId, locks: &[String]) {
        self.match_run(run);
        self.match_locks(locks);
    }
}

fn begins_the_end(event: &RunEvent) -> bool {
    matches!(
        event,
        RunEvent::RunAborted { .. }
            | RunEvent::RunCancelRequested { .. }
            | RunEvent::RunTimedOut {}
    )
}
