//! Host calls of an agent's functions, carried out here with the identity of the function they come from. Bounded in
//! number for each function and in bytes for each agent; abandoned when the function gives up or the agent ends.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use nex_agent::link::{BULK_ROOM, CallId, FunctionId, Message, NodeToAgent, SendError, max_pending_host_calls};
use nex_runtime::host_services::{HostError, HostErrorCode, HostRequest, HostResponse};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::agent::Agent;
use super::error::Fault;

/// KiB of request payloads one agent may have pending.
const MAX_PENDING_KIB: usize = 256 << 10;

/// Bytes waiting for an agent beyond which it is not even told of errors: more than one largest result and the rest of
/// an honest backlog.
const ERROR_ROOM: usize = NodeToAgent::LIMITS.payload + 4 * BULK_ROOM;

/// The calls of one agent that are being carried out.
#[derive(Debug)]
pub(super) struct HostCalls {
    /// None once the agent is gone.
    running: Mutex<Option<HashMap<CallId, AbortHandle>>>,
    payload_kib: Arc<Semaphore>,
}

impl Default for HostCalls {
    fn default() -> Self {
        Self {
            running: Mutex::new(Some(HashMap::new())),
            payload_kib: Arc::new(Semaphore::new(MAX_PENDING_KIB)),
        }
    }
}

impl HostCalls {
    /// Abandons everything.
    pub(super) fn abort_all(&self) {
        let running = self.running.lock().take();
        for task in running.into_iter().flatten() {
            task.1.abort();
        }
    }

    /// Abandons one call, if it is still running.
    pub(super) fn cancel(&self, call: CallId) {
        let task = self.running.lock().as_mut().and_then(|r| r.remove(&call));
        if let Some(task) = task {
            task.abort();
        }
    }

    fn ended(&self, call: CallId) {
        if let Some(running) = self.running.lock().as_mut() {
            running.remove(&call);
        }
    }
}

/// Starts one call of a function on this agent. Its answer goes back over the link.
pub(super) fn start(agent: &Arc<Agent>, function: FunctionId, call: CallId, request: HostRequest) -> Result<(), Fault> {
    let refused = |code, message: &str| match answer_error(agent, call, HostError::new(code, message)) {
        Err(SendError::Full) => Err(Fault::Violation("it asks and does not read the answers")),
        _ => Ok(()),
    };
    let Some((slot, places)) = agent.function(function)? else {
        return refused(HostErrorCode::Unavailable, "the function is being stopped");
    };
    let Ok(place) = places.try_acquire_owned() else {
        let limit = max_pending_host_calls(&slot.spec.limits);
        let message = format!("{limit} host calls are pending already, which is the limit");
        return refused(HostErrorCode::LimitExceeded, &message);
    };
    let kib = u32::try_from(request.payload.len() / 1024 + 1).unwrap_or(u32::MAX);
    let Ok(memory) = agent.host_calls.payload_kib.clone().try_acquire_many_owned(kib) else {
        let message = "the host calls of this agent hold too much memory";
        return refused(HostErrorCode::LimitExceeded, message);
    };

    let mut running = agent.host_calls.running.lock();
    let Some(running) = running.as_mut() else {
        return Ok(());
    };
    if running.contains_key(&call) {
        return Err(Fault::Violation("two host calls with one id"));
    }
    let owner = agent.clone();
    // The lock is held until the task is entered in the table, so it cannot have ended before.
    let task = tokio::spawn(async move {
        // The service may already be doing its work when it is called, so that belongs inside, too.
        let outcome = AssertUnwindSafe(async { slot.host.services.call(request).await })
            .catch_unwind()
            .await;
        let outcome =
            outcome.unwrap_or_else(|_| Err(HostError::new(HostErrorCode::Internal, "the host service panicked")));
        answer(&owner, call, outcome).await;
        owner.host_calls.ended(call);
        drop((place, memory));
    });
    running.insert(call, task.abort_handle());
    Ok(())
}

async fn answer(agent: &Agent, call: CallId, outcome: Result<HostResponse, HostError>) {
    let sent = match outcome {
        Ok(response) => {
            let message = NodeToAgent::HostResult { call, response };
            agent.outbox.send_when_room(message, BULK_ROOM).await
        }
        Err(error) => answer_error(agent, call, error),
    };
    if sent == Err(SendError::TooLarge) {
        let error = HostError::new(HostErrorCode::LimitExceeded, "the result is too large for the link");
        _ = answer_error(agent, call, error);
    }
}

/// Errors are small and go out even when the link is congested, but not without end.
fn answer_error(agent: &Agent, call: CallId, error: HostError) -> Result<(), SendError> {
    agent
        .outbox
        .try_send(NodeToAgent::HostError { call, error }, ERROR_ROOM)
}
