//! A run that continues in a terminal: what is said beside the picture, windows that change, and
//! terminals that only watch.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    ends::{ended, err, folder_with, tow},
    pty::Terminal,
};

/// A script that ends once the file `go-NAME` is there.
fn waits(name: &str) -> String {
    format!("touch {name}-began; until [ -e go-{name} ]; do sleep 0.01; done")
}

fn go(folder: &Path, name: &str) {
    fs::write(folder.join(format!("go-{name}")), "").expect("a file");
}

/// Waits until the job `name` runs.
fn began(folder: &Path, name: &str) {
    let until = Instant::now() + Duration::from_secs(60);
    while !folder.join(format!("{name}-began")).exists() {
        assert!(Instant::now() < until, "{name} does not begin");
        std::thread::yield_now();
    }
}

/// A process without a `wait`. Ends with the test.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn other(folder: &Path, args: &[&str]) -> Other {
    let mut command = tow(folder, &[], args);
    Other(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tow"))
}

#[test]
fn a_sentence_stays_above_the_block_and_the_last_picture_is_the_truth() {
    let (one, two) = (waits("one"), waits("two"));
    let folder = folder_with(&format!(
        "stages: [s]\njobs:\n  one: {{stage: s, command: '{one}'}}\n  two: {{stage: s, needs: \
         [one], command: '{two}'}}\n"
    ));
    let mut terminal = Terminal::tow(folder.path(), &["run"], &[]);
    began(folder.path(), "one");
    terminal.expect("1 running");

    terminal.signals(Signal::SIGINT);
    terminal.expect("Ctrl-C again ends what runs.");
    terminal.redraws(3);

    let rows = terminal.rows();
    let place = |text: &str| rows.iter().position(|row| row.contains(text));
    let said = place("Stopping: 1 running job finishes first.");
    let block = place("stopping ");
    assert!(said.is_some() && said < block, "{rows:#?}");
    assert!(block.is_some_and(|row| row + 1 == rows.len()), "the block is below: {rows:#?}");

    go(folder.path(), "one");
    assert_eq!(terminal.ends(), 130);
    let rows = terminal.rows();
    let last = |text: &str| rows.iter().rev().find(|row| row.contains(text)).cloned();
    let jobs = last(" jobs ").expect("the last picture");
    assert!(jobs.contains("1/2 jobs") && !jobs.contains("1 running"), "{rows:#?}");
    assert!(last("Stopped. `tow resume ").is_some(), "{rows:#?}");
    assert!(last("Stopping: 1 running job finishes").is_some(), "{rows:#?}");
    assert!(!folder.path().join("two-began").exists(), "nothing new begins");
}

#[test]
fn a_narrower_window_adds_no_rows_above_it() {
    let folder = folder_with(&format!(
        "stages: [s]\njobs:\n  one: {{stage: s, command: 'echo {}; {}'}}\n",
        "wide ".repeat(20),
        waits("one")
    ));
    let mut terminal = Terminal::tow(folder.path(), &["run"], &[]);
    terminal.expect("wide wide");

    terminal.narrows(40);
    terminal.redraws(2);
    let (rows, scrolled) = (terminal.rows(), terminal.scrolled());
    terminal.redraws(10);

    assert_eq!(terminal.scrolled(), scrolled, "{:#?}", terminal.rows());
    assert_eq!(terminal.rows().len(), rows.len(), "{:#?}", terminal.rows());
    go(folder.path(), "one");
    assert_eq!(terminal.ends(), 0);
}

#[test]
fn a_terminal_that_only_watches_can_be_left() {
    let folder = folder_with(&format!(
        "stages: [s]\njobs:\n  one: {{stage: s, command: '{}'}}\n",
        waits("one")
    ));
    let mut works = other(folder.path(), &["run"]);
    began(folder.path(), "one");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut watches = Terminal::tow(folder.path(), &["resume"], &[]);
        watches.expect("Another process is working on this run; watching it.");

        watches.signals(signal);

        assert_eq!(watches.ends(), 130, "{}", watches.written);
        assert!(watches.written.contains("The run continues. `tow watch "), "{}", watches.written);
    }
    go(folder.path(), "one");
    assert_eq!(works.0.wait().expect("an end").code(), Some(0), "the run was left alone");
}

#[test]
fn a_watcher_continues_a_run_whose_process_was_killed() {
    let job = |name: &str| {
        format!("stages: [s]\njobs:\n  {name}: {{stage: s, command: '{}'}}\n", waits(name))
    };
    let folder = folder_with(&job("one"));
    let mut owner = other(folder.path(), &["run"]);
    began(folder.path(), "one");
    fs::write(folder.path().join("two.yml"), job("two")).expect("a file");
    let works = other(folder.path(), &["run", "two.yml"]);
    began(folder.path(), "two");
    let mut watches = Terminal::tow(folder.path(), &["resume"], &[]);
    watches.expect("Another process is working on this run; watching it.");

    drop(works);

    watches.expect("The process that worked on this run has ended; this one continues.");
    go(folder.path(), "two");
    assert_eq!(watches.ends(), 0, "{}", watches.written);
    go(folder.path(), "one");
    assert_eq!(owner.0.wait().expect("an end").code(), Some(0));
}

#[test]
fn following_the_log_fails_when_its_server_goes_away() {
    let folder = folder_with(&format!(
        "stages: [s]\njobs:\n  one: {{stage: s, command: '{}'}}\n",
        waits("one")
    ));
    let mut owner = other(folder.path(), &["run"]);
    began(folder.path(), "one");
    let mut events = tow(folder.path(), &[], &["events", "--follow"]).spawn().expect("tow");
    let mut out = BufReader::new(events.stdout.take().expect("its output"));
    out.read_line(&mut String::new()).expect("an event");
    let reads = std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));

    go(folder.path(), "one");

    assert_eq!(owner.0.wait().expect("an end").code(), Some(0));
    let output = events.wait_with_output().expect("an end");
    drop(reads.join());
    assert_eq!(output.status.code(), Some(42), "{}", err(&output));
    assert!(err(&output).contains("error[UNREACHABLE]"), "{}", err(&output));
    let once = ended(&mut tow(folder.path(), &[], &["events"]));
    assert_eq!(once.status.code(), Some(0), "without --follow the log has an end");
}
