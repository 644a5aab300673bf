//! MicroVMs by Firecracker, each in a process of its own and, in production, in a jail of its own.
//!
//! A machine has one processor and up, memory, a read-only root drive, a source of entropy, perhaps a balloon, and a vsock
//! that leads to nothing but a Unix socket in its folder. It has no network interface and no metadata service, and
//! Firecracker's system call filter stays as it is.

mod api;
mod config;
mod exit;
mod jail;
mod machine;
mod resources;
mod socket;
mod sweep;
mod version;
mod vm;
mod vsock;

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;
use tokio::time::Instant;

pub use config::{
    Balloon, CpuTemplate, FirecrackerConfig, HugePages, JailCgroup, JailerConfig, RateLimiters, TokenBucket,
};

pub(crate) use sweep::sweep;

use super::guest::{CONFINEMENT, GuestControl, GuestError};
use super::image::{GuestImage, ImageError};
use super::{DriverKind, Machine, MachineDriver, MachineError, StartReport, Templating};
use jail::{Grounds, INITRD, KERNEL, MEMORY, ROOTFS, STATE, keep_snapshot};
use machine::FirecrackerMachine;
use resources::{
    Action, BalloonDevice, BootSource, Drive, Entropy, MachineConfiguration, MemoryBackend, RateLimiter, SnapshotLoad,
    Vsock,
};
use version::Version;
use vm::Vm;

/// What the kernel is told. The console is for panics; the keyboard is how a guest is asked to shut down, and probing for
/// more of it than there is takes long. Modules stay on: `nex-init` loads the image's own.
const BOOT_ARGS: &str = "console=ttyS0 quiet loglevel=3 reboot=k panic=1 pci=off swiotlb=noforce \
                         i8042.noaux i8042.nomux i8042.dumbkbd";

/// The guest's address on its vsock. Each machine has a vsock of its own, so they may all have the same.
const GUEST_CID: u32 = 3;

/// Starts Firecracker's machines.
#[derive(Debug)]
pub struct FirecrackerDriver {
    image: GuestImage,
    config: FirecrackerConfig,
    version: Version,
    grounds: Arc<Grounds>,
    template_key: String,
}

impl FirecrackerDriver {
    /// Checks that everything is there: programs of a version that will do, KVM, an undamaged image.
    ///
    /// # Errors
    /// [`MachineError::Missing`] and [`MachineError::Unsupported`] tell what is not as it must be.
    pub async fn new(mut config: FirecrackerConfig) -> Result<Self, MachineError> {
        config.validate()?;
        check_kvm(&config.kvm_device)?;
        config.firecracker_bin = locate(&config.firecracker_bin, "Firecracker")?;
        let version = Version::of(&config.firecracker_bin, "Firecracker").await?;
        config.validate_for(version)?;
        match &mut config.jailer {
            None => tracing::warn!("Firecracker runs without its jailer, which is not for production"),
            Some(_) if !rustix::process::geteuid().is_root() => {
                return Err(MachineError::Unsupported(
                    "the jailer needs root: run the node as root, or without a jailer".to_owned(),
                ));
            }
            Some(jailer) => {
                jailer.jailer_bin = locate(&jailer.jailer_bin, "Jailer")?;
                let theirs = Version::of(&jailer.jailer_bin, "Jailer").await?;
                if theirs != version {
                    return Err(MachineError::Unsupported(format!(
                        "the jailer is version {theirs} and Firecracker {version}; they must be of one release"
                    )));
                }
            }
        }
        let (image, grounds) = {
            let config = config.clone();
            blocking(move || Ok((open_image(&config.image)?, Grounds::make(&config)?))).await?
        };
        let template_key = template_key(image.id(), &config, version);
        Ok(Self {
            image,
            config,
            version,
            grounds: Arc::new(grounds),
            template_key,
        })
    }

