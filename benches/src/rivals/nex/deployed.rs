//! Functions that were deployed on a node and hibernate there, called over NATS.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream::object_store::{self, ObjectStore};
use async_nats::{Client, jetstream};
use bytes::Bytes;
use nex_node::bench::nats::NatsTarget;
use nex_node::bench::{Ask as _, Target as _, process};
use nex_node::claims::{Claims, hex_sha256};
use nex_node::control::messages::DeployRequest;
use nex_node::control::{ControlClient, Location};
use nex_node::environment;
use nex_node::limits::{LimitKey, LimitSet};
use nkeys::{KeyPair, XKey};
use serde_json::json;
use uuid::Uuid;

use super::super::bundle::{Platform, Size};
use super::{Setup, until_asleep};
use crate::contender::{Isolation, Node};
use crate::echo::PATIENCE;

/// Idle time after which functions hibernate. They must live until their deployment has been answered.
const HIBERNATE_AFTER: Duration = Duration::from_millis(500);
/// Names of threads in agents: one for each isolate, awake or blank, and one for each engine.
const ISOLATE: &str = "isolate";
const ENGINE: &str = "watchdog";

/// A node with agents, and the functions that were deployed on it last.
pub(crate) struct Deployed {
    node: Node,
    setup: Setup,
    /// Part of all names, so that several nodes can share a server.
    name: String,
    node_key: String,
    issuer: KeyPair,
    xkey: XKey,
    control: ControlClient,
    store: ObjectStore,
    /// The caller's own connection.
    client: Client,
    target: Option<NatsTarget>,
    calls: u64,
}

impl Deployed {
    /// Starts a node on a server. No two with the same name.
    pub(crate) async fn start(url: &str, name: &str, setup: Setup) -> Result<Self> {
        let config = json!({
            "workload_types": ["v8"],
            "isolate_pool_size": setup.pool_size(),
            "code_cache_bytes": setup.code_cache_bytes(),
        });
        let node = Node::start_with(url, Isolation::Agent, &config).await?;
        let client = async_nats::connect(url).await?;
        let control = ControlClient::new(client.clone(), "default", PATIENCE);
        let store = jetstream::new(client.clone())
            .create_object_store(object_store::Config {
                bucket: format!("rivals-{name}"),
                ..object_store::Config::default()
            })
            .await?;
        Ok(Self {
            node_key: control.ping_node(node.id()).await?.target_xkey,
            node,
            setup,
            name: name.to_owned(),
            issuer: KeyPair::new_account(),
            xkey: XKey::new(),
            control,
            store,
            client: async_nats::connect(url).await?,
            target: None,
            calls: 0,
        })
    }

    /// The node's process; the agents are its children.
    pub(crate) fn process(&self) -> Result<u32> {
        self.node.process().id()
    }

    /// Deploys functions and waits until all hibernate.
    pub(crate) async fn load(&mut self, size: Size, numbers: &[u64]) -> Result<()> {
        let mut subjects = Vec::new();
        for &number in numbers {
            let name = size.name(number);
            let subject = format!("rivals.cold.{}.{name}", self.name);
            self.deploy(&name, &subject, size.source(number, Platform::Nex))
                .await
                .with_context(|| format!("cannot deploy {name}"))?;
            subjects.push(subject);
        }
        self.target = Some(NatsTarget::new(self.client.clone(), subjects).await?);
        // A function that nothing runs has no thread: what isolates there are then are the blank ones.
        let (process, pool_size) = (self.process()?, self.setup.pool_size());
        until_asleep(|| process::threads(process, ISOLATE) == process::threads(process, ENGINE) * pool_size).await
    }

    async fn deploy(&self, name: &str, subject: &str, source: String) -> Result<()> {
        let source = Bytes::from(source);
        self.store.put(name, &mut source.as_ref()).await?;
        let id = Uuid::new_v4().to_string();
        let hash = hex_sha256(&source);
        let mut limits = LimitSet::default();
        limits.insert(LimitKey::HibernateAfter, HIBERNATE_AFTER.as_millis().try_into()?)?;
        let request = DeployRequest {
            argv: Vec::new(),
            description: String::new(),
            location: Location::new(format!("rivals-{}", self.name), name)?,
            essential: false,
            environment: environment::seal(&Default::default(), &self.xkey, &self.node_key)?,
            jsdomain: None,
            limits,
            sender_public_key: self.xkey.public_key(),
            target_node: Some(self.node.id().to_owned()),
            trigger_subjects: vec![subject.to_owned()],
            host_services_config: None,
            trigger_connection: None,
            workload_name: Some(name.to_owned()),
            workload_jwt: Claims::for_deploy(&id, name, &hash).sign(&self.issuer)?,
            workload_type: "v8".to_owned(),
            hash: Some(hash),
            id: Some(id),
        };
        self.control.deploy(self.node.id(), &request).await?;
        // The node has its own copy.
        self.store.delete(name).await?;
        Ok(())
    }

    /// Calls one of them.
    pub(crate) async fn call(&mut self, index: usize, request: Bytes) -> Result<Bytes, String> {
        let target = self.target.as_mut().ok_or("nothing is deployed")?;
        self.calls += 1;
        let key = self.calls;
        target.asker().ask(index, key, request).await?;
        loop {
            let answer = target.answer().await.ok_or("the connection is lost")?;
            // Others are late answers to calls that were given up.
            if answer.key == key {
                return answer.outcome;
            }
        }
    }
}
