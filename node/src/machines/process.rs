//! Machines that are confined child processes: for hosts without KVM, where a microVM would be emulated.
//!
//! The agent's binary confines itself (`nex_agent::confine`): with namespaces, the process started here is a launcher,
//! below which the agent runs as a child of its own PID 1. The node adds what it alone can: control groups, or, where it
//! may make none, an eye on the memory. The link is a socket pair, one end of which is the agent's standard input.

mod cgroup;
mod config;
mod family;
mod memory;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use nex_agent::confine::{Layer, Probe};
use parking_lot::Mutex;
use rustix::net::RecvFlags;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio_util::task::AbortOnDropHandle;

use self::cgroup::{Cgroups, Hierarchies};
pub use self::config::{Confinement, ProcessConfig, ProcessLimits};
use self::family::Family;
use super::child::{self, MachineProcess};
use super::{DriverKind, Machine, MachineDriver, MachineError, MachineStats, Port, StartReport, Stream};
use crate::data_plane;

pub(crate) use self::cgroup::remove_stale_cgroups;

/// How long the agent's binary may take to tell what this host gives.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an agent that closed its link may take to exit, and tell why.
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// How long the last words of a machine that did not come up are waited for, and how much of them is told.
const LAST_WORDS: Duration = Duration::from_millis(200);
const LAST_WORDS_BYTES: u64 = 4096;

/// Starts confined processes.
pub struct ProcessDriver {
    config: ProcessConfig,
    layers: Vec<Layer>,
    cgroups: Hierarchies,
}

impl fmt::Debug for ProcessDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessDriver")
            .field("agent_bin", &self.config.agent_bin)
            .field("in_force", &self.in_force())
            .finish_non_exhaustive()
    }
}

impl ProcessDriver {
    /// Asks the agent's binary which layers this host gives, and logs it.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] names demanded layers that are missing; [`MachineError::Spawn`] and
    /// [`MachineError::Start`] tell of a binary that is no agent.
    pub async fn new(config: ProcessConfig) -> Result<Self, MachineError> {
        let layers = match &config.confinement {
            Confinement::None => {
                tracing::warn!("agents run without confinement: code that breaks out of V8 has all that this user has");
                Vec::new()
            }
            Confinement::AtLeast(demanded) => available(&probe(&config).await?, demanded)?,
        };
        let removed = remove_stale_cgroups(config.cgroup_parent.as_deref(), |node| {
            Path::new("/proc").join(node.to_string()).exists()
        });
        if removed > 0 {
            tracing::info!(removed, "control groups of nodes that are gone");
        }
        let cgroups = Hierarchies::find(config.cgroup_parent.as_deref(), &config.limits);
        let driver = Self {
            config,
            layers,
            cgroups,
        };
        let limits = &driver.config.limits;
        tracing::info!(in_force = ?driver.in_force(), ?limits, "agents are confined processes");
        Ok(driver)
    }

    /// Agents that nothing confines and no control group limits, whatever the settings say: what breaks out of V8 can do
    /// what the node's user can. For agents that cannot confine themselves, such as those of tests.
    #[must_use]
    pub fn unconfined(config: ProcessConfig) -> Self {
        Self {
            config,
            layers: Vec::new(),
            cgroups: Hierarchies::default(),
        }
    }

    /// What confines its machines: layers, and kinds of control groups.
    #[must_use]
    pub fn in_force(&self) -> Vec<String> {
        let layers = self.layers.iter().map(|layer| layer.as_str().to_owned());
        layers.chain(self.cgroups.names()).collect()
    }

