//! Why an attempt ended badly, as it stands in the log: always short enough for an event.

use serde::{Deserialize, Serialize};

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

/// `text`, cut to at most `bytes_max` bytes and a mark that something is missing.
pub fn bounded_text(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
