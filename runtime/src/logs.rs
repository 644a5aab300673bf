//! What a function says: `console.*` lines, with a level, to whoever runs the function.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where the log lines of one function go. Called on the isolate's thread; it must not block.
pub trait LogSink: Send + Sync + 'static {
    /// One line, newest last.
    fn log(&self, line: LogLine);
}

impl fmt::Debug for dyn LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogSink")
    }
}

/// Any closure is a sink.
impl<F: Fn(LogLine) + Send + Sync + 'static> LogSink for F {
    fn log(&self, line: LogLine) {
        self(line);
    }
}

/// One line of a function's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Severity.
    pub level: LogLevel,
    /// The text, at most [`MAX_LOG_LINE`] characters.
    pub text: String,
}

/// Characters after which a log line is cut; the cut is marked.
pub const MAX_LOG_LINE: usize = 10_000;

/// Severity of a [`LogLine`], lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl LogLevel {
    /// Upper-case name, as log messages on `$NEX.logs.>` carry it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}
