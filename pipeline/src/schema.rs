//! Every key that a pipeline file can hold, in one table: the reader refuses what is not in it,
//! and editors get it as JSON Schema.
//!
//! What a value means is in `pipeline_file`. Checks that need more than one value, such as
//! whether a need exists, are beyond a schema and only made there.

use serde_json::{Map, Value, json};

use towpath_engine::{
    gate::{APPROVERS_MAX, PEOPLE_MAX},
    plan::{RETRIES_MAX, SCRIPT_BYTES_MAX, WEIGHT_MAX},
};

/// One key of a map.
pub(crate) struct Key {
    /// The key.
    pub name: &'static str,
    /// Whether the map is incomplete without it.
    pub is_required: bool,
    /// What values it takes.
    pub shape: ValueKind,
    /// What it is for, in words for an editor's tooltip.
    pub doc: &'static str,
}

/// What values a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueKind {
    Version,
    Text,
    Name,
    Names,
    Script,
    Lines,
    Shell,
    Flag,
    Choice(&'static [&'static str]),
    Count { min: u32, max: u32 },
    Factor,
    Percent,
    Duration,
    Environment,
    Stages,
    Jobs,
    Defaults,
    Retry,
    RetryOn,
    Resource,
    Weights,
    Matrix,
    Gate,
    Approvers,
    Excluded,
}

/// What `when` takes.
pub(crate) const WHEN: [&str; 3] = ["on_success", "always", "manual"];
/// What `on_failure` takes.
pub(crate) const ON_FAILURE: [&str; 2] = ["continue", "abort"];
/// What `retry.on` takes beside exit codes.
pub(crate) const RETRY_ON: [&str; 3] = ["timeout", "signal", "spawn"];
/// What `gate.not` takes.
pub(crate) const GATE_NOT: [&str; 2] = ["requester", "author"];
/// Largest limit of a resource.
pub(crate) const RESOURCE_LIMIT_MAX: u32 = 100_000;

const fn key(name: &'static str, shape: ValueKind, doc: &'static str) -> Key {
    Key { name, is_required: false, shape, doc }
}

const fn required(name: &'static str, shape: ValueKind, doc: &'static str) -> Key {
    Key { name, is_required: true, shape, doc }
}

/// The keys of the file.
pub(crate) const FILE_KEYS: [Key; 7] = [
    key("version", ValueKind::Version, "The format of the file: \"1.0\"."),
    key("name", ValueKind::Name, "The name of the pipeline. Default: the name of the file."),
    required(
        "stages",
        ValueKind::Stages,
        "The stages in order. All jobs of one end before the next begins.",
    ),
    required("jobs", ValueKind::Jobs, "The jobs by name."),
    key(
        "env",
        ValueKind::Environment,
        "Environment of every script. A job's own `env` takes precedence.",
    ),
    key("timeout", ValueKind::Duration, "Longest time the whole run may take, such as `2h`."),
    key("defaults", ValueKind::Defaults, "Options of every job that does not set them itself."),
];

const SHELL_DOC: &str = "The program that reads the script: `bash`, or a list to which the script is appended. Default: `sh -c`.";
const TAGS_DOC: &str = "What a worker must offer to be assigned the job.";
const TIMEOUT_DOC: &str = "Longest time one attempt may take, such as `500ms`, `10s`, `5m`, `1h30m`, `2d`. A bare number is seconds.";
const RETRY_DOC: &str =
    "How often a failed job is retried: a number, or a map with waits and reasons.";
const ON_FAILURE_DOC: &str = "What the job's failure means. `continue`: jobs that need it are skipped. `abort`: the run ends.";

/// The keys of `defaults`.
pub(crate) const DEFAULTS_KEYS: [Key; 5] = [
    key("retry", ValueKind::Retry, RETRY_DOC),
    key("timeout", ValueKind::Duration, TIMEOUT_DOC),
    key("shell", ValueKind::Shell, SHELL_DOC),
    key("tags", ValueKind::Names, TAGS_DOC),
    key("on_failure", ValueKind::Choice(&ON_FAILURE), ON_FAILURE_DOC),
];

