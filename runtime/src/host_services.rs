//! What a function may ask of its host: key-value, object store, messaging and HTTP, as plain data.
//!
//! The seam knows nothing of NATS, of the link or of V8. In-process harnesses implement it in memory, the node
//! implements it on NATS, and an agent implements it by sending the same data over the link. Bytes never pass through
//! a serialiser: [`HostRequest::operation`] and [`HostResponse::result`] are small and serialisable, payloads stand
//! beside them.

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

/// Message or HTTP headers in order; a name may occur more than once.
pub type Headers = Vec<(String, String)>;

/// The host services of one function: whoever holds the value may use exactly the buckets, subjects and addresses of
/// that function's policy.
pub trait HostServices: Send + Sync + 'static {
    /// Carries out one request.
    ///
    /// The future is polled on the isolate's thread, which has no reactor of the implementation: an implementation that
    /// needs one spawns on its own runtime and returns the joined result. Dropping the future abandons the call.
    ///
    /// # Errors
    /// Every failure is a [`HostError`]; the function sees it as a JavaScript `Error` with that code and message.
    fn call(&self, request: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>>;
}

impl fmt::Debug for dyn HostServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostServices")
    }
}

/// One request of a function to its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRequest {
    /// What to do, and on what.
    pub operation: Operation,
    /// The value to store, message to send or HTTP body; empty where the operation takes none.
    pub payload: Bytes,
}

/// The operations of the host services. `bucket: None` means the workload's own default bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Operation {
    /// Value of a key -> [`HostResult::Value`]; a missing key is [`HostErrorCode::NotFound`].
    KvGet {
        /// Bucket, or the default one.
        bucket: Option<String>,
        /// Key.
        key: String,
    },
    /// Stores the payload under a key -> [`HostResult::Revision`].
    KvSet {
        /// Bucket, or the default one.
        bucket: Option<String>,
        /// Key.
        key: String,
    },
    /// Deletes a key, present or not -> [`HostResult::Done`].
    KvDelete {
        /// Bucket, or the default one.
        bucket: Option<String>,
        /// Key.
        key: String,
    },
    /// All live keys, sorted -> [`HostResult::Keys`]; empty for an empty bucket.
    KvKeys {
        /// Bucket, or the default one.
        bucket: Option<String>,
    },
    /// Content of an object -> [`HostResult::Value`]; a missing object is [`HostErrorCode::NotFound`].
    ObjectGet {
        /// Bucket, or the default one.
        bucket: Option<String>,
        /// Object name.
        name: String,
    },
    /// Stores the payload as an object -> [`HostResult::Object`].
    ObjectPut {
        /// Bucket, or the default one.
        bucket: Option<String>,
        /// Object name.
        name: String,
    },
    /// Deletes an object -> [`HostResult::Done`]; a missing object is [`HostErrorCode::NotFound`].
    ObjectDelete {
        /// Bucket, or the default one.
        bucket: Option<String>,
        /// Object name.
        name: String,
    },
    /// Live objects, sorted by name -> [`HostResult::Objects`]; empty for an empty bucket.
    ObjectList {
        /// Bucket, or the default one.
        bucket: Option<String>,
    },
    /// Publishes the payload -> [`HostResult::Done`].
    Publish {
        /// Concrete subject, no wildcards.
        subject: String,
        /// Message headers.
        #[serde(default)]
        headers: Headers,
    },
    /// Publishes the payload and waits for the first reply -> [`HostResult::Messages`] with one element.
    Request {
        /// Concrete subject, no wildcards.
        subject: String,
        /// Message headers.
        #[serde(default)]
        headers: Headers,
        /// Milliseconds to wait, or the host's default.
        timeout_ms: Option<u32>,
    },
    /// Publishes the payload and gathers replies until `max_replies` or the time is up -> [`HostResult::Messages`].
    RequestMany {
        /// Concrete subject, no wildcards.
        subject: String,
        /// Message headers.
        #[serde(default)]
        headers: Headers,
        /// Milliseconds to gather in all, or the host's default.
        timeout_ms: Option<u32>,
        /// Stop after this many replies.
        max_replies: Option<u32>,
    },
    /// One HTTP request; the payload is its body -> [`HostResult::Http`]. A status of 400 or more is no error.
    Http {
        /// Method.
        method: HttpMethod,
        /// Absolute `http` or `https` URL, query string included.
        url: String,
        /// Request headers.
        #[serde(default)]
        headers: Headers,
        /// Milliseconds until the request is abandoned, or the host's default.
        timeout_ms: Option<u32>,
    },
}

