//! Deploy requests: everything is checked before anything is run, in the order of the original, whose clients know its
//! words. What the original did not check, stands beside it: fields, names, subjects, the artefact's hash, replay.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use nex_host_services::Policy;
use nex_runtime::engine::{FunctionSpec, Limits, LoadError};
use serde_json::json;
use uuid::Uuid;

use super::Shared;
use super::claims::{self, DeployClaims, Refused};
use super::registry::{LimitError, Workload};
use super::replay::Used;
use crate::artifacts::{Artifact, ArtifactError};
use crate::broker::WorkloadNats;
use crate::claims::now;
use crate::connection::ConnectionError;
use crate::control::FieldError;
use crate::control::messages::{DeployRequest, DeployResponse, LimitValues, NatsConnection};
use crate::control::subjects::{self, ALWAYS_DENIED, MAX_TRIGGER_SUBJECTS};
use crate::environment::{self, Environment, EnvironmentError};
use crate::limits::{LimitError as WorkloadLimitError, LimitSet};
use crate::report::{Reporter, WorkloadName};
use crate::triggers::{Target, Triggers, queue_group};

/// Workload types that run when a message comes; others may not have trigger subjects.
const TRIGGERED_TYPES: [&str; 2] = ["v8", "wasm"];

/// Why a deploy request is refused; the text is the `error` of the envelope.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeployError {
    #[error("Invalid subject for workload deployment: {0}")]
    Namespace(String),
    #[error("Node is in lame duck mode. Workload deploy request denied")]
    LameDuck,
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error("Unable to deserialize deploy request: {0}")]
    Malformed(#[from] FieldError),
    #[error("Invalid deploy request: it is meant for node {meant}, this is {this}")]
    OtherNode { meant: String, this: String },
    #[error("Unsupported workload type on this node: {0}")]
    Type(String),
    #[error("Unsupported workload type for trigger subject registration: {0}")]
    NotTriggered(String),
    #[error("Invalid deploy request: {0}")]
    Invalid(String),
    #[error("Invalid deploy request: limit {0}")]
    WorkloadLimit(#[from] WorkloadLimitError),
    #[error("The trigger subject {0} overlaps with subject(s) in this node's deny list")]
    DeniedSubject(String),
    #[error("Failed to decrypt environment for deploy request: {0}")]
    Environment(#[from] EnvironmentError),
    #[error("Invalid deploy request: {0}")]
    Claims(#[from] Refused),
    #[error("invalid workload issuer: {0}")]
    Issuer(String),
    #[error("Workload file size would exceed node limitations")]
    Size,
    #[error("Invalid deploy request: {0}")]
    Hash(ArtifactError),
    #[error("Failed to cache workload bytes: {0}")]
    Download(ArtifactError),
    #[error("Failed to deploy workload: {0}")]
    Connect(#[from] ConnectionError),
    #[error("Failed to deploy workload: {0}")]
    Load(#[from] LoadError),
    #[error("Failed to deploy workload: trigger subjects could not be subscribed: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
}

impl From<ArtifactError> for DeployError {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::TooLarge { .. } => Self::Size,
            ArtifactError::Hash { .. } => Self::Hash(error),
            error => Self::Download(error),
        }
    }
}

/// A request that has passed all checks that need no network.
#[derive(Debug)]
struct Accepted<'a> {
    request: DeployRequest,
    limits: Limits,
    vars: Environment,
    claims: DeployClaims,
    used: Used<'a>,
}

impl Shared {
    pub(super) async fn deploy(&self, namespace: &str, payload: &[u8]) -> Result<DeployResponse, DeployError> {
        check_namespace(namespace)?;
        if self.is_lame_duck() {
            return Err(DeployError::LameDuck);
        }
        let slot = self.registry.slot()?;
        let accepted = self.check(payload)?;

        let claims = &accepted.claims;
        let location = &accepted.request.location;
        let js_domain = accepted.request.jsdomain.as_deref();
        let artifact = self.artifacts.fetch(location, js_domain, claims.hash).await?;
        slot.book(
            namespace,
            &artifact.hash,
            u64::try_from(artifact.bytes.len()).unwrap_or(u64::MAX),
        )?;

        let issuer = claims.claims.issuer.clone();
        let total_bytes = artifact.bytes.len();
        let asked_for_limits = !accepted.request.limits.is_empty();
        let (workload, used) = self.run(namespace, accepted, artifact).await?;
        // A node that is shutting down has no room any more; dropping the workload ends it.
        slot.move_in(workload.clone())?;
        used.keep();

        tracing::info!(
            workload.id,
            workload.namespace,
            workload.name,
            issuer,
            "workload deployed"
        );
        workload.reporter.emit(
            "workload_deployed",
            &json!({
                "workload_id": workload.id,
                "workload_name": workload.name,
                "essential": false,
                "total_bytes": total_bytes,
            }),
        );
        Ok(DeployResponse {
            id: workload.id.clone(),
            issuer,
            name: workload.name.clone(),
            started: true,
            limits: if asked_for_limits {
                LimitSet::complete(&workload.limits).values()
            } else {
                LimitValues::default()
            },
        })
    }

    fn check(&self, payload: &[u8]) -> Result<Accepted<'_>, DeployError> {
        let mut request = DeployRequest::parse(payload)?;
        let this = self.identity.id();
        if let Some(meant) = request.target_node.as_ref().filter(|meant| *meant != this) {
            return Err(DeployError::OtherNode {
                meant: meant.clone(),
                this: this.to_owned(),
            });
        }
        if !self.config.workload_types.contains(&request.workload_type) {
            return Err(DeployError::Type(request.workload_type));
        }
        self.check_triggers(&mut request)?;
        if request.essential {
            return Err(DeployError::Invalid(format!(
                "essential flag is not supported for workload type {}",
                request.workload_type
            )));
        }
        if let Some(domain) = request
            .jsdomain
            .as_ref()
            .filter(|domain| !subjects::is_valid_name(domain))
        {
            return Err(DeployError::Invalid(format!("`{domain}` is not a JetStream domain")));
        }
        let limits = self.config.grant(&request.limits)?;
        let vars = environment::open(&request.environment, self.identity.xkey(), &request.sender_public_key)?;

        let now = now();
        let max_age = self.config.claims_max_age_s;
        let claims = claims::check_deploy(&request, max_age, now)?;
        let issuer = &claims.claims.issuer;
        let welcome = &self.config.valid_issuers;
        if !welcome.is_empty() && !welcome.contains(issuer) {
            return Err(DeployError::Issuer(issuer.clone()));
        }
        let valid_until = claims::valid_until(&claims.claims, max_age);
        let used = self
            .replay
            .check_in(&claims.claims, valid_until, now)
            .ok_or_else(|| Refused::Replayed(claims.claims.id.clone()))?;
        Ok(Accepted {
            request,
            limits,
            vars,
            claims,
            used,
        })
    }

    /// Checks trigger subjects, and leaves out those that are there twice.
    fn check_triggers(&self, request: &mut DeployRequest) -> Result<(), DeployError> {
        let workload_type = &request.workload_type;
        let triggers = &mut request.trigger_subjects;
        if !TRIGGERED_TYPES.contains(&workload_type.as_str()) {
            if !triggers.is_empty() {
                return Err(DeployError::NotTriggered(workload_type.clone()));
            }
            return Ok(());
        }
        if triggers.is_empty() {
            return Err(DeployError::Invalid(format!(
                "at least one trigger subject is required for workload type {workload_type}"
            )));
        }
        if triggers.len() > MAX_TRIGGER_SUBJECTS {
            return Err(DeployError::Invalid(format!(
                "{} trigger subjects, at most {MAX_TRIGGER_SUBJECTS} are possible",
                triggers.len()
            )));
        }
        for subject in triggers.iter() {
            if let Err(reason) = subjects::check_trigger_subject(subject) {
                return Err(DeployError::Invalid(format!(
                    "trigger subject `{}` {reason}",
                    subject.escape_debug()
                )));
            }
            let configured = self.config.deny_trigger_subjects.iter().map(String::as_str);
            if ALWAYS_DENIED
                .into_iter()
                .chain(configured)
                .any(|denied| subjects::overlap(subject, denied))
            {
                return Err(DeployError::DeniedSubject(subject.clone()));
            }
        }
        let mut seen = BTreeSet::new();
        triggers.retain(|subject| seen.insert(subject.clone()));
        Ok(())
    }

    /// Loads the function and subscribes its triggers. When this returns, it takes calls.
    async fn run<'a>(
        &self,
        namespace: &str,
        accepted: Accepted<'a>,
        artifact: Artifact,
    ) -> Result<(Arc<Workload>, Used<'a>), DeployError> {
        let Accepted {
            request,
            limits,
            vars,
            claims,
            used,
        } = accepted;
        let names = WorkloadName {
            id: Uuid::new_v4().to_string(),
            namespace: namespace.to_owned(),
            name: claims.name.clone(),
        };
        let host_nats = self
            .connection(request.host_services_config.as_ref(), &names.name)
            .await?;
        let trigger_nats = match &request.trigger_connection {
            Some(settings) => self.connection(Some(settings), &names.name).await?,
            None => host_nats.clone(),
        };
        let limits = trigger_nats.outbound.within_server(limits);
        let reporter = Arc::new(Reporter::new(
            names.clone(),
            self.identity.id(),
            self.events.clone(),
            self.outbound.clone(),
            self.config.events.function_exec_succeeded,
        ));
        let spec = FunctionSpec {
            id: names.id.clone(),
            namespace: names.namespace.clone(),
            name: names.name.clone(),
            workload_type: request.workload_type.clone(),
            source: artifact.bytes,
            vars,
            limits: limits.clone(),
        };
        let services = self.config.host_services_config.services.clone();
        let host = host_nats.host(Policy::new(namespace, &names.name, services), &reporter);
        let function = self.engine.load(spec, host).await?;

        let target = Arc::new(Target {
            function: function.clone(),
            outbound: trigger_nats.outbound.clone(),
            reporter: reporter.clone(),
        });
        let group = queue_group(namespace, &names.name);
        let triggers = Triggers::subscribe(target, &group, &request.trigger_subjects).await?;
        let workload = Workload {
            id: names.id,
            namespace: names.namespace,
            name: names.name,
            workload_type: request.workload_type,
            description: request.description,
            hash: artifact.hash,
            limits,
            claims: claims.claims,
            started: Instant::now(),
            reporter,
            triggers,
            outbound: trigger_nats.outbound,
            host_outbound: host_nats.outbound,
            function,
        };
        Ok((Arc::new(workload), used))
    }

    async fn connection(
        &self,
        settings: Option<&NatsConnection>,
        workload_name: &str,
    ) -> Result<WorkloadNats, ConnectionError> {
        match settings {
            None => Ok(self.workload_nats.clone()),
            Some(settings) => {
                let name = format!("nex-hostservices-{workload_name}");
                WorkloadNats::connect(settings, &self.client, &name).await
            }
        }
    }
}

fn check_namespace(namespace: &str) -> Result<(), DeployError> {
    if !subjects::is_valid_name(namespace) {
        return Err(DeployError::Namespace(format!(
            "`{namespace}` is not a namespace, expected up to 128 of [a-zA-Z0-9_-]"
        )));
    }
    if namespace == subjects::SYSTEM_NAMESPACE {
        return Err(DeployError::Namespace(format!(
            "namespace `{namespace}` is the node's own"
        )));
    }
    Ok(())
}
