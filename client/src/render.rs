//! Drawing: signs, colours and widths. What is drawn is in the files below; this one knows the
//! terminal.

pub(crate) mod board;
pub(crate) mod explanation;
pub(crate) mod gate_card;
pub(crate) mod plain;
pub(crate) mod screen;
pub(crate) mod visible;
pub(crate) mod words;

use std::io::{self, IsTerminal as _};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Default number of columns.
const WIDTH_DEFAULT: usize = 80;
/// Default number of rows.
const HEIGHT_DEFAULT: usize = 24;
/// Narrower than this, nothing can be drawn anyway.
const WIDTH_MIN: usize = 20;

/// How to draw on this terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Standard output is a terminal that a cursor can be moved on.
    pub(crate) live: bool,
    pub(crate) colour: bool,
    pub(crate) stderr_colour: bool,
    pub(crate) ascii: bool,
    /// Columns.
    pub(crate) width: usize,
}

/// What a mark means. Every meaning has a sign of its own: colour only repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Done,
    Running,
    Waiting,
    Later,
    Gate,
    Failed,
    Skipped,
    Retry,
}

impl Style {
    /// As the environment and standard output say.
    pub(crate) fn of_stdout(ascii: bool) -> Self {
        // An empty variable is as good as unset: CI systems define variables without a value.
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let forced = set("TOW_FORCE_TTY");
        let tty = io::stdout().is_terminal() || forced;
        let off = set("NO_COLOR")
            || dumb
            || std::env::var_os("CLICOLOR").is_some_and(|value| value == "0");
        let on = std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let utf8 = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|value| !value.is_empty())
            .is_none_or(|value| value != "C" && value != "POSIX");
        Self {
            // A dumb terminal cannot move its cursor, so a live view would print each picture below
            // the last.
            live: tty && !dumb,
            colour: (tty && !off) || (on && !set("NO_COLOR")),
            stderr_colour: (io::stderr().is_terminal() && !off) || (on && !set("NO_COLOR")),
            // Only if the locale was chosen: containers have none, and nearly all terminals show
            // UTF-8.
            ascii: ascii || (!utf8 && std::env::var_os("LC_ALL").is_some()),
            // Columns are subtracted from the width in many places, which would leave nothing of a
            // tiny one.
            width: width().max(WIDTH_MIN),
        }
    }

    /// This style in a window that may have another width by now.
    #[must_use]
    pub(crate) fn measured(&self) -> Self {
        Self { width: width().max(WIDTH_MIN), ..*self }
    }

    /// The sign of `mark`, coloured if that is wanted.
    pub(crate) fn mark(&self, mark: Mark) -> String {
        let (sign, plain, colour) = match mark {
            Mark::Done => ("✔", "ok", "32"),
            Mark::Running => ("●", ">>", "36"),
            Mark::Waiting => ("○", "..", "2"),
            Mark::Later => ("◷", "--", "2"),
            Mark::Gate => ("‖", "||", "35"),
            Mark::Failed => ("✖", "XX", "31"),
            Mark::Skipped => ("⊘", "~~", "33"),
            Mark::Retry => ("↻", "<>", "33"),
        };
        self.paint(colour, if self.ascii { plain } else { sign })
    }

    /// How many columns a mark takes.
    pub(crate) fn mark_width(&self) -> usize {
        if self.ascii { 2 } else { 1 }
    }

    /// `text` in bold.
    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// `text`, less important.
    pub(crate) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// What separates facts on a line.
    pub(crate) fn dot(&self) -> &'static str {
        if self.ascii { "-" } else { "·" }
    }

    /// The mark for omitted text.
    pub(crate) fn ellipsis(&self) -> &'static str {
        if self.ascii { "..." } else { "…" }
    }

    /// `text` in at most `columns` columns.
    pub(crate) fn fit(&self, text: &str, columns: usize) -> String {
        if text.width() <= columns {
            return text.to_owned();
        }
        if columns < self.ellipsis().width() {
            return String::new();
        }
        let room = columns - self.ellipsis().width();
        let mut taken = 0;
        let kept = text.chars().take_while(|next| {
            // By width and not by character: ideographs take two columns, and combining marks none.
            taken += next.width().unwrap_or(0);
            taken <= room
        });
        kept.collect::<String>() + self.ellipsis()
    }

    /// `text` in exactly `columns` columns.
    pub(crate) fn pad(&self, text: &str, columns: usize) -> String {
        let text = self.fit(text, columns);
        let missing = columns.saturating_sub(text.width());
        text + &" ".repeat(missing)
    }
}

