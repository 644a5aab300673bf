//! A client of Firecracker's API: HTTP/1.1 with JSON over a Unix socket, one connection per request.
//!
//! The process at the other end has a guest inside, so its answers are bounded in size and in time.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::resources::Fault;
use super::socket::Socket;
use crate::machines::MachineError;

/// Largest answer read, in bytes. Firecracker's own are below 4 KiB but for `GET /vm/config`, which nobody asks for.
const MAX_ANSWER: usize = 64 << 10;

/// Largest head of an answer, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Longest part of an answer that an error quotes, in characters.
const MAX_QUOTE: usize = 500;

/// Time an answer may take. The call that waits longest by design is a pause, which waits up to 30 s for processors that
/// do not listen; a machine that has some of those is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// The API of one process.
#[derive(Debug, Clone)]
pub(super) struct Api {
    socket: Socket,
    patience: Duration,
}

impl Api {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            patience: PATIENCE,
        }
    }

    /// The same API for a call that may take longer, such as one that writes a machine's memory to a file.
    pub(super) fn patiently(&self, patience: Duration) -> Self {
        Self {
            socket: self.socket.clone(),
            patience: patience.max(self.patience),
        }
    }

    /// Sets a resource.
    ///
    /// # Errors
    /// [`MachineError::Refused`] with the request and Firecracker's own message, or what went wrong on the way.
    pub(super) async fn put(&self, path: &str, body: &impl Serialize) -> Result<(), MachineError> {
        self.call(Method::PUT, path, Some(body)).await.map(drop)
    }

    /// Changes a resource.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub(super) async fn patch(&self, path: &str, body: &impl Serialize) -> Result<(), MachineError> {
        self.call(Method::PATCH, path, Some(body)).await.map(drop)
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, MachineError> {
        let answer = self.call(Method::GET, path, None::<&()>).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            let request = format!("GET {path}");
            refused(&request, format!("it answered {}: {error}", quote(&answer)))
        })
    }

    async fn call(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Bytes, MachineError> {
        let name = format!("{method} {path}");
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| refused(&name, error))?,
            None => Vec::new(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| refused(&name, error))?;
        match tokio::time::timeout(self.patience, exchange(&self.socket, request)).await {
            Ok(Ok((status, answer))) if status.is_success() => Ok(answer),
            Ok(Ok((status, answer))) => Err(refused(&name, fault(status, &answer))),
            Ok(Err(message)) => Err(refused(&name, message)),
            Err(_) => Err(refused(&name, format!("no answer within {:?}", self.patience))),
        }
    }
}

fn refused(request: &str, message: impl Display) -> MachineError {
    MachineError::Refused {
        request: request.to_owned(),
        message: message.to_string(),
    }
}

/// One request and its answer, on a connection of their own, which ends with this future.
async fn exchange(socket: &Socket, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
    let stream = socket.connect().await.map_err(|error| format!("its socket: {error}"))?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| describe(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| describe(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                format!("its answer is longer than {MAX_ANSWER} bytes")
            } else {
                error.to_string()
            }
        })?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // It may end with the answer still to be read.
        _ = &mut connection => answer.await,
    }
}

/// An error of hyper with its cause, which says more.
fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Firecracker's words for a refusal.
fn fault(status: StatusCode, answer: &[u8]) -> String {
    match serde_json::from_slice::<Fault>(answer) {
        Ok(fault) => quote(fault.fault_message.as_bytes()),
        Err(_) => format!("status {} {}", status.as_u16(), quote(answer)),
    }
}

/// What an error shows of something from outside: its beginning, on one line.
pub(super) fn quote(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut quoted: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_QUOTE)
        .collect();
    if text.trim().chars().nth(MAX_QUOTE).is_some() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_short_and_on_one_line() {
        assert_eq!(quote(b" a\nb\x1b[1m\xff "), "a b [1m\u{fffd}");
        let long = quote("ä".repeat(501).as_bytes());
        assert_eq!(long.chars().count(), 501);
        assert!(long.ends_with("ä…"));
    }

    #[test]
    fn a_refusal_without_a_fault_message_is_quoted() {
        let fault = |body: &str| fault(StatusCode::BAD_REQUEST, body.as_bytes());
        assert_eq!(fault(r#"{"fault_message":"no","more":1}"#), "no");
        assert_eq!(fault("nonsense"), "status 400 nonsense");
    }
}
