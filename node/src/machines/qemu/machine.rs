//! One virtual machine: its QEMU process, the monitor, the guest in it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::qmp::Qmp;
use crate::data_plane;
use crate::machines::child::{MachineProcess, stats_of};
use crate::machines::guest::{Guest, GuestControl};
use crate::machines::{Machine, MachineError, MachineStats, Port, StartReport, Stream};

/// How long a guest may take to hand its agent the link.
const RESUME_PATIENCE: Duration = Duration::from_secs(20);

/// How long a migration may take: the state of the devices, without the memory.
const MIGRATION_PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked at.
const MIGRATION_POLL: Duration = Duration::from_millis(1);

/// How long what a dead machine wrote is read.
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(200);

/// Most that is read of it, and lines that are told.
const LAST_WORDS_BYTES: u64 = 64 << 10;
const LAST_WORDS_LINES: usize = 8;

/// What a machine writes.
pub(super) type Logs = Vec<Box<dyn AsyncRead + Send + Unpin>>;

/// A QEMU that has started, with its guest's processors still or running.
pub(super) struct Vm {
    pub(super) process: Arc<MachineProcess>,
    pub(super) qmp: Qmp,
    /// The agent, its kernel's console, QEMU itself.
    logs: Mutex<Logs>,
}

impl Vm {
    pub(super) fn new(process: MachineProcess, qmp: Qmp, logs: Logs) -> Self {
        Self {
            process: Arc::new(process),
            qmp,
            logs: Mutex::new(logs),
        }
    }

    /// Ends a machine that did not come up, and adds what it wrote to the reason.
    pub(super) async fn give_up(self, error: MachineError) -> MachineError {
        self.process.kill();
        self.process.wait().await;
        let logs = std::mem::take(&mut *self.logs.lock());
        explain(error, logs).await
    }

    /// Writes the state of the devices, which ends the use of the machine.
    pub(super) async fn save(&self, state: &OwnedFd) -> Result<(), MachineError> {
        self.qmp.run("stop", json!({})).await?;
        self.ignore_memory().await?;
        self.qmp.give("state", std::os::fd::AsFd::as_fd(state)).await?;
        self.qmp.run("migrate", json!({ "uri": "fd:state" })).await?;
        self.migrated("query-migrate", |status| match status {
            "completed" => Some(Ok(())),
            "failed" | "cancelled" => Some(Err(())),
            _ => None,
        })
        .await
    }

    /// Reads the state of the devices, and lets the guest run.
    pub(super) async fn load(&self, state: &OwnedFd) -> Result<(), MachineError> {
        self.ignore_memory().await?;
        self.qmp.give("state", std::os::fd::AsFd::as_fd(state)).await?;
        self.qmp.run("migrate-incoming", json!({ "uri": "fd:state" })).await?;
        // QEMU ends when it cannot.
        // It was stopped when it was written down, and is so again.
        self.migrated("query-status", |status| match status {
            "paused" => Some(Ok(())),
            "inmigrate" => None,
            _ => Some(Err(())),
        })
        .await?;
        self.qmp.run("cont", json!({})).await.map(drop)
    }

    /// The memory is a file that the other side has.
    async fn ignore_memory(&self) -> Result<(), MachineError> {
        let capabilities = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        self.qmp.run("migrate-set-capabilities", capabilities).await.map(drop)
    }

    async fn migrated(&self, query: &str, judge: impl Fn(&str) -> Option<Result<(), ()>>) -> Result<(), MachineError> {
        let until = Instant::now() + MIGRATION_PATIENCE;
        loop {
            let answer = self.qmp.run(query, json!({})).await?;
            let status = answer.get("status").and_then(Value::as_str).unwrap_or_default();
            match judge(status) {
                Some(Ok(())) => return Ok(()),
                None if Instant::now() < until => sleep(MIGRATION_POLL).await,
                _ => {
                    return Err(MachineError::Refused {
                        request: query.to_owned(),
                        message: answer.to_string(),
                    });
                }
            }
        }
    }
}

/// An error with what a machine that is gone wrote last.
pub(super) async fn explain(error: MachineError, logs: Logs) -> MachineError {
    let mut lines = Vec::new();
    for log in logs {
        let mut text = Vec::new();
        // Whatever was read until then.
        _ = timeout(LAST_WORDS_PATIENCE, log.take(LAST_WORDS_BYTES).read_to_end(&mut text)).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        let said = text
            .lines()
            .map(|line| line.replace(char::is_control, " ").trim().to_owned());
        let said: Vec<_> = said.filter(|line| !line.is_empty()).collect();
        lines.extend_from_slice(
            said.get(said.len().saturating_sub(LAST_WORDS_LINES)..)
                .unwrap_or_default(),
        );
    }
    if lines.is_empty() {
        return error;
    }
    MachineError::Start(format!("{error}: {}", lines.join(" / ")))
}

/// A machine whose agent waits for its link, or has it.
pub(super) struct QemuMachine {
    vm: Vm,
    stage: tokio::sync::Mutex<Stage>,
    guest: OnceLock<Guest>,
    /// Of a booted machine, from which a template can be taken.
    memory: Mutex<Option<OwnedFd>>,
    report: StartReport,
}

/// How far it is.
enum Stage {
    /// Its clock and its random numbers are not set yet. A template can be taken.
    Ready(GuestControl, StdUnixStream),
    /// The agent has its link, whose other end is here until it is asked for.
    Linked(Option<StdUnixStream>),
    /// A template was taken, or it did not get as far as its link.
    Spent,
}

