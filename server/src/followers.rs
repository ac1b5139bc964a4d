//! Who follows which run: a follower wakes for what is recorded of its own run and for nothing
//! else, however many runs and followers there are.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as SyncMutex},
};

use tokio::sync::watch;
use towpath_engine::ids::RunId;

use crate::runs::locked;

/// The followers of runs.
#[derive(Debug, Default)]
pub(crate) struct Followers {
    runs: SyncMutex<HashMap<RunId, watch::Sender<()>>>,
}

/// A follower of one run. When the last of a run is dropped the run is forgotten.
#[derive(Debug)]
pub(crate) struct Follower {
    run: RunId,
    recorded: watch::Receiver<()>,
    followers: Arc<Followers>,
}

impl Followers {
    /// Follows `run` from now on.
    pub(crate) fn follow(self: &Arc<Self>, run: &RunId) -> Follower {
        let mut runs = locked(&self.runs);
        let recorded =
            runs.entry(run.clone()).or_insert_with(|| watch::Sender::new(())).subscribe();
        Follower { run: run.clone(), recorded, followers: Arc::clone(self) }
    }

    /// Something of `run` was recorded, and can be read.
    pub(crate) fn recorded(&self, run: &RunId) {
        if let Some(recorded) = locked(&self.runs).get(run) {
            recorded.send_replace(());
        }
    }
}

impl Follower {
    /// Whatever was recorded by now is about to be read: only later records wake.
    pub(crate) fn seen(&mut self) {
        self.recorded.borrow_and_update();
    }

    /// Waits until something is recorded that was not seen.
    pub(crate) async fn wait(&mut self) {
        // The sender lives as long as this follower.
        drop(self.recorded.changed().await);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut runs = locked(&self.followers.runs);
        // This receiver is one of those that are counted.
        if runs.get(&self.run).is_some_and(|recorded| recorded.receiver_count() <= 1) {
            runs.remove(&self.run);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_follower_wakes_for_its_own_run_alone() {
        let followers = Arc::new(Followers::default());
        let (mut one, mut other) = (followers.follow(&"a".into()), followers.follow(&"b".into()));
        let mut same = followers.follow(&"a".into());

        followers.recorded(&"a".into());

        assert!(one.wait().now_or_never().is_some() && same.wait().now_or_never().is_some());
        assert!(other.wait().now_or_never().is_none());
        assert!(one.wait().now_or_never().is_none(), "once for each record");
    }

    #[tokio::test]
    async fn what_was_recorded_before_it_was_read_wakes_nobody() {
        let followers = Arc::new(Followers::default());
        let mut follower = followers.follow(&"a".into());
        followers.recorded(&"a".into());
        follower.seen();
        assert!(follower.wait().now_or_never().is_none());
    }

    #[test]
    fn a_run_that_nobody_follows_is_forgotten() {
        let followers = Arc::new(Followers::default());
        let (one, other) = (followers.follow(&"a".into()), followers.follow(&"a".into()));
        drop(one);
        assert_eq!(locked(&followers.runs).len(), 1);
        drop(other);
        assert!(locked(&followers.runs).is_empty());
    }
}
