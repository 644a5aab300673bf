//! The node's configuration file: JSON with the keys of the original, so far as they mean something here, and our own.
//!
//! A file is [parsed](NodeConfig::from_json), then [validated](NodeConfig::validate); unknown keys are errors, missing
//! ones have the defaults documented on each field. Every error names the key.

mod firecracker;
mod machine_limits;

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};

use nex_agent::confine::Layer;
use nex_runtime::engine::Limits;
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::firecracker::{FirecrackerSettings, JailerSettings};
pub use self::machine_limits::{
    MAX_LIMIT_CPUS, MAX_LIMIT_PIDS, MIN_LIMIT_CPUS, MIN_LIMIT_MIB, MIN_LIMIT_PIDS, MachineLimits, SPARE_PIDS,
};
use crate::control::messages::NatsConnection;
use crate::control::subjects;
use crate::limits::{LimitError, LimitSet, MAX_REPLY_BYTES};
use crate::machines::{DriverKind, RateLimiters};

/// Configuration of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Agents kept ready. Default 1, at least 1.
    pub machine_pool_size: NonZeroU32,
    /// Milliseconds an agent has to start and shake hands; four times that in an emulated machine. Default 5,000.
    pub agent_handshake_timeout_ms: NonZeroU32,
    /// Milliseconds of silence after which an agent is given up; four times that in an emulated machine. Default 750.
    pub agent_ping_timeout_ms: NonZeroU32,
    /// What functions run in. Default `process`; `in_process` needs `nex node up --unsafe-in-process` as well.
    pub machine_driver: DriverKind,
    /// Layers of confinement without which the driver `process` refuses to start, of `namespaces`, `landlock`, `seccomp`
    /// and `rlimits`. Default none: it uses those that the host gives, says at start which these are, and carries the tag
    /// `nex.unsafe` without namespaces or seccomp.
    pub confinement: Vec<Layer>,
    /// What a machine of the driver `process` may take of the host.
    pub machine_limits: MachineLimits,
    /// Size of a virtual machine.
    pub machine_template: MachineTemplate,
    /// Milliseconds a virtual machine has to boot, which takes seconds without KVM. Default 60,000.
    pub machine_boot_timeout_ms: NonZeroU32,
    /// Whether virtual machines are copies of a template: of a machine that has booted and has a warm agent, taken once
    /// and kept in the resource folder. Copies start many times as fast and share memory. Default true.
    pub machine_templates: bool,
    /// The original's word for the driver: true allows only `process` and `in_process`, false only virtual machines.
    /// Default `null`: whatever `machine_driver` says.
    pub no_sandbox: Option<bool>,
    /// Folder with what virtual machines are made of, see `nex preflight`. Default `null`: `$NEX_RESOURCE_DIR`, else
    /// `$NEX_HOME/resources`.
    pub default_resource_dir: Option<PathBuf>,
    /// Folders in which programs such as `firecracker` are looked for, before the resource folder's `bin` and `PATH`.
    /// Default none.
    pub bin_path: Vec<PathBuf>,
    /// Limits of what a machine reads from its drive; for `firecracker`. Default none.
    pub rate_limiters: RateLimiters,
    /// More for `firecracker`.
    pub firecracker: FirecrackerSettings,
    /// Folder for what machines need while they run: sockets, mostly. Its name should be short. Default `null`:
    /// `$XDG_RUNTIME_DIR/nex`, else `/run/nex` for root and `nex-UID` in the temporary folder for others; for `firecracker`
    /// `machines` in the resource folder, because it should be on the image's file system.
    pub runtime_dir: Option<PathBuf>,
    /// Name of the group of nodes this one belongs to. Default `nexus`.
    pub nexus: String,
    /// Tags, beside the built-in `nex.os`, `nex.arch`, `nex.cpucount`, `nex.driver`, `nex.unsafe` and `nex.lameduck`. Without a
    /// `node_name` the node makes one up. Default none.
    pub tags: BTreeMap<String, String>,
    /// Workload types the node accepts. Default `["v8"]`.
    pub workload_types: Vec<String>,
    /// Account keys (`A…`) whose workloads are accepted. Default `[]`: anyone's.
    pub valid_issuers: Vec<String>,
    /// Subjects, with wildcards, that no function may be triggered on, beside `$SYS.>`, `$JS.>` and `$NEX.>`.
    /// Default none.
    pub deny_trigger_subjects: Vec<String>,
    /// Limits of the node as a whole.
    pub node_limits: NodeLimits,
    /// Limits of every workload that does not ask for others; those left out have the engine's default, see [`Limits`].
    /// Default `{}`.
    pub limits: LimitSet,
    /// The most a deploy may ask for, with the same keys. One that is left out is as in `limits`, so that a deploy may
    /// only ask for less. Default `{}`.
    pub max_limits: LimitSet,
    /// What makes a function be quarantined, and for how long.
    pub quarantine: QuarantineConfig,
    /// Blank isolates each agent keeps ready. Default 4; 0 makes each one when it is needed.
    pub isolate_pool_size: u32,
    /// Bytes of compiled code each agent keeps for functions that are started again. Default 67,108,864 (64 MiB);
    /// 0 keeps none.
    pub code_cache_bytes: u64,
    /// Resident bytes of an agent above which its functions hibernate before their time, least recently used first.
    /// Default `null`: never.
    pub agent_memory_high_bytes: Option<NonZeroU64>,
    /// Lets the kernel merge pages of an agent that are alike (KSM), if the machine is set up to
    /// (`/sys/kernel/mm/ksm/run`): nearly half as many functions again fit (`benches/RESULTS.md`). Functions of a
    /// namespace might then tell by the time it takes to write to a page what others have in memory. Default false.
    pub merge_agent_memory: bool,
    /// Instances awake in each agent. Default 1,000: V8 needs some 32 memory mappings for each, of which Linux allows a
    /// process 65,530.
    pub max_instances_per_agent: NonZeroU32,
    /// Functions in each agent, hibernating ones included; a namespace with more gets further agents. Default 5,000.
    pub max_functions_per_agent: NonZeroU32,
    /// Whether the same artefact may run twice in one namespace. Default true.
    pub allow_duplicate_workloads: bool,
    /// Connection and policy of the host services.
    pub host_services_config: HostServicesConfig,
    /// What the node reports by itself.
    pub events: EventsConfig,
    /// Folder in which the node keeps its identity, so that it has the same ID after a restart. One node at a time may
    /// use it. Default `null`: a new identity at each start.
    pub state_dir: Option<PathBuf>,
    /// Bytes of artefacts kept in memory to save downloads. Default 67,108,864 (64 MiB); 0 keeps none.
    pub artifact_cache_bytes: u64,
    /// Seconds for which signed claims without an expiry of their own are accepted after they were signed.
    /// Default 3,600.
    pub claims_max_age_s: NonZeroU32,
    /// Milliseconds that calls in flight have to end when the node stops. Default 30,000.
    pub shutdown_grace_ms: u64,
}

