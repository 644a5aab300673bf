//! What `run` and `devrun` have in common: artefacts in object stores, and the signed request to run one.

use std::error::Error as _;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::object_store::{self, InfoErrorKind, ObjectStore};
use nkeys::{KeyPair, XKey};
use serde::Serialize;
use tokio::io::AsyncRead;
use uuid::Uuid;

use super::args::{Output, WorkloadArgs};
use super::control::Session;
use super::failure::Failure;
use super::output;
use crate::claims::{Claims, ClaimsError, now, parse_sha256};
use crate::control::messages::{DeployRequest, DeployResponse, StopRequest, StopResponse};
use crate::control::{ControlError, Location};
use crate::environment;

/// How long a node may take at least: it fetches the artefact, waits for an agent and compiles.
const DEPLOY_PATIENCE: Duration = Duration::from_secs(30);

/// How long a node may take at least to let the calls of a workload end.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How often the clock is looked at for the next second to begin.
const CLOCK_STEP: Duration = Duration::from_millis(20);

/// The keys of whoever deploys.
#[derive(Debug)]
pub(super) struct Keys {
    /// Account key that signs.
    pub(super) issuer: KeyPair,
    /// Curve key that seals the environment.
    pub(super) xkey: XKey,
}

/// An artefact in an object store.
#[derive(Debug, Clone)]
pub(super) struct Artifact {
    pub(super) location: Location,
    /// SHA-256 in hexadecimal.
    pub(super) hash: String,
}

/// A workload to be deployed.
#[derive(Debug)]
pub(super) struct Workload<'a> {
    pub(super) name: &'a str,
    pub(super) workload_type: &'a str,
    pub(super) artifact: &'a Artifact,
    pub(super) description: &'a str,
    pub(super) args: &'a WorkloadArgs,
}

/// A node to deploy to.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) node_id: &'a str,
    /// Public curve key of the node.
    pub(super) xkey: &'a str,
}

/// Looks up an object's hash, as the object store knows it.
pub(super) async fn look_up(session: &Session, location: Location) -> Result<Artifact, Failure> {
    let store = open_store(session, &location.bucket).await?.ok_or_else(|| {
        Failure::failed(format_args!(
            "there is no object store {} on this server",
            location.bucket
        ))
    })?;
    let info = store.info(&location.key).await.map_err(|error| {
        if error.kind() == InfoErrorKind::NotFound {
            Failure::failed(format_args!(
                "there is no object {} in object store {}",
                location.key, location.bucket
            ))
        } else {
            Failure::failed(format_args!("cannot look up {location}: {error}"))
        }
    })?;
    let hash = info
        .digest
        .as_deref()
        .and_then(parse_sha256)
        .ok_or_else(|| Failure::failed(format_args!("{location} has no SHA-256 digest")))?;
    Ok(Artifact {
        location,
        hash: data_encoding::HEXLOWER.encode(&hash),
    })
}

/// Stores an object, and makes the bucket with this limit if there is none.
pub(super) async fn upload(
    session: &Session,
    location: &Location,
    max_bytes: i64,
    mut content: impl AsyncRead + Unpin,
) -> Result<(), Failure> {
    let store = match open_store(session, &location.bucket).await? {
        Some(store) => store,
        None => session
            .connection
            .jetstream(session.nats.clone())
            .create_object_store(object_store::Config {
                bucket: location.bucket.clone(),
                description: Some("Artefacts uploaded by `nex devrun`".to_owned()),
                max_bytes,
                num_replicas: 1,
                ..object_store::Config::default()
            })
            .await
            .map_err(|error| Failure::failed(format_args!("cannot make object store {}: {error}", location.bucket)))?,
    };
    store
        .put(location.key.as_str(), &mut content)
        .await
        .map_err(|error| Failure::failed(format_args!("cannot upload to {location}: {error}")))?;
    Ok(())
}

async fn open_store(session: &Session, bucket: &str) -> Result<Option<ObjectStore>, Failure> {
    let jetstream = session.connection.jetstream(session.nats.clone());
    let error = match jetstream.get_object_store(bucket).await {
        Ok(store) => return Ok(Some(store)),
        Err(error) => error,
    };
    let cause = error
        .source()
        .and_then(|source| source.downcast_ref::<GetStreamError>())
        .map(GetStreamError::kind);
    match cause {
        Some(GetStreamErrorKind::JetStream(answer)) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
        Some(GetStreamErrorKind::JetStream(answer)) => Err(Failure::failed(format_args!(
            "cannot open object store {bucket}: {answer}"
        ))),
        // The client's words for a server without JetStream would leave everybody puzzled.
        _ => Err(Failure::failed(format_args!(
            "cannot open object store {bucket}, because JetStream does not answer at {}{}: is it enabled there? ({error})",
            session.connection.servers(),
            match &session.connection.js_domain {
                Some(domain) => format!(" in domain {domain}"),
                None => String::new(),
            },
        ))),
    }
}

