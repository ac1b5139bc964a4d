//! Several machines for real: a server and three workers in network namespaces, mutual TLS between
//! them, and a run of 500 jobs. Meanwhile plugs are pulled, the server is killed, workers are
//! stopped, killed and rolled. Every attempt that succeeded leaves its effect exactly once.
//!
//! `TOW_SEED` asks for the troubles of an earlier failure. Without root, or where namespaces are
//! not permitted, it is skipped.

mod lan;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use towpath_tests::{Chance, is_slow_run, skip};

use world::{LEASE, WORKERS, World, until};

const STAGES: usize = 5;
const JOBS_PER_STAGE: usize = 100;
const JOBS: usize = STAGES * JOBS_PER_STAGE;
/// How long a job takes, in milliseconds.
const JOB_MS: std::ops::Range<u64> = 200..800;
/// How much longer those take that outlive a lease, in seconds.
const LONG_JOB_S: u64 = 6;
/// Which of every 25 they are.
const LONG: usize = 7;
/// How many effects lie between two troubles.
const BETWEEN: std::ops::Range<u64> = 4..14;
/// How long the whole run may take.
const RUN_MAX: Duration = Duration::from_secs(100);

/// What happens to the machines, one after the other.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// A worker cannot reach the server, for less than its leases last.
    CutShort(usize),
    /// A worker cannot reach the server until others have its jobs.
    CutLong(usize),
    /// A worker is stopped until others have its jobs, and woken.
    Sleep(usize),
    /// A worker is killed, and another of its name takes its place.
    KillWorker(usize),
    /// The server is killed, and another takes its place.
    KillServer,
    /// The server is killed and comes back while a worker is cut off.
    KillServerBehindACut(usize),
    /// All workers are told to finish, one after the other, and replaced.
    Roll,
}

fn schedule(chance: &mut Chance) -> Vec<Trouble> {
    let mut worker = || chance.below(WORKERS.len() as u64) as usize;
    let mut all = vec![
        Trouble::CutShort(worker()),
        Trouble::CutLong(worker()),
        Trouble::Sleep(worker()),
        Trouble::KillWorker(worker()),
        Trouble::KillServer,
        Trouble::KillServerBehindACut(worker()),
        Trouble::Roll,
    ];
    chance.shuffle(&mut all);
    all
}

fn inflict(world: &mut World, trouble: Trouble, chance: &mut Chance) {
    let mut pause = |range| thread::sleep(Duration::from_millis(chance.within(range)));
    match trouble {
        Trouble::CutShort(worker) => {
            world.cut(worker);
            pause(100..800);
            world.join(worker);
        }
        Trouble::CutLong(worker) => {
            world.cut(worker);
            thread::sleep(LEASE * 5 / 2);
            world.join(worker);
        }
        Trouble::Sleep(worker) => {
            world.signal(worker, Signal::SIGSTOP);
            thread::sleep(LEASE * 5 / 2);
            world.signal(worker, Signal::SIGCONT);
        }
        Trouble::KillWorker(worker) => {
            world.kill_worker(worker);
            pause(0..800);
            world.start_worker(worker);
        }
        Trouble::KillServer => {
            world.kill_server();
            pause(0..800);
            world.start_server();
        }
        Trouble::KillServerBehindACut(worker) => {
            world.cut(worker);
            pause(0..500);
            world.kill_server();
            world.start_server();
            thread::sleep(LEASE * 3 / 2);
            world.join(worker);
        }
        Trouble::Roll => {
            for worker in 0..WORKERS.len() {
                world.drain(worker);
                world.start_worker(worker);
            }
        }
    }
}

