//! What a worker does in its sessions with a server, as a pure state machine: which attempts it
//! holds, what it sends next, when it sends a heartbeat, reconnects and stops.
//!
//! ```text
//!   what happened               Protocol::on                what is to be done
//!   ─────────────               ────────────                ──────────────────
//!   a message arrived    ─┐   ┌───────────────────┐   ┌─  connect, disconnect
//!   the connection ended  │   │ held attempts,    │   │   begin, adopt, cancel an attempt
//!   output grew           ├─▶ │ what of them was  ├─▶ ┤   forget an attempt
//!   an attempt ended      │   │ sent, connection, │   │   look whether the disk takes bytes
//!   drain, kill           │   │ deadlines         │   │   notices
//!   time passed          ─┘   └───────────────────┘   └─  stop
//! ```
//!
//! Nothing here waits, reads a clock or a file, or knows a socket: time is an argument, measured
//! from any moment by a clock that never goes back. The driver carries the effects out; the
//! simulation does the same against simulated scripts and connections, and both run this code.
//!
//! Nothing is queued here. What is to be sent follows from offsets, and a message is put together
//! when the connection has room for it ([`Protocol::next_control`], [`Protocol::next_upload`]): so
//! the memory does not depend on how much a server that is away has missed.
//!
//! An attempt is sent in this order: its output, the files it left, its report. The report is
//! repeated in every session until the server says that it is recorded.

mod attempt;
mod connection;
mod connection_id;
mod effect;
mod input;
mod pause;
#[cfg(test)]
mod tests;
mod uploads;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use towpath_engine::ids::{Attempt, AttemptId};

pub use attempt::PART_BYTES;
pub use connection::{ANSWER_WITHIN, HEARTBEAT_EVERY_MAX, LEAVE_WITHIN, RETRY_MAX};
pub use connection_id::ConnectionId;
pub use effect::{Effect, EndReason, Greeting, Message, Notice, Outage, Part, UploadKind};
pub use input::{Cause, Input};

use crate::{Adopted, Ended};
use attempt::{Held, State};
use connection::Link;
use pause::Pause;

/// What a worker takes, and when it stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many attempts run at once.
    pub slots: u32,
    /// How many assignments it takes in all. `None`: no bound.
    pub jobs_max: Option<u32>,
    /// Whether it opens another session when one ends; else it stops.
    pub reconnect: bool,
    /// It stops when it held nothing for so long.
    pub idle: Option<Duration>,
    /// How long a worker that is to stop waits for a server that is away, once nothing runs any
    /// more and only reports are left. `None`: without bound.
    pub report_within: Option<Duration>,
    /// How long a server may take to answer a hello; [`ANSWER_WITHIN`] is enough for most.
    pub answer_within: Duration,
}

/// A worker. `J` is what an assignment says beside the attempt's name; it is passed through.
#[derive(Debug)]
pub struct Protocol<J> {
    settings: Settings,
    now: Duration,
    out: Vec<Effect<J>>,
    attempts: BTreeMap<AttemptId, Held<J>>,
    /// Attempts that may have something to send, each once: they take turns, so that the small
    /// report of one does not wait behind the large files of another.
    uploads: VecDeque<AttemptId>,
    /// How many attempts run or wait to, and are valid.
    active: u32,
    /// How many attempts are no longer valid and are being ended.
    voids: u32,
    link: Link,
    /// The number of the newest connection.
    connections: u64,
    /// How many tries to reach the server failed in a row.
    tries: u32,
    /// The state of the generator that spreads reconnects.
    random: u64,
    /// How many assignments were taken.
    begun: u32,
    drain: bool,
    /// When it was told to end what runs.
    killed_at: Option<Duration>,
    pause: Pause,
    /// Since when nothing is held.
    idle_since: Duration,
    /// Since when there is no open session.
    absent_since: Duration,
    /// Since when there is no open session and only reports are left.
    unreported_since: Option<Duration>,
    /// There was an open session.
    was_welcome: bool,
    /// Another process has the name: everything held is being ended.
    evicted: bool,
    stopped: bool,
    last: Option<Adopted>,
}

