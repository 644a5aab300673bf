//! What the tests of the agent pool share: pools of toy and hostile agents, which are this test program started again,
//! pools of real ones, and a host whose every answer the test gives.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use nex_node::agents::{AgentEvent, AgentPool, AgentPoolConfig, QuarantineRules};
use nex_node::machines::{ProcessConfig, ProcessDriver};
use nex_runtime::engine::{Engine, EngineEvent, EventSink, Function, FunctionHost, FunctionSpec, Limits, LoadError};
use nex_runtime::host_services::{HostError, HostRequest, HostResponse, HostServices};
use nex_runtime::invocation::{InvokeError, Reply, Trigger};
use nex_runtime::logs::LogLine;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::binary::agent_bin;
use crate::hostile;
use crate::toy::Toy;

/// What this program is when it is started as an agent.
const ROLE: &str = "NEX_TEST_AGENT";

/// The entry of the agent processes. As a test of its own it does nothing.
#[test]
fn agent_process() {
    match std::env::var(ROLE).as_deref() {
        Err(_) => {}
        Ok("toy") => nex_agent::process::run(&nex_agent::process::Options::default(), || {
            Ok::<_, Infallible>(Arc::new(Toy) as Arc<dyn Engine>)
        }),
        Ok(role) => hostile::run(role),
    }
}

/// Settings for a pool of this program in that role.
pub fn config(role: &str) -> AgentPoolConfig {
    AgentPoolConfig::new(ProcessDriver::unconfined(process(role)))
}

/// This program in that role.
pub fn process(role: &str) -> ProcessConfig {
    ProcessConfig {
        agent_args: ["support::agent_process", "--exact", "--nocapture"]
            .map(OsString::from)
            .to_vec(),
        agent_env: vec![(ROLE.to_owned(), role.to_owned())],
        ..ProcessConfig::new(std::env::current_exe().unwrap())
    }
}

pub async fn toys() -> Arc<AgentPool> {
    AgentPool::start(config("toy")).await.unwrap()
}

/// Quarantine after so many incidents, at first for this long.
pub fn rules(after: u32, duration: Duration) -> QuarantineRules {
    QuarantineRules {
        after,
        duration,
        ..QuarantineRules::default()
    }
}

/// Settings for a pool of real agents with V8.
pub fn v8_config() -> AgentPoolConfig {
    AgentPoolConfig::new(ProcessDriver::unconfined(ProcessConfig::new(agent_bin())))
}

/// A host call, to be answered by the test.
pub struct HostCall {
    pub request: HostRequest,
    pub answer: oneshot::Sender<Result<HostResponse, HostError>>,
}

/// The test's side of a function's host.
pub struct Host {
    pub calls: mpsc::UnboundedReceiver<HostCall>,
    pub logs: mpsc::UnboundedReceiver<LogLine>,
    pub events: mpsc::UnboundedReceiver<EngineEvent>,
}

struct Services(mpsc::UnboundedSender<HostCall>);

impl HostServices for Services {
    fn call(&self, request: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
        let (answer, answered) = oneshot::channel();
        _ = self.0.send(HostCall { request, answer });
        Box::pin(async move { answered.await.unwrap() })
    }
}

struct Events(mpsc::UnboundedSender<EngineEvent>);

impl EventSink for Events {
    fn event(&self, event: EngineEvent) {
        _ = self.0.send(event);
    }
}

pub fn host() -> (FunctionHost, Host) {
    let (calls_sender, calls) = mpsc::unbounded_channel();
    let (logs_sender, logs) = mpsc::unbounded_channel();
    let (events_sender, events) = mpsc::unbounded_channel();
    let host = FunctionHost {
        services: Arc::new(Services(calls_sender)),
        logs: Arc::new(move |line| _ = logs_sender.send(line)),
        events: Arc::new(Events(events_sender)),
    };
    (host, Host { calls, logs, events })
}

pub fn spec(namespace: &str, name: &str, source: &str) -> FunctionSpec {
    FunctionSpec {
        id: format!("{namespace}-{name}"),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        workload_type: "v8".to_owned(),
        source: Bytes::copy_from_slice(source.as_bytes()),
        vars: BTreeMap::new(),
        limits: Limits::default(),
    }
}

/// Loads a function of namespace `ns` named like its source.
pub async fn load(pool: &AgentPool, source: &str) -> (Arc<dyn Function>, Host) {
    let (function, host) = try_load(pool, spec("ns", source, source)).await;
    (function.unwrap(), host)
}

pub async fn try_load(pool: &AgentPool, spec: FunctionSpec) -> (Result<Arc<dyn Function>, LoadError>, Host) {
    let (host, test) = host();
    (pool.load(spec, host).await, test)
}

pub fn trigger(payload: impl Into<Bytes>) -> Trigger {
    Trigger {
        subject: "s".to_owned(),
        payload: payload.into(),
        ..Trigger::default()
    }
}

pub async fn call(function: &Arc<dyn Function>, payload: impl Into<Bytes>) -> Result<Reply, InvokeError> {
    function.call(trigger(payload)).await
}

/// Queues a call now; the receiver gets its answer.
pub fn start(function: &Arc<dyn Function>, payload: impl Into<Bytes>) -> oneshot::Receiver<Result<Reply, InvokeError>> {
    let (sender, receiver) = oneshot::channel();
    function.invoke(trigger(payload), Box::new(sender));
    receiver
}

/// The process that runs a toy's `pid` function.
pub async fn pid(function: &Arc<dyn Function>) -> u32 {
    text(&call(function, "").await.unwrap()).parse().unwrap()
}

pub fn text(reply: &Reply) -> &str {
    std::str::from_utf8(&reply.body).unwrap()
}

pub fn signal(pid: u32, signal: Signal) {
    kill_process(raw(pid), signal).unwrap();
}

/// Whether the process is there, if only as a zombie.
pub fn exists(pid: u32) -> bool {
    test_kill_process(raw(pid)).is_ok()
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

/// The end of an agent: its message and code.
pub async fn stopped(events: &mut broadcast::Receiver<AgentEvent>) -> (String, i32) {
    loop {
        if let AgentEvent::Stopped { message, code, .. } = within(events.recv()).await.unwrap() {
            return (message, code);
        }
    }
}

/// Waits, but not for ever: a test that hangs says nothing.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("nothing happened for 30 s")
}
