//! Machines as virtual machines by QEMU, with KVM where it works and by emulation where it does not.
//!
//! Each is a QEMU process with a `microvm`: a kernel, a read-only root file system, memory, three byte streams, and no other
//! device. QEMU itself, through which whoever breaks out of the guest would have to come, runs as a user of its own where
//! the node may give it one, behind its own system call filter, and opens nothing by itself.

mod args;
mod machine;
mod memory;
mod probe;
mod qmp;
mod template;
#[cfg(target_arch = "x86_64")]
mod tsc;

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use futures::FutureExt;
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;

use self::args::{Descriptors, Origin, Shape};
use self::machine::{Logs, QemuMachine, Vm};
use self::probe::Confinement;
use self::qmp::Qmp;
use self::template::Cache;
use super::child::{MachineProcess, pass_on};
use super::guest::{CONFINEMENT, GuestControl, GuestError};
use super::image::GuestImage;
use super::resources::Qemu;
use super::{DriverKind, Machine, MachineDriver, MachineError, Templating};

/// How long a machine may take to boot with KVM while it is found out whether that works.
const KVM_PATIENCE: Duration = Duration::from_secs(5);

/// What executes the guest's code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// KVM if a machine boots with it, else emulation.
    #[default]
    Auto,
    /// The processor, by way of KVM.
    Kvm,
    /// QEMU's emulation, some five times as slow.
    Tcg,
}

/// Settings of a [`QemuDriver`].
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// QEMU.
    pub qemu: Qemu,
    /// What it boots.
    pub image: GuestImage,
    /// Processors of a machine. Default 1; with emulation, more are no faster.
    pub vcpus: u32,
    /// Memory of a machine in MiB; what it does not use, it does not take. Default 512.
    pub memory_mib: u32,
    /// Arguments for the agent. Default none.
    pub agent_args: Vec<String>,
    /// The agent's whole environment. Default empty.
    pub agent_env: Vec<(String, String)>,
    /// A folder whose path stands in the arguments of each QEMU process, so that those of a dead node are found.
    pub runtime_dir: PathBuf,
    /// Default [`Accel::Auto`].
    pub accel: Accel,
    /// From the start of QEMU until the agent is ready. Default 60 s, for a busy host without KVM.
    pub boot_timeout: Duration,
}

impl QemuConfig {
    /// The defaults, with this QEMU and this image.
    #[must_use]
    pub fn new(qemu: Qemu, image: GuestImage, runtime_dir: impl Into<PathBuf>) -> Self {
        Self {
            qemu,
            image,
            vcpus: 1,
            memory_mib: 512,
            agent_args: Vec::new(),
            agent_env: Vec::new(),
            runtime_dir: runtime_dir.into(),
            accel: Accel::Auto,
            boot_timeout: Duration::from_secs(60),
        }
    }
}

/// Starts virtual machines.
#[derive(Debug)]
pub struct QemuDriver {
    config: QemuConfig,
    shape: Shape,
    own_user: bool,
    /// Of the host, for guests that are emulated.
    tsc_khz: Option<u32>,
    version: String,
    key: String,
    templates: Cache,
}

impl QemuDriver {
    /// Finds out what QEMU and this host can do, by trying.
    ///
    /// # Errors
    /// [`MachineError`] when QEMU is not there or does not start, or when the configuration demands KVM and it does not work.
    pub async fn new(config: QemuConfig) -> Result<Self, MachineError> {
        let version = probe::version(&config.qemu).await?;
        let (Confinement { own_user, sandbox }, reason) = probe::confinement(&config.qemu, &config.image).await?;
        if let Some(reason) = reason {
            tracing::warn!(own_user, sandbox, "QEMU is confined less than it could be: {reason}");
        }
        let mut driver = Self {
            shape: Shape {
                kvm: false,
                vcpus: config.vcpus,
                memory_mib: config.memory_mib,
                sandbox,
            },
            own_user,
            tsc_khz: None,
            key: String::new(),
            templates: Cache::default(),
            version,
            config,
        };
        driver.shape.kvm = match driver.config.accel {
            Accel::Tcg => false,
            Accel::Kvm => {
                let works = driver.try_kvm().await;
                works.map_err(|reason| MachineError::Unsupported(format!("KVM does not work here: {reason}")))?;
                true
            }
            Accel::Auto => match driver.try_kvm().await {
                Ok(()) => true,
                Err(reason) => {
                    tracing::info!("virtual machines are emulated, KVM does not work here: {reason}");
                    false
                }
            },
        };
        if !driver.shape.kvm {
            driver.tsc_khz = tsc_khz().await?;
        }
        driver.key = driver.key();
        tracing::debug!(
            version = driver.version,
            shape = ?driver.shape,
            own_user,
            tsc_khz = driver.tsc_khz,
            "QEMU"
        );
        Ok(driver)
    }

