//! The connection of a worker: when it connects, how long it waits for a server, when it sends
//! heartbeats, and when it leaves or stops.
//!
//! ```text
//!   Away ── retry ──▶ Opening ── welcome ──▶ Open ── nothing held or wanted ──▶ Leaving ──▶ stopped
//!    ▲                   │                     │
//!    └── no welcome in time, connection lost, no message in time
//! ```

use std::{collections::BTreeMap, time::Duration};

use towpath_engine::ids::AttemptId;

use super::{Cause, ConnectionId, Effect, EndReason, Greeting, Message, Notice, Outage, Protocol};

/// How long a server may take to answer a hello, or to send a heartbeat while it works on the
/// answer: it reads the log for it, and what it has of the output of all that is held.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Longest time between two heartbeats.
pub const HEARTBEAT_EVERY_MAX: Duration = Duration::from_secs(10);
/// How long the server may take to close the connection of a worker that leaves.
pub const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// Longest wait before a new try to reach a server.
pub const RETRY_MAX: Duration = Duration::from_secs(10);
/// Wait before the first new try; it doubles with every try.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// How long a server that is away is waited for by a worker that was told to end its jobs.
const KILLED_WAIT_MAX: Duration = Duration::from_secs(15);
/// How many heartbeats a lease lasts, and after how many unanswered ones the worker disconnects.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// How the worker is connected.
#[derive(Debug)]
pub(super) enum Link {
    /// Not at all; the next try is due then.
    Away { retry_at: Duration },
    /// It sent its greeting and waits for the answer.
    Opening { connection: ConnectionId, began: Duration, until: Duration, draining: bool },
    /// There is a session.
    Open(Open),
    /// It leaves, and waits for the server to close the connection.
    Leaving { connection: ConnectionId, until: Duration, said: bool },
}

/// A session that is open.
#[derive(Debug)]
pub(super) struct Open {
    connection: ConnectionId,
    began: Duration,
    /// The server was told to assign nothing.
    draining: bool,
    heartbeat_every: Duration,
    heartbeat_at: Duration,
    /// A heartbeat is to be sent.
    heartbeat_due: bool,
    /// When the server last sent anything.
    received_at: Duration,
    /// How long it may send nothing.
    receive_within: Duration,
}

impl Link {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    fn connection(&self) -> Option<ConnectionId> {
        match self {
            Self::Away { .. } => None,
            Self::Opening { connection, .. } | Self::Leaving { connection, .. } => {
                Some(*connection)
            }
            Self::Open(open) => Some(open.connection),
        }
    }

    pub(super) fn has_control(&self, takes_nothing: bool) -> bool {
        match self {
            Self::Away { .. } | Self::Opening { .. } => false,
            Self::Open(open) => (takes_nothing && !open.draining) || open.heartbeat_due,
            Self::Leaving { said, .. } => !said,
        }
    }

    pub(super) fn next_control(&mut self, takes_nothing: bool) -> Option<Message> {
        match self {
            Self::Away { .. } | Self::Opening { .. } => None,
            Self::Open(open) if takes_nothing && !open.draining => {
                open.draining = true;
                Some(Message::Drain)
            }
            Self::Open(open) => {
                std::mem::take(&mut open.heartbeat_due).then_some(Message::Heartbeat)
            }
            Self::Leaving { said, .. } => {
                (!std::mem::replace(said, true)).then_some(Message::Goodbye)
            }
        }
    }
}

impl<J> Protocol<J> {
    /// When a tick is due at the latest.
    pub fn next_wake(&self) -> Option<Duration> {
        if self.stopped {
            return None;
        }
        let check = self.pause.check_at();
        if self.evicted {
            return check;
        }
        let (link, more) = match &self.link {
            Link::Away { retry_at } => (*retry_at, None),
            Link::Opening { until, .. } | Link::Leaving { until, .. } => (*until, None),
            Link::Open(open) => (open.heartbeat_at, Some(open.received_at + open.receive_within)),
        };
        let idle = self.settings.idle.filter(|_| self.attempts.is_empty());
        // What is past has had its effect, or waits for something else.
        let idle = idle.map(|idle| self.idle_since + idle).filter(|at| *at > self.now);
        let gives_up = [self.killed_until(), self.unreported_until()];
        let all = [Some(link), more, check, idle].into_iter().chain(gives_up);
        all.flatten().min()
    }

    /// Moves the clock.
    pub(super) fn advance(&mut self, now: Duration) {
        // A caller may read its clock before it waits for something else.
        let now = now.max(self.now);
        let passed = now - self.now;
        self.now = now;
        if !self.attempts.is_empty() {
            // Until this input, which may be the last that there was to wait for.
            self.idle_since = now;
        }
        if let Link::Open(open) = &mut self.link
            && passed > open.receive_within / 2
        {
            // It was this process that did not run: what the server sent meanwhile is not read yet.
            open.received_at = now;
        }
    }

