//! The agent's side of a link: shakes hands, loads functions into an engine, hands triggers to them and sends back what
//! they answer, say and ask for. Knows neither V8 nor where the link leads.

mod calls;
mod host;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nex_runtime::engine::{Engine, Function, FunctionHost, FunctionSpec, LoadError};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::link::{AgentToNode, FunctionId, Health, Hello, LinkError, LinkReader, NodeToAgent, Outbox, SendError};

use calls::{Calls, LinkReply};
use host::{HostCalls, LinkEvents, LinkHostServices, LinkLogs};

/// Why a session ended in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// The node closed the link, or is gone.
    Closed,
    /// The node asked the agent to drain, and every call is answered.
    Drained,
}

/// Serves one link until it ends.
///
/// # Errors
/// [`LinkError`]: the transport failed, or the node does not keep to the protocol.
pub async fn serve(
    reader: impl AsyncRead + Send + Unpin + 'static,
    writer: impl AsyncWrite + Send + Unpin + 'static,
    engine: Arc<dyn Engine>,
) -> Result<SessionEnd, LinkError> {
    let (outbox, write) = Outbox::new(writer);
    let mut write = tokio::spawn(write.run());
    let mut session = Session {
        reader: LinkReader::new(reader),
        shared: Arc::new(Shared {
            outbox: outbox.clone(),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            condemned: AtomicBool::new(false),
            host_calls: HostCalls::default(),
        }),
        engine,
        functions: Arc::default(),
        loads: JoinSet::new(),
        draining: false,
        census: Census::default(),
    };
    let end = session.run().await;
    outbox.close();
    // What is queued still goes out, unless the node does not read it any more.
    if end.is_ok()
        && let Ok(Err(error)) = (&mut write).await
    {
        tracing::debug!(%error, "the link ended while writing");
    }
    write.abort();
    end
}

/// What the session shares with the functions it runs.
#[derive(Debug)]
struct Shared {
    outbox: Outbox<AgentToNode>,
    /// Calls not yet answered.
    in_flight: AtomicUsize,
    /// Told when `in_flight` falls to 0.
    idle: Notify,
    condemned: AtomicBool,
    host_calls: HostCalls,
}

struct Session {
    reader: LinkReader<NodeToAgent>,
    shared: Arc<Shared>,
    engine: Arc<dyn Engine>,
    functions: Arc<Mutex<HashMap<FunctionId, Entry>>>,
    loads: JoinSet<()>,
    draining: bool,
    census: Census,
}

/// How often functions are counted, and log lines that were dropped.
const CENSUS_EVERY: Duration = Duration::from_secs(1);

/// How many functions there are.
#[derive(Debug, Clone, Copy, Default)]
struct Census {
    taken: Option<Instant>,
    functions: u32,
    hibernating: u32,
    instances: u32,
}

