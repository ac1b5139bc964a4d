//! What happens when the store takes no leases.

use super::*;

#[test]
fn a_full_store_is_asked_ever_less_often_and_said_once() {
    let mut world = World::new();
    for id in 0..100 {
        world.run(&format!("r{id:02}"), jobs(&["a"]));
    }
    world.leases_fail = Some(Blame::Store);
    world.hello("w", |hello| hello.slots = 100);
    let one = world.worker("v");
    for _ in 0..60 {
        world.pass(Duration::from_secs(10));
        world.on(Input::Heartbeat { session: one });
        world.on(Input::Heartbeat { session: SessionId(1) });
    }

    // All that were on their way at first, and then one at a time.
    assert!(world.asked < 100 + 70, "{} leases were asked for in ten minutes", world.asked);
    let noticed = world.noticed();
    let said = noticed.iter().filter(|notice| notice.contains("Leasing")).collect::<Vec<_>>();
    assert_eq!(said, ["LeasingPaused"]);

    world.leases_fail = None;
    world.pass(Duration::from_secs(10));
    assert_eq!(world.noticed(), ["LeasingResumed"]);
    assert_eq!(world.runs.values().map(|run| run.leased().count()).sum::<usize>(), 100);
}

#[test]
fn a_run_whose_leases_fail_holds_up_no_other() {
    let mut world = World::new();
    let broken = world.run("a", jobs(&["x"]));
    world.leases_fail = Some(Blame::Run);
    world.hello("w", |hello| hello.slots = 2);
    world.leases_fail = None;
    let fine = world.run("b", jobs(&["x"]));
    assert!(matches!(world.state(&fine, "x"), JobState::Leased(..)));
    assert_eq!(*world.state(&broken, "x"), JobState::Waiting);

    world.pass(RETRY_AFTER);
    assert!(matches!(world.state(&broken, "x"), JobState::Leased(..)));
    let held_back = world.noticed().into_iter().filter(|notice| notice.contains("RunHeldBack"));
    assert_eq!(held_back.count(), 1);
}

#[test]
fn a_lease_that_was_decided_and_not_written_gives_its_slot_back() {
    let mut world = World::new();
    let run = world.run("r", vec![locking("a", 1)]);
    world.writes_fail = true;
    world.worker("w");
    assert_eq!(world.said(), ["1: welcome []"]);
    assert!(world.scheduler.leases.is_empty());
    assert!(world.scheduler.locks_of_others(&"other".into(), ["db"]).is_empty());

    world.writes_fail = false;
    world.pass(Duration::from_secs(1));

    assert_eq!(world.said(), ["1: assign r/a/1"]);
    assert!(matches!(world.state(&run, "a"), JobState::Leased(..)));
}
