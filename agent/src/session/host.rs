//! What a function in an agent is given by its host: services, logs and events, all of them frames on the link.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures::future::BoxFuture;
use nex_runtime::engine::{EngineEvent, EventSink, Limits};
use nex_runtime::host_services::{HostError, HostErrorCode, HostRequest, HostResponse, HostServices};
use nex_runtime::log_limit::{Throttle, dropped_line};
use nex_runtime::logs::{LogLine, LogSink};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::link::{
    AgentToNode, BULK_ROOM, CallId, FunctionId, LOG_ROOM, MAX_EVENTS, Outbox, SendError, agent_log_throttle,
    max_pending_host_calls,
};

use super::Shared;

type HostOutcome = Result<HostResponse, HostError>;

/// The host calls the node has not answered.
#[derive(Debug, Default)]
pub(super) struct HostCalls {
    last: AtomicU64,
    pending: Mutex<HashMap<CallId, oneshot::Sender<HostOutcome>>>,
}

impl HostCalls {
    fn register(&self) -> (CallId, oneshot::Receiver<HostOutcome>) {
        let call = CallId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let (sender, receiver) = oneshot::channel();
        self.pending.lock().insert(call, sender);
        (call, receiver)
    }

    /// Hands an answer to whoever waits for it; a call given up meanwhile is no error.
    pub(super) fn complete(&self, call: CallId, outcome: HostOutcome) {
        let sender = self.pending.lock().remove(&call);
        if let Some(sender) = sender {
            _ = sender.send(outcome);
        }
    }

    /// Whether the call was still pending.
    fn forget(&self, call: CallId) -> bool {
        self.pending.lock().remove(&call).is_some()
    }
}

/// The host services of one function, carried out by the node.
#[derive(Debug)]
pub(super) struct LinkHostServices {
    shared: Arc<Shared>,
    function: FunctionId,
    pending: Arc<AtomicUsize>,
    max_pending: usize,
}

impl LinkHostServices {
    pub(super) fn new(shared: Arc<Shared>, function: FunctionId, limits: &Limits) -> Self {
        Self {
            shared,
            function,
            pending: Arc::default(),
            max_pending: max_pending_host_calls(limits),
        }
    }
}

impl HostServices for LinkHostServices {
    fn call(&self, request: HostRequest) -> BoxFuture<'static, HostOutcome> {
        let shared = self.shared.clone();
        let function = self.function;
        let max_pending = self.max_pending;
        let place = Place::take(&self.pending, max_pending);
        Box::pin(async move {
            let Some(_place) = place else {
                return Err(HostError::new(
                    HostErrorCode::LimitExceeded,
                    format!("{max_pending} host calls are pending already, which is the limit"),
                ));
            };
            let (call, answer) = shared.host_calls.register();
            let mut pending = PendingCall {
                shared: &shared,
                call,
                sent: false,
            };
            let message = AgentToNode::HostCall {
                call,
                function,
                request,
            };
            shared
                .outbox
                .send_when_room(message, BULK_ROOM)
                .await
                .map_err(not_sent)?;
            pending.sent = true;
            let outcome = answer.await;
            outcome.unwrap_or_else(|_| Err(not_sent(SendError::Closed)))
        })
    }
}

fn not_sent(error: SendError) -> HostError {
    match error {
        SendError::TooLarge => HostError::new(HostErrorCode::LimitExceeded, "the request is too large for the link"),
        SendError::Closed | SendError::Full => HostError::new(HostErrorCode::Unavailable, "the node is gone"),
    }
}

/// One of a function's places for pending calls.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(pending: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let place = Self(pending.clone());
        let before = pending.fetch_add(1, Ordering::Relaxed);
        (before < max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells the node when the function gives up a call before it is answered.
struct PendingCall<'a> {
    shared: &'a Shared,
    call: CallId,
    sent: bool,
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        if self.shared.host_calls.forget(self.call) && self.sent {
            super::send(&self.shared.outbox, AgentToNode::HostCancel { call: self.call });
        }
    }
}

/// The log of one function. Never blocks: what the throttle or a congested link refuses is counted, and the count is
/// logged in its place.
#[derive(Debug)]
pub(super) struct LinkLogs {
    outbox: Outbox<AgentToNode>,
    function: FunctionId,
    throttle: Mutex<Throttle>,
}

impl LinkLogs {
    pub(super) fn new(outbox: Outbox<AgentToNode>, function: FunctionId, limits: &Limits) -> Self {
        Self {
            outbox,
            function,
            throttle: Mutex::new(agent_log_throttle(limits)),
        }
    }

    /// Says how many lines were dropped, if any were: called now and then, because the next line may not come soon.
    pub(super) fn report_dropped(&self) {
        let (dropped, limit) = {
            let mut throttle = self.throttle.lock();
            (throttle.take_refused(), throttle.limit())
        };
        if dropped > 0 {
            self.send_report(dropped, limit);
        }
    }

    fn send_report(&self, dropped: u64, limit: u64) {
        super::send(&self.outbox, self.message(dropped_line(dropped, limit)));
    }

    fn message(&self, line: LogLine) -> AgentToNode {
        AgentToNode::Log {
            function: self.function,
            line,
        }
    }
}

impl LogSink for LinkLogs {
    fn log(&self, line: LogLine) {
        let (report, admitted, limit) = {
            let mut throttle = self.throttle.lock();
            let report = throttle.report();
            (report, throttle.admit(line.text.chars().count()), throttle.limit())
        };
        if let Some(dropped) = report {
            self.send_report(dropped, limit);
        }
        if !admitted {
            return;
        }
        match self.outbox.try_send(self.message(line), LOG_ROOM) {
            Ok(()) | Err(SendError::Closed) => {}
            Err(SendError::Full | SendError::TooLarge) => self.throttle.lock().refuse(),
        }
    }
}

/// Engine events of one function.
#[derive(Debug)]
pub(super) struct LinkEvents {
    shared: Arc<Shared>,
    function: FunctionId,
    throttle: Mutex<Throttle>,
}

impl LinkEvents {
    pub(super) fn new(shared: Arc<Shared>, function: FunctionId) -> Self {
        Self {
            shared,
            function,
            throttle: Mutex::new(Throttle::new(MAX_EVENTS)),
        }
    }
}

impl EventSink for LinkEvents {
    fn event(&self, event: EngineEvent) {
        let condemned = matches!(event, EngineEvent::Condemned { .. });
        let message = AgentToNode::Event {
            function: self.function,
            event,
        };
        if condemned {
            // Never refused. Pongs say it too, but not before this, which says whose code it is.
            super::send(&self.shared.outbox, message);
            self.shared.condemned.store(true, Ordering::Release);
        } else if self.throttle.lock().admit(0)
            // Few by now, and worth more than the bulk that may fill the link: often they say why it does.
            && let Err(error) = self.shared.outbox.try_send(message, 2 * BULK_ROOM)
        {
            tracing::debug!(%error, function = %self.function, "event dropped");
        }
    }
}