impl<J> Protocol<J> {
    /// A worker that is not connected. `found` are the attempts that an earlier process left;
    /// `random` is any number, and another one for every process.
    pub fn new(
        settings: Settings,
        found: impl IntoIterator<Item = AttemptId>,
        random: u64,
    ) -> Self {
        let attempts = found.into_iter().map(|attempt| (attempt, Held::new(State::Found)));
        Self {
            settings,
            now: Duration::ZERO,
            out: Vec::new(),
            attempts: attempts.collect(),
            uploads: VecDeque::new(),
            active: 0,
            voids: 0,
            link: Link::Away { retry_at: Duration::ZERO },
            connections: 0,
            tries: 0,
            random,
            begun: 0,
            drain: false,
            killed_at: None,
            pause: Pause::default(),
            idle_since: Duration::ZERO,
            absent_since: Duration::ZERO,
            unreported_since: None,
            was_welcome: false,
            evicted: false,
            stopped: false,
            last: None,
        }
    }

    /// Takes in what happened at `now` and adds what is to be done to `effects`, in order. After
    /// [`Effect::Stop`] nothing is done any more.
    pub fn on(&mut self, input: Input<J>, now: Duration, effects: &mut Vec<Effect<J>>) {
        if self.stopped {
            return;
        }
        self.advance(now);
        match input {
            Input::Welcome { connection, held, lease } => self.welcome(connection, &held, lease),
            Input::Assigned { connection, attempt, job } => {
                if self.is_current(connection) {
                    self.assigned(attempt, job);
                }
            }
            Input::CancelRequested { connection, attempt } => {
                if self.is_current(connection) {
                    self.cancel(&attempt);
                }
            }
            Input::Recorded { connection, attempt } => {
                if self.is_current(connection) {
                    self.recorded(&attempt);
                }
            }
            Input::Heartbeat { connection } => self.heartbeat(connection),
            Input::Disconnected { connection, cause } => self.disconnected(connection, cause),
            Input::OutputGrew { attempt, length } => self.output_grew(&attempt, length),
            Input::Ended { attempt, outcome, incomplete } => {
                self.ended(&attempt, outcome, incomplete);
            }
            Input::Unreadable { attempt, part, reason } => {
                self.unreadable(&attempt, &part, &reason);
            }
            Input::Cleared { attempt } => self.cleared(&attempt),
            Input::DiskFailed { reason } => self.disk_failed(reason),
            Input::DiskChecked { usable } => self.disk_checked(usable),
            Input::DrainRequested => self.drain_requested(),
            Input::KillRequested => self.kill_requested(),
            Input::Tick => {}
        }
        self.pass_time();
        effects.append(&mut self.out);
    }

    /// What became of the attempt that was recorded last.
    pub fn last(&self) -> Option<&Adopted> {
        self.last.as_ref()
    }

    /// How many attempts are held, in whatever state.
    pub fn held(&self) -> usize {
        self.attempts.len()
    }

    fn takes_no_more(&self) -> bool {
        let enough = self.settings.jobs_max.is_some_and(|max| self.begun >= max);
        self.drain || self.killed_at.is_some() || enough
    }

    fn takes_nothing_now(&self) -> bool {
        self.takes_no_more() || self.pause.is_paused()
    }

    /// Nothing is held, and nothing more is wanted.
    fn may_stop(&self) -> bool {
        let idle = self.settings.idle.is_some_and(|idle| self.now >= self.idle_since + idle);
        self.attempts.is_empty() && (self.takes_no_more() || idle)
    }

    /// Continues what is still valid, sends it from where the server is, and ends the rest.
    fn reconcile(&mut self, counts: &BTreeMap<AttemptId, u64>) -> usize {
        let all: Vec<AttemptId> = self.attempts.keys().cloned().collect();
        let mut confirmed = 0;
        for attempt in all {
            match counts.get(&attempt) {
                Some(output_bytes) => {
                    confirmed += usize::from(self.confirm(&attempt, *output_bytes));
                }
                None => self.void(&attempt),
            }
        }
        confirmed
    }

