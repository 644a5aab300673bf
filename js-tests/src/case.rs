//! Reads a case: the source, and what its directives say about how to call it and what to expect.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use nex_runtime::host_services::Headers;
use nex_runtime::invocation::Trigger;
use nex_runtime::logs::LogLevel;

/// Subject of a call that names none.
const DEFAULT_SUBJECT: &str = "test.subject";

/// A function and what it must do.
#[derive(Debug, Clone)]
pub struct Case {
    /// File name; a stack trace may show it.
    pub file: String,
    /// The whole file.
    pub source: String,
    /// Wall-clock limit of a call, if not the default.
    pub(crate) wall_time: Option<Duration>,
    /// Environment it is deployed with.
    pub(crate) vars: BTreeMap<String, String>,
    /// Texts that the error of a failing load must contain; empty: it loads.
    pub(crate) load_errors: Vec<String>,
    /// Calls, in order.
    pub(crate) calls: Vec<Call>,
    /// Log lines of all calls, in order; empty: not looked at.
    pub(crate) logs: Vec<ExpectedLog>,
}

/// One call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call {
    pub(crate) trigger: Trigger,
    /// Replies before the last one.
    pub(crate) stream: Vec<ExpectedReply>,
    /// How it ends.
    pub(crate) end: End,
}

/// How a call must end.
#[derive(Debug, Clone, Default)]
pub(crate) enum End {
    #[default]
    Unsaid,
    Reply(ExpectedReply),
    Error(ExpectedError),
}

#[derive(Debug, Clone)]
pub(crate) struct ExpectedReply {
    pub(crate) body: ExpectedBody,
    pub(crate) headers: Headers,
}

#[derive(Debug, Clone)]
pub(crate) enum ExpectedBody {
    Bytes(Bytes),
    Length(usize),
}

/// What must be true of an error; empty parts are not looked at.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExpectedError {
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) name: Option<String>,
    pub(crate) contains: Vec<String>,
    pub(crate) stack: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) enum ExpectedLog {
    Is(LogLevel, String),
    Contains(LogLevel, String),
    /// Characters, from and to.
    Length(usize, usize),
}

/// A case that cannot be run because of what is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCase {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A directive is unknown or malformed.
    #[error("line {line}: {problem}")]
    Directive {
        /// Line of the file.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A call without a directive that says how it ends.
    #[error("call {0} has neither `@reply` nor `@error`")]
    NothingExpected(usize),
}

impl Case {
    /// Reads the file.
    ///
    /// # Errors
    /// [`InvalidCase`].
    pub fn read(path: &Path) -> Result<Self, InvalidCase> {
        let file = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        Self::parse(file, std::fs::read_to_string(path)?)
    }

    fn parse(file: String, source: String) -> Result<Self, InvalidCase> {
        let mut case = Self {
            file,
            source: String::new(),
            wall_time: None,
            vars: BTreeMap::new(),
            load_errors: Vec::new(),
            calls: Vec::new(),
            logs: Vec::new(),
        };
        // What stands before the first `@call` holds for every call; without any `@call` it is the only one.
        let mut current = Call::default();
        current.trigger.subject = DEFAULT_SUBJECT.to_owned();
        let defaults_end = directives(&source)
            .position(|(_, name, _)| name == "call")
            .unwrap_or(usize::MAX);
        let defaults = &mut current;
        for (line, name, value) in directives(&source).take(defaults_end) {
            case.apply(defaults, name, value)
                .map_err(|problem| InvalidCase::Directive { line, problem })?;
        }
        let defaults = current;
        if defaults_end == usize::MAX {
            case.calls.push(defaults);
        } else {
            let mut calls: Vec<Call> = Vec::new();
            for (line, name, value) in directives(&source).skip(defaults_end) {
                if name == "call" {
                    let mut call = defaults.clone();
                    call.trigger.payload = value.to_owned().into();
                    calls.push(call);
                } else if let Some(call) = calls.last_mut() {
                    case.apply(call, name, value)
                        .map_err(|problem| InvalidCase::Directive { line, problem })?;
                }
            }
            case.calls = calls;
        }
        if case.load_errors.is_empty() {
            let silent = case.calls.iter().position(|call| matches!(call.end, End::Unsaid));
            if let Some(index) = silent {
                return Err(InvalidCase::NothingExpected(index + 1));
            }
        }
        case.source = source;
        Ok(case)
    }

