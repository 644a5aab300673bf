//! Key-value buckets in memory, for tests and for running functions without a server.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use nex_runtime::host_services::HostError;
use parking_lot::Mutex;

use super::KeyValue;
use crate::error::{limit, not_found};
use crate::policy::Bucket;

/// A store in memory. Clones share it, so a test can look at what a function wrote. Every operation is done at once.
#[derive(Debug, Clone, Default)]
pub struct MemoryKeyValue {
    buckets: Arc<Mutex<HashMap<String, Contents>>>,
}

#[derive(Debug, Default)]
struct Contents {
    max_bytes: u64,
    revision: u64,
    values: BTreeMap<String, Bytes>,
}

impl Contents {
    fn bytes(&self) -> u64 {
        self.values.iter().map(|(key, value)| size(key, value)).sum()
    }
}

fn size(key: &str, value: &Bytes) -> u64 {
    (key.len() + value.len()) as u64
}

impl MemoryKeyValue {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes a bucket and all that is in it.
    pub fn delete_bucket(&self, bucket: &str) {
        self.buckets.lock().remove(bucket);
    }

    fn with<'a, R: Send + 'a>(
        &self,
        bucket: &Bucket,
        operation: impl FnOnce(&mut Contents) -> Result<R, HostError>,
    ) -> BoxFuture<'a, Result<R, HostError>> {
        let mut buckets = self.buckets.lock();
        let result = match buckets.get_mut(&bucket.name) {
            Some(contents) => operation(contents),
            None if bucket.auto_provision => {
                let contents = buckets.entry(bucket.name.clone()).or_default();
                contents.max_bytes = bucket.max_bytes;
                operation(contents)
            }
            None => Err(not_found(format!("bucket {:?} does not exist", bucket.name))),
        };
        ready(result).boxed()
    }
}

impl KeyValue for MemoryKeyValue {
    fn get<'a>(&'a self, bucket: &'a Bucket, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, HostError>> {
        self.with(bucket, |contents| Ok(contents.values.get(key).cloned()))
    }

    fn set<'a>(&'a self, bucket: &'a Bucket, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<u64, HostError>> {
        self.with(bucket, |contents| {
            let replaced = contents.values.get(key).map_or(0, |old| size(key, old));
            if contents.bytes() - replaced + size(key, &value) > contents.max_bytes {
                return Err(limit(format!(
                    "bucket {:?} has no room for {} bytes more; its limit is {} bytes",
                    bucket.name,
                    value.len(),
                    contents.max_bytes
                )));
            }
            contents.values.insert(key.to_owned(), value);
            contents.revision += 1;
            Ok(contents.revision)
        })
    }

    fn delete<'a>(&'a self, bucket: &'a Bucket, key: &'a str) -> BoxFuture<'a, Result<(), HostError>> {
        self.with(bucket, |contents| {
            if contents.values.remove(key).is_some() {
                contents.revision += 1;
            }
            Ok(())
        })
    }

    fn keys<'a>(&'a self, bucket: &'a Bucket) -> BoxFuture<'a, Result<Vec<String>, HostError>> {
        self.with(bucket, |contents| Ok(contents.values.keys().cloned().collect()))
    }
}
