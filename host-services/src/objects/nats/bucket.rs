//! One object bucket: chunks on `$O.{bucket}.C.{nuid}`, metadata on `$O.{bucket}.M.{base64url of the name}`.
//!
//! Writers replace metadata only if it is still what they have read, so each version has exactly one successor, which
//! removes its chunks; no order of concurrent writes leaves chunks that belong to no object.

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_ROLLUP};
use async_nats::jetstream::Context;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::object_store::ObjectInfo as WireInfo;
use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind, Stream};
use bytes::{Bytes, BytesMut};
use data_encoding::BASE64URL;
use nex_runtime::host_services::ObjectInfo;
use uuid::Uuid;

use super::super::{CHUNK_BYTES, digest, too_large};
use super::meta::{Stored, describe, new_info};
use super::upload::Upload;
use crate::error::{internal, invalid};
use crate::nats::{Failure, classify, latest};

/// Attempts of an operation that loses races against writers of the same object. Each loss means that another writer got
/// through, so this many in a row need that many writers at work.
const RACES: usize = 32;

/// An open bucket.
#[derive(Debug, Clone)]
pub(super) struct ObjectBucket {
    name: String,
    stream: Stream,
    pub(super) jetstream: Context,
}

impl ObjectBucket {
    pub(super) fn new(name: &str, stream: Stream, jetstream: Context) -> Self {
        Self {
            name: name.to_owned(),
            stream,
            jetstream,
        }
    }

    /// The content, if the object exists.
    pub(super) async fn get(&self, name: &str, max_bytes: usize) -> Result<Option<Bytes>, Failure> {
        for _ in 0..RACES {
            let last = self.last(self.meta_subject(name)).await?;
            let Some(Stored { info, .. }) = last.and_then(parse).filter(|s| !s.info.deleted) else {
                return Ok(None);
            };
            if info.options.as_ref().is_some_and(|options| options.link.is_some()) {
                // A link may lead into a bucket the workload may not open.
                let text = format!("object {name:?} is a link; links are not followed");
                return Err(Failure::Other(invalid(text)));
            }
            if info.size > max_bytes {
                return Err(Failure::Other(too_large(name, info.size as u64, max_bytes)));
            }
            if let Some(content) = self.read(&info).await? {
                return Ok(Some(content));
            }
            // Replaced or deleted while we were reading.
        }
        Err(Failure::Conflict)
    }

    /// The chunks of this version of an object, or `None` if one is missing.
    async fn read(&self, info: &WireInfo) -> Result<Option<Bytes>, Failure> {
        let subject = self.chunk_subject(&info.nuid);
        let mut from = 1;
        let mut content = BytesMut::new();
        for _ in 0..info.chunks {
            let Some(chunk) = self.next(&subject, from).await? else {
                return Ok(None);
            };
            from = chunk.sequence + 1;
            if content.len() + chunk.payload.len() > info.size {
                break;
            }
            content.extend_from_slice(&chunk.payload);
        }
        let intact = content.len() == info.size
            && info
                .digest
                .as_ref()
                .is_none_or(|expected| digest(&content) == *expected);
        if !intact {
            let text = format!("object {:?} in bucket {:?} is damaged", info.name, self.name);
            return Err(Failure::Other(internal(text)));
        }
        Ok(Some(content.freeze()))
    }

    /// Stores an object; if there is no room, makes some by removing what deleted objects have left.
    pub(super) async fn put(&self, name: &str, content: &Bytes) -> Result<ObjectInfo, Failure> {
        match self.store(name, content).await {
            Err(Failure::Full(reason)) => match self.sweep().await? {
                true => self.store(name, content).await,
                false => Err(Failure::Full(reason)),
            },
            result => result,
        }
    }

    async fn store(&self, name: &str, content: &Bytes) -> Result<ObjectInfo, Failure> {
        let chunk_bytes = CHUNK_BYTES.min(self.jetstream.client().max_payload());
        let nuid = Uuid::new_v4().simple().to_string();
        let info = new_info(&self.name, name, &nuid, content, chunk_bytes);

        let mut upload = Upload::new(self, self.chunk_subject(&nuid));
        if let Err(failure) = upload.send(content, chunk_bytes).await {
            upload.discard().await;
            return Err(failure);
        }
        // From here on the metadata may be in the stream although we do not hear of it, so the chunks are only removed
        // after an answer that rules it out.
        let subject = upload.complete();
        match self.replace_meta(name, &info).await {
            Ok(previous) => {
                if let Some(previous) = previous.filter(|stored| !stored.info.deleted) {
                    self.discard(self.chunk_subject(&previous.info.nuid)).await;
                }
                Ok(describe(&info, async_nats::datetime::now()))
            }
            Err(failure) => {
                if !matches!(failure, Failure::Other(_)) {
                    self.discard(subject).await;
                }
                Err(failure)
            }
        }
    }

