//! Client of the control interface: asks nodes who they are, and to run and stop workloads.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, Subject};
use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::messages::{
    AuctionRequest, AuctionResponse, DeployRequest, DeployResponse, InfoResponse, LameDuckResponse, PingResponse,
    StopRequest, StopResponse, WorkloadPingResponse,
};
use super::subjects;

/// Speaks to all nodes reachable over one NATS connection, about one namespace. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlClient {
    client: Client,
    namespace: String,
    timeout: Duration,
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The node answered with an error; its text.
    #[error("{0}")]
    Refused(String),
    /// Nobody listens on the subject: no node with that ID is running.
    #[error("no node listens on {0}: is the node running, and its ID right?")]
    NoResponders(String),
    /// The node did not answer in time.
    #[error("no answer on {subject} within {timeout:?}")]
    Timeout {
        /// Subject asked on.
        subject: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The answer is not what the control interface promises.
    #[error("the answer on {subject} makes no sense: {reason}")]
    Malformed {
        /// Subject asked on.
        subject: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A namespace, node ID or workload name that cannot be part of a subject.
    #[error("{what} `{value}` cannot be part of a subject")]
    InvalidToken {
        /// What the value is.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// The connection to NATS failed.
    #[error("NATS: {0}")]
    Nats(String),
}

impl ControlClient {
    /// A client for one namespace. `timeout` bounds each request, and is the time that gathers last.
    pub fn new(client: Client, namespace: impl Into<String>, timeout: Duration) -> Self {
        Self {
            client,
            namespace: namespace.into(),
            timeout,
        }
    }

    /// The same client with another timeout.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// Namespace of its requests.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The connection it uses.
    #[must_use]
    pub fn nats(&self) -> &Client {
        &self.client
    }

    /// All nodes. Gathers for the whole timeout, or until `expected` have answered.
    ///
    /// # Errors
    /// [`ControlError::Nats`]; nobody answering is an empty list.
    pub async fn ping(&self, expected: Option<usize>) -> Result<Vec<PingResponse>, ControlError> {
        self.gather(subjects::PING.to_owned(), Vec::new(), expected).await
    }

    /// One node.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn ping_node(&self, node_id: &str) -> Result<PingResponse, ControlError> {
        self.request(subjects::ping(token("node ID", node_id)?), Vec::new())
            .await
    }

    /// Nodes that fit. Gathers for the whole timeout, or until `expected` have answered.
    ///
    /// # Errors
    /// [`ControlError::Nats`]; nobody answering is an empty list.
    pub async fn auction(
        &self,
        request: &AuctionRequest,
        expected: Option<usize>,
    ) -> Result<Vec<AuctionResponse>, ControlError> {
        self.gather(subjects::AUCTION.to_owned(), encode(request)?, expected)
            .await
    }

    /// Nodes that run a workload of this namespace, by ID or name, or any workload of it. Gathers for the whole
    /// timeout, or until `expected` have answered.
    ///
    /// # Errors
    /// [`ControlError::Nats`]; nobody answering is an empty list.
    pub async fn ping_workloads(
        &self,
        workload: Option<&str>,
        expected: Option<usize>,
    ) -> Result<Vec<WorkloadPingResponse>, ControlError> {
        let workload = workload.map(|w| token("workload", w)).transpose()?;
        let subject = subjects::workload_ping(self.namespace_token()?, workload);
        self.gather(subject, Vec::new(), expected).await
    }

    /// One node and its workloads of this namespace.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn info(&self, node_id: &str) -> Result<InfoResponse, ControlError> {
        let subject = subjects::info(self.namespace_token()?, token("node ID", node_id)?);
        self.request(subject, Vec::new()).await
    }

    /// Asks a node to run a workload.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with the node's reason; else [`ControlError`].
    pub async fn deploy(&self, node_id: &str, request: &DeployRequest) -> Result<DeployResponse, ControlError> {
        let subject = subjects::deploy(self.namespace_token()?, token("node ID", node_id)?);
        self.request(subject, encode(request)?).await
    }

    /// Asks a node to stop a workload.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with the node's reason; else [`ControlError`].
    pub async fn stop(&self, node_id: &str, request: &StopRequest) -> Result<StopResponse, ControlError> {
        let subject = subjects::stop(self.namespace_token()?, token("node ID", node_id)?);
        self.request(subject, encode(request)?).await
    }

    /// Asks a node to take no new workloads.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn lameduck(&self, node_id: &str) -> Result<LameDuckResponse, ControlError> {
        self.request(subjects::lameduck(token("node ID", node_id)?), Vec::new())
            .await
    }

    fn namespace_token(&self) -> Result<&str, ControlError> {
        token("namespace", &self.namespace)
    }

    async fn request<T: DeserializeOwned>(&self, subject: String, payload: Vec<u8>) -> Result<T, ControlError> {
        let request = async_nats::Request::new()
            .payload(payload.into())
            .timeout(Some(self.timeout));
        match self.client.send_request(subject.clone(), request).await {
            Ok(message) => open(&subject, &message.payload),
            Err(error) => Err(match error.kind() {
                RequestErrorKind::NoResponders => ControlError::NoResponders(subject),
                RequestErrorKind::TimedOut => ControlError::Timeout {
                    subject,
                    timeout: self.timeout,
                },
                _ => ControlError::Nats(error.to_string()),
            }),
        }
    }

    async fn gather<T: DeserializeOwned>(
        &self,
        subject: String,
        payload: Vec<u8>,
        expected: Option<usize>,
    ) -> Result<Vec<T>, ControlError> {
        let inbox = Subject::from(self.client.new_inbox());
        let mut replies = self.client.subscribe(inbox.clone()).await.map_err(nats)?;
        self.client
            .publish_with_reply(subject.clone(), inbox, payload.into())
            .await
            .map_err(nats)?;
        self.client.flush().await.map_err(nats)?;

        let deadline = Instant::now() + self.timeout;
        let mut gathered = Vec::new();
        while expected.is_none_or(|expected| gathered.len() < expected) {
            let Ok(Some(message)) = timeout_at(deadline, replies.next()).await else {
                break;
            };
            // The server's word that nobody listens; a network of several servers may say it and still bring answers.
            if message.status.is_some() {
                continue;
            }
            match open(&subject, &message.payload) {
                Ok(response) => gathered.push(response),
                Err(error) => tracing::warn!(%subject, %error, "ignored an answer"),
            }
        }
        Ok(gathered)
    }
}

