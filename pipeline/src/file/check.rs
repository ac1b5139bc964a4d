//! What can only be judged with the whole file in view: names, needs, cycles, expressions, sizes.

use std::{collections::HashMap, ops::Range};

use super::{
    matrix::{job_bytes, plan_too_large},
    options,
    read::{Placed, Reader},
    template::{Job, Template},
};
use crate::{
    diagnostics::{Diagnostic, shown},
    graph::Graph,
};
use towpath_engine::{
    expression::{self, ExprError, Known, NeedKnown},
    ids::{JobName, StageName},
    plan::{JobPlan, PLAN_BYTES_MAX, Plan},
};

/// Longest job, as JSON, in bytes: what an event has room for.
pub const JOB_BYTES_MAX: usize = 50 * 1024;
/// Most needs of a plan, after matrices are expanded. Source: two matrices of a thousand jobs.
pub const NEEDS_MAX: usize = 1_000_000;
/// Most names that an unknown one is compared with, each time.
const NEAR_MAX: usize = 2_000;
/// Most jobs of a cycle that are marked one by one.
const CYCLE_MARKED_MAX: usize = 12;

/// What a name in `needs` means.
#[derive(Clone, Debug)]
enum Meaning {
    /// One job.
    Job(usize),
    /// All jobs of a matrix.
    Matrix(Range<usize>),
}

/// Checks the jobs, and understands their needs.
pub(super) fn plan(
    reader: &mut Reader<'_>,
    templates: &[Template],
    mut jobs: Vec<Job>,
    frame: Plan,
) -> Plan {
    // In this order: needs refer to names, cycles to needs, and expressions to what is before a
    // job.
    let names = names(reader, templates, &jobs);
    let stages: HashMap<StageName, usize> =
        frame.stages.iter().cloned().enumerate().map(|(at, stage)| (stage, at)).collect();
    check_stages(reader, templates, &frame.stages);
    understand_needs(reader, templates, &mut jobs, &names, &stages);
    check_resources(reader, templates, &jobs);
    // Messages point to the template, because that is what the file contains.
    let origins: Vec<usize> = jobs.iter().map(|job| job.template).collect();
    let plan = Plan { jobs: jobs.into_iter().map(|job| job.plan).collect(), ..frame };
    let graph = Graph::of(&plan);
    check_cycles(reader, templates, &origins, &graph);
    let mut expressions =
        Expressions { templates, origins: &origins, names: &names, graph: &graph };
    for number in 0..plan.jobs.len() {
        expressions.check(reader, number);
    }
    // Last, because needs are part of the size.
    check_sizes(reader, templates, &origins, &plan);
    plan
}

fn names(
    reader: &mut Reader<'_>,
    templates: &[Template],
    jobs: &[Job],
) -> HashMap<JobName, Meaning> {
    let mut names: HashMap<JobName, Meaning> = HashMap::with_capacity(jobs.len());
    let mut first = 0;
    for (number, template) in templates.iter().enumerate() {
        let count = jobs[first..].iter().take_while(|job| job.template == number).count();
        // The name of a matrix stands for all its jobs in `needs`, but is not the name of a job.
        if template.matrix.is_some() {
            names.insert(template.plan.name.clone(), Meaning::Matrix(first..first + count));
        }
        first += count;
    }
    for (number, job) in jobs.iter().enumerate() {
        // YAML refuses two equal keys; here a matrix made a name that another entry has, such as
        // `copy (a)`.
        if names.insert(job.plan.name.clone(), Meaning::Job(number)).is_some() {
            let name = shown(job.plan.name.as_str());
            let message = format!("two jobs are called `{name}`, one of them through its matrix");
            reader.error("NAME_DUPLICATE", &templates[job.template].name.span, message);
        }
    }
    names
}

