//! What a job printed, while it runs and afterwards.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::ends::{ended, err, folder_with, tow};

#[test]
fn following_waits_for_the_job_and_goes_through_its_attempts() {
    let waits = |name: &str| format!("until [ -e go-{name} ]; do sleep 0.01; done");
    let folder = folder_with(&format!(
        "stages: [s]\njobs:\n  first: {{stage: s, command: 'touch began; {}'}}\n  copy:\n    stage: s\n    \
         needs: [first]\n    retry: 1\n    command: |\n      echo \
         attempt-$TOW_ATTEMPT\n      {}\n      [ $TOW_ATTEMPT = 2 ]\n",
        waits("first"),
        waits("copy"),
    ));
    let go = |name: &str| fs::write(folder.path().join(format!("go-{name}")), "").expect("a file");
    let mut run = tow(folder.path(), &[], &["run"]);
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tow");
    while !folder.path().join("began").exists() {
        std::thread::yield_now();
    }
    let mut logs = tow(folder.path(), &[], &["logs", "copy", "--follow"]).spawn().expect("tow");
    let mut out = BufReader::new(logs.stdout.take().expect("its output"));
    let mut said = BufReader::new(logs.stderr.take().expect("its output"));

    let mut line = String::new();
    said.read_line(&mut line).expect("a sentence");
    assert!(line.contains("`copy` waits for `first`"), "{line:?}");
    go("first");
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    assert_eq!(line, "attempt-1\n", "it arrives while the job runs");
    go("copy");

    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "attempt-2\n");
    assert_eq!(logs.wait().expect("an end").code(), Some(0));
    assert_eq!(run.wait().expect("an end").code(), Some(0));
}

#[test]
fn following_shows_the_rest_when_the_process_of_the_run_has_ended_meanwhile() {
    let folder = folder_with(
        "stages: [s]\njobs:\n  copy:\n    stage: s\n    command: 'echo begun; until [ -e go ]; do \
         sleep 0.01; done; echo done'\n",
    );
    let mut run = tow(folder.path(), &[], &["run"]);
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tow");
    let mut logs = follows_once_it_runs(folder.path(), "copy");
    let mut out = BufReader::new(logs.stdout.take().expect("its output"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    assert_eq!(line, "begun\n");

    // While it is stopped, the run and with it the server that it asks come to their end.
    let pid = Pid::from_raw(i32::try_from(logs.id()).expect("a pid"));
    kill(pid, Signal::SIGSTOP).expect("it runs");
    fs::write(folder.path().join("go"), "").expect("a file");
    assert_eq!(run.wait().expect("an end").code(), Some(0));
    kill(pid, Signal::SIGCONT).expect("it is stopped");

    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "done\n", "nothing is missing and nothing comes twice");
    assert_eq!(logs.wait().expect("an end").code(), Some(0));
}

#[test]
fn following_a_job_whose_process_is_killed_does_not_say_that_it_is_over() {
    let folder = folder_with(
        "stages: [s]\njobs:\n  copy: {stage: s, command: 'touch here; echo begun; while [ -e here ]; \
         do sleep 0.01; done'}\n",
    );
    let mut run = tow(folder.path(), &[], &["run"]);
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tow");
    let mut logs = follows_once_it_runs(folder.path(), "copy");
    let mut out = BufReader::new(logs.stdout.take().expect("its output"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");

    run.kill().expect("it runs");
    run.wait().expect("an end");

    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("text");
    assert_eq!((line.as_str(), rest.as_str()), ("begun\n", ""));
    assert_eq!(logs.wait().expect("an end").code(), Some(42));
    fs::remove_file(folder.path().join("here")).expect("the script outlives its worker");
}

#[test]
fn following_notices_a_process_that_is_stopped_and_goes_on_with_it() {
    let folder = folder_with(
        "stages: [s]\njobs:\n  copy:\n    stage: s\n    command: 'echo begun; until [ -e go ]; do \
         sleep 0.01; done; echo done'\n",
    );
    let mut run = tow(folder.path(), &[], &["run"]);
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tow");
    let mut logs = follows_once_it_runs(folder.path(), "copy");
    let mut out = BufReader::new(logs.stdout.take().expect("its output"));
    let mut said = BufReader::new(logs.stderr.take().expect("its output"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    assert_eq!(line, "begun\n");

    // Its socket still accepts connections, and the one that is there stays open.
    let pid = Pid::from_raw(i32::try_from(run.id()).expect("a pid"));
    kill(pid, Signal::SIGSTOP).expect("it runs");
    let mut line = String::new();
    said.read_line(&mut line).expect("a sentence");
    assert!(line.contains("does not answer any more; connecting again"), "{line:?}");
    kill(pid, Signal::SIGCONT).expect("it is stopped");
    fs::write(folder.path().join("go"), "").expect("a file");

    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "done\n", "nothing is missing and nothing comes twice");
    assert_eq!(logs.wait().expect("an end").code(), Some(0));
    assert_eq!(run.wait().expect("an end").code(), Some(0));
}

/// `tow logs --follow` of a job, begun once there is a run to follow.
fn follows_once_it_runs(folder: &Path, job: &str) -> Child {
    while !tow(folder, &[], &["status"]).output().expect("tow").status.success() {
        std::thread::yield_now();
    }
    tow(folder, &[], &["logs", job, "--follow"]).spawn().expect("tow")
}

#[test]
fn the_last_lines_can_be_shown_alone() {
    let folder = folder_with("stages: [s]\njobs:\n  a: {stage: s, command: 'seq 1 9'}\n");
    assert_eq!(ended(&mut tow(folder.path(), &[], &["run"])).status.code(), Some(0));
    for follow in [&["--follow"][..], &[]] {
        let args = [&["logs", "a", "--tail", "2"][..], follow].concat();
        let shown = ended(&mut tow(folder.path(), &[], &args));
        assert_eq!(shown.status.code(), Some(0), "{}", err(&shown));
        assert_eq!(String::from_utf8_lossy(&shown.stdout), "8\n9\n");
    }
}
