//! `matrix`: one template, many jobs.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use super::{
    read::{NAME_BYTES_MAX, Placed, Reader, is_key},
    template::{Job, Matrix, Template},
    tree::{Entry, Node},
};
use crate::diagnostics::{Diagnostic, shown};
use towpath_engine::{
    expression::{self, Context},
    ids::JobName,
    plan::{JOBS_MAX, JobPlan, PLAN_BYTES_MAX},
};

/// Most axes of a matrix. Source: two values on each of 17 axes would already be too many jobs.
const AXES_MAX: usize = 16;

/// Most entries of `include` and of `exclude`. Source: each is compared with every combination.
const LISTED_MAX: usize = 1_000;

/// Reads a matrix. `None` if there is nothing to multiply by.
pub(super) fn read<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Matrix> {
    let entries = reader.entries(node, "`matrix`")?;
    // `include` and `exclude` are keys among the axes, as in other tools, so no axis can have their
    // names.
    let is_axis = |entry: &&Entry<'t>| !matches!(&*entry.key, "include" | "exclude");
    let mut axes: Vec<(String, Vec<String>)> = Vec::new();
    for entry in entries.iter().filter(is_axis) {
        if !is_key(&entry.key) {
            let message = format!("an axis cannot be called `{}`", shown(&entry.key));
            let problem = Diagnostic::error("MATRIX_SHAPE", &entry.key_span, message);
            let help = "a name has letters, digits, `_` and inner hyphens";
            reader.found.push(problem.help(help));
        }
        axes.push((entry.key.to_string(), values(reader, entry)));
    }
    let include = part(reader, entries, "include");
    let exclude = part(reader, entries, "exclude");
    if axes.is_empty() {
        // The first combination of `include` says which axes there are.
        let first = include.first().map(|combination| combination.value.keys().cloned());
        axes.extend(first.into_iter().flatten().map(|axis| (axis, Vec::new())));
    }
    // Also the depth of the product below: each axis multiplies the combinations that are in
    // memory.
    if axes.is_empty() || axes.len() > AXES_MAX {
        let message = format!("a matrix has 1 to {AXES_MAX} axes, not {}", axes.len());
        reader.error("MATRIX_SHAPE", &node.span, message);
        return None;
    }
    let names: Vec<String> = axes.iter().map(|(name, _)| name.clone()).collect();
    // `exclude` before `include`, so that an added combination cannot be removed again by a
    // pattern.
    let mut combinations = product(reader, &axes, &node.span)?;
    leave_out_all(reader, &names, &mut combinations, &exclude);
    let mut known: HashSet<Vec<String>> = match include.is_empty() {
        true => HashSet::new(),
        false => combinations.iter().cloned().collect(),
    };
    for combination in &include {
        if let Some(values) = added(reader, &names, &known, combination) {
            known.insert(values.clone());
            combinations.push(values);
        }
    }
    // Not if an axis has no values: that has its own message, and this one would follow from it.
    if combinations.is_empty() && axes.iter().all(|(_, values)| !values.is_empty()) {
        reader.error("MATRIX_SHAPE", &node.span, "the matrix makes no job".to_owned());
    }
    Some(Matrix { axes: names, combinations, span: node.span.clone() })
}

fn values<'t>(reader: &mut Reader<'t>, entry: &Entry<'t>) -> Vec<String> {
    let what = format!("axis `{}`", shown(&entry.key));
    let (mut values, mut known) = (Vec::new(), HashSet::new());
    let items = reader.list(&entry.value, &what);
    if items.is_some_and(<[Node<'_>]>::is_empty) {
        reader.error("MATRIX_SHAPE", &entry.value.span, format!("{what} has no values"));
    }
    for item in items.unwrap_or_default() {
        let Some(value) = reader.name(item, "a value of the matrix") else { continue };
        // Two equal values would make two jobs of one name.
        if !known.insert(value.value.clone()) {
            let message = format!("{what} has the value `{}` twice", shown(&value.value));
            reader.error("MATRIX_SHAPE", &value.span, message);
        } else {
            values.push(value.value);
        }
    }
    values
}

type Combination = Placed<BTreeMap<String, String>>;

/// The combinations of `include` or `exclude`.
fn part<'t>(reader: &mut Reader<'t>, entries: &[Entry<'t>], name: &str) -> Vec<Combination> {
    let Some(entry) = entries.iter().find(|entry| entry.key == name) else { return Vec::new() };
    let mut combinations = Vec::new();
    let items = reader.list(&entry.value, &format!("`{name}`")).unwrap_or_default();
    // Each entry is compared with every combination, so the two bounds together limit the time.
    if items.len() > LISTED_MAX {
        let message = format!("`{name}` has {} entries, more than {LISTED_MAX}", items.len());
        reader.error("MATRIX_SHAPE", &entry.value.span, message);
        return combinations;
    }
    for item in items {
        let mut values = BTreeMap::new();
        for pair in reader.entries(item, "a combination").unwrap_or_default() {
            if let Some(value) = reader.name(&pair.value, "a value of the matrix") {
                values.insert(pair.key.to_string(), value.value);
            }
        }
        combinations.push(Placed { value: values, span: item.span.clone() });
    }
    combinations
}