/// One deployed function.
struct Entry {
    logs: Arc<LinkLogs>,
    /// None while it loads.
    function: Option<Arc<dyn Function>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl Session {
    async fn run(&mut self) -> Result<SessionEnd, LinkError> {
        self.send(AgentToNode::Hello(Hello {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            workload_types: self
                .engine
                .workload_types()
                .iter()
                .map(|&name| name.to_owned())
                .collect(),
            capabilities: Vec::new(),
        }));
        match self.reader.next().await? {
            Some(NodeToAgent::HelloAck(ack)) => {
                tracing::debug!(agent = ack.agent_id, node_version = ack.node_version, "ready");
            }
            Some(_) => return Err(LinkError::OutOfOrder("first")),
            None => return Ok(SessionEnd::Closed),
        }
        let shared = self.shared.clone();
        loop {
            if self.draining && shared.in_flight.load(Ordering::Acquire) == 0 {
                return Ok(SessionEnd::Drained);
            }
            tokio::select! {
                message = self.reader.next() => match message? {
                    Some(message) => self.handle_all(message)?,
                    None => return Ok(SessionEnd::Closed),
                },
                () = shared.idle.notified(), if self.draining => {}
                Some(_) = self.loads.join_next() => {}
            }
        }
    }

    /// Handles a message and those that have arrived with it. Calls of one function in a row are handed over together.
    fn handle_all(&mut self, first: NodeToAgent) -> Result<(), LinkError> {
        let mut calls = Calls::default();
        self.handle(first, &mut calls)?;
        while let Some(message) = self.reader.next_buffered()? {
            self.handle(message, &mut calls)?;
        }
        calls.invoke();
        Ok(())
    }

    fn handle(&mut self, message: NodeToAgent, calls: &mut Calls) -> Result<(), LinkError> {
        if !matches!(message, NodeToAgent::Trigger { .. }) {
            // What it does to a function comes after the calls before it.
            calls.invoke();
        }
        match message {
            NodeToAgent::Trigger {
                call,
                function,
                trigger,
            } => {
                if calls.function != Some(function) {
                    calls.invoke();
                    let entries = self.functions.lock();
                    calls.target = entries.get(&function).and_then(|entry| entry.function.clone());
                    calls.function = Some(function);
                }
                calls.push(trigger, LinkReply::new(self.shared.clone(), call));
            }
            NodeToAgent::HostResult { call, response } => {
                self.shared.host_calls.complete(call, Ok(response));
            }
            NodeToAgent::HostError { call, error } => {
                self.shared.host_calls.complete(call, Err(error));
            }
            NodeToAgent::Ping { nonce } => self.pong(nonce),
            NodeToAgent::Deploy { function, spec } => self.deploy(function, spec),
            NodeToAgent::Undeploy { function } => {
                let entry = self.functions.lock().remove(&function);
                // Ending a function's instances may take a moment; the link does not wait for it.
                if let Some(entry) = entry {
                    self.loads.spawn_blocking(move || drop(entry));
                }
            }
            NodeToAgent::Drain => self.draining = true,
            NodeToAgent::HelloAck(_) => return Err(LinkError::OutOfOrder("HelloAck")),
        }
        Ok(())
    }

    fn deploy(&mut self, function: FunctionId, spec: FunctionSpec) {
        tracing::debug!(%function, workload = spec.name, namespace = spec.namespace, "loading");
        let logs = Arc::new(LinkLogs::new(self.shared.outbox.clone(), function, &spec.limits));
        let host = FunctionHost {
            services: Arc::new(LinkHostServices::new(self.shared.clone(), function, &spec.limits)),
            logs: logs.clone(),
            events: Arc::new(LinkEvents::new(self.shared.clone(), function)),
        };
        let entry = Entry { logs, function: None };
        self.functions.lock().insert(function, entry);
        let load = self.engine.load(spec, host);
        let functions = self.functions.clone();
        let outbox = self.shared.outbox.clone();
        self.loads.spawn(async move {
            let result = load.await;
            let result = {
                let mut functions = functions.lock();
                match result {
                    Ok(loaded) => match functions.get_mut(&function) {
                        Some(entry) => {
                            entry.function = Some(loaded);
                            Ok(())
                        }
                        None => Err(LoadError::Engine("undeployed while it loaded".to_owned())),
                    },
                    Err(error) => {
                        functions.remove(&function);
                        Err(error)
                    }
                }
            };
            let answer = |result| outbox.send(AgentToNode::DeployResult { function, result });
            if answer(result) == Err(SendError::TooLarge) {
                _ = answer(Err(LoadError::Engine(
                    "what it failed of is too long to be told".to_owned(),
                )));
            }
        });
    }

    /// Counts the functions, at most once a second: there may be thousands.
    fn census(&mut self) -> Census {
        if self.census.taken.is_some_and(|taken| taken.elapsed() < CENSUS_EVERY) {
            return self.census;
        }
        let functions = self.functions.lock();
        let mut census = Census {
            taken: Some(Instant::now()),
            functions: saturate(functions.len()),
            ..Census::default()
        };
        for entry in functions.values() {
            entry.logs.report_dropped();
            let state = entry.function.as_ref().and_then(|function| function.state());
            if let Some(state) = state {
                census.instances += state.instances;
                census.hibernating += u32::from(state.instances == 0);
            }
        }
        self.census = census;
        census
    }

    fn pong(&mut self, nonce: u64) {
        let census = self.census();
        let health = Health {
            condemned: self.shared.condemned.load(Ordering::Acquire),
            in_flight: saturate(self.shared.in_flight.load(Ordering::Acquire)),
            functions: census.functions,
            hibernating: census.hibernating,
            instances: census.instances,
            rss_bytes: resident_bytes(),
        };
        self.send(AgentToNode::Pong { nonce, health });
    }

    fn send(&self, message: AgentToNode) {
        send(&self.shared.outbox, message);
    }
}

/// Queues what the protocol bounds. A closed link is noticed by the reader; everything else fits.
fn send(outbox: &Outbox<AgentToNode>, message: AgentToNode) {
    if let Err(error) = outbox.send(message) {
        tracing::debug!(%error, "message not sent");
    }
}

fn saturate(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Resident memory of this process, 0 where the system does not tell.
fn resident_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().strip_suffix("kB")?.trim().parse().ok()
        })
        .map_or(0, |kibibytes: u64| kibibytes * 1024)
}
