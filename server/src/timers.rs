//! What is due by now? One timer asks, and issues ordinary commands; it keeps nothing itself.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use towpath_engine::{decide::Command, ids::Actor};

use crate::{runs::Runs, sync::locked};

/// Longest time between two looks, whatever is due: a bound on the harm of a clock that jumps.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Issues what is due until the server stops.
pub(crate) async fn run(runs: Arc<Runs>, stop: CancellationToken) {
    loop {
        let now = runs.log.now();
        let next = locked(&runs.hooks.due).next();
        let wait = next.map_or(LOOK_EVERY, |due| Duration::from_millis(due.ms_since(now)));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait.min(LOOK_EVERY)) => {}
            () = runs.hooks.due_changed.notified() => {}
        }
        tick(&runs).await;
    }
}

/// Does what is due now.
pub(crate) async fn tick(runs: &Arc<Runs>) {
    let now = runs.log.now();
    let due = locked(&runs.hooks.due).due(now);
    for run in due {
        match runs.execute(&run, Command::PassTime, &Actor::timer()).await {
            Ok(_) => locked(&runs.hooks.due).done(&run),
            // On a full disk every trial fails: they come ever later, and are said once.
            Err(error) => {
                if locked(&runs.hooks.due).failed(&run, now) {
                    tracing::warn!(%run, %error, "due events not recorded: tried again later");
                }
            }
        }
    }
}
