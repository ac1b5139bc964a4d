//! A script's process group, and whatever else carries the mark of its attempt: asked to end, made
//! to end, looked for.
//!
//! The script's first process leads the group. Its keeper does not wait for it before the attempt is
//! released, so until then the number is the group's own and a signal cannot hit a stranger. Without
//! a keeper, the number counts only together with the time at which its process was started.

use std::{path::PathBuf, sync::Arc};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio_util::sync::CancellationToken;

use crate::{
    journal::LatestAttempt,
    keeper::{Keeper, Request},
    process_search::{is_group_empty, is_living_member, kill_all, marked_with, start_time},
};

/// The group of a script.
#[derive(Debug)]
pub(crate) struct ProcessGroup {
    /// The folder of its attempt.
    attempt: PathBuf,
    /// `None`: its keeper was gone before it was looked for.
    keeper: Option<Arc<Keeper>>,
}

impl ProcessGroup {
    /// The group of the attempt whose folder is `attempt`.
    pub(crate) fn new(attempt: PathBuf, keeper: Option<Arc<Keeper>>) -> Self {
        Self { attempt, keeper }
    }

    /// Asks all members to end.
    pub(crate) fn ask_to_end(&self) {
        self.request(Request::AskToEnd { attempt: self.attempt.clone() }, Signal::SIGTERM);
    }

    /// Makes all members end.
    pub(crate) fn kill(&self) {
        self.request(Request::Kill { attempt: self.attempt.clone() }, Signal::SIGKILL);
    }

    /// Makes all members end that a keeper did not end when it was asked to.
    pub(crate) fn kill_without_keeper(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Makes what is left of it end, and lets its keeper forget it.
    pub(crate) fn release(&self) {
        self.request(Request::Release { attempt: self.attempt.clone() }, Signal::SIGKILL);
    }

    /// Sends `request` to the keeper; if it takes none, what it would have sent as `signal`.
    fn request(&self, request: Request, signal: Signal) {
        let sent = self.keeper.as_ref().is_some_and(|keeper| keeper.send(&request).is_ok());
        if !sent {
            self.signal(signal);
        }
    }

    /// Sends `signal` to the group, if its first process is still the one that the journal names:
    /// the number alone might be a stranger's by now.
    fn signal(&self, signal: Signal) {
        let Some(page) = self.newest() else { return };
        let leader = page.pid.map(Pid::from_raw).filter(|leader| is_first_of(&page, *leader));
        // Fails only if no member is left, which is what was wanted.
        let _ = leader.map(|leader| killpg(leader, signal));
    }

    /// Whether the script and all others in its group have ended. `false` as well if it has not
    /// begun, as far as the journal says: a keeper may still begin it.
    pub(crate) fn is_empty(&self) -> bool {
        let leader = self.newest().and_then(|page| page.pid);
        leader.is_some_and(|leader| is_group_empty(Pid::from_raw(leader)))
    }

    fn newest(&self) -> Option<LatestAttempt> {
        LatestAttempt::newest(&self.attempt).ok().flatten()
    }

    /// Cancelled when its keeper is gone; `None`: it was from the beginning.
    pub(crate) fn keeper_gone(&self) -> Option<&CancellationToken> {
        self.keeper.as_ref().map(|keeper| keeper.gone())
    }
}

/// Whether `leader` is the process that the script of `page` began as.
fn is_first_of(page: &LatestAttempt, leader: Pid) -> bool {
    page.born.is_some() && start_time(leader) == page.born
}

/// What is left of a script whose keeper was killed.
#[derive(Debug)]
pub(crate) struct Unkept<'a> {
    page: &'a LatestAttempt,
    /// Its group, once it was found to be the script's and no stranger's.
    group: Option<Pid>,
}

impl<'a> Unkept<'a> {
    /// What may be left of the attempt in `page`, the newest that its journal says.
    pub(crate) fn new(page: &'a LatestAttempt) -> Self {
        Self { page, group: None }
    }

    /// Makes every process of it end, by looking at all processes of the system. Returns whether
    /// there was one: to be called until there is none, because a process may be forked while the
    /// others are looked at, and a killed one takes a while.
    pub(crate) fn end(&mut self) -> bool {
        let output = &self.page.kept.output;
        let marked = marked_with(output);
        // Before the marked ones are killed: they may be what shows whose the group is.
        let group = self.page.pid.map(Pid::from_raw).filter(|leader| {
            is_first_of(self.page, *leader)
                || marked.iter().any(|one| is_living_member(one, *leader))
        });
        if let Some(leader) = group {
            // Reaches the members that took the mark off, as `env -i` and `sudo` do.
            let _ = killpg(leader, Signal::SIGKILL);
            self.group = group;
        }
        kill_all(&marked) > 0 || self.group.is_some_and(|leader| !is_group_empty(leader))
    }
}