    async fn start(&self, vm: &Vm) -> Result<(), MachineError> {
        let FirecrackerConfig {
            vcpus,
            memory_mib,
            rate_limiters,
            balloon,
            huge_pages,
            cpu_template,
            ..
        } = self.config;
        let api = vm.patient_api();
        let machine = MachineConfiguration {
            vcpu_count: vcpus,
            mem_size_mib: memory_mib,
            smt: false,
            track_dirty_pages: false,
            cpu_template,
            huge_pages: huge_pages.name(),
        };
        api.put("/machine-config", &machine).await?;
        let boot = BootSource {
            kernel_image_path: KERNEL,
            initrd_path: INITRD,
            boot_args: BOOT_ARGS,
        };
        api.put("/boot-source", &boot).await?;
        let root = Drive {
            drive_id: "rootfs",
            path_on_host: ROOTFS,
            // That is for kernels that mount it themselves; here the initial ram disk does, and it is the first drive.
            is_root_device: false,
            is_read_only: true,
            rate_limiter: RateLimiter::of(rate_limiters),
        };
        api.put("/drives/rootfs", &root).await?;
        let vsock = Vsock {
            guest_cid: GUEST_CID,
            uds_path: jail::VSOCK,
        };
        api.put("/vsock", &vsock).await?;
        api.put("/entropy", &Entropy {}).await?;
        if let Some(balloon) = balloon {
            let device = BalloonDevice {
                amount_mib: balloon.amount_mib,
                deflate_on_oom: balloon.deflate_on_oom,
                stats_polling_interval_s: balloon.stats_interval_s,
            };
            api.put("/balloon", &device).await?;
        }
        api.put("/actions", &Action::InstanceStart).await
    }

    /// Gives a restored guest its time, its random numbers and its agent a link. The connections of the machine that the
    /// template was made of are gone.
    async fn resume(&self, vm: &Vm) -> Result<(GuestControl, UnixStream), MachineError> {
        loop {
            let mut guest = GuestControl::restored(vm.connect(vsock::CONTROL).await?);
            let link = vm.connect(vsock::LINK).await?;
            match guest.resume(self.config.boot_timeout).await {
                Ok(()) => return Ok((guest, link)),
                // The guest has reset its vsock after it took the new connections.
                Err(GuestError::Closed(_) | GuestError::Io(_))
                    if self.version.resets_vsock_late() && Instant::now() < vm.deadline() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Starts a process for a machine with these files in its folder.
    async fn launch(&self, id: &str, files: Vec<(PathBuf, &'static str)>) -> Result<Vm, MachineError> {
        Vm::launch(&self.grounds, id, files, self.config.boot_timeout).await
    }
}

impl MachineDriver for FirecrackerDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Firecracker
    }

    fn boot(&self, id: &str) -> BoxFuture<'_, Result<Arc<dyn Machine>, MachineError>> {
        let id = id.to_owned();
        async move {
            let began = Instant::now();
            let files = vec![
                (self.image.vmlinux(), KERNEL),
                (self.image.initrd(), INITRD),
                (self.image.rootfs(), ROOTFS),
            ];
            let vm = self.launch(&id, files).await?;
            let up = async {
                self.start(&vm).await?;
                let FirecrackerConfig {
                    agent_args,
                    agent_env,
                    boot_timeout,
                    ..
                } = &self.config;
                let mut guest = GuestControl::booting(vm.connect(vsock::CONTROL).await?);
                guest.booted(*boot_timeout).await?;
                let up = began.elapsed();
                guest.start(agent_args, agent_env, *boot_timeout).await?;
                Ok((guest, up))
            };
            let (guest, up) = vm.unless_it_ends(up).await?;
            let start = StartReport {
                restored: false,
                elapsed: began.elapsed(),
                up: Some(up),
            };
            Ok(FirecrackerMachine::booted(vm, guest, self.version, &self.config, start) as Arc<dyn Machine>)
        }
        .boxed()
    }

    fn templating(&self) -> Option<&dyn Templating> {
        // Firecracker restores machines with reserved pages from a page fault handler only, which would be our own.
        (self.config.huge_pages != HugePages::Reserved2m).then_some(self)
    }
}

impl Templating for FirecrackerDriver {
    fn template_key(&self) -> &str {
        &self.template_key
    }

