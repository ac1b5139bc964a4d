//! `GET /metrics`, on the port of everything else: the figures as OpenMetrics text.

use std::{collections::BTreeMap, sync::atomic::AtomicU64};

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
use towpath_proto::v1;

use crate::{
    House,
    figures::{Figures, Tags},
};

/// Where the figures are.
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

/// The routes that are not gRPC.
pub(crate) fn routes(house: House) -> Routes {
    let mut routes = Routes::default();
    let router = routes.axum_router_mut();
    let scrape = move || {
        let house = house.clone();
        async move { scrape(&house).await }
    };
    *router = std::mem::take(router).route(PATH, routing::get(scrape));
    routes
}

async fn scrape(house: &House) -> Response {
    let figures = match house.figures().await {
        Ok(figures) => figures,
        Err(error) => {
            tracing::warn!(%error, "no figures");
            return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response();
        }
    };
    let mut text = String::new();
    let registry = registry(house, &figures);
    match encode(&mut text, &registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Made anew for every scrape: nothing is counted twice, and nothing is kept in step by hand.
fn registry(house: &House, figures: &Figures) -> Registry {
    let mut all = Registry::with_prefix("towpath");
    of_runs(&mut all, house, figures);
    of_workers(&mut all, &house.dispatch().workers(), figures);
    let tally = &house.runs().tally;
    counter(&mut all, "appends", "Appends to the log since the server began", tally.appends());
    counter(&mut all, "events", "Events recorded since the server began", tally.events());
    counter(&mut all, "leases_lost", "Leases lost since the server began", tally.lost());
    let position = *house.runs().store.watch().borrow();
    gauge(&mut all, "log_position", "Position of the newest durable record", position);
    let kind = house.url().split(':').next().unwrap_or_default().to_owned();
    all.register("store", "What keeps the log", Info::new([("kind", kind)]));
    let version = env!("CARGO_PKG_VERSION").to_owned();
    all.register("build", "Which tow this is", Info::new([("version", version)]));
    all
}

fn of_runs(all: &mut Registry, house: &House, figures: &Figures) {
    let words = |counts: &BTreeMap<&'static str, u64>| -> Vec<(String, u64)> {
        counts.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect()
    };
    family(all, "runs", "Runs by phase", "phase", words(&figures.runs));
    family(all, "jobs", "Jobs of live runs by state", "state", words(&figures.jobs));
    gauge(all, "gates_waiting", "Gates of live runs that wait for a person", figures.gates);
    let now = house.runs().now();
    let age = figures.oldest_gate.map_or(0, |since| now.ms_since(since));
    let seconds = Gauge::<f64, AtomicU64>::default();
    seconds.set(age as f64 / 1_000.0);
    let help = "How long the gate has waited that has waited longest; 0 if none does";
    all.register("gates_oldest_age_seconds", help, seconds);
}

fn of_workers(all: &mut Registry, workers: &[v1::Worker], figures: &Figures) {
    let pending = figures.demand.iter().map(|(tags, wanted)| (tags.clone(), wanted.pending));
    family(all, "jobs_ready", "Jobs that a worker could begin now", "tags", by_tags(pending));
    let leased = figures.demand.iter().map(|(tags, wanted)| (tags.clone(), wanted.leased));
    family(all, "jobs_leased", "Jobs that a worker holds", "tags", by_tags(leased));
    let each = |figure: fn(&v1::Worker) -> u64| {
        by_tags(workers.iter().map(|worker| (sorted(&worker.tags), figure(worker))))
    };
    let help = "Workers that are connected";
    family(all, "workers_connected", help, "tags", each(|_| 1));
    let help = "Slots of workers that are connected";
    family(all, "slots", help, "tags", each(|worker| u64::from(worker.slots)));
    let help = "Slots that could be given a job";
    family(all, "slots_free", help, "tags", each(free));
    let tags_of: BTreeMap<&str, &[String]> =
        workers.iter().map(|worker| (worker.name.as_str(), &worker.tags[..])).collect();
    let leases = figures.leases.iter().map(|(worker, count)| {
        let tags = tags_of.get(worker.as_str());
        (tags.map_or_else(|| vec![AWAY.to_owned()], |tags| sorted(tags)), *count)
    });
    family(all, "leases_held", "Leases by the tags of their worker", "tags", by_tags(leases));
}

fn free(worker: &v1::Worker) -> u64 {
    if worker.draining { 0 } else { u64::from(worker.slots.saturating_sub(worker.running)) }
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
        let known = sums.contains_key(&label) || sums.len() + 1 < SERIES_MAX;
        let own = known && label.len() <= LABEL_BYTES_MAX;
        *sums.entry(if own { label } else { OTHER.to_owned() }).or_default() += count;
    }
    sums.into_iter().collect()
}

fn family(
    all: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    counts: Vec<(String, u64)>,
) {
    let family = Family::<Labels, Gauge>::default();
    for (value, count) in counts {
        family.get_or_create(&[(label, value)]).set(signed(count));
    }
    all.register(name, help, family);
}

fn gauge(all: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(signed(value));
    all.register(name, help, gauge);
}

fn counter(all: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    all.register(name, help, counter);
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
