//! What a confined process may take of the host. A namespace's functions have limits of their own, but together, or after
//! an escape from V8, they could take all there is: so a machine has limits even where the configuration names none.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::{ConfigError, NodeConfig};
use crate::machines::ProcessLimits;

/// What one machine of the driver `process` may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineLimits {
    /// Memory in MiB, at least [`MIN_LIMIT_MIB`]; a machine that takes more is killed. Default `null`: half of what the
    /// node itself may use, by the host's memory and by the node's own control group.
    pub memory_mib: Option<NonZeroU32>,
    /// Processes and threads, [`MIN_LIMIT_PIDS`] to [`MAX_LIMIT_PIDS`]. Default `null`: twice `max_instances_per_agent`, and
    /// [`SPARE_PIDS`] more.
    pub pids: Option<NonZeroU32>,
    /// Processors, of which fractions can be given: [`MIN_LIMIT_CPUS`] to [`MAX_LIMIT_CPUS`]. Default `null`: all there are.
    pub cpus: Option<f64>,
}

/// Least memory of a confined process, in MiB: an agent without functions takes a third of it.
pub const MIN_LIMIT_MIB: u32 = 96;

/// Fewest processes and threads: an agent without functions has about ten, and each awake instance one more.
pub const MIN_LIMIT_PIDS: u32 = 64;

/// Most processes and threads, which is the most that Linux can have.
pub const MAX_LIMIT_PIDS: u32 = 4_194_304;

/// Smallest part of a processor, which is the kernel's limit.
pub const MIN_LIMIT_CPUS: f64 = 0.01;

/// Most processors.
pub const MAX_LIMIT_CPUS: f64 = 4_096.0;

/// Threads beside those of instances: V8's own, the runtime's, blank isolates.
pub const SPARE_PIDS: u32 = 256;

impl MachineLimits {
    /// Checks what the types cannot.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let error = |key: &str, reason: String| {
            Err(ConfigError::Key {
                key: format!("machine_limits.{key}"),
                reason,
            })
        };
        if let Some(mib) = self.memory_mib.filter(|mib| mib.get() < MIN_LIMIT_MIB) {
            return error(
                "memory_mib",
                format!("{mib} is below {MIN_LIMIT_MIB}, which an agent with V8 and a small function need"),
            );
        }
        let possible = MIN_LIMIT_PIDS..=MAX_LIMIT_PIDS;
        if let Some(pids) = self.pids.filter(|pids| !possible.contains(&pids.get())) {
            return error(
                "pids",
                format!("{pids} processes and threads, possible are {MIN_LIMIT_PIDS} to {MAX_LIMIT_PIDS}"),
            );
        }
        let possible = MIN_LIMIT_CPUS..=MAX_LIMIT_CPUS;
        if let Some(cpus) = self.cpus.filter(|cpus| !possible.contains(cpus)) {
            return error(
                "cpus",
                format!("{cpus} processors, possible are {MIN_LIMIT_CPUS} to {MAX_LIMIT_CPUS}"),
            );
        }
        Ok(())
    }
}

impl NodeConfig {
    /// What each machine of the driver `process` may take of this host.
    #[must_use]
    pub fn process_limits(&self) -> ProcessLimits {
        let limits = &self.machine_limits;
        let half = || ProcessLimits::usable_memory_bytes().map(|bytes| (bytes / 2).max(mib(MIN_LIMIT_MIB)));
        // An instance that ends has its thread for a while yet, when the next one has got its own.
        let threads = self.max_instances_per_agent.get().saturating_mul(2);
        let threads = threads.saturating_add(SPARE_PIDS).min(MAX_LIMIT_PIDS);
        ProcessLimits {
            memory_bytes: limits.memory_mib.map(|size| mib(size.get())).or_else(half),
            pids: Some(limits.pids.map_or(threads, NonZeroU32::get).into()),
            cpus: limits.cpus,
        }
    }
}

fn mib(size: u32) -> u64 {
    u64::from(size) << 20
}
