//! Compares what a call gave with what its case expects, and says in words what differs.

use nex_runtime::invocation::{InvokeError, Reply};
use nex_runtime::logs::LogLine;

use crate::case::{Call, End, ExpectedBody, ExpectedError, ExpectedLog, ExpectedReply};

/// Characters of a value that a message shows.
const SHOWN: usize = 400;

/// Compares all answers of one call, the last one included.
pub(crate) fn compare(call: &Call, answers: &[Result<Reply, InvokeError>]) -> Result<(), String> {
    let Some((last, streamed)) = answers.split_last() else {
        return Err("no answer".to_owned());
    };
    let expected = call.stream.len();
    if streamed.len() != expected {
        return Err(format!(
            "{} streamed replies, expected {expected}; the answers: {answers:?}",
            streamed.len()
        ));
    }
    for (index, (answer, expected)) in streamed.iter().zip(&call.stream).enumerate() {
        let place = format!("streamed reply {}", index + 1);
        match answer {
            Ok(answer) => reply(answer, expected).map_err(|problem| format!("{place}: {problem}"))?,
            Err(error) => return Err(format!("{place}: {}", describe(error))),
        }
    }
    match (&call.end, last) {
        (End::Reply(expected), Ok(answer)) => reply(answer, expected),
        (End::Error(expected), Err(answer)) => {
            error(answer, expected).map_err(|problem| format!("{problem}\n{}", describe(answer)))
        }
        (End::Reply(_), Err(answer)) => Err(format!("failed: {}", describe(answer))),
        (End::Error(_) | End::Unsaid, Ok(answer)) => Err(format!("did not fail, but answered {}", shown(&answer.body))),
        (End::Unsaid, Err(answer)) => Err(describe(answer)),
    }
}

fn reply(answer: &Reply, expected: &ExpectedReply) -> Result<(), String> {
    match &expected.body {
        ExpectedBody::Bytes(body) if *body != answer.body => {
            return Err(format!(
                "answered {}\n          expected {}",
                shown(&answer.body),
                shown(body)
            ));
        }
        ExpectedBody::Length(length) if *length != answer.body.len() => {
            return Err(format!("answered {} bytes, expected {length}", answer.body.len()));
        }
        ExpectedBody::Bytes(_) | ExpectedBody::Length(_) => {}
    }
    if expected.headers == answer.headers {
        Ok(())
    } else {
        Err(format!("headers {:?}, expected {:?}", answer.headers, expected.headers))
    }
}

fn error(answer: &InvokeError, expected: &ExpectedError) -> Result<(), String> {
    if answer.kind.as_str() != expected.kind {
        return Err(format!("expected an error of kind {}", expected.kind));
    }
    if !expected.message.is_empty() && answer.message != expected.message {
        return Err(format!("expected the message {:?}", expected.message));
    }
    if expected.name.is_some() && answer.name != expected.name {
        return Err(format!("expected the name {:?}", expected.name));
    }
    contains_all("message", &answer.message, &expected.contains)?;
    contains_all("stack", answer.stack.as_deref().unwrap_or_default(), &expected.stack)?;
    // It goes into a header of the reply.
    if answer.message.contains(['\r', '\n']) {
        return Err("the message is more than one line".to_owned());
    }
    Ok(())
}

/// Checks that a text contains each of some parts.
pub(crate) fn contains_all(what: &str, text: &str, parts: &[String]) -> Result<(), String> {
    match parts.iter().find(|part| !text.contains(part.as_str())) {
        Some(part) => Err(format!("expected {part:?} in the {what}: {text}")),
        None => Ok(()),
    }
}

/// Compares one log line.
pub(crate) fn log(line: &LogLine, expected: &ExpectedLog) -> Result<(), String> {
    let fits = match expected {
        ExpectedLog::Is(level, text) => line.level == *level && line.text == *text,
        ExpectedLog::Contains(level, text) => line.level == *level && line.text.contains(text),
        ExpectedLog::Length(from, to) => (*from..=*to).contains(&line.text.chars().count()),
    };
    if fits {
        Ok(())
    } else {
        let text = shown(line.text.as_bytes());
        Err(format!("logged {} {text}, expected {expected:?}", line.level.as_str()))
    }
}

fn describe(error: &InvokeError) -> String {
    let InvokeError {
        kind,
        message,
        name,
        stack,
    } = error;
    format!(
        "{kind}: {message}\n  name: {name:?}\n  stack: {}",
        stack.as_deref().unwrap_or("none")
    )
}

/// Bytes for people: as text where they are text, else as hex.
fn shown(bytes: &[u8]) -> String {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => bytes.iter().map(|byte| format!("{byte:02x} ")).collect(),
    };
    if text.len() <= SHOWN {
        return text;
    }
    let head: String = text.chars().take(SHOWN).collect();
    format!("{head}… ({} bytes)", bytes.len())
}
