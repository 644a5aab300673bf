//! Machines: what separates the functions of one namespace from everything else. A [`MachineDriver`] starts them, a
//! [`Machine`] is one of them; the agent pool knows nothing more of either.
//!
//! Whatever a machine is (a microVM, a confined process), it has one agent inside and no way to the outside but the
//! stream that [`Machine::connect`] opens. Drivers whose machines can be copied implement [`Templating`], and
//! [`MachineSource`] boots once and restores from then on.

pub(crate) mod child;
pub mod firecracker;
pub(crate) mod guest;
pub mod image;
pub mod process;
mod qemu;
pub mod resources;
mod runtime_dir;
mod source;

use std::any::Any;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

pub use self::firecracker::{FirecrackerConfig, FirecrackerDriver, JailerConfig, RateLimiters};
pub use self::process::{Confinement, ProcessConfig, ProcessDriver, ProcessLimits};
pub use self::qemu::{Accel, QemuConfig, QemuDriver};
pub use self::runtime_dir::RuntimeDir;
pub use self::source::MachineSource;

/// Starts machines of one kind.
pub trait MachineDriver: fmt::Debug + Send + Sync + 'static {
    /// Which one it is.
    fn kind(&self) -> DriverKind;

    /// Whether code that breaks out of an agent is still confined.
    fn is_sandbox(&self) -> bool {
        self.kind().is_virtual()
    }

    /// Starts a machine and returns once its agent waits for the link. A machine that is dropped is killed, and leaves
    /// nothing behind.
    ///
    /// # Errors
    /// [`MachineError`]; nothing is left of what was started.
    fn boot(&self, id: &str) -> BoxFuture<'_, Result<Arc<dyn Machine>, MachineError>>;

    /// How to copy its machines, if they can be copied.
    fn templating(&self) -> Option<&dyn Templating> {
        None
    }
}

/// What drivers do whose machines can be copied.
pub trait Templating: Send + Sync {
    /// Names everything that goes into a machine: image, kernel, agent, flags, hypervisor. Two drivers with the same key
    /// may use each other's templates. Hexadecimal digits, fit for a file name.
    fn template_key(&self) -> &str;

    /// Writes what a machine is at this moment into a folder and ends the machine, which must not have been connected.
    ///
    /// # Errors
    /// [`MachineError`]; the folder may be half written.
    fn take<'a>(&'a self, machine: Arc<dyn Machine>, folder: &'a Path) -> BoxFuture<'a, Result<(), MachineError>>;

    /// Starts a machine from a template, as [`MachineDriver::boot`] does. Its clock is right and its random numbers are its
    /// own by the time this returns.
    ///
    /// # Errors
    /// [`MachineError`]; nothing is left of what was started.
    fn restore<'a>(&'a self, template: &'a Path, id: &'a str) -> BoxFuture<'a, Result<Arc<dyn Machine>, MachineError>>;
}

/// One machine. Dropping the last handle kills it.
pub trait Machine: Any + fmt::Debug + Send + Sync + 'static {
    /// The process on this host that it is, or that runs it.
    fn pid(&self) -> u32;

    /// Opens a stream to a port inside. The link's can be opened once.
    ///
    /// # Errors
    /// When nothing listens there, or the machine is gone.
    fn connect(&self, port: Port) -> BoxFuture<'_, io::Result<Stream>>;

    /// Stops its processors; nothing in it runs until [`resume`](Self::resume).
    ///
    /// # Errors
    /// When the driver cannot, or the machine is gone.
    fn pause(&self) -> BoxFuture<'_, Result<(), MachineError>>;

    /// Lets it run on.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    fn resume(&self) -> BoxFuture<'_, Result<(), MachineError>>;

    /// Asks it to end by itself, for so long, and then kills it.
    fn stop(&self, grace: Duration) -> BoxFuture<'_, ExitStatus>;

    /// Ends it at once. [`wait`](Self::wait) tells when it is gone.
    fn kill(&self);

    /// Waits until it is gone, with all it had on this host. Tells how the agent ended, if the machine could say so, else
    /// how the machine's own process did.
    ///
    /// # Cancel safety
    /// It can be called again.
    fn wait(&self) -> BoxFuture<'_, ExitStatus>;

    /// What it takes at the moment.
    fn stats(&self) -> MachineStats;

    /// How it was started.
    fn start(&self) -> StartReport;

    /// What it writes, to be read by whoever takes it first: lines of text of its agent, its kernel, its hypervisor.
    fn take_logs(&self) -> Vec<Box<dyn AsyncRead + Send + Unpin>>;
}

/// A byte stream into a machine, in two halves that may be used at the same time.
pub struct Stream {
    /// What comes out of the machine.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What goes into it.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
        }
    }
}

/// What listens in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Port {
    /// The agent's link.
    Link,
}

/// Which driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DriverKind {
    /// MicroVMs by Firecracker: for production, needs KVM.
    Firecracker,
    /// MicroVMs by QEMU, with KVM or by emulation.
    Qemu,
    /// Confined child processes.
    Process,
    /// No machine: functions run in the node's own process, for development.
    InProcess,
}

impl DriverKind {
    /// The name in configurations, tags and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
            Self::Process => "process",
            Self::InProcess => "in_process",
        }
    }

    /// Whether its machines are virtual machines.
    #[must_use]
    pub fn is_virtual(self) -> bool {
        matches!(self, Self::Firecracker | Self::Qemu)
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a machine takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineStats {
    /// Its resident memory on this host in bytes, what it shares with others included; 0 if unknown.
    pub resident_bytes: u64,
    /// Its part of that, with what is shared divided among those who share it; 0 if unknown.
    pub proportional_bytes: u64,
    /// Processor time it has used.
    pub cpu_time: Duration,
    /// Memory that its guest could still use in bytes, by its own account, if it gives one.
    pub guest_available_bytes: Option<u64>,
}

/// How a machine was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StartReport {
    /// It is a copy of a template.
    pub restored: bool,
    /// Until its agent waited for the link.
    pub elapsed: Duration,
    /// Of a virtual machine that was booted: until its kernel was up and ran `nex-init`, which is before the agent starts.
    pub up: Option<Duration>,
}

/// What goes wrong with machines.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// A program or file the driver needs is not there.
    #[error("{what} is missing: {path}: {hint}", path = path.display())]
    Missing {
        /// What it is.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What to do.
        hint: String,
    },
    /// The host does not have what the driver or the configuration demands.
    #[error("{0}")]
    Unsupported(String),
    /// A program could not be started.
    #[error("{}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder of the machine.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The hypervisor refused a request.
    #[error("{request}: {message}")]
    Refused {
        /// What it was asked.
        request: String,
        /// What it said.
        message: String,
    },
    /// It started, but did not come up.
    #[error("the machine did not start: {0}")]
    Start(String),
    /// It did not come up in time.
    #[error("the machine was not ready within {0:?}")]
    TimedOut(Duration),
}
