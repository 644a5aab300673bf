//! Subscribes the control subjects and answers what comes on them. Each request has a task of its own, so that a slow
//! one holds up nobody, and one that fails in whatever way harms nobody.

use std::sync::Arc;

use async_nats::{Message, Subscriber};
use futures::StreamExt as _;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::{NodeError, Shared};
use crate::control::messages::{AuctionRequest, Envelope, ResponseType};
use crate::control::subjects;
use crate::triggers::round_trip;

/// Requests in progress on each control subject; more wait.
const MAX_IN_PROGRESS: usize = 64;

#[derive(Debug, Clone, Copy)]
enum Request {
    Ping,
    Auction,
    WorkloadPing,
    Info,
    Deploy,
    Stop,
    LameDuck,
}

/// Subscribes. When this returns, the server knows of it.
pub(super) async fn listen(shared: &Arc<Shared>) -> Result<(), NodeError> {
    let id = shared.identity.id();
    for (subject, request) in [
        (subjects::PING.to_owned(), Request::Ping),
        (subjects::ping(id), Request::Ping),
        (subjects::AUCTION.to_owned(), Request::Auction),
        (subjects::workload_ping(">", None), Request::WorkloadPing),
        (subjects::info("*", id), Request::Info),
        (subjects::deploy("*", id), Request::Deploy),
        (subjects::stop("*", id), Request::Stop),
        (subjects::lameduck(id), Request::LameDuck),
    ] {
        let subscriber = shared
            .client
            .subscribe(subject.clone())
            .await
            .map_err(|error| NodeError::Subscribe {
                subject,
                reason: error.to_string(),
            })?;
        shared.tasks.spawn(receive(shared.clone(), subscriber, request));
    }
    round_trip(&shared.client).await;
    Ok(())
}

async fn receive(shared: Arc<Shared>, mut requests: Subscriber, request: Request) {
    let room = Arc::new(Semaphore::new(MAX_IN_PROGRESS));
    while let Some(Some(message)) = shared.end.run_until_cancelled(requests.next()).await {
        let Ok(permit) = room.clone().acquire_owned().await else {
            break;
        };
        let handler = shared.clone();
        shared.tasks.spawn(async move {
            handler.handle(request, message).await;
            drop(permit);
        });
    }
}

impl Shared {
    async fn handle(self: &Arc<Self>, request: Request, message: Message) {
        let subject = message.subject.as_str();
        let Some(reply) = message.reply else {
            tracing::warn!(subject, "control request without a reply subject ignored");
            return;
        };
        let Some(mut answer) = self.answer(request, subject, &message.payload).await else {
            return;
        };
        let limit = self.client.max_payload();
        if answer.len() > limit {
            let text = format!("the answer has {} bytes, the server takes {limit}", answer.len());
            answer = failure(request.response_type(), subject, text);
        }
        // Behind the events of what was done.
        self.outbound.send(reply, None, answer.into());
    }

    /// The envelope to send, or nothing where silence is the answer.
    async fn answer(self: &Arc<Self>, request: Request, subject: &str, payload: &[u8]) -> Option<Vec<u8>> {
        let response_type = request.response_type();
        let namespace = subject.split('.').nth(2).unwrap_or_default();
        Some(match request {
            Request::Ping => success(response_type, self.ping()),
            Request::LameDuck => success(response_type, self.lame_duck()),
            Request::Auction => match AuctionRequest::parse(payload) {
                Ok(request) => success(response_type, self.auction(&request)?),
                Err(error) => failure(
                    response_type,
                    subject,
                    format!("Unable to deserialize auction request: {error}"),
                ),
            },
            Request::WorkloadPing => {
                let mut tokens = subject.split('.').skip(3);
                let workload = tokens.next();
                if tokens.next().is_some() {
                    let expected = subjects::workload_ping("{namespace}", Some("{workload ID or name}"));
                    let text = format!("Invalid subject for workload ping: expected {expected}");
                    return Some(failure(response_type, subject, text));
                }
                success(response_type, self.workload_ping(namespace, workload)?)
            }
            Request::Info if !subjects::is_valid_name(namespace) => failure(
                response_type,
                subject,
                format!("Failed to extract namespace for info request: `{namespace}` is not a namespace"),
            ),
            Request::Info => success(response_type, self.info(namespace).await),
            Request::Deploy => match self.deploy(namespace, payload).await {
                Ok(response) => success(response_type, response),
                Err(error) => failure(response_type, subject, error.to_string()),
            },
            Request::Stop => match self.stop_request(namespace, payload).await {
                Ok(response) => success(response_type, response),
                Err(error) => failure(response_type, subject, error.to_string()),
            },
        })
    }
}

impl Request {
    fn response_type(self) -> ResponseType {
        match self {
            Self::Ping | Self::WorkloadPing => ResponseType::Ping,
            Self::Auction => ResponseType::Auction,
            Self::Info => ResponseType::Info,
            Self::Deploy => ResponseType::Deploy,
            Self::Stop => ResponseType::Stop,
            Self::LameDuck => ResponseType::LameDuck,
        }
    }
}

fn success<T: Serialize>(response_type: ResponseType, data: T) -> Vec<u8> {
    encode(&Envelope::success(response_type, data))
}

fn failure(response_type: ResponseType, subject: &str, text: String) -> Vec<u8> {
    tracing::warn!(subject, error = text, "control request refused");
    encode(&Envelope::failure(response_type, text))
}

fn encode<T: Serialize>(envelope: &Envelope<T>) -> Vec<u8> {
    // Plain data with string keys always has a JSON form.
    serde_json::to_vec(envelope).unwrap_or_default()
}
