//! The node's end of a link, as far as tests play the node.

use std::collections::BTreeMap;

use bytes::Bytes;
use nex_agent::link::{AgentToNode, FunctionId, Hello, HelloAck, LinkReader, NodeToAgent, Outbox};
use nex_runtime::engine::{FunctionSpec, Limits};
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) struct Link {
    pub(crate) reader: LinkReader<AgentToNode>,
    pub(crate) outbox: Outbox<NodeToAgent>,
}

impl Link {
    pub(crate) fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (read, write) = tokio::io::split(stream);
        let (outbox, write) = Outbox::new(write);
        tokio::spawn(write.run());
        Self {
            reader: LinkReader::new(read),
            outbox,
        }
    }

    pub(crate) fn send(&self, message: NodeToAgent) {
        self.outbox.send(message).unwrap();
    }

    pub(crate) async fn next(&mut self) -> AgentToNode {
        self.reader.next().await.unwrap().expect("the link is closed")
    }

    /// What the agent says first.
    pub(crate) async fn hello(&mut self) -> Hello {
        match self.next().await {
            AgentToNode::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn acknowledge(&self) {
        self.send(NodeToAgent::HelloAck(HelloAck {
            agent_id: "a".into(),
            node_version: "0".into(),
        }));
    }

    pub(crate) fn deploy(&self, function: FunctionId, source: &str) {
        self.send(NodeToAgent::Deploy {
            function,
            spec: FunctionSpec {
                id: "id".into(),
                namespace: "ns".into(),
                name: "name".into(),
                workload_type: "v8".into(),
                source: Bytes::copy_from_slice(source.as_bytes()),
                vars: BTreeMap::new(),
                limits: Limits::default(),
            },
        });
    }
}
