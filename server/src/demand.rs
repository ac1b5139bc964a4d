//! The demand for workers: how many jobs want one or have one, by their tags. Programs that start
//! workers follow it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use towpath_engine::scheduler::Scheduler;

use crate::{command_error::CommandError, shared_scheduler::SharedScheduler};

/// Most sets of tags in one answer. Tags come from pipeline files, so that their number is chosen by
/// whoever writes those; a message of all of them could be larger than clients take.
const TAG_SETS_MAX: usize = 256;

/// Shortest time between two answers to one follower.
const DEMAND_EVERY: Duration = Duration::from_millis(200);

/// Tags in alphabetical order.
pub(crate) type Tags = Vec<String>;

/// Jobs that want a worker or have one, by their tags.
pub(crate) type Demand = BTreeMap<Tags, Wanted>;

/// Jobs that ask for the same tags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// A worker could begin them at once.
    pub(crate) pending: u64,
    /// A worker holds them.
    pub(crate) leased: u64,
}

/// What the workers of a launcher offer.
#[derive(Clone, Debug, Default)]
pub(crate) struct LaunchOffer {
    /// Their tags.
    pub(crate) tags: Tags,
    /// The launcher starts workers of any tags.
    pub(crate) all: bool,
}

/// The part of the demand that fits an offer, most wanted first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FittingDemand {
    /// At most [`TAG_SETS_MAX`] sets of tags.
    pub(crate) sets: Vec<(Tags, Wanted)>,
    /// How many sets fit and are left out.
    pub(crate) left_out: u32,
}

impl FittingDemand {
    /// What of `demand` workers with `offer` could take.
    pub(crate) fn of(demand: &Demand, offer: &LaunchOffer) -> Self {
        let fits = |tags: &Tags| offer.all || tags.iter().all(|tag| offer.tags.contains(tag));
        let fitting = demand.iter().filter(|(tags, _)| fits(tags));
        let mut sets: Vec<_> = fitting.map(|(tags, wanted)| (tags.clone(), *wanted)).collect();
        // The sets with most waiting jobs are the ones a launcher needs.
        sets.sort_by_key(|(_, wanted)| std::cmp::Reverse((wanted.pending, wanted.leased)));
        let left_out = u32::try_from(sets.len().saturating_sub(TAG_SETS_MAX)).unwrap_or(u32::MAX);
        sets.truncate(TAG_SETS_MAX);
        Self { sets, left_out }
    }

    /// Jobs that a worker could begin, or that a worker holds.
    pub(crate) fn jobs(&self) -> u64 {
        // Jobs that are held count too: a launcher that saw only waiting ones would stop the workers
        // of the others.
        self.sets.iter().map(|(_, wanted)| wanted.pending + wanted.leased).sum()
    }
}

/// Answers what wants a worker, now and whenever that changes.
#[derive(Clone, Debug)]
pub(crate) struct DemandWatch {
    scheduler: Arc<SharedScheduler>,
    /// Cancelled when the server closes.
    stop: CancellationToken,
}

impl DemandWatch {
    pub(crate) fn new(scheduler: Arc<SharedScheduler>, stop: CancellationToken) -> Self {
        Self { scheduler, stop }
    }

    /// What wants a worker now. The scheduler keeps it in step, so that it costs what there are
    /// different tags, and not what there are runs.
    pub(crate) fn now(&self) -> Demand {
        demand_of(&self.scheduler)
    }

    /// Sends what the demand means to a follower, and again whenever that has changed.
    pub(crate) async fn follow<T: Clone + PartialEq>(
        &self,
        meaning: impl Fn(&Demand) -> T,
        send: mpsc::Sender<Result<T, CommandError>>,
    ) {
        let mut wanted = self.scheduler.watch_wanted();
        let mut sent = None;
        loop {
            // Seen before reading: what changes in between wakes the wait below.
            wanted.borrow_and_update();
            let meant = meaning(&self.now());
            // The demand changes with every job; most followers see only a part of it.
            if sent.as_ref() != Some(&meant) {
                sent = Some(meant.clone());
                if send.send(Ok(meant)).await.is_err() {
                    return;
                }
            }
            let changed = async {
                // First the pause: a thousand jobs that begin at once are one message.
                tokio::time::sleep(DEMAND_EVERY).await;
                // The sender lives as long as the server.
                drop(wanted.changed().await);
            };
            tokio::select! {
                () = send.closed() => return,
                () = self.stop.cancelled() => return,
                () = changed => {}
            }
        }
    }
}

/// What wants a worker now, as `scheduler` knows it.
pub(crate) fn demand_of(scheduler: &SharedScheduler) -> Demand {
    let wanted = scheduler.inspect(Scheduler::wanted).into_iter();
    wanted.map(|(tags, (pending, leased))| (tags.to_vec(), Wanted { pending, leased })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(asked: &[&str], all: bool) -> Vec<(String, u64)> {
        let set = |tags: &[&str]| -> Tags { tags.iter().map(|tag| (*tag).to_owned()).collect() };
        let wanted = |pending| Wanted { pending, leased: 0 };
        let demand =
            [(set(&[]), wanted(1)), (set(&["a"]), wanted(3)), (set(&["a", "b"]), wanted(2))];
        let told = FittingDemand::of(&demand.into(), &LaunchOffer { tags: set(asked), all });
        told.sets.into_iter().map(|(tags, wanted)| (tags.join(","), wanted.pending)).collect()
    }

    #[test]
    fn demand_is_what_a_worker_of_these_tags_could_take() {
        assert_eq!(sets(&[], false), [("".into(), 1)]);
        assert_eq!(sets(&["a"], false), [("a".into(), 3), ("".into(), 1)]);
        assert_eq!(sets(&["b"], false), [("".into(), 1)]);
        assert_eq!(sets(&[], true), [("a".into(), 3), ("a,b".into(), 2), ("".into(), 1)]);
    }

    #[test]
    fn the_number_of_reported_tag_sets_is_bounded() {
        let each = |n: usize| (vec![format!("t{n:03}")], Wanted { pending: n as u64, leased: 0 });
        let demand = (0..=TAG_SETS_MAX).map(each).collect();

        let told = FittingDemand::of(&demand, &LaunchOffer { all: true, ..Default::default() });

        assert_eq!((told.sets.len(), told.left_out), (TAG_SETS_MAX, 1));
        assert_eq!(told.sets[0].1.pending, TAG_SETS_MAX as u64, "the least wanted are omitted");
    }

    #[test]
    fn a_job_that_a_worker_holds_still_wants_that_worker() {
        let demand = Demand::from([(Tags::new(), Wanted { pending: 2, leased: 3 })]);
        assert_eq!(FittingDemand::of(&demand, &LaunchOffer::default()).jobs(), 5);
    }
}
