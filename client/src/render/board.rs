//! A run as a picture: its stages, what runs, what waits and why. Used live and at rest.
//!
//! Both are drawn from the messages of the contract. At rest they are what the server answered; a run
//! that is followed is the fold of its records, and what is drawn of it becomes messages first.

use std::collections::{HashMap, HashSet};

use towpath_engine::{
    run::Run,
    time::{Timestamp, duration_words},
    views::{Board, by_stage},
};
use towpath_proto::v1::{self, JobState, JobView, source::Origin};
use towpath_wire::views;

use super::{
    Mark, Style, safe,
    visible::wrapped,
    words::{self, moment},
    worker_word,
};

/// Most running jobs that are shown one by one while the picture moves.
const RUNNING_MAX: usize = 8;
/// Most stages that are shown while the picture moves.
const STAGES_MAX: usize = 6;
/// Columns of a job's name, if the line is wide enough.
const NAME_COLUMNS: usize = 28;
/// Digits of a digest that a person compares.
const DIGEST_DIGITS: usize = 12;

/// The newest line of a job's output, by job name.
pub(crate) type LastLines = HashMap<String, String>;

/// How many jobs a run has.
fn total(run: &v1::Run) -> u32 {
    let counts = run.counts.unwrap_or_default();
    ended(&counts) + counts.waiting + counts.at_gate + counts.running + counts.backing_off
}

/// How many of them have ended.
fn ended(counts: &v1::JobCounts) -> u32 {
    counts.succeeded + counts.failed + counts.skipped + counts.cancelled + counts.rejected
}

/// The line at the top of everything.
pub(crate) fn head(run: &v1::Run, style: &Style) -> String {
    let sign = if style.ascii { "^" } else { "▲" };
    let dot = style.dot();
    let title = safe(&run.pipeline);
    let rest = format!(
        "run {} {dot} {} jobs {dot} {} at once {dot} by {}",
        run.short_id,
        total(run),
        run.parallelism,
        run.requested_by,
    );
    let title = style.fit(&title, style.width.saturating_sub(4));
    let room = style.width.saturating_sub(title.chars().count() + 4);
    format!("{sign} {}  {}", style.bold(&title), style.dim(&style.fit(&rest, room)))
}

/// The sign for the state of a job.
pub(crate) fn mark_of(state: JobState) -> Mark {
    match state {
        JobState::Succeeded => Mark::Done,
        JobState::Running => Mark::Running,
        JobState::Failed | JobState::TimedOut | JobState::Rejected => Mark::Failed,
        JobState::Skipped | JobState::Cancelled => Mark::Skipped,
        JobState::AtGate => Mark::Gate,
        JobState::BackingOff => Mark::Retry,
        JobState::Unspecified
        | JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::Approved
        | JobState::Requeued => Mark::Waiting,
    }
}

/// Whether a job in this state has ended.
pub(crate) fn is_over(state: JobState) -> bool {
    match state {
        JobState::Succeeded
        | JobState::Failed
        | JobState::TimedOut
        | JobState::Skipped
        | JobState::Cancelled
        | JobState::Rejected => true,
        JobState::Unspecified
        | JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::AtGate
        | JobState::Approved
        | JobState::Running
        | JobState::BackingOff
        | JobState::Requeued => false,
    }
}

/// The line that stays once a job has ended.
pub(crate) fn ended_line(job: &v1::Job, style: &Style) -> String {
    let mut note = note(job);
    if job.attempt > 1 && job.state() == JobState::Succeeded {
        note = format!("attempt {}", job.attempt);
    }
    row(mark_of(job.state()), &job.name, &words::ran(job), &note, style)
}

/// What a person should know about a job beyond its sign.
pub(crate) fn note(job: &v1::Job) -> String {
    match job.state() {
        JobState::Failed | JobState::TimedOut => safe(&words::reason(job)),
        JobState::BackingOff => {
            let due = moment(job.retry_at.as_ref()).unwrap_or_default();
            format!("{}, again at {due}", safe(&words::reason(job)))
        }
        JobState::Skipped => skip_note(job.skip.as_ref()),
        JobState::Cancelled => "cancelled".to_owned(),
        JobState::Rejected if job.decision.is_none() => "rejected".to_owned(),
        JobState::Rejected => safe(&words::reason(job)),
        JobState::AtGate => {
            let digest = job.approval_digest.get(..DIGEST_DIGITS).unwrap_or_default();
            match words::approvals(job.policy.as_ref(), &job.approvals) {
                words if words.is_empty() => format!("gate, waits for a person ({digest})"),
                words => format!("gate, {} ({digest})", safe(&words)),
            }
        }
        JobState::Requeued => "its worker was lost, runs again".to_owned(),
        JobState::Unspecified
        | JobState::Waiting
        | JobState::Admitted
        | JobState::Declined
        | JobState::Approved
        | JobState::Running
        | JobState::Succeeded => String::new(),
    }
}

