//! Host calls of an agent's functions, carried out here with the identity of the function they come from. Bounded in
//! number for each function and in bytes for each agent; abandoned when the function gives up or the agent ends.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use nex_agent::link::{BULK_ROOM, CallId, FunctionId, Message, NodeToAgent, SendError, max_pending_host_calls};
use nex_runtime::engine::Limits;
use nex_runtime::host_services::{HostError, HostErrorCode, HostRequest, HostResponse, Operation};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use super::agent::Agent;
use super::error::Fault;

/// KiB of requests one agent may have pending.
const MAX_PENDING_KIB: usize = 256 << 10;

/// KiB of results from stores that one agent may have on their way; room for 16 of the largest objects at once.
const MAX_STORED_KIB: usize = 256 << 10;

/// KiB of results from elsewhere that one agent may have on their way; room for 64 of the largest answers at once.
const MAX_REMOTE_KIB: usize = 512 << 10;

/// The part of it that one function may hold: its slow calls must not keep its neighbours from theirs.
const SHARE: usize = 4;

/// Bytes waiting for an agent beyond which it is not even told of errors: more than one largest result and the rest of
/// an honest backlog.
const ERROR_ROOM: usize = NodeToAgent::LIMITS.payload + 4 * BULK_ROOM;

/// The calls of one agent that are being carried out.
#[derive(Debug)]
pub(super) struct HostCalls {
    /// None once the agent is gone.
    running: Mutex<Option<HashMap<CallId, AbortHandle>>>,
    request_kib: Arc<Semaphore>,
    results: ResultBudget,
}

/// Memory for results on their way, of one agent or one function.
#[derive(Debug)]
struct ResultBudget {
    stored_kib: Arc<Semaphore>,
    /// Apart from that for stores, which are quick: others may keep their room for long, and may need a store to answer.
    remote_kib: Arc<Semaphore>,
}

impl ResultBudget {
    fn of(part: usize) -> Self {
        Self {
            stored_kib: Arc::new(Semaphore::new(MAX_STORED_KIB / part)),
            remote_kib: Arc::new(Semaphore::new(MAX_REMOTE_KIB / part)),
        }
    }
}

/// What one function may have pending.
#[derive(Debug)]
pub(super) struct Share {
    places: Arc<Semaphore>,
    results: ResultBudget,
}

impl Share {
    pub(super) fn of(limits: &Limits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(max_pending_host_calls(limits))),
            results: ResultBudget::of(SHARE),
        }
    }
}

