//! When a worker connects, waits, pauses, leaves and stops.

use super::*;

#[test]
fn heartbeats_are_sent_every_third_of_a_lease_and_must_be_answered() {
    let mut fixture = Fixture::open(settings());
    for _ in 0..10 {
        assert_eq!(fixture.pass(10_000), [""; 0]);
        assert_eq!(fixture.sent(), ["heartbeat"]);
        fixture.on(Input::Heartbeat { connection: ConnectionId(1) });
    }
    assert_eq!(fixture.pass(29_000), [""; 0]);
    let outage = "disconnected: NoMessage(30s)";
    assert_eq!(fixture.pass(1_200), ["disconnect 1", outage, "connect 2 []"]);
    assert_eq!(fixture.sent(), [""; 0]);
}

#[test]
fn the_sleep_of_the_worker_is_not_a_server_that_sends_nothing() {
    let mut fixture = Fixture::open(settings());
    fixture.pass(1_000);
    fixture.now += Duration::from_secs(100);
    assert_eq!(fixture.tick(), [""; 0]);
    assert_eq!(fixture.sent(), ["heartbeat"]);
    assert!(fixture.pass(31_000).contains(&"disconnect 1".to_owned()), "it was awake this time");
}

#[test]
fn a_server_that_never_answers_is_not_waited_for_without_end() {
    let mut fixture = Fixture::new(settings(), &[]);
    assert_eq!(fixture.tick(), ["connect 1 []"]);
    assert_eq!(fixture.pass(29_999), [""; 0]);
    assert_eq!(fixture.pass(1)[..2], ["disconnect 1", "disconnected: NoWelcome(30s)"]);

    let mut alone = Fixture::new(Settings { reconnect: false, ..settings() }, &[]);
    alone.tick();
    assert_eq!(alone.pass(30_000)[2..], ["stop Disconnected"]);
    assert_eq!(alone.protocol.next_wake(), None);
}

#[test]
fn a_server_that_sends_heartbeats_before_its_welcome_is_waited_for() {
    let mut fixture = Fixture::new(settings(), &["a/1"]);
    fixture.tick();
    for _ in 0..10 {
        assert_eq!(fixture.pass(29_000), [""; 0]);
        assert_eq!(fixture.on(Input::Heartbeat { connection: ConnectionId(1) }), [""; 0]);
    }
    assert_eq!(fixture.pass(29_999), [""; 0], "thirty seconds from the last");
    fixture.on(Input::Heartbeat { connection: ConnectionId(7) });
    assert_eq!(fixture.pass(1)[0], "disconnect 1", "that was of another connection");

    let mut leaving = Fixture::new(settings(), &[]);
    leaving.tick();
    leaving.on(Input::DrainRequested);
    leaving.pass(1_500);
    leaving.on(Input::Heartbeat { connection: ConnectionId(1) });
    assert_eq!(leaving.pass(500), ["disconnect 1", "stop Done"], "it waits no longer for it");
}

#[test]
fn tries_come_less_and_less_often_and_an_order_to_stop_ends_the_wait() {
    let mut fixture = Fixture::new(settings(), &[]);
    fixture.tick();
    let mut longest = Duration::ZERO;
    for connection in 1..200 {
        let before = fixture.now;
        fixture.disconnect(connection, Cause::Lost);
        let wait = fixture.protocol.next_wake().unwrap() - before;
        let bound = Duration::from_millis(100 << connection.min(16)).min(RETRY_MAX);
        assert!(wait <= bound, "{wait:?} before try {connection}");
        longest = longest.max(wait);
        fixture.pass(u64::try_from(wait.as_millis()).unwrap() + 1);
    }
    assert!(longest > RETRY_MAX / 2, "{longest:?}");
    fixture.disconnect(200, Cause::Lost);
    assert_eq!(fixture.on(Input::DrainRequested), ["stop Done"]);

    let mut held = Fixture::new(settings(), &["a/1"]);
    held.tick();
    held.disconnect(1, Cause::Lost);
    assert_eq!(held.on(Input::DrainRequested), ["connect 2 [a/1] draining"]);
}

#[test]
fn a_worker_for_so_many_jobs_takes_no_more_and_leaves() {
    let mut fixture = Fixture::new(Settings { jobs_max: Some(2), ..settings() }, &[]);
    assert_eq!(fixture.tick(), ["connect 1 [] max 2"]);
    fixture.welcome(1, &[]);
    fixture.assign(1, "a/1");
    fixture.disconnect(1, Cause::Lost);
    assert_eq!(fixture.pass(1_000), ["connect 2 [a/1] max 1"]);
    fixture.welcome(2, &[("a/1", 0)]);
    fixture.assign(2, "b/1");
    assert_eq!(fixture.sent(), ["drain", "heartbeat"]);
    for attempt in ["a/1", "b/1"] {
        fixture.end(attempt, succeeded(&[]));
        fixture.sent();
        fixture.recorded(2, attempt);
        fixture.clear(attempt);
    }
    assert_eq!(fixture.sent(), ["goodbye"]);
    assert_eq!(fixture.assign(2, "c/1"), [""; 0], "it has left");
    let mut closed = fixture;
    assert_eq!(closed.disconnect(2, Cause::Lost), ["stop Done"]);
}