fn nats(error: impl std::error::Error) -> ControlError {
    ControlError::Nats(error.to_string())
}

/// Refuses what would change the meaning of the subject it becomes part of.
fn token<'a>(what: &'static str, value: &'a str) -> Result<&'a str, ControlError> {
    if subjects::is_valid_name(value) {
        Ok(value)
    } else {
        Err(ControlError::InvalidToken {
            what,
            value: value.to_owned(),
        })
    }
}

fn encode(request: &impl Serialize) -> Result<Vec<u8>, ControlError> {
    serde_json::to_vec(request).map_err(nats)
}

/// Takes a response out of its envelope.
fn open<T: DeserializeOwned>(subject: &str, payload: &[u8]) -> Result<T, ControlError> {
    #[derive(serde::Deserialize)]
    struct RawEnvelope {
        #[serde(default)]
        data: Value,
        #[serde(default)]
        error: Value,
    }
    let malformed = |error: serde_json::Error| ControlError::Malformed {
        subject: subject.to_owned(),
        reason: error.to_string(),
    };
    let envelope: RawEnvelope = serde_json::from_slice(payload).map_err(malformed)?;
    match envelope.error {
        Value::Null => serde_json::from_value(envelope.data).map_err(malformed),
        Value::String(text) => Err(ControlError::Refused(text)),
        other => Err(ControlError::Refused(other.to_string())),
    }
}
