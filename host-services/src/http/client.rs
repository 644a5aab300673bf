//! HTTP on the network, by reqwest with rustls.
//!
//! Certificates are always verified, against the certificates the operating system trusts. Up to [`MAX_REDIRECTS`]
//! redirects are followed the way browsers do: 301, 302 and 303 turn a POST into a GET, 307 and 308 repeat the request,
//! and credentials are not sent on to another host. Every target passes [`check_url`]. Proxy settings in the environment
//! are ignored, because a proxy would decide where a request goes in place of the policy. Bodies are not decompressed,
//! and nothing asks for compression unless the function does.

use std::error::Error;
use std::fmt;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use nex_runtime::host_services::{HostError, HttpMethod};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::{Attempt, Policy as Redirects};
use tokio::sync::OnceCell;

use super::{HttpClient, Limits, Request, Response};
use crate::error::{chain, denied, internal, invalid, limit, timeout, unavailable};
use crate::policy::check_url;

/// Redirects that are followed; one more is `LIMIT_EXCEEDED`.
pub const MAX_REDIRECTS: usize = 10;

/// Headers that frame the message or belong to the connection; the client sets them itself, and a function that could set
/// them could make two requests out of one.
const FRAMING_HEADERS: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// An HTTP client; one serves all workloads of a node. Connections stay open for reuse and live on the tokio runtime that
/// polls it, which needs I/O and time enabled.
#[derive(Debug, Default)]
pub struct ReqwestHttp {
    // Made on first use, as it reads the trusted certificates from disk.
    client: OnceCell<reqwest::Client>,
}

impl ReqwestHttp {
    /// A client without connections.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    async fn client(&self) -> Result<&reqwest::Client, HostError> {
        let build = || async {
            tokio::task::spawn_blocking(build)
                .await
                .map_err(|error| internal(format!("HTTP client: {error}")))?
                .map_err(|error| unavailable(format!("HTTP client: {}", chain(&error))))
        };
        self.client.get_or_try_init(build).await
    }
}

fn build() -> Result<reqwest::Client, reqwest::Error> {
    // reqwest takes the provider from here. Somebody else may have set one, which is as good.
    _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        reqwest::Client::builder()
            .user_agent(concat!("nex/", env!("CARGO_PKG_VERSION")))
            .redirect(Redirects::custom(redirect))
            .no_proxy()
    };
    builder().build().or_else(|error| {
        tracing::warn!(
            error = chain(&error),
            "no trusted certificates on this machine: functions can use http, but not https"
        );
        builder().tls_certs_only([]).build()
    })
}

fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        let text = format!("more than {MAX_REDIRECTS} redirects");
        return attempt.error(RedirectRefused(limit(text)));
    }
    match check_url(attempt.url()) {
        Ok(()) => attempt.follow(),
        Err(error) => {
            let text = format!("redirect to {}: {}", attempt.url(), error.message);
            attempt.error(RedirectRefused(denied(text)))
        }
    }
}

/// Carries our own error through reqwest's.
#[derive(Debug)]
struct RedirectRefused(HostError);

impl fmt::Display for RedirectRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Error for RedirectRefused {}

impl HttpClient for ReqwestHttp {
    fn send(&self, request: Request, limits: Limits) -> BoxFuture<'_, Result<Response, HostError>> {
        Box::pin(async move {
            let client = self.client().await?;
            let mut builder = client
                .request(method(request.method), request.url)
                .headers(headers(&request.headers)?)
                .timeout(limits.timeout);
            if !request.body.is_empty() {
                builder = builder.body(request.body);
            } else if matches!(request.method, HttpMethod::Post | HttpMethod::Put | HttpMethod::Patch) {
                // Some servers insist on a length where a body is usual; hyper leaves it out for an empty one.
                builder = builder.header(CONTENT_LENGTH, 0);
            }
            let failed = |error: reqwest::Error| explain(error, limits);
            let mut response = builder.send().await.map_err(failed)?;
            let status = response.status().as_u16();
            let headers = response
                .headers()
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), text(value)))
                .collect();
            let body = match request.method {
                // Its `content-length` is that of the body GET would give.
                HttpMethod::Head => Bytes::new(),
                _ => read(&mut response, limits).await?,
            };
            Ok(Response { status, headers, body })
        })
    }
}

async fn read(response: &mut reqwest::Response, limits: Limits) -> Result<Bytes, HostError> {
    let max = limits.max_response_bytes;
    let too_large = || limit(format!("response body has more than {max} bytes"));
    let announced = response.content_length().unwrap_or(0);
    if announced > max as u64 {
        return Err(too_large());
    }
    let mut body = BytesMut::with_capacity(usize::try_from(announced).unwrap_or(0));
    while let Some(chunk) = response.chunk().await.map_err(|error| explain(error, limits))? {
        if body.len() + chunk.len() > max {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn method(method: HttpMethod) -> reqwest::Method {
    match method {
        HttpMethod::Get => reqwest::Method::GET,
        HttpMethod::Post => reqwest::Method::POST,
        HttpMethod::Put => reqwest::Method::PUT,
        HttpMethod::Patch => reqwest::Method::PATCH,
        HttpMethod::Delete => reqwest::Method::DELETE,
        HttpMethod::Head => reqwest::Method::HEAD,
    }
}

fn headers(headers: &[(String, String)]) -> Result<HeaderMap, HostError> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let legal_name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| invalid(format!("{name:?} is not an HTTP header name")))?;
        if FRAMING_HEADERS.contains(&legal_name.as_str()) {
            return Err(invalid(format!(
                "header {name:?} is set by the HTTP client, not by the function"
            )));
        }
        let value = HeaderValue::from_str(value)
            .map_err(|_| invalid(format!("header {name:?} has control characters in its value")))?;
        map.append(legal_name, value);
    }
    Ok(map)
}

/// A header value as text; what is not UTF-8 is Latin-1, as RFC 9110 has it.
fn text(value: &HeaderValue) -> String {
    let bytes = value.as_bytes();
    std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().map(|&byte| char::from(byte)).collect(), str::to_owned)
}

fn explain(error: reqwest::Error, limits: Limits) -> HostError {
    let mut cause = error.source();
    while let Some(link) = cause {
        if let Some(RedirectRefused(error)) = link.downcast_ref() {
            return error.clone();
        }
        cause = link.source();
    }
    if error.is_timeout() {
        return timeout(format!("no complete response within {} ms", limits.timeout.as_millis()));
    }
    let text = chain(&error);
    if error.is_builder() {
        invalid(text)
    } else {
        unavailable(text)
    }
}
