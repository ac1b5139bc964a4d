//! A pipeline file: YAML in, a [`Plan`] out, or everything that is wrong with it at once.
//!
//! The text becomes a tree that knows its places (`tree`), the tree becomes job templates
//! (`read`, `job`, `options`), matrices multiply them (`matrix`), and the whole is checked
//! (`check`). Which keys there are is in `schema`, how problems are drawn in `diagnostics`.

mod characters;
mod check;
mod duration;
mod found;
mod gate;
mod job;
mod lints;
mod matrix;
mod options;
mod read;
mod tree;

use crate::{
    diagnostics::{Diagnostic, Diagnostics, Severity, shown},
    schema::FILE_KEYS,
};
use towpath_engine::{
    ids::StageName,
    plan::{JOBS_MAX, PLAN_BYTES_MAX, Plan},
};

use found::Found;
use job::{Defaults, Template};
use read::{Fields, Placed, Reader};
use tree::Node;

pub use check::{JOB_BYTES_MAX, NEEDS_MAX};
pub use duration::{DURATION_MS_MAX, duration_ms};

/// Largest file, in bytes. Source: 10,000 jobs have about two million.
pub const FILE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most stages. Source: each is a barrier, and no pipeline needs more.
pub const STAGES_MAX: usize = 1_000;
/// The versions of the format, which is one, in its two spellings.
const VERSIONS: [&str; 2] = ["1.0", "1"];

/// A file that can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What it means.
    pub plan: Plan,
    /// What it probably should not mean.
    pub warnings: Vec<Diagnostic>,
}

/// The plan of a file's bytes. `file_name` is what the pipeline is called if it has no `name`.
pub fn parse_bytes(file_name: &str, bytes: &[u8]) -> Result<Parsed, Diagnostics> {
    let text = characters::text(bytes).map_err(|problem| Diagnostics::of(vec![*problem]))?;
    parse(file_name, text)
}

/// The plan of a file's text, or every error and warning there is.
pub fn parse(file_name: &str, text: &str) -> Result<Parsed, Diagnostics> {
    // Before anything else is read: every later step costs time or memory in proportion to the
    // text.
    if text.len() > FILE_BYTES_MAX {
        return Err(Diagnostics::of(vec![characters::too_large(text.len())]));
    }
    let characters = characters::refused(text);
    // Refused before the YAML is read, so that no later message can repeat such a character to a
    // terminal.
    if !characters.is_empty() {
        return Err(Diagnostics::of(characters));
    }
    let mut found = Found::default();
    let tree = tree::tree(text, &mut found);
    let mut reader = Reader::new(text, found);
    let plan = match &tree {
        // A file of comments only has a root that is null; it is reported as empty, not as a value
        // of the wrong type.
        Some(root) if !read::is_null(root) => file(&mut reader, file_name, root),
        Some(_) | None => {
            // Unreadable YAML gives no tree either, and has its own message already.
            if reader.found.is_empty() {
                let problem = Diagnostic::error("FILE_EMPTY", &(0..0), "the file is empty");
                reader.found.push(problem.help("a pipeline has at least `stages` and `jobs`"));
            }
            None
        }
    };
    let has_errors = reader.found.list().iter().any(|problem| problem.severity == Severity::Error);
    match plan {
        // A plan is returned only without errors: a run must not begin with a plan that the reader
        // had to guess in part.
        Some(plan) if !has_errors => Ok(Parsed { plan, warnings: reader.found.sorted().list }),
        Some(_) | None => Err(reader.found.sorted()),
    }
}

fn file<'t>(reader: &mut Reader<'t>, file_name: &str, root: &Node<'t>) -> Option<Plan> {
    let fields = reader.fields(root, &FILE_KEYS, "the file", &(0..0))?;
    if let Some(node) = fields.get("version") {
        version(reader, node);
    }
    let name = fields.get("name").and_then(|node| reader.name(node, "`name`"));
    let pipeline = name.map_or_else(|| base_name(file_name).to_owned(), |name| name.value);
    let timeout_ms = fields.get("timeout").and_then(|node| reader.duration(node, "`timeout`", 1));
    let stages = stages(reader, &fields);
    let mut defaults = match fields.get("defaults") {
        Some(node) => job::defaults(reader, node),
        None => Defaults::default(),
    };
    // The file's `env` is not a key of `defaults`, but jobs inherit it in the same way.
    if let Some(node) = fields.get("env") {
        defaults.env = job::environment(reader, node);
    }
    let templates = templates(reader, &fields, &defaults);
    // `None` ends the reading: with too many jobs every later check would take too long, and its
    // messages would repeat this one.
    let jobs = expanded(reader, &templates)?;
    let names = stages.iter().map(|stage| StageName::from(&*stage.value)).collect();
    let frame = Plan { pipeline, stages: names, jobs: Vec::new(), timeout_ms };
    let plan = check::plan(reader, &templates, jobs, frame);
    if reader.found.is_empty() {
        // A mistake would only draw suspicion on what it touches.
        reader.found.extend(lints::warnings(&plan, &templates, &stages));
    }
    Some(plan)
}

fn version<'t>(reader: &mut Reader<'t>, node: &Node<'t>) {
    let Some(text) = reader.text(node, "`version`") else { return };
    if !VERSIONS.contains(&text) {
        let message = format!("version `{}` is not known", shown(text));
        let problem = Diagnostic::error("VALUE_UNKNOWN", &node.span, message);
        reader.found.push(problem.help("write `version: \"1.0\"`"));
    }
}

