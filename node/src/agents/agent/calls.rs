//! Calls on an agent: handed over, answered, and answered in the agent's place when it does not.

use std::time::{Duration, Instant};

use nex_agent::link::{BULK_ROOM, CallId, FunctionId, NodeToAgent, SendError};
use nex_runtime::engine::Limits;
use nex_runtime::invocation::{ErrorKind, InvokeError, Reply, ReplySink, Trigger};

use super::service::{Condition, died};
use super::{Agent, State};
use crate::agents::error::Fault;
use crate::data_plane;

/// A call the agent has to answer.
pub(super) struct Call {
    pub(super) function: FunctionId,
    pub(super) replies: Box<dyn ReplySink>,
    /// When the node answers it in the agent's place.
    deadline: Instant,
    /// Largest reply passed on.
    reply_bytes: usize,
}

/// What became of a call given to an agent.
pub(in crate::agents) enum Submitted {
    /// The agent has it; its answer is on its way, whatever happens.
    Sent,
    /// It is answered with this, by whoever submitted it.
    Refused(Box<dyn ReplySink>, InvokeError),
    /// The agent does not run the function (any more).
    Gone(Trigger, Box<dyn ReplySink>),
}

/// Calls answered in an agent's place, within [`OVERDUE_WINDOW`], before it is taken for broken.
const MAX_OVERDUE: usize = 16;

/// After this long, the calls it left unanswered are forgotten.
const OVERDUE_WINDOW: Duration = Duration::from_secs(60);

impl Agent {
    /// Hands a call to the agent; if it is one of several, they leave with [`write_gathered`](Self::write_gathered).
    pub(in crate::agents) fn submit(
        &self,
        function: FunctionId,
        trigger: Trigger,
        replies: Box<dyn ReplySink>,
        deadline: Instant,
        one_of_several: bool,
    ) -> Submitted {
        let (call, alone) = {
            let mut state = self.state.lock();
            let state = &mut *state;
            if matches!(state.condition, Condition::Dead(_)) {
                return Submitted::Gone(trigger, replies);
            }
            let Some(deployed) = state.functions.get_mut(&function) else {
                return Submitted::Gone(trigger, replies);
            };
            let limits = &deployed.slot.spec.limits;
            if deployed.in_flight >= max_in_flight(limits) {
                let error = InvokeError::new(
                    ErrorKind::Overloaded,
                    format!("{} calls are waiting", deployed.in_flight),
                );
                return Submitted::Refused(replies, error);
            }
            deployed.in_flight += 1;
            state.in_flight += 1;
            state.last_call += 1;
            let call = CallId(state.last_call);
            state.calls.insert(
                call,
                Call {
                    function,
                    replies,
                    deadline,
                    reply_bytes: limits.reply_bytes as usize,
                },
            );
            (call, state.in_flight == 1)
        };
        let message = NodeToAgent::Trigger {
            call,
            function,
            trigger,
        };
        let sent = if one_of_several {
            self.outbox.gather(message, BULK_ROOM)
        } else if alone {
            // The agent has nothing to do: write it here, at once. Calls that follow closely go out together.
            data_plane::handed_over();
            self.outbox.send_now(message, BULK_ROOM)
        } else {
            self.outbox.try_send(message, BULK_ROOM)
        };
        let error = match sent {
            // If the link is closed, the agent's end answers the call.
            Ok(()) | Err(SendError::Closed) => return Submitted::Sent,
            Err(SendError::Full) => InvokeError::new(ErrorKind::Overloaded, "the link to the agent is congested"),
            Err(SendError::TooLarge) => {
                InvokeError::new(ErrorKind::PayloadTooLarge, "the message is too large for the link")
            }
        };
        match self.state.lock().remove_call(call) {
            Some(call) => Submitted::Refused(call.replies, error),
            None => Submitted::Sent,
        }
    }

    /// Sends what several calls have been submitted for.
    pub(in crate::agents) fn write_gathered(&self) {
        self.outbox.write_gathered();
    }

