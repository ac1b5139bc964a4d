//! The series of `/metrics` as instruments: they are read when the exporter looks.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, global};
use tokio::runtime::Handle;

use super::SCOPE;
use crate::{
    command_error::CommandError,
    metrics::{MetricKind, MetricSeries, Metrics},
};

/// All instruments of one look show the same moment.
const SAME_LOOK: Duration = Duration::from_millis(200);

/// What the instruments see.
struct Look {
    metrics: Metrics,
    runtime: Handle,
    newest: Mutex<(Instant, Arc<[MetricSeries]>)>,
}

impl Look {
    /// The series of this moment. Called by the exporter's own thread, which may wait.
    fn now(&self) -> Arc<[MetricSeries]> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.0.elapsed() > SAME_LOOK
            && Handle::try_current().is_err()
            && let Ok(series) = self.runtime.block_on(self.metrics.series())
        {
            *newest = (Instant::now(), series.into());
        }
        Arc::clone(&newest.1)
    }

    /// Shows every point of the series called `name` to `observe`.
    fn each(&self, name: &str, mut observe: impl FnMut(u64, &[KeyValue])) {
        let series = self.now();
        let Some(series) = series.iter().find(|series| series.name == name) else { return };
        for (value, count) in &series.points {
            if series.label.is_empty() {
                observe(*count, &[]);
            } else {
                observe(*count, &[KeyValue::new(series.label, value.clone())]);
            }
        }
    }
}

/// Shows `metrics` to whatever reads the meters of this process, from now on.
pub(crate) async fn export(metrics: Metrics) -> Result<(), CommandError> {
    let series: Arc<[MetricSeries]> = metrics.series().await?.into();
    let newest = Mutex::new((Instant::now(), Arc::clone(&series)));
    let runtime = Handle::current();
    let look = Arc::new(Look { metrics, runtime, newest });
    let meter = global::meter(SCOPE);
    for &MetricSeries { name, help, kind, .. } in &*series {
        let (look, called) = (Arc::clone(&look), format!("towpath.{name}"));
        // An instrument lives as long as its meter, whether or not it is held.
        match kind {
            MetricKind::Now => {
                let gauge = meter.u64_observable_gauge(called).with_description(help);
                gauge.with_callback(move |to| look.each(name, |n, by| to.observe(n, by))).build();
            }
            MetricKind::SinceBegin => {
                let counter = meter.u64_observable_counter(called).with_description(help);
                counter.with_callback(move |to| look.each(name, |n, by| to.observe(n, by))).build();
            }
            MetricKind::Seconds => {
                let gauge = meter.f64_observable_gauge(called).with_unit("s");
                let seconds = |ms: u64| ms as f64 / 1_000.0;
                gauge
                    .with_description(help)
                    .with_callback(move |to| {
                        look.each(name, |ms, by| to.observe(seconds(ms), by));
                    })
                    .build();
            }
        }
    }
    Ok(())
}
