//! Calls over HTTP/1.1 to a server on UNIX sockets, on connections that are kept: what the bridge and the load generator
//! reach workerd and Deno with.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use nex_node::bench::{Answer, Ask, Target};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Why a call got no good reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The server refuses connections.
    #[error("cannot connect to {path}: {source}")]
    Connect { path: PathBuf, source: std::io::Error },
    /// The connection broke before the reply was complete.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The server answered with an error.
    #[error("{status}: {text}")]
    Status {
        status: StatusCode,
        /// The beginning of what it had to say.
        text: String,
    },
    /// The path is none.
    #[error("not a request: {0}")]
    Request(#[from] hyper::http::Error),
}

type Connection = SendRequest<Full<Bytes>>;

/// Connections to one or several sockets, as many as there are calls at a time, up to a maximum. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sockets: Vec<PathBuf>,
    /// Sockets take turns.
    turn: AtomicUsize,
    /// Idle connections. The last one used is the next one used, so that no more are kept busy than necessary.
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Pool {
    /// At most `connections` to these sockets, of which there must be one.
    pub(crate) fn new(sockets: Vec<PathBuf>, connections: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                sockets,
                turn: AtomicUsize::new(0),
                idle: Mutex::default(),
                permits: Arc::new(Semaphore::new(connections)),
            }),
        }
    }

    /// The permits to call, one for each connection there may be.
    pub(crate) fn permits(&self) -> &Arc<Semaphore> {
        &self.shared.permits
    }

    /// Makes a call and reads its reply to the end. Whoever calls this more often at a time than there may be
    /// connections takes [`permits`](Self::permits).
    ///
    /// A request that the server cannot have seen, because it had closed the connection, is made again on another one.
    pub(crate) async fn call(&self, method: &Method, path: &str, body: Bytes) -> Result<Bytes, CallError> {
        loop {
            // Not within the `match`, which would hold the lock while it connects.
            let idle = self.idle().pop();
            let (mut connection, is_new) = match idle {
                Some(connection) => (connection, false),
                None => (self.connect().await?, true),
            };
            if let Err(error) = connection.ready().await {
                if is_new {
                    return Err(error.into());
                }
                continue;
            }
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "function")
                .body(Full::new(body.clone()))?;
            let reply = match connection.try_send_request(request).await {
                Ok(reply) => reply,
                Err(error) if error.message().is_some() && !is_new => continue,
                Err(error) => return Err(error.into_error().into()),
            };
            let status = reply.status();
            let body = reply.into_body().collect().await?.to_bytes();
            self.idle().push(connection);
            if status.is_success() {
                return Ok(body);
            }
            let text = String::from_utf8_lossy(body.get(..body.len().min(200)).unwrap_or_default());
            return Err(CallError::Status {
                status,
                text: text.lines().next().unwrap_or_default().to_owned(),
            });
        }
    }

    async fn connect(&self) -> Result<Connection, CallError> {
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed);
        let path = &self.shared.sockets[turn % self.shared.sockets.len()];
        let stream = UnixStream::connect(path).await.map_err(|source| CallError::Connect {
            path: path.clone(),
            source,
        })?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // What goes wrong with it, the call on it is told.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Paths of a server as a target of the load generator: each call a POST.
#[derive(Debug)]
pub(crate) struct HttpTarget {
    asker: HttpAsk,
    answers: UnboundedReceiver<Answer>,
}

/// The sending half of an [`HttpTarget`].
#[derive(Debug, Clone)]
pub(crate) struct HttpAsk {
    pool: Pool,
    paths: Arc<[String]>,
    sender: UnboundedSender<Answer>,
    runtime: Handle,
}

impl HttpTarget {
    /// Asks these paths. Must be called on a tokio runtime, which makes the calls.
    pub(crate) fn new(pool: Pool, paths: impl IntoIterator<Item = String>) -> Self {
        let (sender, answers) = unbounded_channel();
        Self {
            asker: HttpAsk {
                pool,
                paths: paths.into_iter().collect(),
                sender,
                runtime: Handle::current(),
            },
            answers,
        }
    }
}

impl Target for HttpTarget {
    type Ask = HttpAsk;

    fn asker(&self) -> HttpAsk {
        self.asker.clone()
    }

    async fn answer(&mut self) -> Option<Answer> {
        self.answers.recv().await
    }
}

impl Ask for HttpAsk {
    async fn ask(&self, to: usize, key: u64, payload: Bytes) -> Result<(), String> {
        if to >= self.paths.len() {
            return Err("no such path".to_owned());
        }
        let Self {
            pool, paths, sender, ..
        } = self.clone();
        self.runtime.spawn(async move {
            let outcome = pool.call(&Method::POST, &paths[to], payload).await;
            let outcome = outcome.map_err(|error| error.to_string());
            // A measurement that has been given up needs no answer.
            _ = sender.send(Answer { key, outcome });
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
