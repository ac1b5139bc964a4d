//! A run as a picture: its stages, what runs, what waits and why. Used live and at rest.

use std::collections::HashMap;

use towpath_engine::{
    event::SkipCause,
    ids::StageName,
    job::JobState,
    plan::When,
    run::{Job, Phase, Run},
    source::{Origin, Source},
    time::{Timestamp, duration_words},
};

use super::{Mark, Style, safe, worker_word};

/// Most running jobs that are shown one by one while the picture moves.
const RUNNING_MAX: usize = 8;
/// Most stages that are shown while the picture moves.
const STAGES_MAX: usize = 6;
/// Columns of a job's name, if the line is wide enough.
const NAME_COLUMNS: usize = 28;

/// The newest line of a job's output, by job name.
pub(crate) type LastLines = HashMap<String, String>;

/// The line at the top of everything.
pub(crate) fn head(run: &Run, short_id: &str, style: &Style) -> String {
    let Some(header) = run.header() else { return String::new() };
    let sign = if style.ascii { "^" } else { "▲" };
    let dot = style.dot();
    let title = safe(&header.pipeline);
    let rest = format!(
        "run {short_id} {dot} {} jobs {dot} {} at once {dot} by {}",
        run.jobs().len(),
        header.parallelism,
        header.requested_by,
    );
    let title = style.fit(&title, style.width.saturating_sub(4));
    let room = style.width.saturating_sub(title.chars().count() + 4);
    format!("{sign} {}  {}", style.bold(&title), style.dim(&style.fit(&rest, room)))
}

/// The sign for the state of a job.
pub(crate) fn mark_of(job: &Job) -> Mark {
    match &job.state {
        JobState::Succeeded => Mark::Done,
        JobState::Leased(..) => Mark::Running,
        JobState::Failed | JobState::TimedOut => Mark::Failed,
        JobState::Skipped | JobState::Cancelled => Mark::Skipped,
        JobState::Rejected => Mark::Failed,
        JobState::AtGate(_) => Mark::Gate,
        JobState::BackingOff(_) => Mark::Retry,
        JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::Approved
        | JobState::Requeued => Mark::Waiting,
    }
}

/// The line that stays once a job has ended.
pub(crate) fn ended_line(job: &Job, style: &Style) -> String {
    let took = job.ran_ms.map(duration_words).unwrap_or_default();
    let mut note = note(job);
    if job.attempt.0 > 1 && job.state == JobState::Succeeded {
        note = format!("attempt {}", job.attempt);
    }
    row(mark_of(job), job, &took, &note, style)
}

/// What a person should know about a job beyond its sign.
pub(crate) fn note(job: &Job) -> String {
    match &job.state {
        JobState::Failed | JobState::TimedOut => match (&job.cause, &job.imported) {
            (Some(cause), _) => safe(&cause.to_string()),
            (None, Some(imported)) => safe(&imported.error),
            (None, None) => String::new(),
        },
        JobState::BackingOff(due) => {
            let why = job.cause.as_ref().map(|cause| safe(&cause.to_string())).unwrap_or_default();
            format!("{why}, again at {due}")
        }
        JobState::Skipped => match &job.skipped {
            Some(SkipCause::NeedUnmet { need, root }) if need == root => {
                format!("skipped: {} did not succeed", safe(root.as_str()))
            }
            Some(SkipCause::NeedUnmet { need, root }) => {
                format!("skipped: {}, because of {}", safe(need.as_str()), safe(root.as_str()))
            }
            Some(SkipCause::ConditionFalse) => "skipped: `if` is false".to_owned(),
            None => "skipped: the run was aborted".to_owned(),
        },
        JobState::Cancelled => "cancelled".to_owned(),
        JobState::Rejected => match &job.gate {
            Some(gate) if gate.comment.is_empty() => format!("rejected by {}", gate.by),
            Some(gate) => format!("rejected by {}: {}", gate.by, safe(&gate.comment)),
            None => "rejected".to_owned(),
        },
        JobState::AtGate(approval_digest) => match job.quorum_words() {
            words if words.is_empty() => {
                format!("gate, waits for a person ({})", approval_digest.short())
            }
            words => format!("gate, {} ({})", safe(&words), approval_digest.short()),
        },
        JobState::Requeued => "its worker was lost, runs again".to_owned(),
        JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::Approved
        | JobState::Leased(..)
        | JobState::Succeeded => String::new(),
    }
}

