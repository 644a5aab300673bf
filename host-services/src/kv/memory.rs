//! Key-value buckets in memory, for tests and for running functions without a server.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::BoxFuture;
use nex_runtime::host_services::HostError;

use super::KeyValue;
use crate::memory::Buckets;
use crate::policy::Bucket;

/// A store in memory. Clones share it, so a test can look at what a function wrote. Every operation is done at once.
#[derive(Debug, Clone, Default)]
pub struct MemoryKeyValue(Buckets<Values>);

#[derive(Debug, Default)]
struct Values {
    revision: u64,
    by_key: BTreeMap<String, Bytes>,
}

impl Values {
    fn bytes(&self) -> u64 {
        self.by_key.iter().map(|(key, value)| size(key, value)).sum()
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
        self.0.delete(bucket);
    }
}

impl KeyValue for MemoryKeyValue {
    fn get<'a>(&'a self, bucket: &'a Bucket, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, HostError>> {
        self.0.on(bucket, |contents| Ok(contents.held.by_key.get(key).cloned()))
    }

    fn set<'a>(&'a self, bucket: &'a Bucket, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<u64, HostError>> {
        self.0.on(bucket, |contents| {
            let values = &contents.held;
            let replaced = values.by_key.get(key).map_or(0, |old| size(key, old));
            contents.require_room(bucket, values.bytes() - replaced, size(key, &value))?;
            let values = &mut contents.held;
            values.by_key.insert(key.to_owned(), value);
            values.revision += 1;
            Ok(values.revision)
        })
    }

    fn delete<'a>(&'a self, bucket: &'a Bucket, key: &'a str) -> BoxFuture<'a, Result<(), HostError>> {
        self.0.on(bucket, |contents| {
            if contents.held.by_key.remove(key).is_some() {
                contents.held.revision += 1;
            }
            Ok(())
        })
    }

    fn keys<'a>(&'a self, bucket: &'a Bucket) -> BoxFuture<'a, Result<Vec<String>, HostError>> {
        self.0
            .on(bucket, |contents| Ok(contents.held.by_key.keys().cloned().collect()))
    }
}
