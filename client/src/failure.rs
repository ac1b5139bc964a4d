//! A failure of a command: a code, a message, advice, an exit code.

use std::{fmt, io};

use tonic::Status;
use tonic_types::StatusExt as _;
use towpath_engine::code::{ErrorClass, ErrorCode, ErrorCodeUnknown};

use crate::{advice, exit};

/// A code, as far as this version knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Code {
    Known(ErrorCode),
    /// A server of a later version sent it; its gRPC code says what kind of failure it is.
    Newer {
        code: String,
        class: ErrorClass,
    },
    /// The reader of the output has closed it, which is not a failure.
    BrokenPipe,
}

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
    advice: String,
    /// Shown instead of the message: diagnostics of a file.
    shown: Option<String>,
}

impl Failure {
    /// A failure with `code`, and advice for this case.
    pub(crate) fn new(
        code: ErrorCode,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::of(Code::Known(code), message, advice)
    }

    /// A failure with `code`, and the advice that it always has.
    pub(crate) fn known(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(code, message, advice::of(code))
    }

    fn of(code: Code, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { code, message: message.into(), advice: advice.into(), shown: None }
    }

    /// A pipeline file that has errors, which `shown` draws.
    pub(crate) fn file_invalid(summary: impl Into<String>, shown: String) -> Self {
        let advice = "Nothing was started; correct the file and try again.";
        Self { shown: Some(shown), ..Self::new(ErrorCode::FileInvalid, summary, advice) }
    }

    /// A file of the caller's that cannot be read or written.
    pub(crate) fn file(path: &std::path::Path, error: &io::Error) -> Self {
        let message = format!("`{}`: {error}", path.display());
        Self::new(ErrorCode::FileUnreadable, message, "Check the path and its permissions.")
    }

    /// The same failure with other advice: what to do can depend on the command that failed.
    pub(crate) fn with_advice(self, advice: impl Into<String>) -> Self {
        Self { advice: advice.into(), ..self }
    }

    /// What went wrong, in a sentence.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The code, if this version knows it.
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        match &self.code {
            Code::Known(code) => Some(*code),
            Code::Newer { .. } | Code::BrokenPipe => None,
        }
    }

    /// Whether this is the code.
    pub(crate) fn is(&self, code: ErrorCode) -> bool {
        self.code() == Some(code)
    }

    /// The code as it is written.
    pub(crate) fn code_text(&self) -> &str {
        match &self.code {
            Code::Known(code) => code.as_str(),
            Code::Newer { code, .. } => code,
            Code::BrokenPipe => "BROKEN_PIPE",
        }
    }

    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match &self.code {
            Code::Known(code) => exit::of_class(code.class()),
            Code::Newer { class, .. } => exit::of_class(*class),
            Code::BrokenPipe => exit::DONE,
        }
    }

    /// Whether the reader of our output has closed it, which is not a failure.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.code == Code::BrokenPipe
    }

    /// Whether the connection to the server was lost.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.is(ErrorCode::Unreachable) || self.is_aged()
    }

    /// Whether the server is there and only wants another connection.
    pub(crate) fn is_aged(&self) -> bool {
        self.is(ErrorCode::ConnectionAged)
    }

    /// Whether another process has the store open.
    pub(crate) fn is_owned(&self) -> bool {
        self.is(ErrorCode::StoreOwned)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(shown) = &self.shown {
            writeln!(f, "{}", shown.trim_end())?;
            writeln!(f)?;
        }
        // Messages quote names and texts of servers and jobs, which could control the terminal.
        let message = towpath_engine::captured_output::printable(self.message.as_bytes(), false);
        write!(f, "error[{}]: {message}", self.code_text())?;
        if !self.advice.is_empty() {
            write!(f, "\n  = help: {}", self.advice)?;
        }
        Ok(())
    }
}

/// The class of a gRPC code, for a status without details.
fn class_of(code: tonic::Code) -> ErrorClass {
    use tonic::Code as C;
    match code {
        C::Ok | C::Unknown => ErrorClass::Unexpected,
        C::Cancelled | C::Unavailable => ErrorClass::Unreachable,
        C::InvalidArgument | C::OutOfRange => ErrorClass::Usage,
        C::DeadlineExceeded => ErrorClass::TimedOut,
        C::NotFound => ErrorClass::NotFound,
        C::AlreadyExists => ErrorClass::AlreadyExists,
        C::PermissionDenied => ErrorClass::Forbidden,
        C::ResourceExhausted => ErrorClass::NoRoom,
        C::FailedPrecondition => ErrorClass::Conflict,
        C::Aborted => ErrorClass::Contended,
        C::Unimplemented => ErrorClass::Unsupported,
        C::Internal => ErrorClass::Bug,
        C::DataLoss => ErrorClass::Damaged,
        C::Unauthenticated => ErrorClass::Unauthenticated,
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        if let Some(info) = details.error_info() {
            let shown = info.metadata.get("problems").cloned();
            let failure = match info.reason.parse::<ErrorCode>() {
                Ok(code) => Self::known(code, status.message()),
                Err(ErrorCodeUnknown) => {
                    let class = class_of(status.code());
                    let code = Code::Newer { code: info.reason.clone(), class };
                    Self::of(code, status.message(), advice::of_class(class))
                }
            };
            return Self { shown, ..failure };
        }
        let code = status.code();
        // Without details it comes from the transport: the method does not exist there.
        if code == tonic::Code::Unimplemented {
            return Self::new(
                ErrorCode::VersionMismatch,
                "the server does not know this request",
                "Use the same version of `tow` on both sides; `tow version` shows both.",
            );
        }
        // Without details these are errors of the transport itself, and not of a server that is out
        // of reach.
        let odd = [tonic::Code::Internal, tonic::Code::OutOfRange, tonic::Code::ResourceExhausted];
        if odd.contains(&code) {
            let advice = "Try again; if it happens again, report it.";
            return Self::new(ErrorCode::Unexpected, status.message(), advice);
        }
        Self::new(
            ErrorCode::Unreachable,
            format!("the connection to the server was lost: {}", status.message()),
            "Nothing that was acknowledged is lost; `tow resume` continues.",
        )
    }
}

impl From<Box<Status>> for Failure {
    fn from(status: Box<Status>) -> Self {
        Self::from(*status)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::of(Code::BrokenPipe, "the reader of the output has closed it", "");
        }
        Self::new(
            ErrorCode::Unexpected,
            error.to_string(),
            "Try again; if it happens again, report it.",
        )
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::from(io::Error::from(error))
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn status(reason: &str, code: tonic::Code) -> Failure {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "towpath", std::collections::HashMap::new());
        Status::with_error_details(code, "it is so", details).into()
    }

    #[test]
    fn a_code_of_a_server_is_shown_with_advice_of_ours() {
        let failure = status("RUN_UNKNOWN", tonic::Code::NotFound);
        assert_eq!(failure.exit_code(), exit::NOT_FOUND);
        let shown = failure.to_string();
        assert!(
            shown.contains("error[RUN_UNKNOWN]: it is so\n  = help: See `tow list`"),
            "{shown}"
        );
    }

    #[test]
    fn a_code_of_a_later_version_is_shown_as_it_is_and_ends_with_its_class() {
        let failure = status("MOON_FULL", tonic::Code::PermissionDenied);
        assert_eq!((failure.code(), failure.exit_code()), (None, exit::FORBIDDEN));
        assert!(failure.to_string().starts_with("error[MOON_FULL]: it is so"), "{failure}");
        assert_eq!(status("X", tonic::Code::DataLoss).exit_code(), exit::DAMAGED);
    }
}