/// Limits of the node as a whole; 0 switches one off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeLimits {
    /// Workloads running at a time. Default 0.
    pub max_workloads: usize,
    /// Bytes of all running workloads' artefacts together. Default 0.
    pub max_total_bytes: u64,
    /// Bytes of one artefact. Default 0, which still means [`MAX_ARTIFACT_BYTES`](crate::artifacts::MAX_ARTIFACT_BYTES).
    pub max_workload_bytes: u64,
}

/// Size of a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineTemplate {
    /// Processors. Default 1, at most [`MAX_VCPUS`].
    pub vcpu_count: NonZeroU32,
    /// Memory in MiB, at least [`MIN_MACHINE_MIB`]. Default 512: the original's 256 hold a kernel and V8, and then one
    /// function at its default heap limit.
    pub memsize_mib: NonZeroU32,
}

/// Most processors of a machine, which is Firecracker's limit.
pub const MAX_VCPUS: u32 = 32;

/// Least memory of a machine, in MiB.
pub const MIN_MACHINE_MIB: u32 = 192;

/// What makes a function be quarantined: its calls are answered at once, and it gets no agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuarantineConfig {
    /// Agents that it makes be condemned or die within the window before it is quarantined. Default 3.
    pub after: NonZeroU32,
    /// Milliseconds without another such incident after which all is forgiven. Default 600,000 (10 minutes).
    pub window_ms: NonZeroU32,
    /// Milliseconds of the first quarantine; each further one is twice as long. Default 60,000.
    pub duration_ms: NonZeroU32,
    /// Milliseconds of the longest quarantine. Default 3,600,000 (1 hour).
    pub max_duration_ms: NonZeroU32,
}