/// The keys of a job.
pub(crate) const JOB_KEYS: [Key; 21] = [
    required("stage", ValueKind::Name, "The stage the job belongs to."),
    required(
        "command",
        ValueKind::Lines,
        "The script. A list is joined line by line. `${{ }}` is filled in as one quoted word.",
    ),
    key("shell", ValueKind::Shell, SHELL_DOC),
    key(
        "needs",
        ValueKind::Names,
        "Jobs of this or an earlier stage that must succeed first. The name of a matrix means all its jobs.",
    ),
    key(
        "when",
        ValueKind::Choice(&WHEN),
        "When the job runs. `always`: even if a need failed. `manual`: after a person approved it.",
    ),
    key(
        "gate",
        ValueKind::Gate,
        "Who approves at the gate of a job with `when: manual`. Default: any one person.",
    ),
    key("on_failure", ValueKind::Choice(&ON_FAILURE), ON_FAILURE_DOC),
    key("retry", ValueKind::Retry, RETRY_DOC),
    key("timeout", ValueKind::Duration, TIMEOUT_DOC),
    key("grace", ValueKind::Duration, "Time between SIGTERM and SIGKILL when a script is ended."),
    key(
        "env",
        ValueKind::Environment,
        "Environment of the script. `${{ }}` is filled in as it is.",
    ),
    key(
        "secrets",
        ValueKind::Names,
        "Names of variables that the worker adds from its own environment and masks in all output.",
    ),
    key("tags", ValueKind::Names, TAGS_DOC),
    key(
        "prefer",
        ValueKind::Weights,
        "Tags and how much a free worker is preferred for offering each, 1 to 100.",
    ),
    key(
        "resource",
        ValueKind::Resource,
        "A lock held while the job runs, shared by all runs: a name, or a name and a limit.",
    ),
    key(
        "if",
        ValueKind::Text,
        "The job runs only if this expression is true, such as `needs.check.outputs.drift == \"yes\"`.",
    ),
    key("matrix", ValueKind::Matrix, "Makes one job for every combination of the values."),
    key(
        "outputs",
        ValueKind::Names,
        "What the script writes to `$TOW_OUTPUT`. If given, reading anything else is an error.",
    ),
    key(
        "artifacts",
        ValueKind::Names,
        "Paths and globs below the working folder that are stored when the job succeeds.",
    ),
    key("undo", ValueKind::Script, "The script that reverts the job."),
    key("irreversible", ValueKind::Flag, "The effect of this job cannot be undone."),
];

/// The keys of a `retry` map.
pub(crate) const RETRY_KEYS: [Key; 6] = [
    required(
        "max",
        ValueKind::Count { min: 0, max: RETRIES_MAX },
        "Largest number of attempts after the first.",
    ),
    key("backoff", ValueKind::Duration, "Wait before the first retry. Default: none."),
    key("factor", ValueKind::Factor, "Every further wait is longer by this factor. Default: 2."),
    key("backoff_max", ValueKind::Duration, "No wait is longer. Default: 1h."),
    key("jitter", ValueKind::Percent, "The wait varies by up to this many percent. Default: 0."),
    key(
        "on",
        ValueKind::RetryOn,
        "What is retried: exit codes, `timeout`, `signal`, `spawn`. Default: every failure.",
    ),
];

/// The keys of a `gate` map.
pub(crate) const GATE_KEYS: [Key; 4] = [
    key(
        "approvers",
        ValueKind::Approvers,
        "Who may approve: `role:approver`, `human:ana`. Default: every person with the role `approver`.",
    ),
    key(
        "min",
        ValueKind::Count { min: 1, max: PEOPLE_MAX },
        "How many different people must approve. Default: 1.",
    ),
    key(
        "not",
        ValueKind::Excluded,
        "Who is excluded, although listed: `requester`, `author` (of the pipeline file, by git).",
    ),
    key("expires", ValueKind::Duration, "How long an approval is valid before the job begins."),
];

/// The keys of a `resource` map.
pub(crate) const RESOURCE_KEYS: [Key; 2] = [
    required("name", ValueKind::Name, "The name that runs share."),
    key(
        "limit",
        ValueKind::Count { min: 1, max: RESOURCE_LIMIT_MAX },
        "How many jobs may hold it at once. Default: 1.",
    ),
];