fn skip_note(skip: Option<&v1::JobSkip>) -> String {
    let Some(skip) = skip else { return "skipped".to_owned() };
    let (need, root) = (safe(&skip.need), safe(&skip.root));
    match skip.cause() {
        v1::SkipCause::NeedUnmet if need == root => format!("skipped: {root} did not succeed"),
        v1::SkipCause::NeedUnmet => format!("skipped: {need}, because of {root}"),
        v1::SkipCause::ConditionFalse => "skipped: `if` is false".to_owned(),
        v1::SkipCause::RunAborted => "skipped: the run was aborted".to_owned(),
        v1::SkipCause::Imported => "skipped: recorded as skipped".to_owned(),
        v1::SkipCause::Unspecified => "skipped".to_owned(),
    }
}

fn row(mark: Mark, name: &str, took: &str, note: &str, style: &Style) -> String {
    let fixed = 4 + style.mark_width();
    let name_columns = NAME_COLUMNS.min(style.width.saturating_sub(fixed + 11));
    let name = style.pad(&safe(name), name_columns);
    let took = format!("{took:>7}");
    let room = style.width.saturating_sub(fixed + name_columns + 11);
    let note = style.fit(note, room);
    let line = format!("    {} {name} {took}  {}", style.mark(mark), style.dim(&note));
    line.trim_end().to_owned()
}

/// One stage in one line: sign, count, and what happens in it.
fn stage_line(stage: &str, jobs: &[JobState], style: &Style) -> String {
    let count =
        |wanted: &[Mark]| jobs.iter().filter(|job| wanted.contains(&mark_of(**job))).count();
    let over = jobs.iter().filter(|job| is_over(**job)).count();
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
pub(crate) fn whole(run: &v1::Run, jobs: &[v1::Job], now: Timestamp, style: &Style) -> String {
    let mut text = head(run, style);
    text.push('\n');
    if let Some(source) = &run.source {
        text.push_str(&source_line(source));
        text.push('\n');
    }
    let open: HashSet<&str> =
        jobs.iter().filter(|job| !is_over(job.state())).map(|job| job.name.as_str()).collect();
    for (stage, jobs) in by_stage(&run.stages, jobs.iter().map(|job| (job.stage.as_str(), job))) {
        let states: Vec<JobState> = jobs.iter().map(|job| job.state()).collect();
        text.push_str(&stage_line(stage, &states, style));
        text.push('\n');
        for job in jobs {
            text.push_str(&job_row(job, &open, now, style));
            text.push('\n');
        }
    }
    text.push_str(&foot(run, now, style));
    text.push('\n');
    text
}

/// Where the files of a run come from.
fn source_line(source: &v1::Source) -> String {
    let from = match &source.origin {
        Some(Origin::Remote(address)) => format!("from {}", safe(address)),
        Some(Origin::Bundle(_)) | None => "in a bundle".to_owned(),
    };
    let dirty = if source.dirty { ", with changes that are not committed" } else { "" };
    format!("  files: commit {:.12} {from}{dirty}", source.commit)
}

/// One job at rest. `open`: the jobs of the run that have not ended.
fn job_row(job: &v1::Job, open: &HashSet<&str>, now: Timestamp, style: &Style) -> String {
    let since = moment(job.since.as_ref()).unwrap_or_default();
    let took = if job.state() == JobState::Running {
        duration_words(now.ms_since(since))
    } else if is_over(job.state()) {
        words::ran(job)
    } else {
        String::new()
    };
    let mut about = note(job);
    if job.state() == JobState::Running {
        let worker = worker_word(&job.worker);
        let attempt = job.attempt;
        about = if attempt > 1 { format!("{worker}, attempt {attempt}") } else { worker };
    }
    if matches!(job.state(), JobState::Waiting | JobState::Admitted) {
        let needs = job.needs.iter().filter(|need| open.contains(need.as_str()));
        let needs: Vec<String> = needs.map(|need| safe(need)).collect();
        if !needs.is_empty() {
            about = format!("needs: {}", needs.join(", "));
        } else if job.when() == v1::JobCondition::Manual {
            about = "gate ahead".to_owned();
        }
    }
    row(mark_of(job.state()), &job.name, &took, &about, style)
}

/// What a moving picture shows beside the run.
pub(crate) struct Moving<'a> {
    pub(crate) lines: &'a LastLines,
    /// Why nothing runs.
    pub(crate) stall: Option<&'a str>,
    /// This process takes no new jobs.
    pub(crate) stopping: bool,
}