impl fmt::Debug for QemuMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QemuMachine")
            .field("process", &self.vm.process)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

impl QemuMachine {
    /// A machine that has booted, and has not been told the time yet.
    /// `up` is how long its kernel took.
    pub(super) fn booted(
        vm: Vm,
        control: GuestControl,
        link: StdUnixStream,
        memory: OwnedFd,
        start: Instant,
        up: Duration,
    ) -> Self {
        Self {
            vm,
            stage: tokio::sync::Mutex::new(Stage::Ready(control, link)),
            guest: OnceLock::new(),
            memory: Mutex::new(Some(memory)),
            report: StartReport {
                restored: false,
                elapsed: start.elapsed(),
                up: Some(up),
            },
        }
    }

    /// A machine from a template, after it has been told the time and given a seed. If it does not take them, it is
    /// returned with the reason.
    pub(super) async fn restored(
        vm: Vm,
        control: GuestControl,
        link: StdUnixStream,
        start: Instant,
    ) -> Result<Self, (Vm, MachineError)> {
        let guest = match resume(&vm, control).await {
            Ok(guest) => guest,
            Err(error) => return Err((vm, error)),
        };
        Ok(Self {
            vm,
            stage: tokio::sync::Mutex::new(Stage::Linked(Some(link))),
            guest: OnceLock::from(guest),
            memory: Mutex::default(),
            report: StartReport {
                restored: true,
                elapsed: start.elapsed(),
                up: None,
            },
        })
    }

    /// Takes the state and the memory of a machine that has not been connected, and ends it.
    pub(super) async fn freeze(&self, state: &OwnedFd) -> Result<OwnedFd, MachineError> {
        let mut stage = self.stage.lock().await;
        let memory = self.memory.lock().take();
        let (Stage::Ready(..), Some(memory)) = (&*stage, memory) else {
            return Err(MachineError::Start(
                "no template can be taken of a machine that was connected or restored".to_owned(),
            ));
        };
        *stage = Stage::Spent;
        let saved = self.vm.save(state).await;
        self.vm.process.kill();
        self.vm.process.wait().await;
        saved.map(|()| memory)
    }

    /// Sets the clock and the random numbers and gives the agent its link, unless that was done before. Returns this end.
    async fn link(&self) -> Result<Option<StdUnixStream>, MachineError> {
        let mut stage = self.stage.lock().await;
        match std::mem::replace(&mut *stage, Stage::Spent) {
            Stage::Ready(control, link) => {
                let guest = resume(&self.vm, control).await?;
                _ = self.guest.set(guest);
                // No template can be taken any more.
                self.memory.lock().take();
                *stage = Stage::Linked(None);
                Ok(Some(link))
            }
            Stage::Linked(link) => {
                *stage = Stage::Linked(None);
                Ok(link)
            }
            Stage::Spent => Ok(None),
        }
    }

    async fn command(&self, command: &str) -> Result<(), MachineError> {
        self.vm.qmp.run(command, json!({})).await.map(drop)
    }
}

/// Sets the guest's clock and random numbers, gives its agent the link, and looks after it from then on.
async fn resume(vm: &Vm, mut control: GuestControl) -> Result<Guest, MachineError> {
    control.resume(RESUME_PATIENCE).await?;
    let process: Weak<MachineProcess> = Arc::downgrade(&vm.process);
    let guest = control.watch(move |error| {
        if let Some(process) = process.upgrade()
            && !process.has_ended()
        {
            tracing::warn!(pid = process.pid(), "machine killed: {error}");
            process.kill();
        }
    })?;
    Ok(guest)
}

impl Machine for QemuMachine {
    fn pid(&self) -> u32 {
        self.vm.process.pid()
    }

    fn connect(&self, port: Port) -> BoxFuture<'_, io::Result<Stream>> {
        async move {
            let link = match port {
                Port::Link => self.link().await.map_err(io::Error::other)?,
            };
            let link = link.ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "the link is connected"))?;
            let _data_plane = data_plane::handle().enter();
            Ok(UnixStream::from_std(link)?.into())
        }
        .boxed()
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        async move {
            if let Some(guest) = self.guest.get() {
                guest.pausing().await;
            }
            self.command("stop").await
        }
        .boxed()
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        async move {
            self.command("cont").await?;
            if let Some(guest) = self.guest.get() {
                guest.resumed().await;
            }
            Ok(())
        }
        .boxed()
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'_, ExitStatus> {
        async move {
            match self.guest.get() {
                Some(guest) => guest.shut_down().await,
                // Nothing has begun that could be ended in good order.
                None => self.kill(),
            }
            match timeout(grace, self.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    self.kill();
                    self.wait().await
                }
            }
        }
        .boxed()
    }

    fn kill(&self) {
        self.vm.process.kill();
    }

    fn wait(&self) -> BoxFuture<'_, ExitStatus> {
        async move {
            let status = self.vm.process.wait().await;
            self.guest.get().and_then(Guest::agent_exit).unwrap_or(status)
        }
        .boxed()
    }

    fn stats(&self) -> MachineStats {
        stats_of(self.pid())
    }

    fn start(&self) -> StartReport {
        self.report
    }

    fn take_logs(&self) -> Logs {
        std::mem::take(&mut *self.vm.logs.lock())
    }
}
