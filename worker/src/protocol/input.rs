//! Inputs of a worker's state machine.

use std::{collections::BTreeMap, time::Duration};

use towpath_engine::ids::AttemptId;

use super::{ConnectionId, Part};
use crate::Adopted;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The server cannot be reached any more, or not now.
    Lost,
    /// The server does not want this worker, and will not.
    Refused,
    /// Another process has the worker's name.
    NameTaken,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input<J> {
    /// The session is open.
    Welcome {
        /// The connection.
        connection: ConnectionId,
        /// Of what the hello named, the attempts that are still valid, and how many bytes of their
        /// output the server has.
        held: BTreeMap<AttemptId, u64>,
        /// How long the worker may be silent. Zero: not said.
        lease: Duration,
    },
    /// The server wants an attempt to be run.
    Assigned {
        /// The connection.
        connection: ConnectionId,
        /// The attempt.
        attempt: AttemptId,
        /// What else the assignment says.
        job: J,
    },
    /// The server wants an attempt to be ended and reported.
    CancelRequested {
        /// The connection.
        connection: ConnectionId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// The report of an attempt is durable, or the attempt is no longer valid.
    Recorded {
        /// The connection.
        connection: ConnectionId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// The server answered a heartbeat, or works on its welcome.
    Heartbeat {
        /// The connection.
        connection: ConnectionId,
    },
    /// A connection ended, or could not be made.
    Disconnected {
        /// The connection.
        connection: ConnectionId,
        /// Why.
        cause: Cause,
    },
    /// More of an attempt's output waits on this machine.
    OutputGrew {
        /// The attempt.
        attempt: AttemptId,
        /// How much there is in all, in bytes.
        length: u64,
    },
    /// An attempt that was begun or adopted has ended.
    Ended {
        /// The attempt.
        attempt: AttemptId,
        /// How.
        outcome: Adopted,
        /// Why not all of its output is there. `None`: it is.
        incomplete: Option<String>,
    },
    /// Part of an attempt that was to be sent cannot be read.
    Unreadable {
        /// The attempt.
        attempt: AttemptId,
        /// What was to be sent.
        part: Part,
        /// Why it cannot be read.
        reason: String,
    },
    /// The files of an attempt that was forgotten are removed.
    Cleared {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The worker cannot write its own files, or start a keeper.
    DiskFailed {
        /// Why.
        reason: String,
    },
    /// The answer to [`super::Effect::CheckDisk`].
    DiskChecked {
        /// Whether the disk takes bytes again.
        usable: bool,
    },
    /// The worker is to take nothing new, and to stop once it holds nothing.
    DrainRequested,
    /// The worker is to end what runs, too.
    KillRequested,
    /// Time passed: to be fed when [`super::Protocol::next_wake`] says so, and once to begin.
    Tick,
}
