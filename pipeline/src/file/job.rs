//! One entry of `jobs`, as it is written: a template, which a matrix may multiply.

use std::ops::Range;

use super::{
    gate, matrix, options,
    read::{Fields, Placed, Reader, is_key, is_variable},
    template::{Env, Places, Template},
    tree::{Entry, Node, Shape},
};
use crate::{
    diagnostics::{Diagnostic, shown},
    schema::{DEFAULTS_KEYS, JOB_KEYS, ON_FAILURE, WHEN},
};
use towpath_engine::{
    expression,
    ids::StageName,
    plan::{JobPlan, OnFailure, RetryPolicy, SCRIPT_BYTES_MAX, When},
};

/// Programs that read a script the way `sh` does, so that a quoted word is one to them.
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ksh", "zsh", "ash"];

/// The options that every job begins with.
#[derive(Default)]
pub(super) struct Defaults {
    pub retry: Option<RetryPolicy>,
    pub timeout_ms: Option<u64>,
    pub shell: Vec<String>,
    pub tags: Vec<String>,
    pub on_failure: OnFailure,
    pub env: Env,
}

/// Reads the map `defaults`.
pub(super) fn defaults<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Defaults {
    let mut defaults = Defaults::default();
    let Some(fields) = reader.fields(node, &DEFAULTS_KEYS, "`defaults`", &node.span) else {
        return defaults;
    };
    shared(reader, &fields, &mut defaults);
    defaults
}

/// Reads what a job and `defaults` have in common.
fn shared<'t>(reader: &mut Reader<'t>, fields: &Fields<'_, 't>, into: &mut Defaults) {
    if let Some(node) = fields.get("retry") {
        into.retry = options::retry(reader, node);
    }
    if let Some(node) = fields.get("timeout") {
        into.timeout_ms = reader.duration(node, "`timeout`", 1);
    }
    if let Some(node) = fields.get("shell") {
        into.shell = options::shell(reader, node);
    }
    if let Some(node) = fields.get("tags") {
        into.tags = reader.names(node, "a tag").into_iter().map(|tag| tag.value).collect();
    }
    if let Some(node) = fields.get("on_failure") {
        let word = reader.choice(node, "`on_failure`", &ON_FAILURE);
        let is_abort = word == Some("abort");
        into.on_failure = if is_abort { OnFailure::Abort } else { OnFailure::Continue };
    }
}

/// Reads an environment.
pub(super) fn environment<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Env {
    let mut env = Env::new();
    for entry in reader.entries(node, "`env`").unwrap_or_default() {
        if let Some(fault) = variable_fault(&entry.key) {
            let message = format!("a variable cannot be called `{}`", shown(&entry.key));
            let problem = Diagnostic::error("ENV_NAME", &entry.key_span, message);
            reader.found.push(problem.help(fault));
            continue;
        }
        if let Some(text) = reader.text(&entry.value, "the value of a variable") {
            let value = Placed { value: text.to_owned(), span: entry.value.span.clone() };
            env.insert(entry.key.to_string(), value);
        }
    }
    env
}

fn variable_fault(name: &str) -> Option<&'static str> {
    if name.starts_with("TOW_") {
        return Some("names that begin with `TOW_` are set by the engine");
    }
    (!is_variable(name)).then_some("a name has letters, digits and `_`, and begins with no digit")
}

