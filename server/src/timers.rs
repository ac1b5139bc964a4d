//! What is due by now? One timer asks, and issues ordinary commands; it keeps nothing itself.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    decide::Command,
    ids::{Actor, RunId},
};

use crate::{runs::Runs, sync::locked};

/// Longest time between two looks, whatever is due: a bound on the harm of a clock that jumps.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Runs in which time is passed at once.
const AT_ONCE_MAX: usize = 256;

/// The runs in which time is being passed.
#[derive(Default)]
struct UnderWay {
    runs: BTreeSet<RunId>,
    commands: FuturesUnordered<BoxFuture<'static, RunId>>,
}

impl UnderWay {
    /// Begins what is due now, as far as there is room. A run whose command waits is left alone.
    fn begin(&mut self, runs: &Arc<Runs>) {
        let (now, room) = (runs.log.now(), AT_ONCE_MAX - self.runs.len());
        // Not all that are due: there may be 100,000, and each that ends makes room for one more.
        let due = locked(&runs.hooks.due).due_except(now, &self.runs, room);
        for run in due {
            self.runs.insert(run.clone());
            self.commands.push(Box::pin(pass_time(Arc::clone(runs), run)));
        }
    }

    /// Waits until one of them is done.
    async fn next(&mut self) {
        match self.commands.next().await {
            Some(run) => drop(self.runs.remove(&run)),
            None => std::future::pending().await,
        }
    }

    /// How long there is nothing to begin.
    fn idle(&self, runs: &Runs) -> Duration {
        let now = runs.log.now();
        let next = locked(&runs.hooks.due).next_except(&self.runs);
        match next {
            Some(due) if self.runs.len() < AT_ONCE_MAX => Duration::from_millis(due.ms_since(now)),
            Some(_) | None => LOOK_EVERY,
        }
    }
}

/// Issues what is due until the server stops.
pub(crate) async fn run(runs: Arc<Runs>, stop: CancellationToken) {
    let mut under_way = UnderWay::default();
    loop {
        let wait = under_way.idle(&runs).min(LOOK_EVERY);
        // One run may wait for its lock or for the disk: what is due in others does not wait for it.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = runs.hooks.due_changed.notified() => {}
            () = under_way.next() => {}
        }
        under_way.begin(&runs);
    }
}

/// Does what is due now.
pub(crate) async fn tick(runs: &Arc<Runs>) {
    let mut under_way = UnderWay::default();
    under_way.begin(runs);
    while !under_way.runs.is_empty() {
        under_way.next().await;
    }
}

/// Does what is due in `run`.
async fn pass_time(runs: Arc<Runs>, run: RunId) -> RunId {
    let now = runs.log.now();
    match runs.execute(&run, Command::PassTime, &Actor::timer()).await {
        Ok(_) => locked(&runs.hooks.due).done(&run),
        // On a full disk every trial fails: they come ever later, and are said once.
        Err(error) => {
            if locked(&runs.hooks.due).failed(&run, now) {
                tracing::warn!(%run, %error, "due events not recorded: tried again later");
            }
        }
    }
    run
}

#[cfg(test)]
mod tests {
    use towpath_engine::time::Timestamp;

    use super::*;
    use crate::testing::{Fixture, job};

    /// Comes back when time was passed in `run`.
    async fn passed(runs: &Runs, run: &RunId) {
        let is_due = || locked(&runs.hooks.due).due(runs.log.now()).contains(run);
        let passed = async {
            while is_due() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), passed).await.expect("time is passed in it");
    }

    #[tokio::test]
    async fn a_run_that_is_slow_holds_up_no_other() {
        let fixture = Fixture::new();
        let runs = &fixture.runs;
        let (slow, other) = (
            fixture.begins("a-slow", vec![job("a", &[])]).await,
            fixture.begins("other", vec![job("a", &[])]).await,
        );
        let held = runs.lock_latest(&slow).await.unwrap();
        let make_due = |run: &RunId| {
            locked(&runs.hooks.due).set(run, Some(Timestamp(0)));
            runs.hooks.due_changed.notify_one();
        };
        make_due(&slow);
        make_due(&other);
        let stop = CancellationToken::new();
        let timer = tokio::spawn(run(Arc::clone(runs), stop.clone()));

        passed(runs, &other).await;
        make_due(&other);
        passed(runs, &other).await;
        drop(held);
        passed(runs, &slow).await;

        stop.cancel();
        timer.await.unwrap();
    }
}
