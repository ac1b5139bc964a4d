//! Drawings of a plan: a tree for a terminal, Graphviz, Mermaid, and JSON.
//!
//! Names are whatever the file says. None of them may break the syntax of a drawing.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Graph;
use crate::diagnostics::shown;
use towpath_engine::plan::{JobPlan, OnFailure, When};

/// Narrowest tree, in columns. Less is treated as this.
const WIDTH_MIN: usize = 20;

/// The strokes of a tree.
struct Strokes {
    branch: &'static str,
    last: &'static str,
    pass: &'static str,
    arrow: &'static str,
    cut: &'static str,
}

const UNICODE: Strokes =
    Strokes { branch: "├─ ", last: "└─ ", pass: "│  ", arrow: "←", cut: "…" };
const ASCII: Strokes = Strokes { branch: "|- ", last: "`- ", pass: "|  ", arrow: "<-", cut: "..." };

/// The plan as a tree, stage by stage, no line wider than `width` columns.
///
/// Within a stage a job hangs below the last of its needs; its other needs stand behind `←`.
/// With `ascii`, the drawing itself, though not the names, keeps to ASCII.
pub fn draw_text(graph: &Graph<'_>, width: usize, ascii: bool) -> String {
    let strokes = if ascii { &ASCII } else { &UNICODE };
    let order = graph.order();
    let mut place = vec![0; graph.plan().jobs.len()];
    for (at, number) in order.iter().enumerate() {
        place[*number] = at;
    }
    let mut below: Vec<Vec<usize>> = vec![Vec::new(); graph.plan().jobs.len()];
    let mut tops: Vec<Vec<usize>> = vec![Vec::new(); graph.plan().stages.len()];
    for number in &order {
        let stage = graph.stage(*number);
        let same = graph.needs(*number).filter(|need| graph.stage(*need) == stage);
        match same.max_by_key(|need| place[*need]) {
            Some(need) => below[need].push(*number),
            None if stage < tops.len() => tops[stage].push(*number),
            None => {}
        }
    }
    let tree = Tree { graph, strokes, below, width: width.max(WIDTH_MIN) };
    let mut text = String::new();
    for (stage, tops) in graph.plan().stages.iter().zip(&tops) {
        tree.line(&mut text, "", &shown(stage.as_str()), "");
        tree.jobs(&mut text, tops);
    }
    text
}

struct Tree<'g> {
    graph: &'g Graph<'g>,
    strokes: &'g Strokes,
    below: Vec<Vec<usize>>,
    width: usize,
}

impl Tree<'_> {
    fn jobs(&self, text: &mut String, tops: &[usize]) {
        // Each with what its line begins with, and what its children's lines begin with.
        let mut open: Vec<(usize, String, String, Option<usize>)> =
            tops.iter().rev().map(|top| (*top, "  ".to_owned(), "  ".to_owned(), None)).collect();
        while let Some((number, head, indent, parent)) = open.pop() {
            self.line(
                text,
                &head,
                &shown(self.graph.name(number).as_str()),
                &self.notes(number, parent),
            );
            let is_deep = columns(&indent) + 3 > self.width / 2;
            let children = &self.below[number];
            for (at, child) in children.iter().enumerate().rev() {
                let is_last = at + 1 == children.len();
                let entry = if is_deep {
                    // The drawing is too deep: the child is drawn at this level, with its needs.
                    (*child, head.clone(), indent.clone(), None)
                } else {
                    let stroke = if is_last { self.strokes.last } else { self.strokes.branch };
                    let pass = if is_last { "   " } else { self.strokes.pass };
                    let head = format!("{indent}{stroke}");
                    (*child, head, format!("{indent}{pass}"), Some(number))
                };
                open.push(entry);
            }
        }
    }

    fn notes(&self, number: usize, parent: Option<usize>) -> String {
        let note = Some(self.graph.note(number)).filter(|note| !note.is_empty());
        let marks = note.into_iter().chain(marks(self.graph.job(number)));
        let mut notes = marks.collect::<Vec<_>>().join(", ");
        let others = self.graph.needs(number).filter(|need| Some(*need) != parent);
        let others: Vec<String> = others.map(|n| shown(self.graph.name(n).as_str())).collect();
        if !others.is_empty() {
            let space = if notes.is_empty() { "" } else { "  " };
            let _ = write!(notes, "{space}{} {}", self.strokes.arrow, others.join(", "));
        }
        notes
    }

    fn line(&self, text: &mut String, head: &str, name: &str, notes: &str) {
        let line = if notes.is_empty() {
            format!("{head}{name}")
        } else {
            format!("{head}{name}  {notes}")
        };
        if columns(&line) <= self.width {
            text.push_str(&line);
        } else {
            let room = self.width - columns(self.strokes.cut);
            let mut used = 0;
            let fits = |c: &char| {
                used += columns_of(*c);
                used <= room
            };
            text.extend(line.chars().take_while(fits));
            text.push_str(self.strokes.cut);
        }
        text.push('\n');
    }
}

