//! The in-memory backends as a set.

use std::sync::Arc;

use crate::http::ScriptedHttp;
use crate::kv::MemoryKeyValue;
use crate::messaging::MemoryMessaging;
use crate::objects::MemoryObjectStore;
use crate::policy::Policy;
use crate::services::{Backends, Services};

mod buckets;

pub(crate) use buckets::Buckets;

/// A little world without a server: buckets, a message bus and scripted HTTP. Clones share it. Functions whose services
/// come from one world meet in it as they would on one NATS server.
///
/// ```
/// # use nex_host_services::{Config, Policy, memory::Memory};
/// # use nex_runtime::invocation::Reply;
/// let world = Memory::new();
/// world.messaging.respond("time", |_| Some(Reply::from(bytes::Bytes::from_static(b"noon"))))?;
/// let services = world.services(Policy::new("default", "echo", Config::default()));
/// # Ok::<(), nex_host_services::InvalidPattern>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Key-value buckets.
    pub kv: MemoryKeyValue,
    /// Object buckets.
    pub objects: MemoryObjectStore,
    /// Message bus.
    pub messaging: MemoryMessaging,
    /// HTTP routes.
    pub http: ScriptedHttp,
}

impl Memory {
    /// An empty world.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The host services of one workload in this world. They need no runtime: any executor may poll them.
    #[must_use]
    pub fn services(&self, policy: Policy) -> Services {
        Services::new(policy, self.backends(), None)
    }

    /// The backends, for those who want to replace some.
    #[must_use]
    pub fn backends(&self) -> Backends {
        Backends {
            kv: Arc::new(self.kv.clone()),
            objects: Arc::new(self.objects.clone()),
            messaging: Arc::new(self.messaging.clone()),
            http: Arc::new(self.http.clone()),
        }
    }
}
