//! Object buckets in JetStream, readable and writable by every NATS client.
//!
//! The layout is that of the NATS object store (ADR-20): an object is a run of chunks on a subject of its own plus one
//! message of metadata, which is replaced to replace the object. It is written here rather than with async-nats' own
//! `put` and `get` because those leave the chunks of a failed or outrun upload in the bucket for ever, which a limit of
//! 512 KiB does not forgive, wait for ever for an object that is replaced while it is read, and cannot delete anything
//! from a full bucket.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::object_store::Config;
use bytes::Bytes;
use futures::future::BoxFuture;
use nex_runtime::host_services::{HostError, ObjectInfo};

use super::ObjectStore;
use crate::nats::{Failure, Handles, classify, open_or_create, within};
use crate::policy::Bucket;

mod bucket;
mod meta;
mod upload;

use bucket::ObjectBucket;

/// The buckets of one workload on NATS. Must be polled on a tokio runtime with time enabled.
#[derive(Debug)]
pub struct NatsObjectStore {
    jetstream: Context,
    client: Client,
    timeout: Duration,
    handles: Handles<ObjectBucket>,
}

impl NatsObjectStore {
    /// Buckets in this JetStream context; every operation ends within the timeout.
    #[must_use]
    pub fn new(mut jetstream: Context, timeout: Duration) -> Self {
        // The context's own timeout counts for each of the round trips; ours is for the operation.
        jetstream.set_timeout(timeout);
        Self {
            client: jetstream.client(),
            jetstream,
            timeout,
            handles: Handles::default(),
        }
    }

    async fn on<R, Running>(&self, bucket: &Bucket, operation: impl Fn(ObjectBucket) -> Running) -> Result<R, HostError>
    where
        Running: Future<Output = Result<R, Failure>>,
    {
        let open = || open(&self.jetstream, bucket);
        let running = self.handles.on(&bucket.name, open, operation);
        within(self.timeout, &self.client, running).await
    }
}

async fn open(jetstream: &Context, bucket: &Bucket) -> Result<ObjectBucket, HostError> {
    let open = || async {
        let stream = jetstream.get_stream(format!("OBJ_{}", bucket.name)).await;
        stream.map_err(|error| classify(&error))
    };
    let create = || async {
        let config = Config {
            bucket: bucket.name.clone(),
            description: Some("created by nex on first use".to_owned()),
            max_bytes: i64::try_from(bucket.max_bytes).unwrap_or(i64::MAX),
            num_replicas: 1,
            ..Default::default()
        };
        let created = jetstream.create_object_store(config).await;
        created.map(drop).map_err(|error| classify(&error))
    };
    let stream = open_or_create(bucket, open, create).await?;
    Ok(ObjectBucket::new(&bucket.name, stream, jetstream.clone()))
}

impl ObjectStore for NatsObjectStore {
    fn get<'a>(
        &'a self,
        bucket: &'a Bucket,
        name: &'a str,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Option<Bytes>, HostError>> {
        Box::pin(self.on(bucket, move |bucket| async move { bucket.get(name, max_bytes).await }))
    }

    fn put<'a>(
        &'a self,
        bucket: &'a Bucket,
        name: &'a str,
        content: Bytes,
    ) -> BoxFuture<'a, Result<ObjectInfo, HostError>> {
        Box::pin(self.on(bucket, move |bucket| {
            let content = content.clone();
            async move { bucket.put(name, &content).await }
        }))
    }

    fn delete<'a>(&'a self, bucket: &'a Bucket, name: &'a str) -> BoxFuture<'a, Result<bool, HostError>> {
        Box::pin(self.on(bucket, move |bucket| async move { bucket.delete(name).await }))
    }

    fn list<'a>(&'a self, bucket: &'a Bucket) -> BoxFuture<'a, Result<Vec<ObjectInfo>, HostError>> {
        Box::pin(self.on(bucket, |bucket| async move { bucket.list().await }))
    }
}
