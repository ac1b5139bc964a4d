//! What `tow` says at gates that want more than any one person.

use super::{App, said};

const FOUR_EYES: &str = "\
stages: [s]
jobs:
  switch: {stage: s, command: 'true', when: manual, gate: {min: 2, not: [requester]}}
";

#[test]
fn an_approval_says_whom_the_gate_still_waits_for() {
    let app = App::with(&[("towpath.yml", FOUR_EYES)]);
    let of = |actor: &str, args: &[&str]| said(app.command(args).env("TOW_ACTOR", actor));
    let run = of("human:ana", &["run"]);
    assert_eq!(run.code, 12, "{}", run.err);
    assert!(run.err.contains("It wants 2 people, not the requester."), "{}", run.err);

    let own = of("human:ana", &["approve"]);
    assert_eq!(own.code, 41);
    assert!(own.err.contains("error[APPROVER_IS_REQUESTER]"), "{}", own.err);
    let first = of("human:bob", &["approve"]);
    assert_eq!(first.code, 0, "{}", first.err);
    let waits = "1 of 2 approvals, by human:bob; waits for one more person, not the requester.";
    assert!(first.err.contains(waits), "{}", first.err);
    let board = of("human:bob", &["status"]);
    assert_eq!(board.code, 12);
    assert!(board.out.contains("gate, 1 of 2 approvals"), "{}", board.out);
    let last = of("human:cleo", &["approve"]);
    assert!(last.err.contains("Opened the gate of `switch`."), "{}", last.err);
    assert_eq!(of("human:ana", &["resume"]).code, 0);
}

#[test]
fn a_file_without_authors_begins_no_run_that_excludes_them() {
    let text = FOUR_EYES.replace("requester", "author");
    let app = App::with(&[("towpath.yml", &text)]);
    let run = said(&mut app.command(&["run"]));
    assert_eq!(run.code, 6);
    assert!(run.err.contains("The authors of `towpath.yml` are unknown: "), "{}", run.err);
    assert!(run.err.contains("error[AUTHORS_UNKNOWN]"), "{}", run.err);
}