/// Connection and policy of the host services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostServicesConfig {
    /// Server and user for triggers and host services. Default empty: the node's own connection.
    pub nats: NatsConnection,
    /// The services.
    pub services: nex_host_services::Config,
}

/// What the node reports by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsConfig {
    /// Whether each successful call is an event. Default false, because it costs a message for each call.
    pub function_exec_succeeded: bool,
    /// Milliseconds between heartbeats. Default 30,000.
    pub heartbeat_interval_ms: NonZeroU32,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            machine_pool_size: const { NonZeroU32::new(1).unwrap() },
            agent_handshake_timeout_ms: const { NonZeroU32::new(5_000).unwrap() },
            agent_ping_timeout_ms: const { NonZeroU32::new(750).unwrap() },
            machine_driver: DriverKind::Process,
            confinement: Vec::new(),
            machine_limits: MachineLimits::default(),
            machine_template: MachineTemplate::default(),
            machine_boot_timeout_ms: const { NonZeroU32::new(60_000).unwrap() },
            machine_templates: true,
            no_sandbox: None,
            default_resource_dir: None,
            bin_path: Vec::new(),
            rate_limiters: RateLimiters::default(),
            firecracker: FirecrackerSettings::default(),
            runtime_dir: None,
            nexus: "nexus".to_owned(),
            tags: BTreeMap::new(),
            workload_types: vec!["v8".to_owned()],
            valid_issuers: Vec::new(),
            deny_trigger_subjects: Vec::new(),
            node_limits: NodeLimits::default(),
            limits: LimitSet::default(),
            max_limits: LimitSet::default(),
            quarantine: QuarantineConfig::default(),
            isolate_pool_size: 4,
            code_cache_bytes: 64 << 20,
            agent_memory_high_bytes: None,
            merge_agent_memory: false,
            max_instances_per_agent: const { NonZeroU32::new(1_000).unwrap() },
            max_functions_per_agent: const { NonZeroU32::new(5_000).unwrap() },
            allow_duplicate_workloads: true,
            host_services_config: HostServicesConfig::default(),
            events: EventsConfig::default(),
            state_dir: None,
            artifact_cache_bytes: 64 << 20,
            claims_max_age_s: const { NonZeroU32::new(3_600).unwrap() },
            shutdown_grace_ms: 30_000,
        }
    }
}

impl Default for MachineTemplate {
    fn default() -> Self {
        Self {
            vcpu_count: const { NonZeroU32::new(1).unwrap() },
            memsize_mib: const { NonZeroU32::new(512).unwrap() },
        }
    }
}

