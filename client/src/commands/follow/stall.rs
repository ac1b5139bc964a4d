//! Why nothing of a run runs although a job of it could: asked of the server, because neither the
//! store nor the workers are in the run's own records.

use std::time::Duration;

use tokio::{
    task::JoinHandle,
    time::{Interval, MissedTickBehavior},
};
use towpath_engine::{
    ids::RunId,
    run::{Phase, Run},
};
use towpath_proto::v1::{self, WaitReason};

use crate::clock::now;
use crate::{
    connect::ServerConnection,
    render::{explanation::explained, safe},
};

/// How often the server is asked while nothing runs. Not at once: between two jobs of a chain there
/// is always a moment in which none runs.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A reason for which nothing runs, and the sentence about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stall {
    pub(super) reason: WaitReason,
    pub(super) sentence: String,
}

/// Asks why nothing of a run runs.
pub(super) struct StallWatch {
    run: RunId,
    looks: Interval,
    /// The question that was not answered yet. Kept here: what waits for the answer is dropped and
    /// made again with every drawing.
    asked: Option<JoinHandle<Option<Stall>>>,
}

impl StallWatch {
    pub(super) fn of(run: &RunId) -> Self {
        let mut looks = tokio::time::interval(ASK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of an interval comes at once.
        looks.reset();
        Self { run: run.clone(), looks, asked: None }
    }

    /// Why nothing of `run` runs, once a second; `None`: something does, or it is no stall.
    pub(super) async fn next(&mut self, server: &ServerConnection, run: &Run) -> Option<Stall> {
        if self.asked.is_none() {
            self.looks.tick().await;
            let job = first_ready(run)?;
            let request = v1::ExplainJobRequest { run: self.run.to_string(), job, at: None };
            let mut runs = server.runs();
            self.asked = Some(tokio::spawn(async move {
                // A server that is lost is noticed by the stream of the run's records.
                stall_of(&runs.explain_job(request).await.ok()?.into_inner())
            }));
        }
        let stall = self.asked.as_mut()?.await.ok().flatten();
        self.asked = None;
        // It may have begun meanwhile.
        stall.filter(|_| first_ready(run).is_some())
    }
}

/// The first job that could run, if nothing of `run` does.
fn first_ready(run: &Run) -> Option<String> {
    if *run.phase() != Phase::Running || run.counts().running > 0 {
        return None;
    }
    let first = run.wants(now()).iter().map(|wanted| wanted.first).min()?;
    run.jobs().get(first as usize).map(|job| job.plan.name.to_string())
}

/// What `answer` says, if it is a reason that does not pass by itself with the next job.
fn stall_of(answer: &v1::ExplainJobResponse) -> Option<Stall> {
    let reason = answer.explanation.as_ref()?.reason();
    let stalls = [
        WaitReason::LeasingPaused,
        WaitReason::NoWorker,
        WaitReason::WorkersDrained,
        WaitReason::Tags,
    ];
    let sentence = || safe(&explained(answer, now()).sentence);
    stalls.contains(&reason).then(|| Stall { reason, sentence: sentence() })
}
