//! The whole server in numbers: what `/metrics` shows and what starts workers. Read from the views
//! at each request, so that a number survives a restart and cannot disagree with the log.

use towpath_engine::views::RunMetrics;

use crate::{
    Server,
    command_error::CommandError,
    demand::{Demand, demand_of},
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
        Ok(MetricValues { of_runs, set_aside, demand: demand_of(self.scheduler()) })
    }
}
