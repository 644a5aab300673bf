//! Where machines are made for a measurement: drivers as a node sets them up, in folders that are gone afterwards.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail};
use nex_node::agents::find_agent_bin;
use nex_node::machines::image::GuestImage;
use nex_node::machines::resources::Resources;
use nex_node::machines::{
    DriverKind, FirecrackerConfig, FirecrackerDriver, JailerConfig, MachineDriver, MachineSource, ProcessConfig,
    ProcessDriver, ProcessLimits, QemuConfig, QemuDriver, RuntimeDir,
};
use tempfile::TempDir;

/// Limits of a confined process, so that it has control groups where the host gives any.
const LIMITS: ProcessLimits = ProcessLimits {
    memory_bytes: Some(4 << 30),
    pids: Some(1024),
    cpus: None,
};

/// By how much more patience a node has with emulated machines.
const EMULATED: u32 = 4;

/// Where virtual machines come from.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// Folder with what virtual machines need, which `nex preflight --driver qemu` fills
    #[arg(long, value_name = "DIR", env = "NEX_RESOURCE_DIR")]
    resource_dir: Option<PathBuf>,
}

/// Folders for a run. Nodes that take part have the same.
#[derive(Debug)]
pub(crate) struct Lab {
    place: Place,
    folder: PathBuf,
    /// Removes the folder, if it is this one's.
    _own: Option<TempDir>,
}

impl Lab {
    /// One of its own.
    pub(super) fn new(place: Place) -> Result<Self> {
        // Firecracker links to the image, which does not leave a file system.
        let own = match place.resources() {
            Ok(resources) if resources.folder().is_dir() => tempfile::Builder::new()
                .prefix(".bench-")
                .tempdir_in(resources.folder()),
            _ => tempfile::tempdir(),
        };
        let own = own.context("no folder for templates and machines")?;
        Ok(Self {
            place,
            folder: own.path().to_owned(),
            _own: Some(own),
        })
    }

    /// That of another process.
    pub(super) fn of(place: Place, folder: PathBuf) -> Self {
        Self {
            place,
            folder,
            _own: None,
        }
    }

    /// Where templates are.
    pub(super) fn templates(&self) -> PathBuf {
        self.folder.join("templates")
    }

    /// The same for another process.
    pub(super) fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = vec!["--lab".into(), self.folder.clone().into()];
        if let Some(resources) = &self.place.resource_dir {
            arguments.extend(["--resource-dir".into(), resources.into()]);
        }
        arguments
    }
}

impl Place {
    fn resources(&self) -> Result<Resources> {
        let folder = self.resource_dir.as_ref().context(
            "virtual machines need --resource-dir or $NEX_RESOURCE_DIR: a folder that `nex preflight --driver qemu` has filled",
        )?;
        // Programs are started by these paths, some of them in other folders.
        Ok(Resources::new(std::path::absolute(folder)?))
    }
}

/// A driver, and what its machines need while they run.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(super) kind: DriverKind,
    pub(super) driver: Arc<dyn MachineDriver>,
    /// What a node multiplies the time limits of agents by.
    pub(super) slowness: u32,
    /// What its machines are on this host, for people.
    pub(super) about: String,
    pub(super) runtime: RuntimeDir,
}

impl Ground {
    /// Sets a driver up.
    pub(super) async fn new(lab: &Lab, kind: DriverKind) -> Result<Self> {
        let runtime = RuntimeDir::claim(&lab.folder.join("run"))?;
        let mut slowness = 1;
        let (driver, about): (Arc<dyn MachineDriver>, String) = match kind {
            DriverKind::Process => {
                let driver = ProcessDriver::new(process()?).await?;
                let about = format!("confined by {}", driver.in_force().join(", "));
                (Arc::new(driver), about)
            }
            DriverKind::Qemu => {
                let resources = lab.place.resources()?;
                let (qemu, version) = resources.qemu(&[]).map_err(Error::msg)?;
                let image = GuestImage::open(&resources.image())?;
                let config = QemuConfig::new(qemu, image, runtime.path());
                let size = format!("{} processor, {} MiB", config.vcpus, config.memory_mib);
                let driver = QemuDriver::new(config).await?;
                let accel = if driver.is_emulated() {
                    slowness = EMULATED;
                    "emulated (no KVM here)"
                } else {
                    "with KVM"
                };
                (Arc::new(driver), format!("QEMU {version}, {accel}, {size}"))
            }
            DriverKind::Firecracker => {
                let resources = lab.place.resources()?;
                let program = |name: &str| {
                    let found = resources.find_program(name, &[]).into_iter().next();
                    found.unwrap_or_else(|| name.into())
                };
                let driver = FirecrackerDriver::new(FirecrackerConfig {
                    firecracker_bin: program("firecracker"),
                    jailer: rustix::process::geteuid().is_root().then(|| JailerConfig {
                        jailer_bin: program("jailer"),
                        ..JailerConfig::default()
                    }),
                    ..FirecrackerConfig::new(resources.image(), runtime.path())
                });
                (Arc::new(driver.await?), "with KVM".to_owned())
            }
            kind => bail!("the driver {kind} has no machines"),
        };
        Ok(Self {
            kind,
            driver,
            slowness,
            about,
            runtime,
        })
    }

    /// Where a pool's machines come from: restored where the driver can.
    pub(super) fn source(&self, lab: &Lab) -> MachineSource {
        MachineSource::new(self.driver.clone(), Some(lab.templates()))
    }

    /// What its machines are called that come from [`source`](Self::source).
    pub(super) fn label(&self) -> String {
        match self.driver.templating() {
            Some(_) => format!("{}, restored", self.kind),
            None => self.kind.to_string(),
        }
    }
}

/// Settings of confined processes.
pub(super) fn process() -> Result<ProcessConfig> {
    Ok(ProcessConfig {
        limits: LIMITS,
        ..ProcessConfig::new(find_agent_bin()?)
    })
}
