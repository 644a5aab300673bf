//! Fetches artefacts from JetStream object stores and makes sure that they are the ones that were signed for.
//!
//! Nothing is downloaded before the object's own metadata agrees with the limits and with the signed hash; and nothing is
//! used before the bytes that came do.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::object_store::{InfoErrorKind, ObjectStore};
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use crate::claims::parse_sha256;
use crate::control::Location;

/// Largest artefact in bytes, whatever the configuration says: it is held in memory.
pub const MAX_ARTIFACT_BYTES: u64 = 256 << 20;

/// Time for all of one download.
const DOWNLOAD_PATIENCE: Duration = Duration::from_secs(60);

type Hash = [u8; 32];

/// Why there is no artefact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The object store does not exist.
    #[error("object store `{0}` does not exist")]
    NoBucket(String),
    /// The object does not exist or has been deleted.
    #[error("object store `{bucket}` has no object `{key}`")]
    NoObject {
        /// Object store.
        bucket: String,
        /// Object.
        key: String,
    },
    /// JetStream does not answer.
    #[error("JetStream does not answer, is it enabled? ({0})")]
    NoJetStream(String),
    /// The download failed.
    #[error("download of {location}: {reason}")]
    Download {
        /// What was to be fetched.
        location: Location,
        /// Why it failed.
        reason: String,
    },
    /// Larger than one artefact may be.
    #[error("the artefact has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes it has.
        size: u64,
        /// Bytes it may have.
        limit: u64,
    },
    /// Not what was signed for.
    #[error("the artefact's SHA-256 is {found}, the signed claim says {signed}")]
    Hash {
        /// Hexadecimal.
        found: String,
        /// Hexadecimal.
        signed: String,
    },
}

/// An artefact that is what was signed for.
#[derive(Debug, Clone)]
pub(crate) struct Artifact {
    pub(crate) bytes: Bytes,
    /// SHA-256 in hexadecimal.
    pub(crate) hash: String,
}

/// Fetches artefacts and keeps some of them in memory, the most recently used.
#[derive(Debug)]
pub(crate) struct Artifacts {
    client: Client,
    /// Bytes of one artefact.
    limit: u64,
    cache: Mutex<Cache>,
}

impl Artifacts {
    /// `max_bytes`: limit of one artefact, or 0. `cache_bytes`: what is kept.
    pub(crate) fn new(client: Client, max_bytes: u64, cache_bytes: u64) -> Self {
        let limit = if max_bytes == 0 {
            MAX_ARTIFACT_BYTES
        } else {
            max_bytes.min(MAX_ARTIFACT_BYTES)
        };
        let cache = Mutex::new(Cache {
            capacity: cache_bytes,
            size: 0,
            entries: VecDeque::new(),
        });
        Self { client, limit, cache }
    }

    /// Fetches an object that must have this SHA-256. It must be where the request says even if its content is known
    /// already: whoever cannot reach an object cannot run it.
    pub(crate) async fn fetch(
        &self,
        location: &Location,
        js_domain: Option<&str>,
        signed: Hash,
    ) -> Result<Artifact, ArtifactError> {
        let download = self.download(location, js_domain, signed);
        tokio::time::timeout(DOWNLOAD_PATIENCE, download)
            .await
            .unwrap_or_else(|_| {
                Err(ArtifactError::Download {
                    location: location.clone(),
                    reason: format!("it took longer than {DOWNLOAD_PATIENCE:?}"),
                })
            })
    }

    async fn download(
        &self,
        location: &Location,
        js_domain: Option<&str>,
        signed: Hash,
    ) -> Result<Artifact, ArtifactError> {
        let store = self.open(location, js_domain).await?;
        let info = store.info(&location.key).await.map_err(|error| match error.kind() {
            InfoErrorKind::NotFound => no_object(location),
            _ => failed(location, &error),
        })?;
        if info.deleted {
            return Err(no_object(location));
        }
        let mut size = u64::try_from(info.size).unwrap_or(u64::MAX);
        // A link has no content of its own; what it points to is checked as it is read.
        let is_link = info.options.as_ref().is_some_and(|options| options.link.is_some());
        if !is_link {
            self.check_size(size)?;
            if let Some(found) = info.digest.as_deref().and_then(parse_sha256) {
                check_hash(found, signed)?;
            }
            if let Some(bytes) = self.cache.lock().get(signed) {
                return Ok(Artifact {
                    bytes,
                    hash: HEXLOWER.encode(&signed),
                });
            }
        }

        let object = store
            .get(&location.key)
            .await
            .map_err(|error| failed(location, &error))?;
        if is_link {
            size = u64::try_from(object.info().size).unwrap_or(u64::MAX);
            self.check_size(size)?;
        }
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        object
            .take(self.limit + 1)
            .read_to_end(&mut content)
            .await
            .map_err(|error| failed(location, &error))?;
        self.check_size(u64::try_from(content.len()).unwrap_or(u64::MAX))?;
        check_hash(Sha256::digest(&content).into(), signed)?;

        let bytes = Bytes::from(content);
        self.cache.lock().insert(signed, bytes.clone());
        Ok(Artifact {
            bytes,
            hash: HEXLOWER.encode(&signed),
        })
    }

