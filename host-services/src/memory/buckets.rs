//! Buckets in memory, whatever they hold: created on first use, limited in size, and shared by clones.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use nex_runtime::host_services::HostError;
use parking_lot::Mutex;

use crate::error::{limit, not_found};
use crate::policy::Bucket;

/// Buckets by name. Every operation is done at once.
#[derive(Debug)]
pub(crate) struct Buckets<T>(Arc<Mutex<HashMap<String, Contents<T>>>>);

/// What is in a bucket.
#[derive(Debug)]
pub(crate) struct Contents<T> {
    pub(crate) held: T,
    max_bytes: u64,
}

impl<T> Contents<T> {
    /// Whether there is room for so many bytes beside those in use.
    ///
    /// # Errors
    /// `LIMIT_EXCEEDED` if there is not.
    pub(crate) fn require_room(&self, bucket: &Bucket, used: u64, more: u64) -> Result<(), HostError> {
        if used + more <= self.max_bytes {
            return Ok(());
        }
        Err(limit(format!(
            "bucket {:?} has no room for {more} bytes more; its limit is {} bytes",
            bucket.name, self.max_bytes
        )))
    }
}

impl<T> Clone for Buckets<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Buckets<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Default> Buckets<T> {
    /// Deletes a bucket and all that is in it.
    pub(crate) fn delete(&self, bucket: &str) {
        self.0.lock().remove(bucket);
    }

    /// Runs an operation on a bucket, which is created if it does not exist and may be.
    pub(crate) fn on<'a, R: Send + 'a>(
        &self,
        bucket: &Bucket,
        operation: impl FnOnce(&mut Contents<T>) -> Result<R, HostError>,
    ) -> BoxFuture<'a, Result<R, HostError>> {
        let mut buckets = self.0.lock();
        let result = match buckets.get_mut(&bucket.name) {
            Some(contents) => operation(contents),
            None if bucket.auto_provision => operation(buckets.entry(bucket.name.clone()).or_insert(Contents {
                held: T::default(),
                max_bytes: bucket.max_bytes,
            })),
            None => Err(not_found(format!("bucket {:?} does not exist", bucket.name))),
        };
        ready(result).boxed()
    }
}
