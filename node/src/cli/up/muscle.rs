//! What runs a node's functions: a pool of agents in machines of the configured driver, or the node's own process.

use std::collections::HashSet;
use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nex_runtime::engine::Engine;
use nex_runtime::v8::{V8Config, V8Engine};
use tokio::sync::broadcast::error::RecvError;

use crate::agents::{AgentEvent, AgentPool, AgentPoolConfig, find_agent_bin};
use crate::cli::args::{Global, Level, ResourceDir};
use crate::cli::failure::Failure;
use crate::config::NodeConfig;
use crate::events::Events;
use crate::in_process::InProcess;
use crate::machines::image::GuestImage;
use crate::machines::resources::Resources;
use crate::machines::{
    Confinement, DriverKind, FirecrackerConfig, FirecrackerDriver, JailerConfig, MachineDriver, MachineError,
    ProcessConfig, ProcessDriver, QemuConfig, QemuDriver, RuntimeDir,
};

/// What runs the functions.
pub(in crate::cli) enum Muscle {
    /// Agents in machines, and the folder with what the machines need while they run.
    Agents(Arc<AgentPool>, Option<RuntimeDir>),
    /// The node's own process.
    InProcess(Arc<InProcess>),
}

impl Muscle {
    pub(in crate::cli) async fn start(
        global: &Global,
        config: &NodeConfig,
        resources: &ResourceDir,
    ) -> Result<Self, Failure> {
        if config.machine_driver == DriverKind::InProcess {
            tracing::warn!(
                "functions run inside the node process: a function that breaks out of V8 has the node's credentials, \
                 one that crashes it ends the node, and code that does not stop stays until the node ends"
            );
            let engine = V8Engine::new(engine_settings(config)).map_err(Failure::failed)?;
            let guarded = InProcess::new(Arc::new(engine), (&config.quarantine).into());
            return Ok(Self::InProcess(Arc::new(guarded)));
        }
        let log = global.loglevel.unwrap_or(Level::Info).as_str();
        let Machines {
            driver,
            templates,
            runtime_dir,
            slowness,
        } = Machines::of(config, resources, log).await?;
        let millis = |millis: NonZeroU32| slowness * Duration::from_millis(millis.get().into());
        let pool = AgentPool::start(AgentPoolConfig {
            warm_size: count(config.machine_pool_size),
            heartbeat_timeout: millis(config.agent_ping_timeout_ms),
            start_timeout: millis(config.agent_handshake_timeout_ms),
            shutdown_grace: Duration::from_millis(config.shutdown_grace_ms),
            max_functions_per_agent: count(config.max_functions_per_agent),
            quarantine: (&config.quarantine).into(),
            templates,
            ..AgentPoolConfig::with_driver(driver)
        });
        Ok(Self::Agents(pool.await.map_err(Failure::failed)?, runtime_dir))
    }

    pub(in crate::cli) fn engine(&self) -> Arc<dyn Engine> {
        match self {
            Self::Agents(pool, _) => pool.clone(),
            Self::InProcess(engine) => engine.clone(),
        }
    }

    /// Makes what happens to agents events of the node.
    pub(super) fn report_to(&self, events: Events) {
        let Self::Agents(pool, _) = self else {
            return;
        };
        let mut agents = pool.subscribe();
        // Those that were up before anybody listened; one that starts at this moment is in both.
        let mut known = HashSet::new();
        for agent in pool.agents() {
            events.agent_started(&agent.id, &agent.version, agent.driver, agent.start);
            known.insert(agent.id);
        }
        tokio::spawn(async move {
            loop {
                match agents.recv().await {
                    Ok(AgentEvent::Started {
                        id,
                        version,
                        driver,
                        start,
                        ..
                    }) => {
                        if !known.remove(&id) {
                            events.agent_started(&id, &version, driver, start);
                        }
                    }
                    Ok(AgentEvent::Stopped { id, message, code, .. }) => {
                        known.remove(&id);
                        events.agent_stopped(&id, &message, code);
                    }
                    Ok(AgentEvent::Condemned { id, message, .. }) => events.agent_condemned(&id, &message),
                    Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "events of agents were not published"),
                    Err(RecvError::Closed) => break,
                }
            }
        });
    }

    pub(in crate::cli) async fn shutdown(self) {
        if let Self::Agents(pool, runtime_dir) = self {
            pool.shutdown().await;
            drop(runtime_dir);
        }
    }
}

