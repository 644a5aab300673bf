//! A running node as a stage: functions are deployed over the control interface as those of any developer, and called
//! over NATS.
//!
//! What a run leaves on the node and in the object store carries its name, and [`OnNode::clean_up`] removes all of it
//! however the run has ended.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::object_store::{self, ObjectStore};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::super::args::{Global, LimitArgs, WorkloadArgs};
use super::super::control::Session;
use super::super::deploy::{self, Artifact, Keys, Target, Workload, not_accepted};
use super::super::failure::Failure;
use super::super::{devrun, keys};
use super::machines::{self, Machines, Start};
use super::stage::{HIBERNATION_MARGIN, Stage, Treatment};
use crate::bench::nats::NatsTarget;
use crate::claims::hex_sha256;
use crate::control::messages::{InfoResponse, PingResponse};
use crate::control::{ControlError, Location};
use crate::limits::{LimitKey, LimitSet};

/// Workloads stopped at a time.
const STOPS: usize = 8;

/// A node, and what a run has there.
pub(super) struct OnNode {
    session: Session,
    /// The load generator's own, so that it shares its connection with nobody.
    caller: Client,
    node: PingResponse,
    keys: Arc<Keys>,
    /// The name of all that the run leaves anywhere.
    run: String,
    store: ObjectStore,
    /// Idle time after which functions hibernate there that ask for no other; `None` if the node does not tell.
    hibernate_after: Option<Duration>,
    deployed: AtomicU64,
    /// Deploy requests on their way: one that nobody waits for any more may still be accepted.
    requests: TaskTracker,
}

impl fmt::Debug for OnNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnNode")
            .field("node", &self.node.node_id)
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

/// A function whose artefact is in the object store.
#[derive(Debug)]
pub(super) struct Prepared {
    name: String,
    subject: String,
    artifact: Artifact,
    treatment: Treatment,
}

/// A function on the node.
#[derive(Debug)]
pub(super) struct Deployed {
    id: String,
    subject: String,
}

impl OnNode {
    /// Connects, finds the node, and makes an object store for the run.
    pub(super) async fn open(global: &Global, node: Option<&str>) -> Result<Self, Failure> {
        let keys = Arc::new(Keys {
            issuer: keys::own_issuer()?,
            xkey: keys::own_xkey()?,
        });
        let session = Session::open(global).await?;
        let caller = session.connection.connect().await?;
        let node = match node {
            Some(id) => session.control.ping_node(id).await?,
            None => devrun::auction(&session, "v8", LimitSet::default())
                .await?
                .swap_remove(0),
        };
        let info = session.control.info(&node.node_id).await?;
        let hibernate_after = info.limits.get(LimitKey::HibernateAfter.key()).copied();
        let run = format!("nexbench-{}", &Uuid::new_v4().simple().to_string()[..8]);
        let store = session
            .connection
            .jetstream(session.nats.clone())
            .create_object_store(object_store::Config {
                bucket: run.clone(),
                description: Some("Artefacts of `nex bench`; may be deleted if it no longer runs".to_owned()),
                num_replicas: 1,
                ..object_store::Config::default()
            })
            .await
            .map_err(|error| Failure::failed(format_args!("cannot make object store {run}: {error}")))?;
        Ok(Self {
            session,
            caller,
            node,
            keys,
            run,
            store,
            hibernate_after: hibernate_after.map(Duration::from_millis),
            deployed: AtomicU64::new(0),
            requests: TaskTracker::new(),
        })
    }

    /// The node.
    pub(super) fn node(&self) -> &PingResponse {
        &self.node
    }

    /// Its machines: those of the namespace, and those that wait for one.
    pub(super) async fn machines(&self) -> Result<Machines, Failure> {
        let starts = self.info().await?.agents.into_iter().map(|agent| Start {
            restored: agent.restored,
            elapsed: Duration::from_micros(agent.start_us),
            host_bytes: agent.host_bytes,
        });
        Ok(Machines::of(starts))
    }

    /// What runs its functions, if it says so.
    pub(super) fn driver(&self) -> Option<&str> {
        self.node.tags.get("nex.driver").map(String::as_str)
    }

    /// The name of all that the run leaves anywhere.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// Version of the NATS server.
    pub(super) fn server_version(&self) -> String {
        self.session.nats.server_info().version
    }

    /// Largest message that the NATS server takes, in bytes.
    pub(super) fn max_payload(&self) -> usize {
        self.session.nats.server_info().max_payload
    }

    /// Idle time after which functions hibernate that ask for no other.
    pub(super) fn hibernate_after(&self) -> Option<Duration> {
        self.hibernate_after
    }

