//! A node over machines of one driver, as a process of its own, and the other side of it: whoever deploys to it and asks
//! it about its machines.
//!
//! It is no `nex node up`, so that its machines come from this run's templates.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::jetstream::object_store::ObjectStore;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use nex_node::agents::{AgentPool, AgentPoolConfig};
use nex_node::claims::{Claims, hex_sha256};
use nex_node::control::messages::{AgentSummary, DeployRequest, InfoResponse, StopRequest};
use nex_node::control::{ControlClient, Location};
use nex_node::in_process::InProcess;
use nex_node::limits::LimitSet;
use nex_node::machines::DriverKind;
use nex_node::{Node, NodeConfig, environment};
use nex_runtime::engine::Engine;
use nex_runtime::v8::{V8Config, V8Engine};
use nkeys::{KeyPair, XKey};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::PATIENCE;
use super::lab::{Ground, Lab, Place};
use crate::contender::Process;

/// Where artefacts are uploaded.
const BUCKET: &str = "bench";

/// How long an agent without functions stays: the next namespace is to have another.
const LINGER: Duration = Duration::from_millis(100);

/// How often something is asked that takes a moment.
const STEP: Duration = Duration::from_millis(5);

/// Arguments of the hidden command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// URL of the server
    #[arg(long)]
    url: String,
    /// Driver of its machines
    #[arg(long, value_enum)]
    driver: DriverKind,
    /// Folder of the run
    #[arg(long)]
    lab: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// Is a node until it is asked to end.
pub(crate) async fn run(args: Args) -> Result<()> {
    let mut end = signal(SignalKind::terminate())?;
    let lab = Lab::of(args.place, args.lab);
    let client = async_nats::connect(&args.url).await?;
    let (engine, agents): (Arc<dyn Engine>, _) = if args.driver == DriverKind::InProcess {
        let engine = V8Engine::new(V8Config::default())?;
        let quarantine = (&NodeConfig::default().quarantine).into();
        (Arc::new(InProcess::new(Arc::new(engine), quarantine)), None)
    } else {
        let ground = Ground::new(&lab, args.driver).await?;
        let defaults = AgentPoolConfig::with_driver(ground.driver.clone());
        let pool = AgentPool::start(AgentPoolConfig {
            templates: Some(lab.templates()),
            heartbeat_timeout: ground.slowness * defaults.heartbeat_timeout,
            start_timeout: PATIENCE,
            idle_linger: LINGER,
            ..defaults
        });
        let pool = pool.await?;
        (pool.clone(), Some((pool, ground)))
    };
    let node = Node::start(NodeConfig::default(), client, engine).await?;
    println!("{}", json!({ "node": node.id(), "xkey": node.public_xkey() }));
    end.recv().await;
    node.shutdown().await;
    if let Some((pool, ground)) = agents {
        pool.shutdown().await;
        drop(ground);
    }
    Ok(())
}

/// That process, and what is needed to deploy to it.
pub(super) struct TestNode {
    pub(super) kind: DriverKind,
    pub(super) process: Process,
    id: String,
    xkey: String,
    client: Client,
    store: ObjectStore,
    issuer: KeyPair,
    sender: XKey,
    _log: TempDir,
}

/// A function on it.
#[derive(Debug)]
pub(super) struct Deployed {
    namespace: String,
    id: String,
}