impl Default for HostCalls {
    fn default() -> Self {
        Self {
            running: Mutex::new(Some(HashMap::new())),
            request_kib: Arc::new(Semaphore::new(MAX_PENDING_KIB)),
            results: ResultBudget::of(1),
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

/// Starts one call of a function on this agent, on this runtime. Its answer goes back over the link.
pub(super) fn start(
    runtime: &Handle,
    agent: &Arc<Agent>,
    function: FunctionId,
    call: CallId,
    request: HostRequest,
) -> Result<(), Fault> {
    let refused = |code, message: &str| match answer_error(agent, call, HostError::new(code, message)) {
        Err(SendError::Full) => Err(Fault::Violation("it asks and does not read the answers")),
        _ => Ok(()),
    };
    let Some((slot, share)) = agent.function(function)? else {
        return refused(HostErrorCode::Unavailable, "the function is being stopped");
    };
    let Ok(place) = share.places.clone().try_acquire_owned() else {
        let limit = max_pending_host_calls(&slot.spec.limits);
        let message = format!("{limit} host calls are pending already, which is the limit");
        return refused(HostErrorCode::LimitExceeded, &message);
    };
    let kib = kib(request.payload.len() + metadata_len(&request.operation));
    let Ok(memory) = agent.host_calls.request_kib.clone().try_acquire_many_owned(kib) else {
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
    let task = runtime.spawn(async move {
        let room = ResultRoom::take(&share.results, &owner.host_calls.results, &request.operation).await;
        // The service may already be doing its work when it is called, so that belongs inside, too.
        let outcome = AssertUnwindSafe(async { slot.host.services.call(request).await })
            .catch_unwind()
            .await;
        let outcome =
            outcome.unwrap_or_else(|_| Err(HostError::new(HostErrorCode::Internal, "the host service panicked")));
        // Whatever it turned out to need is kept until the agent has it.
        let (outcome, _room) = match (outcome, room) {
            (Ok(response), Some(room)) => match room.fit(response.payload.len()) {
                Ok(room) => (Ok(response), Some(room)),
                Err(error) => (Err(error), None),
            },
            (outcome, _) => (outcome, None),
        };
        answer(&owner, call, outcome).await;
        owner.host_calls.ended(call);
        drop((place, memory));
    });
    running.insert(call, task.abort_handle());
    Ok(())
}

/// Memory for the result of one call, within the bounds of its function and of its agent.
struct ResultRoom {
    parts: [Part; 2],
}

/// What it takes of one of the two.
struct Part {
    bound: Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
}

impl ResultRoom {
    /// Waits until there is room for as much as the operation usually returns at most; None where nothing comes back.
    async fn take(function: &ResultBudget, agent: &ResultBudget, operation: &Operation) -> Option<Self> {
        const MIB: u32 = 1 << 10;
        let stored = [&function.stored_kib, &agent.stored_kib];
        let remote = [&function.remote_kib, &agent.remote_kib];
        let (bounds, kib) = match operation {
            Operation::KvSet { .. }
            | Operation::KvDelete { .. }
            | Operation::ObjectPut { .. }
            | Operation::ObjectDelete { .. }
            | Operation::Publish { .. } => return None,
            Operation::KvGet { .. } | Operation::KvKeys { .. } | Operation::ObjectList { .. } => (stored, MIB),
            Operation::ObjectGet { .. } => (stored, 16 * MIB),
            // Nothing is held while a reply is waited for, which may come from a function that asks itself.
            Operation::Request { .. } => (remote, 0),
            Operation::RequestMany { .. } | Operation::Http { .. } => (remote, 8 * MIB),
        };
        // The function's first: whoever waits for that holds nothing that others wait for.
        let [function, agent] = bounds;
        let function = Part::take(function, kib).await?;
        let agent = Part::take(agent, kib).await?;
        Some(Self {
            parts: [function, agent],
        })
    }

    /// Gives back what the result does not need, or takes what it needs beyond what was expected, if there is that much.
    fn fit(mut self, len: usize) -> Result<Self, HostError> {
        if self.parts.iter_mut().all(|part| part.fit(kib(len))) {
            return Ok(self);
        }
        Err(HostError::new(
            HostErrorCode::LimitExceeded,
            "the results of the host calls that are pending hold too much memory",
        ))
    }
}

impl Part {
    async fn take(bound: &Arc<Semaphore>, kib: u32) -> Option<Self> {
        let permit = bound.clone().acquire_many_owned(kib).await.ok()?;
        Some(Self {
            bound: bound.clone(),
            permit,
        })
    }

    fn fit(&mut self, kib: u32) -> bool {
        let (needed, held) = (kib as usize, self.permit.num_permits());
        if needed <= held {
            drop(self.permit.split(held - needed));
            return true;
        }
        let more = u32::try_from(needed - held).unwrap_or(u32::MAX);
        let more = self.bound.clone().try_acquire_many_owned(more);
        more.map(|more| self.permit.merge(more)).is_ok()
    }
}

/// Bytes in KiB, rounded up, and at least one.
fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

/// Bytes of a request beside its payload. Names are short and not counted.
fn metadata_len(operation: &Operation) -> usize {
    let (target, headers) = match operation {
        Operation::Http { url, headers, .. } => (url, headers),
        Operation::Publish { subject, headers }
        | Operation::Request { subject, headers, .. }
        | Operation::RequestMany { subject, headers, .. } => (subject, headers),
        _ => return 0,
    };
    let headers = headers.iter().map(|(name, value)| name.len() + value.len());
    target.len() + headers.sum::<usize>()
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