fn row(mark: Mark, job: &Job, took: &str, note: &str, style: &Style) -> String {
    let fixed = 4 + style.mark_width();
    let name_columns = NAME_COLUMNS.min(style.width.saturating_sub(fixed + 11));
    let name = style.pad(&safe(job.plan.name.as_str()), name_columns);
    let took = format!("{took:>7}");
    let room = style.width.saturating_sub(fixed + name_columns + 11);
    let note = style.fit(note, room);
    let line = format!("    {} {name} {took}  {}", style.mark(mark), style.dim(&note));
    line.trim_end().to_owned()
}

/// The jobs of each stage, in one pass: stages in their order, jobs in file order.
fn by_stage(run: &Run) -> Vec<(&str, Vec<&Job>)> {
    let stages = run.header().map_or(&[][..], |header| &header.stages);
    let place: HashMap<&str, usize> = stages.iter().map(StageName::as_str).zip(0..).collect();
    let mut grouped: Vec<(&str, Vec<&Job>)> =
        stages.iter().map(|stage| (stage.as_str(), Vec::new())).collect();
    for job in run.jobs() {
        if let Some(place) = place.get(job.plan.stage.as_str()) {
            grouped[*place].1.push(job);
        }
    }
    grouped
}

/// One stage in one line: sign, count, and what happens in it.
fn stage_line(stage: &str, jobs: &[&Job], style: &Style) -> String {
    let count = |wanted: &[Mark]| jobs.iter().filter(|job| wanted.contains(&mark_of(job))).count();
    let over = jobs.iter().filter(|job| job.state.is_over()).count();
    let running = count(&[Mark::Running, Mark::Retry]);
    let failed = count(&[Mark::Failed]);
    let mark = if over == jobs.len() {
        if failed > 0 {
            Mark::Failed
        } else if !jobs.is_empty() && count(&[Mark::Skipped]) == jobs.len() {
            Mark::Skipped
        } else {
            Mark::Done
        }
    } else if running > 0 {
        Mark::Running
    } else if count(&[Mark::Gate]) > 0 {
        Mark::Gate
    } else if over > 0 {
        Mark::Waiting
    } else {
        Mark::Later
    };
    let mut facts = vec![format!("{over}/{}", jobs.len())];
    let skipped = count(&[Mark::Skipped]);
    for (count, word) in [(running, "running"), (failed, "failed"), (skipped, "skipped")] {
        if count > 0 {
            facts.push(format!("{count} {word}"));
        }
    }
    let columns = 14.min(style.width.saturating_sub(20)).max(8);
    let name = style.pad(&safe(stage), columns);
    let room = style.width.saturating_sub(columns + style.mark_width() + 4);
    format!("  {name} {} {}", style.mark(mark), style.fit(&facts.join("  "), room))
}

/// The picture of a run at rest: every stage with every job.
pub(crate) fn whole(run: &Run, short_id: &str, now: Timestamp, style: &Style) -> String {
    let mut text = head(run, short_id, style);
    text.push('\n');
    if let Some(source) = run.header().and_then(|header| header.source.as_ref()) {
        text.push_str(&source_line(source));
        text.push('\n');
    }
    for (stage, jobs) in by_stage(run) {
        text.push_str(&stage_line(stage, &jobs, style));
        text.push('\n');
        for job in jobs {
            text.push_str(&job_row(run, job, now, style));
            text.push('\n');
        }
    }
    text.push_str(&foot(run, now, style));
    text.push('\n');
    text
}

/// Where the files of a run come from.
fn source_line(source: &Source) -> String {
    let from = match &source.origin {
        Origin::Bundle(_) => "in a bundle".to_owned(),
        Origin::Remote(address) => format!("from {}", safe(address)),
    };
    let dirty = if source.dirty { ", with changes that are not committed" } else { "" };
    format!("  files: commit {:.12} {from}{dirty}", source.commit)
}

fn job_row(run: &Run, job: &Job, now: Timestamp, style: &Style) -> String {
    let took = match job.state.lease() {
        Some(_) => Some(now.ms_since(job.since)),
        None => job.ran_ms.filter(|_| job.state.is_over()),
    };
    let took = took.map(duration_words).unwrap_or_default();
    let mut about = note(job);
    if let JobState::Leased(attempt, worker) = &job.state {
        let worker = worker_word(worker.as_str());
        about = if attempt.0 > 1 { format!("{worker}, attempt {attempt}") } else { worker };
    }
    if matches!(job.state, JobState::Waiting | JobState::Admitted) {
        let open: Vec<String> = job
            .plan
            .needs
            .iter()
            .filter(|need| run.job(need.as_str()).is_some_and(|need| !need.state.is_over()))
            .map(|need| safe(need.as_str()))
            .collect();
        if !open.is_empty() {
            about = format!("needs: {}", open.join(", "));
        } else if job.plan.when == When::Manual {
            about = "gate ahead".to_owned();
        }
    }
    row(mark_of(job), job, &took, &about, style)
}

