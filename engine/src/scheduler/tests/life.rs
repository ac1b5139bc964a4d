//! The life of a session.

use super::*;

/// A session that has come so far, named as in the picture in `opening.rs`.
fn session_in(stage: &str) -> (World, SessionId) {
    let mut world = World::new();
    world.run("r", jobs(&["a"]));
    let old = world.worker("w");
    world.on(Input::Disconnected { session: old });
    world.stands_still = stage == "opening";
    if stage == "settling" {
        world.losses_fail.insert("a".into());
        world.stands_still = true;
    }
    let held = if stage == "settling" { None } else { Some(attempt("r", "a", 1)) };
    let id = world.hello("w", |hello| hello.held.extend(held));
    match stage {
        "settling" => {
            let leased = Some(vec![attempt("r", "a", 1)]);
            world.waiting.clear();
            world.on(Input::Reconciled { session: id, leased });
        }
        "leaving" => {
            world.stands_still = true;
            world.on(Input::Goodbye { session: id });
        }
        "replaced" => _ = world.worker("w"),
        _ => {}
    }
    world.said.clear();
    (world, id)
}

type Step = fn(&mut World, SessionId);

fn outcome(world: &mut World, id: SessionId) -> String {
    let told: Vec<String> = world.said();
    let own = format!("{}: ", id.0);
    let told = told.iter().find_map(|line| line.strip_prefix(&own)).map(str::to_owned);
    if let Some(closed) = told.as_ref().and_then(|told| told.strip_prefix("closed, ")) {
        return closed.to_lowercase();
    }
    let Some(session) = world.scheduler.sessions.get(&id) else { return "ended".to_owned() };
    let stage =
        if session.replaced { "replaced".to_owned() } else { format!("{:?}", session.stage) };
    stage.to_lowercase()
}

#[test]
fn the_whole_life_of_a_session() {
    let stages = ["opening", "settling", "ready", "replaced", "leaving"];
    let mut table = format!("{:14}", "what happens");
    for stage in stages {
        table += &format!("|{stage:11}");
    }
    let steps: [(&str, Step); 9] = [
        ("reconciled", |world, session| {
            let leased = Some(vec![attempt("r", "a", 1)]);
            world.on(Input::Reconciled { session, leased });
        }),
        ("unreadable", |world, session| world.on(Input::Reconciled { session, leased: None })),
        ("lost", |world, _| {
            world.on(Input::Lost { attempt: attempt("r", "a", 1), ok: true });
        }),
        ("not lost", |world, _| {
            world.on(Input::Lost { attempt: attempt("r", "a", 1), ok: false });
        }),
        ("same process", |world, _| _ = world.worker("w")),
        ("other process", |world, _| {
            _ = world.hello("w", |hello| hello.worker_instance_id = "two".into());
        }),
        ("no heartbeat", |world, _| world.pass(LEASE)),
        ("goodbye", |world, session| world.on(Input::Goodbye { session })),
        ("disconnected", |world, session| world.on(Input::Disconnected { session })),
    ];
    for (name, step) in steps {
        table += &format!("\n{name:14}");
        for stage in stages {
            let (mut world, id) = session_in(stage);
            step(&mut world, id);
            table += &format!("|{:11}", outcome(&mut world, id));
        }
    }
    assert_eq!(
        table,
        "\
what happens  |opening    |settling   |ready      |replaced   |leaving    
reconciled    |ready      |settling   |ready      |replaced   |leaving    
unreadable    |unavailable|settling   |ready      |replaced   |leaving    
lost          |opening    |ready      |ready      |replaced   |left       
not lost      |opening    |unavailable|ready      |replaced   |left       
same process  |replaced   |replaced   |replaced   |replaced   |leaving    
other process |opening    |settling   |ready      |replaced   |leaving    
no heartbeat  |expired    |expired    |expired    |expired    |expired    
goodbye       |left       |left       |left       |left       |left       
disconnected  |ended      |ended      |ended      |ended      |ended      "
    );
}

#[test]
fn a_name_belongs_to_one_process_at_a_time() {
    let mut world = World::new();
    world.worker("w");
    let other = world.hello("w", |hello| hello.worker_instance_id = "two".into());
    assert_eq!(world.said()[1..], [format!("{}: closed, NameTaken", other.0)]);

    let again = world.worker("w");
    assert_eq!(world.said(), [format!("{}: welcome []", again.0)], "the same process comes back");
    assert_eq!(world.scheduler.workers().count(), 1);
}