    async fn open(&self, location: &Location, js_domain: Option<&str>) -> Result<ObjectStore, ArtifactError> {
        let context = match js_domain {
            Some(domain) => jetstream::with_domain(self.client.clone(), domain),
            None => jetstream::new(self.client.clone()),
        };
        context.get_object_store(&location.bucket).await.map_err(|error| {
            let cause = error
                .source()
                .and_then(|source| source.downcast_ref::<GetStreamError>());
            match cause.map(GetStreamError::kind) {
                Some(GetStreamErrorKind::JetStream(answer)) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    ArtifactError::NoBucket(location.bucket.clone())
                }
                Some(GetStreamErrorKind::JetStream(answer)) => failed(location, &answer),
                _ => ArtifactError::NoJetStream(error.to_string()),
            }
        })
    }

    fn check_size(&self, size: u64) -> Result<(), ArtifactError> {
        if size > self.limit {
            return Err(ArtifactError::TooLarge {
                size,
                limit: self.limit,
            });
        }
        Ok(())
    }
}

fn check_hash(found: Hash, signed: Hash) -> Result<(), ArtifactError> {
    if found != signed {
        return Err(ArtifactError::Hash {
            found: HEXLOWER.encode(&found),
            signed: HEXLOWER.encode(&signed),
        });
    }
    Ok(())
}

fn no_object(location: &Location) -> ArtifactError {
    ArtifactError::NoObject {
        bucket: location.bucket.clone(),
        key: location.key.clone(),
    }
}

fn failed(location: &Location, error: &dyn StdError) -> ArtifactError {
    ArtifactError::Download {
        location: location.clone(),
        reason: error.to_string(),
    }
}

/// Artefacts by hash, most recently used last.
#[derive(Debug)]
struct Cache {
    capacity: u64,
    size: u64,
    entries: VecDeque<(Hash, Bytes)>,
}

impl Cache {
    fn get(&mut self, hash: Hash) -> Option<Bytes> {
        let index = self.entries.iter().position(|(known, _)| *known == hash)?;
        let entry = self.entries.remove(index)?;
        let bytes = entry.1.clone();
        self.entries.push_back(entry);
        Some(bytes)
    }

    fn insert(&mut self, hash: Hash, bytes: Bytes) {
        let len = |bytes: &Bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let added = len(&bytes);
        if added > self.capacity || self.get(hash).is_some() {
            return;
        }
        while self.size + added > self.capacity {
            let Some((_, dropped)) = self.entries.pop_front() else {
                break;
            };
            self.size -= len(&dropped);
        }
        self.size += added;
        self.entries.push_back((hash, bytes));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_what_was_used_last() {
        let mut cache = Cache {
            capacity: 10,
            size: 0,
            entries: VecDeque::new(),
        };
        let (a, b, c) = ([1; 32], [2; 32], [3; 32]);
        cache.insert(a, Bytes::from_static(b"12345"));
        cache.insert(b, Bytes::from_static(b"1234"));
        assert_eq!(cache.get(a).unwrap(), "12345");
        cache.insert(c, Bytes::from_static(b"123"));
        assert!(cache.get(b).is_none());
        assert!(cache.get(a).is_some() && cache.get(c).is_some());
        cache.insert(b, Bytes::from_static(b"more than fits"));
        assert_eq!((cache.size, cache.entries.len()), (8, 2));
        cache.insert(c, Bytes::from_static(b"123"));
        assert_eq!((cache.size, cache.entries.len()), (8, 2));
    }
}
