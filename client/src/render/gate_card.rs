//! The card of a gate: everything that an approval covers, for the person who decides.
//!
//! Pure: it is built from the run as its events left it, so any command that asks for a decision
//! shows the same. It counts what it cannot show, and then a plain `y` is not accepted.

use towpath_engine::{
    expression::{placeholders, quoted},
    ids::{Digest, JobName},
    job::JobState,
    run::{Assignment, Job, Run},
};

use towpath_proto::v1::JobView;
use towpath_wire::views;

use super::{
    Mark, Style,
    board::{mark_of, note},
    safe,
    visible::{visible, wrapped},
    words::approvals,
};

/// Most bytes on one card. A script has at most 32 KiB, but filled in it may have 1 MiB, more than
/// a person reads before an answer: what is beyond is counted, and then a plain `y` is not enough.
const CARD_BYTES_MAX: usize = 512 * 1024;
/// Fewest columns of text in a row, however narrow the terminal.
const TEXT_COLUMNS_MIN: usize = 8;

/// What a person answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Approve,
    Reject,
    Leave,
    /// They would approve, but did not type the word that this card requires.
    Unproven,
}

/// A line before it is cut into rows.
struct CardLine {
    /// The prefix of the first row, and its width in columns.
    lead: (String, usize),
    /// The prefix of every further row, so that none can be taken for a line of its own.
    again: String,
    text: String,
    bold: bool,
}

/// All that is to be read before the gate of one job is opened.
pub(crate) struct GateCard {
    pub(crate) job: JobName,
    /// What an approval of this card covers.
    pub(crate) approval_digest: Digest,
    /// The first lines, for where the whole card was read in a pager.
    summary: usize,
    lines: Vec<CardLine>,
    bytes: usize,
    left_out: usize,
    /// What could not be shown, a sentence each. Empty: the card is whole.
    missing: Vec<String>,
    style: Style,
}

impl GateCard {
    /// The card for the gate of `job`; `None` if it does not wait there.
    pub(crate) fn new(run: &Run, job: &Job, short_id: &str, style: &Style) -> Option<Self> {
        let JobState::AtGate(approval_digest) = job.state else { return None };
        let mut card = Self {
            job: job.plan.name.clone(),
            approval_digest,
            summary: 0,
            lines: Vec::new(),
            bytes: 0,
            left_out: 0,
            missing: Vec::new(),
            style: *style,
        };
        card.push_head(run, job);
        // Before what may be long: the first lines are those of the live view.
        card.summary = card.lines.len();
        card.push_ends(run, job);
        card.push_needs(run, job);
        card.push_work(run, job);
        if card.left_out > 0 {
            let bytes = card.left_out;
            card.missing.push(format!("{bytes} bytes do not fit on the card and are not shown."));
        }
        card.push_foot(run, short_id);
        Some(card)
    }

    /// The card in rows of at most `columns` columns; `None`: a row for each line.
    pub(crate) fn rows(&self, columns: Option<usize>) -> Vec<String> {
        self.lines.iter().flat_map(|line| self.rows_of(line, columns)).collect()
    }

    /// The first lines of the card in rows: whose gate it is, and whether there is a way back.
    pub(crate) fn summary_rows(&self, columns: Option<usize>) -> Vec<String> {
        let lines = self.lines.iter().take(self.summary);
        lines.flat_map(|line| self.rows_of(line, columns)).collect()
    }

    fn rows_of(&self, line: &CardLine, columns: Option<usize>) -> Vec<String> {
        let (lead, taken) = &line.lead;
        let rows = match columns {
            Some(columns) => {
                wrapped(&line.text, columns.saturating_sub(*taken).max(TEXT_COLUMNS_MIN))
            }
            // Without a terminal there is no width, and a program that reads the card needs whole
            // lines.
            None => vec![&*line.text],
        };
        let dressed = |row: &str| if line.bold { self.style.bold(row) } else { row.to_owned() };
        let leads = std::iter::once(lead).chain(std::iter::repeat(&line.again));
        leads.zip(rows).map(|(lead, row)| format!("{lead}{}", dressed(row))).collect()
    }

