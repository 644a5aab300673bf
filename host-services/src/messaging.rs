//! The messaging service: publish, request one reply, request many.
//!
//! Subjects, headers and sizes have been checked by the time a backend sees them.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use nex_runtime::host_services::{Headers, HostError};

mod memory;
mod nats;

pub use memory::{MemoryMessaging, Subscription};
pub use nats::NatsMessaging;

/// A message on its way or just arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Concrete subject.
    pub subject: String,
    /// Subject for replies, where the sender expects any.
    pub reply: Option<String>,
    /// Headers. Those of an arrived message are sorted by name, as their order on the wire is lost; values of one name
    /// keep their order.
    pub headers: Headers,
    /// Content.
    pub payload: Bytes,
}

/// When gathering replies ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gather {
    /// Time in all.
    pub timeout: Duration,
    /// Replies, if limited; at least 1.
    pub max_replies: Option<u32>,
    /// Bytes of all payloads; more is `LIMIT_EXCEEDED`.
    pub max_bytes: usize,
}

/// A messaging system.
pub trait Messaging: fmt::Debug + Send + Sync + 'static {
    /// Sends a message, at most once: it is handed to the connection, and no error says that it got lost later.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the connection takes no more messages.
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), HostError>>;

    /// Sends a message and waits for the first reply.
    ///
    /// # Errors
    /// `NO_RESPONDERS` if nobody listens, `TIMEOUT` if nobody answers, `UNAVAILABLE` without a connection.
    fn request(&self, message: Message, timeout: Duration) -> BoxFuture<'_, Result<Message, HostError>>;

    /// Sends a message and gathers replies; none in time is an empty list.
    ///
    /// # Errors
    /// `NO_RESPONDERS` if nobody listens, `LIMIT_EXCEEDED` for too many bytes, `UNAVAILABLE` without a connection.
    fn request_many(&self, message: Message, gather: Gather) -> BoxFuture<'_, Result<Vec<Message>, HostError>>;

    /// Bytes a message may have, headers included.
    fn max_payload(&self) -> usize;
}

/// Replies gathered so far.
struct Gathered {
    gather: Gather,
    bytes: usize,
    replies: Vec<Message>,
}

impl Gathered {
    fn new(gather: Gather) -> Self {
        Self {
            gather,
            bytes: 0,
            replies: Vec::new(),
        }
    }

    /// Adds a reply; returns whether there is to be another.
    fn add(&mut self, reply: Message) -> Result<bool, HostError> {
        self.bytes += reply.payload.len();
        if self.bytes > self.gather.max_bytes {
            return Err(crate::error::limit(format!(
                "replies have more than {} bytes in all",
                self.gather.max_bytes
            )));
        }
        self.replies.push(reply);
        let count = u32::try_from(self.replies.len()).unwrap_or(u32::MAX);
        Ok(self.gather.max_replies.is_none_or(|max| count < max))
    }
}

/// Sorts headers by name and leaves values of one name in order.
fn sort_headers(headers: &mut Headers) {
    headers.sort_by(|(a, _), (b, _)| a.cmp(b));
}
