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

/// The text with its control characters written out, for example `\x1b`: a function must not speak to the terminal of
/// whoever reads its log, nor turn the text around. Tabs and line breaks stay.
#[must_use]
pub fn printable(text: String) -> String {
    if !text.contains(is_hidden) {
        return text;
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            hidden if !is_hidden(hidden) => shown.push(hidden),
            '\r' => shown.push_str("\\r"),
            '\0'..='\u{ff}' => shown.push_str(&format!("\\x{:02x}", u32::from(character))),
            _ => shown.push_str(&format!("\\u{{{:x}}}", u32::from(character))),
        }
    }
    shown
}

/// Control characters, and those that change the direction of writing.
fn is_hidden(character: char) -> bool {
    match character {
        '\t' | '\n' => false,
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        character => character.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(printable("\ta\nb \u{e4}".into()), "\ta\nb \u{e4}");
        assert_eq!(
            printable("\u{1b}[2J\r\0\u{9b}\u{202e}".into()),
            r"\x1b[2J\r\x00\x9b\u{202e}"
        );
    }
}
