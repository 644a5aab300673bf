//! What can go wrong with agents.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use nex_agent::link::LinkError;

use crate::machines::MachineError;

/// Why there is no agent.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The binary was not found.
    #[error("no agent binary: {0}")]
    NoBinary(String),
    /// Its machine could not be started.
    #[error("{0}")]
    Machine(Arc<MachineError>),
    /// It started, but did not become ready.
    #[error("the agent did not start: {0}")]
    Start(String),
    /// It does not run a workload type it must.
    #[error("the agent does not run workloads of type {0}")]
    WorkloadType(String),
    /// None became free in time.
    #[error("no agent became ready within {waited:?}{}", cause.as_deref().map(|c| format!(": {c}")).unwrap_or_default())]
    NoneReady {
        /// How long it was waited for.
        waited: Duration,
        /// Why the last attempt to start one failed, if it did.
        cause: Option<String>,
    },
    /// The pool is shut down.
    #[error("the agent pool is shut down")]
    ShutDown,
}

impl From<MachineError> for AgentError {
    fn from(error: MachineError) -> Self {
        Self::Machine(Arc::new(error))
    }
}

/// Why an agent's service ended. The texts complete "the agent …".
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It was told to end.
    #[error("was stopped")]
    Stopped,
    /// It was told to end and did not within its time.
    #[error("was stopped with calls unanswered")]
    Overstayed,
    /// Its code could not be stopped and its time to drain is over.
    #[error("was condemned: {0}")]
    Condemned(String),
    /// Its process ended.
    #[error("died ({})", describe(*.0))]
    Exited(ExitStatus),
    /// It closed the link, which it does by dying.
    #[error("died (its link closed)")]
    LinkClosed,
    /// The link failed, or a frame was malformed.
    #[error("was killed: {0}")]
    Link(#[from] LinkError),
    /// It broke the protocol.
    #[error("was killed for breaking the protocol: {0}")]
    Violation(&'static str),
    /// It does not answer pings.
    #[error("was killed after {0:?} of silence")]
    Silent(Duration),
}

/// How a process ended, for people.
pub(super) fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

/// The code of [`AgentEvent::Stopped`](super::AgentEvent::Stopped): the exit code, or 128 and the signal, as shells
/// count.
pub(super) fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}
