//! `tow autoscale` with real servers, real workers and launchers that fail.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

const WAIT_MAX: Duration = Duration::from_secs(60);
const JOBS: usize = 6;

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// `tow` in `folder`, with nothing of the environment but what it needs.
fn tow(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(snapbox::cmd::cargo_bin!("tow"));
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder)
        .env("USER", "ana")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A server over a store in `folder`, and its address.
fn serve(folder: &Path) -> (Running, String) {
    let store = format!("sled:{}", folder.join("store").display());
    let args = ["serve", "--store", &store, "--listen", "127.0.0.1:0", "--output", "jsonl"];
    let mut child = tow(folder, &args).spawn().expect("a server");
    let mut line = String::new();
    let out = child.stdout.take().expect("its output");
    BufReader::new(out).read_line(&mut line).expect("a line");
    let ready: Value = serde_json::from_str(&line).expect("the server is ready");
    (Running(child), ready["address"].as_str().expect("an address").to_owned())
}

/// Begins a run on the server at `address`; answers its id.
fn begin(folder: &Path, address: &str, yaml: &str) -> String {
    fs::write(folder.join("towpath.yml"), yaml).expect("a file");
    let args = ["run", "--server", address, "--detach", "--output", "json", "towpath.yml"];
    let said = tow(folder, &args).output().expect("tow runs");
    assert!(said.status.success(), "{}", text(&said));
    let value: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    value["run"].as_str().or(value["id"].as_str()).expect("an id").to_owned()
}

fn text(said: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
}

fn phase(folder: &Path, address: &str, run: &str) -> String {
    let said = tow(folder, &["status", "--server", address, "--output", "json", run]).output();
    let value: Value = serde_json::from_slice(&said.expect("tow runs").stdout).expect("JSON");
    value["outcome"].as_str().or(value["phase"].as_str()).expect("a phase").to_owned()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < WAIT_MAX, "{what} never came");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A command that starts a worker for one job, and notes in `folder` when it came and went.
fn launcher(folder: &Path) -> String {
    let program = snapbox::cmd::cargo_bin!("tow");
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        "echo + >>{lives}; '{}' worker --once --idle-timeout 2s --attempts {}/$TOW_WORKER_NAME; \
         code=$?; echo - >>{lives}; exit $code",
        program.display(),
        at("attempts"),
        lives = at("lives"),
    )
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn every_job_gets_a_worker_and_there_are_never_too_many() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_server, address) = serve(folder.path());
    let jobs: String = (0..JOBS)
        .map(|n| format!("  j{n}: {{stage: s, command: 'sleep 0.2', tags: [eu]}}\n"))
        .collect();
    let yaml = format!("version: \"1.0\"\nstages: [s]\njobs:\n{jobs}");
    let run = begin(folder.path(), &address, &yaml);
    let launch = launcher(folder.path());
    let args =
        ["autoscale", "--server", &address, "--max", "2", "--tags", "eu,big", "--launch", &launch];

    let _scaler = Running(tow(folder.path(), &args).spawn().expect("tow runs"));

    until("the end of the run", || phase(folder.path(), &address, &run) == "succeeded");
    let lives = folder.path().join("lives");
    let born = || lines(&lives).iter().filter(|line| *line == "+").count();
    until("the end of the workers", || lines(&lives).len() == born() * 2);
    let mut alive = 0;
    for line in lines(&lives) {
        alive += if line == "+" { 1 } else { -1 };
        assert!(alive <= 2, "{:?}", lines(&lives));
    }
    assert!((JOBS..=JOBS + 2).contains(&born()), "one for each job: {}", born());
}

#[test]
fn a_launch_that_fails_is_tried_again_more_and_more_rarely() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_server, address) = serve(folder.path());
    let yaml = "version: \"1.0\"\nstages: [s]\njobs:\n  a: {stage: s, command: 'true'}\n";
    begin(folder.path(), &address, yaml);
    let launches = folder.path().join("launches");
    let launch =
        format!("echo \"$TOW_SERVER $TOW_TAGS $(date +%s%N)\" >>{}; exit 3", launches.display());
    let args = ["autoscale", "--server", &address, "--max", "5", "--launch", &launch];

    let scaler = Running(tow(folder.path(), &args).spawn().expect("tow runs"));
    until("a third launch", || lines(&launches).len() >= 3);
    drop(scaler);

    let launches = lines(&launches);
    let at = |launch: usize| {
        let ns = launches[launch].rsplit(' ').next().and_then(|ns| ns.parse().ok());
        Duration::from_nanos(ns.expect("a time"))
    };
    // A pause begins after the launch has noted its time, so a busy machine only makes it longer.
    assert!(at(1) - at(0) >= Duration::from_secs(1), "{launches:?}");
    assert!(at(2) - at(1) >= Duration::from_secs(2), "{launches:?}");
    assert!(launches[0].starts_with(&format!("{address}  ")), "no tags are no tags");
}

#[test]
fn one_look_starts_what_is_missing_and_says_whether_that_went_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_server, address) = serve(folder.path());
    let autoscale = |launch: &str, more: &[&str]| {
        let args = ["autoscale", "--server", &address, "--once", "--launch", launch];
        tow(folder.path(), &[&args, more].concat()).output().expect("tow runs")
    };

    let idle = autoscale("exit 3", &["--max", "5"]);
    assert!(idle.status.success(), "nothing waits: {}", text(&idle));
    let failed = autoscale("exit 3", &["--min", "1", "--max", "5"]);
    assert!(text(&failed).contains("error[LAUNCH_FAILED]"), "{}", text(&failed));
    let yaml = "version: \"1.0\"\nstages: [s]\njobs:\n  a: {stage: s, command: 'true'}\n";
    let run = begin(folder.path(), &address, yaml);
    let done = autoscale(&launcher(folder.path()), &["--max", "5", "--output", "jsonl"]);

    assert!(done.status.success(), "{}", text(&done));
    let said: Value = serde_json::from_slice(&done.stdout).expect("one launch");
    assert_eq!((&said["pending"], &said["living"]), (&1.into(), &1.into()));
    assert_eq!(phase(folder.path(), &address, &run), "succeeded");
    let refused = autoscale("true", &["--min", "2", "--max", "1"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
}
