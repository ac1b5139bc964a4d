//! The card of a gate, as people read it.

use towpath_engine::{
    decide::{ApproveGate, Command, Ended, ReportJob, carry_out},
    event::FailureCause,
    gate::{GatePolicy, Identity},
    ids::{Actor, Attempt},
    plan::{JobPlan, When},
    time::Timestamp,
};
use unicode_width::UnicodeWidthStr as _;

use super::*;
use crate::render::tests::{bare, begun, lease};

/// A gate, after `copy` left an output and `report` failed.
fn at_gate(change: impl FnOnce(&mut JobPlan)) -> Run {
    at_gate_after("42; x", change)
}

fn at_gate_after(rows: &str, change: impl FnOnce(&mut JobPlan)) -> Run {
    let mut cutover = JobPlan::new("cutover", "cutover", "true");
    cutover.when = When::Manual;
    cutover.needs = vec!["copy".into()];
    change(&mut cutover);
    let report = JobPlan::new("report", "copy", "true");
    let mut run = begun(vec![JobPlan::new("copy", "copy", "true"), report, cutover]);
    let outputs = [("rows".to_owned(), rows.to_owned())].into();
    end(&mut run, "copy", Ended::Succeeded { outputs, artifacts: Vec::new() });
    end(&mut run, "report", Ended::Failed(FailureCause::ExitCode(3)));
    run
}

fn end(run: &mut Run, job: &str, ended: Ended) {
    lease(run);
    let (job, attempt, worker) = (job.into(), Attempt(1), "local".into());
    let report = ReportJob { job, attempt, worker, ended, ran_ms: 1, captured_output: None };
    let by = Actor::worker("local");
    carry_out(run, &Command::Report(report), &by, Timestamp(2_000)).unwrap();
}

fn card(run: &Run, style: &Style) -> GateCard {
    let job = run.job("cutover").unwrap();
    GateCard::new(run, job, "7f3ca1", style).expect("the gate waits")
}

#[test]
fn a_card_shows_everything_that_will_run() {
    let run = at_gate(|job| {
        job.script = "one\ntwo ${{ needs.copy.outputs.rows }}\n\nfour\nfive\nrm -rf /\n".into();
        job.env = [("ROWS".to_owned(), "${{ needs.copy.outputs.rows }}".to_owned())].into();
        job.secrets = vec!["DB_PASSWORD".to_owned()];
        job.shell = vec!["bash".to_owned(), "-c".to_owned()];
        job.irreversible = true;
    });

    let card = card(&run, &bare(80));

    let digest = card.approval_digest.short();
    assert_eq!(
        card.rows(Some(80)).join("\n"),
        format!(
            "\
‖ cutover waits at its gate.
  IRREVERSIBLE: the effect of this job cannot be undone.
  Failed, skipped or cancelled in this run:
    ✖ report  exit code 3
  Based on:
    ✔ copy  succeeded
        rows=42; x
  Its environment:
    ROWS=42; x
  Its secrets, with values of the worker: DB_PASSWORD
  Its shell: bash -c
  The script as it will run, 6 lines:
     1 │ one
     2 │ two '42; x'
     3 │ 
     4 │ four
     5 │ five
     6 │ rm -rf /
  Approval {digest} covers the plan, this job and all earlier results.
  It does not cover files that the script reads from `/srv`.
  tow approve cutover --run 7f3ca1
  tow reject cutover --run 7f3ca1 --comment WHY"
        )
    );
    assert!(card.missing.is_empty());
    assert_eq!(card.answer("y\n"), Answer::Approve);
}

#[test]
fn rows_are_as_wide_as_the_terminal_and_hold_every_character() {
    let long: String = (0..900).map(|number| char::from(b'a' + number as u8 % 26)).collect();
    let run = at_gate(|job| job.script = format!("{long}\nshort").into());
    for width in [20, 24, 80] {
        let card = card(&run, &bare(width));
        let rows = card.rows(Some(width));

        let script: Vec<&String> =
            rows.iter().filter(|row| row.contains('│') || row.contains('┆')).collect();
        assert!(script.iter().all(|row| row.width() <= width), "{script:#?}");
        let rest = script.iter().take(script.len() - 1);
        let text: String = rest.map(|row| row.split(['│', '┆']).nth(1).unwrap().trim()).collect();
        assert_eq!(text, long);
        assert!(script.last().unwrap().contains("2 │ short"));
    }
}

