//! Whose turn it is, and which worker comes first.

use super::*;

#[test]
fn runs_take_turns_for_one_slot() {
    let mut world = World::new();
    let (a, b) = (world.run("a", jobs(&["1", "2", "3"])), world.run("b", jobs(&["1", "2"])));
    let one = world.worker("w");

    for (run, job) in [(&a, "1"), (&b, "1"), (&a, "2"), (&b, "2"), (&a, "3")] {
        assert_eq!(*world.state(run, job), JobState::Leased(Attempt(1), "w".into()), "{run} {job}");
        world.report(one, run, job);
    }
}

#[test]
fn the_least_busy_worker_comes_first_and_then_the_one_that_came_first() {
    let mut world = World::new();
    for worker in ["v", "w"] {
        world.hello(worker, |hello| hello.slots = 2);
    }
    world.run("r", jobs(&["a", "b", "c"]));
    let assigned = ["1: assign r/a/1", "2: assign r/b/1", "1: assign r/c/1"];
    assert_eq!(world.said()[2..], assigned);
}

#[test]
fn a_job_goes_to_the_free_worker_that_it_prefers_most() {
    let mut world = World::new();
    world.hello("plain", |hello| hello.slots = 9);
    world.hello("ssd", |hello| hello.tags = tags(&["ssd"]));
    world.hello("both", |hello| hello.tags = tags(&["near", "ssd"]));
    let mut has_preferences = job("a");
    has_preferences.prefer = [("ssd".to_owned(), 10), ("near".to_owned(), 5)].into();
    let again = |name: &str| JobPlan { name: name.into(), ..has_preferences.clone() };
    world.said();

    world.run("r", vec![again("a"), again("b"), again("c")]);

    let assigned = ["3: assign r/a/1", "2: assign r/b/1", "1: assign r/c/1"];
    assert_eq!(world.said(), assigned, "a preference keeps nothing back");
}

#[test]
fn a_worker_is_given_what_its_tags_allow() {
    let mut world = World::new();
    world.run("r", vec![tagged("a", &["eu", "gpu"]), tagged("b", &["eu"]), job("c")]);

    world.hello("eu", |hello| (hello.tags, hello.slots) = (tags(&["eu"]), 9));
    assert_eq!(world.said(), ["1: welcome []", "1: assign r/b/1", "1: assign r/c/1"]);
    world.hello("gpu", |hello| hello.tags = tags(&["eu", "gpu"]));
    assert_eq!(world.said(), ["2: welcome []", "2: assign r/a/1"]);
}

#[test]
fn a_lock_that_becomes_free_is_given_to_one_of_those_that_wait_for_it() {
    let mut world = World::new();
    let first = world.run("a", vec![locking("x", 1)]);
    for id in ["b", "c", "d"] {
        world.run(id, vec![locking("x", 1)]);
    }
    let one = world.hello("w", |hello| hello.slots = 9);
    world.hello("v", |hello| hello.slots = 9);
    assert_eq!((world.asked, world.said().len()), (1, 3), "the lock has one place");

    world.report(one, &first, "x");

    assert_eq!(world.asked, 2, "one lease is asked for, not one for each run that waits");
    assert_eq!(world.said().iter().filter(|said| said.contains("assign b/x")).count(), 1);
    assert!(world.scheduler.is_settled());
}

#[test]
fn a_worker_of_one_run_is_given_that_run_when_a_lock_becomes_free() {
    let mut world = World::new();
    let first = world.run("a", vec![locking("x", 1)]);
    world.run("b", vec![locking("x", 1)]);
    let one = world.worker("w");
    world.run("c", vec![locking("x", 1)]);
    world.hello("own", |hello| hello.only = Some("c".into()));
    world.hello("job", |hello| {
        (hello.only, hello.job) = (Some("c".into()), Some("x".into()));
    });
    world.on(Input::DrainRequested { session: one });
    world.said();

    world.report(one, &first, "x");

    assert_eq!(world.said(), ["2: assign c/x/1", "1: recorded a/x/1"]);
}

#[test]
fn a_worker_for_one_job_waits_for_it_and_is_sent_away_when_it_ends_without_it() {
    let mut world = World::new();
    let run = world.run("r", vec![tagged("a", &["eu"]), needing(job("b"), "a")]);
    let eu = world.hello("eu", |hello| hello.tags = tags(&["eu"]));
    for worker in ["v", "w"] {
        world.hello(worker, |hello| (hello.only, hello.job) = (Some("r".into()), Some("b".into())));
    }
    world.said();

    world.report(eu, &run, "a");
    world.report(eu, &run, "b");

    let said = world.said();
    assert_eq!(said[0], "1: assign r/b/1", "whoever frees a slot takes the turn of its run");
    assert!(said.contains(&"2: job ended".to_owned()) && said.contains(&"3: job ended".to_owned()));
}