/// By how much more patience emulated machines get, which are some five times as slow.
const EMULATED: u32 = 4;

/// Where a pool's machines come from.
struct Machines {
    driver: Arc<dyn MachineDriver>,
    templates: Option<PathBuf>,
    runtime_dir: Option<RuntimeDir>,
    /// What the time limits of agents are multiplied by.
    slowness: u32,
}

impl Machines {
    async fn of(config: &NodeConfig, resources: &ResourceDir, log: &str) -> Result<Self, Failure> {
        let arguments = agent_arguments(&engine_settings(config));
        match config.machine_driver {
            DriverKind::Process => {
                let driver = ProcessDriver::new(ProcessConfig {
                    agent_log: log.to_owned(),
                    agent_args: arguments.into_iter().map(OsString::from).collect(),
                    confinement: Confinement::AtLeast(config.confinement.clone()),
                    limits: config.process_limits(),
                    start_timeout: Duration::from_millis(config.agent_handshake_timeout_ms.get().into()),
                    ..ProcessConfig::new(find_agent_bin().map_err(Failure::usage)?)
                });
                Ok(Self {
                    driver: Arc::new(driver.await.map_err(failure)?),
                    templates: None,
                    runtime_dir: None,
                    slowness: 1,
                })
            }
            DriverKind::Firecracker => {
                let resources = resources.or(config.default_resource_dir.as_deref())?;
                let runtime_dir = RuntimeDir::claim(&runtime_base(config, &resources)).map_err(failure)?;
                let size = &config.machine_template;
                let driver = FirecrackerDriver::new(FirecrackerConfig {
                    firecracker_bin: program(&resources, config, "firecracker"),
                    // The jailer is what makes it fit for production, and is nothing without root.
                    jailer: rustix::process::geteuid().is_root().then(|| JailerConfig {
                        jailer_bin: program(&resources, config, "jailer"),
                        uids: config.firecracker.jailer.range(),
                        cgroup: config.firecracker.jailer.cgroup.clone(),
                        ..JailerConfig::default()
                    }),
                    balloon: config.firecracker.balloon,
                    huge_pages: config.firecracker.huge_pages,
                    cpu_template: config.firecracker.cpu_template,
                    vcpus: u8::try_from(size.vcpu_count.get()).unwrap_or(u8::MAX),
                    memory_mib: size.memsize_mib.get(),
                    rate_limiters: config.rate_limiters,
                    agent_args: arguments,
                    agent_env: vec![("RUST_LOG".to_owned(), log.to_owned())],
                    boot_timeout: Duration::from_millis(config.machine_boot_timeout_ms.get().into()),
                    ..FirecrackerConfig::new(resources.image(), runtime_dir.path())
                });
                Ok(Self {
                    driver: Arc::new(driver.await.map_err(failure)?),
                    templates: config.machine_templates.then(|| resources.templates()),
                    runtime_dir: Some(runtime_dir),
                    slowness: 1,
                })
            }
            DriverKind::Qemu => {
                let resources = resources.or(config.default_resource_dir.as_deref())?;
                let runtime_dir = RuntimeDir::claim(&runtime_base(config, &resources)).map_err(failure)?;
                let (qemu, _) = resources.qemu(&config.bin_path).map_err(missing)?;
                let folder = resources.image();
                let image = tokio::task::spawn_blocking(move || GuestImage::open(&folder)).await;
                let image = image.map_err(Failure::failed)?.map_err(missing)?;
                let size = &config.machine_template;
                let driver = QemuDriver::new(QemuConfig {
                    vcpus: size.vcpu_count.get(),
                    memory_mib: size.memsize_mib.get(),
                    agent_args: arguments,
                    agent_env: vec![("RUST_LOG".to_owned(), log.to_owned())],
                    boot_timeout: Duration::from_millis(config.machine_boot_timeout_ms.get().into()),
                    ..QemuConfig::new(qemu, image, runtime_dir.path())
                });
                let driver = driver.await.map_err(failure)?;
                Ok(Self {
                    slowness: if driver.is_emulated() { EMULATED } else { 1 },
                    driver: Arc::new(driver),
                    templates: config.machine_templates.then(|| resources.templates()),
                    runtime_dir: Some(runtime_dir),
                })
            }
            DriverKind::InProcess => Err(Failure::usage("the driver in_process has no machines")),
        }
    }
}

