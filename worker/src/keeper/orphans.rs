//! Processes that left their script's group and outlive it: daemons.
//!
//! A keeper is the parent of whatever its scripts leave behind, so it looks at its own children and
//! at no other process. Each is born with a `TOW_OUTPUT` that names its attempt, and keeps it
//! wherever it goes; one whose attempt is over is ended. A process that is to stay takes
//! `TOW_OUTPUT` out of its environment.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

/// Shortest time between two looks: reading the children costs some microseconds, and jobs that end
/// meanwhile share the next look.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often an ended attempt is looked for: what was just being forked is seen by the next look.
const LOOKS: u8 = 2;
/// The variable that tells whose a process is.
const MARK: &[u8] = b"TOW_OUTPUT=";

/// What may be left of ended attempts.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// How often each is still looked for, by its mark.
    ended: HashMap<OsString, u8>,
    due: Option<Instant>,
    looked: Option<Instant>,
}

impl Orphans {
    /// The attempt of this mark is over, at `now`.
    pub(super) fn ended(&mut self, mark: &OsStr, now: Instant) {
        self.ended.insert(mark.to_owned(), LOOKS);
        let earliest = self.looked.map_or(now, |looked| looked + LOOK_EVERY);
        self.due.get_or_insert(earliest.max(now));
    }

    /// When [`Orphans::end_marked`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Waits for the children that have ended by themselves; `leaders` are waited for elsewhere.
    pub(super) fn reap(&self, leaders: &[i32]) {
        for child in children().filter(|child| !leaders.contains(child)) {
            is_alive(child);
        }
    }

    /// Ends the children that belong to an ended attempt. `leaders` do not.
    pub(super) fn end_marked(&mut self, leaders: &[i32]) {
        let now = Instant::now();
        for child in children().filter(|child| !leaders.contains(child)) {
            if is_alive(child) && self.has_mark(child) {
                // Its own children become ours when it is gone, and are seen by the next look.
                let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
            }
        }
        self.ended.retain(|_, looks| {
            *looks -= 1;
            *looks > 0
        });
        self.looked = Some(now);
        self.due = (!self.ended.is_empty()).then(|| now + LOOK_EVERY);
    }

    fn has_mark(&self, child: i32) -> bool {
        // It may have ended, or become somebody's whose environment may not be read.
        let Ok(environment) = fs::read(format!("/proc/{child}/environ")) else { return false };
        let mark = environment.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(MARK));
        mark.is_some_and(|mark| self.ended.contains_key(OsStr::from_bytes(mark)))
    }
}

/// Whether `child` runs; if not it is waited for.
fn is_alive(child: i32) -> bool {
    let ended = waitid(Id::Pid(Pid::from_raw(child)), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    matches!(ended, Ok(WaitStatus::StillAlive))
}

/// The children of this process.
fn children() -> impl Iterator<Item = i32> {
    // By thread, as the system keeps them. Without `/proc` nothing is found, and what a script
    // leaves behind outside its group stays.
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")));
    let all: String = lists.filter_map(Result::ok).collect();
    let pids: Vec<i32> = all.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    pids.into_iter()
}