fn check_stages(reader: &mut Reader<'_>, templates: &[Template], stages: &[StageName]) {
    for template in templates {
        let stage = &template.plan.stage;
        // An unreadable stage was reported already.
        if stage.as_str().is_empty() || stages.contains(stage) {
            // Also keeps it out of `needs`, where it would be an edge that is drawn twice.
            continue;
        }
        let message = format!("there is no stage `{}`", shown(stage.as_str()));
        let help = reader.did_you_mean(stage.as_str(), stages.iter().map(StageName::as_str));
        let all: Vec<String> = stages.iter().map(|stage| shown(stage.as_str())).collect();
        let help = help.unwrap_or_else(|| format!("the stages are `{}`", all.join("`, `")));
        let problem = Diagnostic::error("STAGE_UNKNOWN", &template.places.stage, message);
        reader.found.push(problem.label("not among the stages").help(help));
    }
}

fn understand_needs(
    reader: &mut Reader<'_>,
    templates: &[Template],
    jobs: &mut [Job],
    names: &HashMap<JobName, Meaning>,
    stages: &HashMap<StageName, usize>,
) {
    let all: Vec<(JobName, StageName)> =
        jobs.iter().map(|job| (job.plan.name.clone(), job.plan.stage.clone())).collect();
    let mut total = 0;
    for (number, job) in jobs.iter_mut().enumerate() {
        let mut listed: HashMap<&str, Range<usize>> = HashMap::new();
        let mut needs: Vec<usize> = Vec::new();
        for need in &job.needs {
            if let Some(before) = listed.insert(&need.value, need.span.clone()) {
                let message = format!("`{}` is needed twice", shown(&need.value));
                let problem = Diagnostic::error("NEED_DUPLICATE", &need.span, message);
                reader.found.push(problem.label("again here").also(&before, "first here"));
                continue;
            }
            match names.get(&*need.value) {
                None => {
                    let candidates = templates.iter().map(|template| &*template.name.value);
                    reader_unknown_need(reader, need, candidates);
                }
                Some(Meaning::Job(other)) => needs.push(*other),
                Some(Meaning::Matrix(others)) => needs.extend(others.clone()),
            }
            let place = |name: &StageName| stages.get(name).copied();
            let own_stage = place(&job.plan.stage);
            // A job of a matrix may need its whole matrix by name; without the edge to itself the
            // rest can still be checked.
            if needs.contains(&number) {
                needs.retain(|other| *other != number);
                let message = format!("`{}` needs itself", shown(job.plan.name.as_str()));
                reader.error("NEED_SELF", &need.span, message);
            }
            let is_later = |other: &usize| match (place(&all[*other].1), own_stage) {
                (Some(other), Some(own)) => other > own,
                (Some(_) | None, Some(_) | None) => false,
            };
            if let Some(later) = needs.iter().copied().find(is_later) {
                // Removed, so that the cycle check does not report the same edge again.
                needs.retain(|other| !is_later(other));
                reader.found.push(later_need(&all[later], &job.plan, need));
            }
        }
        // Sorted and without duplicates: a job may be named alone and through its matrix, and the
        // digest of the plan must not depend on the order of `needs`.
        needs.sort_unstable();
        needs.dedup();
        total += needs.len();
        // Here and not at the end: the product of two matrices would fill the memory before.
        if total > NEEDS_MAX {
            let place = &templates[job.template].name.span;
            let message = format!("the plan has more than {NEEDS_MAX} needs");
            let help = "add one job between the two matrices";
            reader.found.push(Diagnostic::error("NEEDS_TOO_MANY", place, message).help(help));
            return;
        }
        job.plan.needs = needs.into_iter().map(|need| all[need].0.clone()).collect();
    }
}

fn reader_unknown_need<'n>(
    reader: &mut Reader<'_>,
    need: &Placed<String>,
    names: impl Iterator<Item = &'n str>,
) {
    let message = format!("there is no job `{}`", shown(&need.value));
    let help = reader.did_you_mean(&need.value, names);
    let help = help.unwrap_or_else(|| {
        let name = shown(&need.value);
        format!("define a job `{name}`, or take it out of `needs`")
    });
    let problem = Diagnostic::error("NEED_UNKNOWN", &need.span, message);
    reader.found.push(problem.label("no job of this name").help(help));
}

fn later_need(
    (name, stage): &(JobName, StageName),
    job: &JobPlan,
    need: &Placed<String>,
) -> Diagnostic {
    let (name, stage) = (shown(name.as_str()), shown(stage.as_str()));
    let own = shown(job.stage.as_str());
    let message = format!("`{}` waits for a later stage", shown(job.name.as_str()));
    Diagnostic::error("NEED_LATER", &need.span, message)
        .label(format!("`{name}` is in stage `{stage}`"))
        .help(format!("stage `{stage}` begins only when all of stage `{own}` has ended"))
}

