//! Agents as child processes.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::io::AsyncRead;
use tokio::net::UnixStream;

use super::child::{MachineProcess, bare_command, stats_of};
use super::{DriverKind, Machine, MachineDriver, MachineError, MachineStats, Port, StartReport, Stream};
use crate::data_plane;

/// Settings of a [`ProcessDriver`].
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// The `nex-agent` binary.
    pub agent_bin: PathBuf,
    /// Arguments for it. Default none.
    pub agent_args: Vec<OsString>,
    /// Its whole environment, beside `RUST_LOG`; nothing of the node's own is passed on. Default empty.
    pub agent_env: Vec<(String, String)>,
    /// Log filter of the agents, as in `RUST_LOG`. Their logs become the node's own.
    pub agent_log: String,
}

impl ProcessConfig {
    /// The defaults, with this binary.
    #[must_use]
    pub fn new(agent_bin: impl Into<PathBuf>) -> Self {
        Self {
            agent_bin: agent_bin.into(),
            agent_args: Vec::new(),
            agent_env: Vec::new(),
            agent_log: "info".to_owned(),
        }
    }
}

/// Starts agents as child processes.
#[derive(Debug)]
pub struct ProcessDriver {
    config: ProcessConfig,
}

impl ProcessDriver {
    /// Agents that nothing confines: what breaks out of V8 can do what the node's user can.
    #[must_use]
    pub fn unconfined(config: ProcessConfig) -> Self {
        Self { config }
    }
}

impl MachineDriver for ProcessDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Process
    }

    fn boot(&self, _id: &str) -> BoxFuture<'_, Result<Arc<dyn Machine>, MachineError>> {
        async move {
            let started = Instant::now();
            let spawn_error = |source| MachineError::Spawn {
                program: self.config.agent_bin.clone(),
                source,
            };
            let (ours, theirs) = StdUnixStream::pair().map_err(spawn_error)?;
            ours.set_nonblocking(true).map_err(spawn_error)?;
            let link = {
                let _data_plane = data_plane::handle().enter();
                UnixStream::from_std(ours).map_err(spawn_error)?
            };
            let mut command = bare_command(&self.config.agent_bin);
            command
                .args(&self.config.agent_args)
                .env("RUST_LOG", &self.config.agent_log)
                .envs(self.config.agent_env.iter().map(|(name, value)| (name, value)))
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::null());
            let process = MachineProcess::spawn(command, || ()).await.map_err(spawn_error)?;
            let machine: Arc<dyn Machine> = Arc::new(AgentProcess {
                process,
                link: Mutex::new(Some(link)),
                elapsed: started.elapsed(),
            });
            Ok(machine)
        }
        .boxed()
    }
}

struct AgentProcess {
    process: MachineProcess,
    link: Mutex<Option<UnixStream>>,
    elapsed: Duration,
}

impl fmt::Debug for AgentProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentProcess")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl Machine for AgentProcess {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn connect(&self, port: Port) -> BoxFuture<'_, io::Result<Stream>> {
        let link = match port {
            Port::Link => self.link.lock().take(),
        };
        let gone = || io::Error::new(io::ErrorKind::AddrInUse, "the link is connected");
        std::future::ready(link.map(Stream::from).ok_or_else(gone)).boxed()
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        let paused = self.process.signal(Signal::STOP);
        std::future::ready(paused.map_err(|error| MachineError::Unsupported(error.to_string()))).boxed()
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        let resumed = self.process.signal(Signal::CONT);
        std::future::ready(resumed.map_err(|error| MachineError::Unsupported(error.to_string()))).boxed()
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'_, ExitStatus> {
        async move {
            // It ends with its link.
            drop(self.link.lock().take());
            match tokio::time::timeout(grace, self.process.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    self.process.kill();
                    self.process.wait().await
                }
            }
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
        stats_of(self.process.pid())
    }

    fn start(&self) -> StartReport {
        StartReport {
            restored: false,
            elapsed: self.elapsed,
        }
    }

    fn take_logs(&self) -> Vec<Box<dyn AsyncRead + Send + Unpin>> {
        let stderr = self.process.take_stderr();
        stderr
            .into_iter()
            .map(|stderr| Box::new(stderr) as Box<dyn AsyncRead + Send + Unpin>)
            .collect()
    }
}
