//! Object buckets in memory, for tests and for running functions without a server.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use nex_runtime::host_services::{HostError, ObjectInfo};
use parking_lot::Mutex;
use uuid::Uuid;

use super::{CHUNK_BYTES, ObjectStore, digest};
use crate::error::{limit, not_found};
use crate::policy::Bucket;
use crate::time::now_rfc3339;

/// A store in memory. Clones share it, so a test can look at what a function wrote. Every operation is done at once.
#[derive(Debug, Clone, Default)]
pub struct MemoryObjectStore {
    buckets: Arc<Mutex<HashMap<String, Contents>>>,
}

#[derive(Debug, Default)]
struct Contents {
    max_bytes: u64,
    objects: BTreeMap<String, (ObjectInfo, Bytes)>,
}

impl MemoryObjectStore {
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

impl ObjectStore for MemoryObjectStore {
    fn get<'a>(
        &'a self,
        bucket: &'a Bucket,
        name: &'a str,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Option<Bytes>, HostError>> {
        self.with(bucket, |contents| match contents.objects.get(name) {
            Some((_, content)) if content.len() > max_bytes => {
                Err(super::too_large(name, content.len() as u64, max_bytes))
            }
            found => Ok(found.map(|(_, content)| content.clone())),
        })
    }

    fn put<'a>(
        &'a self,
        bucket: &'a Bucket,
        name: &'a str,
        content: Bytes,
    ) -> BoxFuture<'a, Result<ObjectInfo, HostError>> {
        self.with(bucket, |contents| {
            let used: u64 = contents.objects.values().map(|(info, _)| info.size).sum();
            if used + content.len() as u64 > contents.max_bytes {
                return Err(limit(format!(
                    "bucket {:?} has no room for {} bytes more; its limit is {} bytes",
                    bucket.name,
                    content.len(),
                    contents.max_bytes
                )));
            }
            let info = ObjectInfo {
                name: name.to_owned(),
                bucket: bucket.name.clone(),
                nuid: Uuid::new_v4().simple().to_string(),
                size: content.len() as u64,
                chunks: content.len().div_ceil(CHUNK_BYTES) as u64,
                digest: digest(&content),
                mtime: now_rfc3339(),
                description: None,
            };
            let entry = (info.clone(), content);
            contents.objects.insert(name.to_owned(), entry);
            Ok(info)
        })
    }

    fn delete<'a>(&'a self, bucket: &'a Bucket, name: &'a str) -> BoxFuture<'a, Result<bool, HostError>> {
        self.with(bucket, |contents| Ok(contents.objects.remove(name).is_some()))
    }

    fn list<'a>(&'a self, bucket: &'a Bucket) -> BoxFuture<'a, Result<Vec<ObjectInfo>, HostError>> {
        self.with(bucket, |contents| {
            Ok(contents.objects.values().map(|(info, _)| info.clone()).collect())
        })
    }
}
