//! `kill -9` at any moment: what was acknowledged is there when the store is opened again.
//!
//! The writer is this test binary, started again for the one test below that only acts as a child.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use towpath_storage::{AppendError, NewRecord, StoreErrorKind, open, verify};

/// Names the store for the child; unset for everyone else.
const CHILD_URL: &str = "TOWPATH_STORAGE_TEST_URL";
const KILLS: u64 = 20;
/// Records of a large append.
const PLANNED: u64 = 1500;

#[test]
fn the_child_appends_until_it_is_killed() {
    let Ok(url) = env::var(CHILD_URL) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let opened = open(&url).unwrap();
        let mut out = std::io::stdout();
        writeln!(out, "\nOPEN").unwrap();
        let mut version = opened.store.read("run/0", 0, usize::MAX).await.unwrap().len() as u64;
        while !opened.store.read("run/0", version, 1).await.unwrap().is_empty() {
            version += opened.store.read("run/0", version, usize::MAX).await.unwrap().len() as u64;
        }
        for round in version.. {
            // Several blocks, which must come or go together.
            let many = (0..PLANNED).map(|_| NewRecord::new("planned", "x".repeat(100))).collect();
            let planned = opened.store.append(&format!("plan/{round}"), 0, many);
            let appends: Vec<_> = (0..5)
                .map(|stream| {
                    let record = NewRecord::new("fact", format!("{round}-{}", "x".repeat(100)));
                    opened.store.append(&format!("run/{stream}"), round, vec![record])
                })
                .collect();
            for append in appends {
                match append.await {
                    Ok(appended) => writeln!(out, "ACK {}", appended.last).unwrap(),
                    // A killed predecessor may have written some streams of the round.
                    Err(error) => assert!(matches!(error, AppendError::Conflict { .. }), "{error}"),
                }
            }
            match planned.await {
                Ok(appended) => writeln!(out, "ACK {}", appended.last).unwrap(),
                Err(error) => assert!(matches!(error, AppendError::Conflict { .. }), "{error}"),
            }
        }
    });
}

fn child(url: &str) -> Child {
    let arguments = ["--exact", "the_child_appends_until_it_is_killed", "--nocapture"];
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(arguments).env(CHILD_URL, url).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Lets the child write for `ms`, kills it, and says what it acknowledged last.
fn write_and_kill(url: &str, ms: u64) -> u64 {
    let mut child = child(url);
    let pid = child.id();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while lines.next().unwrap().unwrap() != "OPEN" {}

    let error = open(url).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Owned);
    assert!(error.to_string().ends_with(&format!("process {pid}")), "{error}");

    sleep(Duration::from_millis(ms));
    child.kill().unwrap();
    child.wait().unwrap();
    let acks = lines.map_while(Result::ok).filter_map(|line| {
        // The last line may be cut short by the kill, which makes the number smaller.
        line.strip_prefix("ACK ").and_then(|position| position.parse().ok())
    });
    acks.max().unwrap_or(0)
}

fn nothing_acknowledged_is_lost(backend: &str) {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("{backend}:{}", directory.path().join("store").display());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut acknowledged = 0;
    for n in 0..KILLS {
        // Any moment: some while opening has just ended, some in the middle of many commits.
        acknowledged = acknowledged.max(write_and_kill(&url, n * n * 37 % 90));

        let opened = open(&url).unwrap();
        let store = opened.store.as_ref();
        let verified = runtime.block_on(verify(store, |_| {})).unwrap();
        let newest =
            runtime.block_on(store.read_all(verified.records.saturating_sub(1), 1)).unwrap();
        if let Some(newest) = newest.first().filter(|newest| newest.stream.starts_with("plan/")) {
            assert_eq!(newest.version, PLANNED, "half an append");
        }
        assert!(
            verified.records >= acknowledged,
            "{acknowledged} were acknowledged and {} are there after kill {n}",
            verified.records
        );
    }
    assert!(acknowledged > 0);
}

#[test]
fn a_killed_sled_store_keeps_all_it_acknowledged() {
    nothing_acknowledged_is_lost("sled");
}

#[cfg(feature = "fjall")]
#[test]
fn a_killed_fjall_store_keeps_all_it_acknowledged() {
    nothing_acknowledged_is_lost("fjall");
}
