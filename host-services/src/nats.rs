//! The backends on NATS as a set, and what they share: bucket handles, JetStream errors, reading a stream's last state.

use std::sync::Arc;

use async_nats::Client;
use async_nats::jetstream;
use tokio::runtime::Handle;

use crate::http::ReqwestHttp;
use crate::kv::NatsKeyValue;
use crate::messaging::NatsMessaging;
use crate::objects::NatsObjectStore;
use crate::policy::Policy;
use crate::services::{Backends, Services, duration};

mod buckets;
mod failure;
mod latest;
mod open;

pub(crate) use buckets::Buckets;
pub(crate) use failure::{Failure, classify, no_answer, within};
pub(crate) use latest::latest;
pub(crate) use open::Openable;

/// One NATS connection and one HTTP client, from which a node makes the host services of all its workloads.
#[derive(Debug, Clone)]
pub struct Nats {
    client: Client,
    jetstream: jetstream::Context,
    http: Arc<ReqwestHttp>,
    runtime: Handle,
}

impl Nats {
    /// Everything runs on `runtime`; it must have I/O and time enabled and outlive the services.
    #[must_use]
    pub fn new(client: Client, jetstream: jetstream::Context, runtime: Handle) -> Self {
        Self {
            client,
            jetstream,
            http: Arc::new(ReqwestHttp::new()),
            runtime,
        }
    }

    /// The host services of one workload. Costs no round trip; buckets are opened on first use.
    #[must_use]
    pub fn services(&self, policy: Policy) -> Services {
        let kv = &policy.config().kv.config;
        let objects = &policy.config().objectstore.config;
        let backends = Backends {
            kv: Arc::new(NatsKeyValue::new(
                self.context(kv.js_domain.as_deref()),
                duration(kv.timeout_ms),
            )),
            objects: Arc::new(NatsObjectStore::new(
                self.context(objects.js_domain.as_deref()),
                duration(objects.timeout_ms),
            )),
            messaging: Arc::new(NatsMessaging::new(self.client.clone())),
            http: self.http.clone(),
        };
        Services::new(policy, backends, Some(self.runtime.clone()))
    }

    fn context(&self, domain: Option<&str>) -> jetstream::Context {
        match domain {
            Some(domain) => jetstream::with_domain(self.client.clone(), domain),
            None => self.jetstream.clone(),
        }
    }
}
