//! Who follows which stream: a follower wakes for what is recorded in its own stream and for nothing
//! else, however many streams and followers there are.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as SyncMutex},
};

use tokio::sync::watch;

use crate::sync::locked;

/// The followers of streams.
#[derive(Debug, Default)]
pub(crate) struct Followers {
    streams: SyncMutex<HashMap<String, watch::Sender<()>>>,
}

/// A follower of one stream. When the last of a stream is dropped the stream is forgotten.
#[derive(Debug)]
pub(crate) struct Follower {
    stream: String,
    recorded: watch::Receiver<()>,
    followers: Arc<Followers>,
}

impl Followers {
    /// Follows `stream` from now on.
    pub(crate) fn follow(self: &Arc<Self>, stream: &str) -> Follower {
        let mut streams = locked(&self.streams);
        let recorded =
            streams.entry(stream.to_owned()).or_insert_with(|| watch::Sender::new(())).subscribe();
        Follower { stream: stream.to_owned(), recorded, followers: Arc::clone(self) }
    }

    /// Something was recorded in `stream`, and can be read.
    pub(crate) fn recorded(&self, stream: &str) {
        if let Some(recorded) = locked(&self.streams).get(stream) {
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
        let mut streams = locked(&self.followers.streams);
        // This receiver is one of those that are counted.
        if streams.get(&self.stream).is_some_and(|recorded| recorded.receiver_count() <= 1) {
            streams.remove(&self.stream);
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
        let (mut one, mut other) = (followers.follow("run/a"), followers.follow("run/b"));
        let mut same = followers.follow("run/a");

        followers.recorded("run/a");

        assert!(one.wait().now_or_never().is_some() && same.wait().now_or_never().is_some());
        assert!(other.wait().now_or_never().is_none());
        assert!(one.wait().now_or_never().is_none(), "once for each record");
    }

    #[tokio::test]
    async fn what_was_recorded_before_it_was_read_wakes_nobody() {
        let followers = Arc::new(Followers::default());
        let mut follower = followers.follow("run/a");
        followers.recorded("run/a");
        follower.seen();
        assert!(follower.wait().now_or_never().is_none());
    }

    #[test]
    fn a_run_that_nobody_follows_is_forgotten() {
        let followers = Arc::new(Followers::default());
        let (one, other) = (followers.follow("run/a"), followers.follow("run/a"));
        drop(one);
        assert_eq!(locked(&followers.streams).len(), 1);
        drop(other);
        assert!(locked(&followers.streams).is_empty());
    }
}
