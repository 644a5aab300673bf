//! Settings of confined processes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use nex_agent::confine::Layer;

use super::cgroup::hierarchy;

/// Settings of a [`ProcessDriver`](super::ProcessDriver).
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// The agent's binary.
    pub agent_bin: PathBuf,
    /// Arguments for it; those for its confinement come after them. Default none.
    pub agent_args: Vec<OsString>,
    /// Its whole environment, beside `RUST_LOG`. Default empty.
    pub agent_env: Vec<(String, String)>,
    /// Its log filter, as in `RUST_LOG`. Default `info`.
    pub agent_log: String,
    /// What it is confined by. Default all layers that the host gives, none of which is demanded.
    pub confinement: Confinement,
    /// What it may take. Default no limits.
    pub limits: ProcessLimits,
    /// The control group (version 2) below which the node makes one for each machine, with the controllers enabled for
    /// what is below it. Default the node's own.
    pub cgroup_parent: Option<PathBuf>,
    /// Time a process has to become ready for its link. Default 10 s.
    pub start_timeout: Duration,
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
            confinement: Confinement::AtLeast(Vec::new()),
            limits: ProcessLimits::default(),
            cgroup_parent: None,
            start_timeout: Duration::from_secs(10),
        }
    }
}

/// What agents are confined by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confinement {
    /// Nothing: the agent is a plain child process. For development.
    None,
    /// All layers that the host gives. Without those named here there are no machines.
    AtLeast(Vec<Layer>),
}

/// What one machine may take of the host. By default all there is; a node gives its machines limits in any case, see
/// [`MachineLimits`](crate::config::MachineLimits).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProcessLimits {
    /// Resident memory in bytes. Where the node may make no control group with a memory controller it looks several times
    /// a second, and kills a machine that has more.
    pub memory_bytes: Option<u64>,
    /// Processes and threads. An agent has a thread for each instance that is awake, and a dozen more.
    pub pids: Option<u64>,
    /// Processors, in fractions: 0.5 is half of one.
    pub cpus: Option<f64>,
}

impl ProcessLimits {
    /// Memory in bytes that this process and its machines may have together: the host's, or less if a control group that
    /// it is in says so. `None` where the system does not tell.
    #[must_use]
    pub fn usable_memory_bytes() -> Option<u64> {
        let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = total.strip_suffix("kB")?.trim().parse().ok()?;
        let of_groups = hierarchy::memory_limits();
        std::iter::once(kib << 10).chain(of_groups).min()
    }
}
