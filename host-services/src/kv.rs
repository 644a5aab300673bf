//! The key-value service: small values under keys, in buckets.
//!
//! Bucket and key have been checked by the time a backend sees them.

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;
use nex_runtime::host_services::HostError;

use crate::policy::Bucket;

mod memory;
mod nats;

pub use memory::MemoryKeyValue;
pub use nats::NatsKeyValue;

/// A store of key-value buckets.
///
/// # Errors
/// Every method: `NOT_FOUND` for a bucket that does not exist and may not be created, `LIMIT_EXCEEDED` for a bucket that
/// is full, `TIMEOUT` and `UNAVAILABLE` as the transport has it.
pub trait KeyValue: fmt::Debug + Send + Sync + 'static {
    /// The value of a key, if it has one.
    fn get<'a>(&'a self, bucket: &'a Bucket, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, HostError>>;

    /// Stores a value and returns its revision, which grows with every write to the bucket.
    fn set<'a>(&'a self, bucket: &'a Bucket, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<u64, HostError>>;

    /// Removes a key, present or not.
    fn delete<'a>(&'a self, bucket: &'a Bucket, key: &'a str) -> BoxFuture<'a, Result<(), HostError>>;

    /// All live keys in any order.
    fn keys<'a>(&'a self, bucket: &'a Bucket) -> BoxFuture<'a, Result<Vec<String>, HostError>>;
}