/// A program of the driver's; if it is nowhere, its name, of which the driver says so.
fn program(resources: &Resources, config: &NodeConfig, name: &str) -> PathBuf {
    let mut found = resources.find_program(name, &config.bin_path).into_iter();
    found.next().unwrap_or_else(|| name.into())
}

fn missing(error: impl std::fmt::Display) -> Failure {
    Failure::usage(format_args!(
        "{error}; `nex preflight --driver qemu` tells what is needed"
    ))
}

/// What is missing or not as it must be is for the operator to change; the rest went wrong by itself.
fn failure(error: MachineError) -> Failure {
    match error {
        MachineError::Missing { .. } | MachineError::Unsupported(_) => Failure::usage(error),
        error => Failure::failed(error),
    }
}

/// Where nodes have their runtime folders.
fn runtime_base(config: &NodeConfig, resources: &Resources) -> PathBuf {
    if let Some(folder) = &config.runtime_dir {
        return folder.clone();
    }
    // Jails have links to the image and to templates, which do not leave a file system.
    if config.machine_driver == DriverKind::Firecracker {
        return resources.machines();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder).join("nex"),
        None if rustix::process::geteuid().is_root() => "/run/nex".into(),
        None => std::env::temp_dir().join(format!("nex-{}", rustix::process::geteuid().as_raw())),
    }
}

fn count(number: NonZeroU32) -> usize {
    usize::try_from(number.get()).unwrap_or(usize::MAX)
}

/// What the node's configuration says of the engine, be it in agents or in this process. Pooled isolates are made for the
/// limits that most workloads will have.
fn engine_settings(config: &NodeConfig) -> V8Config {
    let limits = config.default_limits();
    V8Config {
        pool_size: usize::try_from(config.isolate_pool_size).unwrap_or(usize::MAX),
        heap_bytes: limits.heap_bytes,
        stack_bytes: limits.stack_bytes,
        code_cache_bytes: config.code_cache_bytes,
        memory_high_bytes: config.agent_memory_high_bytes.map(NonZeroU64::get),
        merge_memory: config.merge_agent_memory,
        max_instances: count(config.max_instances_per_agent),
    }
}

/// The same as arguments of `nex-agent`.
fn agent_arguments(settings: &V8Config) -> Vec<String> {
    let V8Config {
        pool_size,
        heap_bytes,
        stack_bytes,
        code_cache_bytes,
        memory_high_bytes,
        merge_memory,
        max_instances,
    } = settings;
    let mut arguments = vec![
        format!("--isolate-pool-size={pool_size}"),
        format!("--heap-bytes={heap_bytes}"),
        format!("--stack-bytes={stack_bytes}"),
        format!("--code-cache-bytes={code_cache_bytes}"),
        format!("--max-instances={max_instances}"),
    ];
    arguments.extend(merge_memory.then(|| "--merge-memory".to_owned()));
    arguments.extend(memory_high_bytes.map(|bytes| format!("--memory-high-bytes={bytes}")));
    arguments
}