    fn apply(&mut self, call: &mut Call, name: &str, value: &str) -> Result<(), String> {
        match name {
            "subject" => call.trigger.subject = value.to_owned(),
            "payload" => call.trigger.payload = value.to_owned().into(),
            "payload-hex" => call.trigger.payload = hex(value)?,
            "header" => call.trigger.headers.push(pair(value, ": ")?),
            "var" => self.vars.extend([pair(value, "=")?]),
            "wall-ms" => self.wall_time = Some(Duration::from_millis(number(value)? as u64)),
            "load-error" => self.load_errors.push(value.to_owned()),

            "stream" => call.stream.push(ExpectedReply::new(value.to_owned().into())),
            "stream-header" => {
                let reply = call.stream.last_mut().ok_or("no `@stream` before it")?;
                reply.headers.push(pair(value, ": ")?);
            }
            "reply" => call.end = End::Reply(ExpectedReply::new(value.to_owned().into())),
            "reply-hex" => call.end = End::Reply(ExpectedReply::new(hex(value)?)),
            "reply-length" => {
                call.end = End::Reply(ExpectedReply {
                    body: ExpectedBody::Length(number(value)?),
                    headers: Headers::new(),
                });
            }
            "reply-header" => match &mut call.end {
                End::Reply(reply) => reply.headers.push(pair(value, ": ")?),
                _ => return Err("no `@reply` before it".to_owned()),
            },

            "error" => {
                let (kind, message) = value.split_once(' ').unwrap_or((value, ""));
                call.end = End::Error(ExpectedError {
                    kind: kind.to_owned(),
                    message: message.to_owned(),
                    ..ExpectedError::default()
                });
            }
            "error-name" => call.error()?.name = Some(value.to_owned()),
            "error-contains" => call.error()?.contains.push(value.to_owned()),
            "stack" => call.error()?.stack.push(value.to_owned()),

            "log" => {
                let (level, text) = log_line(value)?;
                self.logs.push(ExpectedLog::Is(level, text));
            }
            "log-contains" => {
                let (level, text) = log_line(value)?;
                self.logs.push(ExpectedLog::Contains(level, text));
            }
            "log-length" => {
                let (from, to) = pair(value, " ")?;
                self.logs.push(ExpectedLog::Length(number(&from)?, number(&to)?));
            }
            _ => return Err(format!("unknown directive `@{name}`")),
        }
        Ok(())
    }
}

impl Call {
    fn error(&mut self) -> Result<&mut ExpectedError, String> {
        match &mut self.end {
            End::Error(error) => Ok(error),
            _ => Err("no `@error` before it".to_owned()),
        }
    }
}

impl ExpectedReply {
    fn new(body: Bytes) -> Self {
        Self {
            body: ExpectedBody::Bytes(body),
            headers: Headers::new(),
        }
    }
}

/// Line number, name and value of each `// @name value` among the comment lines that the file begins with.
fn directives(source: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    source
        .lines()
        .enumerate()
        .map_while(|(index, line)| Some((index + 1, line.strip_prefix("//")?.trim())))
        .filter_map(|(line, comment)| {
            let directive = comment.strip_prefix('@')?;
            let (name, value) = directive.split_once(' ').unwrap_or((directive, ""));
            Some((line, name, value))
        })
}

fn hex(text: &str) -> Result<Bytes, String> {
    text.split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).map_err(|_| format!("`{byte}` is no hex byte")))
        .collect()
}

fn pair(text: &str, separator: &str) -> Result<(String, String), String> {
    text.split_once(separator)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("expected `name{separator}value`"))
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

fn log_line(text: &str) -> Result<(LogLevel, String), String> {
    let (level, text) = text.split_once(' ').unwrap_or((text, ""));
    let level = [
        LogLevel::Trace,
        LogLevel::Debug,
        LogLevel::Info,
        LogLevel::Warn,
        LogLevel::Error,
    ]
    .into_iter()
    .find(|known| known.as_str() == level)
    .ok_or_else(|| format!("`{level}` is no log level"))?;
    Ok((level, text.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

    use super::*;

    fn parse(source: &str) -> Result<Case, InvalidCase> {
        Case::parse("case.js".to_owned(), source.to_owned())
    }

    #[test]
    fn what_stands_before_the_first_call_holds_for_all() {
        let case = parse("// @subject s\n// @call a\n// @reply 1\n// @call\n// @reply\n() => 1").unwrap();
        let [first, second] = case.calls.as_slice() else {
            panic!("{:?}", case.calls)
        };
        assert_eq!(first.trigger.subject, "s");
        assert_eq!(first.trigger.payload, "a");
        assert_eq!(second.trigger.subject, "s");
        assert_eq!(second.trigger.payload, "");
    }

    #[test]
    fn only_the_first_comment_lines_count() {
        let case = parse("// @reply 1\n() => {\n// @nonsense\n}").unwrap();
        assert_eq!(case.calls.len(), 1);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let error = |source| parse(source).unwrap_err().to_string();
        assert_eq!(error("// text\n// @replay 1"), "line 2: unknown directive `@replay`");
        assert_eq!(error("// @payload-hex zz"), "line 1: `zz` is no hex byte");
        assert_eq!(error("// @stack x"), "line 1: no `@error` before it");
        assert_eq!(error("() => 1"), "call 1 has neither `@reply` nor `@error`");
        assert_eq!(
            error("// @call\n// @reply 1\n// @call"),
            "call 2 has neither `@reply` nor `@error`"
        );
    }
}
