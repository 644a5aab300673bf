//! An HTTP server for tests that answers, and closes, just as it is told.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// What it is asked.
#[derive(Debug)]
pub(crate) struct Request {
    /// Method, path and version.
    pub(crate) line: String,
    pub(crate) body: Vec<u8>,
}

/// What it answers: bytes as they are, and whether that was the last of the connection.
#[derive(Debug)]
pub(crate) struct Response {
    bytes: Vec<u8>,
    close: bool,
}

impl Response {
    /// With the length told in advance.
    pub(crate) fn sized(status: &str, body: &[u8]) -> Self {
        let mut bytes = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        Self { bytes, close: false }
    }

    /// Byte by byte, each a chunk.
    pub(crate) fn chunked(body: &[u8]) -> Self {
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for byte in body {
            bytes.extend_from_slice(&[b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        Self { bytes, close: false }
    }

    /// The same without its last bytes.
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.bytes.truncate(self.bytes.len() - bytes);
        self.close()
    }

    /// The last one: the connection is closed without a word of it.
    pub(crate) fn close(mut self) -> Self {
        self.close = true;
        self
    }
}

/// A running server; dropping it ends it.
#[derive(Debug)]
pub(crate) struct TestServer {
    pub(crate) socket: PathBuf,
    /// How many connections there have been.
    pub(crate) connections: Arc<AtomicUsize>,
    /// A permit for each connection that it has closed.
    pub(crate) closed: Arc<Semaphore>,
    task: JoinHandle<()>,
    _folder: TempDir,
}

impl TestServer {
    pub(crate) fn start(respond: impl Fn(Request) -> Response + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let closed = Arc::new(Semaphore::new(0));
        let (counter, gate, respond) = (Arc::clone(&connections), Arc::clone(&closed), Arc::new(respond));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::Relaxed);
                let (gate, respond) = (Arc::clone(&gate), Arc::clone(&respond));
                tokio::spawn(async move {
                    serve(stream, &*respond).await;
                    gate.add_permits(1);
                });
            }
        });
        Self {
            socket,
            connections,
            closed,
            task,
            _folder: folder,
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: UnixStream, respond: &(impl Fn(Request) -> Response + ?Sized)) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let Response { bytes, close } = respond(request);
        if stream.write_all(&bytes).await.is_err() || close {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<UnixStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header).await.ok()? == 0 {
            return None;
        }
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { line, body })
}
