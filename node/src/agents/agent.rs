//! One agent as the node sees it: the functions deployed on it, the calls it has not answered, and whether it is fit for
//! more. Everything here is plain state under one lock; tasks that wait live in `supervisor`, `incoming` and `pool`.
//!
//! Lock order: a slot's route, then this state, then the outbox. No lock is held while a reply sink runs.

mod calls;
mod service;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nex_agent::link::{CallId, FunctionId, Health, MAX_EVENTS, NodeToAgent, Outbox, SendError, node_log_throttle};
use nex_runtime::engine::LoadError;
use nex_runtime::log_limit::{Throttle, dropped_line};
use nex_runtime::logs::LogLine;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use self::calls::Call;
pub(super) use self::calls::Submitted;
use self::service::Condition;
pub(super) use self::service::{Casualty, DrainStep, Offender, died};
use super::error::Fault;
use super::host_calls::{HostCalls, Share};
use super::report::{AgentInfo, AgentState};
use super::slot::{Placement, Slot};
use crate::machines::{DriverKind, MachineStats, StartReport};

/// Whose code an agent may run. Set once, with its first function.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) namespace: String,
    /// Set where a workload has the agent to itself.
    pub(super) workload: Option<String>,
}

/// One agent.
pub(super) struct Agent {
    pub(super) id: String,
    pub(super) pid: u32,
    pub(super) version: String,
    pub(super) outbox: Outbox<NodeToAgent>,
    pub(super) host_calls: HostCalls,
    /// Set by every frame that arrives, cleared by every heartbeat.
    pub(super) heard: AtomicBool,
    /// Cancelled when its service has ended.
    pub(super) dead: CancellationToken,
    /// Told when a drain may have come further.
    pub(super) progress: Notify,
    /// Functions that were loading when an agent died load alone, so that the next death has one suspect.
    loading: tokio::sync::RwLock<()>,
    owner: OnceLock<Owner>,
    born: Instant,
    state: Mutex<State>,
}

struct State {
    condition: Condition,
    functions: HashMap<FunctionId, Deployed>,
    last_function: u64,
    calls: HashMap<CallId, Call>,
    last_call: u64,
    /// Calls not answered, including one whose sink is just in use.
    in_flight: usize,
    /// Calls the node had to answer in its place, lately.
    overdue: usize,
    /// When it had to answer the first of them.
    overdue_since: Option<Instant>,
    /// Since when it has had no function.
    empty_since: Option<Instant>,
    /// The functions it had when it died, until somebody takes care of them.
    casualties: Vec<Casualty>,
    health: Health,
}

/// A function on this agent.
struct Deployed {
    slot: Arc<Slot>,
    /// Waits for the agent's word; None once it has come.
    loading: Option<oneshot::Sender<Result<(), LoadError>>>,
    in_flight: usize,
    /// Its code does not stop, for which it has been blamed.
    convicted: bool,
    logs: Throttle,
    events: Throttle,
    /// Its pending host calls.
    host_calls: Arc<Share>,
}

/// What there is under an id that the agent named: nothing if it has been removed, a fault if it never was there.
type Known<T> = Result<Option<T>, Fault>;

/// Why a function is not on the agent it was sent to.
#[derive(Debug)]
pub(super) enum DeployError {
    /// The agent went out of service, or filled up, before it was asked.
    OutOfService,
    /// The agent died of it, or with it.
    Died(String),
    /// The engine refused it.
    Load(LoadError),
}