    /// Whether `connection` is the open session. A message of it has arrived.
    pub(super) fn is_current(&mut self, connection: ConnectionId) -> bool {
        match &mut self.link {
            Link::Open(open) if open.connection == connection => {
                open.received_at = self.now;
                true
            }
            Link::Open(_) | Link::Away { .. } | Link::Opening { .. } | Link::Leaving { .. } => {
                false
            }
        }
    }

    /// The server lives. Before its welcome this says that it works on it: a worker that connected
    /// again instead would let it begin anew, and never be welcome where the reading takes longer
    /// than a hello may wait.
    pub(super) fn heartbeat(&mut self, connection: ConnectionId) {
        if self.is_current(connection) || self.may_stop() {
            // A worker that leaves waits no longer than it said.
            return;
        }
        if let Link::Opening { connection: opening, until, .. } = &mut self.link
            && *opening == connection
        {
            *until = self.now + self.settings.answer_within;
        }
    }

    pub(super) fn welcome(
        &mut self,
        connection: ConnectionId,
        held: &BTreeMap<AttemptId, u64>,
        lease: Duration,
    ) {
        let Link::Opening { connection: opening, began, draining, .. } = self.link else { return };
        if opening != connection {
            return;
        }
        let lease =
            if lease.is_zero() { HEARTBEAT_EVERY_MAX * HEARTBEATS_PER_LEASE } else { lease };
        self.link = Link::Open(Open {
            connection,
            began,
            draining,
            heartbeat_every: (lease / HEARTBEATS_PER_LEASE).min(HEARTBEAT_EVERY_MAX),
            heartbeat_at: self.now,
            heartbeat_due: false,
            received_at: self.now,
            receive_within: lease,
        });
        self.was_welcome = true;
        let held = self.reconcile(held);
        self.out.push(Effect::Notice(Notice::Connected { held }));
    }

    pub(super) fn disconnected(&mut self, connection: ConnectionId, cause: Cause) {
        if self.link.connection() != Some(connection) {
            return;
        }
        if matches!(self.link, Link::Leaving { .. }) {
            self.link = Link::Away { retry_at: self.now };
            return self.stop(EndReason::Done);
        }
        match cause {
            Cause::Lost => self.end_session(Outage::Ended),
            Cause::NameTaken if self.was_welcome => self.evict(),
            Cause::Refused | Cause::NameTaken => {
                self.link = Link::Away { retry_at: self.now };
                self.stop(EndReason::Refused);
            }
        }
    }

    /// Another process has taken the name, and with it what this one held.
    fn evict(&mut self) {
        self.leave_session();
        self.evicted = true;
        let all: Vec<AttemptId> = self.attempts.keys().cloned().collect();
        for attempt in all {
            self.void(&attempt);
        }
    }

    /// A session ended, or was not opened: another one is tried after a while.
    fn end_session(&mut self, outage: Outage) {
        let began = match &self.link {
            Link::Opening { began, .. } => *began,
            Link::Open(open) => open.began,
            Link::Away { .. } | Link::Leaving { .. } => self.now,
        };
        self.leave_session();
        self.out.push(Effect::Notice(Notice::Disconnected(outage)));
        if !self.settings.reconnect {
            return self.stop(EndReason::Disconnected);
        }
        let lasted = self.now.saturating_sub(began) > RETRY_MAX;
        self.tries = if lasted { 0 } else { self.tries + 1 };
        let bound = RETRY_MIN.saturating_mul(1 << self.tries.min(16)).min(RETRY_MAX);
        let wait = self.share_of(bound);
        self.link = Link::Away { retry_at: self.now + wait };
    }

    /// Somewhere between nothing and `bound`: workers that lost the same server must not all come
    /// back at the same moment.
    fn share_of(&mut self, bound: Duration) -> Duration {
        // The generator `splitmix64`: short, and good enough to spread.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bound.mul_f64((mixed >> 32) as f64 / f64::from(u32::MAX))
    }

    /// Nothing is sent or received any more on the newest connection.
    fn leave_session(&mut self) {
        if self.link.is_open() {
            self.absent_since = self.now;
        }
        self.link = Link::Away { retry_at: self.now };
        // What was sent and not recorded is sent again: only the next welcome says from where.
        self.uploads.clear();
        for held in self.attempts.values_mut() {
            held.queued = false;
        }
    }

    fn drop_connection(&mut self) {
        if let Some(connection) = self.link.connection() {
            self.out.push(Effect::Disconnect { connection });
        }
    }