/// The JSON Schema (draft 2020-12) of a pipeline file.
pub fn json_schema() -> Value {
    let mut schema = map_of(&FILE_KEYS);
    let head = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Towpath pipeline",
        "description": "A pipeline of migration jobs: which jobs run, in which order, and who approves.",
    });
    // Both are objects by construction; the pattern avoids a panic that no test could reach.
    if let (Value::Object(schema), Value::Object(head)) = (&mut schema, head) {
        schema.extend(head);
        schema.insert("$defs".to_owned(), definitions());
    }
    schema
}

/// The schema as the file that editors are pointed at.
pub fn json_schema_text() -> String {
    let text = serde_json::to_string_pretty(&json_schema()).unwrap_or_default();
    text + "\n"
}

fn definitions() -> Value {
    json!({
        "name": { "type": "string", "minLength": 1, "maxLength": 200 },
        "names": one_or_many(&json!({ "$ref": "#/$defs/name" })),
        "scalar": { "type": ["string", "number", "boolean"] },
        "duration": {
            "oneOf": [
                { "type": "integer", "minimum": 0 },
                {
                    "type": "string",
                    // The same grammar as `duration_ms`: the longest unit first.
                    "pattern": r"^(?=\d)(\d+d)?(\d+h)?(\d+m(?!s))?(\d+s)?(\d+ms)?$|^\d+$",
                },
            ],
        },
        "environment": {
            "type": "object",
            "propertyNames": { "pattern": "^(?!TOW_)[A-Za-z_][A-Za-z0-9_]*$" },
            "additionalProperties": { "$ref": "#/$defs/scalar" },
        },
        "shell": one_or_many(&json!({ "type": "string", "minLength": 1 })),
        "retry": {
            "oneOf": [
                { "type": "integer", "minimum": 0, "maximum": RETRIES_MAX },
                map_of(&RETRY_KEYS),
            ],
        },
        "resource": { "oneOf": [{ "$ref": "#/$defs/name" }, map_of(&RESOURCE_KEYS)] },
        "gate": map_of(&GATE_KEYS),
        "combination": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": { "$ref": "#/$defs/scalar" },
        },
        "matrix": {
            "type": "object",
            "minProperties": 1,
            "properties": {
                "include": {
                    "description": "Further combinations, each with every axis.",
                    "type": "array",
                    "items": { "$ref": "#/$defs/combination" },
                },
                "exclude": {
                    "description": "Combinations to leave out. An axis not named matches any value.",
                    "type": "array",
                    "items": { "$ref": "#/$defs/combination" },
                },
            },
            "additionalProperties": {
                "description": "An axis and its values.",
                "type": "array",
                "minItems": 1,
                "uniqueItems": true,
                "items": { "$ref": "#/$defs/scalar" },
            },
        },
        "defaults": map_of(&DEFAULTS_KEYS),
        "job": map_of(&JOB_KEYS),
    })
}

fn map_of(keys: &[Key]) -> Value {
    let mut properties = Map::new();
    for key in keys {
        let mut property = value_of(key.shape);
        if let Value::Object(property) = &mut property {
            property.insert("description".to_owned(), key.doc.into());
        }
        properties.insert(key.name.to_owned(), property);
    }
    let names = keys.iter().filter(|key| key.is_required).map(|key| key.name);
    let required: Vec<&str> = names.collect();
    let mut map = json!({
        "type": "object",
        // As the reader refuses unknown keys: an editor that accepted them would promise a file
        // that `tow` refuses.
        "additionalProperties": false,
        "properties": properties,
    });
    if let (Value::Object(map), false) = (&mut map, required.is_empty()) {
        map.insert("required".to_owned(), required.into());
    }
    map
}

