//! One call of a function: the trigger that goes in, the replies or the error that come out.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::host_services::Headers;

/// The message that triggers a function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trigger {
    /// Concrete subject the message arrived on.
    pub subject: String,
    /// Subject the sender expects a reply on, if any.
    pub reply: Option<String>,
    /// Message headers.
    pub headers: Headers,
    /// Message payload.
    pub payload: Bytes,
}

/// One reply message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// Headers to send with it.
    pub headers: Headers,
    /// Its payload.
    pub body: Bytes,
}

impl From<Bytes> for Reply {
    fn from(body: Bytes) -> Self {
        Self {
            headers: Headers::new(),
            body,
        }
    }
}

/// Where the answers of one invocation go. Every invocation ends in exactly one [`finish`](ReplySink::finish).
pub trait ReplySink: Send + 'static {
    /// One reply of a streaming function; more follow.
    fn stream(&mut self, reply: Reply);
    /// The last reply, or what went wrong. After [`stream`](ReplySink::stream) a success is an empty reply, which marks
    /// the end of the stream.
    fn finish(self: Box<Self>, outcome: Result<Reply, InvokeError>);
    /// As [`finish`](ReplySink::finish), when the caller is about to finish another invocation of the same function: a
    /// sink may leave it to that one to send both.
    fn finish_with_next(self: Box<Self>, outcome: Result<Reply, InvokeError>) {
        self.finish(outcome);
    }
}

impl fmt::Debug for dyn ReplySink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplySink")
    }
}

impl ReplySink for oneshot::Sender<Result<Reply, InvokeError>> {
    fn stream(&mut self, _reply: Reply) {}
    fn finish(self: Box<Self>, outcome: Result<Reply, InvokeError>) {
        // A caller that has gone away needs no answer.
        _ = self.send(outcome);
    }
}

/// Streamed replies and then the outcome, in order.
impl ReplySink for mpsc::UnboundedSender<Result<Reply, InvokeError>> {
    fn stream(&mut self, reply: Reply) {
        _ = self.send(Ok(reply));
    }
    fn finish(self: Box<Self>, outcome: Result<Reply, InvokeError>) {
        _ = self.send(outcome);
    }
}

/// Why an invocation gave no result. The caller always gets it, as error headers on an empty reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct InvokeError {
    /// Class of the failure.
    pub kind: ErrorKind,
    /// One line for the caller: the exception as `Name: message`, or the limit that was hit.
    pub message: String,
    /// `name` of the thrown value, where an exception is the cause.
    pub name: Option<String>,
    /// JavaScript stack, where there is one; for logs and events, not for the caller.
    pub stack: Option<String>,
}

impl InvokeError {
    /// An error without an exception behind it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            name: None,
            stack: None,
        }
    }
}

/// Classes of [`InvokeError`]; the names go into the header `Nex-Error-Kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The function threw, or its promise was rejected.
    Exception,
    /// CPU time used up.
    CpuTimeout,
    /// Wall-clock time used up.
    WallTimeout,
    /// Memory limit hit.
    Memory,
    /// Too many calls are waiting.
    Overloaded,
    /// The function is not running: starting, being moved after its agent died, or being stopped.
    NotReady,
    /// A host service failed and the function did not catch it.
    HostService,
    /// The reply is larger than the server takes.
    PayloadTooLarge,
    /// The function has cost several agents and is not given another for a while.
    Quarantined,
}

impl ErrorKind {
    /// The kind as it stands in the header `Nex-Error-Kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exception => "exception",
            Self::CpuTimeout => "cpu_timeout",
            Self::WallTimeout => "wall_timeout",
            Self::Memory => "memory",
            Self::Overloaded => "overloaded",
            Self::NotReady => "not_ready",
            Self::HostService => "host_service",
            Self::PayloadTooLarge => "payload_too_large",
            Self::Quarantined => "quarantined",
        }
    }

    /// The number for the header `Nats-Service-Error-Code`, after the HTTP status that means the same.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Exception => 500,
            Self::HostService => 502,
            Self::NotReady | Self::Quarantined => 503,
            Self::CpuTimeout | Self::WallTimeout => 504,
            Self::Memory => 507,
            Self::Overloaded => 429,
            Self::PayloadTooLarge => 413,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
