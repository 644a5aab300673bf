//! A machine whose agent is up.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::AsyncRead;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::api::Api;
use super::config::FirecrackerConfig;
use super::jail::{MEMORY, STATE};
use super::resources::{self, Action, BalloonStatistics, SnapshotCreate};
use super::version::Version;
use super::vm::Vm;
use super::{exit, vsock};
use crate::data_plane;
use crate::machines::child::stats_of;
use crate::machines::guest::{Guest, GuestControl, GuestError};
use crate::machines::{Machine, MachineError, MachineStats, Port, StartReport, Stream};

#[derive(Debug)]
pub(super) struct FirecrackerMachine {
    vm: Vm,
    version: Version,
    link_timeout: Duration,
    start: StartReport,
    agent: Mutex<Agent>,
    /// Once the agent has its link.
    guest: OnceLock<Guest>,
    /// What the guest said last that it could still use, in bytes; 0 if it has not.
    available: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Agent {
    /// It waits for its link.
    Waiting(GuestControl),
    /// It has it, and it is still here.
    Linked(UnixStream),
    /// The link was given away, or could not be made.
    Gone,
}

impl FirecrackerMachine {
    /// One that may be made a template of until it is connected.
    pub(super) fn booted(
        vm: Vm,
        guest: GuestControl,
        version: Version,
        config: &FirecrackerConfig,
        start: StartReport,
    ) -> Arc<Self> {
        Arc::new(Self::new(vm, Agent::Waiting(guest), version, config, start))
    }

    /// One whose agent has this link.
    pub(super) fn restored(
        vm: Vm,
        guest: GuestControl,
        link: UnixStream,
        version: Version,
        config: &FirecrackerConfig,
        start: StartReport,
    ) -> Result<Arc<Self>, MachineError> {
        let machine = Self::new(vm, Agent::Linked(link), version, config, start);
        machine.watch(guest)?;
        Ok(Arc::new(machine))
    }

    fn new(vm: Vm, agent: Agent, version: Version, config: &FirecrackerConfig, start: StartReport) -> Self {
        let available = Arc::new(AtomicU64::new(0));
        tokio::spawn(tell_end(vm.process.ending(), vm.process.pid()));
        if let Some(balloon) = config.balloon
            && balloon.stats_interval_s > 0
        {
            let interval = Duration::from_secs(balloon.stats_interval_s.into());
            let watch = watch_memory(vm.api().clone(), interval, available.clone());
            let ended = vm.process.ending();
            tokio::spawn(async move {
                tokio::select! {
                    _ = ended => {}
                    () = watch => {}
                }
            });
        }
        Self {
            vm,
            version,
            link_timeout: config.boot_timeout,
            start,
            agent: Mutex::new(agent),
            guest: OnceLock::new(),
            available,
        }
    }

    /// Looks after the guest from now on; one that breaks the protocol is killed.
    fn watch(&self, guest: GuestControl) -> Result<(), GuestError> {
        let (pid, kill) = (self.pid(), self.vm.process.kill_switch());
        let guest = guest.watch(move |error| {
            tracing::warn!(pid, %error, "a machine is killed for what its guest did");
            kill.cancel();
        })?;
        _ = self.guest.set(guest);
        Ok(())
    }

    /// Writes what it is into its own folder, and returns where that is. It stays paused.
    pub(super) async fn snapshot(&self) -> Result<PathBuf, MachineError> {
        if !matches!(*self.agent.lock().await, Agent::Waiting(_)) {
            return Err(MachineError::Unsupported(
                "a template is to be made of a machine that was connected, or is itself a copy".to_owned(),
            ));
        }
        self.vm.api().patch("/vm", &resources::Vm::Paused).await?;
        let create = SnapshotCreate {
            snapshot_type: "Full",
            snapshot_path: STATE,
            mem_file_path: MEMORY,
        };
        self.vm.patient_api().put("/snapshot/create", &create).await?;
        Ok(self.vm.root().to_owned())
    }

    async fn connect_link(&self) -> io::Result<Stream> {
        let agent = &mut *self.agent.lock().await;
        let link = match std::mem::replace(agent, Agent::Gone) {
            Agent::Linked(link) => link,
            Agent::Gone => return Err(io::Error::other("the link was connected before")),
            Agent::Waiting(guest) => tokio::select! {
                biased;
                link = self.give_link(guest) => link?,
                status = self.vm.process.wait() => {
                    return Err(io::Error::other(format!("Firecracker {}", exit::explain(status))));
                }
            },
        };
        let link = link.into_std()?;
        let _data_plane = data_plane::handle().enter();
        Ok(Stream::from(UnixStream::from_std(link)?))
    }