fn value_of(shape: ValueKind) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/$defs/{name}") });
    match shape {
        ValueKind::Version => json!({ "enum": ["1.0", "1", 1] }),
        ValueKind::Text => json!({ "type": ["string", "boolean"] }),
        ValueKind::Name => reference("name"),
        ValueKind::Names => reference("names"),
        ValueKind::Script => {
            json!({ "type": "string", "minLength": 1, "maxLength": SCRIPT_BYTES_MAX })
        }
        ValueKind::Lines => one_or_many(&json!({
            "type": ["string", "number", "boolean"], "maxLength": SCRIPT_BYTES_MAX,
        })),
        ValueKind::Shell => reference("shell"),
        ValueKind::Flag => json!({ "type": "boolean" }),
        ValueKind::Choice(words) => json!({ "enum": words }),
        ValueKind::Count { min, max } => {
            json!({ "type": "integer", "minimum": min, "maximum": max })
        }
        ValueKind::Factor => json!({ "type": "number", "minimum": 1, "maximum": 10 }),
        ValueKind::Percent => json!({ "type": "integer", "minimum": 0, "maximum": 100 }),
        ValueKind::Duration => reference("duration"),
        ValueKind::Environment => reference("environment"),
        ValueKind::Weights => json!({
            "type": "object",
            "propertyNames": reference("name"),
            "additionalProperties": { "type": "integer", "minimum": 1, "maximum": WEIGHT_MAX },
        }),
        ValueKind::Stages => json!({
            "type": "array", "minItems": 1, "uniqueItems": true, "items": reference("name"),
        }),
        ValueKind::Jobs => json!({
            "type": "object",
            "minProperties": 1,
            "propertyNames": reference("name"),
            "additionalProperties": reference("job"),
        }),
        ValueKind::Defaults => reference("defaults"),
        ValueKind::Retry => reference("retry"),
        ValueKind::RetryOn => one_or_many(&json!({
            "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 255 }, { "enum": RETRY_ON }],
        })),
        ValueKind::Resource => reference("resource"),
        ValueKind::Matrix => reference("matrix"),
        ValueKind::Gate => reference("gate"),
        ValueKind::Approvers => {
            let one = json!({
                "type": "string",
                "pattern": "^(role:(viewer|operator|approver|worker|auditor|admin)|human:[ -~]+)$",
            });
            let mut all = one_or_many(&one);
            // Only the list form has a length.
            all["oneOf"][1]["maxItems"] = APPROVERS_MAX.into();
            all
        }
        ValueKind::Excluded => one_or_many(&json!({ "enum": GATE_NOT })),
    }
}

