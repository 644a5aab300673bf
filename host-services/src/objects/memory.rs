//! Object buckets in memory, for tests and for running functions without a server.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::BoxFuture;
use nex_runtime::host_services::{HostError, ObjectInfo};
use uuid::Uuid;

use super::{CHUNK_BYTES, ObjectStore, digest};
use crate::memory::Buckets;
use crate::policy::Bucket;
use crate::time::now_rfc3339;

/// A store in memory. Clones share it, so a test can look at what a function wrote. Every operation is done at once.
#[derive(Debug, Clone, Default)]
pub struct MemoryObjectStore(Buckets<BTreeMap<String, (ObjectInfo, Bytes)>>);

impl MemoryObjectStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes a bucket and all that is in it.
    pub fn delete_bucket(&self, bucket: &str) {
        self.0.delete(bucket);
    }
}

impl ObjectStore for MemoryObjectStore {
    fn get<'a>(
        &'a self,
        bucket: &'a Bucket,
        name: &'a str,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Option<Bytes>, HostError>> {
        self.0.on(bucket, |contents| match contents.held.get(name) {
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
        self.0.on(bucket, |contents| {
            let used = contents.held.values().map(|(info, _)| info.size).sum();
            contents.require_room(bucket, used, content.len() as u64)?;
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
            contents.held.insert(name.to_owned(), entry);
            Ok(info)
        })
    }

    fn delete<'a>(&'a self, bucket: &'a Bucket, name: &'a str) -> BoxFuture<'a, Result<bool, HostError>> {
        self.0.on(bucket, |contents| Ok(contents.held.remove(name).is_some()))
    }

    fn list<'a>(&'a self, bucket: &'a Bucket) -> BoxFuture<'a, Result<Vec<ObjectInfo>, HostError>> {
        self.0.on(bucket, |contents| {
            Ok(contents.held.values().map(|(info, _)| info.clone()).collect())
        })
    }
}
