//! What no append may take from a run, on a store that takes appends when it is told to.

use futures_util::FutureExt as _;
use towpath_engine::{aggregate::stream_of, ids::Actor, job::JobState, plan::Resource};
use towpath_storage::AppendError;

use super::*;
use crate::{
    streams::load,
    testing::{Fixture, creation, job, lease, success},
};

#[tokio::test]
async fn nobody_is_told_what_is_not_durable() {
    let fixture = Fixture::new();
    let run = fixture.begins("r", vec![job("a", &[])]).await;
    fixture.store.stand_still(8);

    let report = fixture.queues(&run, success("a")).await;
    let mut told = Box::pin(fixture.state(&run, "a"));

    tokio::task::yield_now().await;
    assert_eq!(told.as_mut().now_or_never(), None);
    fixture.store.go_on();
    report.done.await.unwrap();
    assert_eq!(told.await, JobState::Succeeded);
}

#[tokio::test]
async fn after_a_refused_append_what_waited_for_the_disk_is_not_forgotten() {
    let fixture = Fixture::new();
    let jobs = vec![job("a", &[]), job("b", &["a"]), job("c", &[])];
    let run = fixture.begins("r", jobs).await;
    fixture.store.stand_still(1);

    let waits = fixture.queues(&run, success("a")).await;
    let refused = fixture.queues(&run, success("c")).await;
    assert!(matches!(refused.done.await, Err(AppendError::Busy { .. })));
    assert!(fixture.state(&run, "a").now_or_never().is_none());
    fixture.store.go_on();

    waits.done.await.unwrap();
    assert_eq!(fixture.state(&run, "a").await, JobState::Succeeded);
    assert!(matches!(fixture.state(&run, "c").await, JobState::Leased(..)));
    assert_eq!(fixture.wanted(), 1, "b can be leased");
    assert_eq!(fixture.queues(&run, success("c")).await.done.await.unwrap().facts.len(), 1);
}

#[tokio::test]
async fn a_run_whose_end_cannot_be_found_stops_no_other() {
    let fixture = Fixture::new();
    let broken = fixture.begins("broken", vec![job("a", &[])]).await;
    let run = fixture.begins("r", vec![job("a", &[])]).await;
    fixture.store.fail_appends_to(&stream_of::<Run>(&broken));

    let refused = fixture.queues(&broken, success("a")).await;
    assert!(matches!(refused.done.await, Err(AppendError::Store(_))));

    assert!(!fixture.runs.log.stopped.is_cancelled(), "the store takes everything else");
    fixture.queues(&run, success("a")).await.done.await.unwrap();
    assert!(matches!(fixture.state(&broken, "a").await, JobState::Leased(..)));
}

#[tokio::test]
async fn a_refusal_is_told_once_what_it_rests_on_is_durable() {
    let fixture = Fixture::new();
    let run = fixture.begins("r", vec![job("a", &[])]).await;
    fixture.store.stand_still(8);
    let (cancel, ana) = ([Command::Cancel(String::new())], Actor::human("ana"));

    let report = fixture.queues(&run, success("a")).await;
    let mut refused = Box::pin(fixture.runs.queue(&run, &cancel, &ana));
    assert!(refused.as_mut().now_or_never().is_none(), "the disk may refuse the success");

    fixture.store.go_on();
    report.done.await.unwrap();
    assert!(matches!(refused.await, Err(CommandError::Refused(_))));
}

#[tokio::test]
async fn a_refusal_that_rests_on_a_refused_append_is_decided_again() {
    let fixture = Fixture::new();
    let run = RunId::from("twice");
    fixture.store.stand_still(0);
    let create = || [Command::Create(creation("twice", vec![job("a", &[])]))];
    let ana = Actor::human("ana");

    let (first, second) = (create(), create());
    let refused = fixture.runs.queue(&run, &first, &ana).await.unwrap();
    let again = async {
        let again = fixture.runs.queue(&run, &second, &ana).await;
        again.map(|queued| queued.facts)
    };
    let (refused, again) = tokio::join!(refused.done, again);

    assert!(matches!(refused, Err(AppendError::Busy { .. })));
    assert!(again.unwrap() > 0, "there is no such run yet");
}

#[tokio::test]
async fn what_rests_on_a_refused_append_is_to_be_decided_again() {
    let fixture = Fixture::new();
    let run = fixture.begins("r", vec![job("a", &[])]).await;
    fixture.store.stand_still(0);

    let refused = fixture.queues(&run, success("a")).await;
    let again = fixture.queues(&run, success("a")).await;
    assert_eq!(again.facts, 0, "in memory it is so already");

    assert!(matches!(refused.done.await, Err(AppendError::Busy { .. })));
    assert!(matches!(again.done.await, Err(AppendError::Conflict { .. })));
}

/// What the log says of a run, beside what memory holds.
async fn memory_and_log(fixture: &Fixture, run: &RunId) -> (Run, Run) {
    let replayed =
        load::stream::<Run>(&*fixture.store, &fixture.runs.log.snapshots, run).await.unwrap();
    let loaded = fixture.runs.lock_latest(run).await.unwrap();
    assert_eq!(loaded.version, replayed.version);
    (loaded.state.clone(), replayed.state)
}