    fn confirm(&mut self, attempt: &AttemptId, output_bytes: u64) -> bool {
        let Some(held) = self.attempts.get_mut(attempt).filter(|held| held.counts()) else {
            return false;
        };
        held.begin_upload(output_bytes);
        if matches!(held.state, State::Found) {
            self.put(attempt, State::Running { cancelled: false });
            self.out.push(Effect::Adopt { attempt: attempt.clone(), output_bytes });
            if self.killed_at.is_some() {
                self.cancel(attempt);
            }
        }
        self.queue_upload(attempt);
        true
    }

    /// Ends an attempt that is no longer valid, so that nothing of it runs beside its successor.
    fn void(&mut self, attempt: &AttemptId) {
        let Some(held) = self.attempts.get(attempt) else { return };
        match &held.state {
            State::Found => {
                // It may still run: it is adopted to be ended.
                self.out.push(Effect::Adopt { attempt: attempt.clone(), output_bytes: 0 });
                self.out.push(Effect::Cancel { attempt: attempt.clone() });
                self.put(attempt, State::Void);
            }
            State::Running { cancelled } => {
                if !cancelled {
                    self.out.push(Effect::Cancel { attempt: attempt.clone() });
                }
                self.put(attempt, State::Void);
            }
            // It never began, so there is nothing to end.
            State::Waiting { .. } => self.remove(attempt),
            State::Ended { .. } => self.forget(attempt, false),
            State::Void | State::Clearing => {}
        }
    }

    fn assigned(&mut self, attempt: AttemptId, job: J) {
        // To hold it a second time would lose the way to end the first.
        if self.attempts.contains_key(&attempt) {
            return;
        }
        if self.active >= self.settings.slots {
            // A server that counts wrong must not make this machine run more than it was made for.
            let reason = format!("its worker has only {} slots", self.settings.slots);
            let outcome = Adopted::Lost(reason);
            self.insert(attempt, State::Ended { outcome, incomplete: None });
            return;
        }
        self.begun += 1;
        // A job never runs beside its own past.
        for older in self.same_job(&attempt) {
            if self.attempts.get(&older).is_some_and(Held::is_unfinished) {
                self.void(&older);
            }
        }
        self.insert(attempt.clone(), State::Waiting { job });
        self.begin_waiting(&attempt);
    }

    /// The other attempts of the same job that are held.
    fn same_job(&self, attempt: &AttemptId) -> Vec<AttemptId> {
        let numbered = |number| AttemptId { attempt: Attempt(number), ..attempt.clone() };
        let all = self.attempts.range(numbered(0)..=numbered(u32::MAX));
        all.map(|(other, _)| other).filter(|other| *other != attempt).cloned().collect()
    }

    /// Begins the attempt of this job that waits, if nothing of the job runs any more.
    fn begin_waiting(&mut self, of: &AttemptId) {
        let mut all = self.same_job(of);
        all.push(of.clone());
        let state = |attempt: &AttemptId| self.attempts.get(attempt).map(|held| &held.state);
        let runs = |attempt: &AttemptId| {
            matches!(state(attempt), Some(State::Running { .. } | State::Void))
        };
        if all.iter().any(runs) {
            return;
        }
        let waits = |attempt: &&AttemptId| matches!(state(attempt), Some(State::Waiting { .. }));
        let Some(attempt) = all.iter().find(waits).cloned() else { return };
        let before = self.put(&attempt, State::Running { cancelled: false });
        if let Some(State::Waiting { job }) = before {
            self.out.push(Effect::Begin { attempt, job });
        }
    }

    /// Ends a valid attempt, and reports how it ended.
    fn cancel(&mut self, attempt: &AttemptId) {
        let Some(held) = self.attempts.get_mut(attempt) else { return };
        match &mut held.state {
            State::Running { cancelled } => {
                if !std::mem::replace(cancelled, true) {
                    self.out.push(Effect::Cancel { attempt: attempt.clone() });
                }
            }
            State::Waiting { .. } => {
                let outcome = Adopted::Ended(Ended::Cancelled { ran_ms: 0 });
                self.put(attempt, State::Ended { outcome, incomplete: None });
                self.queue_upload(attempt);
            }
            // A found attempt is cancelled when it is adopted.
            State::Found | State::Void | State::Ended { .. } | State::Clearing => {}
        }
    }

