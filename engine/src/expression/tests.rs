//! Conditions, placeholders and checks of expressions.

mod filling;

use proptest::prelude::*;

use super::*;

fn context() -> Context {
    let facts = |outcome: &str, outputs: &[(&str, &str)]| NeedFacts {
        outcome: outcome.to_owned(),
        outputs: outputs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    Context {
        needs: BTreeMap::from([
            ("copy".into(), facts("succeeded", &[("rows", "12"), ("nasty", "a'; rm -rf / #")])),
            ("check-schema".into(), facts("failed", &[])),
            ("odd: name (a, b)".into(), facts("skipped", &[("n-rows", "7")])),
        ]),
        matrix: BTreeMap::from([("table".to_owned(), "order items".to_owned())]),
        env: BTreeMap::from([("MODE".to_owned(), "full".to_owned())]),
        run_id: "0123456789abcdef".to_owned(),
        pipeline: "shop".to_owned(),
    }
}

fn holds(expr: &str) -> bool {
    evaluate_condition(expr, &context()).unwrap().0
}

fn need(name: &str) -> NeedKnown<'static> {
    match name {
        "copy" => NeedKnown::Before(None),
        "check-schema" => NeedKnown::Before(Some(&[])),
        "late" => NeedKnown::Beside,
        "fan" => NeedKnown::Template("fan (a)".to_owned()),
        _ => NeedKnown::Missing(None),
    }
}

fn faults(expr: &str) -> Vec<(Range<usize>, String)> {
    let (axes, names) = (["table".to_owned()], ["MODE".to_owned()]);
    let known = Known { need: &|name: &str| need(name), matrix: &axes, env: Some(&names) };
    let found = check(expr, &known).err().unwrap_or_default();
    found.into_iter().map(|fault| (fault.range, fault.message)).collect()
}

#[test]
fn a_condition_reads_needs_matrix_environment_and_run() {
    assert!(holds("needs.copy.outcome == 'succeeded' and needs.copy.outputs.rows|int > 10"));
    assert!(holds("needs.check-schema.outcome == \"failed\""));
    assert!(holds("needs[\"odd: name (a, b)\"].outputs.n-rows == '7'"));
    assert!(holds("matrix.table is startingwith('order') and env.MODE in ['full', 'half']"));
    assert!(holds("run.pipeline == 'shop' and run.id|length == 16"));
    assert!(!holds("not true"));
    assert!(holds("needs.copy.outputs.rows | int - 2 == 10"));
}

#[test]
fn a_condition_reads_a_bounded_number_of_values() {
    let known = Known { need: &|name: &str| need(name), matrix: &[], env: None };
    let reading = |count: usize| vec!["needs.copy.outcome != 'x'"; count].join(" or ");

    assert!(check_condition(&reading(CONDITION_READS_MAX), &known).is_ok());
    let errors = check_condition(&reading(CONDITION_READS_MAX + 1), &known).unwrap_err();
    assert_eq!(errors[0].message, "an `if` reads at most 100 values");
    let error = evaluate_condition(&reading(CONDITION_READS_MAX + 1), &context()).unwrap_err();
    assert_eq!(error.message, "an `if` reads at most 100 values");
}

#[test]
fn an_answer_lists_the_facts_it_depends_on() {
    let expr = "needs.copy.outputs.rows|int > 1 or needs['odd: name (a, b)'].outcome == 'x'";

    let (holds, inputs) = evaluate_condition(expr, &context()).unwrap();

    assert!(holds);
    let inputs: Vec<_> = inputs.values.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        inputs,
        [("needs.copy.outputs.rows", "12"), ("needs[\"odd: name (a, b)\"].outcome", "skipped"),]
    );
}

#[test]
fn what_has_no_value_is_an_error_unless_it_is_asked_for() {
    let error = evaluate_condition("needs.copy.outputs.none == ''", &context()).unwrap_err();
    assert_eq!(error.message, "`needs.copy.outputs.none` has no value");
    assert_eq!(error.range, 0..23);

    assert!(holds("needs.copy.outputs.none is not defined"));
    assert!(holds("needs.copy.outputs.none|default('0')|int == 0"));
    assert!(fill("${{ needs.copy.outputs.none }}", &context()).is_err());
}

#[test]
fn a_condition_is_true_or_false_and_never_just_some_text() {
    for expr in ["needs.copy.outputs.rows", "1", "'no'", "none", "[1]"] {
        let error = evaluate_condition(expr, &context()).unwrap_err();
        assert!(error.message.contains("neither true nor false"), "{expr}: {error}");
    }
    let known = Known { need: &|name: &str| need(name), matrix: &[], env: None };
    assert!(check_condition(" needs.copy.outcome ", &known).is_err());
    assert!(check_condition("needs.copy.outcome == 'failed'", &known).is_ok());
}

