//! What these tests share: pools of confined agents, their functions, and this program started again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use nex_node::agents::{AgentInfo, AgentPool, AgentPoolConfig, AgentState};
use nex_node::machines::{ProcessConfig, ProcessDriver, ProcessLimits};
use nex_runtime::engine::{Engine, Function, FunctionHost, FunctionSpec, Limits, LoadError};
use nex_runtime::host_services::{HostError, HostErrorCode, HostRequest, HostResponse, HostServices};
use nex_runtime::invocation::{ErrorKind, InvokeError, Reply, Trigger};
use tokio::sync::{Mutex, MutexGuard, oneshot};

/// Longest wait for what must happen. A test that hits it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits, but not for ever: a test that hangs says nothing.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("nothing happened for {PATIENCE:?}"))
}

/// Waits for what nobody announces.
pub async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(met) = condition() {
            return met;
        }
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A pool of confined agents. Control groups are named by process and agent, so that a process can have one pool with
/// limits at a time.
pub struct Lab {
    pub pool: Arc<AgentPool>,
    /// What confines and limits them.
    pub in_force: Vec<String>,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    pub async fn of(agent: PathBuf, limits: ProcessLimits) -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let driver = ProcessDriver::new(ProcessConfig {
            limits,
            ..ProcessConfig::new(agent)
        });
        let driver = driver.await.unwrap();
        let in_force = driver.in_force();
        let config = AgentPoolConfig {
            // On a busy machine.
            heartbeat_timeout: Duration::from_secs(3),
            start_timeout: PATIENCE,
            ..AgentPoolConfig::new(driver)
        };
        Self {
            pool: AgentPool::start(config).await.unwrap(),
            in_force,
            _turn: turn,
        }
    }

    pub async fn try_load(&self, name: &str, source: &str) -> Result<Arc<dyn Function>, LoadError> {
        within(self.pool.load(spec(name, source), host())).await
    }

    pub async fn load(&self, name: &str, source: &str) -> Arc<dyn Function> {
        self.try_load(name, source).await.unwrap()
    }

    /// The machine that serves; there is one, because there is one namespace.
    pub fn serving(&self) -> Option<AgentInfo> {
        let mut agents = self.pool.agents();
        agents.retain(|agent| agent.state == AgentState::Serving);
        agents.pop()
    }

    /// Whether a limit is kept by the kernel.
    pub fn has(&self, kind: &str) -> bool {
        self.in_force.iter().any(|name| name.starts_with(kind))
    }
}

fn spec(name: &str, source: &str) -> FunctionSpec {
    FunctionSpec {
        id: name.to_owned(),
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        workload_type: "v8".to_owned(),
        source: Bytes::copy_from_slice(source.as_bytes()),
        vars: BTreeMap::new(),
        limits: Limits {
            // Waited for by nobody.
            wall_time: 2 * PATIENCE,
            cpu_time: PATIENCE,
            ..Limits::default()
        },
    }
}

struct NoServices;

impl HostServices for NoServices {
    fn call(&self, _: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
        Box::pin(async { Err(HostError::new(HostErrorCode::PermissionDenied, "there are none")) })
    }
}

fn host() -> FunctionHost {
    FunctionHost {
        services: Arc::new(NoServices),
        logs: Arc::new(|_| {}),
        events: Arc::new(Quiet),
    }
}

struct Quiet;

impl nex_runtime::engine::EventSink for Quiet {
    fn event(&self, _: nex_runtime::engine::EngineEvent) {}
}

fn trigger(payload: &str) -> Trigger {
    Trigger {
        subject: "s".to_owned(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        ..Trigger::default()
    }
}

/// Queues a call now; the receiver gets its answer.
pub fn start(function: &Arc<dyn Function>, payload: &str) -> oneshot::Receiver<Result<Reply, InvokeError>> {
    let (sender, receiver) = oneshot::channel();
    function.invoke(trigger(payload), Box::new(sender));
    receiver
}

/// Calls and waits for the answer.
pub async fn call(function: &Arc<dyn Function>, payload: &str) -> Result<String, InvokeError> {
    let reply = within(start(function, payload)).await.unwrap()?;
    Ok(String::from_utf8_lossy(&reply.body).into_owned())
}

/// Calls until it is answered by a function: while it is being moved, calls may fail.
pub async fn answered(function: &Arc<dyn Function>, payload: &str) -> String {
    within(async {
        loop {
            match call(function, payload).await {
                Ok(reply) => break reply,
                Err(error) => assert_eq!(error.kind, ErrorKind::NotReady, "{error}"),
            }
        }
    })
    .await
}

/// Runs one test of this program in a process of its own, which a variable tells that it is that.
pub fn run_alone(test: &str, prepare: impl FnOnce(&mut std::process::Command)) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, "1");
    prepare(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}", output.status);
    assert!(text.contains("1 passed"), "the test {test} was not found: {text}");
    for line in text.lines().filter(|line| line.starts_with("figures:")) {
        eprintln!("{line}");
    }
}

const ALONE: &str = "NEX_TEST_ALONE";

/// Whether this is such a process.
pub fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// The control groups that a node made which is, or was, this process.
pub fn control_groups_of(node: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(Path::new("/sys/fs/cgroup"), &format!("nex-{node}-"), &mut found);
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
    // Groups come and go while this looks.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
        collect(&entry.path(), prefix, found);
    }
}

/// Middle and ninety-fifth in a hundred, and the most.
pub fn figures(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    eprintln!(
        "figures: {what}: {} times, p50 {:.1?}, p95 {:.1?}, most {:.1?}",
        times.len(),
        at(50),
        at(95),
        at(100)
    );
}