    fn recorded(&mut self, attempt: &AttemptId) {
        let Some(held) = self.attempts.get(attempt) else { return };
        match &held.state {
            State::Ended { outcome, .. } => {
                self.last = Some(outcome.clone());
                let failed = matches!(outcome, Adopted::Ended(Ended::Failed { .. }));
                self.forget(attempt, failed);
            }
            // The server says that it is no longer valid, although it was not reported. To forget it
            // while it runs would leave a script that no one can end.
            State::Running { .. } | State::Waiting { .. } | State::Found => self.void(attempt),
            State::Void | State::Clearing => {}
        }
    }

    fn forget(&mut self, attempt: &AttemptId, failed: bool) {
        self.put(attempt, State::Clearing);
        self.out.push(Effect::Forget { attempt: attempt.clone(), failed });
    }

    fn ended(&mut self, attempt: &AttemptId, outcome: Adopted, incomplete: Option<String>) {
        let Some(held) = self.attempts.get(attempt) else { return };
        match held.state {
            State::Running { .. } => {
                self.put(attempt, State::Ended { outcome, incomplete });
                self.queue_upload(attempt);
            }
            State::Void => self.forget(attempt, false),
            // An end that was known already.
            State::Found | State::Waiting { .. } | State::Ended { .. } | State::Clearing => return,
        }
        self.begin_waiting(attempt);
    }

    fn cleared(&mut self, attempt: &AttemptId) {
        if self.attempts.get(attempt).is_some_and(|held| matches!(held.state, State::Clearing)) {
            self.remove(attempt);
        }
    }

    fn disk_failed(&mut self, reason: String) {
        if self.pause.begin(self.now) {
            self.out.push(Effect::Notice(Notice::Paused { reason }));
        }
    }

    fn disk_checked(&mut self, usable: bool) {
        if !self.pause.checked(usable, self.now) {
            return;
        }
        self.out.push(Effect::Notice(Notice::Resumed));
        if !self.takes_no_more() {
            // Only a hello lets a session that is draining have jobs again.
            self.reconnect_at_once();
        }
    }

    fn drain_requested(&mut self) {
        self.drain = true;
        self.retry_at_once();
    }

    fn kill_requested(&mut self) {
        self.killed_at.get_or_insert(self.now);
        let all: Vec<AttemptId> = self.attempts.keys().cloned().collect();
        for attempt in all {
            self.cancel(&attempt);
        }
        self.retry_at_once();
    }

    /// Attempts that are named in a hello: all that is not being ended or removed.
    fn held_attempts(&self) -> BTreeSet<AttemptId> {
        let held = self.attempts.iter().filter(|(_, held)| held.counts());
        held.map(|(attempt, _)| attempt.clone()).collect()
    }

    fn insert(&mut self, attempt: AttemptId, state: State<J>) {
        self.count(&state, true);
        let ended = matches!(state, State::Ended { .. });
        self.attempts.insert(attempt.clone(), Held::new(state));
        if ended {
            self.queue_upload(&attempt);
        }
    }

    /// Puts an attempt into another state. Answers the one before.
    fn put(&mut self, attempt: &AttemptId, state: State<J>) -> Option<State<J>> {
        self.count(&state, true);
        let held = self.attempts.get_mut(attempt)?;
        let before = std::mem::replace(&mut held.state, state);
        self.count(&before, false);
        Some(before)
    }

    fn remove(&mut self, attempt: &AttemptId) {
        if let Some(held) = self.attempts.remove(attempt) {
            self.count(&held.state, false);
        }
    }

    fn count(&mut self, state: &State<J>, add: bool) {
        let counter = match state {
            State::Running { .. } | State::Waiting { .. } => &mut self.active,
            State::Void => &mut self.voids,
            State::Found | State::Ended { .. } | State::Clearing => return,
        };
        *counter = if add { *counter + 1 } else { counter.saturating_sub(1) };
    }
}
