//! What only the driver `firecracker` has settings for. The driver checks them when the node starts.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::machines::firecracker::{Balloon, CpuTemplate, HugePages, JailCgroup};

/// Settings of the driver `firecracker`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FirecrackerSettings {
    /// Memory that is taken back from each machine. Default `null`: none.
    pub balloon: Option<Balloon>,
    /// Pages that back a machine's memory: `off`, `transparent` or `reserved2m`, with which there are no templates.
    /// Default `off`.
    pub huge_pages: HugePages,
    /// One of Firecracker's sets of processor features, which hides differences between hosts. Default `null`: none.
    pub cpu_template: Option<CpuTemplate>,
    /// The jail of each machine's process, which it has when the node is root.
    pub jailer: JailerSettings,
}

/// The jails of machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JailerSettings {
    /// The first of the user ids that machines get, each its own while it lives. Nothing but nodes may use them.
    /// Default 4,000,000.
    pub first_uid: NonZeroU32,
    /// How many of them there are, and so how many machines. Default 1,000.
    pub uids: NonZeroU32,
    /// The control group (v2) each machine gets, with its `parent` and `settings` such as `{"memory.max": "300000000"}`.
    /// Default `null`: none.
    pub cgroup: Option<JailCgroup>,
}

impl Default for JailerSettings {
    fn default() -> Self {
        Self {
            first_uid: const { NonZeroU32::new(4_000_000).unwrap() },
            uids: const { NonZeroU32::new(1_000).unwrap() },
            cgroup: None,
        }
    }
}

impl JailerSettings {
    /// The user ids.
    #[must_use]
    pub fn range(&self) -> RangeInclusive<u32> {
        let first = self.first_uid.get();
        first..=first.saturating_add(self.uids.get() - 1)
    }

    /// Checks what the types cannot.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let (first, uids) = (self.first_uid.get(), self.uids.get());
        // The last number stands for "no user".
        if first.checked_add(uids).is_none() {
            return Err(ConfigError::Key {
                key: "firecracker.jailer.uids".to_owned(),
                reason: format!(
                    "{uids} user ids from {first} on are more than there are, up to {}",
                    u32::MAX - 1
                ),
            });
        }
        Ok(())
    }
}