    /// Opens another session now, if the server believes that this worker takes nothing.
    pub(super) fn reconnect_at_once(&mut self) {
        let draining = match &self.link {
            Link::Opening { draining, .. } => *draining,
            Link::Open(open) => open.draining,
            Link::Away { .. } | Link::Leaving { .. } => false,
        };
        if draining {
            self.drop_connection();
            self.leave_session();
        }
    }

    /// Does not wait for the next try any longer.
    pub(super) fn retry_at_once(&mut self) {
        if let Link::Away { retry_at } = &mut self.link {
            *retry_at = self.now;
        }
    }

    /// Does what is due by now.
    pub(super) fn pass_time(&mut self) {
        if self.stopped {
            return;
        }
        if !self.attempts.is_empty() {
            self.idle_since = self.now;
        }
        if self.pause.is_due(self.now) {
            self.out.push(Effect::CheckDisk);
        }
        if self.evicted {
            if self.attempts.is_empty() {
                self.stop(EndReason::Refused);
            }
            return;
        }
        self.check_link();
        if self.stopped {
            return;
        }
        if self.may_stop() {
            return self.leave();
        }
        if let Some(reason) = self.gives_up() {
            return self.stop(reason);
        }
        if let Link::Away { retry_at } = self.link
            && retry_at <= self.now
        {
            self.connect();
        }
    }

    /// Ends a connection on which nothing arrives, and sends heartbeats on one that lives.
    fn check_link(&mut self) {
        let now = self.now;
        let outage = match &mut self.link {
            Link::Away { .. } => None,
            Link::Opening { began, until, .. } => {
                (*until <= now).then(|| Outage::NoWelcome(now - *began))
            }
            Link::Open(open) => {
                if open.heartbeat_at <= now {
                    open.heartbeat_due = true;
                    open.heartbeat_at = now + open.heartbeat_every;
                }
                let waited = now.saturating_sub(open.received_at);
                (waited >= open.receive_within).then_some(Outage::NoMessage(waited))
            }
            Link::Leaving { until, .. } => {
                if *until <= now {
                    self.stop(EndReason::Done);
                }
                None
            }
        };
        let Some(outage) = outage else { return };
        if self.may_stop() {
            return self.stop(EndReason::Done);
        }
        self.drop_connection();
        self.end_session(outage);
    }

    /// Nothing is held and nothing more is wanted.
    fn leave(&mut self) {
        let until = self.now + LEAVE_WITHIN;
        match &mut self.link {
            Link::Away { .. } => self.stop(EndReason::Done),
            // A session that is given up before its welcome may have been leased a job, which then
            // waits for its lease to expire. So the welcome is waited for, if it comes soon.
            Link::Opening { until: answer, .. } => *answer = (*answer).min(until),
            Link::Open(open) => {
                let connection = open.connection;
                self.link = Link::Leaving { connection, until, said: false };
            }
            Link::Leaving { .. } => {}
        }
    }

    /// Whether the worker has waited long enough for a server that is away.
    fn gives_up(&mut self) -> Option<EndReason> {
        let ends_by_itself = self.takes_no_more() || self.settings.idle.is_some();
        let runs = self.active > 0 || self.voids > 0;
        if self.link.is_open() || runs || !ends_by_itself || self.attempts.is_empty() {
            self.unreported_since = None;
        } else {
            self.unreported_since.get_or_insert(self.now);
        }
        let over = |until: Option<Duration>| until.is_some_and(|until| until <= self.now);
        if over(self.killed_until()) {
            return Some(EndReason::Disconnected);
        }
        let attempts = self.attempts.len();
        over(self.unreported_until()).then_some(EndReason::Unreported { attempts })
    }

    fn killed_until(&self) -> Option<Duration> {
        let killed_at = self.killed_at.filter(|_| !self.link.is_open())?;
        Some(killed_at.max(self.absent_since) + KILLED_WAIT_MAX)
    }

    fn unreported_until(&self) -> Option<Duration> {
        Some(self.unreported_since? + self.settings.report_within?)
    }

    fn connect(&mut self) {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        let draining = self.takes_nothing_now();
        let left = |max: u32| max.saturating_sub(self.begun).max(1);
        let greeting = Greeting {
            held: self.held_attempts(),
            jobs_max: self.settings.jobs_max.map(left),
            draining,
        };
        let (began, until) = (self.now, self.now + self.settings.answer_within);
        self.link = Link::Opening { connection, began, until, draining };
        self.out.push(Effect::Connect { connection, greeting });
    }

    fn stop(&mut self, reason: EndReason) {
        self.drop_connection();
        self.stopped = true;
        self.out.push(Effect::Stop(reason));
    }
}