#[test]
fn a_worker_that_leaves_does_not_wait_for_the_server_without_end() {
    let idle = Some(Duration::from_secs(5));
    let mut fixture = Fixture::open(Settings { idle, ..settings() });
    assert_eq!(fixture.pass(4_000), [""; 0]);
    fixture.assign(1, "a/1");
    fixture.end("a/1", succeeded(&[]));
    fixture.recorded(1, "a/1");
    assert_eq!(fixture.pass(4_000), [""; 0]);
    fixture.clear("a/1");
    assert_eq!(fixture.pass(6_900), [""; 0]);
    assert_eq!(fixture.sent(), ["goodbye"]);
    assert_eq!(fixture.pass(200), ["disconnect 1", "stop Done"]);

    let mut unanswered = Fixture::new(settings(), &[]);
    unanswered.tick();
    assert_eq!(unanswered.on(Input::DrainRequested), [""; 0]);
    assert_eq!(unanswered.pass(2_000), ["disconnect 1", "stop Done"]);
}

#[test]
fn a_drain_between_hello_and_welcome_is_sent() {
    let mut fixture = Fixture::new(settings(), &["a/1"]);
    fixture.tick();
    fixture.on(Input::DrainRequested);
    fixture.welcome(1, &[("a/1", 0)]);
    assert_eq!(fixture.sent(), ["drain", "heartbeat"]);
}

#[test]
fn a_full_disk_is_sent_before_the_report_and_another_hello_ends_the_pause() {
    let mut fixture = Fixture::open(settings());
    fixture.assign(1, "a/1");
    assert_eq!(fixture.on(Input::DiskFailed { reason: "full".into() }), ["paused"]);
    assert_eq!(fixture.on(Input::DiskFailed { reason: "full".into() }), [""; 0]);
    fixture.end("a/1", Adopted::Lost("full".to_owned()));
    assert_eq!(fixture.sent(), ["drain", "report a/1 lost: full 0"]);
    fixture.recorded(1, "a/1");
    fixture.clear("a/1");

    assert_eq!(fixture.pass(1_000), ["check disk"]);
    assert_eq!(fixture.pass(5_000), [""; 0], "it is looked at once at a time");
    fixture.on(Input::DiskChecked { usable: false });
    assert_eq!(fixture.pass(2_000), ["check disk"]);
    assert_eq!(
        fixture.on(Input::DiskChecked { usable: true }),
        ["resumed", "disconnect 1", "connect 2 []"]
    );
    fixture.on(Input::DiskFailed { reason: "full".into() });
    assert_eq!(fixture.pass(3_999), [""; 0], "full again at once: it is not looked at more often");
    assert_eq!(fixture.pass(1), ["check disk"]);
}

#[test]
fn a_name_that_another_process_has_taken_ends_what_runs() {
    let mut refused = Fixture::new(settings(), &["a/1"]);
    refused.tick();
    assert_eq!(refused.disconnect(1, Cause::NameTaken), ["stop Refused"], "its jobs continue");

    let mut fixture = Fixture::open(settings());
    fixture.assign(1, "a/1");
    fixture.disconnect(1, Cause::Lost);
    fixture.pass(1_000);
    assert_eq!(fixture.disconnect(2, Cause::NameTaken), ["cancel a/1"]);
    assert_eq!(fixture.pass(60_000), [""; 0]);
    assert_eq!(fixture.end("a/1", succeeded(&[])), ["forget a/1"]);
    assert_eq!(fixture.clear("a/1"), ["stop Refused"]);
}

#[test]
fn a_worker_that_is_to_stop_waits_for_a_server_only_so_long() {
    let mut killed = Fixture::open(settings());
    killed.assign(1, "a/1");
    assert_eq!(killed.on(Input::KillRequested), ["cancel a/1"]);
    assert_eq!(killed.pass(20_000), [""; 0], "the server is there");
    killed.disconnect(1, Cause::Lost);
    let done = killed.pass(15_000);
    assert_eq!(done[done.len() - 2..], ["disconnect 2", "stop Disconnected"]);

    let report_within = Some(Duration::from_secs(60));
    let mut fixture = Fixture::open(Settings { report_within, ..settings() });
    fixture.assign(1, "a/1");
    fixture.disconnect(1, Cause::Lost);
    fixture.on(Input::DrainRequested);
    assert!(!fixture.pass(100_000).contains(&"stop Unreported { attempts: 1 }".to_owned()));
    fixture.end("a/1", succeeded(&[]));
    let done = fixture.pass(60_000);
    assert_eq!(done.last().unwrap(), "stop Unreported { attempts: 1 }");
}
