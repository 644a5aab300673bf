//! One version of a workload takes the place of another: the new one is started first, and the older ones are stopped
//! once it runs, so that no call is lost and a version that does not start leaves the older one running.

use std::time::Duration;

use nex_runtime::engine::LoadError;
use tokio::task::JoinHandle;

use crate::cli::control::{Session, while_doing};
use crate::cli::deploy::{self, Keys, Target, Workload, not_accepted};
use crate::cli::failure::Failure;
use crate::control::ControlError;
use crate::control::messages::{AuctionResponse, DeployResponse};

/// How long nodes have to say that they run the older version.
const PROBE_WINDOW: Duration = Duration::from_millis(750);

/// What a node says when it refuses a workload for what runs there already, and not for what the workload is. The wire
/// has no error codes, but the texts are the same since the original.
const NO_ROOM: [&str; 4] = [
    "at maximum workload limit",
    "exceed node total limitations",
    "reject duplicates",
    "no available agent client in pool",
];

/// A running workload that is to be replaced.
#[derive(Debug)]
pub(super) struct Older {
    node_id: String,
    workload_id: String,
}

/// A search for older versions that is under way.
pub(super) type Search = JoinHandle<Result<Vec<Older>, ControlError>>;

impl Older {
    /// Asks all nodes for workloads of this name.
    pub(super) fn look_for(session: &Session, name: &str) -> Search {
        let control = session.control.with_timeout(PROBE_WINDOW);
        let name = name.to_owned();
        tokio::spawn(async move {
            let nodes = control.ping_workloads(Some(&name), None).await?;
            let running = nodes.into_iter().flat_map(|node| {
                let older = move |workload_id| Self {
                    node_id: node.node_id.clone(),
                    workload_id,
                };
                node.running_machines
                    .into_iter()
                    .map(move |workload| (workload.name, older(workload.id)))
            });
            // Nodes match names without regard to case, and IDs as well.
            Ok(running
                .filter(|(other, _)| *other == name)
                .map(|(_, older)| older)
                .collect())
        })
    }
}

/// The workloads that were replaced.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    /// IDs of those that are stopped.
    pub(super) ids: Vec<String>,
    /// Why others still run.
    pub(super) failure: Option<Failure>,
}

/// A new version on its way to a node.
#[derive(Debug)]
pub(super) struct Rollout<'a> {
    pub(super) session: &'a Session,
    pub(super) workload: &'a Workload<'a>,
    pub(super) keys: &'a Keys,
}

impl Rollout<'_> {
    /// Deploys to the first of the candidates that has room, and stops what was found to be older.
    ///
    /// If there is no room, an older version has to go first. It cannot step in for a new one that does not start then,
    /// so that `check` has to pass before.
    pub(super) async fn run<'c, C>(
        &self,
        candidates: &'c [AuctionResponse],
        older: Option<Search>,
        check: impl FnOnce() -> C,
    ) -> Result<(&'c AuctionResponse, DeployResponse, Replaced), Failure>
    where
        C: Future<Output = Result<(), LoadError>>,
    {
        let mut refusal = ControlError::Refused("there is no node to ask".to_owned());
        let mut full = Vec::new();
        for node in candidates {
            match self.deploy(node).await {
                Ok(response) => {
                    let replaced = self.stop(found(older).await, &response.id).await;
                    return Ok((node, response, replaced));
                }
                Err(ControlError::Refused(text)) if NO_ROOM.iter().any(|reason| text.contains(reason)) => {
                    tracing::info!(node = node.node_id, refusal = text, "trying the next node");
                    refusal = ControlError::Refused(text);
                    full.push(node);
                }
                Err(error) => return Err(not_accepted(error)),
            }
        }

        let older = found(older).await?;
        let runs_older = |node: &&AuctionResponse| older.iter().any(|older| older.node_id == node.node_id);
        let Some(node) = full.into_iter().find(runs_older) else {
            return Err(not_accepted(refusal));
        };
        check()
            .await
            .map_err(|error| not_accepted(ControlError::Refused(error.to_string())))?;
        tracing::info!(node = node.node_id, "the older version has to make room");
        let (here, elsewhere) = older.into_iter().partition(|older| older.node_id == node.node_id);
        let mut replaced = self.stop(Ok(here), "").await;
        if let Some(failure) = replaced.failure {
            return Err(failure);
        }
        let response = self.deploy(node).await.map_err(not_accepted)?;
        let others = self.stop(Ok(elsewhere), &response.id).await;
        replaced.ids.extend(others.ids);
        replaced.failure = others.failure;
        Ok((node, response, replaced))
    }

    async fn deploy(&self, node: &AuctionResponse) -> Result<DeployResponse, ControlError> {
        let target = Target {
            node_id: &node.node_id,
            xkey: &node.target_xkey,
        };
        deploy::deploy(self.session, &target, self.workload, self.keys).await
    }

    /// Stops workloads, except the new one. All are tried, even if one cannot be stopped; one that is gone already is no
    /// failure.
    async fn stop(&self, older: Result<Vec<Older>, Failure>, except: &str) -> Replaced {
        let mut replaced = Replaced::default();
        let older = older.unwrap_or_else(|failure| {
            replaced.failure = Some(failure);
            Vec::new()
        });
        for Older { node_id, workload_id } in older {
            if workload_id == except {
                continue;
            }
            match deploy::stop(self.session, &node_id, &workload_id, &self.keys.issuer).await {
                Ok(_) => replaced.ids.push(workload_id),
                Err(ControlError::Refused(text)) if text.contains("No such workload") => {}
                Err(error) => {
                    let what = format!("the older version {workload_id} still runs on node {node_id}");
                    replaced.failure = Some(while_doing(&what)(error));
                }
            }
        }
        replaced
    }
}

async fn found(search: Option<Search>) -> Result<Vec<Older>, Failure> {
    match search {
        None => Ok(Vec::new()),
        Some(search) => Ok(search.await.map_err(Failure::failed)??),
    }
}