impl Default for QuarantineConfig {
    fn default() -> Self {
        Self {
            after: const { NonZeroU32::new(3).unwrap() },
            window_ms: const { NonZeroU32::new(600_000).unwrap() },
            duration_ms: const { NonZeroU32::new(60_000).unwrap() },
            max_duration_ms: const { NonZeroU32::new(3_600_000).unwrap() },
        }
    }
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            function_exec_succeeded: false,
            heartbeat_interval_ms: const { NonZeroU32::new(30_000).unwrap() },
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to load configuration file: open {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not JSON.
    #[error("the configuration is not JSON: {0}")]
    NotJson(serde_json::Error),
    /// JSON, but no object.
    #[error("the configuration is not a JSON object")]
    NotAnObject,
    /// A key is unknown or its value is not acceptable.
    #[error("configuration key `{key}`: {reason}")]
    Key {
        /// Path of the key, with dots.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

impl NodeConfig {
    /// Reads and validates a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file or the key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let json = std::fs::read(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_json(&json)
    }

    /// Parses and validates a configuration.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_slice(json).map_err(ConfigError::NotJson)?;
        let Value::Object(members) = value else {
            return Err(ConfigError::NotAnObject);
        };
        let config = parse(members.clone()).map_err(|error| {
            let (key, reason) = culprit(&members, &Vec::new()).unwrap_or_else(|| (String::new(), error.to_string()));
            ConfigError::Key { key, reason }
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`ConfigError::Key`]
    pub fn validate(&self) -> Result<(), ConfigError> {
        let key = |key: &str, reason: String| {
            Err(ConfigError::Key {
                key: key.to_owned(),
                reason,
            })
        };
        let driver = self.machine_driver;
        if self.no_sandbox == Some(driver.is_virtual()) {
            let reason = if driver.is_virtual() {
                format!("true contradicts `machine_driver`, which is {driver}; expected process or in_process there")
            } else {
                format!(
                    "false asks for virtual machines, but `machine_driver` is {driver}; expected qemu or firecracker there"
                )
            };
            return key("no_sandbox", reason);
        }
        let size = &self.machine_template;
        if size.vcpu_count.get() > MAX_VCPUS {
            return key(
                "machine_template.vcpu_count",
                format!("{} is above {MAX_VCPUS}", size.vcpu_count),
            );
        }
        if size.memsize_mib.get() < MIN_MACHINE_MIB {
            return key(
                "machine_template.memsize_mib",
                format!(
                    "{} is below {MIN_MACHINE_MIB}, which a kernel and an agent with V8 need",
                    size.memsize_mib
                ),
            );
        }
        self.machine_limits.validate()?;
        self.firecracker.jailer.validate()?;
        if self.workload_types.is_empty() {
            return key(
                "workload_types",
                "is empty, expected at least one type such as \"v8\"".to_owned(),
            );
        }
        for issuer in &self.valid_issuers {
            let parsed = KeyPair::from_public_key(issuer);
            if !parsed.is_ok_and(|key| key.key_pair_type() == KeyPairType::Account) {
                return key("valid_issuers", format!("`{issuer}` is not a public account key (A…)"));
            }
        }
        for subject in &self.deny_trigger_subjects {
            if let Err(reason) = subjects::check_trigger_subject(subject) {
                return key("deny_trigger_subjects", format!("subject `{subject}` {reason}"));
            }
        }
        for tag in self.tags.keys() {
            if tag.is_empty() || tag.starts_with("nex.") {
                return key("tags", format!("`{tag}` is reserved for the node itself"));
            }
        }
        let defaults = self.default_limits();
        for (limit, most) in self.max_limits.iter() {
            let default = limit.of(&defaults);
            if most < default {
                return key(
                    &format!("max_limits.{limit}"),
                    format!(
                        "{most} is below {default}, which workloads have by default; lower `limits.{limit}` as well"
                    ),
                );
            }
        }
        let quarantine = &self.quarantine;
        if quarantine.max_duration_ms < quarantine.duration_ms {
            return key(
                "quarantine.max_duration_ms",
                format!(
                    "{} is below `quarantine.duration_ms`, which is {}",
                    quarantine.max_duration_ms, quarantine.duration_ms
                ),
            );
        }
        let connection = &self.host_services_config.nats;
        if connection.nats_user_jwt.is_empty() != connection.nats_user_seed.is_empty() {
            return key(
                "host_services_config.nats",
                "`nats_user_jwt` and `nats_user_seed` need each other".to_owned(),
            );
        }
        Ok(())
    }

    /// The limits of a workload that asks for none. What a server takes bounds replies beside these.
    #[must_use]
    pub fn default_limits(&self) -> Limits {
        self.limits.over(Limits {
            reply_bytes: MAX_REPLY_BYTES,
            ..Limits::default()
        })
    }

    /// The most a deploy may ask for.
    #[must_use]
    pub fn max_limits(&self) -> Limits {
        self.max_limits.over(self.default_limits())
    }

    /// The limits of a workload that asks for these.
    ///
    /// # Errors
    /// [`LimitError::NotAllowed`]
    pub fn grant(&self, asked: &LimitSet) -> Result<Limits, LimitError> {
        asked.check_within(&self.max_limits())?;
        Ok(asked.over(self.default_limits()))
    }
}

fn parse(members: Map<String, Value>) -> Result<NodeConfig, serde_json::Error> {
    serde_json::from_value(Value::Object(members))
}

/// Finds the innermost key that does not parse by itself, which works because every key has a default.
fn culprit(members: &Map<String, Value>, path: &[&str]) -> Option<(String, String)> {
    members.iter().find_map(|(key, value)| {
        let path = [path, &[key.as_str()]].concat();
        let alone = path.iter().rev().fold(value.clone(), |inner, key| {
            Value::Object(Map::from_iter([((*key).to_owned(), inner)]))
        });
        let error = serde_json::from_value::<NodeConfig>(alone).err()?;
        let deeper = value.as_object().and_then(|members| culprit(members, &path));
        Some(deeper.unwrap_or_else(|| (path.join("."), error.to_string())))
    })
}

#[cfg(test)]
mod tests;
