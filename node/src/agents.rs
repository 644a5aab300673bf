//! The pool of agents. It is an [`Engine`], like V8 in this process, except that functions run in machines of
//! their own: one for each namespace, replaced when it dies, falls silent or cannot be trusted any more, without the
//! callers of [`Function::invoke`] having to know.
//!
//! How it fits together: a `Slot` is a deployed function and finds calls their way to the `Agent` it is placed on. An
//! agent has two tasks, one that reads its frames (`incoming`) and one that watches over it (`supervisor`); calls need
//! none. The `Pool` keeps warm agents and moves functions when their agent ends.

mod agent;
mod config;
mod error;
mod host_calls;
mod incoming;
mod pool;
mod report;
mod slot;
mod start;
mod supervisor;

use std::sync::Arc;

use futures::future::BoxFuture;
use nex_runtime::engine::{Engine, Function, FunctionHost, FunctionSpec, LoadError, ProcessInfo};
use tokio::sync::broadcast;

use self::pool::Pool;
use self::slot::{PoolFunction, Slot};

pub use self::config::{AgentPoolConfig, Isolation, find_agent_bin};
pub use self::error::AgentError;
pub use self::report::{AgentEvent, AgentInfo, AgentState};
pub use crate::quarantine::QuarantineRules;

/// Events kept for a subscriber that does not keep up.
const EVENT_BACKLOG: usize = 1024;

/// Runs functions in agent processes.
///
/// Dropping it kills the agents; [`shutdown`](Self::shutdown) lets them finish first.
#[derive(Debug)]
pub struct AgentPool {
    pool: Arc<Pool>,
    events: broadcast::Sender<AgentEvent>,
}

impl AgentPool {
    /// Starts the pool on the current tokio runtime, with one agent at first, so that a wrong binary is noticed here; the
    /// other warm ones follow in the background.
    ///
    /// # Errors
    /// [`AgentError`]: the binary is missing, does not start, or does not run the workload types it must.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start(config: AgentPoolConfig) -> Result<Arc<Self>, AgentError> {
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let this = Arc::new(Self {
            pool: Pool::new(config, events.clone()),
            events,
        });
        this.pool.open().await?;
        Ok(this)
    }

    /// What happens to the agents from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<AgentEvent> {
        self.events.subscribe()
    }

    /// Warm agents: how many namespaces could get one at once.
    #[must_use]
    pub fn available(&self) -> usize {
        self.pool.available()
    }

    /// All agents whose process is there.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentInfo> {
        self.pool.agents()
    }

    /// Takes no new functions, gives the calls in flight [`shutdown_grace`](AgentPoolConfig::shutdown_grace) to end, and
    /// returns when no agent process is left. Calls from then on are answered `not_ready`.
    pub async fn shutdown(&self) {
        self.pool.shut_down().await;
    }
}

impl Engine for AgentPool {
    fn workload_types(&self) -> &'static [&'static str] {
        self.pool.config.workload_types
    }

    /// Loads a function on an agent of its namespace. The handle outlives the agent; dropping it undeploys.
    fn load(&self, spec: FunctionSpec, host: FunctionHost) -> BoxFuture<'static, Result<Arc<dyn Function>, LoadError>> {
        let pool = self.pool.clone();
        let artifact = pool.ledger.record(&spec.namespace, &spec.source);
        let grace = pool.config.reply_grace;
        let slot = Arc::new(Slot::new(spec, host, artifact, grace, pool.waiting_kib.clone()));
        // Made first, so that a dropped future undeploys as well.
        let function = PoolFunction(slot.clone());
        Box::pin(async move {
            pool.place_first(&slot).await?;
            Ok(Arc::new(function) as Arc<dyn Function>)
        })
    }

    fn available_agents(&self) -> usize {
        self.available()
    }

    fn driver(&self) -> &'static str {
        self.pool.config.driver.kind().as_str()
    }

    fn is_sandboxed(&self) -> bool {
        self.pool.config.driver.is_sandbox()
    }

    fn processes(&self) -> Vec<ProcessInfo> {
        self.agents().into_iter().map(ProcessInfo::from).collect()
    }
}

impl Drop for AgentPool {
    fn drop(&mut self) {
        self.pool.abandon();
    }
}
