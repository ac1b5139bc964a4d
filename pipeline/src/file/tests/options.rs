//! The options of a job: what arrives in the plan, and which values are refused where.

use super::*;

#[test]
fn every_option_of_a_job_arrives_in_the_plan() {
    let text = "\
version: 1
name: shop
timeout: 2h
env: {MODE: full, LEVEL: 1}
defaults: {retry: 1, timeout: 5m, shell: bash, tags: eu, on_failure: abort}
stages: [one]
jobs:
  check: {stage: one, command: x}
  a:
    stage: one
    command: [set -e, true]
    shell: [python3, -u, -c]
    needs: check
    when: always
    on_failure: continue
    retry: {max: 3, backoff: 1s, factor: 1.5, backoff_max: 1m, jitter: 20, on: [75, timeout, signal, spawn]}
    timeout: 90
    grace: 0
    env: {MODE: fast, FLAG: no}
    secrets: [TOKEN]
    tags: [us, gpu]
    resource: {name: db, limit: 2}
    if: ${{ needs.check.outcome == 'succeeded' }}
    artifacts: [out/*.csv]
    undo: back
    outputs: [rows]
  gone: {stage: one, command: x, needs: [a], irreversible: true, retry: 0}
";
    let plan = good(text);
    assert_eq!((plan.pipeline.as_str(), plan.timeout_ms), ("shop", Some(7_200_000)));
    let check = &plan.jobs[0];
    assert_eq!(
        (check.timeout_ms, &*check.shell, &*check.tags),
        (Some(300_000), &["bash".to_owned(), "-c".to_owned()][..], &["eu".to_owned()][..])
    );
    assert_eq!(check.retry.as_ref().map(|retry| (retry.max, retry.backoff_ms)), Some((1, 0)));
    assert_eq!(check.on_failure, OnFailure::Abort);
    let a = &plan.jobs[1];
    assert_eq!(
        (&*a.script, a.when, a.on_failure),
        ("set -e\ntrue", When::Always, OnFailure::Continue)
    );
    assert_eq!(
        a.retry,
        Some(RetryPolicy {
            max: 3,
            backoff_ms: 1_000,
            factor_percent: 150,
            backoff_max_ms: 60_000,
            jitter_percent: 20,
            on: vec![RetryOn::ExitCode(75), RetryOn::Timeout, RetryOn::Signal, RetryOn::Spawn],
        })
    );
    assert_eq!((a.timeout_ms, a.grace_ms), (Some(90_000), Some(0)));
    let env = [("FLAG", "no"), ("LEVEL", "1"), ("MODE", "fast")];
    assert_eq!(a.env, BTreeMap::from(env.map(|(k, v)| (k.to_owned(), v.to_owned()))));
    assert_eq!(
        (&*a.secrets, &*a.tags),
        (&["TOKEN".to_owned()][..], &["us".to_owned(), "gpu".to_owned()][..])
    );
    assert_eq!(a.resource, Some(Resource { name: "db".to_owned(), limit: 2 }));
    assert_eq!(a.condition.as_deref(), Some("needs.check.outcome == 'succeeded'"));
    assert_eq!((a.undo.as_deref(), &*a.artifacts), (Some("back"), &["out/*.csv".to_owned()][..]));
    assert!(plan.jobs[2].irreversible && plan.jobs[2].retry.is_none());
}

#[test]
fn values_of_the_wrong_kind_are_refused_where_they_stand() {
    let wrong = [
        ("retry: 1e9", "VALUE_TYPE"),
        ("retry: 1000000000", "VALUE_RANGE"),
        ("retry: 101", "VALUE_RANGE"),
        ("retry: '2'", "VALUE_TYPE"),
        ("retry: {backoff: 1s}", "KEY_MISSING"),
        ("retry: {max: 1, backoff: 2m, backoff_max: 1m}", "VALUE_RANGE"),
        ("retry: {max: 1, factor: 0.5}", "VALUE_RANGE"),
        ("retry: {max: 1, factor: .inf}", "VALUE_TYPE"),
        ("retry: {max: 1, on: [0]}", "VALUE_RANGE"),
        ("retry: {max: 1, on: [signl]}", "VALUE_UNKNOWN"),
        ("timeout: soon", "VALUE_RANGE"),
        ("timeout: 0", "VALUE_RANGE"),
        ("irreversible: yes", "VALUE_TYPE"),
        ("irreversible: 'true'", "VALUE_TYPE"),
        ("needs: {b: c}", "VALUE_TYPE"),
        ("needs: [[b]]", "VALUE_TYPE"),
        ("needs: ", "VALUE_TYPE"),
        ("env: [A]", "VALUE_TYPE"),
        ("env: {A: [b]}", "VALUE_TYPE"),
        ("env: {A: }", "VALUE_TYPE"),
        ("env: {'A=B': c}", "ENV_NAME"),
        ("env: {'': c}", "ENV_NAME"),
        ("env: {TOW_RUN: c}", "ENV_NAME"),
        ("secrets: [a b]", "SECRET_NAME"),
        ("secrets: [TOW_X]", "SECRET_NAME"),
        ("secrets: [A, A]", "SECRET_NAME"),
        ("secrets: [A], env: {A: b}", "SECRET_NAME"),
        ("resource: {name: x, limit: 0}", "VALUE_RANGE"),
        ("resource: {limit: 1}", "KEY_MISSING"),
        ("outputs: [a b]", "NAME_MALFORMED"),
        ("tags: ['']", "NAME_MALFORMED"),
        ("prefer: {ssd: 0}", "VALUE_RANGE"),
        ("prefer: {ssd: 101}", "VALUE_RANGE"),
        ("prefer: {ssd: much}", "VALUE_TYPE"),
        ("prefer: {'': 1}", "NAME_MALFORMED"),
        ("prefer: [ssd]", "VALUE_TYPE"),
        ("shell: []", "KEY_MISSING"),
        ("artifacts: [/etc/passwd]", "ARTIFACT_PATH"),
        ("artifacts: [a/../../b]", "ARTIFACT_PATH"),
        ("grace: [1s]", "VALUE_TYPE"),
        ("undo: {}", "VALUE_TYPE"),
        ("matrix: [1]", "VALUE_TYPE"),
        ("env: {A: \"\\0\"}", "CHARACTER_REFUSED"),
    ];
    for (option, code) in wrong {
        assert_eq!(codes(&job(option)), [code], "{option}");
    }
}

#[test]
fn missing_required_keys_are_named() {
    assert_eq!(codes(""), ["FILE_EMPTY"]);
    assert_eq!(codes("# nothing\n"), ["FILE_EMPTY"]);
    assert_eq!(codes("~"), ["FILE_EMPTY"]);
    assert_eq!(codes("[]"), ["VALUE_TYPE"]);
    assert_eq!(codes("{}"), ["KEY_MISSING", "KEY_MISSING"]);
    assert_eq!(codes("stages: []\njobs: {}\n"), ["STAGE_EMPTY", "JOBS_NONE"]);
    assert_eq!(codes(&jobs("  a:\n")), ["VALUE_TYPE"]);
    assert_eq!(codes(&jobs("  a: {stage: one, command: ''}\n")), ["KEY_MISSING"]);
    assert_eq!(codes(&jobs("  a: {stage: one, command: }\n")), ["VALUE_TYPE"]);
}

#[test]
fn odd_names_are_welcome_and_controls_are_not() {
    let names = ["a:b+c/d", "größe 日本", "a (b)", "#1", "*"];
    for name in names {
        let text = jobs(&format!("  \"{name}\": {{stage: one, command: x}}\n"));
        assert_eq!(good(&text).jobs[0].name.as_str(), name);
    }
    let long = "x".repeat(201);
    for (name, code) in [
        ("", "NAME_MALFORMED"),
        (" a", "NAME_MALFORMED"),
        (&long, "NAME_MALFORMED"),
        ("co\\u200bpy", "NAME_MALFORMED"),
        ("co\\xADpy", "NAME_MALFORMED"),
        ("a\\n", "NAME_MALFORMED"),
        ("${{ matrix.x }}", "NAME_MALFORMED"),
    ] {
        let text = jobs(&format!("  \"{name}\": {{stage: one, command: x}}\n"));
        assert!(codes(&text).iter().any(|found| found == code), "{name}: {:?}", codes(&text));
    }
    assert_eq!(bad("a: \u{1b}[2J\n"), ["CHARACTER_REFUSED 1:4"]);
}

#[test]
fn a_resource_has_one_limit() {
    let text = jobs(
        "  a: {stage: one, command: x, resource: db}\n  b: {stage: one, command: x, resource: {name: db, limit: 2}}\n",
    );
    assert_eq!(bad(&text), ["RESOURCE_LIMITS_DIFFER 4:41"]);
}
