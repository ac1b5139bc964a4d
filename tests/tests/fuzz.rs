//! The fuzzing targets on their seeds and on mutations of them, bounded: what `check` runs.
//!
//! `TOW_FUZZ_CASES` asks for another number of mutations of each target, `TOW_SEED` for the
//! mutations of an earlier failure. `fuzz/` searches for longer, with libFuzzer.

use std::{
    collections::BTreeSet,
    env, fs,
    hash::{BuildHasher as _, RandomState},
    path::PathBuf,
};

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner},
};
use towpath_storage::{Blobs, NewRecord, backup, open};
use towpath_tests::{
    fuzz::{TARGETS, fuzz},
    on_a_runtime, root,
};

/// Mutations of each target whose seeds are read in memory.
const CASES: u32 = 1000;
/// Mutations of the target that writes stores.
const CASES_SLOW: u32 = 40;
/// Longest mutation, in bytes: edits that copy could double a seed repeatedly.
const BYTES_MAX: usize = 64 * 1024;

/// Pieces that mean something to one of the readers.
#[rustfmt::skip]
const TOKENS: [&[u8]; 31] = [
    b"${{ matrix.v }}", b"${{", b"}}", b"'", b"\"", b"`", b"$(", b"${", b"<<E\n", b"\nE\n", b"\\",
    b"#", b")#", b"((", b"))", b"$((", b"(", b")", b"; ", b"\n", b": ", b"- ", b"&a ", b"*a", b"{}", b"[", b"\xff", b"\0", b"{\"kind\":", b"R", b"E",
];

/// One change of a seed. Places are shares of whatever length the bytes have by then.
#[derive(Clone, Debug)]
enum Edit {
    Replace(Index, u8),
    Cut(Index, usize),
    Insert(Index, Index),
    /// Copies bytes of another seed.
    Splice {
        seed: Index,
        from: Index,
        length: usize,
        to: Index,
    },
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Edit::Replace(at, byte)),
        (place(), 1usize..40).prop_map(|(at, length)| Edit::Cut(at, length)),
        (place(), place()).prop_map(|(at, token)| Edit::Insert(at, token)),
        (place(), place(), 1usize..200, place())
            .prop_map(|(seed, from, length, to)| Edit::Splice { seed, from, length, to }),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit, seeds: &[Vec<u8>]) {
    match edit {
        Edit::Replace(at, byte) => {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
        }
        Edit::Cut(at, length) => {
            let at = at.index(bytes.len() + 1);
            bytes.drain(at..(at + length).min(bytes.len()));
        }
        Edit::Insert(at, token) => insert(bytes, at, TOKENS[token.index(TOKENS.len())]),
        Edit::Splice { seed, from, length, to } => {
            let seed = &seeds[seed.index(seeds.len())];
            let from = from.index(seed.len() + 1);
            insert(bytes, to, &seed[from..(from + length).min(seed.len())]);
        }
    }
}

fn insert(bytes: &mut Vec<u8>, at: &Index, piece: &[u8]) {
    let at = at.index(bytes.len() + 1);
    bytes.splice(at..at, piece.iter().copied());
    bytes.truncate(BYTES_MAX);
}

fn folder() -> PathBuf {
    root().join("fuzz/seeds")
}

/// The seeds of the target `name`: the files of its folder, and what this version writes.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder().join(name)).expect("the target has seeds");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a seed").path()).collect();
    // The order of a folder differs between machines, and a failing seed must be found again.
    paths.sort();
    let mut seeds: Vec<Vec<u8>> =
        paths.into_iter().map(|path| fs::read(path).expect("a seed can be read")).collect();
    match name {
        "backup" => seeds.push(small_backup()),
        // A record follows the first line of a backup and the letter of its kind.
        "frame" => {
            let backup = small_backup();
            let line = backup.iter().position(|byte| *byte == b'\n').expect("a first line");
            seeds.push(backup[line + 2..].to_vec());
        }
        _ => {}
    }
    seeds
}

