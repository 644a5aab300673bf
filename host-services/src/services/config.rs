//! The `services` object of the node configuration: one switch and a few limits for each host service.
//!
//! ```
//! let config: nex_host_services::Config = serde_json::from_str(r#"{
//!     "http": { "enabled": false },
//!     "kv": { "config": { "max_bytes": 1048576, "allowed_buckets": ["settings"] } },
//!     "messaging": { "enabled": true, "config": null }
//! }"#)?;
//! assert!(!config.http.enabled && config.objectstore.enabled);
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::names::SubjectPattern;

/// Switches and limits of all host services. Unknown keys are errors, missing ones have their defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// HTTP requests.
    pub http: Service<HttpConfig>,
    /// Key-value buckets.
    pub kv: Service<KvConfig>,
    /// Publish and request.
    pub messaging: Service<MessagingConfig>,
    /// Object buckets.
    pub objectstore: Service<ObjectStoreConfig>,
}

/// One service: a switch and its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, bound(deserialize = "C: Default + Deserialize<'de>"))]
pub struct Service<C> {
    /// Whether functions may use it at all. Default true; if not, every call is `PERMISSION_DENIED`.
    pub enabled: bool,
    /// Settings; `null` means the defaults.
    #[serde(deserialize_with = "null_as_default")]
    pub config: C,
}

impl<C: Default> Default for Service<C> {
    fn default() -> Self {
        Self {
            enabled: true,
            config: C::default(),
        }
    }
}

/// Settings of the key-value service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvConfig {
    /// Bytes of a bucket created for a function. Default 524,288. An existing bucket keeps its own limit.
    pub max_bytes: NonZeroU64,
    /// Whether a bucket that does not exist is created on first use. Default true; if not, it is `NOT_FOUND`.
    pub auto_provision: bool,
    /// Buckets functions may open by name beside their own. Default `null`: all but those of other workloads and of nex.
    pub allowed_buckets: Option<Vec<String>>,
    /// JetStream domain of the buckets. Default `null`: that of the connection.
    pub js_domain: Option<String>,
    /// Milliseconds until an operation fails with `TIMEOUT`. Default 5,000.
    pub timeout_ms: NonZeroU32,
}

/// Settings of the object store service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectStoreConfig {
    /// Bytes of a bucket created for a function. Default 524,288. An existing bucket keeps its own limit.
    pub max_bytes: NonZeroU64,
    /// Bytes of one object that a function may read or write, as it is held in memory. Default 16,777,216.
    pub max_object_bytes: NonZeroUsize,
    /// Whether a bucket that does not exist is created on first use. Default true; if not, it is `NOT_FOUND`.
    pub auto_provision: bool,
    /// Buckets functions may open by name beside their own. Default `null`: all but those of other workloads and of nex.
    pub allowed_buckets: Option<Vec<String>>,
    /// JetStream domain of the buckets. Default `null`: that of the connection.
    pub js_domain: Option<String>,
    /// Milliseconds until an operation fails with `TIMEOUT`. Default 5,000.
    pub timeout_ms: NonZeroU32,
}

/// Settings of the messaging service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MessagingConfig {
    /// Milliseconds `request` waits for its reply, unless the function says otherwise. Default 5,000.
    pub request_timeout_ms: NonZeroU32,
    /// Milliseconds `requestMany` gathers replies, unless the function says otherwise. Default 750.
    pub request_many_timeout_ms: NonZeroU32,
    /// Bytes of all replies to one `requestMany`. Default 8,388,608; more is `LIMIT_EXCEEDED`.
    pub max_gather_bytes: NonZeroUsize,
    /// Subjects functions may not publish to, with wildcards, beside those that are
    /// [always reserved](crate::policy::RESERVED_SUBJECTS). Default none.
    pub deny_subjects: Vec<SubjectPattern>,
}

/// Settings of the HTTP service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Milliseconds until a request is abandoned, redirects and body included, unless the function says otherwise.
    /// Default 10,000.
    pub timeout_ms: NonZeroU32,
    /// Bytes of a response body. Default 8,388,608; more is `LIMIT_EXCEEDED`.
    pub max_response_bytes: NonZeroUsize,
}

/// Default size of a bucket created for a function.
const BUCKET_BYTES: NonZeroU64 = NonZeroU64::new(512 * 1024).unwrap();
const FIVE_SECONDS_MS: NonZeroU32 = NonZeroU32::new(5_000).unwrap();
const GATHER_MS: NonZeroU32 = NonZeroU32::new(750).unwrap();
const HTTP_MS: NonZeroU32 = NonZeroU32::new(10_000).unwrap();
const EIGHT_MIB: NonZeroUsize = NonZeroUsize::new(8 * 1024 * 1024).unwrap();
const SIXTEEN_MIB: NonZeroUsize = NonZeroUsize::new(16 * 1024 * 1024).unwrap();

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            max_bytes: BUCKET_BYTES,
            auto_provision: true,
            allowed_buckets: None,
            js_domain: None,
            timeout_ms: FIVE_SECONDS_MS,
        }
    }
}

impl Default for ObjectStoreConfig {
    fn default() -> Self {
        Self {
            max_bytes: BUCKET_BYTES,
            max_object_bytes: SIXTEEN_MIB,
            auto_provision: true,
            allowed_buckets: None,
            js_domain: None,
            timeout_ms: FIVE_SECONDS_MS,
        }
    }
}

impl Default for MessagingConfig {
    fn default() -> Self {
        Self {
            request_timeout_ms: FIVE_SECONDS_MS,
            request_many_timeout_ms: GATHER_MS,
            max_gather_bytes: EIGHT_MIB,
            deny_subjects: Vec::new(),
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            timeout_ms: HTTP_MS,
            max_response_bytes: EIGHT_MIB,
        }
    }
}

/// A configured number of milliseconds.
pub(crate) fn duration(ms: NonZeroU32) -> Duration {
    Duration::from_millis(ms.get().into())
}

fn null_as_default<'de, D, C>(deserializer: D) -> Result<C, D::Error>
where
    D: Deserializer<'de>,
    C: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn empty_objects_and_null_are_the_defaults() {
        for text in ["{}", r#"{"kv":{}}"#, r#"{"kv":{"enabled":true,"config":null}}"#] {
            assert_eq!(serde_json::from_str::<Config>(text).unwrap(), Config::default());
        }
        let written = serde_json::to_string(&Config::default()).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&written).unwrap(), Config::default());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, named) in [
            (r#"{"kvs":{}}"#, "unknown field `kvs`"),
            (r#"{"kv":{"enable":true}}"#, "unknown field `enable`"),
            (
                r#"{"kv":{"config":{"bucket_name":"x"}}}"#,
                "unknown field `bucket_name`",
            ),
            (r#"{"http":{"config":{"timeout_ms":0}}}"#, "nonzero"),
            (r#"{"messaging":{"config":{"deny_subjects":["a..b"]}}}"#, "a..b"),
        ] {
            let error = serde_json::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