    async fn start(&self, id: &str) -> Result<Arc<dyn Machine>, MachineError> {
        let started = Instant::now();
        let config = &self.config;
        let spawn_error = |source| MachineError::Spawn {
            program: config.agent_bin.clone(),
            source,
        };
        let (ours, theirs) = StdUnixStream::pair().map_err(spawn_error)?;
        ours.set_nonblocking(true).map_err(spawn_error)?;
        let link = {
            let _data_plane = data_plane::handle().enter();
            UnixStream::from_std(ours).map_err(spawn_error)?
        };
        let cgroups = self.cgroups.make(id)?;
        let family = Arc::new(Family::default());
        let process = {
            let command = self.command(theirs, &cgroups);
            let family = family.clone();
            let clean_up = move || {
                family.wait_until_gone();
                drop(cgroups);
            };
            MachineProcess::spawn(command, clean_up).await.map_err(spawn_error)?
        };
        let process = Arc::new(process);
        let ready = self.wait_for_agent(&process, &link).await;
        family.find(process.pid(), self.layers.contains(&Layer::Namespaces));
        ready?;
        let watched = config.limits.memory_bytes.filter(|_| !self.cgroups.limits_memory());
        let watch = watched.map(|most| memory::watch(&process, family.agent(), most));
        Ok(Arc::new(ProcessMachine {
            process,
            family,
            link: Mutex::new(Some(link)),
            start: StartReport {
                restored: false,
                elapsed: started.elapsed(),
                up: None,
            },
            _watch: watch,
        }))
    }

    fn command(&self, link: StdUnixStream, cgroups: &Cgroups) -> Command {
        let config = &self.config;
        let mut command = child::bare_command(&config.agent_bin);
        command.args(&config.agent_args);
        if !self.layers.is_empty() {
            let layers: Vec<&str> = self.layers.iter().map(|layer| layer.as_str()).collect();
            command.arg(format!("--confine={}", layers.join(",")));
        }
        for folder in cgroups.folders() {
            command.arg("--cgroup").arg(folder);
        }
        command
            .env("RUST_LOG", &config.agent_log)
            .envs(config.agent_env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(link)))
            .stdout(Stdio::null());
        child::die_before_others(&mut command);
        command
    }

    /// Waits for the agent to say something on its link, which it does first of all once its engine is ready.
    async fn wait_for_agent(&self, process: &MachineProcess, link: &UnixStream) -> Result<(), MachineError> {
        let limit = self.config.start_timeout;
        match tokio::time::timeout(limit, link.readable()).await {
            Ok(Ok(())) if has_input(link) => Ok(()),
            // Its end is closed: it is ending.
            Ok(_) => {
                _ = tokio::time::timeout(EXIT_GRACE, process.wait()).await;
                process.kill();
                Err(MachineError::Start(last_words(process).await))
            }
            Err(_) => Err(MachineError::TimedOut(limit)),
        }
    }
}

impl MachineDriver for ProcessDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Process
    }

    fn is_sandbox(&self) -> bool {
        let needed = [Layer::Namespaces, Layer::Seccomp];
        needed.iter().all(|layer| self.layers.contains(layer))
    }

    fn boot(&self, id: &str) -> BoxFuture<'_, Result<Arc<dyn Machine>, MachineError>> {
        let id = id.to_owned();
        async move { self.start(&id).await }.boxed()
    }
}

fn has_input(link: &UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(link, &mut [0_u8; 1], flags).is_ok_and(|(read, _)| read > 0)
}

/// How a machine that did not come up ended, and what it said last.
async fn last_words(process: &MachineProcess) -> String {
    let status = process.wait().await;
    let mut words = String::new();
    if let Some(stderr) = process.take_stderr() {
        let mut stderr = stderr.take(LAST_WORDS_BYTES);
        let mut bytes = Vec::new();
        _ = tokio::time::timeout(LAST_WORDS, stderr.read_to_end(&mut bytes)).await;
        let lines = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        words = lines.join(" / ");
    }
    if words.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {words}")
    }
}

