//! The NATS side of workloads: which connection a workload's triggers and host services use, and what the engine is
//! given to serve it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, jetstream};
use nex_host_services::Policy;
use nex_host_services::nats::Nats;
use nex_runtime::engine::FunctionHost;
use tokio::runtime::Handle;

use crate::connection::{Auth, Connection, ConnectionError};
use crate::control::messages::NatsConnection;
use crate::data_plane;
use crate::outbound::Outbound;
use crate::report::Reporter;

/// Time for a workload's own connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// A connection for triggers, replies and host services. Cheap to clone; shared by all workloads that name no other.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadNats {
    pub(crate) outbound: Outbound,
    services: Nats,
}

impl WorkloadNats {
    /// Uses a connection that exists.
    pub(crate) fn new(outbound: Outbound) -> Self {
        let client = outbound.client().clone();
        let jetstream = jetstream::new(client.clone());
        Self {
            outbound,
            services: Nats::new(client, jetstream, Handle::current()),
        }
    }

    /// Makes a connection as a configuration or a request says. Without a URL it goes where `node` is connected.
    pub(crate) async fn connect(settings: &NatsConnection, node: &Client, name: &str) -> Result<Self, ConnectionError> {
        let url = if settings.nats_url.is_empty() {
            first_server(node).await
        } else {
            settings.nats_url.clone()
        };
        let mut connection = Connection::to(&url, name)?;
        connection.timeout = CONNECT_PATIENCE;
        if !settings.nats_user_jwt.is_empty() {
            connection.auth = Auth::Jwt {
                jwt: settings.nats_user_jwt.clone(),
                seed: settings.nats_user_seed.clone(),
            };
        }
        let client = data_plane::run(async move { connection.connect().await }).await?;
        Ok(Self::new(Outbound::new(client)))
    }

    /// What the engine is given for a workload with this policy.
    pub(crate) fn host(&self, policy: Policy, reporter: &Arc<Reporter>) -> FunctionHost {
        FunctionHost {
            services: Arc::new(self.services.services(policy)),
            logs: reporter.clone(),
            events: reporter.clone(),
        }
    }
}

/// Where the node is connected, without its credentials.
async fn first_server(client: &Client) -> String {
    let pool = client.server_pool().await.unwrap_or_default();
    if let Some(server) = pool.into_iter().next() {
        let mut url = server.addr.into_inner();
        // Both fail only for URLs without a host, and this one has led to a server.
        _ = url.set_username("");
        _ = url.set_password(None);
        return url.into();
    }
    let info = client.server_info();
    format!("nats://{}:{}", info.host, info.port)
}
