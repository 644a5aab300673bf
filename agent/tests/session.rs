//! The agent's side of the link, driven by a node made of frames, with an engine made for the purpose.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "support/link.rs"]
mod link;
#[path = "support/toy.rs"]
mod toy;

use std::sync::Arc;

use bytes::Bytes;
use nex_agent::link::{AgentToNode, CallId, FunctionId, LinkError, NodeToAgent, max_pending_host_calls};
use nex_agent::session::{SessionEnd, serve};
use nex_runtime::engine::{EngineEvent, Limits, LoadError};
use nex_runtime::host_services::{HostError, HostErrorCode, HostRequest, HostResponse, HostResult, Operation};
use nex_runtime::invocation::{ErrorKind, InvokeError, Reply, Trigger};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use link::Link;
use toy::Toy;

/// The node's end of a link, and the session at the other.
struct Node {
    link: Link,
    session: JoinHandle<Result<SessionEnd, LinkError>>,
    last_call: u64,
    last_function: u64,
}

impl Node {
    /// A session that has said hello and waits for the answer.
    async fn connect() -> Self {
        let (node, agent) = UnixStream::pair().unwrap();
        let (read, write) = agent.into_split();
        let session = tokio::spawn(serve(read, write, Arc::new(Toy)));
        let mut link = Link::new(node);
        let hello = link.hello().await;
        assert_eq!(hello.pid, std::process::id());
        assert_eq!(hello.workload_types, ["v8"]);
        Self {
            link,
            session,
            last_call: 0,
            last_function: 0,
        }
    }

    async fn ready() -> Self {
        let this = Self::connect().await;
        this.link.acknowledge();
        this
    }

    fn deploy(&mut self, action: &str) -> FunctionId {
        self.last_function += 1;
        let function = FunctionId(self.last_function);
        self.link.deploy(function, action);
        function
    }

    async fn deployed(&mut self, action: &str) -> FunctionId {
        let function = self.deploy(action);
        match self.link.next().await {
            AgentToNode::DeployResult {
                function: about,
                result: Ok(()),
            } if about == function => function,
            other => panic!("{other:?}"),
        }
    }

    fn trigger(&mut self, function: FunctionId, payload: impl Into<Bytes>) -> CallId {
        self.last_call += 1;
        let call = CallId(self.last_call);
        self.link.send(NodeToAgent::Trigger {
            call,
            function,
            trigger: Trigger {
                subject: "s".into(),
                payload: payload.into(),
                ..Trigger::default()
            },
        });
        call
    }

    async fn answer(&mut self, expected: CallId) -> Result<Reply, InvokeError> {
        match self.link.next().await {
            AgentToNode::Reply { call, reply } if call == expected => Ok(reply),
            AgentToNode::ReplyError { call, error } if call == expected => Err(error),
            other => panic!("{other:?}"),
        }
    }

    async fn call(&mut self, function: FunctionId, payload: impl Into<Bytes>) -> Result<Reply, InvokeError> {
        let call = self.trigger(function, payload);
        self.answer(call).await
    }