    async fn give_link(&self, mut guest: GuestControl) -> io::Result<UnixStream> {
        let deadline = Instant::now() + self.link_timeout;
        let link = vsock::connect(self.vm.vsock(), vsock::LINK, deadline).await?;
        guest.resume(self.link_timeout).await.map_err(io::Error::other)?;
        self.watch(guest).map_err(io::Error::other)?;
        Ok(link)
    }

    /// Asks the guest to end, first its own way and then with the keyboard, each for half of the grace.
    async fn ask_to_end(&self, grace: Duration) {
        // Without a link there is no call to finish.
        let Some(guest) = self.guest.get() else { return };
        let half = grace / 2;
        let shut_down = async {
            guest.shut_down().await;
            self.vm.process.wait().await
        };
        if tokio::time::timeout(half, shut_down).await.is_ok() {
            return;
        }
        let press = async {
            match self.vm.api().put("/actions", &Action::SendCtrlAltDel).await {
                Ok(()) => drop(self.vm.process.wait().await),
                Err(error) => tracing::debug!(%error, "the guest cannot be asked to reboot"),
            }
        };
        _ = tokio::time::timeout(grace - half, press).await;
    }
}

impl Machine for FirecrackerMachine {
    fn pid(&self) -> u32 {
        self.vm.process.pid()
    }

    fn connect(&self, port: Port) -> BoxFuture<'_, io::Result<Stream>> {
        match port {
            Port::Link => self.connect_link().boxed(),
        }
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        async {
            if self.version.loses_vsock_on_resume() {
                return Err(MachineError::Unsupported(format!(
                    "machines of Firecracker {} hear nothing any more after a pause; use 1.15 or 1.17",
                    self.version
                )));
            }
            if let Some(guest) = self.guest.get() {
                guest.pausing().await;
            }
            self.vm.api().patch("/vm", &resources::Vm::Paused).await
        }
        .boxed()
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        async {
            self.vm.api().patch("/vm", &resources::Vm::Resumed).await?;
            if let Some(guest) = self.guest.get() {
                guest.resumed().await;
            }
            Ok(())
        }
        .boxed()
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'_, ExitStatus> {
        async move {
            self.ask_to_end(grace).await;
            self.kill();
            self.wait().await
        }
        .boxed()
    }

    fn kill(&self) {
        self.vm.process.kill();
    }

    fn wait(&self) -> BoxFuture<'_, ExitStatus> {
        async {
            let status = self.vm.process.wait().await;
            self.guest.get().and_then(Guest::agent_exit).unwrap_or(status)
        }
        .boxed()
    }

    fn stats(&self) -> MachineStats {
        let available = self.available.load(Ordering::Relaxed);
        MachineStats {
            guest_available_bytes: (available > 0).then_some(available),
            ..stats_of(self.pid())
        }
    }

    fn start(&self) -> StartReport {
        self.start
    }

    fn take_logs(&self) -> Vec<Box<dyn AsyncRead + Send + Unpin>> {
        let process = &self.vm.process;
        let console = process.take_stdout().map(|pipe| Box::new(pipe) as _);
        let errors = process.take_stderr().map(|pipe| Box::new(pipe) as _);
        console.into_iter().chain(errors).collect()
    }
}

/// Logs an end that is neither the guest's own nor ours.
async fn tell_end(ended: impl Future<Output = ExitStatus>, pid: u32) {
    let status = ended.await;
    if status.code().is_some_and(|code| code != 0) {
        tracing::warn!(pid, "Firecracker {}", exit::explain(status));
    }
}

/// Keeps what the guest says of its memory.
async fn watch_memory(api: Api, interval: Duration, available: Arc<AtomicU64>) {
    loop {
        tokio::time::sleep(interval).await;
        match api.get::<BalloonStatistics>("/balloon/statistics").await {
            Ok(statistics) => available.store(statistics.available_memory.unwrap_or_default(), Ordering::Relaxed),
            // While it is paused, or before its driver has reported.
            Err(error) => tracing::debug!(%error, "the balloon's statistics"),
        }
    }
}
