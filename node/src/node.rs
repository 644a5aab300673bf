//! A node: takes orders on the control subjects, runs workloads on its engine, and says what happens.

mod claims;
mod deploy;
mod discovery;
mod listener;
mod registry;
mod replay;
mod stop;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::Client;
use nex_runtime::engine::Engine;
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::registry::{Registry, Workload};
use self::replay::Replay;
use crate::artifacts::Artifacts;
use crate::broker::WorkloadNats;
use crate::config::{ConfigError, NodeConfig};
use crate::connection::ConnectionError;
use crate::events::Events;
use crate::identity::{Identity, IdentityError};
use crate::outbound::Outbound;
use crate::text;

/// Version a node reports.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Time that last messages have to leave when a workload or the node stops.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A running node. Dropping it ends it without ceremony; [`shutdown`](Self::shutdown) lets calls end first.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    _end: DropGuard,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine does not run a configured workload type.
    #[error("configuration key `workload_types`: this node cannot run `{workload_type}`, only {supported:?}")]
    WorkloadType {
        /// What is configured.
        workload_type: String,
        /// What there is.
        supported: &'static [&'static str],
    },
    /// The state folder cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The connection for host services failed.
    #[error("configuration key `host_services_config.nats`: {0}")]
    HostServices(#[source] ConnectionError),
    /// A control subject could not be subscribed.
    #[error("control subject {subject}: {reason}")]
    Subscribe {
        /// Which.
        subject: String,
        /// Why.
        reason: String,
    },
}

/// What all parts of a node use.
#[derive(Debug)]
struct Shared {
    identity: Identity,
    config: NodeConfig,
    engine: Arc<dyn Engine>,
    client: Client,
    /// For events and logs.
    outbound: Outbound,
    events: Events,
    /// For workloads that name no connection of their own.
    workload_nats: WorkloadNats,
    artifacts: Artifacts,
    registry: Registry,
    replay: Replay,
    tags: Mutex<BTreeMap<String, String>>,
    started: Instant,
    lame_duck: AtomicBool,
    /// Ends listeners and the heartbeat.
    end: CancellationToken,
    /// Listeners, the heartbeat, and requests in progress.
    tasks: TaskTracker,
}

impl Node {
    /// Starts a node. When this returns, the node answers on its control subjects.
    ///
    /// # Errors
    /// [`NodeError`]
    pub async fn start(config: NodeConfig, client: Client, engine: Arc<dyn Engine>) -> Result<Self, NodeError> {
        config.validate()?;
        let supported = engine.workload_types();
        if let Some(missing) = config.workload_types.iter().find(|t| !supported.contains(&t.as_str())) {
            return Err(NodeError::WorkloadType {
                workload_type: missing.clone(),
                supported,
            });
        }
        let identity = match &config.state_dir {
            Some(folder) => Identity::persistent(folder)?,
            None => Identity::ephemeral(),
        };
        let outbound = Outbound::new(client.clone());
        let own = &config.host_services_config.nats;
        let workload_nats = if own.is_empty() {
            WorkloadNats::new(outbound.clone())
        } else {
            WorkloadNats::connect(own, &client, "nex-hostservices")
                .await
                .map_err(NodeError::HostServices)?
        };
        let shared = Arc::new(Shared {
            events: Events::new(outbound.clone(), identity.id()),
            artifacts: Artifacts::new(
                client.clone(),
                config.node_limits.max_workload_bytes,
                config.artifact_cache_bytes,
            ),
            registry: Registry::new(config.node_limits, config.allow_duplicate_workloads),
            replay: Replay::default(),
            tags: Mutex::new(tags(&config, &*engine, identity.id())),
            started: Instant::now(),
            lame_duck: AtomicBool::new(false),
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
            identity,
            config,
            engine,
            client,
            outbound,
            workload_nats,
        });
        let node = Self {
            _end: shared.end.clone().drop_guard(),
            shared,
        };
        listener::listen(&node.shared).await?;
        node.shared.tasks.spawn(heartbeat(node.shared.clone()));
        node.shared.announce_start();
        Ok(node)
    }

    /// The node's ID: its public server key, `N…`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.shared.identity.id()
    }

    /// Public curve key (`X…`) to seal environments for.
    #[must_use]
    pub fn public_xkey(&self) -> &str {
        self.shared.identity.public_xkey()
    }

    /// Its tags, the built-in ones included.
    #[must_use]
    pub fn tags(&self) -> BTreeMap<String, String> {
        self.shared.tags.lock().clone()
    }

    /// Workloads it runs.
    #[must_use]
    pub fn running_workloads(&self) -> usize {
        self.shared.registry.len()
    }

    /// For whoever has events of the node to report, such as an agent pool.
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared.events.clone()
    }

    /// Takes no new workloads from now on; those it has keep running. There is no way back.
    pub fn enter_lame_duck(&self) {
        self.shared.enter_lame_duck();
    }

    /// Stops the node: no new requests, no new triggers; then waits for the calls in flight, at most for the configured
    /// grace, and tells the world. Returns whether all calls have been answered. A second call returns at once.
    pub async fn shutdown(&self) -> bool {
        let shared = &self.shared;
        if shared.end.is_cancelled() {
            return true;
        }
        shared.end.cancel();
        let workloads = shared.registry.close();
        let grace = Duration::from_millis(shared.config.shutdown_grace_ms);
        let stopping = workloads
            .into_iter()
            .map(|workload| shared.stop(workload, grace, "Node is shutting down"));
        let mut graceful = futures::future::join_all(stopping)
            .await
            .into_iter()
            .all(|answered| answered);

        // Among them are calls of workloads that were stopped just before.
        shared.tasks.close();
        if tokio::time::timeout(grace.max(LAST_WORDS), shared.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("requests were still in progress when the node stopped");
            graceful = false;
        }
        shared
            .events
            .node("node_stopped", &json!({ "id": self.id(), "graceful": graceful }));
        flush(&shared.workload_nats.outbound).await;
        flush(&shared.outbound).await;
        graceful
    }
}