    async fn host_call(&mut self) -> (CallId, FunctionId, HostRequest) {
        match self.link.next().await {
            AgentToNode::HostCall {
                call,
                function,
                request,
            } => (call, function, request),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn calls_are_answered_with_replies_errors_and_streams() {
    let mut node = Node::ready().await;
    let echo = node.deployed("echo").await;
    let bytes: Bytes = (0..=255).collect();
    assert_eq!(node.call(echo, bytes.clone()).await.unwrap().body, bytes);
    let large = Bytes::from(vec![7; 1_000_000]);
    assert_eq!(node.call(echo, large.clone()).await.unwrap().body, large);

    let throw = node.deployed("throw").await;
    let error = node.call(throw, "").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Exception);
    assert_eq!(error.name.as_deref(), Some("TypeError"));
    assert_eq!(error.stack.as_deref(), Some("at toy"));

    let stream = node.deployed("stream").await;
    let call = node.trigger(stream, "3");
    for i in 0..3 {
        match node.link.next().await {
            AgentToNode::Stream { call: about, reply } if about == call => assert_eq!(reply.body, i.to_string()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(node.answer(call).await.unwrap(), Reply::default());
}

#[tokio::test]
async fn many_calls_are_in_flight_at_once() {
    let mut node = Node::ready().await;
    let gate = node.deployed("gate").await;
    let echo = node.deployed("echo").await;
    let held = node.trigger(gate, "key");
    let (host, ..) = node.host_call().await;
    for i in 0..100 {
        let body = i.to_string();
        assert_eq!(node.call(echo, body.clone()).await.unwrap().body, body);
    }
    let response = HostResponse {
        result: HostResult::Value,
        payload: "open".into(),
    };
    node.link.send(NodeToAgent::HostResult { call: host, response });
    assert_eq!(node.answer(held).await.unwrap().body, "open");
}

#[tokio::test]
async fn a_call_that_nobody_takes_is_answered_all_the_same() {
    let mut node = Node::ready().await;
    let error = node.call(FunctionId(99), "").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);

    let dropper = node.deployed("drop").await;
    let error = node.call(dropper, "").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);

    node.link.send(NodeToAgent::Undeploy { function: dropper });
    let error = node.call(dropper, "").await.unwrap_err();
    assert_eq!(error.message, "the function is not loaded here");
}

#[tokio::test]
async fn a_load_is_answered_even_if_the_function_is_gone_by_then() {
    let mut node = Node::ready().await;
    let function = node.deploy("load-error");
    match node.link.next().await {
        AgentToNode::DeployResult {
            function: about,
            result: Err(LoadError::Syntax(_)),
        } => assert_eq!(about, function),
        other => panic!("{other:?}"),
    }

    let function = node.deploy("load-gate");
    let (call, ..) = node.host_call().await;
    node.link.send(NodeToAgent::Undeploy { function });
    node.link.send(NodeToAgent::HostResult {
        call,
        response: HostResult::Done.into(),
    });
    match node.link.next().await {
        AgentToNode::DeployResult {
            result: Err(LoadError::Engine(message)),
            ..
        } => assert_eq!(message, "undeployed while it loaded"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn host_calls_carry_the_function_and_come_back_as_results_or_errors() {
    let mut node = Node::ready().await;
    let set = node.deployed("set").await;
    let payload = Bytes::from(vec![1; 100_000]);
    let call = node.trigger(set, payload.clone());
    let (host, function, request) = node.host_call().await;
    assert_eq!(function, set);
    assert_eq!(request.payload, payload);
    assert!(matches!(request.operation, Operation::KvSet { .. }));
    node.link.send(NodeToAgent::HostResult {
        call: host,
        response: HostResult::Revision(5).into(),
    });
    assert_eq!(node.answer(call).await.unwrap().body, "5");

    let call = node.trigger(set, "");
    let (host, ..) = node.host_call().await;
    node.link.send(NodeToAgent::HostError {
        call: host,
        error: HostError::new(HostErrorCode::PermissionDenied, "no"),
    });
    let error = node.answer(call).await.unwrap_err();
    assert_eq!(error.message, "no (PERMISSION_DENIED)");
}

#[tokio::test]
async fn a_function_has_so_many_host_calls_pending_and_no_more() {
    let mut node = Node::ready().await;
    let pile = node.deployed("pile").await;
    let max = max_pending_host_calls(&Limits::default());
    let call = node.trigger(pile, (max + 5).to_string());
    let mut pending = Vec::new();
    for _ in 0..max {
        pending.push(node.host_call().await.0);
    }
    for call in pending {
        node.link.send(NodeToAgent::HostResult {
            call,
            response: HostResult::Done.into(),
        });
    }
    assert_eq!(node.answer(call).await.unwrap().body, "5");
}

#[tokio::test]
async fn a_host_call_given_up_is_cancelled() {
    let mut node = Node::ready().await;
    let cancel = node.deployed("cancel").await;
    let call = node.trigger(cancel, "");
    let (host, ..) = node.host_call().await;
    let (go, ..) = node.host_call().await;
    node.link.send(NodeToAgent::HostResult {
        call: go,
        response: HostResult::Done.into(),
    });
    assert!(matches!(node.link.next().await, AgentToNode::HostCancel { call } if call == host));
    // An answer that crosses with the cancellation is no harm.
    node.link.send(NodeToAgent::HostResult {
        call: host,
        response: HostResult::Done.into(),
    });
    node.answer(call).await.unwrap();
}

#[tokio::test]
async fn logs_are_throttled_and_what_is_dropped_is_told() {
    let mut node = Node::ready().await;
    let log = node.deployed("log").await;
    let said = 200_000;
    let call = node.trigger(log, said.to_string());
    let mut heard = 0;
    let mut dropped = 0;
    let count = |text: &str| text.split(' ').next().unwrap().parse::<usize>().unwrap();
    loop {
        match node.link.next().await {
            AgentToNode::Log { line, .. } if line.text.contains("dropped") => dropped += count(&line.text),
            AgentToNode::Log { .. } => heard += 1,
            AgentToNode::Reply { call: about, .. } if about == call => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(heard < said / 2, "{heard} of {said}");
    // The rest of the count comes with a ping, once a second has passed since the last report.
    while heard + dropped < said {
        node.link.send(NodeToAgent::Ping { nonce: 1 });
        match node.link.next().await {
            AgentToNode::Log { line, .. } => dropped += count(&line.text),
            AgentToNode::Pong { .. } => tokio::task::yield_now().await,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard + dropped, said);
}

#[tokio::test]
async fn health_tells_of_functions_calls_memory_and_condemnation() {
    let mut node = Node::ready().await;
    let keep = node.deployed("keep").await;
    let condemn = node.deployed("condemn").await;
    node.trigger(keep, "");
    node.link.send(NodeToAgent::Ping { nonce: 42 });
    let AgentToNode::Pong { nonce, health } = node.link.next().await else {
        panic!("no pong");
    };
    assert_eq!(nonce, 42);
    assert_eq!((health.functions, health.in_flight, health.condemned), (2, 1, false));
    assert!(health.rss_bytes > 100_000);

    // The offender's caller has its answer before anybody hears of the condemnation.
    let error = node.call(condemn, "").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::WallTimeout);
    match node.link.next().await {
        AgentToNode::Event {
            function,
            event: EngineEvent::Condemned { .. },
        } => assert_eq!(function, condemn),
        other => panic!("{other:?}"),
    }
    node.link.send(NodeToAgent::Ping { nonce: 43 });
    assert!(matches!(node.link.next().await, AgentToNode::Pong { health, .. } if health.condemned));
}

#[tokio::test]
async fn a_drain_answers_what_is_in_flight_first() {
    let mut node = Node::ready().await;
    let gate = node.deployed("gate").await;
    let call = node.trigger(gate, "key");
    let (host, ..) = node.host_call().await;
    node.link.send(NodeToAgent::Drain);
    node.link.send(NodeToAgent::Ping { nonce: 1 });
    assert!(matches!(node.link.next().await, AgentToNode::Pong { .. }));
    node.link.send(NodeToAgent::HostResult {
        call: host,
        response: HostResult::Value.into(),
    });
    node.answer(call).await.unwrap();
    assert!(node.link.reader.next().await.unwrap().is_none());
    assert_eq!(node.session.await.unwrap().unwrap(), SessionEnd::Drained);
}

#[tokio::test]
async fn the_session_ends_with_its_link() {
    let mut node = Node::ready().await;
    let keep = node.deployed("keep").await;
    node.trigger(keep, "");
    let Node { link, session, .. } = node;
    link.outbox.close();
    drop(link.reader);
    assert_eq!(session.await.unwrap().unwrap(), SessionEnd::Closed);
}

#[tokio::test]
async fn a_node_that_breaks_the_protocol_ends_the_session() {
    let node = Node::connect().await;
    node.link.send(NodeToAgent::Drain);
    let error = node.session.await.unwrap().unwrap_err();
    assert!(matches!(error, LinkError::OutOfOrder(_)), "{error}");

    let node = Node::ready().await;
    node.link.acknowledge();
    let error = node.session.await.unwrap().unwrap_err();
    assert!(matches!(error, LinkError::OutOfOrder(_)), "{error}");
}