    /// The prompt below the card.
    pub(crate) fn question(&self) -> String {
        if self.missing.is_empty() {
            return "Open the gate? [y]es, [n]o, or Enter to leave it: ".to_owned();
        }
        let word = visible(&self.word());
        format!("Not all of it was shown. Type `{word}` to open it, [n]o, or Enter to leave it: ")
    }

    /// What `line` says to [`GateCard::question`].
    pub(crate) fn answer(&self, line: &str) -> Answer {
        let line = line.trim();
        // Before the word, which may itself be `no`.
        match line.to_lowercase().as_str() {
            "" => Answer::Leave,
            "n" | "no" => Answer::Reject,
            "y" | "yes" if self.missing.is_empty() => Answer::Approve,
            "y" | "yes" => Answer::Unproven,
            _ if self.missing.is_empty() => Answer::Leave,
            // As shown or as it is: a name with invisible characters can only be typed as it is
            // shown.
            _ if line == self.word() || line == visible(&self.word()) => Answer::Approve,
            _ => Answer::Unproven,
        }
    }

    /// What has to be typed where a plain `y` is not enough: the job's name, unless that is one of
    /// the words that mean something else.
    fn word(&self) -> String {
        let name = self.job.as_str().trim();
        match name.to_lowercase().as_str() {
            // A job may be called `y`. The word must not be an answer that is typed without
            // reading.
            "" | "y" | "yes" | "n" | "no" => format!("job {name}"),
            _ => name.to_owned(),
        }
    }

    fn push_head(&mut self, run: &Run, job: &Job) {
        let name = visible(job.plan.name.as_str());
        let mark = format!("{} ", self.style.mark(Mark::Gate));
        let columns = self.style.mark_width() + 1;
        self.push(CardLine {
            again: " ".repeat(columns),
            lead: (mark, columns),
            text: format!("{name} waits at its gate."),
            bold: false,
        });
        if job.plan.irreversible {
            let text = "IRREVERSIBLE: the effect of this job cannot be undone.".to_owned();
            self.push(CardLine { bold: true, ..indented(2, text) });
        }
        if let Some(policy) = &job.plan.gate {
            self.push(indented(2, format!("It wants {}.", visible(&policy.words()))));
            let shown = views::job(run, job, JobView::Basic);
            let given = approvals(shown.policy.as_ref(), &shown.approvals);
            self.push(indented(2, format!("It has {}.", visible(&given))));
        }
    }

    /// What did not end well anywhere in the run: a gate waits for its own needs only, and who
    /// opens it should know of the rest.
    fn push_ends(&mut self, run: &Run, own: &Job) {
        let ends = run.jobs().iter().filter(|job| {
            job.plan.name != own.plan.name
                && job.state.is_over()
                && job.state != JobState::Succeeded
        });
        let mut ends = ends.peekable();
        if ends.peek().is_some() {
            self.push(indented(2, "Failed, skipped or cancelled in this run:".to_owned()));
        }
        for job in ends {
            self.push_job(job, &note(&views::job(run, job, JobView::Basic)));
        }
    }

    fn push_needs(&mut self, run: &Run, job: &Job) {
        let needs = job.plan.needs.iter().filter_map(|need| run.job(need.as_str()));
        let mut needs = needs.peekable();
        if needs.peek().is_some() {
            self.push(indented(2, "Based on:".to_owned()));
        }
        for need in needs {
            self.push_job(need, &need.state.word().replace('_', " "));
            for (key, value) in &need.outputs {
                self.push(indented(8, format!("{}={}", visible(key), visible(value))));
            }
        }
    }

    fn push_job(&mut self, job: &Job, about: &str) {
        let mark = format!("    {} ", self.style.mark(mark_of(views::job_state(&job.state))));
        let columns = self.style.mark_width() + 5;
        self.push(CardLine {
            again: " ".repeat(columns),
            lead: (mark, columns),
            text: format!("{}  {}", visible(job.plan.name.as_str()), visible(about)),
            bold: false,
        });
    }

