//! One attempt that a worker holds: how far it is, and what of it was sent.
//!
//! ```text
//!   found ── welcome ──┐
//!                      ▼
//!   assigned ──────▶ Running ── ended ──▶ Ended ── recorded ──▶ Clearing ──▶ removed
//!      │               ▲ │                  │                      ▲
//!      │ older one runs│ │ is no longer valid   │ is no longer valid       │
//!      ▼               │ ▼                  └──────────────────────┤
//!   Waiting ───────────┘ Void ── ended ────────────────────────────┘
//! ```

use towpath_engine::{event::FailureCause, ids::AttemptId};

use super::{Message, Part, UploadKind};
use crate::{Adopted, ArtifactFile, Ended};

/// Most bytes of output, or of a file, in one message.
pub const PART_BYTES: u64 = 64 * 1024;

/// How far an attempt is.
#[derive(Debug)]
pub(super) enum State<J> {
    /// An earlier process left it, and no server has said yet whether it is valid.
    Found,
    /// It was assigned, and an older attempt of its job has not ended.
    Waiting { job: J },
    /// It runs, or is being prepared or adopted.
    Running { cancelled: bool },
    /// It is no longer valid, and is being ended.
    Void,
    /// It has ended and is not known to be recorded; and why not all of its output is there.
    Ended { outcome: Adopted, incomplete: Option<String> },
    /// It is forgotten, and its files are being removed.
    Clearing,
}

/// An attempt, and what of it was sent in this session.
#[derive(Debug)]
pub(super) struct Held<J> {
    pub(super) state: State<J>,
    /// How much output waits on this machine, in bytes.
    pub(super) output: u64,
    /// It is in the queue of those with something to send.
    pub(super) queued: bool,
    /// A part of it is being read, and what follows must wait for it.
    reading: bool,
    /// How much of the output the server has, or will have when it reads more.
    sent: u64,
    /// Which file is sent next, and from which byte.
    file: usize,
    offset: u64,
    /// Why what is to be sent cannot be read.
    unreadable: Option<String>,
    reported: bool,
}

impl<J> Held<J> {
    pub(super) fn new(state: State<J>) -> Self {
        Self {
            state,
            output: 0,
            queued: false,
            reading: false,
            sent: 0,
            file: 0,
            offset: 0,
            unreadable: None,
            reported: false,
        }
    }

    /// Whether a server may still hold it valid, as far as is known.
    pub(super) fn counts(&self) -> bool {
        match self.state {
            State::Found | State::Waiting { .. } | State::Running { .. } | State::Ended { .. } => {
                true
            }
            State::Void | State::Clearing => false,
        }
    }

    /// Whether something of it runs or is about to.
    pub(super) fn is_unfinished(&self) -> bool {
        match self.state {
            State::Found | State::Waiting { .. } | State::Running { .. } | State::Void => true,
            State::Ended { .. } | State::Clearing => false,
        }
    }

    /// Begins to send it in a new session, to a server that has `output_bytes` of its output.
    ///
    /// Only the server knows how much it has: what was sent in an earlier session may never have
    /// arrived, and what had arrived may be lost with the server's machine.
    pub(super) fn begin_upload(&mut self, output_bytes: u64) {
        (self.sent, self.file, self.offset) = (output_bytes, 0, 0);
        (self.unreadable, self.reported, self.reading) = (None, false, false);
    }

    /// Whether there is something to send.
    pub(super) fn has_message(&self) -> bool {
        match self.state {
            State::Running { .. } => self.has_output() && !self.reading,
            State::Ended { .. } => !self.reported && !self.reading,
            State::Found | State::Waiting { .. } | State::Void | State::Clearing => false,
        }
    }

    fn has_output(&self) -> bool {
        self.sent < self.output && self.unreadable.is_none()
    }

    /// What the next message is about. `None`: there is none.
    pub(super) fn next_kind(&self) -> Option<UploadKind> {
        if !self.has_message() {
            None
        } else if self.has_output() {
            Some(UploadKind::Output)
        } else if self.next_file().is_some() {
            Some(UploadKind::File)
        } else {
            Some(UploadKind::Report)
        }
    }

    /// The file that is sent next, unless something is wrong with what was sent before.
    fn next_file(&self) -> Option<&ArtifactFile> {
        match &self.state {
            State::Ended {
                outcome: Adopted::Ended(Ended::Succeeded { artifacts, .. }),
                incomplete: None,
            } if self.unreadable.is_none() => artifacts.get(self.file),
            State::Found
            | State::Waiting { .. }
            | State::Running { .. }
            | State::Void
            | State::Ended { .. }
            | State::Clearing => None,
        }
    }

    /// The part that was being read is on its way.
    pub(super) fn part_sent(&mut self) {
        self.reading = false;
    }

    /// The next message about `attempt`, which is this one.
    pub(super) fn next_message(&mut self, attempt: &AttemptId) -> Option<Message> {
        if !self.has_message() {
            return None;
        }
        let attempt = attempt.clone();
        if self.has_output() {
            let (offset, length) = (self.sent, (self.output - self.sent).min(PART_BYTES));
            self.sent += length;
            self.reading = true;
            return Some(Message::Part { attempt, part: Part::Output { offset, length } });
        }
        if let Some(file) = self.next_file() {
            let (offset, length) = (self.offset, (file.size - self.offset).min(PART_BYTES));
            let size = file.size;
            let part = Part::Artifact { file: file.clone(), offset, length };
            self.offset += length;
            if self.offset >= size {
                (self.file, self.offset) = (self.file + 1, 0);
            }
            self.reading = true;
            return Some(Message::Part { attempt, part });
        }
        let State::Ended { outcome, incomplete } = &self.state else { return None };
        let problem = incomplete.as_deref().map(not_complete).or_else(|| self.unreadable.clone());
        self.reported = true;
        let outcome = with_problem(outcome.clone(), problem);
        Some(Message::Report { attempt, outcome, output_bytes: self.sent })
    }

    /// Notes that `part`, which was to be sent, cannot be read: the report says so.
    pub(super) fn part_unreadable(&mut self, part: &Part, reason: &str) {
        self.reading = false;
        let problem = match part {
            Part::Output { offset, .. } => {
                // The report must count no byte that the server does not get.
                self.sent = *offset;
                not_complete(reason)
            }
            Part::Artifact { file, .. } => format!("artifact `{}`: {reason}", file.path),
        };
        self.unreadable.get_or_insert(problem);
    }
}

fn not_complete(reason: &str) -> String {
    format!("its output is not complete: {reason}")
}

/// How an attempt ended of which not everything can be sent: a success must not hide that
/// something is missing, and everything else is as bad as it was.
fn with_problem(outcome: Adopted, problem: Option<String>) -> Adopted {
    match (outcome, problem) {
        (Adopted::Ended(Ended::Succeeded { ran_ms, .. }), Some(problem)) => {
            let cause = FailureCause::OutputUnusable(problem);
            Adopted::Ended(Ended::Failed { cause, ran_ms })
        }
        (outcome, _) => outcome,
    }
}