/// Reads the job at `entry`. Whatever can be read is, so that others can refer to it.
pub(super) fn template<'t>(
    reader: &mut Reader<'t>,
    entry: &Entry<'t>,
    defaults: &Defaults,
) -> Template {
    let what = format!("job `{}`", shown(&entry.key));
    reader.check_name(&entry.key, &entry.key_span, "the name of a job");
    let mut template = Template {
        name: Placed { value: entry.key.to_string(), span: entry.key_span.clone() },
        plan: JobPlan::new(&entry.key, "", ""),
        needs: Vec::new(),
        matrix: None,
        outputs: None,
        places: Places::default(),
    };
    if entry.key.contains("${{") {
        let message = "the name of a job is fixed; a matrix adds its values by itself".to_owned();
        reader.error("NAME_MALFORMED", &entry.key_span, message);
    }
    let Some(fields) = reader.fields(&entry.value, &JOB_KEYS, &what, &entry.key_span) else {
        return template;
    };
    let mut own = Defaults {
        retry: defaults.retry.clone(),
        timeout_ms: defaults.timeout_ms,
        shell: defaults.shell.clone(),
        tags: defaults.tags.clone(),
        on_failure: defaults.on_failure,
        env: defaults.env.clone(),
    };
    shared(reader, &fields, &mut own);
    if let Some(node) = fields.get("env") {
        own.env.extend(environment(reader, node));
    }
    flow(reader, &fields, &mut template);
    scripts(reader, &fields, &own.shell, &mut template);
    extras(reader, &fields, &own.env, &mut template);
    template.plan.retry = own.retry;
    template.plan.timeout_ms = own.timeout_ms;
    template.plan.shell = own.shell;
    template.plan.tags = own.tags;
    template.plan.on_failure = own.on_failure;
    template.places.env =
        own.env.iter().map(|(name, value)| (name.clone(), value.span.clone())).collect();
    template.plan.env = own.env.into_iter().map(|(name, value)| (name, value.value)).collect();
    template
}

/// Reads when a job runs.
fn flow<'t>(reader: &mut Reader<'t>, fields: &Fields<'_, 't>, template: &mut Template) {
    if let Some(stage) = fields.get("stage").and_then(|n| reader.name(n, "`stage`")) {
        template.plan.stage = StageName::from(stage.value);
        template.places.stage = stage.span;
    }
    if let Some(node) = fields.get("needs") {
        template.needs = reader.texts(node, "a need");
    }
    if let Some(node) = fields.get("when") {
        template.places.when = node.span.clone();
        template.plan.when = match reader.choice(node, "`when`", &WHEN) {
            Some("always") => When::Always,
            Some("manual") => When::Manual,
            Some(_) | None => When::OnSuccess,
        };
    }
    if let Some(node) = fields.get("gate") {
        template.plan.gate = gate::gate(reader, node);
        if template.plan.when != When::Manual {
            let message = "`gate` says who opens a gate, and the job has none".to_owned();
            let place = fields.key_span("gate").unwrap_or_else(|| node.span.clone());
            let problem = Diagnostic::error("GATE_POINTLESS", &place, message);
            reader.found.push(problem.help("make it one with `when: manual`"));
        }
    }
    if let Some(node) = fields.get("if")
        && let Some(text) = reader.text(node, "`if`")
    {
        template.places.condition = node.span.clone();
        template.plan.condition = Some(unwrapped(text).to_owned());
    }
    if let Some(node) = fields.get("matrix") {
        template.matrix = matrix::read(reader, node);
    }
}

/// The expression of an `if` that is written as one `${{ }}`.
fn unwrapped(text: &str) -> &str {
    let text = text.trim();
    match expression::placeholders(text).as_deref() {
        Ok([only]) if only.outer == (0..text.len()) => text[only.inner.clone()].trim(),
        Ok(_) | Err(_) => text,
    }
}

/// Reads what a job runs.
fn scripts<'t>(
    reader: &mut Reader<'t>,
    fields: &Fields<'_, 't>,
    shell: &[String],
    template: &mut Template,
) {
    if let Some(node) = fields.get("command") {
        let lines = reader.texts(node, "`command`");
        let lines: Vec<String> = lines.into_iter().map(|line| line.value).collect();
        template.plan.script = lines.join("\n").into();
        template.places.command = node.span.clone();
        let is_given = !matches!(&node.shape, Shape::Map(_)) && !super::read::is_null(node);
        if is_given && template.plan.script.trim().is_empty() {
            reader.error("KEY_MISSING", &node.span, "`command` says nothing".to_owned());
        }
        script(reader, &template.plan.script, &node.span, "`command`", shell);
    }
    if let Some(node) = fields.get("undo")
        && let Some(text) = reader.text(node, "`undo`")
    {
        script(reader, text, &node.span, "`undo`", shell);
        template.places.undo = node.span.clone();
        template.plan.undo = Some(text.to_owned());
    }
}

