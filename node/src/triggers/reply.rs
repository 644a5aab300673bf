//! The answer to one call, sent from the thread that completes it. Every call with a reply subject is answered.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Instant;

use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject};
use bytes::Bytes;
use nex_runtime::host_services::Headers;
use nex_runtime::invocation::{ErrorKind, InvokeError, Reply, ReplySink};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Subscription;
use crate::outbound::{Outbound, wire_len};

/// Longest error text in a header, in bytes.
const MAX_ERROR_BYTES: usize = 1_024;

/// Header with a number after the HTTP status that means the same.
pub(crate) const ERROR_CODE: &str = "Nats-Service-Error-Code";
/// Header with one line for people.
pub(crate) const ERROR: &str = "Nats-Service-Error";
/// Header with the class of the failure.
pub(crate) const ERROR_KIND: &str = "Nex-Error-Kind";
/// Header with the `name` of what was thrown.
pub(crate) const ERROR_NAME: &str = "Nex-Error-Name";

/// Where the answer of one call goes, and who hears of it.
pub(super) struct ReplyTo {
    pub(super) reply_to: Option<Subject>,
    pub(super) subscription: Arc<Subscription>,
    pub(super) started: Instant,
    pub(super) finished: bool,
    /// Why the rest of its stream is not sent. The caller learns of it at the end.
    pub(super) cut: Option<InvokeError>,
    /// Counts the call as unanswered.
    pub(super) _call: TaskTrackerToken,
}

impl ReplySink for ReplyTo {
    fn stream(&mut self, reply: Reply) {
        if self.cut.is_some() {
            return;
        }
        let subject = self.reply_to.clone();
        let sent = self.message(reply).map(|message| match subject.zip(message) {
            Some((subject, (headers, body))) => self.outbound().send_streamed(subject, headers, body),
            None => true,
        });
        match sent {
            Ok(true) => {}
            Ok(false) => {
                let message = "the stream was cut: too many messages wait for NATS";
                self.cut = Some(InvokeError::new(ErrorKind::Overloaded, message));
            }
            // The function streams on; the caller learns by this message that its stream has a hole.
            Err(error) => self.fail(&error),
        }
    }

    fn finish(mut self: Box<Self>, outcome: Result<Reply, InvokeError>) {
        self.conclude(outcome);
    }
}

impl Drop for ReplyTo {
    /// An engine that drops a call instead of finishing it must not leave the caller waiting.
    fn drop(&mut self) {
        if !self.finished {
            self.conclude(Err(InvokeError::new(
                ErrorKind::NotReady,
                "the call was abandoned by the engine",
            )));
        }
    }
}

impl ReplyTo {
    fn conclude(&mut self, outcome: Result<Reply, InvokeError>) {
        self.finished = true;
        let elapsed = self.started.elapsed();
        let sent = match self.cut.take() {
            Some(error) => Err(error),
            None => outcome.and_then(|reply| self.message(reply)),
        };
        let sent = sent.map(|message| {
            if let Some((subject, (headers, body))) = self.reply_to.take().zip(message) {
                self.outbound().send(subject, headers, body);
            }
        });
        let Subscription { subject, target, .. } = &*self.subscription;
        match sent {
            Ok(()) => target.reporter.succeeded(subject, elapsed),
            Err(error) => {
                self.fail(&error);
                target.reporter.failed(subject, elapsed, &error);
            }
        }
    }

    fn outbound(&self) -> &Outbound {
        &self.subscription.target.outbound
    }

    /// Headers and body of a reply, if someone waits for one and it can be sent.
    fn message(&self, reply: Reply) -> Result<Option<(Option<HeaderMap>, Bytes)>, InvokeError> {
        if self.reply_to.is_none() {
            return Ok(None);
        }
        let headers = header_map(&reply.headers)?;
        let limit = self.outbound().client().max_payload();
        let len = wire_len(headers.as_ref(), &reply.body);
        if len > limit {
            return Err(InvokeError::new(
                ErrorKind::PayloadTooLarge,
                format!("the reply has {len} bytes with its headers, the server takes {limit}"),
            ));
        }
        Ok(Some((headers, reply.body)))
    }

    fn fail(&self, error: &InvokeError) {
        if let Some(reply_to) = &self.reply_to {
            self.outbound()
                .send(reply_to.clone(), Some(error_headers(error)), Bytes::new());
        }
    }
}

/// Headers a function gave its reply. An invalid one is the function's mistake, and the caller hears of it.
fn header_map(headers: &Headers) -> Result<Option<HeaderMap>, InvokeError> {
    if headers.is_empty() {
        return Ok(None);
    }
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let parsed = HeaderName::from_str(name)
            .ok()
            .filter(|_| !name.is_empty())
            .zip(HeaderValue::from_str(value).ok());
        let Some((name, value)) = parsed else {
            return Err(InvokeError::new(
                ErrorKind::Exception,
                format!("reply header {name:?} has a name or value that NATS does not allow"),
            ));
        };
        map.append(name, value);
    }
    Ok(Some(map))
}

fn error_headers(error: &InvokeError) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ERROR_CODE, HeaderValue::from(error.kind.code()));
    headers.insert(ERROR, one_line(&error.message).as_str());
    headers.insert(ERROR_KIND, error.kind.as_str());
    if let Some(name) = &error.name {
        headers.insert(ERROR_NAME, one_line(name).as_str());
    }
    headers
}

/// A text fit for a header: white space and control characters become spaces, and it ends after
/// [`MAX_ERROR_BYTES`], with a mark.
pub(crate) fn one_line(text: &str) -> String {
    const MARK: &str = "...";
    let mut line = String::with_capacity(text.len().min(MAX_ERROR_BYTES));
    for c in text.trim().chars() {
        let c = if c.is_control() || c.is_whitespace() { ' ' } else { c };
        if line.len() + c.len_utf8() > MAX_ERROR_BYTES - MARK.len() {
            line.push_str(MARK);
            break;
        }
        line.push(c);
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn error_texts_fit_into_a_header() {
        assert_eq!(one_line(" a\r\nNex-Evil: 1\tb\u{2028}c\0d "), "a  Nex-Evil: 1 b c d");
        let long = one_line(&"ä".repeat(2_000));
        assert!(long.len() <= MAX_ERROR_BYTES && long.ends_with("..."));
        let mut error = InvokeError::new(ErrorKind::Exception, "Type\r\nError: x");
        error.name = Some("Type\nError".to_owned());
        let headers = error_headers(&error);
        assert_eq!(headers.get(ERROR_CODE).unwrap().as_str(), "500");
        assert_eq!(headers.get(ERROR).unwrap().as_str(), "Type  Error: x");
        assert_eq!(headers.get(ERROR_KIND).unwrap().as_str(), "exception");
        assert_eq!(headers.get(ERROR_NAME).unwrap().as_str(), "Type Error");
    }

    #[test]
    fn reply_headers_are_checked() {
        let header = |name: &str, value: &str| header_map(&vec![(name.to_owned(), value.to_owned())]);
        assert!(header_map(&Headers::new()).unwrap().is_none());
        assert_eq!(header("X-A", "1").unwrap().unwrap().get("X-A").unwrap().as_str(), "1");
        for (name, value) in [("X A", "1"), ("X:A", "1"), ("", "1"), ("X-A", "1\r\nX-B: 2")] {
            assert_eq!(header(name, value).unwrap_err().kind, ErrorKind::Exception, "{name:?}");
        }
    }
}