/// `text` of unknown origin, safe to show on one line.
pub(crate) fn safe(text: &str) -> String {
    towpath_engine::captured_output::printable(text.as_bytes(), false)
}

/// A worker as people see it: `local/<run>` is this machine.
pub(crate) fn worker_word(worker: &str) -> String {
    let own = worker.starts_with(towpath_engine::scheduler::LOCAL_WORKER_PREFIX);
    safe(if own { "local" } else { worker })
}

/// Rows of the terminal, now.
pub(crate) fn height() -> usize {
    terminal_size::terminal_size().map_or(HEIGHT_DEFAULT, |(_, height)| height.0.into())
}

fn width() -> usize {
    let asked = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    // 1 is the usual value that switches it on, and not a width.
    if let Some(columns) = asked("TOW_FORCE_TTY").filter(|columns| *columns > 1) {
        return columns;
    }
    if let Some((terminal_size::Width(columns), _)) = terminal_size::terminal_size() {
        return columns.into();
    }
    asked("COLUMNS").unwrap_or(WIDTH_DEFAULT)
}

#[cfg(test)]
pub(crate) mod tests {
    use towpath_engine::{
        decide::{Command, CreateRun, LeaseJob, carry_out},
        ids::{Actor, Digest, StageName},
        plan::{JobPlan, Plan},
        run::Run,
        time::Timestamp,
    };

    use super::*;

    /// A run of `jobs`, by human:ana at the beginning of time, with their stages in order.
    pub(crate) fn begun(jobs: Vec<JobPlan>) -> Run {
        begun_at_once(jobs, 4)
    }

    /// The same, with so many jobs at once.
    pub(crate) fn begun_at_once(jobs: Vec<JobPlan>, parallelism: u32) -> Run {
        let mut stages: Vec<StageName> = jobs.iter().map(|job| job.stage.clone()).collect();
        stages.dedup();
        let create = CreateRun {
            run: "7f3ca10b2d4e6f80".into(),
            file: "towpath.yml".into(),
            folder: "/srv".into(),
            file_sha256: Digest([0; 32]),
            plan: Plan { pipeline: "shop".into(), stages, jobs, timeout_ms: None },
            parallelism,
            gates_preapproved: false,
            traceparent: None,
            idempotency_key: None,
            source: None,
            requester: towpath_engine::gate::Identity::default(),
            authors: None,
        };
        let mut run = Run::default();
        carry_out(&mut run, &Command::Create(create), &Actor::human("ana"), Timestamp(0)).unwrap();
        run
    }

    /// Leases the first job that can be, to the worker `local`, a second after the beginning.
    pub(crate) fn lease(run: &mut Run) {
        let lease = LeaseJob {
            worker: "local".into(),
            tags: Vec::new(),
            lease_ms: 1,
            busy: Default::default(),
            only: None,
        };
        carry_out(run, &Command::Lease(lease), &Actor::human("ana"), Timestamp(1_000)).unwrap();
    }

    pub(crate) fn bare(width: usize) -> Style {
        Style { live: false, colour: false, stderr_colour: false, ascii: false, width }
    }

    #[test]
    fn text_is_cut_by_columns_and_not_by_bytes() {
        let style = bare(80);
        assert_eq!(style.fit("customers", 9), "customers");
        assert_eq!(style.fit("customers", 5), "cust…");
        assert_eq!(style.fit("顧客データ", 5), "顧客…");
        assert_eq!(style.pad("ab", 4), "ab  ");
    }

    #[test]
    fn every_mark_has_a_sign_of_its_own() {
        let marks = [
            Mark::Done,
            Mark::Running,
            Mark::Waiting,
            Mark::Later,
            Mark::Gate,
            Mark::Failed,
            Mark::Skipped,
            Mark::Retry,
        ];
        for ascii in [false, true] {
            let style = Style { ascii, ..bare(80) };
            let signs: std::collections::BTreeSet<_> =
                marks.iter().map(|mark| style.mark(*mark)).collect();
            assert_eq!(signs.len(), marks.len());
        }
    }
}
