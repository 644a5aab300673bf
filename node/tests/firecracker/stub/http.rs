//! As much of an HTTP server as Firecracker is.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Most bytes of a request's body that Firecracker takes.
const MAX_BODY: usize = 51_200;

pub struct Connection(BufReader<UnixStream>);

pub struct Request {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
}

impl Connection {
    pub fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// The next request; `None` when the client has gone.
    pub async fn next(&mut self) -> io::Result<Option<Request>> {
        let Some(first) = self.line().await? else {
            return Ok(None);
        };
        let [method, path, "HTTP/1.1"] = first.split(' ').collect::<Vec<_>>()[..] else {
            return Err(io::Error::other(first));
        };
        let (method, path) = (method.to_owned(), path.to_owned());
        let (mut length, mut is_json) = (0, false);
        loop {
            let line = self.line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().map_err(io::Error::other)?,
                "content-type" => is_json = value.trim() == "application/json",
                "transfer-encoding" => return Err(io::Error::other("Firecracker takes no chunks")),
                _ => {}
            }
        }
        if length > MAX_BODY || (length > 0 && !is_json) {
            return Err(io::Error::other("no body of this kind"));
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok(Some(Request { method, path, body }))
    }

    async fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).await?;
        Ok((read > 0).then(|| line.trim_end().to_owned()))
    }

    pub async fn answer(&mut self, status: &str, body: &str) -> io::Result<()> {
        let mut answer = format!("HTTP/1.1 {status}\r\nServer: Firecracker API\r\nConnection: keep-alive\r\n");
        if !body.is_empty() {
            answer += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        answer += "\r\n";
        answer += body;
        self.raw(answer.as_bytes()).await
    }

    pub async fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes).await
    }
}