#[test]
fn a_worker_that_comes_for_a_job_that_is_ready_is_given_it() {
    let mut world = World::new();
    world.run("r", vec![tagged("a", &["special"])]);
    world.hello("w", |hello| (hello.only, hello.job) = (Some("r".into()), Some("a".into())));

    assert_eq!(world.said(), ["1: welcome []", "1: assign r/a/1"]);
}

#[test]
fn a_worker_of_one_run_takes_no_turn() {
    let mut world = World::new();
    for run in ["a", "b", "c"] {
        world.run(run, jobs(&["1", "2", "3", "4"]));
    }
    let own = world.hello("own", |hello| hello.only = Some("a".into()));
    world.said();

    let mut given = Vec::new();
    for job in ["1", "2", "3"] {
        let any = world.hello(&format!("w{job}"), |hello| hello.jobs_max = Some(1));
        given.extend(world.said().into_iter().filter(|said| said.contains("assign")));
        let held = world.scheduler.sessions[&own].held.keys().next().cloned().unwrap();
        world.report(own, &"a".into(), held.job.as_str());
        world.said();
        let _ = any;
    }

    assert_eq!(given.len(), 3);
    for run in ["a", "b", "c"] {
        assert!(given.iter().any(|said| said.contains(&format!("assign {run}/"))), "{given:?}");
    }
}

#[test]
fn a_worker_takes_no_more_than_it_said() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a", "b", "c"]));
    let one = world.hello("w", |hello| (hello.slots, hello.jobs_max) = (1, Some(2)));
    world.report(one, &run, "a");
    world.report(one, &run, "b");
    assert_eq!(*world.state(&run, "c"), JobState::Waiting);

    let other = world.hello("v", |hello| hello.draining = true);
    assert!(world.scheduler.workers().any(|view| view.draining));
    assert_eq!(*world.state(&run, "c"), JobState::Waiting);
    world.on(Input::Disconnected { session: other });
    world.worker("u");
    assert_eq!(*world.state(&run, "c"), JobState::Leased(Attempt(1), "u".into()));
}

#[test]
fn a_drained_worker_is_given_nothing_not_even_with_its_own_report() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a", "b"]));
    let one = world.worker("w");
    let drained = |drained| Input::DrainChanged { worker: "w".into(), drained };

    world.on(drained(true));
    world.report(one, &run, "a");
    assert_eq!(*world.state(&run, "b"), JobState::Waiting);
    world.on(Input::Disconnected { session: one });
    world.worker("w");
    assert_eq!(*world.state(&run, "b"), JobState::Waiting, "remembered by name");

    world.on(drained(false));
    assert_eq!(*world.state(&run, "b"), JobState::Leased(Attempt(1), "w".into()));
}

#[test]
fn what_wants_a_worker_is_what_could_begin_also_after_a_lock_is_taken() {
    let mut world = World::new();
    let wanted = |world: &World| -> Vec<(String, (u64, u64))> {
        world.scheduler.wanted().into_iter().map(|(tags, it)| (tags.join(","), it)).collect()
    };
    let mut locked = locking("a", 1);
    locked.tags = vec!["eu".to_owned()];
    let both = vec![locked, tagged("b", &["us"])];
    world.run_like(CreateRun { run: "r".into(), parallelism: 1, ..creation(both) });
    assert_eq!(wanted(&world), [("eu".into(), (1, 0))], "the first of the file");
    let before = world.scheduler.wanted_version();

    // Another run takes the lock, and nothing happens to this one.
    let other = world.run("other", vec![locking("x", 1)]);
    world.hello("w", |hello| hello.only = Some(other.clone()));
    assert!(matches!(world.state(&other, "x"), JobState::Leased(..)));

    assert_ne!(world.scheduler.wanted_version(), before);
    assert_eq!(wanted(&world), [("".into(), (0, 1)), ("us".into(), (1, 0))]);
}

#[test]
fn what_wants_a_worker_is_counted_by_tags_within_parallelism_and_locks() {
    let mut world = World::new();
    let wanted = |world: &World| -> Vec<(String, (u64, u64))> {
        world.scheduler.wanted().into_iter().map(|(tags, it)| (tags.join(","), it)).collect()
    };
    let all = vec![tagged("a", &["eu"]), locking("b", 1), locking("c", 1), job("d")];
    let one = world.run_like(CreateRun { run: "r".into(), parallelism: 3, ..creation(all) });
    assert_eq!(wanted(&world), [("".into(), (2, 0)), ("eu".into(), (1, 0))]);
    let before = world.scheduler.wanted_version();

    world.hello("w", |hello| hello.slots = 1);

    assert_ne!(world.scheduler.wanted_version(), before);
    assert_eq!(wanted(&world), [("".into(), (1, 1)), ("eu".into(), (1, 0))]);
    world.carry_out(&one, &[Command::Cancel(String::new())]);
    assert_eq!(wanted(&world), [("".into(), (0, 1))]);
}