    /// Puts metadata in place of what is there, and returns what was there.
    async fn replace_meta(&self, name: &str, info: &WireInfo) -> Result<Option<Stored>, Failure> {
        for _ in 0..RACES {
            let previous = self.last_from_leader(name).await?;
            let sequence = previous.as_ref().map_or(0, |message| message.sequence);
            match self.publish_meta(name, info, sequence).await {
                Ok(()) => return Ok(previous.and_then(parse)),
                Err(Failure::Conflict) => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::Conflict)
    }

    /// Publishes metadata if the last message of its subject still is the expected one; 0 is for none.
    async fn publish_meta(&self, name: &str, info: &WireInfo, expected: u64) -> Result<(), Failure> {
        let payload =
            serde_json::to_vec(info).map_err(|error| Failure::Other(internal(format!("object metadata: {error}"))))?;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_ROLLUP, "sub");
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        let sent = self
            .jetstream
            .publish_with_headers(self.meta_subject(name), headers, payload.into())
            .await;
        acknowledge(sent.map_err(|error| classify(&error))?).await
    }

    /// Deletes an object; returns whether there was one.
    pub(super) async fn delete(&self, name: &str) -> Result<bool, Failure> {
        for _ in 0..RACES {
            let last = self.last_from_leader(name).await?;
            let Some(stored) = last.and_then(parse).filter(|stored| !stored.info.deleted) else {
                return Ok(false);
            };
            match self.publish_meta(name, &stored.marker(), stored.sequence).await {
                Ok(()) => {}
                Err(Failure::Conflict) => continue,
                // No room even for a marker: take the metadata out instead.
                Err(Failure::Full(_)) => self.remove_meta(name, stored.sequence).await?,
                Err(failure) => return Err(failure),
            }
            self.discard(self.chunk_subject(&stored.info.nuid)).await;
            return Ok(true);
        }
        Err(Failure::Conflict)
    }

    /// All live objects.
    pub(super) async fn list(&self) -> Result<Vec<ObjectInfo>, Failure> {
        let stored = self.all_meta().await?;
        let live = stored.iter().filter(|stored| !stored.info.deleted);
        Ok(live.map(Stored::describe).collect())
    }

    /// Removes the markers of deleted objects; returns whether there were any.
    async fn sweep(&self) -> Result<bool, Failure> {
        let mut swept = false;
        for stored in self.all_meta().await? {
            if stored.info.deleted {
                self.remove_meta(&stored.info.name, stored.sequence).await?;
                swept = true;
            }
        }
        Ok(swept)
    }

    async fn all_meta(&self) -> Result<Vec<Stored>, Failure> {
        let messages = latest(&self.stream, format!("$O.{}.M.>", self.name), false).await?;
        let parsed = messages.iter().filter_map(|message| {
            let info = message.info().ok()?;
            Stored::parse(&message.payload, info.stream_sequence, info.published)
        });
        Ok(parsed.collect())
    }

    /// Removes the metadata of an object up to this message.
    async fn remove_meta(&self, name: &str, sequence: u64) -> Result<(), Failure> {
        let purge = self.stream.purge().filter(self.meta_subject(name));
        let purged = purge.sequence(sequence + 1).await;
        purged.map(drop).map_err(|error| classify(&error))
    }

    /// Removes chunks that belong to no object any more. The object is stored or deleted by then, so a failure here is
    /// only worth a warning.
    pub(super) async fn discard(&self, chunk_subject: String) {
        if let Err(error) = self.stream.purge().filter(&chunk_subject).await {
            tracing::warn!(bucket = self.name, chunk_subject, %error, "chunks not removed");
        }
    }

    /// The last message of a subject, from any replica where the stream allows it.
    async fn last(&self, subject: String) -> Result<Option<StreamMessage>, Failure> {
        if !self.allows_direct() {
            return raw(self.stream.get_last_raw_message_by_subject(&subject).await);
        }
        match self.stream.direct_get_last_for_subject(subject).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(classify(&error)),
        }
    }

    /// The last metadata message of an object, from the leader, for those who are about to replace it.
    async fn last_from_leader(&self, name: &str) -> Result<Option<StreamMessage>, Failure> {
        let subject = self.meta_subject(name);
        raw(self.stream.get_last_raw_message_by_subject(&subject).await)
    }

    /// The first message of a subject at or after a sequence.
    async fn next(&self, subject: &str, from: u64) -> Result<Option<StreamMessage>, Failure> {
        if !self.allows_direct() {
            return raw(self.stream.get_first_raw_message_by_subject(subject, from).await);
        }
        match self.stream.direct_get_next_for_subject(subject, Some(from)).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(classify(&error)),
        }
    }

    fn allows_direct(&self) -> bool {
        self.stream.cached_info().config.allow_direct
    }

    fn meta_subject(&self, name: &str) -> String {
        format!("$O.{}.M.{}", self.name, BASE64URL.encode(name.as_bytes()))
    }

    fn chunk_subject(&self, nuid: &str) -> String {
        format!("$O.{}.C.{nuid}", self.name)
    }
}

async fn acknowledge(sent: async_nats::jetstream::context::PublishAckFuture) -> Result<(), Failure> {
    sent.await.map(drop).map_err(|error| classify(&error))
}

fn parse(message: StreamMessage) -> Option<Stored> {
    Stored::parse(&message.payload, message.sequence, message.time)
}

fn raw(
    read: Result<StreamMessage, async_nats::jetstream::stream::LastRawMessageError>,
) -> Result<Option<StreamMessage>, Failure> {
    match read {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(classify(&error)),
    }
}
