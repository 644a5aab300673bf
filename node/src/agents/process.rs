//! Starts an agent process and shakes hands with it. The process gets one end of a socket pair as its standard input and
//! nothing else: no environment, no other descriptor, a process group of its own so that a Ctrl-C in the terminal is the
//! node's alone.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nex_agent::crash;
use nex_agent::link::{AgentToNode, Hello, HelloAck, LinkReader, NodeToAgent, Outbox};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

use super::config::AgentPoolConfig;
use super::error::{AgentError, describe};
use crate::data_plane;

/// A running agent that has shaken hands.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) pid: u32,
    pub(super) hello: Hello,
    pub(super) reader: LinkReader<AgentToNode>,
    pub(super) outbox: Outbox<NodeToAgent>,
    pub(super) last_words: LastWords,
}

/// Starts an agent and waits until it is ready.
pub(super) async fn start(config: &AgentPoolConfig, id: &str) -> Result<Started, AgentError> {
    let spawn_error = |error| AgentError::spawn(&config.agent_bin, &error);
    let (ours, theirs) = StdUnixStream::pair().map_err(spawn_error)?;
    ours.set_nonblocking(true).map_err(spawn_error)?;
    let (read, write) = {
        let _data_plane = data_plane::handle().enter();
        UnixStream::from_std(ours).map_err(spawn_error)?.into_split()
    };
    // The command is dropped with this statement, and the node's copy of the agent's end with it.
    let mut child = Command::new(&config.agent_bin)
        .args(&config.agent_args)
        .env_clear()
        .env("RUST_LOG", &config.agent_log)
        .envs(config.agent_env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(spawn_error)?;
    let pid = child.id().unwrap_or_default();
    let stderr = child.stderr.take();
    let mut last_words = LastWords::of(stderr, id);

    let mut reader = LinkReader::new(read);
    let (outbox, write) = Outbox::new(write);
    // Its failure shows as the end of the reading half.
    data_plane::handle().spawn(write.run());
    let hello = tokio::time::timeout(config.start_timeout, reader.next()).await;
    let hello = match hello {
        Ok(Ok(Some(AgentToNode::Hello(hello)))) => hello,
        Ok(Ok(Some(_))) => {
            return Err(AgentError::Start("its first frame was no hello".to_owned()));
        }
        Ok(Err(error)) => return Err(AgentError::Start(error.to_string())),
        Ok(Ok(None)) => {
            let status = child.wait().await;
            let status = status.map_or_else(|error| error.to_string(), describe);
            return Err(AgentError::Start(last_words.after(&status).await));
        }
        Err(_) => {
            return Err(AgentError::Start(format!(
                "no handshake within {:?}",
                config.start_timeout
            )));
        }
    };
    let runs = |wanted: &str| hello.workload_types.iter().any(|has| has == wanted);
    if let Some(missing) = config.workload_types.iter().find(|wanted| !runs(wanted)) {
        return Err(AgentError::WorkloadType((*missing).to_owned()));
    }
    let ack = HelloAck {
        agent_id: id.to_owned(),
        node_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    if outbox.send(NodeToAgent::HelloAck(ack)).is_err() {
        return Err(AgentError::Start("the link closed".to_owned()));
    }
    Ok(Started {
        child,
        pid,
        hello,
        reader,
        outbox,
        last_words,
    })
}

/// What an agent wrote to its standard error last: why it died, when it can say so. Complete once the process is gone.
#[derive(Debug)]
pub(super) struct LastWords {
    reading: Option<JoinHandle<VecDeque<String>>>,
    lines: VecDeque<String>,
}

/// Lines kept of a dying agent; V8's own account of a fatal error is about that long.
const KEPT_LINES: usize = 12;

/// Longest line taken from an agent at once, in bytes.
const MAX_LINE: u64 = 4096;

/// Lines logged of one agent each second; the rest is dropped.
const LINES_PER_SECOND: u32 = 100;

/// How long a dead agent's pipe is read on; a child of its own may hold it open.
const PATIENCE: Duration = Duration::from_millis(200);

impl LastWords {
    fn of(stderr: Option<ChildStderr>, agent: &str) -> Self {
        Self {
            reading: stderr.map(|stderr| tokio::spawn(forward(stderr, agent.to_owned()))),
            lines: VecDeque::new(),
        }
    }

    /// The lines, once the process is gone.
    async fn lines(&mut self) -> &VecDeque<String> {
        if let Some(reading) = self.reading.take()
            && let Ok(Ok(lines)) = tokio::time::timeout(PATIENCE, reading).await
        {
            self.lines = lines;
        }
        &self.lines
    }

    /// The thread it crashed on, if it said so. Nothing it said before it crashed counts.
    pub(super) async fn crashed_thread(&mut self) -> Option<String> {
        let last = self.lines().await.back()?;
        crash::thread_in(last).map(str::to_owned)
    }

    /// A cause of death with the last words behind it.
    pub(super) async fn after(&mut self, cause: &str) -> String {
        let words: Vec<&str> = self.lines().await.iter().map(String::as_str).collect();
        if words.is_empty() {
            return cause.to_owned();
        }
        format!("{cause}: {}", words.join(" / "))
    }
}

/// Reads an agent's standard error to its end, logging what it says as the node's own; returns the last lines.
async fn forward(stderr: impl AsyncRead + Unpin, agent: String) -> VecDeque<String> {
    let mut stderr = BufReader::new(stderr);
    let mut last = VecDeque::with_capacity(KEPT_LINES);
    let mut second = Instant::now();
    let mut lines = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut stderr).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return last,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        if second.elapsed() >= Duration::from_secs(1) {
            if lines > LINES_PER_SECOND {
                let dropped = lines - LINES_PER_SECOND;
                tracing::warn!(agent, dropped, "the agent logs too much");
            }
            second = Instant::now();
            lines = 0;
        }
        lines += 1;
        if lines <= LINES_PER_SECOND {
            log(&agent, text);
        }
        if last.len() == KEPT_LINES {
            last.pop_front();
        }
        last.push_back(text.to_owned());
    }
}

/// Logs a line with the level it begins with; what has none comes from V8 or the system, at the end of a life.
fn log(agent: &str, text: &str) {
    let (level, rest) = text.split_once(' ').unwrap_or((text, ""));
    let rest = rest.trim_start();
    match level {
        "TRACE" => tracing::trace!(agent, "{rest}"),
        "DEBUG" => tracing::debug!(agent, "{rest}"),
        "INFO" => tracing::info!(agent, "{rest}"),
        "WARN" => tracing::warn!(agent, "{rest}"),
        "ERROR" => tracing::error!(agent, "{rest}"),
        _ => tracing::warn!(agent, "{text}"),
    }
}