/// Signs a deploy request and sends it to a node.
pub(super) async fn deploy(
    session: &Session,
    target: &Target<'_>,
    workload: &Workload<'_>,
    keys: &Keys,
) -> Result<DeployResponse, ControlError> {
    let malformed = |reason: String| ControlError::Malformed {
        subject: target.node_id.to_owned(),
        reason,
    };
    let id = Uuid::new_v4().to_string();
    let artifact = workload.artifact;
    let jwt = Claims::for_deploy(&id, workload.name, &artifact.hash)
        .sign(&keys.issuer)
        .map_err(|error| malformed(error.to_string()))?;
    let variables = workload.args.environment.iter().cloned().collect();
    let sealed =
        environment::seal(&variables, &keys.xkey, target.xkey).map_err(|error| malformed(error.to_string()))?;
    let request = DeployRequest {
        argv: workload.args.argv(),
        description: workload.description.to_owned(),
        hash: Some(artifact.hash.clone()),
        location: artifact.location.clone(),
        essential: workload.args.essential,
        environment: sealed,
        id: Some(id),
        jsdomain: session.connection.js_domain.clone(),
        limits: workload.args.limits.set(),
        sender_public_key: keys.xkey.public_key(),
        target_node: Some(target.node_id.to_owned()),
        trigger_subjects: workload.args.trigger_subjects.clone(),
        host_services_config: None,
        trigger_connection: None,
        workload_name: Some(workload.name.to_owned()),
        workload_jwt: jwt,
        workload_type: workload.workload_type.to_owned(),
    };
    session.patient(DEPLOY_PATIENCE).deploy(target.node_id, &request).await
}

/// Signs a stop request and sends it to a node.
pub(super) async fn stop(
    session: &Session,
    node_id: &str,
    workload_id: &str,
    issuer: &KeyPair,
) -> Result<StopResponse, ControlError> {
    let control = session.patient(STOP_PATIENCE);
    let request = || {
        let signed = Claims::for_stop(workload_id).sign(issuer);
        signed.map(|workload_jwt| StopRequest {
            node_id: Some(node_id.to_owned()),
            workload_id: workload_id.to_owned(),
            workload_jwt,
        })
    };
    let malformed = |error: ClaimsError| ControlError::Malformed {
        subject: node_id.to_owned(),
        reason: error.to_string(),
    };
    let signed_at = now();
    match control.stop(node_id, &request().map_err(malformed)?).await {
        // Claims have a resolution of one second, and those of a stop must be newer than those of the start. Whoever
        // stops a workload in the second in which it was started has to wait for the next.
        Err(ControlError::Refused(text)) if text.contains("cloned or captured") => {
            while now() <= signed_at {
                tokio::time::sleep(CLOCK_STEP).await;
            }
            control.stop(node_id, &request().map_err(malformed)?).await
        }
        answer => answer,
    }
}

/// What `--json` writes of a deployed workload: the node's answer, with where it runs and what it is.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    #[serde(flatten)]
    pub(super) response: &'a DeployResponse,
    pub(super) namespace: &'a str,
    pub(super) node: &'a str,
    /// SHA-256 of the artefact in hexadecimal.
    pub(super) hash: &'a str,
    pub(super) location: String,
    /// IDs of the workloads that this one replaced.
    pub(super) replaced: Vec<String>,
}

/// Tells that a workload has been accepted.
pub(super) fn accepted(output: Output, args: &WorkloadArgs, report: &Report<'_>) -> Result<(), Failure> {
    if !args.limits.set().is_empty() && report.response.limits.is_empty() {
        output::diagnostic("⚠️ the node does not know of limits in requests: its own are in force");
    }
    if output.json {
        return output::json(report);
    }
    output::line(format_args!(
        "🚀 Workload '{}' accepted. You can now refer to this workload with ID: {} on node {}",
        report.response.name, report.response.id, report.node
    ))
}

/// The failure of a deploy request, in the words of the original.
pub(super) fn not_accepted(error: ControlError) -> Failure {
    super::control::while_doing("Workload run request failed to submit")(error)
}
