//! The whole server in numbers: what `/metrics` shows and what starts workers. Read from the views
//! at each request, so that a number survives a restart and cannot disagree with the log.

use towpath_engine::views::RunMetrics;

use crate::{
    command_error::CommandError,
    demand::{Demand, demand_of},
    runs::Runs,
    shared_scheduler::SharedScheduler,
    sync::locked,
};

/// The numbers of one moment.
#[derive(Debug, Default)]
pub(crate) struct MetricValues {
    pub(crate) of_runs: RunMetrics,
    /// Runs whose records cannot be replayed.
    pub(crate) set_aside: u64,
    /// Jobs of live runs that want a worker or have one, by their tags.
    pub(crate) demand: Demand,
}

impl MetricValues {
    /// What the views say now.
    pub(crate) async fn read(
        runs: &Runs,
        scheduler: &SharedScheduler,
    ) -> Result<Self, CommandError> {
        let mut of_runs = RunMetrics::default();
        {
            let list = locked(&runs.list);
            let ends = list.newest_first().filter_map(|listed| listed.summary.end.as_ref());
            ends.for_each(|end| of_runs.count_ended(end.outcome));
        }
        for id in runs.live() {
            match runs.lock_latest(&id).await {
                Ok(loaded) => of_runs.count_live(&loaded.state),
                // Set aside by now, and counted below.
                Err(CommandError::Unreplayable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // Runs that ended before they were found damaged are counted by how they ended, too.
        let set_aside = locked(&runs.set_aside).len() as u64;
        Ok(Self { of_runs, set_aside, demand: demand_of(scheduler) })
    }
}
