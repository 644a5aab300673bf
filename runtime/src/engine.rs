//! The seam between whatever runs functions and whatever calls them: an [`Engine`] loads a [`FunctionSpec`] into a
//! [`Function`], a [`Function`] takes triggers. Nothing outside this crate names V8; further engines (WebAssembly,
//! native services) implement the same two traits.
//!
//! Object model: an engine is shared by all threads and lives as long as the process. A function is one loaded workload;
//! the engine gives it one or more instances (for V8: an isolate on an OS thread of its own), which belong to it alone
//! for their whole life. Dropping the last handle of a function ends its instances.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::host_services::HostServices;
use crate::invocation::{ErrorKind, InvokeError, Reply, ReplySink, Trigger};
use crate::logs::LogSink;

/// Runs workloads. V8 in this process is one engine; a node's pool of agent processes, which forwards to the engines
/// inside them, is another.
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    /// The workload types it runs, as deploy requests name them, for example `v8`.
    fn workload_types(&self) -> &'static [&'static str];

    /// Compiles the source, runs its top level and checks that it yields a function.
    ///
    /// # Errors
    /// [`LoadError`], with the position for a syntax error and the stack for a top level that throws.
    fn load(&self, spec: FunctionSpec, host: FunctionHost) -> BoxFuture<'static, Result<Arc<dyn Function>, LoadError>>;

    /// Agents that are ready for a workload; an engine in this process counts as one.
    fn available_agents(&self) -> usize {
        1
    }
}

/// A loaded function.
pub trait Function: fmt::Debug + Send + Sync + 'static {
    /// Queues one call and returns at once; the answer goes to `replies`, always, exactly once.
    fn invoke(&self, trigger: Trigger, replies: Box<dyn ReplySink>);
}

impl dyn Function {
    /// Calls the function and waits for its answer; replies streamed before it are dropped.
    ///
    /// # Errors
    /// As the invocation ends.
    pub async fn call(&self, trigger: Trigger) -> Result<Reply, InvokeError> {
        let (sender, receiver) = oneshot::channel();
        self.invoke(trigger, Box::new(sender));
        receiver
            .await
            .unwrap_or_else(|_| Err(InvokeError::new(ErrorKind::NotReady, "the engine went away")))
    }
}

/// What to load.
#[derive(Debug, Clone)]
pub struct FunctionSpec {
    /// Unique ID of the workload.
    pub id: String,
    /// Namespace it belongs to.
    pub namespace: String,
    /// Workload name; `[a-zA-Z0-9_-]+`.
    pub name: String,
    /// One of the engine's [workload types](Engine::workload_types).
    pub workload_type: String,
    /// The artefact: for V8, UTF-8 JavaScript source.
    pub source: Bytes,
    /// Environment of the workload: `env.vars` in module form.
    pub vars: BTreeMap<String, String>,
    /// Limits for each invocation.
    pub limits: Limits,
}

/// What the function is given by whoever loads it.
#[derive(Debug, Clone)]
pub struct FunctionHost {
    /// Its host services.
    pub services: Arc<dyn HostServices>,
    /// Where its log lines go.
    pub logs: Arc<dyn LogSink>,
    /// Where the engine reports what happens to it.
    pub events: Arc<dyn EventSink>,
}

/// Limits of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Wall-clock time of one invocation, waiting included; also of start-up. Default 30 s.
    pub wall_time: Duration,
    /// Calls waiting for the function; one more is answered `overloaded`. Default 1,024.
    pub queue_depth: u32,
    /// Invocations in flight in one instance while they await. Default 64.
    pub concurrency: u32,
    /// Bytes of one reply; larger ones are answered `payload_too_large`. Default 1 MiB, the server's default
    /// `max_payload`.
    pub reply_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall_time: Duration::from_secs(30),
            queue_depth: 1024,
            concurrency: 64,
            reply_bytes: 1 << 20,
        }
    }
}

/// Receives engine events of one function. Called on engine threads; it must not block.
pub trait EventSink: Send + Sync + 'static {
    /// Something happened.
    fn event(&self, event: EngineEvent);
}

impl fmt::Debug for dyn EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}

/// Any closure is a sink.
impl<F: Fn(EngineEvent) + Send + Sync + 'static> EventSink for F {
    fn event(&self, event: EngineEvent) {
        self(event);
    }
}

/// What an engine reports beside replies and logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum EngineEvent {
    /// An invocation hit a limit and its instance was discarded.
    LimitHit {
        /// Which limit.
        kind: ErrorKind,
        /// For people: the limit and the measured value.
        message: String,
    },
    /// Code of this function does not stop; the process cannot be trusted with further work and must be replaced once
    /// its other functions' calls have ended.
    Condemned {
        /// For people.
        message: String,
    },
}

/// Why a function could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The artefact is not what this engine runs, for example not UTF-8.
    #[error("not a valid artefact: {0}")]
    InvalidArtifact(String),
    /// The source does not compile.
    #[error("{0}")]
    Syntax(String),
    /// The top level threw; with the stack.
    #[error("{0}")]
    Threw(String),
    /// It ran, but yielded no function.
    #[error("{0}")]
    NoFunction(String),
    /// The top level ran longer than [`Limits::wall_time`].
    #[error("the top level did not end within {0:?}")]
    Timeout(Duration),
    /// The engine could not make an instance.
    #[error("engine: {0}")]
    Engine(String),
}
