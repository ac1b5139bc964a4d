//! A script's process group: asked to end, made to end, looked for.
//!
//! The script's first process leads the group. Its keeper does not wait for it before the attempt is
//! released, so until then the number is the group's own and a signal cannot hit a stranger.

use std::{path::PathBuf, sync::Arc};

use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use crate::{
    journal::LatestAttempt,
    keeper::{Keeper, Request},
    process_search::is_group_empty,
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
        self.request(Request::AskToEnd { attempt: self.attempt.clone() });
    }

    /// Makes all members end.
    pub(crate) fn kill(&self) {
        self.request(Request::Kill { attempt: self.attempt.clone() });
    }

    /// Makes what is left of it end, and lets its keeper forget it.
    pub(crate) fn release(&self) {
        self.request(Request::Release { attempt: self.attempt.clone() });
    }

    fn request(&self, request: Request) {
        // A keeper that is gone is noticed by whoever watches the attempt, and what it kept is ended
        // then: its numbers might be strangers' by now.
        let _ = self.keeper.as_ref().map(|keeper| keeper.send(&request));
    }

    /// Whether the script and all others in its group have ended.
    pub(crate) fn is_empty(&self) -> bool {
        let page = LatestAttempt::newest(&self.attempt).ok().flatten();
        page.and_then(|page| page.pid).is_some_and(|leader| is_group_empty(Pid::from_raw(leader)))
    }

    /// Cancelled when its keeper is gone; `None`: it was from the beginning.
    pub(crate) fn keeper_gone(&self) -> Option<&CancellationToken> {
        self.keeper.as_ref().map(|keeper| keeper.gone())
    }
}
