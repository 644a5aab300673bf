//! Open buckets of one workload. Opening costs a round trip, so handles are kept until the bucket turns out to be gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use nex_runtime::host_services::HostError;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::open::{Openable, open_or_create};
use super::{Failure, within};
use crate::policy::Bucket;

/// Buckets in a JetStream context, opened on first use. Concurrent first uses of a bucket open it once.
#[derive(Debug)]
pub(crate) struct Buckets<T> {
    jetstream: Context,
    client: Client,
    timeout: Duration,
    handles: Mutex<HashMap<String, Arc<OnceCell<T>>>>,
}

impl<T: Openable> Buckets<T> {
    /// Buckets in this JetStream context; every operation ends within the timeout.
    pub(crate) fn new(mut jetstream: Context, timeout: Duration) -> Self {
        // The context's own timeout counts for each of the round trips; ours is for the operation.
        jetstream.set_timeout(timeout);
        Self {
            client: jetstream.client(),
            jetstream,
            timeout,
            handles: Mutex::default(),
        }
    }

    /// Runs an operation on a bucket; if the bucket turns out to be gone, opens it anew and tries once more.
    pub(crate) async fn on<R, Running>(&self, bucket: &Bucket, operation: impl Fn(T) -> Running) -> Result<R, HostError>
    where
        Running: Future<Output = Result<R, Failure>>,
    {
        let running = async {
            let mut result = operation(self.open(bucket).await?).await;
            if result.as_ref().is_err_and(|failure| *failure == Failure::Gone) {
                self.handles.lock().remove(&bucket.name);
                result = operation(self.open(bucket).await?).await;
            }
            result.map_err(|failure| failure.of_bucket(&bucket.name))
        };
        within(self.timeout, &self.client, running).await
    }

    async fn open(&self, bucket: &Bucket) -> Result<T, HostError> {
        let cell = self.handles.lock().entry(bucket.name.clone()).or_default().clone();
        let open = || open_or_create(&self.jetstream, bucket);
        let opened = cell.get_or_try_init(open).await.cloned();
        if opened.is_err() {
            // Otherwise a function could fill the map with names that cannot be opened.
            let mut handles = self.handles.lock();
            if handles.get(&bucket.name).is_some_and(|kept| !kept.initialized()) {
                handles.remove(&bucket.name);
            }
        }
        opened
    }
}
