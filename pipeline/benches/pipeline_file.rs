//! How long reading a pipeline file takes: large ones, broken ones and hostile ones.
//!
//! Prints milliseconds, best of a few; asserts nothing about them.

use std::{
    fmt::Write as _,
    io::Write as _,
    time::{Duration, Instant},
};

use towpath_pipeline::{
    file::{FILE_BYTES_MAX, parse},
    graph::{Graph, drawing},
    pulsaride_jsonl,
};

const ROUNDS: usize = 5;

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for (what, text) in files() {
        let outcome = match parse("bench.yml", &text) {
            Ok(parsed) => format!("{} jobs", parsed.plan.jobs.len()),
            Err(problems) => format!("{}: {}", problems.list[0].code, problems.summary()),
        };
        let ms = best(|| drop(parse("bench.yml", &text)));
        let kib = text.len() / 1024;
        writeln!(out, "{:>9.2} ms  {what} ({kib} KiB): {outcome}", ms.as_secs_f64() * 1e3)?;
    }
    let text = chain(10_000, "");
    if let Ok(parsed) = parse("bench.yml", &text) {
        let graph = best(|| drop(Graph::of(&parsed.plan).order()));
        let draw = best(|| drop(drawing::draw_text(&Graph::of(&parsed.plan), 80, false)));
        writeln!(out, "{:>9.2} ms  graph and order of 10,000 jobs", graph.as_secs_f64() * 1e3)?;
        writeln!(out, "{:>9.2} ms  tree of 10,000 jobs", draw.as_secs_f64() * 1e3)?;
    }
    if let Err(problems) = parse("bench.yml", &text.replace("needs: [job-", "needs: [jib-")) {
        let ms = best(|| drop(problems.render("bench.yml", &text, true, None)));
        writeln!(out, "{:>9.2} ms  drawing of 500 problems", ms.as_secs_f64() * 1e3)?;
    }
    let line = "{\"pipeline_run_id\":\"r\",\"job\":\"j\",\"stage\":\"s\",\"status\":\"DONE\"}\n";
    let lines = line.repeat(100_000);
    let ms = best(|| drop(pulsaride_jsonl::parse(&lines)));
    writeln!(out, "{:>9.2} ms  run file of 100,000 lines", ms.as_secs_f64() * 1e3)
}

fn best(mut work: impl FnMut()) -> Duration {
    let round = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..ROUNDS).map(round).min().unwrap_or_default()
}

fn files() -> Vec<(&'static str, String)> {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..10 {
        let _ = writeln!(bomb, "a{n}: &a{n} [{}]", vec![format!("*a{}", n - 1); 9].join(", "));
    }
    let matrix = |n: usize| (0..n).map(|v| format!("v{v}")).collect::<Vec<_>>().join(", ");
    let fan = format!(
        "stages: [a]\njobs:\n  c:\n    stage: a\n    command: x ${{{{ matrix.t }}}}\n    matrix: {{t: [{}], u: [{}]}}\n",
        matrix(100),
        matrix(100),
    );
    let layers = |n: usize| {
        let values = matrix(n);
        format!(
            "stages: [a]\njobs:\n  c: {{stage: a, command: x, matrix: {{t: [{values}]}}}}\n  d: {{stage: a, command: x, needs: c, matrix: {{t: [{values}]}}}}\n"
        )
    };
    let reading = "    if: needs.job-NEED.outcome == 'succeeded'\n    env: {N: \"${{ needs.job-NEED.outputs.n }}\"}\n";
    let wide = (0..100_000).fold("stages: [a]\njobs:\n".to_owned(), |mut text, n| {
        let _ = writeln!(text, "  j{n}: {{stage: a, command: x}}");
        text
    });
    vec![
        ("1,000 jobs in a chain", chain(1_000, "")),
        ("10,000 jobs in a chain", chain(10_000, "")),
        ("10,000 jobs with expressions", chain(10_000, reading)),
        ("100,000 jobs side by side", wide),
        ("10,000 jobs of a matrix", fan),
        ("2 matrices of 900, each job needs 900", layers(900)),
        ("10,000 unknown keys", chain(10_000, "").replace("needs:", "neds:")),
        ("10,000 unknown needs", chain(10_000, "").replace("needs: [job-", "needs: [jib-")),
        (
            "a circle of 10,000",
            chain(10_000, "").replace("run 0\n", "run 0\n    needs: [job-9999]\n"),
        ),
        ("billion laughs", bomb),
        ("200,000 nested lists", "[".repeat(200_000)),
        ("200,000 nested maps", "{a: ".repeat(200_000)),
        ("8 MiB of list entries", "- a\n".repeat(FILE_BYTES_MAX / 4)),
        ("8 MiB of text", format!("a: {}", "x".repeat(FILE_BYTES_MAX - 3))),
        ("8 MiB of escapes", "\u{1b}".repeat(FILE_BYTES_MAX)),
        ("8 MiB of comment", "#".repeat(FILE_BYTES_MAX)),
        ("8 MiB of quotes", "\"a\" ".repeat(FILE_BYTES_MAX / 4)),
        ("8 MiB of equal keys", "a: \n".repeat(FILE_BYTES_MAX / 4)),
        (
            "1 MiB of placeholders",
            format!(
                "stages: [a]\njobs:\n  a: {{stage: a, command: x, env: {{E: \"{}\"}}}}\n",
                "${{ run.id }}".repeat(80_000)
            ),
        ),
    ]
}

/// Jobs of which each needs the one before. `NEED` in `more` is that one's number.
fn chain(jobs: usize, more: &str) -> String {
    let mut text = "stages: [a]\njobs:\n".to_owned();
    for n in 0..jobs {
        let _ = write!(text, "  job-{n}:\n    stage: a\n    command: run {n}\n");
        if let Some(need) = n.checked_sub(1) {
            let _ = writeln!(text, "    needs: [job-{need}]");
            text.push_str(&more.replace("NEED", &need.to_string()));
        }
    }
    text
}