fn check_resources(reader: &mut Reader<'_>, templates: &[Template], jobs: &[Job]) {
    let mut limits: HashMap<&str, (u32, usize)> = HashMap::new();
    for job in jobs {
        let Some(resource) = &job.plan.resource else { continue };
        let held = (resource.limit, job.template);
        // The scheduler takes the limit from the job that it leases. Two limits would let the lock
        // depend on which comes first.
        let (limit, first) = *limits.entry(&resource.name).or_insert(held);
        if limit != resource.limit {
            let message = format!(
                "resource `{}` has the limit {limit} in one place and {} in another",
                shown(&resource.name),
                resource.limit
            );
            let place = &templates[job.template].places.resource;
            let problem = Diagnostic::error("RESOURCE_LIMITS_DIFFER", place, message);
            let first = &templates[first].places.resource;
            let first = format_label(first, limit);
            reader.found.push(problem.also(&first.0, first.1));
        }
    }
}

fn format_label(place: &Range<usize>, limit: u32) -> (Range<usize>, String) {
    (place.clone(), format!("{limit} here"))
}

fn check_cycles(
    reader: &mut Reader<'_>,
    templates: &[Template],
    origins: &[usize],
    graph: &Graph<'_>,
) {
    for cycle in graph.cycles() {
        let name = |job: usize| shown(graph.name(job).as_str());
        let mut path: Vec<String> = cycle.iter().take(CYCLE_MARKED_MAX).map(|j| name(*j)).collect();
        // A circle of thousands of jobs would fill the screen; the first ones are enough to break
        // it.
        if cycle.len() > CYCLE_MARKED_MAX {
            path.push(format!("… ({} more)", cycle.len() - CYCLE_MARKED_MAX));
        }
        path.push(name(cycle[0]));
        let place = |at: usize| {
            let job = &templates[origins[cycle[at]]];
            let next = graph.name(cycle[(at + 1) % cycle.len()]);
            let next_template = &templates[origins[cycle[(at + 1) % cycle.len()]]].name.value;
            let is_next = |need: &&Placed<String>| {
                // The need may name the job or its matrix.
                need.value == next.as_str() || need.value == *next_template
            };
            job.needs.iter().find(is_next).map_or_else(|| job.name.span.clone(), |n| n.span.clone())
        };
        let message = format!("jobs wait for each other in a circle: `{}`", path.join("` → `"));
        let label = format!("`{}` needs `{}`", name(cycle[0]), name(cycle[1 % cycle.len()]));
        let mut problem = Diagnostic::error("CYCLE", &place(0), message).label(label);
        for at in 1..cycle.len().min(CYCLE_MARKED_MAX) {
            let next = name(cycle[(at + 1) % cycle.len()]);
            problem = problem.also(&place(at), format!("`{}` needs `{next}`", name(cycle[at])));
        }
        reader.found.push(problem.help("remove one of these needs"));
    }
}

/// Checks what the jobs' expressions name.
struct Expressions<'c> {
    templates: &'c [Template],
    origins: &'c [usize],
    names: &'c HashMap<JobName, Meaning>,
    graph: &'c Graph<'c>,
}

/// Which rules a text is under.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// `if`: one expression, true or false.
    Condition,
    /// A script or a value of the environment.
    Template,
    /// Filled in when the file is read, so that only the matrix can be known.
    MatrixOnly,
}

