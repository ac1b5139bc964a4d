//! One session of a worker: who it is, what it holds, how much more it takes, and what waits to be
//! delivered to it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{Scheduler, SessionId};
use crate::{
    ids::{AttemptId, JobName, RunId, WorkerName},
    time::Timestamp,
};

/// Most slots of one worker.
pub const SLOTS_MAX: u32 = 4_096;
/// A session with more than so many bytes of messages in its queue is given no more jobs. What
/// answers for the jobs that it has, cancels and receipts, is still queued, and is bounded by them.
pub const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// What a queued message takes beside the names in it, in bytes.
const MESSAGE_BYTES: usize = 128;

/// What a worker says when it opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its name.
    pub worker: WorkerName,
    /// Which process it is: the name belongs to one at a time.
    pub worker_instance_id: String,
    /// The version of the program.
    pub version: String,
    /// How many jobs it runs at once, 1 to [`SLOTS_MAX`].
    pub slots: u32,
    /// What it offers.
    pub tags: Vec<String>,
    /// Only jobs of this run.
    pub only: Option<RunId>,
    /// Only this job of that run, with any tags.
    pub job: Option<JobName>,
    /// How many assignments it accepts in this session.
    pub jobs_max: Option<u32>,
    /// It wants nothing new from the beginning.
    pub draining: bool,
    /// What it holds, or has held and does not know to be recorded.
    pub held: BTreeSet<AttemptId>,
    /// When it said so.
    pub since: Timestamp,
}

/// A message that waits for a worker. What an assignment says beyond its name is put together when
/// it is delivered, so that a queue holds names only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The session is open; of what the worker said it holds, this is still leased to it.
    Welcome {
        /// The attempts.
        held: BTreeSet<AttemptId>,
    },
    /// Run this.
    Assign {
        /// The attempt.
        attempt: AttemptId,
        /// The log position of its lease.
        fence: u64,
    },
    /// End this: its run is ending.
    Cancel(AttemptId),
    /// The report of this is durable.
    Recorded(AttemptId),
}

impl Message {
    fn bytes(&self) -> usize {
        let names = |attempt: &AttemptId| attempt.run.as_str().len() + attempt.job.as_str().len();
        let named = match self {
            Self::Welcome { held } => held.iter().map(names).sum(),
            Self::Assign { attempt, .. } | Self::Cancel(attempt) | Self::Recorded(attempt) => {
                names(attempt)
            }
        };
        named + MESSAGE_BYTES
    }
}

/// A worker that is connected, as people are shown it.
#[derive(Debug)]
pub struct SessionView<'a> {
    /// What it said of itself.
    pub hello: &'a Hello,
    /// How many attempts it holds.
    pub running: usize,
    /// Whether it is given nothing new.
    pub draining: bool,
}

/// How far a session has come. [`Session::capacity`] says what that means for jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionStage {
    /// What the worker holds is being read from the log.
    Opening,
    /// What the worker does not hold any more is being recorded as lost.
    Settling,
    /// Its welcome is queued: it is given jobs.
    Ready,
    /// It said goodbye; what was on its way to it is being recorded as lost.
    Leaving,
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) hello: Hello,
    pub(super) stage: SessionStage,
    /// The same worker has opened another session.
    pub(super) replaced: bool,
    /// The worker wants nothing more.
    pub(super) draining: bool,
    /// How many assignments it still takes, if it said so.
    pub(super) left: Option<u32>,
    /// What it was given and has not reported; whether a cancel was queued for it.
    pub(super) held: BTreeMap<AttemptId, bool>,
    /// Slots that are kept for leases which are not durable yet.
    pub(super) reserved: u32,
    /// When the worker last said anything.
    pub(super) heard: Duration,
    /// How many jobs more it could be given, as the index of free slots has it.
    pub(super) indexed: u32,
    /// Whether its tags are counted among those that are offered.
    counted: bool,
    queue: VecDeque<Message>,
    queue_bytes: usize,
}

