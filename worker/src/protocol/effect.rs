//! What a worker's state machine wants to be done, and what it wants to be sent.

use std::{collections::BTreeSet, time::Duration};

use towpath_engine::ids::AttemptId;

use super::ConnectionId;
use crate::{Adopted, ArtifactFile};

/// What a worker says of itself in the first message of a connection, beside what never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What it holds, or has held and does not know to be recorded.
    pub held: BTreeSet<AttemptId>,
    /// How many assignments more it takes. `None`: no bound.
    pub jobs_max: Option<u32>,
    /// It takes nothing now.
    pub draining: bool,
}

/// Something to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<J> {
    /// Open a connection and send the greeting on it.
    Connect {
        /// Its number.
        connection: ConnectionId,
        /// Its first message.
        greeting: Greeting,
    },
    /// Drop the connection.
    Disconnect {
        /// Its number.
        connection: ConnectionId,
    },
    /// Run an attempt; feed [`super::Input::OutputGrew`] and [`super::Input::Ended`].
    Begin {
        /// The attempt.
        attempt: AttemptId,
        /// What the assignment said.
        job: J,
    },
    /// Continue an attempt of an earlier process, as if it had been begun.
    Adopt {
        /// The attempt.
        attempt: AttemptId,
        /// How much of its output the server has, in bytes. If that is more than this machine has,
        /// what comes next follows after so many bytes.
        output_bytes: u64,
    },
    /// End what runs of an attempt. Its end is fed all the same.
    Cancel {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Remove an attempt from this machine, then feed [`super::Input::Cleared`].
    Forget {
        /// The attempt.
        attempt: AttemptId,
        /// Whether it failed: its folder may be wanted.
        failed: bool,
    },
    /// Look whether the worker can write its own files again, then feed
    /// [`super::Input::DiskChecked`].
    CheckDisk,
    /// Something that people may want to read.
    Notice(Notice),
    /// The worker stops. What still runs continues, and the next process adopts it.
    Stop(EndReason),
}

/// Something that people may want to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// There is a session.
    Connected {
        /// How many attempts of before it are still valid.
        held: usize,
    },
    /// There is none.
    Disconnected(Outage),
    /// The worker takes no jobs, because it cannot write its own files or start a keeper.
    Paused {
        /// Why.
        reason: String,
    },
    /// It can again.
    Resumed,
}

/// What ended a session, or kept one from being opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// The connection ended, or could not be made.
    Ended,
    /// The server did not answer the hello within this time.
    NoWelcome(Duration),
    /// Nothing came from the server for this time.
    NoMessage(Duration),
}

/// Why a worker stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Nothing is held, and nothing more is wanted.
    Done,
    /// The server does not want it.
    Refused,
    /// There is no session, and it is not to open another.
    Disconnected,
    /// It was to stop, and no server took its last reports in time.
    Unreported {
        /// How many attempts it still holds.
        attempts: usize,
    },
}

/// Part of what an attempt left, to be read and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Of what it printed.
    Output {
        /// The place of the first byte.
        offset: u64,
        /// How many bytes, [`super::PART_BYTES`] at most.
        length: u64,
    },
    /// Of a file.
    Artifact {
        /// Which file.
        file: ArtifactFile,
        /// The place of the first byte.
        offset: u64,
        /// How many bytes, [`super::PART_BYTES`] at most; 0 only for an empty file.
        length: u64,
    },
}

/// What an attempt sends next: some of it must be read first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadKind {
    /// Part of what it printed.
    Output,
    /// Part of a file that it left.
    File,
    /// How it ended.
    Report,
}

/// Something to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The worker is there.
    Heartbeat,
    /// No more assignments.
    Drain,
    /// The worker holds nothing and leaves.
    Goodbye,
    /// Part of what an attempt left.
    Part {
        /// The attempt.
        attempt: AttemptId,
        /// Which part.
        part: Part,
    },
    /// How an attempt ended.
    Report {
        /// The attempt.
        attempt: AttemptId,
        /// How.
        outcome: Adopted,
        /// How long its output is, in bytes.
        output_bytes: u64,
    },
}