impl Expressions<'_> {
    fn check(&mut self, reader: &mut Reader<'_>, number: usize) {
        let template = &self.templates[self.origins[number]];
        let job = self.graph.job(number);
        let places = &template.places;
        if let Some(condition) = &job.condition {
            self.text(reader, number, condition, &places.condition, Rule::Condition, true);
        }
        self.text(reader, number, &job.script, &places.command, Rule::Template, true);
        if let Some(undo) = &job.undo {
            self.text(reader, number, undo, &places.undo, Rule::Template, true);
        }
        for (name, value) in &job.env {
            let place = places.env.get(name).unwrap_or(&template.name.span);
            self.text(reader, number, value, place, Rule::Template, false);
        }
        for (path, place) in job.artifacts.iter().zip(&places.artifacts) {
            self.text(reader, number, path, place, Rule::MatrixOnly, false);
            if let Some(fault) = options::path_fault(path) {
                reader.error("ARTIFACT_PATH", place, fault);
            }
        }
        for tag in &job.tags {
            self.text(reader, number, tag, &places.tags, Rule::MatrixOnly, false);
        }
        if let Some(resource) = &job.resource {
            let place = &places.resource;
            self.text(reader, number, &resource.name, place, Rule::MatrixOnly, false);
        }
    }

    fn text(
        &self,
        reader: &mut Reader<'_>,
        number: usize,
        text: &str,
        place: &Range<usize>,
        rule: Rule,
        reads_env: bool,
    ) {
        // Almost all texts have no placeholder, and a condition is an expression even without one.
        if rule != Rule::Condition && !text.contains("${{") {
            return;
        }
        let template = &self.templates[self.origins[number]];
        let need = |name: &str| self.need(number, name);
        let axes = template.matrix.as_ref().map_or(&[][..], |matrix| &matrix.axes);
        let env: Vec<String> = template.plan.env.keys().cloned().collect();
        // `env` cannot read itself: the order of its variables would otherwise matter.
        let known = Known { need: &need, matrix: axes, env: reads_env.then_some(&env) };
        let outcome = match rule {
            Rule::Condition => expression::check_condition(text, &known),
            Rule::Template => expression::check_template(text, &known),
            // The matrix was filled in before. What is left reads something that is known only when
            // the run is under way, and these keys are needed when it begins.
            Rule::MatrixOnly => expression::check_template(text, &known).and_then(|()| {
                let message = "only `matrix` can be read here".to_owned();
                Err(vec![ExprError { range: 0..text.len(), message, unknown: true }])
            }),
        };
        for fault in outcome.err().unwrap_or_default() {
            let code = if fault.unknown { "EXPRESSION_UNKNOWN" } else { "EXPRESSION_SYNTAX" };
            let place = reader.part(place, text, fault.range);
            reader.error(code, &place, fault.message);
        }
    }

    fn need(&self, number: usize, name: &str) -> NeedKnown<'_> {
        match self.names.get(name) {
            // Also needs of needs: they have ended as well when the expression is evaluated.
            Some(Meaning::Job(other)) if self.graph.is_before(*other, number) => {
                let declared = &self.templates[self.origins[*other]].outputs;
                NeedKnown::Before(declared.as_deref())
            }
            Some(Meaning::Job(_)) => NeedKnown::Beside,
            Some(Meaning::Matrix(others)) => {
                let example = others.clone().next().map(|job| self.graph.name(job).to_string());
                NeedKnown::Template(example.unwrap_or_default())
            }
            None => {
                let names = self.templates.iter().map(|template| &*template.name.value);
                // Bounded apart from the reader's budget, which is not available in here.
                let near = super::read::nearest(name, names.take(NEAR_MAX));
                NeedKnown::Missing(near.map(str::to_owned))
            }
        }
    }
}

fn check_sizes(reader: &mut Reader<'_>, templates: &[Template], origins: &[usize], plan: &Plan) {
    let mut total = 0;
    for (job, origin) in plan.jobs.iter().zip(origins) {
        let bytes = job_bytes(job);
        // Once more: the needs are names of jobs by now, and those of a matrix are all its jobs.
        let before = total;
        total += bytes;
        // Once, at the job that passes the bound.
        if before <= PLAN_BYTES_MAX && total > PLAN_BYTES_MAX {
            reader.found.push(plan_too_large(&templates[*origin].name.span));
        }
        if bytes > JOB_BYTES_MAX {
            let name = shown(job.name.as_str());
            let message = format!("job `{name}` has {bytes} bytes; at most {JOB_BYTES_MAX} fit");
            let problem =
                Diagnostic::error("JOB_TOO_LARGE", &templates[*origin].name.span, message);
            let help = "put scripts into files, or add one job between two matrices";
            reader.found.push(problem.help(help));
        }
    }
}
