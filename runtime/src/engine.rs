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
use std::time::{Duration, SystemTime};

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

    /// Resolves when everything is there that the engine makes in advance, so that a process can be copied with it.
    fn ready(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Agents that are ready for a workload; an engine in this process counts as one.
    fn available_agents(&self) -> usize {
        1
    }

    /// What keeps its functions apart from this process: the name of a machine driver.
    fn driver(&self) -> &'static str {
        "in_process"
    }

    /// Whether code that breaks out of the engine is still confined.
    fn is_sandboxed(&self) -> bool {
        false
    }

    /// The processes it runs functions in, apart from this one.
    fn processes(&self) -> Vec<ProcessInfo> {
        Vec::new()
    }
}

/// A process that runs functions, for operators. What it says of itself is some seconds old.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its name.
    pub id: String,
    /// Its number on this machine.
    pub pid: u32,
    /// What it is doing: `warm`, `serving`, `draining` or `dead`.
    pub state: &'static str,
    /// Whose functions it runs; `None` until it has any.
    pub namespace: Option<String>,
    /// Functions on it.
    pub functions: usize,
    /// Functions without an instance.
    pub hibernating: u32,
    /// Instances of the others.
    pub instances: u32,
    /// Calls it has not answered.
    pub in_flight: usize,
    /// Resident memory in bytes; 0 if unknown.
    pub rss_bytes: u64,
    /// What separates it from others: the name of a machine driver.
    pub driver: &'static str,
    /// Whether its machine is a copy of a template.
    pub restored: bool,
    /// How long it took to start.
    pub started_in: Duration,
    /// What it and its machine take on the host in bytes, with what is shared divided among those who share it; 0 if
    /// unknown.
    pub host_bytes: u64,
}

/// A loaded function.
pub trait Function: fmt::Debug + Send + Sync + 'static {
    /// Queues one call and returns at once; the answer goes to `replies`, always, exactly once.
    fn invoke(&self, trigger: Trigger, replies: Box<dyn ReplySink>);

    /// Queues calls that arrived together, in order, as [`invoke`](Function::invoke) does; an engine may do so at the
    /// price of one wake-up.
    fn invoke_all(&self, calls: Vec<Invocation>) {
        for Invocation { trigger, replies } in calls {
            self.invoke(trigger, replies);
        }
    }

    /// What the function is doing; `None` where the engine cannot tell, because it runs elsewhere.
    fn state(&self) -> Option<FunctionState> {
        None
    }
}

/// A call on its way to a function.
#[derive(Debug)]
pub struct Invocation {
    /// What goes in.
    pub trigger: Trigger,
    /// Where the answer goes.
    pub replies: Box<dyn ReplySink>,
}

/// What a function is doing at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FunctionState {
    /// Instances that take calls, or are about to. 0: the function hibernates.
    pub instances: u32,
    /// Calls that wait for an instance.
    pub queued: u32,
    /// Calls begun and not answered.
    pub in_flight: u32,
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

/// Limits of a workload. Each has a default that suits code of strangers; a node has its own for all workloads, and a
/// deploy may ask for others.
///
/// Hard limits end the code wherever it is, answer its callers with an [`ErrorKind`] and discard the instance. Soft ones
/// refuse what goes beyond them and let the code go on. Either way the engine reports [`EngineEvent::LimitHit`], soft ones
/// once a second; not so for `stack_bytes`, which V8 enforces by itself. What goes beyond the last three waits or ends
/// without being a hit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processor time of one invocation. Default 1 s. Hard.
    ///
    /// It counts what one uninterrupted run of the function takes, and an invocation's share of what its instance takes
    /// while it is in flight. Garbage collection on V8's own threads is not counted. Precision: some 2 ms.
    pub cpu_time: Duration,
    /// Wall-clock time of one invocation, waiting included; also of start-up. Default 30 s. Hard.
    pub wall_time: Duration,
    /// Processor time of compiling and running the top level. Default 1 s. Hard: the function does not load.
    pub startup_cpu_time: Duration,
    /// Bytes of JavaScript heap of one instance. Default 128 MiB, at least [`Limits::MIN_HEAP_BYTES`]. Hard.
    pub heap_bytes: u64,
    /// Bytes of `ArrayBuffer`s and of WebAssembly memories of one instance, together. Default 128 MiB. Soft: beyond it,
    /// making or growing one throws a `RangeError`.
    pub buffer_bytes: u64,
    /// Bytes of stack of one instance. Default 984 KiB, V8's own, at least [`Limits::MIN_STACK_BYTES`], at most
    /// [`Limits::MAX_STACK_BYTES`]. Soft: deeper recursion throws a `RangeError`.
    pub stack_bytes: u32,
    /// Host calls pending in one instance. Default 1,024. Soft: one more fails with `LIMIT_EXCEEDED`.
    pub host_calls: u32,
    /// Timers pending in one instance. Default 10,000. Soft: one more throws a `RangeError`.
    pub timers: u32,
    /// Bytes of one reply; larger ones are answered `payload_too_large`. Default 1 MiB, the default `max_payload` of a NATS
    /// server. Soft.
    pub reply_bytes: u32,
    /// Log lines of the function in any ten seconds. Default 1,000. Soft: more are dropped and counted.
    pub log_lines: u32,
    /// Calls waiting for the function; one more is answered `overloaded`. Default 1,024. Soft.
    pub queue_depth: u32,
    /// Invocations in flight in one instance while they await. Default 64, at least 1. Calls beyond it wait.
    pub concurrency: u32,
    /// Instances of the function at a time; another one starts when calls have waited for 20 ms, all those there are have
    /// no time for them, and a processor is left. Default 4, at least 1. Calls beyond it wait.
    pub instances: u32,
    /// Time without calls after which an instance is dropped; the next call starts one, from the code cache.
    /// Default 60 s.
    pub hibernate_after: Duration,
}