/// The picture while it moves: open stages, what runs, and a line of numbers. `stopping`: this
/// process takes no new jobs.
pub(crate) fn moving(
    run: &Run,
    lines: &LastLines,
    now: Timestamp,
    style: &Style,
    stopping: bool,
) -> Vec<String> {
    let mut picture = Vec::new();
    let is_open = |(_, jobs): &(&str, Vec<&Job>)| jobs.iter().any(|job| !job.state.is_over());
    for (stage, jobs) in by_stage(run).into_iter().filter(is_open).take(STAGES_MAX) {
        picture.push(stage_line(stage, &jobs, style));
        let running = jobs.into_iter().filter(|job| job.state.lease().is_some());
        for job in running.take(RUNNING_MAX) {
            let took = duration_words(now.ms_since(job.since));
            let mut about = lines.get(job.plan.name.as_str()).cloned().unwrap_or_default();
            if job.attempt.0 > 1 {
                about = format!("attempt {}  {about}", job.attempt);
            }
            picture.push(row(Mark::Running, job, &took, &about, style));
        }
    }
    for job in run.gates() {
        picture.push(row(Mark::Gate, job, "", &note(job), style));
    }
    picture.push(if stopping {
        numbers(run, now, style, "stopping")
    } else {
        foot(run, now, style)
    });
    picture
}

/// A line of numbers.
pub(crate) fn foot(run: &Run, now: Timestamp, style: &Style) -> String {
    let counts = run.counts();
    let at_gate = *run.phase() == Phase::Running && counts.at_gate > 0 && !run.can_move();
    let word = if at_gate { "waiting at a gate" } else { run.phase().word() };
    numbers(run, now, style, &word.replace('_', " "))
}

fn numbers(run: &Run, now: Timestamp, style: &Style, word: &str) -> String {
    let Some(header) = run.header() else { return String::new() };
    let counts = run.counts();
    let over =
        counts.succeeded + counts.failed + counts.skipped + counts.cancelled + counts.rejected;
    let took = run.finished_at().unwrap_or(now).ms_since(header.created_at);
    let mut facts = vec![format!("{over}/{} jobs", run.jobs().len())];
    for (count, word) in [
        (counts.running, "running"),
        (counts.backing_off, "backing off"),
        (counts.at_gate, "at a gate"),
        (counts.failed, "failed"),
        (counts.skipped, "skipped"),
        (counts.cancelled, "cancelled"),
        (counts.rejected, "rejected"),
    ] {
        if count > 0 {
            facts.push(format!("{count} {word}"));
        }
    }
    facts.push(duration_words(took));
    let dot = style.dot();
    let numbers = facts.join(&format!(" {dot} "));
    let room = style.width.saturating_sub(word.len() + 5);
    format!("  {} {dot} {}", style.bold(word), style.fit(&numbers, room))
}

#[cfg(test)]
mod tests {
    use towpath_engine::plan::JobPlan;

    use super::*;
    use crate::render::tests::{bare, begun, lease};

    fn some_run() -> Run {
        let mut orders = JobPlan::new("orders", "copy", "true");
        orders.needs = vec!["customers".into()];
        let mut cutover = JobPlan::new("cutover", "cutover", "true");
        cutover.when = When::Manual;
        let mut run = begun(vec![JobPlan::new("customers", "copy", "true"), orders, cutover]);
        lease(&mut run);
        run
    }

    #[test]
    fn a_run_at_rest_shows_every_job_and_why_it_waits() {
        let picture = whole(&some_run(), "7f3ca1", Timestamp(8_300), &bare(80));
        assert_eq!(
            picture,
            "\
▲ shop  run 7f3ca1 · 3 jobs · 4 at once · by human:ana
  copy           ● 0/2  1 running
    ● customers                       7.3s  local
    ○ orders                                needs: customers
  cutover        ◷ 0/1
    ○ cutover                               gate ahead
  running · 0/3 jobs · 1 running · 8.3s
"
        );
    }

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        use unicode_width::UnicodeWidthStr as _;
        for width in [24, 40, 60, 100] {
            let style = bare(width);
            let picture = whole(&some_run(), "7f3ca1", Timestamp(8_300), &style);
            for line in picture.lines() {
                assert!(line.width() <= width, "{width}: {line:?}");
            }
            let wordy = LastLines::from([("customers".to_owned(), "many words ".repeat(30))]);
            for line in moving(&some_run(), &wordy, Timestamp(8_300), &style, true) {
                assert!(line.width() <= width, "{width}: {line:?}");
            }
        }
    }
}