impl Operation {
    /// Service and method as logs, errors and policies name them, for example `("kv", "get")`.
    #[must_use]
    pub fn name(&self) -> (&'static str, &'static str) {
        match self {
            Self::KvGet { .. } => ("kv", "get"),
            Self::KvSet { .. } => ("kv", "set"),
            Self::KvDelete { .. } => ("kv", "delete"),
            Self::KvKeys { .. } => ("kv", "keys"),
            Self::ObjectGet { .. } => ("objectstore", "get"),
            Self::ObjectPut { .. } => ("objectstore", "put"),
            Self::ObjectDelete { .. } => ("objectstore", "delete"),
            Self::ObjectList { .. } => ("objectstore", "list"),
            Self::Publish { .. } => ("messaging", "publish"),
            Self::Request { .. } => ("messaging", "request"),
            Self::RequestMany { .. } => ("messaging", "requestMany"),
            Self::Http { method, .. } => ("http", method.as_str()),
        }
    }
}

/// HTTP request methods a function may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names are the methods of RFC 9110")]
pub enum HttpMethod {
    Get,
    Post,
    Put,
    Patch,
    Delete,
    Head,
}

impl HttpMethod {
    /// The method as it stands in a request line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Head => "HEAD",
        }
    }
}

/// The answer to one [`HostRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostResponse {
    /// What came back, without its bytes.
    pub result: HostResult,
    /// The value, the HTTP body, or the payloads of all messages one after another; else empty.
    pub payload: Bytes,
}

impl From<HostResult> for HostResponse {
    fn from(result: HostResult) -> Self {
        Self {
            result,
            payload: Bytes::new(),
        }
    }
}

/// What a [`HostResponse`] carries beside its bytes; [`Operation`] says which variant answers what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum HostResult {
    /// Done; nothing to tell.
    Done,
    /// The payload is the value.
    Value,
    /// Revision of the key just written.
    Revision(u64),
    /// Keys of a bucket.
    Keys(Vec<String>),
    /// The object just stored.
    Object(ObjectInfo),
    /// Objects of a bucket.
    Objects(Vec<ObjectInfo>),
    /// Replies to a request, in order of arrival; their payloads stand one after another in the response's payload.
    Messages(Vec<MessageInfo>),
    /// An HTTP response; the payload is its body.
    Http {
        /// Status code.
        status: u16,
        /// Response headers.
        headers: Headers,
    },
}

/// Metadata of a stored object, as NATS keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectInfo {
    /// Object name.
    pub name: String,
    /// Bucket it is in.
    pub bucket: String,
    /// Unique ID of this version.
    pub nuid: String,
    /// Bytes.
    pub size: u64,
    /// Chunks it is stored in.
    pub chunks: u64,
    /// `SHA-256=` and the URL-safe base64 digest.
    pub digest: String,
    /// Time of the last change, RFC 3339 in UTC.
    pub mtime: String,
    /// Description, if it has one.
    pub description: Option<String>,
}

/// One message of a [`HostResult::Messages`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageInfo {
    /// Subject it arrived on.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Bytes of the response's payload that belong to this message.
    pub len: u32,
}

/// Why a host service said no. The function sees an `Error` named `HostServiceError` with these two properties.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct HostError {
    /// Class of the failure, stable across versions.
    pub code: HostErrorCode,
    /// What was wrong, for people.
    pub message: String,
}

impl HostError {
    /// An error of this class with this text.
    pub fn new(code: HostErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Classes of [`HostError`]; `Display` is what a function reads in `error.code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum HostErrorCode {
    /// An argument is missing, of the wrong type or malformed.
    InvalidArgument,
    /// No such key, object or bucket.
    NotFound,
    /// The workload's policy forbids it, or the service is switched off.
    PermissionDenied,
    /// The bucket or message would exceed a limit.
    LimitExceeded,
    /// No answer in time.
    Timeout,
    /// Nobody listens on the subject.
    NoResponders,
    /// The service or its transport cannot be reached.
    Unavailable,
    /// Anything else.
    Internal,
}

impl HostErrorCode {
    /// The code as functions see it, for example `NOT_FOUND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::LimitExceeded => "LIMIT_EXCEEDED",
            Self::Timeout => "TIMEOUT",
            Self::NoResponders => "NO_RESPONDERS",
            Self::Unavailable => "UNAVAILABLE",
            Self::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for HostErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
