//! The metrics as series, and `GET /metrics`, on the port of everything else: the series as
//! OpenMetrics text.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
};

use axum::{
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing,
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};
use tonic::service::Routes;
use towpath_engine::time::Timestamp;
use towpath_proto::v1;

use crate::{
    command_error::CommandError, demand::Tags, metric_values::MetricValues, open_log::OpenLog,
    runs::Runs, shared_scheduler::SharedScheduler, wire,
};

/// Where the metrics are.
const PATH: &str = "/metrics";
/// What OpenMetrics text calls itself.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Most sets of tags with a series of their own. The others, in alphabetical order, share one.
const SERIES_MAX: usize = 100;
/// Longest value of a label, in bytes. Longer ones share a series.
const LABEL_BYTES_MAX: usize = 256;
/// The series of what has none of its own.
const OTHER: &str = "(other)";
/// The tags of workers that hold leases and are not connected.
const AWAY: &str = "(away)";

type Labels = [(&'static str, String); 1];

/// Reads the metrics of the server.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// What keeps the log: the scheme of the store's URL. The rest of the URL may hold a password.
    store: String,
    log: Arc<OpenLog>,
    runs: Arc<Runs>,
    scheduler: Arc<SharedScheduler>,
}

/// `routes`, and the one that is not gRPC.
pub(crate) fn add_to(mut routes: Routes, metrics: Metrics) -> Routes {
    let router = routes.axum_router_mut();
    let scrape = move || {
        let metrics = metrics.clone();
        async move { scrape(&metrics).await }
    };
    *router = std::mem::take(router).route(PATH, routing::get(scrape));
    routes
}

async fn scrape(metrics: &Metrics) -> Response {
    let series = match metrics.series().await {
        Ok(series) => series,
        Err(error) => {
            tracing::warn!(%error, "failed to collect metrics");
            // Not an empty page: a scraper would store zeros, and an alert on waiting gates would
            // be resolved by a broken disk.
            return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response();
        }
    };
    let mut text = String::new();
    let registry = registry(&metrics.store, series);
    match encode(&mut text, &registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// What a series counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricKind {
    /// As many as there are now.
    Now,
    /// As many as there were since the server began.
    SinceBegin,
    /// Seconds.
    Seconds,
}

/// One figure, by one label or as a whole.
#[derive(Clone, Debug)]
pub(crate) struct MetricSeries {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: MetricKind,
    /// The label that distinguishes its points. Empty: there is one point.
    pub(crate) label: &'static str,
    /// The points by label; milliseconds, if it counts in seconds.
    pub(crate) points: Vec<(String, u64)>,
}

impl Metrics {
    pub(crate) fn new(
        store: String,
        log: Arc<OpenLog>,
        runs: Arc<Runs>,
        scheduler: Arc<SharedScheduler>,
    ) -> Self {
        Self { store, log, runs, scheduler }
    }

    /// The metrics of this moment as series. The same series, in the same order, at every moment.
    pub(crate) async fn series(&self) -> Result<Vec<MetricSeries>, CommandError> {
        let metric_values = MetricValues::read(&self.runs, &self.scheduler).await?;
        let workers = self.scheduler.inspect(|all| wire::workers(all.workers(), &[]));
        let mut all = of_runs(self.log.now(), &metric_values);
        all.extend(of_workers(&workers, &metric_values));
        let (log, runs) = (&self.log, &self.runs);
        let since = |name, help, value| single(name, help, MetricKind::SinceBegin, value);
        all.extend([
            since("appends", "Appends to the log since the server began", log.appends()),
            since("events", "Events recorded since the server began", log.events()),
            since("leases_lost", "Leases lost since the server began", runs.hooks.leases_lost()),
        ]);
        let position = log.position();
        let help = "Position of the newest durable record";
        all.push(single("log_position", help, MetricKind::Now, position));
        let help = "How far the time of the log is ahead of this machine's wall clock";
        all.push(single("clock_ahead", help, MetricKind::Seconds, log.clock_ahead_ms()));
        Ok(all)
    }
}

/// Made again for every scrape: nothing is counted twice, and nothing is kept in step by hand.
fn registry(store: &str, series: Vec<MetricSeries>) -> Registry {
    let mut all = Registry::with_prefix("towpath");
    for MetricSeries { name, help, kind, label, points } in series {
        match kind {
            MetricKind::Now if label.is_empty() => {
                let gauge = Gauge::<i64>::default();
                gauge.set(signed(sum(&points)));
                all.register(name, help, gauge);
            }
            MetricKind::Now => {
                let family = Family::<Labels, Gauge>::default();
                for (value, count) in points {
                    family.get_or_create(&[(label, value)]).set(signed(count));
                }
                all.register(name, help, family);
            }
            MetricKind::SinceBegin => {
                let counter = Counter::<u64>::default();
                counter.inc_by(sum(&points));
                all.register(name, help, counter);
            }
            MetricKind::Seconds => {
                let seconds = Gauge::<f64, AtomicU64>::default();
                seconds.set(sum(&points) as f64 / 1_000.0);
                all.register(format!("{name}_seconds"), help, seconds);
            }
        }
    }
    let store = Info::new([("kind", store.to_owned())]);
    all.register("store", "What keeps the log", store);
    let version = env!("CARGO_PKG_VERSION").to_owned();
    all.register("build", "Which tow this is", Info::new([("version", version)]));
    all
}

fn of_runs(now: Timestamp, metric_values: &MetricValues) -> Vec<MetricSeries> {
    let words = |counts: &BTreeMap<&'static str, u64>| -> Vec<(String, u64)> {
        counts.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect()
    };
    let age = metric_values.of_runs.oldest_gate.map_or(0, |since| now.ms_since(since));
    let help = "How long the gate has waited that has waited longest; 0 if none does";
    let damaged = "Runs that were found damaged since the server began, and are set aside";
    let waiting = "Gates of live runs that wait for a person";
    vec![
        family("runs", "Runs by phase", "phase", words(&metric_values.of_runs.runs)),
        family("jobs", "Jobs of live runs by state", "state", words(&metric_values.of_runs.jobs)),
        single("runs_damaged", damaged, MetricKind::Now, metric_values.set_aside),
        single("gates_waiting", waiting, MetricKind::Now, metric_values.of_runs.gates),
        single("gates_oldest_age", help, MetricKind::Seconds, age),
    ]
}

fn of_workers(workers: &[v1::Worker], metric_values: &MetricValues) -> Vec<MetricSeries> {
    let pending = metric_values.demand.iter().map(|(tags, wanted)| (tags.clone(), wanted.pending));
    let leased = metric_values.demand.iter().map(|(tags, wanted)| (tags.clone(), wanted.leased));
    let each = |figure: fn(&v1::Worker) -> u64| {
        by_tags(workers.iter().map(|worker| (sorted(&worker.tags), figure(worker))))
    };
    let tags_of: BTreeMap<&str, &[String]> =
        workers.iter().map(|worker| (worker.name.as_str(), &worker.tags[..])).collect();
    let leases = metric_values.of_runs.leases.iter().map(|(worker, count)| {
        let tags = tags_of.get(worker.as_str());
        (tags.map_or_else(|| vec![AWAY.to_owned()], |tags| sorted(tags)), *count)
    });
    let tagged = |name, help, points| family(name, help, "tags", points);
    let slots = each(|worker| u64::from(worker.slots));
    vec![
        tagged("jobs_ready", "Jobs that a worker could begin now", by_tags(pending)),
        tagged("jobs_leased", "Jobs that a worker holds", by_tags(leased)),
        tagged("workers_connected", "Workers that are connected", each(|_| 1)),
        tagged("slots", "Slots of workers that are connected", slots),
        tagged("slots_free", "Slots that could be given a job", each(free)),
        tagged("leases_held", "Leases by the tags of their worker", by_tags(leases)),
    ]
}

fn free(worker: &v1::Worker) -> u64 {
    if worker.state() == v1::WorkerState::Draining {
        0
    } else {
        u64::from(worker.slots.saturating_sub(worker.running))
    }
}

fn sorted(tags: &[String]) -> Tags {
    let mut tags = tags.to_vec();
    tags.sort();
    tags
}

/// The sums by set of tags, with no more series than there may be.
fn by_tags(counts: impl Iterator<Item = (Tags, u64)>) -> Vec<(String, u64)> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (tags, count) in counts {
        let label = tags.join(",");
        // Labels come from pipeline files, and each new one is a series that the database of
        // metrics keeps for ever.
        let known = sums.contains_key(&label) || sums.len() + 1 < SERIES_MAX;
        let own = known && label.len() <= LABEL_BYTES_MAX;
        *sums.entry(if own { label } else { OTHER.to_owned() }).or_default() += count;
    }
    sums.into_iter().collect()
}

fn family(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    points: Vec<(String, u64)>,
) -> MetricSeries {
    MetricSeries { name, help, kind: MetricKind::Now, label, points }
}

fn single(name: &'static str, help: &'static str, kind: MetricKind, value: u64) -> MetricSeries {
    MetricSeries { name, help, kind, label: "", points: vec![(String::new(), value)] }
}

fn sum(points: &[(String, u64)]) -> u64 {
    points.iter().map(|(_, count)| count).sum()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_series_than_may_be_and_nothing_is_left_out() {
        let many = (0..SERIES_MAX as u64 * 3).map(|n| (vec![format!("t{n:04}")], 1));
        let long = (vec!["x".repeat(LABEL_BYTES_MAX + 1)], 5);

        let series = by_tags(std::iter::once(long).chain(many));

        assert!(series.len() <= SERIES_MAX, "{}", series.len());
        assert_eq!(series.iter().map(|(_, count)| count).sum::<u64>(), SERIES_MAX as u64 * 3 + 5);
        assert!(series.iter().any(|(label, _)| label == OTHER));
    }
}