fn one_or_many(item: &Value) -> Value {
    json!({ "oneOf": [item, { "type": "array", "items": item }] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::parse;

    const COMMITTED: &str = include_str!("../schema/towpath.schema.json");

    /// A value for every key of the tables, other than its default.
    fn example(table: &str, name: &str) -> &'static str {
        match (table, name) {
            ("file", "version") => "\"1.0\"",
            ("file", "name") => "shop",
            ("file", "env") | ("job", "env") => "{A: b}",
            ("file", "timeout") | ("job" | "defaults", "timeout") => "5m",
            ("file", "defaults") => "{retry: 1}",
            ("job", "needs") => "[first]",
            ("job", "when") => "always",
            ("job" | "defaults", "on_failure") => "abort",
            ("job" | "defaults", "retry") => "2",
            ("job", "grace") => "1h30m",
            ("job", "secrets") => "[TOKEN]",
            ("job" | "defaults", "tags") => "eu",
            ("job", "prefer") => "{ssd: 10}",
            ("job", "resource") => "{name: db, limit: 2}",
            ("job", "if") => "run.pipeline == 'x'",
            ("job", "matrix") => "{t: [1, 2]}",
            ("job", "outputs") => "[rows]",
            ("job", "artifacts") => "[out/*.csv]",
            ("job", "undo") => "back",
            ("job", "irreversible") => "true",
            ("job" | "defaults", "shell") => "bash",
            ("retry", "max") => "3",
            ("retry", "backoff" | "backoff_max") => "9s",
            ("retry", "factor") => "1.5",
            ("retry", "jitter") => "20",
            ("retry", "on") => "[1, timeout]",
            ("resource", "name") => "db",
            ("resource", "limit") => "4",
            ("job", "gate") => "{min: 2}",
            ("gate", "approvers") => "['role:approver', 'human:ana']",
            ("gate", "min") => "2",
            ("gate", "not") => "[requester]",
            ("gate", "expires") => "4h",
            other => panic!("{other:?} has no example"),
        }
    }

    fn file(extra: &str, job: &str) -> String {
        format!(
            "stages: [a]\n{extra}\njobs:\n  first: {{stage: a, command: x}}\n  second: {{stage: a, command: y{job}}}\n"
        )
    }

    /// The file in which `name` of `table` has `value`.
    fn file_with(table: &str, name: &str, value: &str) -> String {
        match table {
            "file" => file(&format!("{name}: {value}"), ""),
            "job" if name == "gate" => file("", &format!(", when: manual, gate: {value}")),
            "job" => file("", &format!(", {name}: {value}")),
            "gate" => file("", &format!(", when: manual, gate: {{{name}: {value}}}")),
            "defaults" => file(&format!("defaults: {{{name}: {value}}}"), ""),
            "retry" if name == "max" => file("", &format!(", retry: {{max: {value}}}")),
            "retry" => file("", &format!(", retry: {{max: 1, backoff: 1s, {name}: {value}}}"))
                .replace("backoff: 1s, backoff:", "backoff:"),
            "resource" if name == "name" => file("", &format!(", resource: {{name: {value}}}")),
            _ => file("", &format!(", resource: {{name: r, {name}: {value}}}")),
        }
    }

    fn tables() -> [(&'static str, &'static [Key]); 6] {
        [
            ("file", &FILE_KEYS),
            ("job", &JOB_KEYS),
            ("defaults", &DEFAULTS_KEYS),
            ("retry", &RETRY_KEYS),
            ("resource", &RESOURCE_KEYS),
            ("gate", &GATE_KEYS),
        ]
    }

    #[test]
    fn the_reader_takes_every_key_of_the_table_and_does_something_with_it() {
        let structural = ["version", "stages", "jobs", "stage", "command", "outputs"];
        for (table, keys) in tables() {
            for key in keys {
                if ["stages", "jobs", "stage", "command"].contains(&key.name) {
                    continue;
                }
                let text = file_with(table, key.name, example(table, key.name));
                let with = parse("t.yml", &text)
                    .unwrap_or_else(|e| panic!("{}", e.render("t", &text, false, None)));
                let without = parse("t.yml", &file("", "")).unwrap();
                let is_same = with.plan == without.plan;
                assert_eq!(is_same, structural.contains(&key.name), "{table}.{}", key.name);
            }
        }
    }

    #[test]
    fn the_reader_refuses_every_key_that_is_not_in_the_table() {
        for (table, _) in tables() {
            let text = file_with(table, "bogus", "1");
            let problems = parse("t.yml", &text).unwrap_err();
            assert_eq!(problems.list[0].code, "KEY_UNKNOWN", "{table}");
        }
    }

    #[test]
    fn the_schema_lists_exactly_the_keys_of_the_table() {
        let schema = json_schema();
        let at = |pointer: &str| {
            let object = schema.pointer(pointer).and_then(Value::as_object).unwrap();
            assert_eq!(object["additionalProperties"], false);
            let mut names: Vec<_> = object["properties"].as_object().unwrap().keys().collect();
            names.sort();
            names.into_iter().cloned().collect::<Vec<_>>()
        };
        let places = [
            "",
            "/$defs/job",
            "/$defs/defaults",
            "/$defs/retry/oneOf/1",
            "/$defs/resource/oneOf/1",
            "/$defs/gate",
        ];
        for ((_, keys), place) in tables().into_iter().zip(places) {
            let mut names: Vec<_> = keys.iter().map(|key| key.name).collect();
            names.sort_unstable();
            assert_eq!(at(place), names, "{place}");
        }
    }

    #[test]
    fn every_reference_of_the_schema_leads_somewhere() {
        let text = json_schema_text();
        let schema = json_schema();
        for part in text.split("\"$ref\": \"#").skip(1) {
            let pointer = part.split('"').next().unwrap();
            assert!(schema.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn the_committed_schema_is_current() {
        let shown = json_schema_text();
        assert!(COMMITTED == shown, "pipeline/schema/towpath.schema.json should be:\n{shown}");
    }
}