#[test]
fn a_worker_that_comes_back_keeps_what_it_names_and_loses_the_rest() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a", "b"]));
    world.hello("w", |hello| hello.slots = 2);
    let void = attempt("r", "b", 7);

    let held = [attempt("r", "a", 1), void];
    let again = world.hello("w", |hello| (hello.slots, hello.held) = (2, held.into()));

    assert!(world.said().contains(&"2: welcome [r/a/1]".to_owned()));
    assert!(world.scheduler.holds(again, &attempt("r", "a", 1)));
    assert_eq!(*world.state(&run, "b"), JobState::Leased(Attempt(2), "w".into()));
}

#[test]
fn a_reconnected_worker_must_end_its_job_of_an_ending_run() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a"]));
    let one = world.worker("w");
    world.on(Input::Disconnected { session: one });
    world.carry_out(&run, &[Command::Cancel(String::new())]);
    world.said();

    world.hello("w", |hello| hello.held = [attempt("r", "a", 1)].into());

    assert_eq!(world.said(), ["2: welcome [r/a/1]", "2: cancel r/a/1"]);
}

#[test]
fn the_first_session_of_two_that_open_at_once_gives_way() {
    let mut world = World::new();
    world.run("r", jobs(&["a"]));
    world.stands_still = true;
    let first = world.worker("w");
    let second = world.worker("w");
    assert_eq!(world.waiting.len(), 1, "one is opened at a time");

    world.go_on();

    assert_eq!(world.said(), ["2: welcome []", "2: assign r/a/1"]);
    assert!(world.scheduler.holds(second, &attempt("r", "a", 1)));
    assert!(world.scheduler.is_open(first), "until its connection ends");
}

#[test]
fn a_lease_that_is_durable_too_late_is_lost_and_given_out_again() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a"]));
    let one = world.worker("w");
    // As if it were decided still, and its worker leaves before it is durable.
    world.on(Input::Disconnected { session: one });
    let leased = vec![Leased { attempt: attempt("r", "a", 1), fence: 9 }];
    world.on(Input::LeaseDurable { session: one, leased });
    assert_eq!(*world.state(&run, "a"), JobState::Requeued);

    world.worker("v");
    assert_eq!(*world.state(&run, "a"), JobState::Leased(Attempt(2), "v".into()));
}

#[test]
fn a_session_reports_nothing_that_another_one_holds() {
    let mut world = World::new();
    let run = world.run("r", jobs(&["a"]));
    let holder = world.worker("holder");
    let thief = world.worker("thief");

    assert!(!world.report(thief, &run, "a"));
    assert!(matches!(world.state(&run, "a"), JobState::Leased(..)));
    assert!(world.report(holder, &run, "a"));
}

#[test]
fn cancels_wait_for_a_worker_that_reads_slowly_and_go_nowhere_else() {
    let mut world = World::new();
    let names: Vec<String> = (0..64).map(|n| format!("j{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let run = world.run("r", jobs(&names));
    let other = world.run("s", jobs(&["x"]));
    let one = world.hello("w", |hello| hello.slots = 101);
    world.said();

    // Nothing is read while the runs are cancelled.
    let mut effects = Vec::new();
    {
        let run = &run;
        let mut state = world.runs[run].clone();
        let cancel = Command::Cancel(String::new());
        let written = carry_out(&mut state, &cancel, &Actor::human("ana"), AT);
        let facts: Vec<Fact> = written.unwrap().into_iter().map(|(fact, _)| fact).collect();
        let (now, scheduler) = (world.now, &mut world.scheduler);
        let version = 100;
        let decided = Input::RunDecided { run, state: &state, version, facts: &facts, at: AT };
        scheduler.on(decided, now, &mut effects);
        scheduler.on(Input::RunDurable { run, version, facts: &facts }, now, &mut effects);
    }
    assert_eq!(effects.len(), 1, "one delivery for all of them");
    world.deliver(one);

    let said = world.said();
    assert_eq!(said.len(), 64, "each once, and `{other}` goes on");
    assert!(said.iter().all(|said| said.starts_with("1: cancel r/")));
}

#[test]
fn a_session_whose_queue_is_long_is_given_no_more_until_it_reads() {
    let mut world = World::new();
    let long = "x".repeat(20_000);
    let names: Vec<String> = (0..100).map(|n| format!("{n:03}{long}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let create = CreateRun { run: "r".into(), parallelism: 100, ..creation(jobs(&names)) };
    let run = world.run_like(create);
    world.read = false;
    let one = world.hello("w", |hello| hello.slots = 100);
    assert_eq!(world.runs[&run].leased().count(), QUEUE_BYTES_MAX / 20_000 + 2);

    world.read = true;
    world.deliver(one);

    assert_eq!(world.said().len(), 101);
    assert_eq!(world.runs[&run].leased().count(), 100);
}
