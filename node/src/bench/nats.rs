//! Subjects of NATS as a target: requests and replies over one connection.

use std::sync::Arc;

use async_nats::{Client, HeaderMap, Message, Subject, SubscribeError, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;

use super::load::{Answer, Ask, Target};
use crate::triggers::{ERROR, ERROR_KIND};

/// Asks one or several subjects.
#[derive(Debug)]
pub struct NatsTarget {
    asker: NatsAsk,
    replies: Subscriber,
}

/// The sending half of a [`NatsTarget`].
#[derive(Debug, Clone)]
pub struct NatsAsk {
    client: Client,
    subjects: Arc<[Subject]>,
    inbox: Arc<str>,
}

impl NatsTarget {
    /// Asks these subjects over a connection, which should have nothing else to do.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn new(
        client: Client,
        subjects: impl IntoIterator<Item = impl Into<Subject>>,
    ) -> Result<Self, SubscribeError> {
        let inbox = client.new_inbox();
        // Whatever is published after this on the same connection comes after it at the server, too.
        let replies = client.subscribe(format!("{inbox}.*")).await?;
        Ok(Self {
            asker: NatsAsk {
                client,
                subjects: subjects.into_iter().map(Into::into).collect(),
                inbox: inbox.into(),
            },
            replies,
        })
    }
}

impl Target for NatsTarget {
    type Ask = NatsAsk;

    fn asker(&self) -> NatsAsk {
        self.asker.clone()
    }

    async fn answer(&mut self) -> Option<Answer> {
        loop {
            let message = self.replies.next().await?;
            let key = message.subject.rsplit_once('.').and_then(|(_, key)| key.parse().ok());
            // Nobody else knows the inbox; still, what has no number is no answer.
            if let Some(key) = key {
                return Some(Answer {
                    key,
                    outcome: outcome(message),
                });
            }
        }
    }
}

impl Ask for NatsAsk {
    async fn ask(&self, to: usize, key: u64, payload: Bytes) -> Result<(), String> {
        let subject = self.subjects.get(to).ok_or("no such subject")?;
        let reply = format!("{}.{key}", self.inbox);
        self.client
            .publish_with_reply(subject.clone(), reply, payload)
            .await
            .map_err(|error| error.to_string())
    }
}

/// The payload of a reply, or the error it stands for.
fn outcome(message: Message) -> Result<Bytes, String> {
    if let Some(status) = message.status
        && !status.is_success()
    {
        return Err(if status == async_nats::StatusCode::NO_RESPONDERS {
            "nobody listens on the subject".to_owned()
        } else {
            format!("status {status}")
        });
    }
    if let Some(headers) = &message.headers
        && let Some(error) = headers.get(ERROR)
    {
        return Err(describe(headers, error.as_str()));
    }
    Ok(message.payload)
}

fn describe(headers: &HeaderMap, error: &str) -> String {
    match headers.get(ERROR_KIND) {
        Some(kind) => format!("{error} ({kind})"),
        None => error.to_owned(),
    }
}
