//! Heartbeats that do not come.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn leases_expire_one_lease_time_after_the_last_heartbeat() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a"]));
    let one = world.worker("w");
    world.pass(20 * SECOND);
    world.on(Input::Heartbeat { session: one });
    world.said.clear();

    world.pass(29 * SECOND);
    assert!(matches!(world.state(&run, "a"), JobState::Leased(..)));
    assert!(world.scheduler.is_open(one));

    world.pass(8 * SECOND);
    assert_eq!(*world.state(&run, "a"), JobState::Requeued);
    assert_eq!(world.said(), ["1: closed, Expired"]);
}

#[test]
fn the_leases_of_a_worker_that_disconnected_expire_unless_it_comes_back() {
    for comes_back in [true, false] {
        let mut world = World::new();
        let run = world.run("r", jobs(&["a"]));
        let one = world.worker("w");
        world.on(Input::Disconnected { session: one });
        world.pass(29 * SECOND);
        if comes_back {
            let held = [attempt("r", "a", 1)];
            let again = world.hello("w", |hello| hello.held = held.into());
            world.pass(20 * SECOND);
            world.on(Input::Heartbeat { session: again });
        }

        world.pass(9 * SECOND);
        let kept = matches!(world.state(&run, "a"), JobState::Leased(..));
        assert_eq!(kept, comes_back);
    }
}

#[test]
fn a_server_that_slept_forgives_everybody() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a", "b"]));
    world.worker("there");
    let gone = world.worker("gone");
    world.on(Input::Disconnected { session: gone });
    world.pass(20 * SECOND);

    // The machine was asleep for an hour: nobody could be heard.
    world.now += Duration::from_secs(3_600);
    world.on(Input::Tick);
    world.pass(25 * SECOND);
    assert_eq!(world.runs[&run].leased().count(), 2);

    world.pass(13 * SECOND);
    assert_eq!(world.runs[&run].leased().count(), 0);
}

#[test]
fn the_leases_of_a_worker_of_this_machine_do_not_expire() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a"]));
    let one = world.hello("local/r", |hello| hello.only = Some("r".into()));
    world.on(Input::Disconnected { session: one });
    world.pass(Duration::from_secs(3_600));
    assert!(matches!(world.state(&run, "a"), JobState::Leased(..)));
}

#[test]
fn a_loss_that_cannot_be_recorded_holds_up_no_other_and_is_tried_again() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a", "b", "c"]));
    let one = world.hello("w", |hello| hello.slots = 3);
    world.losses_fail.insert("a".into());
    world.on(Input::Disconnected { session: one });

    world.pass(LEASE + LEASE / 4);
    let leased: Vec<&str> = world.runs[&run].leased().map(|job| job.plan.name.as_str()).collect();
    assert_eq!(leased, ["a"], "the others are lost all the same");

    world.losses_fail.clear();
    world.pass(RETRY_AFTER);
    assert_eq!(world.runs[&run].leased().count(), 0);
}

#[test]
fn a_worker_that_comes_back_keeps_what_could_not_be_recorded_as_lost() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a"]));
    let one = world.worker("w");
    world.losses_fail.insert("a".into());
    world.on(Input::Disconnected { session: one });
    world.pass(LEASE * 2);
    world.losses_fail.clear();

    let again = world.hello("w", |hello| hello.held = [attempt("r", "a", 1)].into());
    world.pass(RETRY_AFTER * 3);

    assert!(world.scheduler.holds(again, &attempt("r", "a", 1)));
    assert!(matches!(world.state(&run, "a"), JobState::Leased(..)));
}

#[test]
fn a_worker_that_comes_back_while_its_leases_expire_waits_until_that_is_known() {
    let mut world = World::new();
    world.run("r", jobs(&["a"]));
    let one = world.worker("w");
    world.on(Input::Disconnected { session: one });
    world.stands_still = true;
    world.pass(LEASE + LEASE / 4);
    world.said();

    world.hello("w", |hello| hello.held = [attempt("r", "a", 1)].into());
    assert_eq!(world.said(), [""; 0]);
    world.go_on();

    assert_eq!(
        world.said(),
        ["2: welcome []", "2: assign r/a/2"],
        "it is either back or it is not"
    );
}

#[test]
fn after_a_restart_workers_have_as_long_as_a_lease_to_come_back() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a"]));
    world.worker("w");
    let state = world.runs[&run].clone();
    world.scheduler = Scheduler::new(LEASE);
    world.now = Duration::ZERO;
    world.on(Input::RunLoaded { run: &run, state: &state, at: AT });

    world.pass(29 * SECOND);
    assert!(matches!(world.state(&run, "a"), JobState::Leased(..)));
    world.pass(SECOND);
    assert_eq!(*world.state(&run, "a"), JobState::Requeued);
}

#[test]
fn a_worker_that_leaves_loses_what_was_on_its_way() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a"]));
    let one = world.worker("w");
    world.said();

    world.on(Input::Goodbye { session: one });

    assert_eq!(*world.state(&run, "a"), JobState::Requeued);
    assert_eq!(world.said(), ["1: closed, Left"]);
    assert!(world.scheduler.workers.is_empty() && world.scheduler.leases.is_empty());
}