    /// What will run: the filled-in script, and all that surrounds it.
    fn push_work(&mut self, run: &Run, job: &Job) {
        // The same function fills in what a worker is given, from the same events.
        let (work, title) = match run.assignment(job) {
            Ok(work) => (work, "The script as it will run"),
            Err(why) => {
                let (script, env) = (job.plan.script.to_string(), job.plan.env.clone());
                let open = std::iter::once(&script)
                    .chain(env.values())
                    .map(|text| open_placeholders(text))
                    .sum::<usize>();
                // The approval is still possible, but only with the word: the script is not known
                // in full.
                self.missing.push(format!("{open} placeholders have no value: {}.", visible(&why)));
                (Assignment { script, env }, "The script as it is written")
            }
        };
        if !work.env.is_empty() {
            self.push(indented(2, "Its environment:".to_owned()));
        }
        for (name, value) in &work.env {
            self.push(indented(4, format!("{}={}", visible(name), visible(value))));
        }
        if !job.plan.secrets.is_empty() {
            let names: Vec<String> = job.plan.secrets.iter().map(|name| visible(name)).collect();
            let names = names.join(", ");
            self.push(indented(2, format!("Its secrets, with values of the worker: {names}")));
        }
        if !job.plan.shell.is_empty() {
            let words: Vec<String> =
                job.plan.shell.iter().map(|word| visible(&quoted(word))).collect();
            self.push(indented(2, format!("Its shell: {}", words.join(" "))));
        }
        let script = work.script.strip_suffix('\n').unwrap_or(&work.script);
        let count = script.split('\n').count();
        let lines = if count == 1 { "1 line".to_owned() } else { format!("{count} lines") };
        self.push(indented(2, format!("{title}, {lines}:")));
        let (bar, bend) = if self.style.ascii { ('|', ':') } else { ('│', '┆') };
        for (line, number) in script.split('\n').zip(1..) {
            let lead = format!("{number:>6} {bar} ");
            let again = format!("       {bend} ");
            let columns = lead.chars().count();
            let text = visible(line);
            self.push(CardLine { lead: (lead, columns), again, text, bold: false });
        }
    }

    /// What is not shown, what an approval covers, and how to decide from elsewhere. Added whatever
    /// else is on the card: a long script must not push it off.
    fn push_foot(&mut self, run: &Run, short_id: &str) {
        let mut foot: Vec<String> =
            self.missing.iter().map(|missing| format!("NOT SHOWN: {missing}")).collect();
        let approval_digest = self.approval_digest.short();
        foot.push(format!(
            "Approval {approval_digest} covers the plan, this job and all earlier results."
        ));
        if let Some(header) = run.header() {
            foot.push(match &header.source {
                Some(source) => format!("It covers the run's files: commit {:.12}.", source.commit),
                None => {
                    let folder = visible(&header.folder);
                    format!("It does not cover files that the script reads from `{folder}`.")
                }
            });
        }
        self.lines.extend(foot.into_iter().map(|text| indented(2, text)));
        let name = safe(&quoted(self.job.as_str()));
        for command in [
            format!("tow approve {name} --run {short_id}"),
            format!("tow reject {name} --run {short_id} --comment WHY"),
        ] {
            // Whole, however narrow the terminal: a command that is cut cannot be copied.
            let lead = (format!("  {command}"), 0);
            let (again, text) = (String::new(), String::new());
            self.lines.push(CardLine { lead, again, text, bold: false });
        }
    }

    /// Adds `line`, if the card is not full.
    fn push(&mut self, line: CardLine) {
        let bytes = line.lead.0.len() + line.text.len();
        // Once something is omitted everything after it is, too: a hole in the middle of a script
        // would be harder to see than its missing end.
        if self.left_out > 0 || self.bytes + bytes > CARD_BYTES_MAX {
            self.left_out += bytes;
            return;
        }
        self.bytes += bytes;
        self.lines.push(line);
    }
}

fn indented(columns: usize, text: String) -> CardLine {
    let blanks = " ".repeat(columns);
    CardLine { again: format!("{blanks}  "), lead: (blanks, columns + 2), text, bold: false }
}

/// How many `${{ }}` are in `text`.
fn open_placeholders(text: &str) -> usize {
    placeholders(text).map_or(1, |places| places.len())
}

#[cfg(test)]
mod tests;
