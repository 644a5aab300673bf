//! The HTTP service: one request, one response, bytes in and out as they are.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use nex_runtime::host_services::{Headers, HostError, HttpMethod};
use url::Url;

mod client;
mod scripted;

pub use client::{MAX_REDIRECTS, ReqwestHttp};
pub use scripted::ScriptedHttp;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: HttpMethod,
    /// Absolute `http` or `https` URL.
    pub url: Url,
    /// Headers in order, beside those the client sets itself.
    pub headers: Headers,
    /// Body; sent with every method if it is not empty.
    pub body: Bytes,
}

/// A response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers; a name may occur more than once.
    pub headers: Headers,
    /// Body as it came; a `content-encoding` is not undone.
    pub body: Bytes,
}

impl Response {
    /// A response without headers and body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }
}

/// Limits of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time in all, redirects and body included.
    pub timeout: Duration,
    /// Bytes of the response body.
    pub max_response_bytes: usize,
}

/// Something that sends HTTP requests.
pub trait HttpClient: fmt::Debug + Send + Sync + 'static {
    /// Sends a request and reads the whole response. A status of 400 or more is no error.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a malformed header, `UNAVAILABLE` with the causes if the server cannot be reached or breaks
    /// off, `TIMEOUT`, `LIMIT_EXCEEDED` for a larger body or too many redirects.
    fn send(&self, request: Request, limits: Limits) -> BoxFuture<'_, Result<Response, HostError>>;
}
