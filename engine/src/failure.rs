//! Why an attempt ended badly, as in the log: always short enough for an event.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::duration_words;

/// Why an attempt ended badly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCause {
    /// The script ended with this code, which is not 0.
    ExitCode(i32),
    /// A signal of this number ended the script.
    Signal(i32),
    /// The script ran longer than this many milliseconds.
    TimedOut(u64),
    /// The script never started; why.
    NotStarted(String),
    /// The script ended well, but what it left behind cannot be used; why.
    OutputUnusable(String),
    /// The job was given to a worker this many times and none came back.
    Lost(u32),
    /// The attempt ended, but its worker's report of that cannot be recorded as it is; why.
    ReportInvalid(String),
}

/// Longest explanation in a [`FailureCause`], in bytes. Source: JSON writes one byte as six at
/// most, and an event of that still fits its 60 KiB beside everything else in it.
pub const CAUSE_BYTES_MAX: usize = 4 * 1024;

impl FailureCause {
    /// The cause, with an explanation that always fits an event.
    ///
    /// Explanations come from workers, scripts and systems. A failure that cannot be recorded
    /// because its explanation is too long would leave its job leased for ever.
    #[must_use]
    pub fn bounded(self) -> Self {
        let cut = |why| bounded_text(why, CAUSE_BYTES_MAX);
        match self {
            Self::NotStarted(why) => Self::NotStarted(cut(why)),
            Self::OutputUnusable(why) => Self::OutputUnusable(cut(why)),
            Self::ReportInvalid(why) => Self::ReportInvalid(cut(why)),
            Self::ExitCode(_) | Self::Signal(_) | Self::TimedOut(_) | Self::Lost(_) => self,
        }
    }
}

impl FailureCause {
    /// The cause in one word, for programs.
    pub fn class(&self) -> &'static str {
        match self {
            Self::ExitCode(_) => "exit_code",
            Self::Signal(_) => "signal",
            Self::TimedOut(_) => "timeout",
            Self::NotStarted(_) => "not_started",
            Self::OutputUnusable(_) => "output_unusable",
            Self::Lost(_) => "lost",
            Self::ReportInvalid(_) => "report_invalid",
        }
    }

    /// The cause in words of ours only: what a script, a worker or a system said is omitted,
    /// because it may hold what only readers of the log may see.
    pub fn brief(&self) -> String {
        match self {
            Self::ExitCode(code) => format!("exit code {code}"),
            Self::Signal(signal) => format!("ended by signal {signal}"),
            Self::TimedOut(ms) => format!("took longer than {}", duration_words(*ms)),
            Self::NotStarted(_) => "could not start".to_owned(),
            Self::OutputUnusable(_) => "left something unusable".to_owned(),
            Self::Lost(times) => format!("lost {times} workers"),
            Self::ReportInvalid(_) => "its worker's report is invalid".to_owned(),
        }
    }
}

/// The cause in words, and what was said about it. That may hold any character.
impl fmt::Display for FailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.brief())?;
        match self {
            Self::NotStarted(why) | Self::OutputUnusable(why) | Self::ReportInvalid(why) => {
                write!(f, ": {why}")
            }
            Self::ExitCode(_) | Self::Signal(_) | Self::TimedOut(_) | Self::Lost(_) => Ok(()),
        }
    }
}

/// `text`, cut to at most `bytes_max` bytes and a mark that something is missing.
pub fn bounded_text(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        // Cut at a character, because half of one is not UTF-8 and could not be written as JSON.
        let end = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_in_words_in_short_and_as_a_class() {
        let said = || "a\tb".to_owned();
        let causes = [
            FailureCause::ExitCode(75),
            FailureCause::Signal(9),
            FailureCause::TimedOut(1_000),
            FailureCause::NotStarted(said()),
            FailureCause::OutputUnusable(said()),
            FailureCause::Lost(3),
            FailureCause::ReportInvalid(said()),
        ];
        let words: Vec<String> = causes
            .iter()
            .map(|cause| format!("{} | {} | {cause}", cause.class(), cause.brief()))
            .collect();
        assert_eq!(
            words,
            [
                "exit_code | exit code 75 | exit code 75",
                "signal | ended by signal 9 | ended by signal 9",
                "timeout | took longer than 1.0s | took longer than 1.0s",
                "not_started | could not start | could not start: a\tb",
                "output_unusable | left something unusable | left something unusable: a\tb",
                "lost | lost 3 workers | lost 3 workers",
                "report_invalid | its worker's report is invalid | \
                 its worker's report is invalid: a\tb",
            ]
        );
    }
}
