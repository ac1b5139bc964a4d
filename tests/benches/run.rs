//! Whole runs of `tow`, beside the same processes with nothing around them and beside GNU make, in
//! the same minute on the same machine. Prints ratios; asserts nothing.
//!
//! `cargo bench -p towpath-tests --bench run` (needs `tow` of the same profile: it is built first).

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Jobs at once, everywhere.
const PARALLELISM: usize = 2;
/// Rounds of each measurement; medians are printed.
const ROUNDS: usize = 5;

fn main() {
    let tow = binary();
    println!(
        "{:28} {:>9} {:>9} {:>9} {:>8} {:>8}",
        "jobs", "tow", "spawn", "make", "/spawn", "/make"
    );
    for (jobs, chained) in
        [(100, false), (100, true), (1_000, false), (1_000, true), (10_000, false)]
    {
        let shape = if chained { "chained" } else { "wide" };
        // Side by side in every round, so that a busy moment hits all of them.
        let rounds: Vec<[Duration; 3]> = (0..ROUNDS)
            .map(|_| {
                let at_once = if chained { 1 } else { PARALLELISM };
                [run_tow(&tow, jobs, chained).0, spawn(jobs, at_once), make(jobs, chained)]
            })
            .collect();
        let times = |of: usize| median(rounds.iter().map(|round| round[of].as_secs_f64()));
        let ratio =
            |to: usize| median(rounds.iter().map(|r| r[0].as_secs_f64() / r[to].as_secs_f64()));
        println!(
            "{:28} {:>9.1} {:>9.1} {:>9.1} {:>8.2} {:>8.2}",
            format!("{jobs} {shape}, ms"),
            times(0) * 1e3,
            times(1) * 1e3,
            times(2) * 1e3,
            ratio(1),
            ratio(2),
        );
    }
    println!();
    let (_, first, peak) = run_tow(&tow, 1, false);
    println!("cold start to the first job  {}", words(first));
    println!("peak memory, 1 job           {:.1} MB", peak as f64 / 1024.0);
    let (_, _, peak) = run_tow(&tow, 10_000, false);
    println!("peak memory, 10,000 jobs     {:.1} MB", peak as f64 / 1024.0);
    let sync = fdatasync();
    println!("one fdatasync                {}", words(sync));
    let size = fs::metadata(&tow).map_or(0, |found| found.len());
    println!("size of the program          {:.1} MB", size as f64 / 1e6);
}

/// The `tow` beside this bench, built if need be.
fn binary() -> PathBuf {
    let mut folder = std::env::current_exe().expect("this program has a path");
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built =
        Command::new(cargo).args(["build", "-q", "-p", "towpath", "--profile", profile]).status();
    assert!(built.expect("cargo runs").success(), "`tow` does not build");
    folder.join("tow")
}

/// One whole `tow run`: the time it took, the time to its first job, its peak memory in KiB.
fn run_tow(tow: &Path, jobs: usize, chained: bool) -> (Duration, Duration, u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut file = String::from("version: \"1.0\"\nstages: [all]\njobs:\n");
    for job in 0..jobs {
        let needs =
            if chained && job > 0 { format!(", needs: [j{}]", job - 1) } else { String::new() };
        let command = if jobs == 1 { "touch first" } else { "true" };
        file.push_str(&format!("  j{job}: {{stage: all, command: \"{command}\"{needs}}}\n"));
    }
    fs::write(folder.path().join("towpath.yml"), file).expect("a file");
    let began = Instant::now();
    let wall = std::time::SystemTime::now();
    let mut child = Command::new(tow)
        .args(["run", "--parallelism", &PARALLELISM.to_string()])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("tow runs");
    let mut peak = 0;
    let status = loop {
        let text = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        if let Some(status) = child.try_wait().expect("tow can be waited for") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let took = began.elapsed();
    assert!(status.success(), "the run failed");
    let first = fs::metadata(folder.path().join("first")).and_then(|found| found.modified());
    let first = first.ok().and_then(|at| at.duration_since(wall).ok()).unwrap_or_default();
    (took, first, peak)
}

/// The same processes with nothing around them.
fn spawn(jobs: usize, at_once: usize) -> Duration {
    let began = Instant::now();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < jobs {
                    let status = Command::new("/bin/sh").args(["-c", "true"]).status();
                    assert!(status.expect("sh runs").success());
                }
            });
        }
    });
    began.elapsed()
}

/// GNU make over the same jobs, each by a shell as ours are. For ever, if there is no make.
fn make(jobs: usize, chained: bool) -> Duration {
    let folder = tempfile::tempdir().expect("a folder");
    let mut file = String::from("all:");
    for job in 0..jobs {
        file.push_str(&format!(" j{job}"));
    }
    file.push('\n');
    for job in 0..jobs {
        let needs = if chained && job > 0 { format!("j{}", job - 1) } else { String::new() };
        // The redirection makes `make` use a shell.
        file.push_str(&format!("j{job}: {needs}\n\t@true 2>&1\n"));
    }
    fs::write(folder.path().join("Makefile"), file).expect("a file");
    let began = Instant::now();
    let made = Command::new("make")
        .arg(format!("-j{PARALLELISM}"))
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .status();
    if made.is_ok_and(|status| status.success()) { began.elapsed() } else { Duration::MAX }
}

fn fdatasync() -> Duration {
    let mut file = tempfile::tempfile().expect("a file");
    let began = Instant::now();
    for _ in 0..200 {
        file.write_all(&[b'x'; 300]).expect("room");
        file.sync_data().expect("the disk takes it");
    }
    began.elapsed() / 200
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn words(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