/// Every combination of the values, the last axis changing fastest.
fn product(
    reader: &mut Reader<'_>,
    axes: &[(String, Vec<String>)],
    span: &Range<usize>,
) -> Option<Vec<Vec<String>>> {
    if axes.iter().any(|(_, values)| values.is_empty()) {
        return Some(Vec::new());
    }
    // Multiplied as a number first: 16 axes of 1,000 values overflow before they fill the memory.
    let jobs = axes.iter().try_fold(1_usize, |jobs, axis| jobs.checked_mul(axis.1.len()));
    if jobs.is_none_or(|jobs| jobs > JOBS_MAX) {
        let message = format!("the matrix makes more than {JOBS_MAX} jobs");
        reader.error("JOBS_TOO_MANY", span, message);
        return None;
    }
    let bytes = |values: &[String]| values.iter().map(String::len).sum::<usize>();
    let jobs = jobs.unwrap_or_default();
    // Each value is copied once for every combination of the other axes.
    let copied = axes.iter().map(|(_, values)| jobs / values.len() * bytes(values));
    if copied.sum::<usize>() > PLAN_BYTES_MAX {
        reader.found.push(plan_too_large(span));
        return None;
    }
    let mut combinations = vec![Vec::new()];
    for (_, values) in axes {
        let longer = |combination: &Vec<String>| {
            let with = |value: &String| {
                let mut longer = combination.clone();
                longer.push(value.clone());
                longer
            };
            values.iter().map(with).collect::<Vec<_>>()
        };
        combinations = combinations.iter().flat_map(longer).collect();
    }
    Some(combinations)
}

/// Leaves out what the entries of `exclude` say.
fn leave_out_all(
    reader: &mut Reader<'_>,
    axes: &[String],
    combinations: &mut Vec<Vec<String>>,
    exclude: &[Combination],
) {
    // Entries that name every axis are looked up together; the others are compared with each
    // combination, which is what takes long.
    let (mut whole, mut parts) = (BTreeMap::new(), Vec::new());
    for entry in exclude {
        if !known_axes(reader, axes, entry) {
            continue;
        }
        let values: Vec<Option<&String>> = axes.iter().map(|axis| entry.value.get(axis)).collect();
        match values.iter().map(|value| value.cloned()).collect::<Option<Vec<String>>>() {
            Some(values) => whole.entry(values).or_insert_with(Vec::new).push((&entry.span, false)),
            None => parts.push((values, &entry.span)),
        }
    }
    if !whole.is_empty() {
        combinations.retain(|combination| {
            let entries = whole.get_mut(combination);
            // The second of two equal entries finds nothing, as if they came one after the other.
            let first = entries.and_then(|entries| entries.first_mut());
            first.map(|(_, used)| *used = true).is_none()
        });
    }
    let unused = whole.into_values().flatten().filter(|(_, used)| !used).map(|(span, _)| span);
    let mut unused: Vec<&Range<usize>> = unused.collect();
    for (values, span) in parts {
        if !reader.may_match(combinations.len().saturating_mul(axes.len()), span) {
            return;
        }
        let before = combinations.len();
        combinations.retain(|combination| {
            // An axis that the entry does not name matches every value, so one entry can remove a
            // whole row.
            let mut pairs = values.iter().zip(combination);
            !pairs.all(|(left_out, value)| left_out.is_none_or(|left_out| left_out == value))
        });
        if combinations.len() == before {
            unused.push(span);
        }
    }
    // Almost always a typing mistake, and without the error the job that should not run would run.
    for span in unused {
        let message = "this leaves nothing out: no combination has these values".to_owned();
        reader.error("MATRIX_SHAPE", span, message);
    }
}

/// The combination that an entry of `include` adds.
fn added(
    reader: &mut Reader<'_>,
    axes: &[String],
    known: &HashSet<Vec<String>>,
    include: &Combination,
) -> Option<Vec<String>> {
    if !known_axes(reader, axes, include) {
        return None;
    }
    let values: Option<Vec<String>> =
        axes.iter().map(|axis| include.value.get(axis).cloned()).collect();
    match values {
        None => {
            let missing = axes.iter().find(|axis| !include.value.contains_key(*axis));
            let missing = missing.map_or("", String::as_str);
            let message = format!("a combination has every axis; `{missing}` is missing");
            reader.error("MATRIX_SHAPE", &include.span, message);
            None
        }
        Some(values) if known.contains(&values) => {
            let message = "this combination is there already".to_owned();
            reader.error("MATRIX_SHAPE", &include.span, message);
            None
        }
        Some(values) => Some(values),
    }
}