/// What is special about a job, in words.
fn marks(job: &JobPlan) -> Vec<&'static str> {
    let when = match job.when {
        When::OnSuccess => None,
        When::Always => Some("always"),
        When::Manual => Some("manual"),
    };
    let marks = [
        when,
        job.irreversible.then_some("no way back"),
        (job.on_failure == OnFailure::Abort).then_some("aborts"),
        job.condition.is_some().then_some("if"),
    ];
    marks.into_iter().flatten().collect()
}

fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// East Asian wide characters and emoji take two columns.
fn columns_of(c: char) -> usize {
    let is_wide = matches!(c, '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}' | '\u{ffe0}'..='\u{ffe6}' | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}');
    if is_wide { 2 } else { 1 }
}

/// The plan for Graphviz.
pub fn dot(graph: &Graph<'_>) -> String {
    let mut text = "digraph {\n  rankdir=LR\n  node [shape=box, style=rounded]\n".to_owned();
    for (stage, name) in graph.plan().stages.iter().enumerate() {
        let label = dot_text(name.as_str());
        let _ = write!(text, "  subgraph cluster_{stage} {{\n    label={label}\n");
        for number in in_stage(graph, stage) {
            let label = dot_text(graph.name(number).as_str());
            let shape = match graph.job(number).when {
                When::Manual => ", shape=octagon",
                When::OnSuccess | When::Always => "",
            };
            let _ = writeln!(text, "    j{number} [label={label}{shape}]");
        }
        text.push_str("  }\n");
    }
    for (need, number) in edges(graph) {
        let _ = writeln!(text, "  j{need} -> j{number}");
    }
    text.push_str("}\n");
    text
}

fn dot_text(name: &str) -> String {
    format!("\"{}\"", shown(name).replace('\\', "\\\\").replace('"', "\\\""))
}

/// The plan for Mermaid.
pub fn mermaid(graph: &Graph<'_>) -> String {
    let mut text = "flowchart LR\n".to_owned();
    for (stage, name) in graph.plan().stages.iter().enumerate() {
        let _ = writeln!(text, "  subgraph s{stage}[\"{}\"]", mermaid_text(name.as_str()));
        for number in in_stage(graph, stage) {
            let label = mermaid_text(graph.name(number).as_str());
            let _ = match graph.job(number).when {
                When::Manual => writeln!(text, "    j{number}{{{{\"{label}\"}}}}"),
                When::OnSuccess | When::Always => writeln!(text, "    j{number}[\"{label}\"]"),
            };
        }
        text.push_str("  end\n");
    }
    for (need, number) in edges(graph) {
        let _ = writeln!(text, "  j{need} --> j{number}");
    }
    text
}

/// A name in which everything that could mean something to Mermaid is a character code.
fn mermaid_text(name: &str) -> String {
    let mut safe = String::new();
    for c in shown(name).chars() {
        if c.is_alphanumeric() || " _-.,:/+()".contains(c) {
            safe.push(c);
        } else {
            let _ = write!(safe, "#{};", u32::from(c));
        }
    }
    safe
}

/// The plan for a program: the jobs with their needs, the order and the waves.
pub fn json(graph: &Graph<'_>) -> Value {
    let jobs: Vec<Value> = graph
        .plan()
        .jobs
        .iter()
        .map(|job| {
            json!({
                "name": job.name,
                "stage": job.stage,
                "needs": job.needs,
                "when": job.when,
                "on_failure": job.on_failure,
                "irreversible": job.irreversible,
            })
        })
        .collect();
    let order: Vec<_> = graph.order().into_iter().map(|number| graph.name(number)).collect();
    let waves: Vec<Value> = graph
        .waves()
        .into_iter()
        .map(|wave| json!({ "stage": wave.stage, "jobs": wave.jobs }))
        .collect();
    json!({
        "pipeline": graph.plan().pipeline,
        "stages": graph.plan().stages,
        "jobs": jobs,
        "order": order,
        "waves": waves,
    })
}

