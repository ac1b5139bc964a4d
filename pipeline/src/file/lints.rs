//! Warnings: files that can run and probably mean something else. Few, and each worth a line.

use super::template::Template;
use crate::diagnostics::{Diagnostic, shown};
use towpath_engine::{
    ids::StageName,
    plan::{Plan, When},
};

/// What is suspicious about a plan without errors. `stages` are those of the file with places.
pub(super) fn warnings(
    plan: &Plan,
    templates: &[Template],
    stages: &[super::Placed<String>],
) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let is_used = |stage: &StageName| templates.iter().any(|t| t.plan.stage == *stage);
    for (stage, place) in plan.stages.iter().zip(stages) {
        if !is_used(stage) {
            let message = format!("stage `{}` has no jobs", shown(stage.as_str()));
            found.push(Diagnostic::warning("STAGE_EMPTY", &place.span, message));
        }
    }
    // Jobs of the first stage with jobs have nothing before them that could fail.
    let first = plan.stages.iter().find(|stage| is_used(stage));
    for template in templates {
        let is_first = first == Some(&template.plan.stage);
        found.extend(needs_nothing(template, is_first));
        found.extend(undo_pointless(template));
    }
    found
}

/// A stage begins when the one before has *ended*; only a need requires success.
fn needs_nothing(template: &Template, is_first: bool) -> Option<Diagnostic> {
    let (what, place) = match (template.plan.irreversible, template.plan.when) {
        (true, _) => ("is irreversible", &template.places.irreversible),
        (false, When::Manual) => ("waits for an approval", &template.places.when),
        (false, When::OnSuccess | When::Always) => return None,
    };
    if is_first || !template.needs.is_empty() {
        return None;
    }
    let name = shown(&template.name.value);
    let message = format!("`{name}` {what}, but it runs even if every job before it fails");
    let problem = Diagnostic::warning("NEEDS_NOTHING", place, message);
    Some(
        problem
            .also(&template.name.span, "needs nothing")
            .help("list in `needs` what must succeed first"),
    )
}

fn undo_pointless(template: &Template) -> Option<Diagnostic> {
    if !template.plan.irreversible || template.plan.undo.is_none() {
        return None;
    }
    let name = shown(&template.name.value);
    let message = format!("`{name}` is irreversible and has an `undo`");
    let problem = Diagnostic::warning("UNDO_POINTLESS", &template.places.undo, message);
    Some(problem.help("keep the one that is true"))
}
