//! The last message of every subject of a stream: the keys of a bucket, or its objects.
//!
//! async-nats lists keys and objects with a push consumer that ends when a message says that none is pending. This asks a
//! pull consumer for as many messages as it has, which ends by itself even if messages are removed meanwhile, and deletes
//! the consumer at the end instead of leaving it to the server for some seconds.

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::Stream;
use futures::TryStreamExt as _;

use super::{Failure, classify};
use crate::error::internal;

/// Most keys or objects that are listed; more are `LIMIT_EXCEEDED`, as the list is held in memory.
const MAX_LISTED: u64 = 100_000;

/// Messages in one pull; the server may not have an unlimited batch size.
const BATCH: usize = 1_000;

/// Reads the last message of every subject that matches the filter, without payload if `headers_only`.
pub(crate) async fn latest(stream: &Stream, filter: String, headers_only: bool) -> Result<Vec<Message>, Failure> {
    let consumer: PullConsumer = stream
        .create_consumer(pull::Config {
            filter_subject: filter,
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            headers_only,
            memory_storage: true,
            num_replicas: 1,
            // For a call that is abandoned halfway.
            inactive_threshold: std::time::Duration::from_secs(10),
            ..Default::default()
        })
        .await
        .map_err(|error| classify(&error))?;
    let result = read(&consumer).await;
    let name = &consumer.cached_info().name;
    if let Err(error) = stream.delete_consumer(name).await {
        // The server removes it a little later.
        tracing::debug!(%error, "list consumer not deleted");
    }
    result
}

async fn read(consumer: &PullConsumer) -> Result<Vec<Message>, Failure> {
    let pending = consumer.cached_info().num_pending;
    if pending > MAX_LISTED {
        return Err(Failure::Full(format!(
            "listing {pending} entries; at most {MAX_LISTED} can be listed"
        )));
    }
    let mut left = usize::try_from(pending).unwrap_or(usize::MAX);
    let mut messages = Vec::with_capacity(left);
    while left > 0 {
        let batch: Vec<Message> = consumer
            .fetch()
            .max_messages(left.min(BATCH))
            .messages()
            .await
            .map_err(|error| classify(&error))?
            .try_collect()
            .await
            .map_err(|error| Failure::Other(internal(format!("listing a bucket: {error}"))))?;
        if batch.is_empty() {
            break;
        }
        left = left.saturating_sub(batch.len());
        messages.extend(batch);
    }
    Ok(messages)
}