/// The file's own name without folder and extension.
fn base_name(file_name: &str) -> &str {
    let name = file_name.rsplit(['/', '\\']).next().unwrap_or(file_name);
    let stem = name.strip_suffix(".yml").or_else(|| name.strip_suffix(".yaml"));
    stem.filter(|stem| !stem.is_empty()).unwrap_or(name)
}

fn stages<'t>(reader: &mut Reader<'t>, fields: &Fields<'_, 't>) -> Vec<Placed<String>> {
    let Some(node) = fields.get("stages") else { return Vec::new() };
    let items = reader.list(node, "`stages`").unwrap_or_default();
    let mut stages: Vec<Placed<String>> = Vec::with_capacity(items.len());
    // Only for a real list: a value of another type has its message already.
    if items.is_empty() && matches!(node.shape, tree::Shape::List(_)) {
        let problem = Diagnostic::error("STAGE_EMPTY", &node.span, "there are no stages");
        reader.found.push(problem.help("list at least one stage, such as `stages: [migrate]`"));
    }
    if items.len() > STAGES_MAX {
        let message = format!("there are more than {STAGES_MAX} stages");
        reader.error("VALUE_RANGE", &node.span, message);
        return stages;
    }
    for item in items {
        let Some(stage) = reader.name(item, "the name of a stage") else { continue };
        // A linear search, because a file has at most 1,000 stages.
        match stages.iter().find(|before| before.value == stage.value) {
            Some(before) => {
                let message = format!("stage `{}` is listed twice", shown(&stage.value));
                let problem = Diagnostic::error("NAME_DUPLICATE", &stage.span, message);
                reader.found.push(problem.label("again here").also(&before.span, "first here"));
            }
            None => stages.push(stage),
        }
    }
    stages
}

fn templates<'t>(
    reader: &mut Reader<'t>,
    fields: &Fields<'_, 't>,
    defaults: &Defaults,
) -> Vec<Template> {
    let Some(node) = fields.get("jobs") else { return Vec::new() };
    let entries = reader.entries(node, "`jobs`").unwrap_or_default();
    if entries.is_empty() && matches!(node.shape, tree::Shape::Map(_)) {
        reader.error("JOBS_NONE", &node.span, "there are no jobs".to_owned());
    }
    entries.iter().map(|entry| job::template(reader, entry, defaults)).collect()
}

/// All jobs, unless they are too many or too large.
fn expanded(reader: &mut Reader<'_>, templates: &[Template]) -> Option<Vec<check::Job>> {
    let count = |template: &Template| {
        template.matrix.as_ref().map_or(1, |matrix| matrix.combinations.len())
    };
    let mut total = 0;
    // Counted before anything is multiplied: a file of some kilobytes can ask for 16 axes of
    // thousands of values.
    for template in templates {
        total += count(template);
        if total > JOBS_MAX {
            let message = format!("the file makes more than {JOBS_MAX} jobs");
            reader.error("JOBS_TOO_MANY", &template.name.span, message);
            return None;
        }
    }
    // One budget for all matrices together, because all of them go into one append.
    let (mut jobs, mut left) = (Vec::new(), PLAN_BYTES_MAX);
    for (number, template) in templates.iter().enumerate() {
        jobs.extend(matrix::expand(reader, number, template, &mut left)?);
    }
    Some(jobs)
}

#[cfg(test)]
mod tests {
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
        let products = "  migrate-products:\n    stage: migrate\n    command: pt migrate run products.yaml\n\n";
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
        let text =
            jobs("  a: {stage: one, command: x, needs: [b]}\n  b: {stage: two, command: x}\n");
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
        assert_eq!(
            (a.undo.as_deref(), &*a.artifacts),
            (Some("back"), &["out/*.csv".to_owned()][..])
        );
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
        let whole =
            parse("towpath.yml", &exclude(|n| format!("{{a: a{}, b: b{}}}", n / 440, n % 440)));
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
        assert_eq!(
            codes(&job(&format!("matrix: {{t: [{axis}], u: [{axis}]}}"))),
            ["JOBS_TOO_MANY"]
        );
        let clash = jobs(
            "  a: {stage: one, command: x, matrix: {t: [1]}}\n  a (1): {stage: one, command: x}\n",
        );
        assert_eq!(codes(&clash), ["NAME_DUPLICATE"]);
        assert_eq!(codes(&job("matrix: {t: [a]}, needs: [a]")), ["NEED_SELF"]);
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
        let env = jobs(
            "  a:\n    stage: one\n    env: {R: \"${{ run.id }}\"}\n    command: echo \"$R\"\n",
        );
        assert_eq!(good(&env).jobs.len(), 1);
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

    #[test]
    fn a_resource_has_one_limit() {
        let text = jobs(
            "  a: {stage: one, command: x, resource: db}\n  b: {stage: one, command: x, resource: {name: db, limit: 2}}\n",
        );
        assert_eq!(bad(&text), ["RESOURCE_LIMITS_DIFFER 4:41"]);
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

    /// A file of one job `a` with `script`, once for each pair of `rows` and `columns` values.
    fn multiplied(script: &str, rows: usize, columns: usize) -> String {
        let values =
            |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
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
}
