//! Jobs as `tow run` runs them: much output, odd files and many jobs at once, on one machine.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Longest time a run of this file may take, in seconds.
const WITHIN_SECONDS: &str = "120";

/// What one call came to.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

/// `tow` in `folder`, with nothing of the environment but what it needs. A run that hangs is ended.
fn tow(folder: &Path, args: &[&str]) -> Said {
    tow_started_by(&[], folder, args)
}

/// `tow` as [`tow`], started by the words of `before`.
fn tow_started_by(before: &[&str], folder: &Path, args: &[&str]) -> Said {
    let output = Command::new("timeout")
        .args(["--signal=KILL", WITHIN_SECONDS])
        .args(before)
        .arg(snapbox::cmd::cargo_bin!("tow"))
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder)
        .env("USER", "ana")
        .stdin(Stdio::null())
        .output()
        .expect("tow runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A folder with a pipeline file.
fn folder_with(pipeline: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("towpath.yml"), pipeline).expect("a file");
    folder
}

#[test]
fn a_later_job_of_a_slot_prints_more_than_a_pipe_holds() {
    let folder = folder_with(
        r#"
stages: [a, b]
jobs:
  one: {stage: a, command: "true"}
  two: {stage: b, command: "seq 1 20000"}
"#,
    );

    let run = tow(folder.path(), &["run"]);

    assert_eq!(run.code, Some(0), "{}{}", run.out, run.err);
    let logs = tow(folder.path(), &["logs", "two"]);
    let wanted: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert!(logs.out == wanted, "{} bytes, {}", logs.out.len(), logs.err);
}

/// `tow` as [`tow`], in a shell that first carries out `limits`.
fn tow_within(limits: &str, folder: &Path, args: &[&str]) -> Said {
    tow_started_by(&["sh", "-c", &format!(r#"{limits}; exec "$0" "$@""#)], folder, args)
}

/// A pipeline of `count` jobs that run beside each other, if they may.
fn beside_each_other(count: usize) -> String {
    let job = |n| format!("  j{n}: {{stage: a, command: \"sleep 1; ulimit -n\"}}\n");
    let jobs: String = (0..count).map(job).collect();
    format!("stages: [a]\njobs:\n{jobs}")
}

#[test]
fn more_jobs_than_files_may_be_open_run_after_each_other() {
    let folder = folder_with(&beside_each_other(80));

    let run = tow_within("ulimit -n 300", folder.path(), &["run", "-p", "80"]);

    assert_eq!(run.code, Some(0), "{}{}", run.out, run.err);
    let said = "At most 34 jobs run at once instead of 80: this process may have 300 files open";
    assert_eq!(run.err.matches(said).count(), 1, "{}", run.err);
}

#[test]
fn a_low_soft_limit_of_open_files_is_raised_for_tow_and_stays_for_its_jobs() {
    let folder = folder_with(&beside_each_other(40));

    let run = tow_within("ulimit -S -n 130", folder.path(), &["run", "-p", "40"]);

    assert_eq!(run.code, Some(0), "{}{}", run.out, run.err);
    assert!(!run.err.contains("jobs run at once"), "{}", run.err);
    assert_eq!(tow(folder.path(), &["logs", "j39"]).out, "130\n");
}

#[test]
fn an_artifact_of_an_odd_name_fails_its_own_job_and_no_other_run() {
    let folder = folder_with(
        r#"
stages: [s]
jobs:
  odd: {stage: s, command: "mkdir out; printf x > \"out/$(printf 'a\\tb')\"", artifacts: ["out/*"]}
"#,
    );
    let innocent = "stages: [s]\njobs: {fine: {stage: s, command: echo fine}}\n";
    fs::write(folder.path().join("innocent.yml"), innocent).expect("a file");

    let odd = tow(folder.path(), &["run"]);
    let fine = tow(folder.path(), &["run", "innocent.yml"]);

    assert_eq!(odd.code, Some(10), "{}{}", odd.out, odd.err);
    let said = odd.out + &odd.err;
    assert!(said.contains("out/a\\tb") && said.contains("control character"), "{said}");
    assert_eq!(fine.code, Some(0), "{}{}", fine.out, fine.err);
    assert_eq!(tow(folder.path(), &["logs", "fine"]).out, "fine\n");
}

#[test]
fn each_step_of_a_run_is_one_line_of_the_programs_log() {
    let folder = folder_with("stages: [s]\njobs:\n  a: {stage: s, command: 'true'}\n");

    let said = tow_started_by(&["env", "TOW_LOG=info"], folder.path(), &["run"]);

    assert_eq!(said.code, Some(0), "{}", said.err);
    for line in ["worker connected", "run created", "run finished"] {
        assert_eq!(said.err.matches(line).count(), 1, "{line}: {}", said.err);
    }
}