    /// The agent's last word on a call.
    pub(in crate::agents) fn finish(&self, call: CallId, outcome: Result<Reply, InvokeError>) -> Result<(), Fault> {
        let (taken, drained) = {
            let mut state = self.state.lock();
            let taken = state.take_call(call)?;
            (taken, state.is_drained())
        };
        // Late answers to calls the node has answered itself are dropped.
        if let Some(call) = taken {
            let outcome = outcome.and_then(|reply| check_size(reply, call.reply_bytes));
            call.replies.finish(outcome);
        }
        if drained {
            self.progress.notify_one();
        }
        Ok(())
    }

    /// One streamed reply of a call.
    pub(in crate::agents) fn stream(&self, id: CallId, reply: Reply) -> Result<(), Fault> {
        let taken = {
            let mut state = self.state.lock();
            state.check_call(id)?;
            state.calls.remove(&id)
        };
        let Some(mut call) = taken else {
            return Ok(());
        };
        match check_size(reply, call.reply_bytes) {
            Ok(reply) => call.replies.stream(reply),
            Err(error) => {
                self.state.lock().uncount(call.function);
                call.replies.finish(Err(error));
                return Ok(());
            }
        }
        let dead = {
            let mut state = self.state.lock();
            match &state.condition {
                Condition::Dead(death) => (call, died(&death.message)),
                Condition::Serving | Condition::Draining(_) => {
                    state.calls.insert(id, call);
                    return Ok(());
                }
            }
        };
        // It died while the sink was in use, so its end did not find the call.
        let (call, error) = dead;
        call.replies.finish(Err(error));
        Ok(())
    }

    /// Answers the calls the agent should have answered by now; true if there were so many that it must be broken.
    pub(in crate::agents) fn sweep(&self, now: Instant) -> bool {
        let (late, broken) = {
            let mut state = self.state.lock();
            let late: Vec<CallId> = state
                .calls
                .iter()
                .filter(|(_, call)| call.deadline <= now)
                .map(|(&id, _)| id)
                .collect();
            if !late.is_empty() {
                if state
                    .overdue_since
                    .is_none_or(|since| now.saturating_duration_since(since) > OVERDUE_WINDOW)
                {
                    state.overdue = 0;
                    state.overdue_since = Some(now);
                }
                state.overdue += late.len();
            }
            let late: Vec<Call> = late.into_iter().filter_map(|id| state.remove_call(id)).collect();
            (late, state.overdue > MAX_OVERDUE)
        };
        if !late.is_empty() {
            let count = late.len();
            tracing::warn!(agent = self.id, count, "the agent left calls unanswered");
            self.progress.notify_one();
        }
        for call in late {
            call.replies.finish(Err(InvokeError::new(
                ErrorKind::WallTimeout,
                "the function did not answer within its time",
            )));
        }
        broken
    }
}

impl State {
    fn check_call(&self, call: CallId) -> Result<(), Fault> {
        if call.0 == 0 || call.0 > self.last_call {
            return Err(Fault::Violation("answer to a call it was never given"));
        }
        Ok(())
    }

    fn take_call(&mut self, call: CallId) -> Result<Option<Call>, Fault> {
        self.check_call(call)?;
        Ok(self.remove_call(call))
    }

    fn remove_call(&mut self, call: CallId) -> Option<Call> {
        let call = self.calls.remove(&call)?;
        self.uncount(call.function);
        Some(call)
    }

    fn uncount(&mut self, function: FunctionId) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(deployed) = self.functions.get_mut(&function) {
            deployed.in_flight = deployed.in_flight.saturating_sub(1);
        }
    }
}

/// Calls the node lets one function have on an agent. The engine keeps the exact limits; this one bounds the memory of a
/// node whose agent does not.
fn max_in_flight(limits: &Limits) -> usize {
    let running = limits.concurrency as usize * limits.instances as usize;
    2 * (limits.queue_depth as usize + running)
}

fn check_size(reply: Reply, limit: usize) -> Result<Reply, InvokeError> {
    if reply.body.len() > limit {
        return Err(InvokeError::new(
            ErrorKind::PayloadTooLarge,
            format!("the reply has {} bytes, allowed are {limit}", reply.body.len()),
        ));
    }
    Ok(reply)
}