/// Jobs that note when they begin and when they are done. Every tenth fails the first time, some
/// wait for others, and all of them print.
fn pipeline(chance: &mut Chance) -> String {
    let stages: Vec<String> = (0..STAGES).map(|stage| format!("s{stage}")).collect();
    let mut yaml = format!("version: \"1.0\"\nstages: [{}]\njobs:\n", stages.join(", "));
    for stage in 0..STAGES {
        for job in 0..JOBS_PER_STAGE {
            let needs: Vec<String> =
                need(job).into_iter().map(|need| job_name(stage, need)).collect();
            let needs = format!("needs: [{}]", needs.join(", "));
            let name = job_name(stage, job);
            let fails = if job % 10 == 3 { "[ $TOW_ATTEMPT -gt 1 ] || exit 3" } else { ":" };
            // Long ones still run elsewhere when a worker that had lost them comes back.
            let s = if job % 25 == LONG { LONG_JOB_S } else { 0 };
            let ms = chance.within(JOB_MS);
            yaml.push_str(&format!(
                "  {name}:
    stage: s{stage}
    {needs}
    retry: {{max: 3, backoff: 100ms}}
    command: |
      note() {{ echo \"$1 $TOW_JOB $TOW_ATTEMPT $TOW_FENCE\" >>effects; }}
      note begin; echo \"$TOW_JOB works\"; sleep {s}.{ms:03}; {fails}; note done
"
            ));
        }
    }
    yaml
}

fn job_name(stage: usize, job: usize) -> String {
    format!("s{stage}-{job}")
}

/// The job of the same stage that `job` waits for: a long one, or any.
fn need(job: usize) -> Option<usize> {
    if job % 25 == LONG + 1 { Some(job - 1) } else { job.checked_sub(60) }
}

/// A note of a job: its kind, the job, the attempt and the fence.
type Note = (String, String, u64, u64);

/// What the jobs noted, and in which lines of all notes.
fn noted(world: &World) -> BTreeMap<Note, Vec<usize>> {
    let text = fs::read_to_string(world.path("effects")).unwrap_or_default();
    let mut noted: BTreeMap<Note, Vec<usize>> = BTreeMap::new();
    for (place, line) in text.lines().enumerate() {
        let mut words = line.split(' ');
        let mut word = || words.next().expect("a note has four words").to_owned();
        let (kind, job) = (word(), word());
        let mut number = || word().parse().expect("a number");
        noted.entry((kind, job, number(), number())).or_default().push(place);
    }
    noted
}

fn done(world: &World) -> u64 {
    let text = fs::read_to_string(world.path("effects")).unwrap_or_default();
    text.lines().filter(|line| line.starts_with("done ")).count() as u64
}

/// Lets everything happen that is on the schedule, and the run come to its end.
fn live_through(world: &mut World, troubles: Vec<Trouble>, chance: &mut Chance) {
    let began = Instant::now();
    for trouble in troubles {
        let next = done(world) + chance.within(BETWEEN);
        until("jobs are done", || done(world) >= next || !world.is_following());
        assert!(world.is_following(), "the run has ended before {trouble:?}");
        say(&format!("hosts: {:>6.1?} {trouble:?}", began.elapsed()));
        inflict(world, trouble, chance);
    }
    while world.is_following() {
        assert!(began.elapsed() < RUN_MAX, "the run continues for over {RUN_MAX:?}");
        thread::sleep(Duration::from_millis(100));
    }
    let status = world.client_ended();
    assert!(status.success(), "the client ended with {status}");
}

/// What the log tells of the attempts.
#[derive(Default)]
struct Told {
    /// The fence of every attempt that was leased.
    leased: BTreeMap<(String, u64), u64>,
    /// How it ended.
    ended: BTreeMap<(String, u64), String>,
    /// What a worker did not name when it came back.
    unnamed: Vec<(String, u64)>,
    outcome: String,
}

fn told(log: &str) -> Told {
    let mut told = Told::default();
    for (line, position) in log.lines().zip(1_u64..) {
        let record: Value = serde_json::from_str(line).expect("a line is JSON");
        assert_eq!(record["position"], position, "positions have no gaps");
        let event = &record["fact"]["event"];
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        let attempt = (text("job"), event["attempt"].as_u64().unwrap_or_default());
        if text("reason") == "the worker reconnected without it" {
            told.unnamed.push(attempt.clone());
        }
        let again = match text("kind").as_str() {
            "job_leased" => told.leased.insert(attempt.clone(), position).is_some(),
            kind @ ("job_succeeded" | "job_attempt_failed" | "job_lost") => {
                assert!(told.leased.contains_key(&attempt), "{attempt:?} was never leased");
                told.ended.insert(attempt.clone(), kind.to_owned()).is_some()
            }
            "run_finished" => {
                told.outcome = text("outcome");
                false
            }
            _ => false,
        };
        assert!(!again, "{attempt:?} was leased or ended twice");
    }
    told
}

fn check(world: &World) {
    let Told { leased, ended, unnamed, outcome } =
        told(&world.ask(&["events", "--output", "jsonl"]));
    assert_eq!(outcome, "succeeded");
    assert_eq!(leased.len(), ended.len(), "every attempt has ended");
    let of_kind = |kind: &str| ended.values().filter(|ended| *ended == kind).count();
    let lost = of_kind("job_lost");
    let succeeded = ended.iter().filter(|(_, kind)| *kind == "job_succeeded");
    let succeeded: Vec<_> = succeeded.map(|(attempt, _)| attempt).collect();
    let jobs: BTreeSet<_> = succeeded.iter().map(|(job, _)| job).collect();
    assert_eq!((succeeded.len(), jobs.len()), (JOBS, JOBS), "every job succeeded once");

    let noted = noted(world);
    for ((kind, job, attempt, fence), places) in &noted {
        assert_eq!(places.len(), 1, "{kind} of {job}/{attempt} was noted at {places:?}");
        let lease = leased.get(&(job.clone(), *attempt));
        assert_eq!(lease, Some(fence), "the fence of {job}/{attempt} is its lease's");
    }
    let began = |attempt| noted.keys().any(|(_, job, number, _)| (job, number) == attempt);
    for (job, attempt) in &unnamed {
        assert!(!began((job, attempt)), "a worker forgot {job}/{attempt}, which it had begun");
    }
    let mut done = BTreeMap::new();
    for (job, attempt) in succeeded {
        let fence = leased[&(job.clone(), *attempt)];
        let place = |kind: &str| noted.get(&(kind.to_owned(), job.clone(), *attempt, fence));
        assert!(place("begin").is_some(), "{job}/{attempt} succeeded and never began");
        let places = place("done").expect("a succeeded job left its effect");
        done.insert(job.clone(), places[0]);
    }
    check_order(&noted, &done);
    assert!(lost > 0, "nothing was lost: the troubles were none");
    say(&format!(
        "hosts: {} attempts of {JOBS} jobs: {} failed, {lost} lost, {} effects of lost attempts",
        leased.len(),
        of_kind("job_attempt_failed"),
        noted.keys().filter(|note| note.0 == "done").count() - JOBS,
    ));
}

/// Nothing began before the effect was there of what it had to wait for.
fn check_order(noted: &BTreeMap<Note, Vec<usize>>, done: &BTreeMap<String, usize>) {
    let mut begun: BTreeMap<&str, usize> = BTreeMap::new();
    for ((kind, job, ..), places) in noted {
        if kind == "begin" {
            let first = begun.entry(job).or_insert(places[0]);
            *first = places[0].min(*first);
        }
    }
    for (stage, job) in (0..STAGES).flat_map(|stage| (0..JOBS_PER_STAGE).map(move |n| (stage, n))) {
        let name = job_name(stage, job);
        let before = stage.checked_sub(1).into_iter();
        let earlier = before.flat_map(|stage| (0..JOBS_PER_STAGE).map(move |n| job_name(stage, n)));
        for awaited in earlier.chain(need(job).map(|need| job_name(stage, need))) {
            let (effect, begin) = (done[&awaited], begun[name.as_str()]);
            assert!(effect < begin, "`{name}` began before the effect of `{awaited}` was there");
        }
    }
}

#[test]
fn every_effect_is_there_exactly_once_per_attempt_that_succeeded() {
    if !is_slow_run() {
        return;
    }
    let mut chance = Chance::new();
    let mut world = match World::build() {
        Ok(world) => world,
        Err(why) => return skip("namespaces", &why),
    };
    let troubles = schedule(&mut chance);
    // Said now, because a failure below says no more than what went wrong.
    say(&format!("hosts: TOW_SEED={} {troubles:?}", chance.seed));
    fs::write(world.path("towpath.yml"), pipeline(&mut chance)).expect("a file");

    world.start_run();
    live_through(&mut world, troubles, &mut chance);
    world.close();

    check(&world);
    world.ask(&["doctor"]);
    until("no process of a job is left", || world.processes_of_jobs().is_empty());
}

/// Says something that the test harness does not swallow.
fn say(line: &str) {
    let mut out = std::io::stderr().lock();
    writeln!(out, "{line}").expect("a reader");
}