/// A backup of three records and a blob, without its digest.
fn small_backup() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backup");
    on_a_runtime(async {
        let opened = open(&format!("fjall:{}", folder.path().join("store").display()));
        let opened = opened.expect("a store");
        let records = (0..2).map(|n| NewRecord::new("fact", format!("{n}"))).collect();
        opened.store.append("run/a", 0, records).await.expect("two records");
        let other = vec![NewRecord::new("fact", "x".repeat(200))];
        opened.store.append("run/b", 0, other).await.expect("one record");
        let blobs = Blobs::open(&opened.dir.blobs()).expect("a folder of blobs");
        blobs.put_read(&b"printed"[..]).expect("a blob");
        backup(opened.store.as_ref(), &blobs, &file, |_| {}).await.expect("a backup");
    });
    let mut bytes = fs::read(&file).expect("the backup");
    bytes.truncate(bytes.len() - 32);
    bytes
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Runs the target on all its seeds, and then on mutations.
fn holds(name: &str, cases: u32) {
    let seeds = seeds(name);
    for seed in &seeds {
        fuzz(name, seed);
    }
    let chosen = number("TOW_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let mut rng_seed = [0; 32];
    rng_seed[..8].copy_from_slice(&chosen.to_le_bytes());
    let cases = number("TOW_FUZZ_CASES").and_then(|cases| cases.try_into().ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &rng_seed);
    let mutation =
        (any::<Index>(), prop::collection::vec(edit(), 1..8)).prop_map(|(seed, edits)| {
            let mut bytes = seeds[seed.index(seeds.len())].clone();
            edits.iter().for_each(|edit| apply(&mut bytes, edit, &seeds));
            bytes
        });
    let checked = TestRunner::new_with_rng(config, rng).run(&mutation, |bytes| {
        fuzz(name, &bytes);
        Ok(())
    });
    match checked {
        Ok(()) => {}
        Err(TestError::Fail(why, bytes)) => {
            let shown = bytes.escape_ascii();
            panic!(
                "TOW_SEED={chosen}: {why}\nwith these bytes, a seed for fuzz/seeds/{name}: {shown}"
            )
        }
        Err(TestError::Abort(why)) => panic!("TOW_SEED={chosen}: {why}"),
    }
}

#[test]
fn every_target_has_its_seeds() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let folders = fs::read_dir(folder()).expect("the seeds");
    let folders = folders.map(|folder| folder.expect("a folder").file_name());
    let folders = folders.map(|name| name.to_string_lossy().into_owned()).collect();
    assert_eq!(targets, folders);
    let runs = fs::read_dir(root().join("fuzz/fuzz_targets")).expect("what libFuzzer runs");
    let runs = runs.map(|run| run.expect("a file").path());
    let runs = runs.map(|run| run.file_stem().expect("a name").to_string_lossy().into_owned());
    assert_eq!(targets, runs.collect());
}

#[test]
fn the_backup_that_is_mutated_can_be_restored() {
    // `fuzz` accepts a refusal as well, so a seed that no longer fits would go unnoticed.
    let backup = small_backup();
    assert!(backup.starts_with(b"towpath backup"), "the seeds of the frames are cut out of it");
    fuzz("backup", &backup);
}

#[test]
fn a_pipeline_file_is_a_plan_or_its_problems() {
    holds("yaml", CASES);
}

#[test]
fn an_expression_is_read_as_it_was_checked() {
    holds("expression", CASES);
}

#[test]
fn a_value_in_a_script_stays_one_word() {
    holds("shell", CASES);
}

#[test]
fn an_event_is_written_as_it_was_read() {
    holds("codec", CASES);
}

#[test]
fn a_record_lies_within_its_bytes() {
    holds("frame", CASES);
}

#[test]
fn a_backup_is_restored_whole_or_refused() {
    holds("backup", CASES_SLOW);
}

#[test]
fn no_secret_is_shown_however_output_is_cut() {
    holds("mask", CASES);
}