fn known_axes(reader: &mut Reader<'_>, axes: &[String], combination: &Combination) -> bool {
    let unknown = combination.value.keys().find(|axis| !axes.contains(axis));
    if let Some(axis) = unknown {
        let message = format!("the matrix has no axis `{}`", shown(axis));
        let help = reader.did_you_mean(axis, axes.iter().map(String::as_str));
        let place = reader.part(&combination.span, axis, 0..axis.len());
        reader.found.push(Diagnostic::error("MATRIX_SHAPE", &place, message).help_if(help));
    }
    unknown.is_none() && !combination.value.is_empty()
}

/// What is said of a file whose plan would be too large.
pub(super) fn plan_too_large(span: &Range<usize>) -> Diagnostic {
    let message = format!("the jobs have more than {PLAN_BYTES_MAX} bytes, matrices multiplied");
    let help = "put long scripts into files that the jobs run, or make fewer jobs";
    Diagnostic::error("PLAN_TOO_LARGE", span, message).help(help)
}

/// How many bytes a job has, as JSON: that is what it takes in the log.
pub(super) fn job_bytes(job: &JobPlan) -> usize {
    serde_json::to_vec(job).map_or(0, |json| json.len())
}

/// The jobs that a template makes, with the values of its matrix filled in.
/// `None`: all jobs together are more than `left` bytes, from which what these take is subtracted.
pub(super) fn expand(
    reader: &mut Reader<'_>,
    number: usize,
    template: &Template,
    left: &mut usize,
) -> Option<Vec<Job>> {
    let count = template.matrix.as_ref().map_or(1, |matrix| matrix.combinations.len());
    // A placeholder is the one thing that can become shorter: those alone are measured job by job.
    let placeholders = template.plan.script.contains("${{");
    let each = if placeholders { 0 } else { job_bytes(&template.plan) };
    // Before the first copy: the size of the template is a lower bound of each job, because values
    // replace nothing else.
    if each.saturating_mul(count) > *left {
        reader.found.push(plan_too_large(&template.name.span));
        return None;
    }

    let Some(matrix) = &template.matrix else {
        let needs = template.needs.clone();
        *left -= each.min(*left);
        return Some(vec![Job { plan: template.plan.clone(), template: number, needs }]);
    };
    let mut jobs = Vec::with_capacity(count);
    for combination in &matrix.combinations {
        let name = format!("{} ({})", template.name.value, combination.join(", "));
        // The name is made of values, which are bounded one by one; together they can be longer
        // than any name.
        if name.len() > NAME_BYTES_MAX {
            let message = format!(
                "the matrix makes the name `{}`, which is longer than {NAME_BYTES_MAX} bytes",
                shown(&name)
            );
            reader.error("NAME_MALFORMED", &matrix.span, message);
        }
        let values = matrix.axes.iter().cloned().zip(combination.iter().cloned());
        let context = Context { matrix: values.collect(), ..Context::default() };
        let job = filled(template, number, JobName::from(name), context);
        // Values can make a job longer than its template: the sum is compared at every step.
        let Some(rest) = left.checked_sub(job_bytes(&job.plan)) else {
            reader.found.push(plan_too_large(&template.name.span));
            return None;
        };
        *left = rest;
        jobs.push(job);
    }
    Some(jobs)
}

fn filled(template: &Template, number: usize, name: JobName, context: Context) -> Job {
    let raw = |text: &String| expression::fill_matrix(text, &context, false);
    // Only scripts are read by a shell; everywhere else quotes would become part of the value.
    let word = |text: &str| expression::fill_matrix(text, &context, true);
    let mut plan = template.plan.clone();
    plan.name = name;
    // Else the clone of the template shares its text: one copy for all jobs of the matrix.
    if plan.script.contains("${{") {
        let script = word(&plan.script);
        if *script != *plan.script {
            plan.script = script.into();
        }
    }
    plan.undo = plan.undo.as_deref().map(word);
    plan.condition = plan.condition.as_ref().map(raw);
    plan.tags = plan.tags.iter().map(raw).collect();
    plan.artifacts = plan.artifacts.iter().map(raw).collect();
    plan.env.values_mut().for_each(|value| *value = raw(value));
    if let Some(resource) = &mut plan.resource {
        resource.name = raw(&resource.name);
    }
    let needs = template.needs.iter();
    let needs = needs.map(|need| Placed { value: raw(&need.value), span: need.span.clone() });
    let needs = needs.collect();
    // The values stay in the plan: expressions read them when the job runs.
    plan.matrix = context.matrix;
    Job { plan, template: number, needs }
}
