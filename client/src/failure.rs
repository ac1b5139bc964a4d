//! What went wrong, as a person and a script are told: a code, a sentence, advice, an exit code.

use std::{fmt, io};

use tonic::Status;
use tonic_types::StatusExt as _;
use towpath_server::OpenError;

use crate::exit;

/// A command that did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Stable; docs/errors/ has a page for each.
    pub(crate) code: String,
    message: String,
    advice: String,
    exit: Option<u8>,
    /// Shown instead of the message: diagnostics of a file.
    shown: Option<String>,
}

impl Failure {
    /// A failure with `code`.
    pub(crate) fn new(code: &str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        let (code, message, advice) = (code.to_owned(), message.into(), advice.into());
        Self { code, message, advice, exit: None, shown: None }
    }

    /// A pipeline file that has errors, which `shown` draws.
    pub(crate) fn file_invalid(summary: impl Into<String>, shown: String) -> Self {
        let advice = "Nothing was started; correct the file and try again.";
        Self { shown: Some(shown), ..Self::new("FILE_INVALID", summary, advice) }
    }

    /// A file of the caller's that cannot be read or written.
    pub(crate) fn file(path: &std::path::Path, error: &io::Error) -> Self {
        let message = format!("`{}`: {error}", path.display());
        Self::new("FILE_UNREADABLE", message, "Check the path and its permissions.")
    }

    /// The same failure with other advice: what to do can depend on the command that failed.
    pub(crate) fn with_advice(self, advice: impl Into<String>) -> Self {
        Self { advice: advice.into(), ..self }
    }

    /// What went wrong, in a sentence.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Not a failure of ours: only an exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        self.exit.unwrap_or_else(|| exit::of_code(&self.code))
    }

    /// Whether the reader of our output went away, which is no failure.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.code == "BROKEN_PIPE"
    }

    /// Whether the server went away.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.code == "UNREACHABLE" || self.is_aged()
    }

    /// Whether the server is there and only wants another connection.
    pub(crate) fn is_aged(&self) -> bool {
        self.code == "CONNECTION_AGED"
    }

    /// Whether somebody else has the store open.
    pub(crate) fn is_owned(&self) -> bool {
        self.code == "STORE_OWNED"
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(shown) = &self.shown {
            writeln!(f, "{}", shown.trim_end())?;
            writeln!(f)?;
        }
        let message = towpath_engine::captured::printable(self.message.as_bytes(), false);
        write!(f, "error[{}]: {message}", self.code)?;
        if !self.advice.is_empty() {
            write!(f, "\n  = help: {}", self.advice)?;
        }
        Ok(())
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        if let Some(info) = details.error_info() {
            let advice = info.metadata.get("advice").cloned().unwrap_or_default();
            return Self {
                shown: info.metadata.get("problems").cloned(),
                ..Self::new(&info.reason, status.message(), advice)
            };
        }
        let code = status.code();
        if code == tonic::Code::Unimplemented {
            return Self::new(
                "VERSION_MISMATCH",
                "the server does not know this request",
                "Use the same version of `tow` on both sides; `tow version` shows both.",
            );
        }
        let odd = [tonic::Code::Internal, tonic::Code::OutOfRange, tonic::Code::ResourceExhausted];
        if odd.contains(&code) {
            let advice = "Try again; if it stays, report it.";
            return Self::new("UNEXPECTED", status.message(), advice);
        }
        Self::new(
            "UNREACHABLE",
            format!("the server went away: {}", status.message()),
            "Nothing that was acknowledged is lost; `tow resume` goes on.",
        )
    }
}

impl From<Box<Status>> for Failure {
    fn from(status: Box<Status>) -> Self {
        Self::from(*status)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(deeper) = cause {
            let said = deeper.to_string();
            if !message.contains(&said) {
                message = format!("{message}: {said}");
            }
            cause = deeper.source();
        }
        let advice = match error.code() {
            "STORE_OWNED" => "Wait until that process has ended.",
            "LOG_DAMAGED" | "LOG_ROLLBACK" => {
                "Nothing was skipped or guessed. docs/errors/ says how to go on."
            }
            "BACKUP_EXISTS" => "Name another file; a backup overwrites nothing.",
            "BACKUP_DAMAGED" => "Use another backup. Nothing was restored.",
            "RESTORE_TARGET_NOT_EMPTY" => "Restore to a folder that does not exist yet.",
            "STORE_URL_INVALID" => {
                "Correct `--store` or `TOW_STORE`; `tow --help` lists the forms."
            }
            "STORE_MISSING" => "Name a store with `--store`.",
            "STORE_FORMAT_UNKNOWN" => {
                "Use the version of `tow` that wrote it. From 0.1: write its runs with `tow events` \
                 and `tow export` of 0.1, then `tow import` here into a new store."
            }
            _ => "docs/errors/ has a page for this code.",
        };
        Self::new(error.code(), message, advice)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new("BROKEN_PIPE", "nobody reads the output", "");
        }
        Self::new("UNEXPECTED", error.to_string(), "Try again; if it stays, report it.")
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::from(io::Error::from(error))
    }
}
