//! What the pool tells about its agents.

use nex_runtime::engine::ProcessInfo;

use crate::machines::{DriverKind, MachineStats, StartReport};

/// What happened to an agent, or to a function because of one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentEvent {
    /// An agent has started and is ready.
    Started {
        /// The agent.
        id: String,
        /// Its process.
        pid: u32,
        /// Version of its code.
        version: String,
        /// What its machine is.
        driver: DriverKind,
        /// How its machine was started.
        start: StartReport,
    },
    /// An agent is being replaced: its functions move to another one, its calls in flight are still answered.
    Condemned {
        /// The agent.
        id: String,
        /// Whose functions it runs.
        namespace: Option<String>,
        /// Why.
        message: String,
    },
    /// An agent's machine is gone.
    Stopped {
        /// The agent.
        id: String,
        /// Whose functions it ran, if it ran any.
        namespace: Option<String>,
        /// Why, with its last words if it was not asked to.
        message: String,
        /// Its exit code, or 128 and the signal that ended it; -1 if unknown.
        code: i32,
    },
}

/// One agent, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// Its name on this node.
    pub id: String,
    /// Its process.
    pub pid: u32,
    /// Version of its code.
    pub version: String,
    /// Whose functions it runs; None while it is warm.
    pub namespace: Option<String>,
    /// IDs of the workloads on it, sorted.
    pub functions: Vec<String>,
    /// What it is doing.
    pub state: AgentState,
    /// How many of these hibernate, as it last said.
    pub hibernating: u32,
    /// Instances of the functions that do not hibernate, as it last said.
    pub instances: u32,
    /// Calls it has not answered.
    pub in_flight: usize,
    /// Its resident memory in bytes, as it last said; 0 at first.
    pub rss_bytes: u64,
    /// What its machine is.
    pub driver: DriverKind,
    /// How its machine was started.
    pub start: StartReport,
    /// What its machine takes on this host.
    pub machine: MachineStats,
}

impl AgentState {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Dead => "dead",
        }
    }
}

impl From<AgentInfo> for ProcessInfo {
    fn from(agent: AgentInfo) -> Self {
        Self {
            id: agent.id,
            pid: agent.pid,
            state: agent.state.as_str(),
            namespace: agent.namespace,
            functions: agent.functions.len(),
            hibernating: agent.hibernating,
            instances: agent.instances,
            in_flight: agent.in_flight,
            rss_bytes: agent.rss_bytes,
            driver: agent.driver.as_str(),
            restored: agent.start.restored,
            started_in: agent.start.elapsed,
            host_bytes: agent.machine.proportional_bytes,
        }
    }
}

/// What an agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentState {
    /// Waiting for its first function.
    Warm,
    /// Running functions.
    Serving,
    /// Answering what it has; it takes no new functions and ends soon.
    Draining,
    /// Ended; its process is not quite gone.
    Dead,
}