impl Session {
    pub(super) fn new(hello: Hello, heard: Duration) -> Self {
        Self {
            stage: SessionStage::Opening,
            replaced: false,
            draining: hello.draining,
            left: hello.jobs_max,
            held: BTreeMap::new(),
            reserved: 0,
            heard,
            indexed: 0,
            counted: false,
            queue: VecDeque::new(),
            queue_bytes: 0,
            hello,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.stage == SessionStage::Ready && !self.replaced
    }

    /// How many jobs more it can be given, unless an operator has drained its worker.
    fn capacity(&self) -> u32 {
        // A worker that does not read its messages gets no more of them: its queue would otherwise
        // grow without a bound.
        if !self.is_ready() || self.draining || self.is_backed_up() {
            return 0;
        }
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        let slots = self.hello.slots.saturating_sub(held).saturating_sub(self.reserved);
        self.left.map_or(slots, |left| slots.min(left.saturating_sub(self.reserved)))
    }

    pub(super) fn is_backed_up(&self) -> bool {
        self.queue_bytes > QUEUE_BYTES_MAX
    }

    /// Whether it is given jobs of `run`.
    pub(super) fn takes(&self, run: &RunId) -> bool {
        self.hello.only.as_ref().is_none_or(|only| only == run)
    }

    /// The one job that it waits for and has not been given.
    pub(super) fn awaited(&self) -> Option<(&RunId, &JobName)> {
        let has_it = self.draining || self.replaced || self.left == Some(0);
        let waits = !has_it && self.held.is_empty() && self.reserved == 0;
        self.hello.only.as_ref().zip(self.hello.job.as_ref()).filter(|_| waits)
    }

    /// Takes an assignment: its slot is taken as long as it is held.
    pub(super) fn hold(&mut self, attempt: AttemptId) {
        self.left = self.left.map(|left| left.saturating_sub(1));
        self.held.insert(attempt, false);
    }

    pub(super) fn view(&self, drained: bool) -> SessionView<'_> {
        SessionView {
            hello: &self.hello,
            running: self.held.len(),
            draining: self.draining || drained,
        }
    }
}

impl Scheduler {
    /// The next message for `session`, to be called when its connection takes another one.
    /// Effects as in [`Scheduler::on`]: a queue that was too long lets the session have jobs again.
    pub fn next_message(
        &mut self,
        id: SessionId,
        effects: &mut Vec<super::Effect>,
    ) -> Option<Message> {
        let session = self.sessions.get_mut(&id)?;
        let message = session.queue.pop_front()?;
        let was_backed_up = session.is_backed_up();
        session.queue_bytes -= message.bytes();
        if was_backed_up && !session.is_backed_up() {
            self.index_session(id);
            self.match_session(id);
            effects.append(&mut self.out);
        }
        Some(message)
    }

    /// Queues `message` for a session, if there still is one.
    pub(super) fn queue(&mut self, id: SessionId, message: Message) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.queue_bytes += message.bytes();
        session.queue.push_back(message);
        if session.queue.len() == 1 {
            // Once for each time that the queue begins to fill: it is emptied before it sleeps.
            self.out.push(super::Effect::Deliver { session: id });
        }
    }

    /// Queues the order to end an attempt, once, if its session still holds it.
    pub(super) fn cancel(&mut self, id: SessionId, attempt: &AttemptId) {
        let held = self.sessions.get_mut(&id).and_then(|session| session.held.get_mut(attempt));
        // Once for each attempt: several reasons to cancel may come together.
        if let Some(cancelled) = held.filter(|cancelled| !**cancelled) {
            *cancelled = true;
            self.queue(id, Message::Cancel(attempt.clone()));
        }
    }

    /// How many jobs more a session can be given.
    pub(super) fn capacity(&self, id: SessionId) -> u32 {
        let session = self.sessions.get(&id);
        let session = session.filter(|session| !self.drained.contains(&session.hello.worker));
        session.map_or(0, Session::capacity)
    }

    /// Keeps the index of free slots in step with a session.
    pub(super) fn index_session(&mut self, id: SessionId) {
        let capacity = self.capacity(id);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let before = std::mem::replace(&mut session.indexed, capacity);
        if session.hello.only.is_none() {
            self.supply.update(id, &session.hello.tags, before, capacity);
        }
    }

    /// Counts what a session offers, as long as it is given jobs.
    pub(super) fn count_tags(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let counts = session.is_ready() && session.hello.only.is_none();
        match (std::mem::replace(&mut session.counted, counts), counts) {
            (false, true) => self.supply.note_tags(&session.hello.tags),
            (true, false) => self.supply.forget_tags(&session.hello.tags),
            (true, true) | (false, false) => {}
        }
    }

    /// Takes a session out of every index, and answers it.
    pub(super) fn remove_session(&mut self, id: SessionId) -> Option<Session> {
        let mut session = self.sessions.remove(&id)?;
        let before = std::mem::take(&mut session.indexed);
        match &session.hello.only {
            Some(run) => self.supply.leave(run, id),
            None => self.supply.update(id, &session.hello.tags, before, 0),
        }
        if session.counted {
            self.supply.forget_tags(&session.hello.tags);
        }
        for attempt in session.held.keys() {
            if let Some(lease) = self.leases.get_mut(attempt)
                && lease.session == Some(id)
            {
                // The lease stays: the worker may connect again, and only its expiry takes the job
                // away.
                lease.session = None;
            }
        }
        Some(session)
    }
}
