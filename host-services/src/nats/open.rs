//! Opening a bucket, and creating it on first use, whichever node comes first.

use std::time::Duration;

use async_nats::jetstream::Context;
use nex_runtime::host_services::HostError;

use super::Failure;
use crate::policy::Bucket;

/// How often a creation that collides with something is tried again, and after what pause.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);

/// A kind of bucket in JetStream. Clones are handles of the same bucket.
pub(crate) trait Openable: Clone + Send + Sync {
    /// Opens a bucket; [`Failure::Gone`] if there is none.
    fn open(jetstream: &Context, bucket: &Bucket) -> impl Future<Output = Result<Self, Failure>> + Send;

    /// Creates a bucket; [`Failure::Conflict`] if there is one.
    fn create(jetstream: &Context, bucket: &Bucket) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Opens a bucket; if there is none and the bucket may be created, creates it and opens it then.
///
/// A creation that fails with [`Failure::Conflict`] has lost the race to another node, which is as good as winning it; or
/// the bucket has been deleted a moment ago and the server is still removing its files, which passes.
pub(super) async fn open_or_create<T: Openable>(jetstream: &Context, bucket: &Bucket) -> Result<T, HostError> {
    let mut failure = Failure::Conflict;
    for attempt in 0..ATTEMPTS {
        if attempt > 1 {
            tokio::time::sleep(PAUSE).await;
        }
        failure = match T::open(jetstream, bucket).await {
            Ok(opened) => return Ok(opened),
            Err(Failure::Gone) if bucket.auto_provision => match T::create(jetstream, bucket).await {
                Ok(()) => {
                    tracing::info!(bucket = bucket.name, max_bytes = bucket.max_bytes, "bucket created");
                    continue;
                }
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        if failure != Failure::Conflict {
            break;
        }
    }
    Err(failure.of_bucket(&bucket.name))
}