impl TestNode {
    pub(super) async fn start(lab: &Lab, kind: DriverKind, url: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["machine-node", "--url", url, "--driver", kind.as_str()]);
        command.args(lab.arguments());
        let log = tempfile::tempdir()?;
        let process = Process::start(command, &log.path().join("node.log")).await?;
        let ready: Value = serde_json::from_str(process.ready())?;
        let text = |key: &str| {
            ready[key]
                .as_str()
                .map(str::to_owned)
                .context("the node tells too little")
        };
        let client = async_nats::connect(url).await?;
        let bucket = async_nats::jetstream::object_store::Config {
            bucket: BUCKET.to_owned(),
            ..Default::default()
        };
        Ok(Self {
            kind,
            id: text("node")?,
            xkey: text("xkey")?,
            process,
            store: async_nats::jetstream::new(client.clone())
                .create_object_store(bucket)
                .await?,
            client,
            issuer: KeyPair::new_account(),
            sender: XKey::new(),
            _log: log,
        })
    }

    fn control(&self, namespace: &str) -> ControlClient {
        ControlClient::new(self.client.clone(), namespace, PATIENCE)
    }

    /// Uploads a function and signs the request to run it, which is good for once.
    pub(super) async fn prepare(&self, source: &str, subject: &str) -> Result<DeployRequest> {
        let id = uuid::Uuid::new_v4().to_string();
        self.store.put(id.as_str(), &mut source.as_bytes()).await?;
        let name = subject.replace('.', "-");
        let claims = Claims::for_deploy(&id, &name, &hex_sha256(source.as_bytes()));
        Ok(DeployRequest {
            argv: Vec::new(),
            description: String::new(),
            hash: None,
            location: Location::new(BUCKET, &id)?,
            essential: false,
            environment: environment::seal(&BTreeMap::new(), &self.sender, &self.xkey)?,
            workload_jwt: claims.sign(&self.issuer)?,
            id: Some(id),
            jsdomain: None,
            limits: LimitSet::default(),
            sender_public_key: self.sender.public_key(),
            target_node: Some(self.id.clone()),
            trigger_subjects: vec![subject.to_owned()],
            host_services_config: None,
            trigger_connection: None,
            workload_name: Some(name),
            workload_type: "v8".to_owned(),
        })
    }

    /// Sends a request that was prepared; returns when the function runs.
    pub(super) async fn deploy(&self, namespace: &str, request: &DeployRequest) -> Result<Deployed> {
        let deployed = self.control(namespace).deploy(&self.id, request).await?;
        Ok(Deployed {
            namespace: namespace.to_owned(),
            id: deployed.id,
        })
    }

    pub(super) async fn stop(&self, function: Deployed) -> Result<()> {
        // Signed after the deployment, to the second.
        let issued_at = nex_node::claims::now() + 1;
        let request = StopRequest {
            node_id: Some(self.id.clone()),
            workload_jwt: Claims::for_stop(&function.id).sign_at(&self.issuer, issued_at)?,
            workload_id: function.id,
        };
        self.control(&function.namespace).stop(&self.id, &request).await?;
        Ok(())
    }

    /// Waits until what the node tells of a namespace and of warm machines is as it should be.
    async fn wait_for<T>(
        &self,
        namespace: &str,
        what: &str,
        mut met: impl FnMut(InfoResponse) -> Option<T>,
    ) -> Result<T> {
        let control = self.control(namespace);
        let began = Instant::now();
        loop {
            if let Some(met) = met(control.info(&self.id).await?) {
                return Ok(met);
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "{}: {what} not within {PATIENCE:?}",
                self.kind
            );
            tokio::time::sleep(STEP).await;
        }
    }

    /// Waits until a machine is warm.
    pub(super) async fn warm(&self) -> Result<()> {
        let warm = |info: InfoResponse| (info.available_agents > 0).then_some(());
        self.wait_for("default", "a warm machine", warm).await
    }

    /// Waits until a namespace has an agent with so many functions, and calls in flight.
    pub(super) async fn serving(&self, namespace: &str, functions: usize, in_flight: usize) -> Result<AgentSummary> {
        let serving = |info: InfoResponse| {
            info.agents
                .into_iter()
                .find(|agent| agent.state == "serving" && agent.functions == functions && agent.in_flight == in_flight)
        };
        self.wait_for(namespace, "a machine that serves", serving).await
    }

    /// Calls a function; `None` if the answer is an error, as it is while a function is moved.
    pub(super) async fn call(&self, subject: &str, payload: &Bytes) -> Result<Option<Bytes>> {
        let request = async_nats::Request::new()
            .payload(payload.clone())
            .timeout(Some(PATIENCE));
        let reply = self.client.send_request(subject.to_owned(), request).await?;
        let failed = |headers: &HeaderMap| headers.get("Nats-Service-Error").is_some();
        if reply.headers.as_ref().is_some_and(failed) {
            return Ok(None);
        }
        Ok(Some(reply.payload))
    }

    /// Ends the node, with all its machines.
    pub(super) async fn end(self) -> Result<()> {
        let kind = self.kind;
        match timeout(PATIENCE, self.process.end()).await {
            Ok(ended) => ended.with_context(|| format!("the node over {kind}")),
            Err(_) => bail!("the node over {kind} does not end"),
        }
    }
}