    fn take<'a>(&'a self, machine: Arc<dyn Machine>, folder: &'a Path) -> BoxFuture<'a, Result<(), MachineError>> {
        async move {
            let machine: Arc<dyn Any + Send + Sync> = machine;
            let machine = machine.downcast::<FirecrackerMachine>().map_err(|_| {
                MachineError::Unsupported("a template is to be made of a machine of another driver".to_owned())
            })?;
            let taken = machine.snapshot().await;
            let kept = match taken {
                Ok(root) => {
                    let folder = folder.to_owned();
                    blocking(move || keep_snapshot(&root, &folder)).await
                }
                Err(error) => Err(error),
            };
            machine.kill();
            machine.wait().await;
            kept
        }
        .boxed()
    }

    fn restore<'a>(&'a self, template: &'a Path, id: &'a str) -> BoxFuture<'a, Result<Arc<dyn Machine>, MachineError>> {
        async move {
            let began = Instant::now();
            let template = fs::canonicalize(template).map_err(|source| MachineError::File {
                path: template.to_owned(),
                source,
            })?;
            let files = vec![
                (self.image.rootfs(), ROOTFS),
                (template.join(STATE), STATE),
                (template.join(MEMORY), MEMORY),
            ];
            let vm = self.launch(id, files).await?;
            let up = async {
                let load = SnapshotLoad {
                    snapshot_path: STATE,
                    mem_backend: MemoryBackend {
                        backend_type: "File",
                        backend_path: MEMORY,
                    },
                    resume_vm: true,
                };
                vm.patient_api().put("/snapshot/load", &load).await?;
                self.resume(&vm).await
            };
            let (guest, link) = vm.unless_it_ends(up).await?;
            let start = StartReport {
                restored: true,
                elapsed: began.elapsed(),
                up: None,
            };
            let machine = FirecrackerMachine::restored(vm, guest, link, self.version, &self.config, start)?;
            Ok(machine as Arc<dyn Machine>)
        }
        .boxed()
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MachineError> + Send + 'static,
) -> Result<T, MachineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(MachineError::Start(error.to_string())),
    }
}

fn check_kvm(device: &Path) -> Result<(), MachineError> {
    match File::options().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MachineError::Missing {
            what: "KVM",
            path: device.to_owned(),
            hint: "Firecracker needs a processor with virtualisation and the kvm module; choose another driver"
                .to_owned(),
        }),
        Err(error) => Err(MachineError::Unsupported(format!(
            "{} cannot be opened for reading and writing: {error}; the node's user must be allowed to",
            device.display()
        ))),
    }
}

/// The absolute path of a program without links, as the jailer goes by it.
fn locate(program: &Path, what: &'static str) -> Result<PathBuf, MachineError> {
    let found = if program.components().nth(1).is_some() || program.is_absolute() {
        program.is_file().then(|| program.to_owned())
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(program))
            .find(|candidate| candidate.is_file())
    };
    let found = found.and_then(|found| fs::canonicalize(found).ok());
    found.ok_or_else(|| MachineError::Missing {
        what,
        path: program.to_owned(),
        hint: "install a release of Firecracker 1.14 or newer, or say where it is".to_owned(),
    })
}

/// Opens and checks the image, at a path that links to it may go by.
fn open_image(folder: &Path) -> Result<GuestImage, MachineError> {
    let absolute = std::path::absolute(folder).map_err(|source| MachineError::File {
        path: folder.to_owned(),
        source,
    })?;
    GuestImage::open(&absolute).map_err(|error| match error {
        ImageError::Missing { what, path, hint } => MachineError::Missing { what, path, hint },
        ImageError::File { path, source } => MachineError::File { path, source },
        error => MachineError::Unsupported(error.to_string()),
    })
}

/// What goes into a machine, as a hash: image, Firecracker, its settings, the agent's, and the host, whose processor and
/// kernel a snapshot depends on.
fn template_key(image: &str, config: &FirecrackerConfig, version: Version) -> String {
    let host_kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processors
        .lines()
        .find(|line| line.starts_with("model name"))
        .unwrap_or_default();
    let settings = format!(
        "{image} {version} {BOOT_ARGS} {CONFINEMENT} {} {} {:?} {:?} {:?} {:?} {:?} {:?} {host_kernel} {processor}",
        config.vcpus,
        config.memory_mib,
        config.rate_limiters,
        config.balloon,
        config.huge_pages,
        config.cpu_template,
        config.agent_args,
        config.agent_env,
    );
    data_encoding::HEXLOWER.encode(&Sha256::digest(settings))
}
