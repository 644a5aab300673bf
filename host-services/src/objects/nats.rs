//! Object buckets in JetStream, readable and writable by every NATS client.
//!
//! The layout is that of the NATS object store (ADR-20): an object is a run of chunks on a subject of its own plus one
//! message of metadata, which is replaced to replace the object. It is written here rather than with async-nats' own
//! `put` and `get` because those leave the chunks of a failed or outrun upload in the bucket for ever, which a limit of
//! 512 KiB does not forgive, wait for ever for an object that is replaced while it is read, and cannot delete anything
//! from a full bucket.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::object_store::Config;
use bytes::Bytes;
use futures::future::BoxFuture;
use nex_runtime::host_services::{HostError, ObjectInfo};

use super::ObjectStore;
use crate::nats::{Buckets, Failure, Openable, classify};
use crate::policy::Bucket;

mod bucket;
mod meta;
mod upload;

use bucket::ObjectBucket;

/// The buckets of one workload on NATS. Must be polled on a tokio runtime with time enabled.
#[derive(Debug)]
pub struct NatsObjectStore(Buckets<ObjectBucket>);

impl NatsObjectStore {
    /// Buckets in this JetStream context; every operation ends within the timeout.
    #[must_use]
    pub fn new(jetstream: Context, timeout: Duration) -> Self {
        Self(Buckets::new(jetstream, timeout))
    }
}

impl Openable for ObjectBucket {
    async fn open(jetstream: &Context, bucket: &Bucket) -> Result<Self, Failure> {
        let stream = jetstream.get_stream(format!("OBJ_{}", bucket.name)).await;
        let stream = stream.map_err(|error| classify(&error))?;
        Ok(Self::new(&bucket.name, stream, jetstream.clone()))
    }

    async fn create(jetstream: &Context, bucket: &Bucket) -> Result<(), Failure> {
        let config = Config {
            bucket: bucket.name.clone(),
            description: Some("created by nex on first use".to_owned()),
            max_bytes: i64::try_from(bucket.max_bytes).unwrap_or(i64::MAX),
            num_replicas: 1,
            ..Default::default()
        };
        let created = jetstream.create_object_store(config).await;
        created.map(drop).map_err(|error| classify(&error))
    }
}

impl ObjectStore for NatsObjectStore {
    fn get<'a>(
        &'a self,
        bucket: &'a Bucket,
        name: &'a str,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Option<Bytes>, HostError>> {
        Box::pin(
            self.0
                .on(bucket, move |bucket| async move { bucket.get(name, max_bytes).await }),
        )
    }

    fn put<'a>(
        &'a self,
        bucket: &'a Bucket,
        name: &'a str,
        content: Bytes,
    ) -> BoxFuture<'a, Result<ObjectInfo, HostError>> {
        Box::pin(self.0.on(bucket, move |bucket| {
            let content = content.clone();
            async move { bucket.put(name, &content).await }
        }))
    }

    fn delete<'a>(&'a self, bucket: &'a Bucket, name: &'a str) -> BoxFuture<'a, Result<bool, HostError>> {
        Box::pin(
            self.0
                .on(bucket, move |bucket| async move { bucket.delete(name).await }),
        )
    }

    fn list<'a>(&'a self, bucket: &'a Bucket) -> BoxFuture<'a, Result<Vec<ObjectInfo>, HostError>> {
        Box::pin(self.0.on(bucket, |bucket| async move { bucket.list().await }))
    }
}
