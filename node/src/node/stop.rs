//! Stop requests: only the issuer that started a workload ends it, with claims signed for that.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::claims::{self, Refused};
use super::registry::Workload;
use crate::claims::{Claims, ClaimsError, now};
use crate::control::FieldError;
use crate::control::messages::{StopRequest, StopResponse};

/// Time beyond a function's own limit that its calls have to be answered.
const MARGIN: Duration = Duration::from_secs(1);

/// Why a stop request is refused; the text is the `error` of the envelope.
#[derive(Debug, thiserror::Error)]
pub(super) enum StopError {
    #[error("Unable to deserialize stop request: {0}")]
    Malformed(#[from] FieldError),
    #[error("Invalid stop request: it is meant for node {meant}, this is {this}")]
    OtherNode { meant: String, this: String },
    /// Also if it belongs to another namespace: nobody is to learn of it.
    #[error("No such workload")]
    NoSuchWorkload,
    #[error("Invalid stop request: could not decode workload JWT: {0}")]
    Decode(#[from] ClaimsError),
    #[error("Invalid stop request: {0}")]
    Claims(#[from] Refused),
    #[error(
        "Invalid stop request: stop claims appear to be cloned or captured from the original start claims. Rejecting for security reasons"
    )]
    Cloned,
    #[error(
        "Invalid stop request: stop claims are older than the original start claims. Rejecting for security reasons"
    )]
    Older,
    #[error("Invalid stop request: stop claims subject does not match original start claims subject")]
    Subject,
    #[error(
        "Invalid stop request: the only entity allowed to terminate a workload is the issuer that originally started it"
    )]
    Issuer,
}

impl Shared {
    /// Stops a workload. When this returns, it takes no new calls; those it has may end.
    pub(super) async fn stop_request(
        self: &Arc<Self>,
        namespace: &str,
        payload: &[u8],
    ) -> Result<StopResponse, StopError> {
        let request = StopRequest::parse(payload)?;
        let this = self.identity.id();
        if let Some(meant) = request.node_id.as_ref().filter(|meant| *meant != this) {
            return Err(StopError::OtherNode {
                meant: meant.clone(),
                this: this.to_owned(),
            });
        }
        let workload = self
            .registry
            .find(namespace, &request.workload_id)
            .ok_or(StopError::NoSuchWorkload)?;
        self.check_stop(&Claims::verify(&request.workload_jwt)?, &workload)?;
        // Of two requests at a time, one finds it.
        let workload = self
            .registry
            .remove(&request.workload_id)
            .ok_or(StopError::NoSuchWorkload)?;
        workload.triggers.drain().await;
        tracing::info!(workload.id, workload.namespace, workload.name, "workload stopped");

        let response = StopResponse {
            id: workload.id.clone(),
            issuer: workload.claims.issuer.clone(),
            name: workload.name.clone(),
            stopped: true,
        };
        let shared = self.clone();
        let grace = workload.limits.wall_time + MARGIN;
        self.tasks.spawn(async move {
            shared.finish(workload, grace, "Workload undeploy requested").await;
        });
        Ok(response)
    }

    fn check_stop(&self, stop: &Claims, workload: &Workload) -> Result<(), StopError> {
        let start = &workload.claims;
        if stop.id == start.id || stop.issued_at == start.issued_at {
            return Err(StopError::Cloned);
        }
        // 0.2.7 signs a name, which stop claims of an earlier workload of that name have as well.
        if stop.issued_at < start.issued_at {
            return Err(StopError::Older);
        }
        // 0.3 signs the workload's ID, 0.2.7 its name.
        if ![&workload.id, &workload.name, &start.subject].contains(&&stop.subject) {
            return Err(StopError::Subject);
        }
        if stop.issuer != start.issuer {
            return Err(StopError::Issuer);
        }
        Ok(claims::check_time(stop, self.config.claims_max_age_s, now())?)
    }
}
