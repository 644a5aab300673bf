//! Composition: four backends and one workload's policy behind the runtime's seam.

use std::sync::Arc;

use async_nats::jetstream;
use futures::future::BoxFuture;
use nex_runtime::host_services::{HostError, HostErrorCode, HostRequest, HostResponse, HostServices};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{denied, internal, unavailable};
use crate::http::HttpClient;
use crate::kv::KeyValue;
use crate::memory::Memory;
use crate::messaging::Messaging;
use crate::nats::Nats;
use crate::objects::ObjectStore;
use crate::policy::Policy;

mod calls;
mod config;

pub(crate) use config::duration;
pub use config::{Config, HttpConfig, KvConfig, MessagingConfig, ObjectStoreConfig, Service};

/// The four backends of a [`Services`].
#[derive(Debug, Clone)]
pub struct Backends {
    /// Key-value buckets.
    pub kv: Arc<dyn KeyValue>,
    /// Object buckets.
    pub objects: Arc<dyn ObjectStore>,
    /// Messaging.
    pub messaging: Arc<dyn Messaging>,
    /// HTTP.
    pub http: Arc<dyn HttpClient>,
}

/// The host services of one workload. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    shared: Arc<Shared>,
    runtime: Option<Handle>,
}

#[derive(Debug)]
struct Shared {
    policy: Policy,
    backends: Backends,
}

impl Services {
    /// Services on these backends. With a runtime every call is a task there, started at once and aborted when its future
    /// is dropped; without one the caller's thread does the work, which the in-memory backends are fine with.
    #[must_use]
    pub fn new(policy: Policy, backends: Backends, runtime: Option<Handle>) -> Self {
        Self {
            shared: Arc::new(Shared { policy, backends }),
            runtime,
        }
    }

    /// Services in a [`Memory`] of their own, with the default configuration.
    #[must_use]
    pub fn in_memory(namespace: impl Into<String>, workload: impl Into<String>) -> Self {
        Memory::new().services(Policy::new(namespace, workload, Config::default()))
    }

    /// Services on a NATS connection, running on `runtime`. A node that has many workloads makes one [`Nats`] instead, so
    /// that they share an HTTP client.
    #[must_use]
    pub fn nats(client: async_nats::Client, jetstream: jetstream::Context, policy: Policy, runtime: Handle) -> Self {
        Nats::new(client, jetstream, runtime).services(policy)
    }

    /// The policy they apply.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.shared.policy
    }
}

impl HostServices for Services {
    fn call(&self, request: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
        let shared = self.shared.clone();
        let Some(runtime) = &self.runtime else {
            return Box::pin(async move { shared.call(request).await });
        };
        let task = AbortOnDropHandle::new(runtime.spawn(async move { shared.call(request).await }));
        Box::pin(async move {
            task.await.unwrap_or_else(|error| {
                Err(if error.is_panic() {
                    internal("the host service failed unexpectedly")
                } else {
                    unavailable("the host is shutting down")
                })
            })
        })
    }
}

impl Shared {
    async fn call(&self, request: HostRequest) -> Result<HostResponse, HostError> {
        let (service, method) = request.operation.name();
        let result = match self.check_enabled(service) {
            Ok(()) => self.run(request).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            let (namespace, workload) = (self.policy.namespace(), self.policy.workload());
            // The function gets the error and may expect it; what only an operator can mend is for the operator too.
            if matches!(error.code, HostErrorCode::Internal | HostErrorCode::Unavailable) {
                tracing::warn!(namespace, workload, service, method, %error, "host call failed");
            } else {
                tracing::debug!(namespace, workload, service, method, %error, "host call failed");
            }
        }
        result
    }

    fn check_enabled(&self, service: &str) -> Result<(), HostError> {
        let config = self.policy.config();
        let enabled = match service {
            "kv" => config.kv.enabled,
            "objectstore" => config.objectstore.enabled,
            "messaging" => config.messaging.enabled,
            "http" => config.http.enabled,
            _ => false,
        };
        if enabled {
            Ok(())
        } else {
            Err(denied(format!("host service {service:?} is switched off on this node")))
        }
    }
}
