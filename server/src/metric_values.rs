//! The whole server in numbers: what `/metrics` shows and what starts workers. Read from the views
//! at each request, so that a number survives a restart and cannot disagree with the log.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::mpsc;
use tonic::Status;
use towpath_engine::{scheduler::Scheduler, views::RunMetrics};
use towpath_proto::v1;

use crate::{Server, command_error::CommandError, sync::locked};

/// Most sets of tags in one message.
const TAG_SETS_MAX: usize = 256;

/// Shortest time between two looks at what wants a worker.
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

/// The numbers of one moment.
#[derive(Debug, Default)]
pub(crate) struct MetricValues {
    pub(crate) of_runs: RunMetrics,
    /// Runs whose records cannot be replayed.
    pub(crate) set_aside: u64,
    /// Jobs of live runs that want a worker or have one, by their tags.
    pub(crate) demand: Demand,
}

impl Server {
    /// What the views say now.
    pub(crate) async fn metric_values(&self) -> Result<MetricValues, CommandError> {
        let mut of_runs = RunMetrics::default();
        {
            let list = locked(&self.runs().list);
            let ends = list.newest_first().filter_map(|listed| listed.summary.end.as_ref());
            ends.for_each(|end| of_runs.count_ended(end.outcome));
        }
        for id in self.runs().live() {
            match self.runs().lock_latest(&id).await {
                Ok(loaded) => of_runs.count_live(&loaded.state),
                // Set aside by now, and counted below.
                Err(CommandError::Unreplayable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // Runs that ended before they were found damaged are counted by how they ended, too.
        let set_aside = locked(&self.runs().set_aside).len() as u64;
        Ok(MetricValues { of_runs, set_aside, demand: self.demand() })
    }
}

impl Server {
    /// Sends what the demand for workers means, and again whenever that has changed.
    pub(crate) async fn tell<T: Clone + PartialEq>(
        &self,
        meaning: impl Fn(&Demand) -> T,
        send: mpsc::Sender<Result<T, Status>>,
    ) {
        let mut wanted = self.scheduler().watch_wanted();
        let mut told = None;
        loop {
            // Seen before reading: what changes in between wakes the wait below.
            wanted.borrow_and_update();
            let meant = meaning(&self.demand());
            if told.as_ref() != Some(&meant) {
                told = Some(meant.clone());
                if send.send(Ok(meant)).await.is_err() {
                    return;
                }
            }
            let changed = async {
                tokio::time::sleep(DEMAND_EVERY).await;
                // The sender lives as long as the server.
                drop(wanted.changed().await);
            };
            tokio::select! {
                () = send.closed() => return,
                () = self.stopping().cancelled() => return,
                () = changed => {}
            }
        }
    }

    /// What wants a worker now. The scheduler keeps it in step, so that it costs what there are
    /// different tags, and not what there are runs.
    pub(crate) fn demand(&self) -> Demand {
        let wanted = self.scheduler().inspect(Scheduler::wanted).into_iter();
        wanted
            .map(|(tags, (pending, leased))| (tags.to_vec(), Wanted { pending, leased }))
            .collect()
    }
}

/// What wants a worker that offers what `asked` says.
pub(crate) fn demand_of(demand: &Demand, asked: &v1::WatchDemandRequest) -> v1::Demand {
    let fits = |tags: &Tags| asked.all || tags.iter().all(|tag| asked.tags.contains(tag));
    let fitting = demand.iter().filter(|(tags, _)| fits(tags));
    let mut sets: Vec<v1::TagSet> = fitting
        .map(|(tags, wanted)| v1::TagSet {
            tags: tags.clone(),
            pending: wanted.pending,
            leased: wanted.leased,
        })
        .collect();
    // The sets with most waiting jobs are the ones a launcher needs.
    sets.sort_by_key(|set| std::cmp::Reverse((set.pending, set.leased)));
    let left_out = u32::try_from(sets.len().saturating_sub(TAG_SETS_MAX)).unwrap_or(u32::MAX);
    sets.truncate(TAG_SETS_MAX);
    v1::Demand { sets, left_out }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(asked: &[&str], all: bool) -> Vec<(String, u64)> {
        let set = |tags: &[&str]| -> Tags { tags.iter().map(|tag| (*tag).to_owned()).collect() };
        let wanted = |pending| Wanted { pending, leased: 0 };
        let demand =
            [(set(&[]), wanted(1)), (set(&["a"]), wanted(3)), (set(&["a", "b"]), wanted(2))];
        let told = demand_of(&demand.into(), &v1::WatchDemandRequest { tags: set(asked), all });
        told.sets.into_iter().map(|set| (set.tags.join(","), set.pending)).collect()
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

        let told = demand_of(&demand, &v1::WatchDemandRequest { all: true, ..Default::default() });

        assert_eq!((told.sets.len(), told.left_out), (TAG_SETS_MAX, 1));
        assert_eq!(told.sets[0].pending, TAG_SETS_MAX as u64, "the least wanted are omitted");
    }
}
