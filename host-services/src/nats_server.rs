//! A local nats-server process, for the node's development mode, tests and benchmarks.
//!
//! The server picks its port, says so in its log, and is ready when its log says that; nothing is polled and nothing
//! sleeps. It ends with its [`NatsServer`], and on Linux also with this process, however that ends.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;

mod find;

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

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct NatsServer {
    port: u16,
    pid: u32,
    // Dropping it tells the keeper to kill the server.
    stop: Option<mpsc::Sender<()>>,
    keeper: Option<thread::JoinHandle<()>>,
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
        let (stop, stopped) = mpsc::channel();
        let (started, child) = mpsc::sync_channel(1);
        let keeper = thread::Builder::new()
            .name("nats-server".to_owned())
            .spawn(move || keep(command, &started, &stopped))
            .map_err(io_error("start a thread"))?;
        // From here on dropping the value ends the server, whatever happens.
        let mut server = Self {
            port: 0,
            pid: 0,
            stop: Some(stop),
            keeper: Some(keeper),
            _directory: directory,
        };
        let started = child.recv().map_err(|_| io::Error::other("the thread ended"));
        let (pid, log) = started.and_then(|result| result).map_err(io_error("start"))?;
        server.pid = pid;
        server.port = wait_until_ready(log)?;
        Ok(server)
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
        self.pid
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(keeper) = self.keeper.take() {
            // Only fails if the keeper panicked; the server ends with its thread then.
            _ = keeper.join();
        }
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

type Started = io::Result<(u32, Box<dyn Read + Send>)>;

/// The life of one server process. It needs a thread of its own, because the kernel's "kill it when the parent dies" means
/// the thread that started it.
fn keep(mut command: Command, started: &mpsc::SyncSender<Started>, stopped: &mpsc::Receiver<()>) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    die_with_this_thread(&mut command);
    let mut child: Child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            _ = started.send(Err(error));
            return;
        }
    };
    let log = child.stderr.take();
    let log = log.map_or_else(|| Box::new(io::empty()) as Box<dyn Read + Send>, |log| Box::new(log));
    _ = started.send(Ok((child.id(), log)));
    // Ends when the other side is dropped.
    _ = stopped.recv();
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::warn!(%error, pid = child.id(), "nats-server not reaped");
    }
}

#[cfg(target_os = "linux")]
fn die_with_this_thread(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;

    use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

    let parent = getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before we asked.
        if getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::Error::other("orphaned"))
        }
    };
    #[allow(unsafe_code, reason = "only `pre_exec` reaches the child before it is the server")]
    // SAFETY: between fork and exec only async-signal-safe functions may run. These are the system calls prctl and
    // getppid, and no memory is allocated except in the failure of an orphan, which is about to end anyway.
    unsafe {
        command.pre_exec(ask);
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_this_thread(_command: &mut Command) {}

/// Reads the log until the server is ready and returns its port; goes on reading in the background, because a server whose
/// log is full stops.
fn wait_until_ready(log: Box<dyn Read + Send>) -> Result<u16, NatsServerError> {
    let kept = Arc::new(Mutex::new(VecDeque::with_capacity(KEPT_LINES)));
    let (ready, is_ready) = mpsc::channel();
    let reader = {
        let kept = kept.clone();
        move || {
            let mut port = None;
            for line in BufReader::new(log).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                tracing::debug!(target: "nats_server", "{line}");
                if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                    port = address.trim().rsplit_once(':').and_then(|(_, p)| p.parse().ok());
                } else if line.contains("Server is ready")
                    && let Some(port) = port
                {
                    _ = ready.send(port);
                }
                let mut kept = kept.lock();
                if kept.len() == KEPT_LINES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        }
    };
    thread::Builder::new()
        .name("nats-server-log".to_owned())
        .spawn(reader)
        .map_err(io_error("start a thread"))?;
    let deadline = Instant::now() + START_TIMEOUT;
    let result = is_ready.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    result.map_err(|error| {
        let log = kept.lock().make_contiguous().join("\n");
        match error {
            mpsc::RecvTimeoutError::Timeout => NatsServerError::Timeout { log },
            mpsc::RecvTimeoutError::Disconnected => NatsServerError::Ended { log },
        }
    })
}