/// Checks the length of a script, and that whatever is filled into it stays one word.
fn script(reader: &mut Reader<'_>, text: &str, span: &Range<usize>, what: &str, shell: &[String]) {
    if text.len() > SCRIPT_BYTES_MAX {
        let message = format!("{what} has {} bytes; at most {SCRIPT_BYTES_MAX} fit", text.len());
        let problem = Diagnostic::error("COMMAND_TOO_LONG", span, message);
        reader.found.push(problem.help("put the script into a file and call that"));
    }
    if !text.contains("${{") {
        return;
    }
    // A broken `${{` is reported by the check of expressions.
    let misplaced = expression::misplaced(text).unwrap_or_default();
    let through_env = "give the value a name in `env:` and write \"$NAME\" in the script";
    let program = shell.first().map_or("sh", |program| program.rsplit('/').next().unwrap_or("sh"));
    if !SHELLS.contains(&program) {
        let message =
            format!("`${{{{ }}}}` cannot be filled into a script for `{}`", shown(program));
        let at = text.find("${{").unwrap_or(0);
        let first = reader.part(span, text, at..at + "${{".len());
        let problem = Diagnostic::error("EXPRESSION_SHELL", &first, message);
        reader.found.push(problem.help(through_env));
        return;
    }
    for misplaced in misplaced {
        let place = reader.part(span, text, misplaced.range);
        let message = format!("this value {}, where it would not stay one word", misplaced.place);
        let problem = Diagnostic::error("EXPRESSION_QUOTED", &place, message);
        let problem = if misplaced.in_quotes {
            problem.help("remove the quotes around it: the value is quoted when it is filled in")
        } else {
            problem
        };
        reader.found.push(problem.help(format!("or {through_env}")));
    }
}

/// Reads what a job has beside its scripts.
fn extras<'t>(
    reader: &mut Reader<'t>,
    fields: &Fields<'_, 't>,
    env: &Env,
    template: &mut Template,
) {
    if let Some(node) = fields.get("grace") {
        template.plan.grace_ms = reader.duration(node, "`grace`", 0);
    }
    if let Some(node) = fields.get("secrets") {
        template.plan.secrets = secrets(reader, node, env);
    }
    if let Some(node) = fields.get("resource") {
        template.plan.resource = options::resource(reader, node);
        template.places.resource = node.span.clone();
    }
    if let Some(node) = fields.get("prefer") {
        template.plan.prefer = options::weights(reader, node);
    }
    if let Some(node) = fields.get("outputs") {
        template.outputs = Some(outputs(reader, node));
    }
    if let Some(node) = fields.get("artifacts") {
        for path in reader.names(node, "an artifact") {
            template.plan.artifacts.push(path.value);
            template.places.artifacts.push(path.span);
        }
    }
    if let Some(node) = fields.get("irreversible") {
        template.plan.irreversible = reader.flag(node, "`irreversible`").unwrap_or_default();
        template.places.irreversible = node.span.clone();
    }
    template.places.tags = fields.key_span("tags").unwrap_or_default();
}

fn secrets<'t>(reader: &mut Reader<'t>, node: &Node<'t>, env: &Env) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for secret in reader.names(node, "a secret") {
        let fault = match variable_fault(&secret.value) {
            Some(fault) => Some(fault),
            None if env.contains_key(&secret.value) => Some("the same name is set in `env`"),
            None if names.contains(&secret.value) => Some("it is listed twice"),
            None => None,
        };
        match fault {
            Some(fault) => {
                let message = format!("a secret cannot be called `{}`", shown(&secret.value));
                let problem = Diagnostic::error("SECRET_NAME", &secret.span, message);
                reader.found.push(problem.help(fault));
            }
            None => names.push(secret.value),
        }
    }
    names
}

fn outputs<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Vec<String> {
    let mut names = Vec::new();
    for output in reader.names(node, "an output") {
        if is_key(&output.value) {
            names.push(output.value);
        } else {
            let message = format!("an output cannot be called `{}`", shown(&output.value));
            let problem = Diagnostic::error("NAME_MALFORMED", &output.span, message);
            reader.found.push(problem.help("a name has letters, digits, `_` and inner hyphens"));
        }
    }
    names
}
