//! Pipeline files, from text to plan: what is read, and which problems are found where.

mod matrix;
mod options;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::diagnostics::{FILE_CODES, LineIndex};
use towpath_engine::plan::{OnFailure, Resource, RetryOn, RetryPolicy, SCRIPT_BYTES_MAX, When};

/// The example of the format that is accepted as it is, with the need it forgets to define.
const SEED: &str = r#"# pulsaride-pipeline.yml
version: "1.0"
stages: [preflight, migrate, validate, cutover]

jobs:
  check-schema:
    stage: preflight
    command: pt preflight customers.yaml --target-url $TGT_URL
    on_failure: abort            # stop everything if schema is incompatible

  migrate-customers:
    stage: migrate
    command: pt migrate run customers.yaml

  migrate-orders:
    stage: migrate
    command: pt migrate run orders.yaml
    needs: [migrate-customers]   # ← table-level ordering

  migrate-order-items:
    stage: migrate
    command: pt migrate run order-items.yaml
    needs: [migrate-orders, migrate-products]

  validate-counts:
    stage: validate
    command: pt validate counts --table customers orders order_items
    needs: [migrate-customers, migrate-orders, migrate-order-items]

  validate-sample:
    stage: validate
    command: pt validate sample --table orders --sample 0.02
    needs: [migrate-orders]

  cutover-gate:
    stage: cutover
    command: pt migrate cutover orders.yaml --verify
    needs: [validate-counts, validate-sample]
    when: manual                 # ← human approval required
    on_failure: abort
"#;

/// A file with these lines as its jobs, indented by four.
fn jobs(text: &str) -> String {
    format!("stages: [one, two]\njobs:\n{text}")
}

/// A file with one job `a`, and these options of it.
fn job(options: &str) -> String {
    jobs(&format!("  a: {{stage: one, command: x, {options}}}\n"))
}

fn good(text: &str) -> Plan {
    match parse("towpath.yml", text) {
        Ok(parsed) => parsed.plan,
        Err(problems) => panic!("{}", problems.render("towpath.yml", text, false, None)),
    }
}

/// Code and place of every problem, as `CODE line:column`.
fn bad(text: &str) -> Vec<String> {
    let list = match parse("towpath.yml", text) {
        Ok(parsed) => parsed.warnings,
        Err(problems) => problems.list,
    };
    let lines = LineIndex::of(text);
    for problem in &list {
        assert!(FILE_CODES.contains(&problem.code), "{}", problem.code);
    }
    let place = |problem: &Diagnostic| {
        let (line, column) = lines.place(problem.span.start);
        format!("{} {line}:{column}", problem.code)
    };
    list.iter().map(place).collect()
}

fn codes(text: &str) -> Vec<String> {
    let first = |words: String| words.split(' ').next().unwrap_or_default().to_owned();
    bad(text).into_iter().map(first).collect()
}

#[test]
fn the_example_of_the_format_has_exactly_one_error() {
    let problems = parse("pulsaride-pipeline.yml", SEED).unwrap_err();

    assert_eq!(bad(SEED), ["NEED_UNKNOWN 23:29"]);
    assert_eq!(problems.summary(), "1 error");
    assert_eq!(
        problems.render("pulsaride-pipeline.yml", SEED, false, Some(100)),
        "\
error[NEED_UNKNOWN]: there is no job `migrate-products`
  --> pulsaride-pipeline.yml:23:29
   |
23 |     needs: [migrate-orders, migrate-products]
   |                             ^^^^^^^^^^^^^^^^ no job of this name
   |
   = help: define a job `migrate-products`, or take it out of `needs`

1 error"
    );
}

#[test]
fn the_example_is_valid_once_the_missing_job_is_there() {
    let products =
        "  migrate-products:\n    stage: migrate\n    command: pt migrate run products.yaml\n\n";
    let text = SEED.replace("  validate-counts:\n", &format!("{products}  validate-counts:\n"));

    let parsed = parse("deploy/pulsaride-pipeline.yml", &text).unwrap();

    assert_eq!(parsed.warnings, []);
    let plan = parsed.plan;
    assert_eq!(plan.pipeline, "pulsaride-pipeline");
    let names: Vec<&str> = plan.jobs.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "check-schema",
            "migrate-customers",
            "migrate-orders",
            "migrate-order-items",
            "migrate-products",
            "validate-counts",
            "validate-sample",
            "cutover-gate"
        ]
    );
    assert_eq!(plan.jobs[0].on_failure, OnFailure::Abort);
    assert_eq!(&*plan.jobs[0].script, "pt preflight customers.yaml --target-url $TGT_URL");
    assert_eq!(plan.jobs[3].needs, ["migrate-orders".into(), "migrate-products".into()]);
    assert_eq!(plan.jobs[7].when, When::Manual);
    assert_eq!(plan.stages.len(), 4);
}

