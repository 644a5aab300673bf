//! How a command fails: one line for people, and an exit status for programs.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use crate::connection::ConnectionError;

/// Classes of failure, with their exit statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Whoever reads standard output has seen enough, such as `head`: no failure of ours.
    Unread = 0,
    /// It was tried and failed: the function threw, a node refused, nothing matched.
    Failed = 1,
    /// The command line, a setting or a file it names is wrong. The status is that of the argument parser.
    Usage = 2,
    /// No server or no node answered.
    Unreachable = 3,
}

/// Why a command ends with a status other than 0.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: Status,
    /// `None` if all has been said already.
    pub(super) message: Option<String>,
}

impl Failure {
    pub(super) fn failed(message: impl Display) -> Self {
        Self::new(Status::Failed, message)
    }

    pub(super) fn usage(message: impl Display) -> Self {
        Self::new(Status::Usage, message)
    }

    pub(super) fn unreachable(message: impl Display) -> Self {
        Self::new(Status::Unreachable, message)
    }

    /// The function or the node has already been quoted; only the status is left to set.
    pub(super) fn silent(status: Status) -> Self {
        Self { status, message: None }
    }

    /// The same failure with another message.
    pub(super) fn map(mut self, change: impl FnOnce(&str) -> String) -> Self {
        self.message = self.message.as_deref().map(change);
        self
    }

    fn new(status: Status, message: impl Display) -> Self {
        Self {
            status,
            message: Some(message.to_string()),
        }
    }

    /// Writes the message to standard error and gives the exit status.
    pub(super) fn report(self) -> ExitCode {
        if let Some(message) = self.message {
            super::output::diagnostic(&format!("⛔ {message}"));
        }
        ExitCode::from(self.status as u8)
    }
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Self {
        if error.is_usage() {
            Self::usage(error)
        } else {
            Self::unreachable(error)
        }
    }
}

/// Failing to write to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(Status::Unread);
        }
        Self::failed(format_args!("cannot write the result: {error}"))
    }
}