#[test]
fn unknown_names_are_distinguished_and_located() {
    let told = [
        ("needs.copi.outcome == 'x'", 0..18, "there is no job `copi`"),
        ("needs.late.outcome == 'x'", 0..18, "not among the job's needs"),
        ("needs.fan.outcome == 'x'", 0..17, "such as `fan (a)`"),
        ("true and matrix.tabel == 'x'", 9..21, "only `table`"),
        ("env.MODUS == 'x'", 0..9, "holds no `MODUS`"),
        ("foo == 'x'", 0..3, "nothing is called `foo`"),
        ("needs.copy.rows == 'x'", 0..15, "`needs.JOB.outputs.KEY`"),
        ("run.user == 'x'", 0..8, "`run.pipeline`"),
        ("env.MODE|replace('a','b')", 9..16, "no filter `replace`"),
        ("env.MODE is odd", 12..15, "no test `odd`"),
        ("range(9)", 0..5, "no function `range`"),
    ];
    for (expr, range, words) in told {
        let found = faults(expr);
        assert_eq!(found.len(), 1, "{expr}: {found:?}");
        assert_eq!(found[0].0, range, "{expr}");
        assert!(found[0].1.contains(words), "{expr}: {}", found[0].1);
    }
    let both = faults("needs.a.outcome == needs.b.outcome");
    assert_eq!(both.len(), 2);
    assert!(faults("needs.check-schema.outputs.x == 'y'")[0].1.contains("no output `x`"));
}

#[test]
fn broken_expressions_are_refused_where_they_break() {
    for expr in [
        "",
        "  ",
        "(",
        "1 ==",
        "'open",
        "needs.",
        "needs[0]",
        "needs[env.MODE]",
        "env.MODE()",
        "env.MODE.x",
        "'a' * 9",
        "2 ** 9",
        "{}",
        "a.b",
        "1 +* 2",
        "}}",
        "é",
        "]",
    ] {
        let found = faults(expr);
        assert!(!found.is_empty(), "{expr}");
        assert!(found.iter().all(|(range, _)| range.end <= expr.len()), "{expr}: {found:?}");
    }
    assert!(!faults(&"(".repeat(4_000)).is_empty());
    assert!(!faults(&"x".repeat(5_000)).is_empty());
}

#[test]
fn paths_read_back_as_written() {
    for text in [
        "needs.a-b.outcome",
        "needs[\"a b\"].outputs.x",
        "matrix.t",
        "env.A",
        "run.id",
        "run.pipeline",
        "needs[\"a-\"].outcome",
        "needs[\"a\\\"b\\\\\"].outcome",
    ] {
        assert_eq!(reads(text).unwrap()[0].to_string(), text);
    }
    assert_eq!(template_reads("x ${{ run.id }} ${{ env.A ~ run.id }}").unwrap().len(), 3);
}

proptest! {
    #[test]
    fn nothing_written_makes_the_language_panic(text in "[ -~é\n]{0,60}") {
        let known = Known { need: &|name: &str| need(name), matrix: &[], env: None };
        let _ = check(&text, &known);
        let _ = evaluate_condition(&text, &context());
        let _ = fill(&format!("${{{{{text}}}}}"), &context());
        let _ = misplaced(&format!("{text}${{{{ run.id }}}}{text}"));
    }

    #[test]
    fn likely_tokens_do_not_either(tokens in prop::collection::vec(prop::sample::select(vec![
        "needs", ".", "copy", "outputs", "rows", "[", "]", "\"x\"", "|", "int", "(", ")", "==",
        "and", "not", "is", "defined", "1", "-", "~", ",", "if", "else", "in", "run.id", " ",
        "=", "default", "'", "/", "//", ":", "<", "None", "+"]), 0..20)) {
        let text = tokens.join("");
        let known = Known { need: &|name: &str| need(name), matrix: &[], env: None };
        let _ = check(&text, &known);
        let _ = evaluate_condition(&text, &context());
    }

    #[test]
    fn a_quoted_word_reads_back(value in "[ -~\n\té]{0,40}") {
        let word = quoted(&value).into_owned();
        let read = word.strip_prefix('\'').and_then(|w| w.strip_suffix('\''));
        let read = read.map_or(word.clone(), |inner| inner.replace(r"'\''", "'"));
        prop_assert_eq!(read, value);
    }
}
