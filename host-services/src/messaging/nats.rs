//! Messaging over a NATS connection.

use std::time::Duration;

use async_nats::client::{PublishErrorKind, RequestErrorKind};
use async_nats::connection::State;
use async_nats::{Client, HeaderMap, HeaderName, HeaderValue, StatusCode};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use nex_runtime::host_services::{Headers, HostError};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Gather, Gathered, Message, Messaging, sort_headers};
use crate::error::{chain, invalid, limit, no_responders, unavailable};
use crate::nats::no_answer;

/// How long publishing waits for room in the connection's queue, which is only full while the connection is down.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Messaging on one connection. Must be polled on a tokio runtime with time enabled.
#[derive(Debug, Clone)]
pub struct NatsMessaging {
    client: Client,
}

impl NatsMessaging {
    /// Messaging on this connection.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn send(&self, message: Message, reply: Option<String>) -> Result<(), HostError> {
        let Message {
            subject,
            headers,
            payload,
            ..
        } = message;
        let client = &self.client;
        let headers = to_wire(&headers)?;
        let sent = match (reply, headers) {
            (None, None) => client.publish(subject, payload).await,
            (None, Some(headers)) => client.publish_with_headers(subject, headers, payload).await,
            (Some(reply), None) => client.publish_with_reply(subject, reply, payload).await,
            (Some(reply), Some(headers)) => {
                client
                    .publish_with_reply_and_headers(subject, reply, headers, payload)
                    .await
            }
        };
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => limit(chain(&error)),
            PublishErrorKind::InvalidSubject => invalid(chain(&error)),
            PublishErrorKind::Send => unavailable(chain(&error)),
        })
    }
}

impl Messaging for NatsMessaging {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            let reply = message.reply.clone();
            let sent = timeout(PUBLISH_TIMEOUT, self.send(message, reply)).await;
            sent.unwrap_or_else(|_| Err(no_answer(PUBLISH_TIMEOUT, &self.client)))
        })
    }

    fn request(&self, message: Message, limit: Duration) -> BoxFuture<'_, Result<Message, HostError>> {
        Box::pin(async move {
            let mut request = async_nats::Request::new().payload(message.payload).timeout(Some(limit));
            if let Some(headers) = to_wire(&message.headers)? {
                request = request.headers(headers);
            }
            let subject = message.subject;
            let sent = self.client.send_request(subject.clone(), request);
            // The client's own timeout begins when the request is in its queue.
            let answer = timeout(limit, sent).await;
            match answer {
                Ok(Ok(reply)) => Ok(from_wire(reply)),
                Ok(Err(error)) => Err(match error.kind() {
                    RequestErrorKind::NoResponders => no_responders(&subject),
                    RequestErrorKind::TimedOut => no_answer(limit, &self.client),
                    RequestErrorKind::InvalidSubject => invalid(chain(&error)),
                    RequestErrorKind::MaxPayloadExceeded => crate::error::limit(chain(&error)),
                    RequestErrorKind::Other => unavailable(chain(&error)),
                }),
                Err(_) => Err(no_answer(limit, &self.client)),
            }
        })
    }

    fn request_many(&self, message: Message, gather: Gather) -> BoxFuture<'_, Result<Vec<Message>, HostError>> {
        Box::pin(async move {
            let deadline = Instant::now() + gather.timeout;
            let subject = message.subject.clone();
            let inbox = self.client.new_inbox();
            let ask = async {
                let replies = self.client.subscribe(inbox.clone()).await;
                let replies = replies.map_err(|error| unavailable(chain(&error)))?;
                self.send(message, Some(inbox)).await?;
                Ok(replies)
            };
            let mut replies = match timeout_at(deadline, ask).await {
                Ok(asked) => asked?,
                Err(_) => return Err(no_answer(gather.timeout, &self.client)),
            };
            let mut gathered = Gathered::new(gather);
            loop {
                match timeout_at(deadline, replies.next()).await {
                    Ok(Some(reply)) if reply.status == Some(StatusCode::NO_RESPONDERS) => {
                        if gathered.replies.is_empty() {
                            return Err(no_responders(&subject));
                        }
                        break;
                    }
                    Ok(Some(reply)) => {
                        if !gathered.add(from_wire(reply))? {
                            break;
                        }
                    }
                    Ok(None) => break,
                    Err(_) => {
                        let connected = self.client.connection_state() == State::Connected;
                        if gathered.replies.is_empty() && !connected {
                            return Err(no_answer(gather.timeout, &self.client));
                        }
                        break;
                    }
                }
            }
            Ok(gathered.replies)
        })
    }

    fn max_payload(&self) -> usize {
        self.client.max_payload()
    }
}

fn to_wire(headers: &Headers) -> Result<Option<HeaderMap>, HostError> {
    if headers.is_empty() {
        return Ok(None);
    }
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name: HeaderName = name.parse().map_err(|error| invalid(chain(&error)))?;
        let value: HeaderValue = value.parse().map_err(|error| invalid(chain(&error)))?;
        map.append(name, value);
    }
    Ok(Some(map))
}

fn from_wire(message: async_nats::Message) -> Message {
    let mut headers = Headers::new();
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        headers.extend(values.iter().map(|value| (name.to_string(), value.to_string())));
    }
    sort_headers(&mut headers);
    Message {
        subject: message.subject.into_string(),
        reply: message.reply.map(async_nats::Subject::into_string),
        headers,
        payload: message.payload,
    }
}