#[test]
fn nothing_on_a_card_steers_the_terminal() {
    let run = at_gate(|job| job.script = "a\u{1b}[2J\u{202e}b\r\nc\u{200d}d".into());
    let rows = card(&run, &bare(80)).rows(None).join("\n");
    assert!(rows.contains("a␛[2J<U+202E>b␍\n") && rows.contains("c<U+200D>d"), "{rows}");
    assert!(!rows.contains(|c: char| c.is_control() && c != '\n'), "{rows:?}");
}

#[test]
fn what_has_no_value_is_named_and_a_plain_yes_opens_nothing() {
    let script = "run ${{ needs.copy.outputs.other }} ${{ needs.copy.outputs.rows }}";
    let card = card(&at_gate(|job| job.script = script.into()), &bare(80));

    let shown = card.rows(None).join("\n");
    assert!(shown.contains(&format!("1 │ {script}")), "{shown}");
    assert!(shown.contains("NOT SHOWN: 2 placeholders have no value: `command`"), "{shown}");
    assert!(card.question().contains("Type `cutover`"), "{}", card.question());
    let answers = ["y", "YES", "cutover ", "no", "", "Cutover"].map(|line| card.answer(line));
    use Answer::{Approve, Leave, Reject, Unproven};
    assert_eq!(answers, [Unproven, Unproven, Approve, Reject, Leave, Unproven]);
}

#[test]
fn what_does_not_fit_is_counted_and_the_commands_stay() {
    let rows = "x".repeat(1_000);
    let script = "${{ needs.copy.outputs.rows }}\n".repeat(900);
    let run = at_gate_after(&rows, |job| job.script = script.into());
    let card = card(&run, &bare(80));

    let [missing] = &*card.missing else { panic!("{:?}", card.missing) };
    assert!(missing.ends_with("bytes do not fit on the card and are not shown."), "{missing}");
    let rows = card.rows(Some(80));
    assert!(rows.iter().map(String::len).sum::<usize>() < 2 * CARD_BYTES_MAX);
    assert!(rows.last().unwrap().contains("tow reject"), "{:?}", rows.last());
    assert_eq!(card.answer("y"), Answer::Unproven);
}

#[test]
fn a_job_named_like_an_answer_needs_another_word() {
    let mut job = JobPlan::new("Y", "s", "run ${{ needs.a.outputs.b }}");
    job.when = When::Manual;
    let run = begun(vec![job]);
    let card = GateCard::new(&run, run.job("Y").unwrap(), "7f3ca1", &bare(80)).unwrap();
    assert_eq!(card.answer("Y"), Answer::Unproven);
    assert_eq!(card.answer("job Y"), Answer::Approve);
}

#[test]
fn a_card_says_how_many_must_approve_and_who_has() {
    let two = GatePolicy { min: 2, ..GatePolicy::default() };
    let mut run = at_gate(|job| job.gate = Some(two));
    let shown = |run: &Run| card(run, &bare(80)).rows(None).join("\n");
    assert!(shown(&run).contains("\n  It has 0 of 2 approvals.\n"), "{}", shown(&run));

    let JobState::AtGate(approval_digest) = run.job("cutover").unwrap().state else {
        panic!("it waits at its gate")
    };
    let (job, comment) = ("cutover".into(), String::new());
    let approve = ApproveGate { job, approval_digest, comment, identity: Identity::default() };
    let by = Actor::human("bob");
    carry_out(&mut run, &Command::Approve(approve), &by, Timestamp(3_000)).unwrap();

    let expected = "\n  It has 1 of 2 approvals, by human:bob.\n";
    assert!(shown(&run).contains(expected), "{}", shown(&run));
}