/// Time beyond a function's own start-up limit before a deploy without answer is taken for a broken agent.
const DEPLOY_GRACE: Duration = Duration::from_secs(5);

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("id", &self.id)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl Agent {
    pub(super) fn new(id: String, pid: u32, version: String, outbox: Outbox<NodeToAgent>) -> Arc<Self> {
        Arc::new(Self {
            id,
            pid,
            version,
            outbox,
            host_calls: HostCalls::default(),
            heard: AtomicBool::new(true),
            dead: CancellationToken::new(),
            progress: Notify::new(),
            loading: tokio::sync::RwLock::new(()),
            owner: OnceLock::new(),
            born: Instant::now(),
            state: Mutex::new(State {
                condition: Condition::Serving,
                functions: HashMap::new(),
                last_function: 0,
                calls: HashMap::new(),
                last_call: 0,
                in_flight: 0,
                overdue: 0,
                overdue_since: None,
                empty_since: None,
                casualties: Vec::new(),
                health: Health::default(),
            }),
        })
    }

    // ---- whose it is, and whether it serves ----

    pub(super) fn owner(&self) -> Option<&Owner> {
        self.owner.get()
    }

    /// Gives the agent to an owner, for good; false if it has another one.
    pub(super) fn assign(&self, owner: &Owner) -> bool {
        let mut state = self.state.lock();
        if state.functions.is_empty() {
            state.empty_since = Some(Instant::now());
        }
        self.owner.get_or_init(|| owner.clone()) == owner
    }

    pub(super) fn serves(&self) -> bool {
        matches!(self.state.lock().condition, Condition::Serving)
    }

    pub(super) fn age(&self) -> Duration {
        self.born.elapsed()
    }

    /// The functions on it, loading ones included.
    pub(super) fn slots(&self) -> Vec<Arc<Slot>> {
        self.state.lock().slots()
    }

    pub(super) fn function_count(&self) -> usize {
        self.state.lock().functions.len()
    }

    // ---- functions ----

    /// Loads a function here, unless there are `max` already, and waits for the outcome.
    pub(super) async fn deploy(self: &Arc<Self>, slot: &Arc<Slot>, max: usize) -> Result<Placement, DeployError> {
        // Held until the agent has answered.
        let (_alone, _shared) = if slot.conduct.is_suspect() {
            (Some(self.loading.write().await), None)
        } else {
            (None, Some(self.loading.read().await))
        };
        let (sender, outcome) = oneshot::channel();
        let function = self.add_function(slot, max, sender)?;
        // Whatever happens from here on, a function without a placement does not stay.
        let mut undeploy = UndeployOnDrop {
            agent: self,
            function: Some(function),
        };
        let message = NodeToAgent::Deploy {
            function,
            spec: slot.spec.clone(),
        };
        match self.outbox.send(message) {
            // If the link is closed, the agent's end answers.
            Ok(()) | Err(SendError::Closed) => {}
            Err(error @ (SendError::TooLarge | SendError::Full)) => {
                return Err(DeployError::Load(LoadError::InvalidArtifact(error.to_string())));
            }
        }
        let limit = slot.spec.limits.wall_time + DEPLOY_GRACE;
        match tokio::time::timeout(limit, outcome).await {
            Ok(Ok(Ok(()))) => {
                undeploy.function = None;
                Ok(Placement {
                    agent: self.clone(),
                    function,
                })
            }
            Ok(Ok(Err(error))) => Err(DeployError::Load(error)),
            Ok(Err(_)) => Err(DeployError::Died(self.cause_of_death())),
            Err(_) => Err(DeployError::Load(LoadError::Timeout(limit))),
        }
    }

    fn add_function(
        &self,
        slot: &Arc<Slot>,
        max: usize,
        loading: oneshot::Sender<Result<(), LoadError>>,
    ) -> Result<FunctionId, DeployError> {
        let same = self
            .owner
            .get()
            .is_some_and(|owner| owner.namespace == slot.spec.namespace);
        let mut state = self.state.lock();
        if !same || !matches!(state.condition, Condition::Serving) || state.functions.len() >= max {
            return Err(DeployError::OutOfService);
        }
        state.last_function += 1;
        state.empty_since = None;
        let function = FunctionId(state.last_function);
        let deployed = Deployed {
            slot: slot.clone(),
            loading: Some(loading),
            in_flight: 0,
            convicted: false,
            logs: node_log_throttle(&slot.spec.limits),
            events: Throttle::new(MAX_EVENTS),
            host_calls: Arc::new(Share::of(&slot.spec.limits)),
        };
        state.functions.insert(function, deployed);
        Ok(function)
    }

    /// Takes a function off the agent. Its calls in flight are still answered.
    pub(super) fn undeploy(&self, function: FunctionId) {
        {
            let mut state = self.state.lock();
            if state.functions.remove(&function).is_none() {
                return;
            }
            if state.functions.is_empty() {
                state.empty_since = Some(Instant::now());
            }
        }
        if let Err(error) = self.outbox.send(NodeToAgent::Undeploy { function }) {
            tracing::debug!(agent = self.id, %error, "undeploy not sent");
        }
    }

    /// The agent's word on a deploy.
    pub(super) fn deploy_result(&self, function: FunctionId, result: Result<(), LoadError>) -> Result<(), Fault> {
        let mut state = self.state.lock();
        // One that was undeployed while it loaded interests nobody.
        if let Some(deployed) = state.function(function)? {
            let loading = deployed
                .loading
                .take()
                .ok_or(Fault::Violation("second result of one deploy"))?;
            _ = loading.send(result);
        }
        Ok(())
    }

    /// The slot of a function, and what it may have pending of host calls; None if it was undeployed.
    pub(super) fn function(&self, function: FunctionId) -> Known<(Arc<Slot>, Arc<Share>)> {
        let mut state = self.state.lock();
        let deployed = state.function(function)?;
        Ok(deployed.map(|deployed| (deployed.slot.clone(), deployed.host_calls.clone())))
    }

    /// The slot a log line of so many characters goes to, unless the function says too much; and the line that says how
    /// many were refused before it.
    pub(super) fn admit_log(&self, function: FunctionId, characters: usize) -> Known<(Arc<Slot>, Option<LogLine>)> {
        let mut state = self.state.lock();
        let deployed = state.function(function)?;
        Ok(deployed.and_then(|deployed| {
            let logs = &mut deployed.logs;
            let refused = logs.report().map(|refused| dropped_line(refused, logs.limit()));
            logs.admit(characters).then(|| (deployed.slot.clone(), refused))
        }))
    }

    /// The slot an event goes to, unless there are too many.
    pub(super) fn admit_event(&self, function: FunctionId) -> Known<Arc<Slot>> {
        let mut state = self.state.lock();
        let deployed = state.function(function)?;
        Ok(deployed.and_then(|deployed| deployed.events.admit(0).then(|| deployed.slot.clone())))
    }

    /// What to tell whoever waited for a deploy.
    fn cause_of_death(&self) -> String {
        match &self.state.lock().condition {
            Condition::Dead(death) => format!("the agent {}", death.message),
            Condition::Serving | Condition::Draining(_) => "the deploy was dropped".to_owned(),
        }
    }

    /// A picture for operators.
    pub(super) fn info(&self, driver: DriverKind, start: StartReport, machine: MachineStats) -> AgentInfo {
        let state = self.state.lock();
        let mut functions: Vec<String> = state
            .functions
            .values()
            .map(|deployed| deployed.slot.spec.id.clone())
            .collect();
        functions.sort_unstable();
        let state_name = match &state.condition {
            Condition::Serving if self.owner.get().is_none() => AgentState::Warm,
            Condition::Serving => AgentState::Serving,
            Condition::Draining(_) => AgentState::Draining,
            Condition::Dead(_) => AgentState::Dead,
        };
        AgentInfo {
            id: self.id.clone(),
            pid: self.pid,
            version: self.version.clone(),
            namespace: self.owner.get().map(|owner| owner.namespace.clone()),
            functions,
            state: state_name,
            hibernating: state.health.hibernating,
            instances: state.health.instances,
            in_flight: state.in_flight,
            rss_bytes: state.health.rss_bytes,
            driver,
            start,
            machine,
        }
    }

    pub(super) fn mark_heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }
}

impl State {
    /// A function by the agent's word: None if it was undeployed, a fault if it never was here.
    fn function(&mut self, function: FunctionId) -> Known<&mut Deployed> {
        if function.0 == 0 || function.0 > self.last_function {
            return Err(Fault::Violation("frame about a function it was never given"));
        }
        Ok(self.functions.get_mut(&function))
    }

    /// Whether its drain may have come further: nobody is to be woken for an agent that just has nothing to do.
    fn is_drained(&self) -> bool {
        self.in_flight == 0 && matches!(self.condition, Condition::Draining(_))
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        self.functions.values().map(|deployed| deployed.slot.clone()).collect()
    }
}

struct UndeployOnDrop<'a> {
    agent: &'a Agent,
    function: Option<FunctionId>,
}

impl Drop for UndeployOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(function) = self.function {
            self.agent.undeploy(function);
        }
    }
}
