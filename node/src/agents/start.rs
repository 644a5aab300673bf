//! Starts a machine and shakes hands with the agent in it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nex_agent::crash;
use nex_agent::link::{AgentToNode, Hello, HelloAck, LinkReader, NodeToAgent, Outbox};
use nex_runtime::logs::printable;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::task::JoinSet;

use super::config::AgentPoolConfig;
use super::error::{AgentError, describe};
use crate::data_plane;
use crate::machines::{Machine, MachineSource, Port};

/// A machine whose agent has shaken hands.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) machine: Arc<dyn Machine>,
    pub(super) hello: Hello,
    pub(super) reader: LinkReader<AgentToNode>,
    pub(super) outbox: Outbox<NodeToAgent>,
    pub(super) last_words: LastWords,
}

/// Starts a machine and waits until its agent is ready.
pub(super) async fn start(machines: &MachineSource, config: &AgentPoolConfig, id: &str) -> Result<Started, AgentError> {
    let machine = machines.start(id).await?;
    let mut last_words = LastWords::of(machine.take_logs(), id);
    let stream = machine
        .connect(Port::Link)
        .await
        .map_err(|error| AgentError::Start(format!("no link: {error}")))?;
    let mut reader = LinkReader::new(stream.reader);
    let (outbox, write) = Outbox::new(stream.writer);
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
            let status = describe(machine.wait().await);
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
        machine,
        hello,
        reader,
        outbox,
        last_words,
    })
}

/// What a machine wrote last: why it died, when it can say so. Complete once it is gone.
#[derive(Debug)]
pub(super) struct LastWords {
    reading: JoinSet<()>,
    tail: Arc<Mutex<Tail>>,
}

/// Lines kept of a dying machine; V8's own account of a fatal error is about that long.
const KEPT_LINES: usize = 12;

/// Longest line taken from a machine at once, in bytes.
const MAX_LINE: u64 = 4096;

/// Lines logged of one machine each second; the rest is dropped.
const LINES_PER_SECOND: u32 = 100;

/// How long the logs of what is dead are read on; a child of its own may hold a pipe open.
const PATIENCE: Duration = Duration::from_millis(200);

/// What has been read of a machine's logs.
#[derive(Debug)]
struct Tail {
    last: VecDeque<String>,
    /// When the second began in which `lines` were logged.
    second: Instant,
    lines: u32,
}

impl LastWords {
    fn of(logs: Vec<Box<dyn AsyncRead + Send + Unpin>>, agent: &str) -> Self {
        let tail = Arc::new(Mutex::new(Tail {
            last: VecDeque::with_capacity(KEPT_LINES),
            second: Instant::now(),
            lines: 0,
        }));
        let mut reading = JoinSet::new();
        for log in logs {
            reading.spawn(forward(log, agent.to_owned(), tail.clone()));
        }
        Self { reading, tail }
    }

    /// The lines, once the machine is gone.
    async fn lines(&mut self) -> VecDeque<String> {
        let all = async { while self.reading.join_next().await.is_some() {} };
        _ = tokio::time::timeout(PATIENCE, all).await;
        self.tail.lock().last.clone()
    }

    /// The thread the agent crashed on, if it said so. Nothing it said before it crashed counts.
    pub(super) async fn crashed_thread(&mut self) -> Option<String> {
        let lines = self.lines().await;
        crash::thread_in(lines.back()?).map(str::to_owned)
    }

    /// A cause of death with the last words behind it.
    pub(super) async fn after(&mut self, cause: &str) -> String {
        let words = self.lines().await;
        if words.is_empty() {
            return cause.to_owned();
        }
        format!("{cause}: {}", Vec::from(words).join(" / "))
    }
}

/// Reads a machine's log to its end, logging what it says as the node's own.
async fn forward(log: impl AsyncRead + Unpin, agent: String, tail: Arc<Mutex<Tail>>) {
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut log).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if !text.is_empty() {
            tail.lock().take(&agent, &printable(text.to_owned()));
        }
    }
}

impl Tail {
    fn take(&mut self, agent: &str, text: &str) {
        if self.second.elapsed() >= Duration::from_secs(1) {
            if self.lines > LINES_PER_SECOND {
                let dropped = self.lines - LINES_PER_SECOND;
                tracing::warn!(agent, dropped, "the agent logs too much");
            }
            self.second = Instant::now();
            self.lines = 0;
        }
        self.lines += 1;
        if self.lines <= LINES_PER_SECOND {
            write_log(agent, text);
        }
        if self.last.len() == KEPT_LINES {
            self.last.pop_front();
        }
        self.last.push_back(text.to_owned());
    }
}

/// What a guest's kernel says last when it ends in good order, which it cannot be kept from.
const GUEST_ENDS: &str = "reboot: Restarting system";

/// Logs a line with the level it begins with; what has none comes from V8 or the system, at the end of a life.
fn write_log(agent: &str, text: &str) {
    if text.ends_with(GUEST_ENDS) {
        return tracing::debug!(agent, "{text}");
    }
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
