//! Matrices: the jobs that they make, and the bounds of what they multiply.

use super::*;

#[test]
fn a_matrix_makes_a_job_of_every_combination() {
    let text = jobs(
        "  copy:
    stage: one
    command: copy ${{ matrix.table }} --into ${{ matrix.db }} ${{ run.id }}
    env: {T: \"<${{ matrix.table }}>\"}
    artifacts: [\"${{ matrix.table }}.csv\"]
    matrix:
      table: [users, order items]
      db: [a, b]
      exclude: [{table: users, db: b}]
      include: [{table: x, db: c}]
  index:
    stage: two
    command: x
    needs: [\"copy (${{ matrix.table }}, a)\"]
    matrix: {table: [users]}
  all: {stage: two, command: x, needs: copy}
  one: {stage: two, command: x, needs: ['copy (x, c)']}
",
    );
    let plan = good(&text);
    let names: Vec<&str> = plan.jobs.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "copy (users, a)",
            "copy (order items, a)",
            "copy (order items, b)",
            "copy (x, c)",
            "index (users)",
            "all",
            "one"
        ]
    );
    assert_eq!(&*plan.jobs[1].script, "copy 'order items' --into a ${{ run.id }}");
    assert_eq!(plan.jobs[1].env["T"], "<order items>");
    assert_eq!(plan.jobs[1].artifacts, ["order items.csv"]);
    assert_eq!(plan.jobs[1].matrix["table"], "order items");
    assert_eq!(plan.jobs[4].needs, ["copy (users, a)".into()]);
    assert_eq!(plan.jobs[5].needs.len(), 4);
    assert_eq!(plan.jobs[6].needs, ["copy (x, c)".into()]);
}

#[test]
fn a_matrix_that_takes_long_to_read_is_refused_before_it_does() {
    let list = |prefix: &str, count: usize| {
        (0..count).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>().join(", ")
    };
    let axes = format!("a: [{}]\n      b: [{}]", list("a", 440), list("b", 440));
    let entries = |entry: fn(usize) -> String| {
        (0..1_000).map(|n| format!("        - {}\n", entry(n))).collect::<String>()
    };
    let exclude = |entry: fn(usize) -> String| {
        let head = "  j:\n    stage: one\n    command: x\n    matrix:\n      ";
        jobs(&format!("{head}{axes}\n      exclude:\n{}", entries(entry)))
    };

    let found = codes(&exclude(|_| "{a: none}".to_owned()));
    assert!(found.iter().filter(|code| *code == "MATRIX_SHAPE").count() <= 52, "{found:?}");
    // Entries with a value of every axis are looked up, however many they are.
    let whole = parse("towpath.yml", &exclude(|n| format!("{{a: a{}, b: b{}}}", n / 440, n % 440)));
    assert_eq!(whole.map(|parsed| parsed.plan.jobs.len()).ok(), Some(440 * 440 - 1_000));
}

#[test]
fn a_matrix_that_makes_no_sense_is_refused() {
    let wrong = [
        "{}",
        "{t: []}",
        "{t: [a, a]}",
        "{'a b': [1]}",
        "{t: [a], exclude: [{t: b}]}",
        "{t: [a], exclude: [{u: a}]}",
        "{t: [a], include: [{t: a}]}",
        "{t: [a], u: [b], include: [{t: c}]}",
    ];
    for matrix in wrong {
        let found = codes(&job(&format!("matrix: {matrix}")));
        assert_eq!(found[0], "MATRIX_SHAPE", "{matrix}: {found:?}");
    }
    assert_eq!(codes(&job("matrix: {t: [[1]]}"))[0], "VALUE_TYPE");
    let axis: Vec<String> = (0..600).map(|n| n.to_string()).collect();
    let axis = axis.join(", ");
    assert_eq!(codes(&job(&format!("matrix: {{t: [{axis}], u: [{axis}]}}"))), ["JOBS_TOO_MANY"]);
    let clash = jobs(
        "  a: {stage: one, command: x, matrix: {t: [1]}}\n  a (1): {stage: one, command: x}\n",
    );
    assert_eq!(codes(&clash), ["NAME_DUPLICATE"]);
    assert_eq!(codes(&job("matrix: {t: [a]}, needs: [a]")), ["NEED_SELF"]);
}

#[test]
fn two_matrices_cannot_need_each_other_without_bound() {
    let values: Vec<String> = (0..1_100).map(|n| n.to_string()).collect();
    let values = values.join(", ");
    let text = jobs(&format!(
        "  a: {{stage: one, command: x, matrix: {{t: [{values}]}}}}\n  b: {{stage: one, command: x, needs: a, matrix: {{t: [{values}]}}}}\n"
    ));
    assert_eq!(codes(&text), ["NEEDS_TOO_MANY"]);
}

/// A file of one job `a` with `script`, once for each pair of `rows` and `columns` values.
fn multiplied(script: &str, rows: usize, columns: usize) -> String {
    let values = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let (rows, columns) = (values(rows), values(columns));
    jobs(&format!(
        "  a:\n    stage: one\n    command: '{script}'\n    matrix:\n      x: [{rows}]\n      y: [{columns}]\n"
    ))
}

#[test]
fn a_plan_is_bounded_before_its_jobs_are_multiplied() {
    let text = multiplied(&"x".repeat(32_000), 450, 440);
    assert!(text.len() < 40_000, "{} bytes of file", text.len());
    assert_eq!(codes(&text), ["PLAN_TOO_LARGE"]);
    // A value that stands in a script many times makes the jobs long, not their template.
    let long = "v".repeat(150);
    let script = format!("echo{}", " ${{ matrix.x }}".repeat(2_000));
    let values: Vec<String> = (0..200).map(|n| format!("{long}{n}")).collect();
    let text = jobs(&format!(
        "  a:\n    stage: one\n    command: '{script}'\n    matrix: {{x: [{}]}}\n",
        values.join(", ")
    ));
    assert_eq!(codes(&text), ["PLAN_TOO_LARGE"]);
    // Values are copied for every combination, before there is any job.
    let axes = (0..16).map(|axis| format!("      x{axis}: [{long}0, {long}1]\n"));
    let axes = axes.collect::<String>();
    let text = jobs(&format!("  a:\n    stage: one\n    command: x\n    matrix:\n{axes}"));
    assert_eq!(codes(&text), ["PLAN_TOO_LARGE"]);
}

#[test]
fn the_jobs_of_a_matrix_share_their_script() {
    let plan = good(&multiplied(&"x".repeat(1_000), 20, 20));
    let copies: std::collections::BTreeSet<_> =
        plan.jobs.iter().map(|job| job.script.as_ptr()).collect();
    assert_eq!((plan.jobs.len(), copies.len()), (400, 1));
}
