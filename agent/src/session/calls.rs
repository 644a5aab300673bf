//! Answers of a function on their way to the node.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nex_runtime::engine::{Function, Invocation};
use nex_runtime::invocation::{ErrorKind, InvokeError, Reply, ReplySink, Trigger};

use crate::link::{AgentToNode, BULK_ROOM, CallId, FunctionId, SendError};

use super::Shared;

/// How long a streamed reply may hold up its isolate's thread when the node does not keep up. Short against the grace
/// period after which an engine gives a thread up.
const STREAM_PATIENCE: Duration = Duration::from_millis(100);

/// Calls of one function that have arrived together, on their way to it.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Which; `None` until a call has come.
    pub(super) function: Option<FunctionId>,
    /// `None`: it is not loaded here.
    pub(super) target: Option<Arc<dyn Function>>,
    calls: Vec<Invocation>,
}

impl Calls {
    pub(super) fn push(&mut self, trigger: Trigger, replies: LinkReply) {
        if self.target.is_none() {
            return replies.not_ready("the function is not loaded here");
        }
        self.calls.push(Invocation {
            trigger,
            replies: Box::new(replies),
        });
    }

    /// Hands the calls over. What comes next may be for another function, or concern this one.
    pub(super) fn invoke(&mut self) {
        let Self { target, calls, .. } = std::mem::take(self);
        if let Some(target) = target.filter(|_| !calls.is_empty()) {
            target.invoke_all(calls);
        }
    }
}

/// Sends the answers of one call. Dropped without an outcome it says so: a caller is never left without.
#[derive(Debug)]
pub(super) struct LinkReply {
    shared: Arc<Shared>,
    call: CallId,
    finished: bool,
    /// The stream has a gap; the outcome tells.
    overrun: Option<SendError>,
}

impl LinkReply {
    pub(super) fn new(shared: Arc<Shared>, call: CallId) -> Self {
        shared.in_flight.fetch_add(1, Ordering::AcqRel);
        Self {
            shared,
            call,
            finished: false,
            overrun: None,
        }
    }

    /// Answers a call that no function took.
    pub(super) fn not_ready(mut self, message: &str) {
        self.answer(Err(InvokeError::new(ErrorKind::NotReady, message)), false);
    }

    fn answer(&mut self, outcome: Result<Reply, InvokeError>, another_follows: bool) {
        self.finished = true;
        let call = self.call;
        let message = match outcome {
            Ok(reply) => AgentToNode::Reply { call, reply },
            Err(error) => AgentToNode::ReplyError {
                call,
                error: cut(error),
            },
        };
        // The call counts as in flight until its answer is queued: a drain must not overtake it.
        let alone = self.shared.in_flight.load(Ordering::Acquire) == 1;
        let sent = if another_follows {
            self.shared.outbox.gather(message, usize::MAX)
        } else if alone {
            // No other answer is about to join this one: write it here and spare the link thread a wake-up.
            self.shared.outbox.send_now(message, usize::MAX)
        } else {
            self.shared.outbox.send(message)
        };
        if sent == Err(SendError::TooLarge) {
            let error = InvokeError::new(ErrorKind::PayloadTooLarge, "the reply is too large for the link");
            super::send(&self.shared.outbox, AgentToNode::ReplyError { call, error });
        }
        if self.shared.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.idle.notify_one();
        }
    }

    /// What the caller is told in the end: of a stream with a gap, that it has one.
    fn outcome(&self, outcome: Result<Reply, InvokeError>) -> Result<Reply, InvokeError> {
        match self.overrun {
            None | Some(SendError::Closed) => outcome,
            Some(SendError::Full) => Err(InvokeError::new(
                ErrorKind::Overloaded,
                "the node does not keep up with the streamed replies",
            )),
            Some(SendError::TooLarge) => Err(InvokeError::new(
                ErrorKind::PayloadTooLarge,
                "a streamed reply is too large for the link",
            )),
        }
    }
}

impl ReplySink for LinkReply {
    fn stream(&mut self, reply: Reply) {
        if self.overrun.is_some() {
            return;
        }
        let message = AgentToNode::Stream { call: self.call, reply };
        let sent = self.shared.outbox.send_blocking(message, BULK_ROOM, STREAM_PATIENCE);
        self.overrun = sent.err();
    }

    fn finish(mut self: Box<Self>, outcome: Result<Reply, InvokeError>) {
        let outcome = self.outcome(outcome);
        self.answer(outcome, false);
    }

    fn finish_with_next(mut self: Box<Self>, outcome: Result<Reply, InvokeError>) {
        let outcome = self.outcome(outcome);
        self.answer(outcome, true);
    }
}

impl Drop for LinkReply {
    fn drop(&mut self) {
        if !self.finished {
            self.answer(
                Err(InvokeError::new(ErrorKind::NotReady, "the engine dropped the call")),
                false,
            );
        }
    }
}

/// Most bytes of an error's texts that travel; a function may throw an `Error` with any message.
const MAX_ERROR_TEXT: usize = 64 << 10;

fn cut(mut error: InvokeError) -> InvokeError {
    cut_text(&mut error.message);
    error.name.iter_mut().for_each(cut_text);
    error.stack.iter_mut().for_each(cut_text);
    error
}

fn cut_text(text: &mut String) {
    text.truncate(text.floor_char_boundary(MAX_ERROR_TEXT));
}