/// The picture while it moves: open stages, what runs, and a line of numbers.
pub(crate) fn moving(run: &Run, about: &Moving<'_>, now: Timestamp, style: &Style) -> Vec<String> {
    if run.header().is_none() {
        return Vec::new();
    }
    let mut picture = Vec::new();
    let Board { stages, gates } = Board::of(run);
    for stage in stages.iter().take(STAGES_MAX) {
        // Of most jobs only the state is drawn. Messages of all of them, ten times a second, would
        // cost more than the drawing.
        let states = stage.jobs.iter().map(|job| views::job_state(&job.state));
        let states: Vec<JobState> = states.collect();
        picture.push(stage_line(stage.name.as_str(), &states, style));
        for job in stage.running().take(RUNNING_MAX) {
            let name = job.plan.name.as_str();
            let took = duration_words(now.ms_since(job.since));
            let mut about = about.lines.get(name).cloned().unwrap_or_default();
            if job.attempt.0 > 1 {
                about = format!("attempt {}  {about}", job.attempt);
            }
            picture.push(row(Mark::Running, name, &took, &about, style));
        }
        let more = stage.running().count().saturating_sub(RUNNING_MAX);
        picture.extend(left_out(more, "running", style));
    }
    picture.extend(left_out(stages.len().saturating_sub(STAGES_MAX), "stages", style));
    for job in gates {
        let job = views::job(run, job, JobView::Basic);
        picture.push(row(Mark::Gate, &job.name, "", &note(&job), style));
    }
    let rows = about.stall.map(|why| wrapped(why, style.width.saturating_sub(2)));
    picture.extend(rows.into_iter().flatten().map(|row| format!("  {row}")));
    let run = views::run(run, 0, 0, "");
    picture.push(if about.stopping {
        numbers(&run, now, style, "stopping")
    } else {
        foot(&run, now, style)
    });
    picture
}

/// The row that stands for what is not shown. A picture that ends without a word would be taken for
/// all that there is.
fn left_out(count: usize, what: &str, style: &Style) -> Option<String> {
    let row = format!("    {} {count} more {what}", style.ellipsis());
    (count > 0).then(|| style.fit(&row, style.width))
}

/// A line of numbers.
pub(crate) fn foot(run: &v1::Run, now: Timestamp, style: &Style) -> String {
    let word = if is_at_gate(run) { "waiting at a gate".to_owned() } else { words::phase(run) };
    numbers(run, now, style, &word.replace('_', " "))
}

/// Whether nothing can happen in a run that goes on until a person opens a gate.
pub(crate) fn is_at_gate(run: &v1::Run) -> bool {
    let at_gate = run.counts.is_some_and(|counts| counts.at_gate > 0);
    run.phase() == v1::RunPhase::Running && at_gate && !run.can_move
}

fn numbers(run: &v1::Run, now: Timestamp, style: &Style, word: &str) -> String {
    let counts = run.counts.unwrap_or_default();
    let created_at = moment(run.created_at.as_ref()).unwrap_or(now);
    let took = moment(run.finished_at.as_ref()).unwrap_or(now).ms_since(created_at);
    let mut facts = vec![format!("{}/{} jobs", ended(&counts), total(run))];
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
    use towpath_engine::plan::{JobPlan, When};

    use super::*;
    use crate::render::tests::{bare, begun, begun_at_once, lease};

    fn at_rest(run: &Run, style: &Style) -> String {
        let jobs: Vec<v1::Job> =
            run.jobs().iter().map(|job| views::job(run, job, JobView::Basic)).collect();
        whole(&views::run(run, 0, 0, "7f3ca1"), &jobs, Timestamp(8_300), style)
    }

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
        let picture = at_rest(&some_run(), &bare(80));
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
    fn what_is_not_shown_while_it_moves_has_a_row() {
        let jobs = (0..RUNNING_MAX + 3)
            .map(|job| JobPlan::new(format!("j{job:02}").as_str(), "s0", "true"));
        let later = (1..STAGES_MAX + 3).map(|stage| {
            JobPlan::new(format!("l{stage}").as_str(), format!("s{stage}").as_str(), "true")
        });
        let mut run = begun_at_once(jobs.chain(later).collect(), 64);
        (0..RUNNING_MAX + 3).for_each(|_| lease(&mut run));
        let about = Moving { lines: &LastLines::new(), stall: Some("because"), stopping: false };

        let picture = moving(&run, &about, Timestamp(8_300), &bare(80));

        assert!(picture.contains(&"    … 3 more running".to_owned()), "{picture:#?}");
        assert!(picture.contains(&"    … 3 more stages".to_owned()), "{picture:#?}");
        assert!(picture.contains(&"  because".to_owned()), "{picture:#?}");
    }

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        use unicode_width::UnicodeWidthStr as _;
        for width in [24, 40, 60, 100] {
            let style = bare(width);
            let picture = at_rest(&some_run(), &style);
            for line in picture.lines() {
                assert!(line.width() <= width, "{width}: {line:?}");
            }
            let wordy = LastLines::from([("customers".to_owned(), "many words ".repeat(30))]);
            let why =
                Some("`orders` is ready, but the store takes no leases now: its disk is full.");
            let about = Moving { lines: &wordy, stall: why, stopping: true };
            for line in moving(&some_run(), &about, Timestamp(8_300), &style) {
                assert!(line.width() <= width, "{width}: {line:?}");
            }
        }
    }
}