    /// Whether machines are emulated.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        !self.shape.kvm
    }

    /// Boots a guest with KVM, as far as its first message. That the device is there and can be opened says little.
    async fn try_kvm(&self) -> Result<(), String> {
        probe::kvm_can_be_opened(self.own_user)?;
        let shape = Shape {
            kvm: true,
            ..self.shape.clone()
        };
        let memory = self.new_memory().map_err(|error| error.to_string())?;
        let started = self.launch("probe", &shape, &memory, Origin::Boot, None).await;
        let mut started = started.map_err(|error| error.to_string())?;
        match started.control.booted(KVM_PATIENCE).await {
            Ok(_) => {
                started.vm.process.kill();
                started.vm.process.wait().await;
                Ok(())
            }
            Err(error) => Err(started.vm.give_up(error.into()).await.to_string()),
        }
    }

    /// Everything that goes into a machine.
    fn key(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(self.config.image.id().as_bytes());
        add(self.version.as_bytes());
        // The rate of the clock is not exact, and compared when a template is used.
        let tsc_khz = self.tsc_khz.map(|_| 0);
        let nobody = Path::new("");
        for argument in args::arguments(&self.shape, &Descriptors::default(), Origin::Boot, tsc_khz, nobody) {
            add(argument.as_encoded_bytes());
        }
        add(CONFINEMENT.as_bytes());
        for argument in &self.config.agent_args {
            add(argument.as_bytes());
        }
        for (name, value) in &self.config.agent_env {
            add(name.as_bytes());
            add(value.as_bytes());
        }
        if self.shape.kvm {
            add(host_processor().as_bytes());
        }
        HEXLOWER.encode(&hash.finalize())
    }

    fn new_memory(&self) -> Result<OwnedFd, MachineError> {
        memory::anonymous(u64::from(self.config.memory_mib) << 20).map_err(|source| self.spawn_error(source))
    }

    fn spawn_error(&self, source: io::Error) -> MachineError {
        MachineError::Spawn {
            program: self.config.qemu.program.clone(),
            source,
        }
    }

    /// Starts QEMU and connects to its monitor.
    async fn launch(
        &self,
        id: &str,
        shape: &Shape,
        memory: &OwnedFd,
        origin: Origin,
        tsc_khz: Option<u32>,
    ) -> Result<Launched, MachineError> {
        let spawn_error = |source| self.spawn_error(source);
        let pair = || StdUnixStream::pair().map_err(spawn_error);
        let (monitor, control, link, log, console) = (pair()?, pair()?, pair()?, pair()?, pair()?);
        let mut passed = Passed::default();
        let image = &self.config.image;
        let descriptors = Descriptors {
            kernel: passed.file(&image.vmlinux())?,
            initrd: passed.file(&image.initrd())?,
            root: passed.file(&image.rootfs())?,
            memory: passed.add(memory.try_clone().map_err(spawn_error)?),
            monitor: passed.add(monitor.1.into()),
            control: passed.add(control.1.into()),
            link: passed.add(link.1.into()),
            log: passed.add(log.1.into()),
            console: passed.add(console.1.into()),
        };
        let name = self.config.runtime_dir.join(id);
        let mut command = probe::command(&self.config.qemu, self.own_user);
        command
            .args(args::arguments(shape, &descriptors, origin, tsc_khz, &name))
            .stdout(std::process::Stdio::null());
        pass_on(&mut command, passed.0);
        let process = MachineProcess::spawn(command, || ()).await.map_err(spawn_error)?;
        let mut logs: Logs = Vec::new();
        for stream in [log.0, console.0] {
            logs.push(Box::new(to_tokio(stream).map_err(spawn_error)?));
        }
        logs.extend(process.take_stderr().map(|stderr| Box::new(stderr) as _));
        link.0.set_nonblocking(true).map_err(spawn_error)?;
        let control = to_tokio(control.0).map_err(spawn_error)?;
        match Qmp::greet(to_tokio(monitor.0).map_err(spawn_error)?).await {
            Ok(qmp) => Ok(Launched {
                vm: Vm::new(process, qmp, logs),
                control: match origin {
                    Origin::Boot => GuestControl::booting(control),
                    Origin::Template => GuestControl::restored(control),
                },
                link: link.0,
            }),
            Err(error) => {
                process.kill();
                process.wait().await;
                Err(machine::explain(error, logs).await)
            }
        }
    }

    async fn boot_machine(&self, id: &str) -> Result<QemuMachine, MachineError> {
        let started = Instant::now();
        let memory = self.new_memory()?;
        let launched = self
            .launch(id, &self.shape, &memory, Origin::Boot, self.tsc_khz)
            .await?;
        let Launched { vm, mut control, link } = launched;
        let left = || self.config.boot_timeout.saturating_sub(started.elapsed());
        let booted = async {
            let uptime = control.booted(left()).await?;
            let up = started.elapsed();
            tracing::debug!(id, elapsed = ?up, ?uptime, "the guest is up");
            let (args, env) = (&self.config.agent_args, &self.config.agent_env);
            control.start(args, env, left()).await?;
            Ok::<_, GuestError>(up)
        };
        match booted.await {
            Ok(up) => Ok(QemuMachine::booted(vm, control, link, memory, started, up)),
            Err(error) => Err(vm.give_up(error.into()).await),
        }
    }

    async fn take_template(&self, machine: Arc<dyn Machine>, folder: &Path) -> Result<(), MachineError> {
        let machine: Arc<dyn Any + Send + Sync> = machine;
        let machine = machine.downcast::<QemuMachine>();
        let machine = machine.map_err(|_| MachineError::Start("it is no machine of this driver".to_owned()))?;
        let file_error = |source| MachineError::File {
            path: folder.to_owned(),
            source,
        };
        let state = memory::anonymous(0).map_err(file_error)?;
        let memory = machine.freeze(&state).await?;
        let (folder, key, tsc_khz) = (folder.to_owned(), self.key.clone(), self.tsc_khz);
        let written = tokio::task::spawn_blocking(move || template::write(&folder, &key, tsc_khz, memory, state));
        written.await.map_err(|error| MachineError::Start(error.to_string()))?
    }

    async fn restore_machine(&self, folder: &Path, id: &str) -> Result<QemuMachine, MachineError> {
        let started = Instant::now();
        let template = self.templates.read(folder, &self.key, self.tsc_khz).await?;
        let file_error = |source| MachineError::File {
            path: folder.to_owned(),
            source,
        };
        let state = template.state().map_err(file_error)?;
        let memory = template.memory().map_err(file_error)?;
        let launched = self
            .launch(id, &self.shape, &memory, Origin::Template, template.tsc_khz)
            .await?;
        let Launched { vm, control, link } = launched;
        if let Err(error) = vm.load(&state).await {
            return Err(vm.give_up(error).await);
        }
        match QemuMachine::restored(vm, control, link, started).await {
            Ok(machine) => Ok(machine),
            Err((vm, error)) => Err(vm.give_up(error).await),
        }
    }
}

