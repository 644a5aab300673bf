//! Chunks on their way into a bucket.

use std::collections::VecDeque;
use std::future::IntoFuture as _;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::bucket::ObjectBucket;
use crate::nats::{Failure, classify};

/// Chunks sent ahead of their acknowledgements.
const WINDOW: usize = 8;

type Acknowledgement = BoxFuture<'static, Result<PublishAck, PublishError>>;

/// An upload. Dropped before it is complete, which is how an abandoned call ends, it has its chunks removed.
pub(super) struct Upload {
    // None when there is nothing to remove any more.
    bucket: Option<ObjectBucket>,
    subject: String,
    unacknowledged: VecDeque<Acknowledgement>,
}

impl Upload {
    pub(super) fn new(bucket: &ObjectBucket, subject: String) -> Self {
        Self {
            bucket: Some(bucket.clone()),
            subject,
            unacknowledged: VecDeque::with_capacity(WINDOW),
        }
    }

    /// Sends all chunks and waits until they are stored.
    pub(super) async fn send(&mut self, content: &Bytes, chunk_bytes: usize) -> Result<(), Failure> {
        let Some(jetstream) = self.bucket.as_ref().map(|bucket| bucket.jetstream.clone()) else {
            return Ok(());
        };
        for start in (0..content.len()).step_by(chunk_bytes) {
            if self.unacknowledged.len() == WINDOW {
                self.acknowledge_oldest().await?;
            }
            let chunk = content.slice(start..content.len().min(start + chunk_bytes));
            let sent = jetstream.publish(self.subject.clone(), chunk).await;
            self.unacknowledged
                .push_back(sent.map_err(|error| classify(&error))?.into_future());
        }
        while !self.unacknowledged.is_empty() {
            self.acknowledge_oldest().await?;
        }
        Ok(())
    }

    async fn acknowledge_oldest(&mut self) -> Result<(), Failure> {
        // It stays in the queue while we wait, so that whoever cleans up after us waits for it too.
        let Some(oldest) = self.unacknowledged.front_mut() else {
            return Ok(());
        };
        let result = oldest.await;
        self.unacknowledged.pop_front();
        result.map(drop).map_err(|error| classify(&error))
    }

    /// All chunks are stored, and somebody else looks after them from now on.
    pub(super) fn complete(mut self) -> String {
        self.bucket = None;
        std::mem::take(&mut self.subject)
    }

    /// Removes the chunks, and waits until they are.
    pub(super) async fn discard(mut self) {
        if let Some(cleaning) = self.start_cleaning() {
            // Only fails when the runtime ends.
            _ = cleaning.await;
        }
    }

    /// Starts a task of its own, which an abandoned call does not take with it.
    fn start_cleaning(&mut self) -> Option<JoinHandle<()>> {
        let bucket = self.bucket.take()?;
        let subject = std::mem::take(&mut self.subject);
        let unacknowledged = std::mem::take(&mut self.unacknowledged);
        Some(Handle::try_current().ok()?.spawn(async move {
            // The server may remove chunks faster than it stores those that came before.
            join_all(unacknowledged).await;
            bucket.discard(subject).await;
        }))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.start_cleaning();
    }
}
