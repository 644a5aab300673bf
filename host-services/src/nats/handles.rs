//! Open buckets of one workload. Opening costs a round trip, so handles are kept until the bucket turns out to be gone.

use std::collections::HashMap;
use std::sync::Arc;

use nex_runtime::host_services::HostError;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::Failure;

/// Handles by bucket name. Concurrent first uses of a bucket open it once.
#[derive(Debug)]
pub(crate) struct Handles<T>(Mutex<HashMap<String, Arc<OnceCell<T>>>>);

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Handles<T> {
    /// Runs an operation on a bucket; if the bucket turns out to be gone, opens it anew and tries once more.
    pub(crate) async fn on<R, Opening, Running>(
        &self,
        bucket: &str,
        open: impl Fn() -> Opening,
        operation: impl Fn(T) -> Running,
    ) -> Result<R, HostError>
    where
        Opening: Future<Output = Result<T, HostError>>,
        Running: Future<Output = Result<R, Failure>>,
    {
        let mut result = operation(self.get(bucket, &open).await?).await;
        if result.as_ref().is_err_and(|failure| *failure == Failure::Gone) {
            self.0.lock().remove(bucket);
            result = operation(self.get(bucket, &open).await?).await;
        }
        result.map_err(|failure| failure.of_bucket(bucket))
    }

    async fn get<Opening>(&self, bucket: &str, open: impl Fn() -> Opening) -> Result<T, HostError>
    where
        Opening: Future<Output = Result<T, HostError>>,
    {
        let cell = self.0.lock().entry(bucket.to_owned()).or_default().clone();
        let opened = cell.get_or_try_init(open).await.cloned();
        if opened.is_err() {
            // Otherwise a function could fill the map with names that cannot be opened.
            let mut handles = self.0.lock();
            if handles.get(bucket).is_some_and(|kept| !kept.initialized()) {
                handles.remove(bucket);
            }
        }
        opened
    }
}