#[test]
fn line_ends_and_byte_order_marks_change_nothing() {
    let plan = good(&job("needs: []"));
    assert_eq!(good(&job("needs: []").replace('\n', "\r\n")), plan);
    assert_eq!(good(&format!("\u{feff}{}", job("needs: []"))), plan);
    assert_eq!(bad(&format!("\u{feff}{}", SEED.replace('\n', "\r\n"))), ["NEED_UNKNOWN 23:29"]);
    assert_eq!(parse_bytes("towpath.yml", job("needs: []").as_bytes()).unwrap().plan, plan);
    assert_eq!(parse_bytes("x", b"\xff\xfe").unwrap_err().list[0].code, "FILE_NOT_UTF8");
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = "\
version: '9'
stage: [one]
stages: [one, one, two]
jobs:
  a:
    stage: onw
    comand: x
    neeeds: [b]
  b:
    stage: one
    command: x
    when: maunal
    retry: -1
    needs: [b, c, c]
  b:
    stage: two
";
    assert_eq!(
        bad(text),
        [
            "VALUE_UNKNOWN 1:10",
            "KEY_UNKNOWN 2:1",
            "NAME_DUPLICATE 3:15",
            "STAGE_UNKNOWN 6:12",
            "KEY_UNKNOWN 7:5",
            "KEY_UNKNOWN 8:5",
            "VALUE_UNKNOWN 12:11",
            "VALUE_RANGE 13:12",
            "NEED_SELF 14:13",
            "NEED_UNKNOWN 14:16",
            "NEED_DUPLICATE 14:19",
            "KEY_DUPLICATE 15:3",
        ]
    );
    let problems = parse("t", text).unwrap_err();
    let help = |at: usize| problems.list[at].help[0].as_str();
    assert_eq!(help(3), "did you mean `one`?");
    assert_eq!(help(4), "did you mean `command`?");
    assert_eq!(help(5), "did you mean `needs`?");
    assert_eq!(help(6), "did you mean `manual`?");
}

#[test]
fn a_need_cannot_lie_in_a_later_stage() {
    let text = jobs("  a: {stage: one, command: x, needs: [b]}\n  b: {stage: two, command: x}\n");
    assert_eq!(bad(&text), ["NEED_LATER 3:39"]);
    let text = jobs("  a: {stage: two, command: x, needs: b}\n  b: {stage: one, command: x}\n");
    assert_eq!(good(&text).jobs[0].needs, ["b".into()]);
}

#[test]
fn every_cycle_is_reported_once_with_its_path() {
    let text = jobs(
        "  a: {stage: one, command: x, needs: [b]}
  b: {stage: one, command: x, needs: [c, a]}
  c: {stage: one, command: x, needs: [a]}
  d: {stage: two, command: x, needs: [e]}
  e: {stage: two, command: x, needs: [d]}
",
    );
    assert_eq!(bad(&text), ["CYCLE 3:39", "CYCLE 6:39"]);
    let problems = parse("t", &text).unwrap_err();
    assert!(problems.list[0].message.ends_with("`a` → `b` → `a`"), "{problems}");
    assert_eq!(problems.list[0].also.len(), 1);
}