fn in_stage(graph: &Graph<'_>, stage: usize) -> impl Iterator<Item = usize> {
    (0..graph.plan().jobs.len()).filter(move |number| graph.stage(*number) == stage)
}

fn edges(graph: &Graph<'_>) -> impl Iterator<Item = (usize, usize)> {
    let all = 0..graph.plan().jobs.len();
    all.flat_map(|number| graph.needs(number).map(move |need| (need, number)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::tests::plan;
    use towpath_engine::plan::Plan;

    fn seed() -> Plan {
        let mut plan = plan(
            &["preflight", "migrate", "validate", "cutover"],
            &[
                ("check-schema", "preflight", &[]),
                ("customers", "migrate", &["check-schema"]),
                ("orders", "migrate", &["customers"]),
                ("products", "migrate", &[]),
                ("order-items", "migrate", &["orders", "products"]),
                ("counts", "validate", &["customers", "orders", "order-items"]),
                ("gate", "cutover", &["counts"]),
            ],
        );
        plan.jobs[0].on_failure = OnFailure::Abort;
        plan.jobs[6].when = When::Manual;
        plan.jobs[6].irreversible = true;
        plan
    }

    #[test]
    fn a_plan_is_drawn_as_a_tree() {
        let plan = seed();
        assert_eq!(
            draw_text(&Graph::of(&plan), 60, false),
            "\
preflight
  check-schema  aborts
migrate
  customers  ← check-schema
  └─ orders
  products
  └─ order-items  ← orders
validate
  counts  ← customers, orders, order-items
cutover
  gate  manual, no way back  ← counts
"
        );
        let ascii = draw_text(&Graph::of(&plan), 60, true);
        assert!(ascii.is_ascii() && ascii.contains("  `- orders\n"), "{ascii}");
    }

    #[test]
    fn no_line_is_wider_than_asked_and_depth_is_bounded() {
        let names: Vec<String> = (0..300).map(|n| format!("日本-job-with-a-name-{n}")).collect();
        let mut plan = plan(&["s"], &[]);
        for (at, name) in names.iter().enumerate() {
            let mut job = JobPlan::new(name, "s", "x");
            job.needs = at.checked_sub(1).map(|n| names[n].as_str().into()).into_iter().collect();
            plan.jobs.push(job);
        }
        for width in [0, 20, 40, 60] {
            let text = draw_text(&Graph::of(&plan), width, false);
            assert_eq!(text.lines().count(), 301);
            assert!(text.lines().all(|line| columns(line) <= width.max(WIDTH_MIN)), "{text}");
        }
    }

    #[test]
    fn odd_names_break_no_drawing() {
        let odd = "a\"]; b --> c\n#quot; `x` <i>\\ {{\u{1b}[2J}} end %% 日本";
        let plan = plan(&[odd], &[(odd, odd, &[]), ("end", odd, &[odd])]);
        let graph = Graph::of(&plan);

        let (dot, mermaid) = (dot(&graph), mermaid(&graph));
        let text = draw_text(&graph, 200, false);

        assert_eq!(dot.lines().count(), 10, "{dot}");
        assert!(dot.contains(r#"label="a\"]; b --> c\\n#quot;"#), "{dot}");
        assert_eq!(mermaid.lines().count(), 6, "{mermaid}");
        for line in mermaid.lines().filter(|line| line.contains("[\"")) {
            let label = line.split("[\"").nth(1).unwrap().strip_suffix("\"]").unwrap();
            assert!(!label.contains(['"', '[', ']', '<', '>', '`', '{', '%']), "{label}");
        }
        assert!(mermaid.ends_with("  j0 --> j1\n"));
        assert_eq!(text.lines().count(), 3);
        for drawing in [dot, mermaid, text] {
            assert!(!drawing.chars().any(|c| c.is_control() && c != '\n'));
        }
    }

    #[test]
    fn programs_get_jobs_order_and_waves() {
        let plan = seed();
        let json = json(&Graph::of(&plan));
        assert_eq!(json["jobs"][6]["when"], "manual");
        assert_eq!(json["order"][0], "check-schema");
        assert_eq!(json["waves"][1]["jobs"], json!(["customers", "products"]));
    }
}
