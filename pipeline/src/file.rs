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
mod template;
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
use job::Defaults;
use read::{Fields, Placed, Reader};
use template::{Job, Template};
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
fn expanded(reader: &mut Reader<'_>, templates: &[Template]) -> Option<Vec<Job>> {
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
mod tests;