#[tokio::test]
async fn a_run_whose_consequence_cannot_be_written_is_as_its_log_says() {
    let fixture = Fixture::new();
    // No pipeline file makes names of this length: together they do not fit an event.
    let (root, long) = ("r".repeat(25_000), "l".repeat(25_000));
    let jobs = vec![job("other", &[]), job(&root, &[]), job(&long, &[&root])];
    let run = fixture.begins("r", jobs).await;

    let Command::Report(report) = success(&root) else { unreachable!() };
    let cause = towpath_engine::event::FailureCause::ExitCode(1);
    let ended = towpath_engine::decide::Ended::Failed(cause);
    let failure = Command::Report(towpath_engine::decide::ReportJob { ended, ..report });
    let alone = std::slice::from_ref(&failure);
    let refused = fixture.runs.queue(&run, alone, &Actor::worker("w")).await;
    assert!(matches!(refused, Err(CommandError::Refused(_))));

    let (memory, log) = memory_and_log(&fixture, &run).await;
    assert!(memory == log, "memory is ahead of the log");
    assert!(matches!(fixture.state(&run, &root).await, JobState::Leased(..)));

    // As the second of two commands it takes nothing with it.
    let both = [success("other"), failure];
    let queued = fixture.runs.queue(&run, &both, &Actor::worker("w")).await.unwrap();
    queued.done.await.unwrap();
    let (memory, log) = memory_and_log(&fixture, &run).await;
    assert!(memory == log, "memory is ahead of the log");
    assert_eq!(fixture.state(&run, "other").await, JobState::Succeeded);
}

#[tokio::test]
async fn a_failure_that_skips_more_than_an_append_holds_is_recorded() {
    let fixture = Fixture::new();
    // Names as long as these stand for as many jobs as it takes to pass 32 MiB.
    let long = |n: usize| format!("{n:0>15000}");
    let mut jobs = vec![job("root", &[])];
    jobs.push(job(&long(0), &["root"]));
    jobs.extend((1..800).map(|n| job(&long(n), &[&long(0)])));
    let run = fixture.begins("r", jobs).await;
    let Command::Report(report) = success("root") else { unreachable!() };
    let cause = towpath_engine::event::FailureCause::ExitCode(1);
    let ended = towpath_engine::decide::Ended::Failed(cause);
    let failure = Command::Report(towpath_engine::decide::ReportJob { ended, ..report });

    fixture.queues(&run, failure).await.done.await.unwrap();

    assert_eq!(fixture.state(&run, "root").await, JobState::Failed);
    assert!(fixture.runs.lock_latest(&run).await.unwrap().state.phase().is_live());
    // A server that ends here is followed by one that knows the run from its log alone.
    locked(&fixture.runs.cells).remove(&run);
    locked(&fixture.runs.hooks.due).set(&run, None);
    drop(fixture.runs.lock_latest(&run).await.unwrap());
    for _ in 0..10 {
        crate::timers::tick(&fixture.runs).await;
    }
    let loaded = fixture.runs.lock_latest(&run).await.unwrap();
    assert!(!loaded.state.phase().is_live());
    assert_eq!(loaded.state.counts().skipped, 800);
}

#[tokio::test]
async fn a_lock_is_free_for_others_once_that_is_durable() {
    let fixture = Fixture::new();
    let mut locking = job("a", &[]);
    locking.resource = Some(Resource { name: "target".into(), limit: 1 });
    let run = fixture.begins("r", vec![locking]).await;
    let others = || {
        let all = fixture.runs.hooks.scheduler.locks_of_others(&"other".into(), ["target"]);
        all.into_values().sum::<u32>()
    };
    assert_eq!(others(), 1);
    fixture.store.stand_still(8);

    let report = fixture.queues(&run, success("a")).await;
    assert_eq!(others(), 1, "let go in memory alone");
    fixture.store.go_on();
    report.done.await.unwrap();
    assert_eq!(others(), 0);
}

#[tokio::test]
async fn a_lock_that_was_released_stays_so_in_whatever_order_appends_are_told() {
    let fixture = Fixture::new();
    let mut locking = job("a", &[]);
    locking.resource = Some(Resource { name: "target".into(), limit: 1 });
    let run = fixture.begins("r", vec![locking, job("b", &[])]).await;
    fixture.store.stand_still(8);
    let of_b = fixture.queues(&run, success("b")).await;
    let of_a = fixture.queues(&run, success("a")).await;

    // Both tasks wait for the store before it answers the newest append first, as two threads of the
    // server may do it. Without the yield they would run in the order in which they were spawned.
    tokio::task::yield_now().await;
    fixture.store.go_on();
    of_b.done.await.unwrap();
    of_a.done.await.unwrap();

    let others = fixture.runs.hooks.scheduler.locks_of_others(&"other".into(), ["target"]);
    assert!(others.is_empty(), "{others:?} for a run that has ended");
}

#[tokio::test]
async fn a_lock_that_could_not_be_taken_is_given_back() {
    let fixture = Fixture::new();
    let mut locking = job("b", &["a"]);
    locking.resource = Some(Resource { name: "target".into(), limit: 1 });
    let run = fixture.begins("r", vec![job("a", &[]), locking]).await;
    fixture.queues(&run, success("a")).await.done.await.unwrap();
    fixture.store.stand_still(0);

    let refused = fixture.queues(&run, lease()).await;
    assert!(matches!(refused.done.await, Err(AppendError::Busy { .. })));

    let others = fixture.runs.hooks.scheduler.locks_of_others(&"other".into(), ["target"]);
    assert_eq!((others.len(), fixture.wanted()), (0, 1));
}
