//! A local nats-server process, for the node's development mode, tests and benchmarks.
//!
//! The server picks its port, says so in its log, and is ready when its log says that; nothing is polled and nothing
//! sleeps. It ends with its [`NatsServer`], and on Linux also with this process, however that ends.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;

mod find;
mod process;

use process::Process;

pub use find::{MIN_VERSION, find_binary};

/// How long a server may take to start. It takes some 50 ms; recovering a large store takes longer.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Log lines kept to explain a failed start.
const KEPT_LINES: usize = 20;

/// Options of a [`NatsServer`]. The default is a random port on 127.0.0.1 and JetStream in a temporary directory.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Port on 127.0.0.1; 0 lets the server choose.
    pub port: u16,
    /// Switches JetStream off.
    pub no_jetstream: bool,
    /// Where JetStream keeps its data; created if missing, and left alone afterwards. Default: a temporary directory that
    /// is removed with the server.
    pub store_dir: Option<PathBuf>,
    /// More of the server's configuration file, for example users or TLS. It must not redirect the log.
    pub config: String,
    /// The server's binary. Default: [`find_binary`].
    pub binary: Option<PathBuf>,
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NatsServerError {
    /// No server binary.
    #[error(
        "no nats-server {MIN_VERSION} or later found; looked at {looked_at}. \
         `cargo xtask setup` gets one, or set NATS_SERVER_BIN to its path"
    )]
    NotFound {
        /// All places and what was wrong with each.
        looked_at: String,
    },
    /// A file or process operation failed.
    #[error("nats-server: {action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// The server ended before it was ready.
    #[error("nats-server did not start:\n{log}")]
    Ended {
        /// The last lines of its log.
        log: String,
    },
    /// The server was not ready in time, and was killed.
    #[error("nats-server was not ready after {} s:\n{log}", START_TIMEOUT.as_secs())]
    Timeout {
        /// The last lines of its log.
        log: String,
    },
}

fn io_error(action: &'static str) -> impl Fn(io::Error) -> NatsServerError {
    move |source| NatsServerError::Io { action, source }
}

/// A running server. Dropping it ends the server in good order, which takes some milliseconds.
#[derive(Debug)]
pub struct NatsServer {
    port: u16,
    process: Process,
    // Removed after the server has ended.
    _directory: TempDir,
}

impl NatsServer {
    /// Starts a server with the default options. Blocks until it is ready, some 50 ms.
    ///
    /// # Errors
    /// [`NatsServerError`], with the server's own words where it has any.
    pub fn start() -> Result<Self, NatsServerError> {
        Self::start_with(Options::default())
    }

    /// Starts a server. Blocks until it is ready.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(options: Options) -> Result<Self, NatsServerError> {
        let binary = match options.binary.clone() {
            Some(binary) => binary,
            None => find_binary()?,
        };
        let directory = tempfile::Builder::new()
            .prefix("nex-nats-")
            .tempdir()
            .map_err(io_error("temporary directory"))?;
        let config = directory.path().join("server.conf");
        std::fs::write(&config, config_text(&options, directory.path())).map_err(io_error("write configuration"))?;

        let mut command = Command::new(binary);
        command.arg("-c").arg(config);
        let (ready, is_ready) = mpsc::channel();
        let log = Arc::new(Mutex::new(VecDeque::with_capacity(KEPT_LINES)));
        let process = Process::start(command, reader(ready, log.clone())).map_err(io_error("start"))?;
        let port = is_ready.recv_timeout(START_TIMEOUT).map_err(|error| {
            let log = log.lock().make_contiguous().join("\n");
            match error {
                mpsc::RecvTimeoutError::Timeout => NatsServerError::Timeout { log },
                mpsc::RecvTimeoutError::Disconnected => NatsServerError::Ended { log },
            }
        })?;
        Ok(Self {
            port,
            process,
            _directory: directory,
        })
    }

    /// URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Port for clients.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

fn config_text(options: &Options, directory: &Path) -> String {
    // 0 would be the default port to the server, and -1 is a random one.
    let port = match options.port {
        0 => "-1".to_owned(),
        port => port.to_string(),
    };
    let mut text = format!("host: \"127.0.0.1\"\nport: {port}\n");
    if !options.no_jetstream {
        let store = options.store_dir.clone().unwrap_or_else(|| directory.join("jetstream"));
        // JSON strings are strings of the server's configuration language.
        let store = serde_json::Value::from(store.to_string_lossy());
        text.push_str(&format!("jetstream {{ store_dir: {store} }}\n"));
    }
    text.push_str(&options.config);
    text
}

/// Looks for the port and for "ready" in the server's log, and keeps its last lines.
fn reader(ready: mpsc::Sender<u16>, kept: Arc<Mutex<VecDeque<String>>>) -> impl FnMut(String) {
    let mut port = None;
    move |line| {
        tracing::debug!(target: "nats_server", "{line}");
        if let Some((_, address)) = line.split_once("Listening for client connections on ") {
            port = address.trim().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        } else if line.contains("Server is ready")
            && let Some(port) = port
        {
            // Nobody waits any more if it took too long.
            _ = ready.send(port);
        }
        let mut kept = kept.lock();
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}
