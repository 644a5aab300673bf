//! The object store service: named blobs of any size up to a limit, in buckets.
//!
//! Bucket and object name have been checked by the time a backend sees them.

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;
use nex_runtime::host_services::{HostError, ObjectInfo};
use sha2::{Digest, Sha256};

use crate::policy::Bucket;

mod memory;
mod nats;

pub use memory::MemoryObjectStore;
pub use nats::NatsObjectStore;

/// Bytes of one chunk, as NATS clients have it.
const CHUNK_BYTES: usize = 128 * 1024;

/// A store of object buckets.
///
/// # Errors
/// Every method: `NOT_FOUND` for a bucket that does not exist and may not be created, `LIMIT_EXCEEDED` for a bucket that
/// is full, `TIMEOUT` and `UNAVAILABLE` as the transport has it.
pub trait ObjectStore: fmt::Debug + Send + Sync + 'static {
    /// The content of an object, if there is one; `LIMIT_EXCEEDED` if it has more than `max_bytes`.
    fn get<'a>(
        &'a self,
        bucket: &'a Bucket,
        name: &'a str,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Option<Bytes>, HostError>>;

    /// Stores an object in place of the one of this name. The old one stays until the new one is complete, so the bucket
    /// needs room for both.
    fn put<'a>(
        &'a self,
        bucket: &'a Bucket,
        name: &'a str,
        content: Bytes,
    ) -> BoxFuture<'a, Result<ObjectInfo, HostError>>;

    /// Removes an object; returns whether there was one.
    fn delete<'a>(&'a self, bucket: &'a Bucket, name: &'a str) -> BoxFuture<'a, Result<bool, HostError>>;

    /// All live objects in any order.
    fn list<'a>(&'a self, bucket: &'a Bucket) -> BoxFuture<'a, Result<Vec<ObjectInfo>, HostError>>;
}

/// The digest of an object's content, as NATS writes it.
fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    format!("SHA-256={}", data_encoding::BASE64URL.encode(&hash))
}

fn too_large(name: &str, size: u64, max_bytes: usize) -> HostError {
    crate::error::limit(format!(
        "object {name:?} has {size} bytes; a function may read {max_bytes}"
    ))
}