    /// Removes all that the run has left. What cannot be removed is named.
    pub(super) async fn clean_up(&self) -> Result<(), Failure> {
        self.requests.close();
        self.requests.wait().await;
        let functions = self.stop_all().await;
        let artifacts = self
            .session
            .connection
            .jetstream(self.session.nats.clone())
            .delete_object_store(&self.run)
            .await
            .map_err(|error| Failure::failed(format_args!("object store {} is left: {error}", self.run)));
        functions.and(artifacts.map(drop))
    }

    async fn stop_all(&self) -> Result<(), Failure> {
        let left = |error| Failure::from(error).map(|error| format!("functions {}-* are left: {error}", self.run));
        let machines = self.info().await.map_err(left)?.machines;
        let prefix = format!("{}-", self.run);
        let ours = machines
            .into_iter()
            .filter(|machine| machine.workload.name.starts_with(&prefix))
            .map(|machine| machine.id)
            .collect();
        self.stop(ours).await
    }

    /// Stops workloads. All are tried, even if one cannot be stopped.
    async fn stop(&self, ids: Vec<String>) -> Result<(), Failure> {
        let stops = stream::iter(ids).map(|id| async move {
            match deploy::stop(&self.session, &self.node.node_id, &id, &self.keys.issuer).await {
                Ok(_) => Ok(()),
                Err(ControlError::Refused(text)) if text.contains("No such workload") => Ok(()),
                Err(error) => {
                    Err(Failure::from(error).map(|error| format!("function {id} could not be stopped: {error}")))
                }
            }
        });
        stops
            .buffer_unordered(STOPS)
            .fold(Ok(()), |all, one| async { all.and(one) })
            .await
    }

    async fn info(&self) -> Result<InfoResponse, ControlError> {
        self.session.control.info(&self.node.node_id).await
    }
}

impl Stage for OnNode {
    type Prepared = Prepared;
    type Function = Deployed;
    type Target = NatsTarget;

    async fn prepare(&self, source: Bytes, treatment: Treatment) -> Result<Prepared, Failure> {
        let number = self.deployed.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", self.run);
        let location = Location::new(&self.run, &name).map_err(Failure::failed)?;
        self.store
            .put(name.as_str(), &mut source.as_ref())
            .await
            .map_err(|error| Failure::failed(format_args!("cannot upload to {location}: {error}")))?;
        Ok(Prepared {
            subject: format!("{}.{number}", self.run),
            name,
            artifact: Artifact {
                location,
                hash: hex_sha256(&source),
            },
            treatment,
        })
    }

    async fn start(&self, prepared: Prepared) -> Result<Deployed, Failure> {
        let Prepared {
            name,
            subject,
            artifact,
            treatment,
        } = prepared;
        let mut limits = LimitSet::default();
        if let Some(after) = treatment.hibernate_after {
            let milliseconds = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            limits
                .insert(LimitKey::HibernateAfter, milliseconds)
                .map_err(Failure::failed)?;
        }
        let args = WorkloadArgs {
            environment: Vec::new(),
            trigger_subjects: vec![subject.clone()],
            argv: None,
            essential: false,
            description: None,
            limits: LimitArgs::of(limits),
        };
        let (session, keys) = (self.session.clone(), Arc::clone(&self.keys));
        let (node_id, xkey) = (self.node.node_id.clone(), self.node.target_xkey.clone());
        let request = self.requests.spawn(async move {
            let workload = Workload {
                name: &name,
                workload_type: "v8",
                artifact: &artifact,
                description: "Measured by `nex bench`",
                args: &args,
            };
            let target = Target {
                node_id: &node_id,
                xkey: &xkey,
            };
            deploy::deploy(&session, &target, &workload, &keys).await
        });
        let response = request.await.map_err(Failure::failed)?.map_err(not_accepted)?;
        Ok(Deployed {
            id: response.id,
            subject,
        })
    }

    async fn target(&self, functions: &[Deployed]) -> Result<NatsTarget, Failure> {
        let subjects = functions.iter().map(|function| function.subject.clone());
        NatsTarget::new(self.caller.clone(), subjects)
            .await
            .map_err(Failure::unreachable)
    }

    async fn asleep(&self, _functions: &[Deployed], after: Duration) -> Result<(), Failure> {
        tokio::time::sleep(after + HIBERNATION_MARGIN).await;
        Ok(())
    }

    fn awake(&self, _functions: &[Deployed]) -> Option<usize> {
        None
    }

    async fn memory(&self) -> Result<u64, String> {
        let info = self.info().await.map_err(|error| error.to_string())?;
        let bytes = info.agents.iter().map(|agent| agent.host_bytes);
        machines::memory(bytes).ok_or_else(|| "the node tells of no machine, or not what it takes".to_owned())
    }

    async fn remove(&self, functions: Vec<Deployed>) -> Result<(), Failure> {
        self.stop(functions.into_iter().map(|function| function.id).collect())
            .await
    }
}
