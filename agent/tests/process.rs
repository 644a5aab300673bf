//! The real agent process, with the real engine, over a socket pair.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "support/link.rs"]
mod link;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Output, Stdio};

use bytes::Bytes;
use nex_agent::link::{AgentToNode, CallId, FunctionId, NodeToAgent};
use nex_runtime::invocation::Trigger;
use nex_runtime::logs::LogLevel;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use link::Link;

const BIN: &str = env!("CARGO_BIN_EXE_nex-agent");

struct Agent {
    child: Child,
    link: Link,
}

/// Starts the binary as a node does; the second value is our end of its link.
fn spawn() -> (Child, UnixStream) {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    let child = Command::new(BIN)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    ours.set_nonblocking(true).unwrap();
    (child, UnixStream::from_std(ours).unwrap())
}

impl Agent {
    async fn start() -> Self {
        let (child, link) = spawn();
        let mut link = Link::new(link);
        let hello = link.hello().await;
        assert_eq!(Some(hello.pid), child.id());
        assert_eq!(hello.agent_version, env!("CARGO_PKG_VERSION"));
        assert!(hello.workload_types.iter().any(|name| name == "v8"));
        link.acknowledge();
        Self { child, link }
    }

    async fn deploy(&mut self, source: &str) -> FunctionId {
        let function = FunctionId(1);
        self.link.deploy(function, source);
        match self.link.next().await {
            AgentToNode::DeployResult { result, .. } => result.unwrap(),
            other => panic!("{other:?}"),
        }
        function
    }

    async fn call(&mut self, function: FunctionId, payload: &'static str) -> Bytes {
        self.link.send(NodeToAgent::Trigger {
            call: CallId(1),
            function,
            trigger: Trigger {
                subject: "helloworld".into(),
                payload: payload.into(),
                ..Trigger::default()
            },
        });
        match self.link.next().await {
            AgentToNode::Reply { reply, .. } => reply.body,
            other => panic!("{other:?}"),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    async fn exit_code(mut self) -> Option<i32> {
        self.link.outbox.close();
        self.child.wait().await.unwrap().code()
    }
}

const ECHO: &str = "(subject, payload) => ({ triggered_on: subject, payload: String.fromCharCode(...payload) })";

#[tokio::test]
async fn runs_javascript_and_ends_with_its_link() {
    let mut agent = Agent::start().await;
    let echo = agent.deploy(ECHO).await;
    let reply = agent.call(echo, "hello world").await;
    assert_eq!(reply, r#"{"triggered_on":"helloworld","payload":"hello world"}"#);
    assert_eq!(agent.exit_code().await, Some(0));
}

#[tokio::test]
async fn ends_with_its_link_even_while_a_function_runs_for_ever() {
    let mut agent = Agent::start().await;
    let forever = agent.deploy("() => { console.log('here'); for (;;); }").await;
    agent.link.send(NodeToAgent::Trigger {
        call: CallId(1),
        function: forever,
        trigger: Trigger::default(),
    });
    let AgentToNode::Log { line, .. } = agent.link.next().await else {
        panic!("no log");
    };
    assert_eq!((line.level, line.text.as_str()), (LogLevel::Info, "here"));
    assert_eq!(agent.exit_code().await, Some(0));
}

#[tokio::test]
async fn signals_to_the_process_group_are_the_nodes_to_act_on() {
    let mut agent = Agent::start().await;
    let echo = agent.deploy(ECHO).await;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        agent.signal(signal);
    }
    assert!(!agent.call(echo, "still here").await.is_empty());
    agent.link.send(NodeToAgent::Drain);
    assert!(agent.link.reader.next().await.unwrap().is_none());
    assert_eq!(agent.exit_code().await, Some(0));
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_node_that_talks_nonsense_is_left() {
    let (child, mut link) = spawn();
    link.write_all(&[0xAB; 64]).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(76), "{}", stderr(&output));
    assert!(stderr(&output).contains("ERROR"), "{}", stderr(&output));
}

#[tokio::test]
async fn without_a_link_it_says_what_it_is() {
    let output = Command::new(BIN).stdin(Stdio::null()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(stderr(&output).contains("started by a nex node"), "{}", stderr(&output));

    let missing = Command::new(BIN).args(["--link-path", "/no/such/socket"]).output();
    assert_eq!(missing.await.unwrap().status.code(), Some(74));
}