impl Shared {
    fn uptime(&self) -> String {
        text::uptime(self.started.elapsed())
    }

    fn announce_start(&self) {
        let tags = self.tags.lock().clone();
        self.events.node(
            "node_started",
            &json!({ "version": VERSION, "id": self.identity.id(), "tags": tags }),
        );
        tracing::info!(node.id = self.identity.id(), version = VERSION, "node awaits commands");
    }

    fn enter_lame_duck(&self) {
        if !self.lame_duck.swap(true, Ordering::AcqRel) {
            self.tags.lock().insert("nex.lameduck".to_owned(), "true".to_owned());
            self.events.node(
                "node_entered_lameduck",
                &json!({ "version": VERSION, "id": self.identity.id() }),
            );
        }
    }

    fn is_lame_duck(&self) -> bool {
        self.lame_duck.load(Ordering::Acquire)
    }

    /// Ends a workload that is no longer registered. Returns whether its calls have been answered.
    async fn stop(&self, workload: Arc<Workload>, grace: Duration, reason: &str) -> bool {
        workload.triggers.drain().await;
        self.finish(workload, grace, reason).await
    }

    /// Lets the calls of a drained workload end, and the workload with them.
    async fn finish(&self, workload: Arc<Workload>, grace: Duration, reason: &str) -> bool {
        let answered = workload.triggers.answered(grace).await;
        if !answered {
            tracing::warn!(
                workload.id,
                workload.name,
                "calls were still in flight when the workload ended"
            );
        }
        flush(&workload.outbound).await;
        workload.reporter.emit(
            "workload_undeployed",
            &json!({ "workload_id": workload.id, "workload_name": workload.name, "reason": reason }),
        );
        answered
    }
}

/// Lets what has been sent leave the process, unless NATS is away.
async fn flush(outbound: &Outbound) {
    if tokio::time::timeout(LAST_WORDS, outbound.flush()).await.is_err() {
        tracing::warn!("NATS is away, last messages may be lost");
    }
}

async fn heartbeat(shared: Arc<Shared>) {
    let period = Duration::from_millis(shared.config.events.heartbeat_interval_ms.get().into());
    while shared
        .end
        .run_until_cancelled(tokio::time::sleep(period))
        .await
        .is_some()
    {
        let tags = shared.tags.lock().clone();
        shared.events.node(
            "heartbeat",
            &json!({
                "node_id": shared.identity.id(),
                "nexus": shared.config.nexus,
                "version": VERSION,
                "uptime": shared.uptime(),
                "running_machines": shared.registry.len(),
                "tags": tags,
                "allow_duplicate_workloads": shared.config.allow_duplicate_workloads,
            }),
        );
    }
}

/// The configured tags and the built-in ones.
fn tags(config: &NodeConfig, engine: &dyn Engine, node_id: &str) -> BTreeMap<String, String> {
    let mut tags = config.tags.clone();
    tags.entry("node_name".to_owned())
        .or_insert_with(|| made_up_name(node_id));
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    tags.insert("nex.os".to_owned(), discovery::go_os().to_owned());
    tags.insert("nex.arch".to_owned(), discovery::go_arch().to_owned());
    tags.insert("nex.cpucount".to_owned(), cpus.to_string());
    tags.insert("nex.driver".to_owned(), engine.driver().to_owned());
    if !engine.is_sandboxed() {
        tags.insert("nex.unsafe".to_owned(), "true".to_owned());
    }
    tags
}

/// A name people can tell apart, the same for the same node.
fn made_up_name(node_id: &str) -> String {
    const FIRST: [&str; 16] = [
        "amber", "bold", "calm", "deft", "eager", "fond", "glad", "hardy", "jolly", "keen", "lucid", "merry", "noble",
        "quick", "sunny", "witty",
    ];
    const SECOND: [&str; 16] = [
        "badger", "curlew", "dormouse", "ermine", "finch", "gannet", "heron", "ibis", "jackdaw", "kestrel", "lynx",
        "marten", "newt", "otter", "plover", "wren",
    ];
    let pick = |words: &[&'static str; 16], salt: usize| {
        let sum = node_id
            .bytes()
            .skip(1)
            .fold(salt, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        words[sum % words.len()]
    };
    format!("{}-{}", pick(&FIRST, 0), pick(&SECOND, 7))
}
