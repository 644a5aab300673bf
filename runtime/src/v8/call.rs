//! A call on its way through the engine: waiting, begun, answered.

use std::time::Instant;

use crate::invocation::{InvokeError, Reply, ReplySink, Trigger};

pub(super) type Replies = Box<dyn ReplySink>;

/// A call that waits.
pub(super) struct Call {
    pub(super) trigger: Trigger,
    pub(super) replies: Replies,
    pub(super) deadline: Instant,
}

/// A call as the isolate's thread gets it.
pub(super) struct Begun {
    /// Names the invocation, uniquely among all instances of its function.
    pub(super) key: u32,
    pub(super) trigger: Trigger,
    pub(super) deadline: Instant,
}

/// An answer on its way to a caller; given outside of all locks.
pub(super) type Answer = (Replies, Result<Reply, InvokeError>);

/// Gives answers.
pub(super) fn deliver(answers: &mut Vec<Answer>) {
    let last = answers.pop();
    for (replies, outcome) in answers.drain(..) {
        replies.finish_with_next(outcome);
    }
    if let Some((replies, outcome)) = last {
        replies.finish(outcome);
    }
}
