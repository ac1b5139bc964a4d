//! Sessions and reports against a store that takes appends when it is told to.

use std::time::Duration;

use towpath_engine::{decide::Ended, event::FailureCause, ids::Attempt, job::JobState};
use towpath_proto::v1;

use super::*;
use crate::{
    outbox::outbox,
    sync::locked,
    testing::{Fixture, WORKER, job, success},
    wire,
};

fn hello(held: &[&AttemptId]) -> v1::Hello {
    let held = held.iter().map(|id| wire::attempt_message(id)).collect();
    v1::Hello { worker: WORKER.into(), slots: 4, held, ..Default::default() }
}

#[tokio::test]
async fn a_worker_that_comes_back_is_told_what_the_disk_knows() {
    for (waiting_max, kept) in [(1, false), (0, true)] {
        let (fixture, driver) = Fixture::driven(Duration::from_secs(30));
        let run = fixture.begins("r", vec![job("a", &[])]).await;
        let id = AttemptId { run: run.clone(), job: "a".into(), attempt: Attempt(1) };
        fixture.store.stand_still(waiting_max);
        drop(fixture.queues(&run, success("a")).await);

        let (outbox, _outgoing) = outbox();
        let back = driver.open(hello(&[&id]), &outbox);
        let (opened, ()) = tokio::join!(back, async { fixture.store.go_on() });

        let session = opened.unwrap().0;
        assert_eq!(driver.scheduler.inspect(|all| all.holds(session, &id)), kept);
    }
}

/// A fixture whose worker holds an attempt in a session.
async fn holding() -> (Fixture, Arc<SchedulerDriver>, AttemptId, SessionId) {
    let (fixture, driver) = Fixture::driven(Duration::from_secs(30));
    let run = fixture.begins("r", vec![job("a", &[])]).await;
    let id = AttemptId { run, job: "a".into(), attempt: Attempt(1) };
    let (outbox, _outgoing) = outbox();
    let (session, _) = driver.open(hello(&[&id]), &outbox).await.unwrap();
    (fixture, driver, id, session)
}

fn end() -> End {
    End::Lost("the machine stopped".to_owned())
}

#[tokio::test]
async fn a_report_of_a_session_that_has_ended_is_not_answered() {
    let (fixture, driver, id, session) = holding().await;
    driver.scheduler.disconnect(session, None);

    let answer = driver.record(session, &id, end()).await.unwrap();

    assert_eq!(answer, Answer::Unanswered, "what the attempt printed is still wanted");
    assert!(matches!(fixture.state(&id.run, "a").await, JobState::Leased(..)));
}

#[tokio::test]
async fn a_report_that_the_store_has_no_room_for_is_recorded_later_in_the_same_session() {
    let (fixture, driver, id, session) = holding().await;
    fixture.store.stand_still(0);

    let recorded = driver.record(session, &id, end());
    let (recorded, ()) = tokio::join!(recorded, async { fixture.store.go_on() });

    assert_eq!(recorded.unwrap(), Answer::Recorded);
    assert!(driver.scheduler.inspect(|all| all.is_open(session)));
}

#[tokio::test]
async fn a_report_of_a_session_that_is_replaced_is_left_to_the_newer_one() {
    let (fixture, driver, id, old) = holding().await;
    let (outbox, _outgoing) = outbox();
    let (newer, _) = driver.open(hello(&[&id]), &outbox).await.unwrap();

    assert_eq!(driver.record(old, &id, end()).await.unwrap(), Answer::Unanswered);
    assert!(matches!(fixture.state(&id.run, "a").await, JobState::Leased(..)));
    assert_eq!(driver.record(newer, &id, end()).await.unwrap(), Answer::Recorded);
    assert_eq!(driver.record(newer, &id, end()).await.unwrap(), Answer::Void);
}

