//! Starts the program that tries to break out, and has it try.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nex_agent::link::{AgentToNode, CallId, FunctionId, NodeToAgent};
use nex_runtime::invocation::Trigger;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::escape_probe::escape_probe;
use crate::link::Link;

pub(crate) const ALL: &str = "namespaces,landlock,seccomp,rlimits";

/// What came of an attempt.
#[derive(Debug)]
#[allow(dead_code, reason = "details are for the messages of tests that fail")]
pub(crate) enum Outcome {
    Succeeded(String),
    Refused(String),
    /// It cost the agent its life.
    Died(ExitStatus),
}

#[derive(Debug, Deserialize)]
struct Answer {
    outcome: String,
    detail: String,
}

pub(crate) struct Prisoner {
    pub(crate) child: Child,
    pub(crate) link: Link,
}

/// The program with these layers; none of them if the text is empty.
pub(crate) fn command(layers: &str) -> Command {
    let mut command = Command::new(escape_probe());
    command.env_clear();
    if !layers.is_empty() {
        command.arg(format!("--confine={layers}"));
    }
    command
}

impl Prisoner {
    pub(crate) async fn start(layers: &str) -> Self {
        Self::start_command(command(layers)).await
    }

    pub(crate) async fn start_command(mut command: Command) -> Self {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let child = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // With the command goes our copy of the agent's end.
        drop(command);
        ours.set_nonblocking(true).unwrap();
        let mut link = Link::new(UnixStream::from_std(ours).unwrap());
        let mut prisoner = match link.reader.next().await {
            Ok(Some(AgentToNode::Hello(_))) => Self { child, link },
            other => {
                let output = child.wait_with_output().await.unwrap();
                let stderr = String::from_utf8_lossy(&output.stderr);
                panic!("{other:?}, {}: {stderr}", output.status);
            }
        };
        prisoner.link.acknowledge();
        prisoner.link.deploy(FunctionId(1), "");
        match prisoner.link.next().await {
            AgentToNode::DeployResult { result, .. } => result.unwrap(),
            other => panic!("{other:?}"),
        }
        prisoner
    }

    pub(crate) async fn attempt(&mut self, probe: &str) -> Outcome {
        self.link.send(NodeToAgent::Trigger {
            call: CallId(1),
            function: FunctionId(1),
            trigger: Trigger {
                payload: probe.to_owned().into(),
                ..Trigger::default()
            },
        });
        match within(self.link.reader.next()).await {
            Ok(Some(AgentToNode::Reply { reply, .. })) => {
                let answer: Answer = serde_json::from_slice(&reply.body).unwrap();
                match answer.outcome.as_str() {
                    "succeeded" => Outcome::Succeeded(answer.detail),
                    _ => Outcome::Refused(answer.detail),
                }
            }
            Ok(Some(other)) => panic!("{other:?}"),
            Ok(None) | Err(_) => Outcome::Died(within(self.child.wait()).await.unwrap()),
        }
    }

    /// What it sees, by an attempt that is none.
    pub(crate) async fn show(&mut self, probe: &str) -> String {
        match self.attempt(probe).await {
            Outcome::Succeeded(detail) => detail,
            other => panic!("{probe}: {other:?}"),
        }
    }

    /// The PID 1 above the agent and the agent, as the host sees them.
    pub(crate) fn family(&self) -> (u32, u32) {
        let init = only_child(self.child.id().unwrap());
        (init, only_child(init))
    }

    pub(crate) async fn end(mut self) -> ExitStatus {
        self.link.outbox.close();
        drop(self.link);
        within(self.child.wait()).await.unwrap()
    }

    /// How it ended, and what it said last.
    pub(crate) async fn last_words(mut self) -> (ExitStatus, String) {
        let mut words = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        within(stderr.read_to_string(&mut words)).await.unwrap();
        (within(self.child.wait()).await.unwrap(), words)
    }
}

/// One attempt of an agent of its own.
pub(crate) async fn attempt(layers: &str, probe: &str) -> Outcome {
    Prisoner::start(layers).await.attempt(probe).await
}

fn only_child(parent: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    children.trim().parse().unwrap()
}

/// Waits until a process is gone, zombies included.
pub(crate) async fn gone(pid: u32) {
    let start = Instant::now();
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(start.elapsed() < Duration::from_secs(10), "process {pid} stays");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("nothing happened for 30 s")
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
