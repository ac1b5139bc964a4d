//! A server, three workers and their clients in virtual time: the engine, its scheduler and
//! the state machine of the workers are those that ship, everything around them is simulated, and after every step the rules are checked.
//!
//! `SIM_SEEDS` asks for more than 300 histories, `SIM_SEED` for one of them again.

mod book;
mod chaos;
mod checks;
mod client;
mod disk;
mod driver;
mod eyes;
mod plans;
mod random;
mod script;
mod server;
mod uploads;
mod worker;
mod world;

use std::env;

use world::{Plant, Tally, World};

const SEEDS: u64 = 300;
/// A broken rule is noticed within so many histories.
const SEEDS_FOR_A_PLANT: u64 = 600;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Plays the history of `seed`. A failure comes with the last steps before it.
fn play(seed: u64, plant: Plant) -> Result<Tally, String> {
    let failure = match World::new(seed, plant, false).play() {
        Ok(tally) => return Ok(tally),
        Err(failure) => failure,
    };
    let mut again = World::new(seed, plant, true);
    let repeated = again.play();
    assert_eq!(repeated.err().as_ref(), Some(&failure), "a seed does not say everything");
    let steps: Vec<String> = again.trace.into();
    Err(format!("SIM_SEED={seed}: {failure}\n{}", steps.join("\n")))
}

#[test]
fn no_history_breaks_a_rule() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut all = Tally::default();
    for seed in seeds.clone() {
        match play(seed, Plant::Nothing) {
            Ok(tally) => {
                all.steps += tally.steps;
                all.records += tally.records;
                all.crashes += tally.crashes;
                all.dead_reports += tally.dead_reports;
                all.rest_after = all.rest_after.max(tally.rest_after);
            }
            Err(failure) => panic!("{failure}"),
        }
    }
    let enough = seeds.end - seeds.start >= SEEDS;
    assert!(!enough || (all.crashes > 0 && all.dead_reports > 0), "too tame: {all:?}");
}

#[test]
fn one_seed_is_one_history() {
    let tally = |seed| {
        let tally = play(seed, Plant::Nothing).unwrap();
        (tally.steps, tally.records, tally.rest_after)
    };
    assert_eq!(tally(7), tally(7));
    assert_ne!(tally(7), tally(8));
}

/// Plays histories until one shows that the broken rule is missed.
fn caught(plant: Plant) {
    let noticed = (0..SEEDS_FOR_A_PLANT).any(|seed| play(seed, plant).is_err());
    assert!(noticed, "{plant:?} is not noticed within {SEEDS_FOR_A_PLANT} histories");
}

#[test]
fn every_broken_rule_is_noticed() {
    let plants = [
        Plant::AnswerEarly,
        Plant::NoFence,
        Plant::ForgetLost,
        Plant::NoLocks,
        Plant::WelcomeEarly,
        Plant::StaleReload,
        Plant::StaleLocks,
        Plant::FrozenClock,
        Plant::LoseCancels,
        Plant::ExpireEarly,
        Plant::UnfairTurns,
        Plant::AnswerUnheld,
        Plant::IgnoreDrains,
        Plant::ForgetReported,
        Plant::ResumeWrong,
        Plant::KeepVoid,
        Plant::TrustServer,
    ];
    for plant in plants {
        caught(plant);
    }
}