#[tokio::test]
async fn runs_that_a_worker_makes_up_are_not_looked_for() {
    let (fixture, driver, id, session) = holding().await;
    let before = locked(&fixture.runs.cells).all().len();

    for n in 0..1_000 {
        let run = RunId::from(format!("made-up-{n}"));
        let made_up = AttemptId { run, ..id.clone() };
        let answer = driver.answer_unheld(session, &made_up).await.unwrap();
        assert_eq!(answer, Answer::Void);
    }

    assert_eq!(locked(&fixture.runs.cells).all().len(), before);
}

#[tokio::test]
async fn a_worker_that_comes_for_a_job_that_is_ready_is_given_it() {
    let (fixture, driver) = Fixture::driven(Duration::from_secs(30));
    let mut special = job("a", &[]);
    special.tags = vec!["special".to_owned()];
    let run = fixture.begins("r", vec![special]).await;
    assert_eq!(fixture.state(&run, "a").await, JobState::Waiting);

    let (outbox, _outgoing) = outbox();
    let only = v1::Hello { run: "r".into(), job: "a".into(), ..hello(&[]) };
    drop(driver.open(only, &outbox).await.unwrap());

    let leased = async {
        while !matches!(fixture.state(&run, "a").await, JobState::Leased(..)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), leased).await.expect("it waits for that job");
}

#[tokio::test]
async fn a_worker_whose_return_failed_is_waited_for() {
    let (fixture, driver) = Fixture::driven(Duration::from_millis(4));
    let run = fixture.begins("r", vec![job("a", &[])]).await;
    fixture.store.stand_still(0);

    let (outbox, _outgoing) = outbox();
    let back = driver.open(hello(&[]), &outbox).await;
    assert!(matches!(back, Err(CommandError::StoreBusy)));
    fixture.store.go_on();

    let lost = async {
        while fixture.state(&run, "a").await != JobState::Requeued {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), lost).await.expect("its lease expires");
}

/// A run of one job that only a worker with the tag `special` is given.
async fn special(fixture: &Fixture, name: &str) -> RunId {
    let mut special = job("a", &[]);
    special.tags = vec!["special".to_owned()];
    fixture.begins(name, vec![special]).await
}

#[tokio::test]
async fn a_run_that_is_slow_holds_up_neither_leases_of_others_nor_time() {
    let (fixture, driver) = Fixture::driven(Duration::from_millis(200));
    let (slow, other) = (special(&fixture, "a-slow").await, special(&fixture, "other").await);
    let held = fixture.runs.lock_latest(&slow).await.unwrap();

    let (outbox, _outgoing) = outbox();
    let special = v1::Hello { tags: vec!["special".to_owned()], ..hello(&[]) };
    let (_, delivery) = driver.open(special, &outbox).await.unwrap();

    let leased = async {
        while fixture.state(&other, "a").await == JobState::Waiting {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), leased).await.expect("the other is leased");
    // It sends no heartbeat.
    let expired = delivery.closed.cancelled();
    tokio::time::timeout(Duration::from_secs(20), expired).await.expect("the session expires");
    drop(held);
}

#[tokio::test]
async fn a_run_that_refuses_each_report_of_an_attempt_is_set_aside() {
    let (fixture, driver) = Fixture::driven(Duration::from_secs(30));
    // No pipeline file makes names of this length: together they do not fit an event.
    let (root, long) = ("r".repeat(25_000), "l".repeat(25_000));
    let run = fixture.begins("r", vec![job(&root, &[]), job(&long, &[&root])]).await;
    let id = AttemptId { run: run.clone(), job: root.as_str().into(), attempt: Attempt(1) };
    let (outbox, _outgoing) = outbox();
    let (session, _) = driver.open(hello(&[&id]), &outbox).await.unwrap();

    let ended = Ended::Failed(FailureCause::ExitCode(1));
    let failed = End::Ended { ended, ran_ms: 1, captured_output: None };
    let answer = driver.record(session, &id, failed).await.unwrap();

    assert_eq!(answer, Answer::Unanswered, "what it printed may still be looked at");
    assert!(driver.scheduler.inspect(|all| all.is_open(session)));
    assert!(!driver.scheduler.inspect(|all| all.holds(session, &id)), "its slot is free");
    assert!(!fixture.runs.is_live(&run));
}
