//! Key-value buckets in JetStream, readable and writable by every NATS client.
//!
//! Beyond what async-nats does: buckets are created on first use, whichever node comes first, and opened anew when they
//! were deleted; deleting a missing key leaves no marker; and when a bucket is full, the markers that deleted keys leave
//! behind are removed to make room, so that a function that sets and deletes ever new keys never fills its bucket.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Config, Operation, Store};
use async_nats::jetstream::message::Message;
use bytes::Bytes;
use futures::future::BoxFuture;
use nex_runtime::host_services::HostError;

use super::KeyValue;
use crate::nats::{Buckets, Failure, Openable, classify, latest};
use crate::policy::Bucket;

/// The buckets of one workload on NATS. Must be polled on a tokio runtime with time enabled.
#[derive(Debug)]
pub struct NatsKeyValue(Buckets<Store>);

impl NatsKeyValue {
    /// Buckets in this JetStream context; every operation ends within the timeout.
    #[must_use]
    pub fn new(jetstream: Context, timeout: Duration) -> Self {
        Self(Buckets::new(jetstream, timeout))
    }
}

impl Openable for Store {
    async fn open(jetstream: &Context, bucket: &Bucket) -> Result<Self, Failure> {
        let store = jetstream.get_key_value(&bucket.name).await;
        store.map_err(|error| classify(&error))
    }

    async fn create(jetstream: &Context, bucket: &Bucket) -> Result<(), Failure> {
        let config = Config {
            bucket: bucket.name.clone(),
            description: "created by nex on first use".to_owned(),
            max_bytes: i64::try_from(bucket.max_bytes).unwrap_or(i64::MAX),
            history: 1,
            ..Default::default()
        };
        let created = jetstream.create_key_value(config).await;
        created.map(drop).map_err(|error| classify(&error))
    }
}

/// Removes the markers of deleted keys; returns whether there were any. A key that is set meanwhile stays, because only
/// messages up to the marker go.
async fn sweep(store: &Store) -> Result<bool, Failure> {
    let mut swept = false;
    for message in latest(&store.stream, format!("{}>", store.prefix), true).await? {
        if is_marker(&message)
            && let Ok(info) = message.info()
        {
            let up_to_marker = info.stream_sequence + 1;
            let purge = store.stream.purge().filter(message.subject.as_str());
            purge.sequence(up_to_marker).await.map_err(|error| classify(&error))?;
            swept = true;
        }
    }
    Ok(swept)
}

/// Whether this is what a deleted, purged or expired key leaves behind.
fn is_marker(message: &Message) -> bool {
    message.headers.as_ref().is_some_and(|headers| {
        let operation = headers.get("KV-Operation").map(|value| value.as_str());
        matches!(operation, Some("DEL" | "PURGE")) || headers.get("Nats-Marker-Reason").is_some()
    })
}

async fn put(store: &Store, key: &str, value: Bytes) -> Result<u64, Failure> {
    store.put(key, value).await.map_err(|error| classify(&error))
}

impl KeyValue for NatsKeyValue {
    fn get<'a>(&'a self, bucket: &'a Bucket, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, HostError>> {
        Box::pin(self.0.on(bucket, move |store| async move {
            store.get(key).await.map_err(|error| classify(&error))
        }))
    }

    fn set<'a>(&'a self, bucket: &'a Bucket, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<u64, HostError>> {
        Box::pin(self.0.on(bucket, move |store| {
            let value = value.clone();
            async move {
                match put(&store, key, value.clone()).await {
                    Err(Failure::Full(reason)) => match sweep(&store).await? {
                        true => put(&store, key, value).await,
                        false => Err(Failure::Full(reason)),
                    },
                    result => result,
                }
            }
        }))
    }

    fn delete<'a>(&'a self, bucket: &'a Bucket, key: &'a str) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(self.0.on(bucket, move |store| async move {
            let entry = store.entry(key).await.map_err(|error| classify(&error))?;
            // A marker for a key that never was would only take room.
            if entry.is_none_or(|entry| entry.operation != Operation::Put) {
                return Ok(());
            }
            match store.delete(key).await.map_err(|error| classify(&error)) {
                // No room even for a marker: take the value out instead.
                Err(Failure::Full(_)) => {
                    let purge = store.stream.purge().filter(format!("{}{key}", store.prefix));
                    purge.await.map(drop).map_err(|error| classify(&error))
                }
                result => result,
            }
        }))
    }

    fn keys<'a>(&'a self, bucket: &'a Bucket) -> BoxFuture<'a, Result<Vec<String>, HostError>> {
        Box::pin(self.0.on(bucket, |store| async move {
            let messages = latest(&store.stream, format!("{}>", store.prefix), true).await?;
            let live = messages.iter().filter(|message| !is_marker(message));
            let keys = live.filter_map(|message| message.subject.strip_prefix(&store.prefix));
            Ok(keys.map(str::to_owned).collect())
        }))
    }
}