/// The layers that this host gives.
fn available(probe: &Probe, demanded: &[Layer]) -> Result<Vec<Layer>, MachineError> {
    let mut missing = Vec::new();
    let mut available = Vec::new();
    for layer in Layer::ALL {
        let report = probe.layers.get(&layer);
        if report.is_some_and(|report| report.available) {
            available.push(layer);
            continue;
        }
        let reason = report.and_then(|report| report.reason.as_deref());
        let reason = reason.unwrap_or("the agent's binary does not know it");
        if demanded.contains(&layer) {
            missing.push(format!("{layer} ({reason})"));
        } else {
            tracing::warn!(%layer, reason, "this host does not give a layer of confinement");
        }
    }
    if missing.is_empty() {
        return Ok(available);
    }
    Err(MachineError::Unsupported(format!(
        "this host does not give the confinement that is demanded of agent processes: {}",
        missing.join(", ")
    )))
}

/// Asks the agent's binary what this host gives.
async fn probe(config: &ProcessConfig) -> Result<Probe, MachineError> {
    let mut command = child::bare_command(&config.agent_bin);
    command
        .args(&config.agent_args)
        .arg("--probe-confinement")
        .envs(config.agent_env.iter().map(|(name, value)| (name, value)))
        .kill_on_drop(true);
    let output = match tokio::time::timeout(PROBE_TIMEOUT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => {
            return Err(MachineError::Spawn {
                program: config.agent_bin.clone(),
                source,
            });
        }
        Err(_) => return Err(MachineError::TimedOut(PROBE_TIMEOUT)),
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    // Others may write before it: a test program tells which tests it runs.
    let probe = stdout.lines().find_map(|line| serde_json::from_str(line).ok());
    probe.ok_or_else(|| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        MachineError::Start(format!(
            "{} does not tell which confinement this host gives ({}): {}",
            config.agent_bin.display(),
            output.status,
            stderr.trim()
        ))
    })
}

struct ProcessMachine {
    process: Arc<MachineProcess>,
    family: Arc<Family>,
    link: Mutex<Option<UnixStream>>,
    start: StartReport,
    /// Ends with the machine.
    _watch: Option<AbortOnDropHandle<()>>,
}

impl fmt::Debug for ProcessMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessMachine")
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl ProcessMachine {
    fn signal(&self, signal: Signal) -> Result<(), MachineError> {
        let gone = || MachineError::Refused {
            request: format!("signal {}", signal.as_raw()),
            message: "the process is gone".to_owned(),
        };
        if self.process.has_ended() {
            return Err(gone());
        }
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(gone)?;
        rustix::process::kill_process(pid, signal).map_err(|_| gone())
    }
}

impl Machine for ProcessMachine {
    fn pid(&self) -> u32 {
        self.family.agent().unwrap_or_else(|| self.process.pid())
    }

    fn connect(&self, port: Port) -> BoxFuture<'_, io::Result<Stream>> {
        let Port::Link = port;
        let link = self.link.lock().take();
        let taken = || io::Error::new(io::ErrorKind::AddrInUse, "the link has been opened before");
        let stream = link.map(Stream::from).ok_or_else(taken);
        std::future::ready(stream).boxed()
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        std::future::ready(self.signal(Signal::STOP)).boxed()
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        std::future::ready(self.signal(Signal::CONT)).boxed()
    }

    /// An agent ends with its link: one that has not been opened is closed, any other is its owner's to close.
    fn stop(&self, grace: Duration) -> BoxFuture<'_, ExitStatus> {
        drop(self.link.lock().take());
        async move {
            if let Ok(status) = tokio::time::timeout(grace, self.process.wait()).await {
                return status;
            }
            self.process.kill();
            self.process.wait().await
        }
        .boxed()
    }

    fn kill(&self) {
        self.process.kill();
    }

    fn wait(&self) -> BoxFuture<'_, ExitStatus> {
        self.process.wait().boxed()
    }

    fn stats(&self) -> MachineStats {
        if self.process.has_ended() {
            return MachineStats::default();
        }
        child::stats_of(self.pid())
    }

    fn start(&self) -> StartReport {
        self.start
    }

    fn take_logs(&self) -> Vec<Box<dyn AsyncRead + Send + Unpin>> {
        let stderr = self.process.take_stderr();
        stderr.map(|stderr| Box::new(stderr) as Box<_>).into_iter().collect()
    }
}
