//! How `tow` ends when the store fails, or its output has no reader.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::pty::program;

/// How long anything may take on a busy machine.
const WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn folder_with(yaml: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("towpath.yml"), yaml).expect("a file");
    folder
}

/// `tow` in `folder`, started by the words of `before` (a tracer, or none).
pub(crate) fn tow(folder: &Path, before: &[&str], args: &[&str]) -> Command {
    let own = program();
    let mut words = before.iter().map(AsRef::as_ref).chain([own.as_os_str()]);
    let mut command = Command::new(words.next().expect("a program"));
    command
        .args(words)
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder)
        .env("USER", "ana")
        .env("TOW_STORE", format!("sled:{}", folder.join("store").display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The end of `command`, which must come.
pub(crate) fn ended(command: &mut Command) -> Output {
    let mut child = command.spawn().expect("it starts");
    let until = Instant::now() + WITHIN;
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > until {
            drop(child.kill());
            let output = child.wait_with_output().expect("its output");
            panic!("it did not end: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::yield_now();
    }
    child.wait_with_output().expect("its output")
}

pub(crate) fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_failed_commit_ends_the_run_for_every_requester() {
    let traces = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    if !traces.is_ok_and(|output| output.status.success()) {
        drop(writeln!(std::io::stderr(), "skipped: no strace here that may trace"));
        return;
    }
    let folder = folder_with("stages: [s]\njobs:\n  a: {stage: s, command: 'true'}\n");
    let db = folder.path().join("store/sled/db").display().to_string();
    // The first commit is the run itself; the second, that of a lease, belongs to no request.
    let tracer = ["strace", "-f", "-o", "/dev/null", "-P", &db, "-e", "trace=fdatasync"];
    let tracer = [&tracer[..], &["-e", "inject=fdatasync:error=EIO:when=2"]].concat();

    let run = ended(&mut tow(folder.path(), &tracer, &["run"]));

    assert_eq!(run.status.code(), Some(8), "{}", err(&run));
    let said = err(&run);
    assert!(
        said.contains("error[STORE_UNAVAILABLE]: the store stopped because a commit"),
        "{said}"
    );
    assert!(said.contains("Input/output error") && said.contains("`tow resume"), "{said}");
    let resumed = ended(&mut tow(folder.path(), &[], &["resume"]));
    assert_eq!(resumed.status.code(), Some(0), "{}", err(&resumed));
}

#[test]
fn a_reader_that_went_away_stops_the_run_as_an_interruption_does() {
    let job = |name: &str| {
        let waits = format!("until [ -e go-{name} ]; do sleep 0.01; done");
        format!("touch {name}-began; {waits}; touch {name}-ended")
    };
    let folder = folder_with(&format!(
        "stages: [s]\njobs:\n  one: {{stage: s, command: '{}'}}\n  two: {{stage: s, needs: [one], \
         command: '{}'}}\n  three: {{stage: s, needs: [two], command: 'true'}}\n",
        job("one"),
        job("two"),
    ));
    let mut child = tow(folder.path(), &[], &["run"]).spawn().expect("tow");
    let mut out = BufReader::new(child.stdout.take().expect("its output"));
    let mut said = BufReader::new(child.stderr.take().expect("its output"));
    // Only once the first job runs: a reader that goes away before that stops the run with no job.
    let mut line = String::new();
    while !line.contains("s/one") {
        line.clear();
        assert_ne!(out.read_line(&mut line).expect("a line"), 0, "the output ended");
    }
    drop(out);
    fs::write(folder.path().join("go-one"), "").expect("a file");

    // What runs may finish, and nothing new begins.
    let mut line = String::new();
    said.read_line(&mut line).expect("a sentence");
    assert!(line.starts_with("The reader of the output has closed it. Stopping: "), "{line:?}");
    fs::write(folder.path().join("go-two"), "").expect("a file");

    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("text");
    assert_eq!(child.wait().expect("an end").code(), Some(130), "{rest}");
    assert!(rest.contains("Stopped. `tow resume "), "{rest}");
    // The second job is given out in the same append as the first one's end, or not at all.
    let exists = |name: &str| folder.path().join(name).exists();
    assert!(exists("one-ended"), "no job is left behind");
    assert_eq!(exists("two-began"), exists("two-ended"), "no job is left behind");
    let resumed = ended(&mut tow(folder.path(), &[], &["resume"]));
    assert_eq!(resumed.status.code(), Some(0), "{}", err(&resumed));
}