/// A QEMU that has been started.
struct Launched {
    vm: Vm,
    control: GuestControl,
    link: StdUnixStream,
}

/// Descriptors for QEMU.
#[derive(Debug, Default)]
struct Passed(Vec<OwnedFd>);

impl Passed {
    fn add(&mut self, descriptor: OwnedFd) -> RawFd {
        let number = descriptor.as_raw_fd();
        self.0.push(descriptor);
        number
    }

    fn file(&mut self, path: &Path) -> Result<RawFd, MachineError> {
        let file = File::open(path).map_err(|source| MachineError::File {
            path: path.to_owned(),
            source,
        })?;
        Ok(self.add(file.into()))
    }
}

fn to_tokio(stream: StdUnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(target_arch = "x86_64")]
async fn tsc_khz() -> Result<Option<u32>, MachineError> {
    Ok(Some(tsc::khz().await))
}

#[cfg(not(target_arch = "x86_64"))]
async fn tsc_khz() -> Result<Option<u32>, MachineError> {
    let message = "the guest is for x86-64, which is emulated on hosts of the same kind only";
    Err(MachineError::Unsupported(message.to_owned()))
}

/// The processor's model and features, all of which a guest sees with KVM.
fn host_processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = text.split("\n\n").next().unwrap_or_default();
    let stable = |line: &&str| {
        ["model name", "stepping", "microcode", "flags"]
            .iter()
            .any(|key| line.starts_with(key))
    };
    first.lines().filter(stable).collect::<Vec<_>>().join("\n")
}

impl MachineDriver for QemuDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Qemu
    }

    fn boot(&self, id: &str) -> BoxFuture<'_, Result<Arc<dyn Machine>, MachineError>> {
        let id = id.to_owned();
        async move { Ok(Arc::new(self.boot_machine(&id).await?) as Arc<dyn Machine>) }.boxed()
    }

    fn templating(&self) -> Option<&dyn Templating> {
        Some(self)
    }
}

impl Templating for QemuDriver {
    fn template_key(&self) -> &str {
        &self.key
    }

    fn take<'a>(&'a self, machine: Arc<dyn Machine>, folder: &'a Path) -> BoxFuture<'a, Result<(), MachineError>> {
        self.take_template(machine, folder).boxed()
    }

    fn restore<'a>(&'a self, template: &'a Path, id: &'a str) -> BoxFuture<'a, Result<Arc<dyn Machine>, MachineError>> {
        async move { Ok(Arc::new(self.restore_machine(template, id).await?) as Arc<dyn Machine>) }.boxed()
    }
}
