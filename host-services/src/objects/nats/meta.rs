//! Metadata of an object as it stands in the stream, and as a function sees it.

use async_nats::datetime::{DateTime, now};
use async_nats::jetstream::object_store::{ObjectInfo as WireInfo, ObjectOptions};
use nex_runtime::host_services::ObjectInfo;

use crate::time::rfc3339;

/// Metadata read from the stream.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// What it says.
    pub(super) info: WireInfo,
    /// Sequence of the message it is in.
    pub(super) sequence: u64,
    /// When it was stored.
    pub(super) time: DateTime,
}

impl Stored {
    /// Parses a metadata message; `None` if it is none, which only a foreign writer can bring about.
    pub(super) fn parse(payload: &[u8], sequence: u64, time: DateTime) -> Option<Self> {
        match serde_json::from_slice(payload) {
            Ok(info) => Some(Self { info, sequence, time }),
            Err(error) => {
                tracing::warn!(sequence, %error, "object metadata is damaged");
                None
            }
        }
    }

    /// What a function sees.
    pub(super) fn describe(&self) -> ObjectInfo {
        describe(&self.info, self.time)
    }

    /// What takes its place when the object is deleted.
    pub(super) fn marker(&self) -> WireInfo {
        WireInfo {
            deleted: true,
            size: 0,
            chunks: 0,
            digest: None,
            modified: Some(now()),
            ..self.info.clone()
        }
    }
}

/// Metadata of an object that is about to be stored.
pub(super) fn new_info(bucket: &str, name: &str, nuid: &str, content: &[u8], chunk_bytes: usize) -> WireInfo {
    WireInfo {
        name: name.to_owned(),
        description: None,
        metadata: Default::default(),
        headers: None,
        options: Some(ObjectOptions {
            link: None,
            max_chunk_size: Some(chunk_bytes),
        }),
        bucket: bucket.to_owned(),
        nuid: nuid.to_owned(),
        size: content.len(),
        chunks: content.len().div_ceil(chunk_bytes),
        modified: Some(now()),
        digest: Some(super::super::digest(content)),
        deleted: false,
    }
}

/// What a function sees of metadata that was stored at this time.
pub(super) fn describe(info: &WireInfo, stored: DateTime) -> ObjectInfo {
    let mtime = info.modified.unwrap_or(stored);
    ObjectInfo {
        name: info.name.clone(),
        bucket: info.bucket.clone(),
        nuid: info.nuid.clone(),
        size: info.size as u64,
        chunks: info.chunks as u64,
        digest: info.digest.clone().unwrap_or_default(),
        mtime: rfc3339(mtime.unix_timestamp(), mtime.nanosecond()),
        description: info.description.clone(),
    }
}