#[test]
fn expressions_are_checked_where_they_stand() {
    let text = jobs(
        "  first: {stage: one, command: x, outputs: [rows]}
  other: {stage: one, command: x}
  fan: {stage: one, command: x, matrix: {t: [a, b]}}
  second:
    stage: two
    needs: [first, fan]
    command: |
      run ${{ needs.first.outputs.rows }}
      run ${{ needs.first.outputs.row }} ${{ needs.other.outcome }}
      run ${{ needs.fan.outcome }} ${{ needs[\"fan (a)\"].outcome }}
    if: needs.frist.outcome == 'failed' or matrix.x == 'y'
    env: {A: \"${{ run.id }}\", B: \"${{ env.A }}\"}
    tags: [\"${{ run.id }}\"]
    undo: back ${{ env.A }} ${{ (1 }}
",
    );
    assert_eq!(
        bad(&text),
        [
            "EXPRESSION_UNKNOWN 11:15",
            "EXPRESSION_UNKNOWN 11:46",
            "EXPRESSION_UNKNOWN 12:15",
            "EXPRESSION_UNKNOWN 13:9",
            "EXPRESSION_UNKNOWN 13:44",
            "EXPRESSION_UNKNOWN 14:39",
            "EXPRESSION_UNKNOWN 15:5",
            "EXPRESSION_SYNTAX 16:34",
        ]
    );
    let ok = jobs(
        "  a: {stage: one, command: x}\n  b: {stage: one, command: 'x ${{ needs.a.outcome }}', needs: a}\n  c: {stage: one, command: 'x ${{ needs.a.outcome }} {{ y }} ${Z}', needs: b}\n",
    );
    assert_eq!(good(&ok).jobs.len(), 3);
}

#[test]
fn a_value_among_quotes_or_for_another_program_is_refused() {
    let quoted = jobs("  a:\n    stage: one\n    command: echo \"${{ run.id }}\"\n");
    assert_eq!(bad(&quoted), ["EXPRESSION_QUOTED 5:20"]);
    let python = job("shell: python3, undo: 'print(${{ run.id }})'");
    assert_eq!(codes(&python), ["EXPRESSION_SHELL"]);
    let env =
        jobs("  a:\n    stage: one\n    env: {R: \"${{ run.id }}\"}\n    command: echo \"$R\"\n");
    assert_eq!(good(&env).jobs.len(), 1);
}

#[test]
fn what_no_event_can_carry_is_refused() {
    let long = "x".repeat(SCRIPT_BYTES_MAX + 1);
    assert_eq!(
        codes(&jobs(&format!("  a: {{stage: one, command: {long}}}\n"))),
        ["COMMAND_TOO_LONG"]
    );
    let half = "x".repeat(30_000);
    let text = job(&format!("undo: {half}, env: {{A: {half}}}"));
    assert_eq!(codes(&text), ["JOB_TOO_LARGE"]);
    let text = "#".repeat(FILE_BYTES_MAX + 1);
    assert_eq!(codes(&text), ["FILE_TOO_LARGE"]);
}

#[test]
fn suspicious_files_are_warned_about_and_still_run() {
    let text = "stages: [one, empty, two]\njobs:\n  a: {stage: one, command: x, when: manual}\n  b: {stage: two, command: x, when: manual}\n  c: {stage: two, command: x, irreversible: true, undo: y, needs: [a]}\n";
    assert_eq!(bad(text), ["STAGE_EMPTY 1:15", "NEEDS_NOTHING 4:37", "UNDO_POINTLESS 5:57"]);
    assert!(parse("t", text).is_ok());
}

#[test]
fn anchors_and_merges_share_options() {
    let text = "stages: [one]\njobs:\n  a: &a {stage: one, command: x, retry: 2}\n  b: {<<: *a, command: y}\n  c: *a\n";
    let plan = good(text);
    assert_eq!(&*plan.jobs[1].script, "y");
    assert!(plan.jobs.iter().all(|job| job.retry.is_some()));
}

#[test]
fn ten_thousand_jobs_and_a_hundred_thousand_mistakes_are_no_trouble() {
    let mut text = "stages: [one, two]\njobs:\n".to_owned();
    for n in 0..10_000 {
        text.push_str(&format!("  job-{n}:\n    stage: one\n    command: run {n}\n"));
        if n > 0 {
            text.push_str(&format!("    needs: [job-{}]\n", n - 1));
        }
    }
    assert_eq!(good(&text).jobs.len(), 10_000);
    let problems = parse("t", &text.replace("needs: [job-", "needs: [jib-")).unwrap_err();
    assert_eq!(problems.list.len(), 500);
    assert_eq!(problems.left_off, 9_499);
    let circle = text.replace("run 0\n", "run 0\n    needs: [job-9999]\n");
    assert_eq!(codes(&circle), ["CYCLE"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_mutation_of_a_file_makes_the_reader_panic(
        at in 0_usize..1_700, cut in 0_usize..40, junk in "[ -~\n\t{}\\[\\]:&*!|>'\"é]{0,12}",
    ) {
        let at = SEED.floor_char_boundary(at.min(SEED.len()));
        let end = SEED.floor_char_boundary((at + cut).min(SEED.len()));
        let text = format!("{}{junk}{}", &SEED[..at], &SEED[end..]);
        if let Err(problems) = parse("t", &text) {
            prop_assert!(!problems.render("t", &text, true, Some(80)).is_empty());
            prop_assert_eq!(problems.json(&text).len(), problems.list.len());
        }
    }

    #[test]
    fn no_structure_of_known_words_does_either(
        words in prop::collection::vec(prop::sample::select(vec![
            "stages: ", "jobs:\n", "  a:\n", "    stage: ", "    needs: ", "[a, b]\n", "one\n",
            "    matrix: ", "{t: [1, 2]}\n", "    command: ", "x ${{ matrix.t }}\n", "- ", "\n",
            "    if: ", "needs.a.outcome == 'x'\n", "  ? ", "&x ", "*x\n", "<<: ", "~\n", "|\n",
            "    retry: ", "{max: 1}\n", "  b: ", "{}\n", "\"", "'", ": ", "#", "---\n", "...\n",
        ]), 0..40),
    ) {
        let text = words.concat();
        if let Err(problems) = parse("t", &text) {
            prop_assert!(problems.errors() > 0);
            prop_assert!(!problems.render("t", &text, false, None).is_empty());
        }
    }
}
