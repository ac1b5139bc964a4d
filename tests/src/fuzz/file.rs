//! Pipeline files and the expressions in them.

use std::collections::BTreeMap;

use towpath_engine::expression::{
    Context, Known, NeedFacts, NeedKnown, check_condition, check_template, evaluate_condition, fill,
};
use towpath_pipeline::file::parse_bytes;

/// A file is a plan, or problems whose places lie within it. Every problem can be drawn.
pub(super) fn yaml(bytes: &[u8]) {
    let parsed = parse_bytes("fuzz", bytes);
    assert_eq!(parsed, parse_bytes("fuzz", bytes), "the same bytes mean something else");
    // Bytes that are no text have no lines to be drawn in.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Err(problems) = parsed else { return };
    assert!(problems.errors() > 0, "a file without an error is refused");
    for problem in &problems.list {
        let inside = problem.span.start <= problem.span.end && problem.span.end <= text.len();
        assert!(inside, "{} is at {:?} of {} bytes", problem.code, problem.span, text.len());
    }
    // One drawing of each kind: drawing all of five hundred problems would be all that is tested.
    for problem in problems.list.iter().take(3) {
        let drawn = problem.render("fuzz", text, false, Some(80));
        let moves = drawn.contains(|c: char| c.is_control() && c != '\n');
        assert!(!moves, "a drawing moves the cursor: {drawn:?}");
    }
    for place in problems.json(text) {
        assert!(place.line >= 1 && place.column >= 1);
        assert!((place.line, place.column) <= (place.end_line, place.end_column));
    }
}

/// The first line is a condition, the rest a text. What was checked can be evaluated: if that fails,
/// then because a value does not fit, and never by a panic.
pub(super) fn expression(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (condition, template) = text.split_once('\n').unwrap_or((text, ""));
    let names = ["a".to_owned(), "key".to_owned()];
    let need = |_: &str| NeedKnown::Before(None);
    let known = Known { need: &need, matrix: &names, env: Some(&names) };
    let context = context();
    if let Err(problems) = check_condition(condition, &known) {
        assert!(problems.iter().all(|problem| problem.range.end <= condition.len()));
    }
    if let Ok((_, inputs)) = evaluate_condition(condition, &context) {
        // What is recorded with the answer is what decides it.
        assert_eq!(
            evaluate_condition(condition, &context).ok().map(|(_, again)| again),
            Some(inputs)
        );
    }
    match check_template(template, &known) {
        Ok(()) => drop(fill(template, &context)),
        Err(problems) => {
            assert!(problems.iter().all(|problem| problem.range.end <= template.len()));
        }
    }
}

fn context() -> Context {
    let value = |value: &str| BTreeMap::from([("a".to_owned(), value.to_owned())]);
    let facts = NeedFacts { outcome: "succeeded".to_owned(), outputs: value("12") };
    Context {
        needs: BTreeMap::from([("a".into(), facts)]),
        matrix: value("eu"),
        env: value(""),
        run_id: "r".to_owned(),
        pipeline: "p".to_owned(),
    }
}