impl Limits {
    /// Least [`heap_bytes`](Self::heap_bytes): V8 needs some for itself.
    pub const MIN_HEAP_BYTES: u64 = 8 << 20;
    /// Least [`stack_bytes`](Self::stack_bytes).
    pub const MIN_STACK_BYTES: u32 = 128 << 10;
    /// Most [`stack_bytes`](Self::stack_bytes).
    pub const MAX_STACK_BYTES: u32 = 16 << 20;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_time: Duration::from_secs(1),
            wall_time: Duration::from_secs(30),
            startup_cpu_time: Duration::from_secs(1),
            heap_bytes: 128 << 20,
            buffer_bytes: 128 << 20,
            stack_bytes: 984 << 10,
            host_calls: 1024,
            timers: 10_000,
            reply_bytes: 1 << 20,
            log_lines: 1_000,
            queue_depth: 1024,
            concurrency: 64,
            instances: 4,
            hibernate_after: Duration::from_secs(60),
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
    /// The function hit a limit.
    LimitHit(LimitHit),
    /// Code of this function does not stop; the process cannot be trusted with further work and must be replaced once
    /// its other functions' calls have ended.
    Condemned {
        /// For people.
        message: String,
    },
    /// The function has cost too many processes: its calls are answered [`ErrorKind::Quarantined`] for a while, and
    /// nothing is spent on it. Comes from whoever looks after the processes.
    Quarantined {
        /// Since when.
        since: SystemTime,
        /// Until when.
        until: SystemTime,
        /// What callers are told: why, since when and until when.
        message: String,
    },
    /// Its quarantine is over; it gets one more chance.
    Released,
    /// The function could not be started again and answers [`ErrorKind::NotReady`] until it is deployed anew.
    Lost {
        /// Why.
        message: String,
    },
}

/// A limit that was hit, and by how much. `Display` is a sentence for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitHit {
    /// Which.
    pub limit: Limit,
    /// Its value, in the unit of the limit.
    pub allowed: u64,
    /// What was measured, or asked for, in the same unit.
    pub measured: u64,
}

impl LimitHit {
    /// A time limit; both in milliseconds.
    #[must_use]
    pub fn time(limit: Limit, allowed: Duration, measured: Duration) -> Self {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            limit,
            allowed: milliseconds(allowed),
            measured: milliseconds(measured),
        }
    }
}

impl fmt::Display for LimitHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            limit,
            allowed,
            measured,
        } = self;
        let (name, unit) = limit.name_and_unit();
        write!(f, "{name} limit of {allowed}{unit} exceeded ({measured}{unit})")
    }
}

/// The limits of [`Limits`] that can be hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Limit {
    /// [`Limits::cpu_time`], in milliseconds.
    CpuTime,
    /// [`Limits::wall_time`], in milliseconds.
    WallTime,
    /// [`Limits::startup_cpu_time`], in milliseconds.
    StartupCpuTime,
    /// [`Limits::heap_bytes`].
    HeapBytes,
    /// [`Limits::buffer_bytes`].
    BufferBytes,
    /// [`Limits::host_calls`].
    HostCalls,
    /// [`Limits::timers`].
    Timers,
    /// [`Limits::reply_bytes`].
    ReplyBytes,
    /// [`Limits::log_lines`].
    LogLines,
    /// [`Limits::queue_depth`].
    QueueDepth,
}

impl Limit {
    /// The name as it stands in configurations and events, for example `cpu_time`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CpuTime => "cpu_time",
            Self::WallTime => "wall_time",
            Self::StartupCpuTime => "startup_cpu_time",
            Self::HeapBytes => "heap_bytes",
            Self::BufferBytes => "buffer_bytes",
            Self::HostCalls => "host_calls",
            Self::Timers => "timers",
            Self::ReplyBytes => "reply_bytes",
            Self::LogLines => "log_lines",
            Self::QueueDepth => "queue_depth",
        }
    }

    /// What callers are told in whose invocation it was hit.
    #[must_use]
    pub fn error_kind(self) -> ErrorKind {
        match self {
            Self::CpuTime | Self::StartupCpuTime => ErrorKind::CpuTimeout,
            Self::WallTime => ErrorKind::WallTimeout,
            Self::HeapBytes | Self::BufferBytes => ErrorKind::Memory,
            Self::HostCalls => ErrorKind::HostService,
            Self::Timers | Self::LogLines => ErrorKind::Exception,
            Self::ReplyBytes => ErrorKind::PayloadTooLarge,
            Self::QueueDepth => ErrorKind::Overloaded,
        }
    }

    fn name_and_unit(self) -> (&'static str, &'static str) {
        match self {
            Self::CpuTime => ("CPU time", " ms"),
            Self::WallTime => ("wall-clock", " ms"),
            Self::StartupCpuTime => ("start-up CPU time", " ms"),
            Self::HeapBytes => ("heap", " bytes"),
            Self::BufferBytes => ("ArrayBuffer and WebAssembly memory", " bytes"),
            Self::HostCalls => ("pending host call", ""),
            Self::Timers => ("timer", ""),
            Self::ReplyBytes => ("reply size", " bytes"),
            Self::LogLines => ("log line", ""),
            Self::QueueDepth => ("queue", " calls"),
        }
    }
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
    /// Compiling it or running its top level hit another limit.
    #[error("{0}")]
    Limit(LimitHit),
    /// The engine could not make an instance.
    #[error("engine: {0}")]
    Engine(String),
    /// The same code has cost too many processes, and is not loaded for a while.
    #[error("{0}")]
    Quarantined(String),
    /// The engine has no room for an instance now.
    #[error("{0}")]
    Overloaded(String),
}
