//! Start, events, stop, restart: nothing in flight is lost, and everybody is told.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::StreamExt as _;
use nex_node::{Node, NodeConfig, NodeError};
use serde_json::json;

use crate::harness::{OneWordEngine, PATIENCE, World, header, next, next_json};

#[tokio::test]
async fn events_from_start_to_stop() {
    let world = World::new().await;
    let mut events = world.listen("$NEX.events.>").await;
    let mut config = NodeConfig::default();
    config.events.heartbeat_interval_ms = 50.try_into().unwrap();
    let node = world.node(config).await;
    let id = node.id().to_owned();
    // Heartbeats may come in between.
    let mut expect = async |expected: &str| loop {
        let (subject, event) = next_json(&mut events).await;
        let event_type = event["type"].as_str().unwrap();
        assert!(subject.ends_with(&format!(".{event_type}")), "{subject}");
        if event_type == expected {
            return (subject, event);
        }
        assert_eq!(event_type, "heartbeat", "waiting for {expected}: {event}");
    };

    let (subject, event) = expect("node_started").await;
    assert_eq!(subject, "$NEX.events.system.node_started");
    assert_eq!(event["source"], id);
    assert_eq!(event["data"]["id"], id);
    assert_eq!(event["data"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        event["data"]["tags"]["node_name"]
            .as_str()
            .is_some_and(|name| name.contains('-'))
    );

    let (subject, event) = expect("heartbeat").await;
    assert_eq!(subject, "$NEX.events.system.heartbeat");
    let data = event["data"].as_object().unwrap();
    let keys: BTreeSet<_> = data.keys().map(String::as_str).collect();
    assert_eq!(
        Vec::from_iter(keys),
        [
            "allow_duplicate_workloads",
            "nexus",
            "node_id",
            "running_machines",
            "tags",
            "uptime",
            "version"
        ]
    );

    let workload = world.deploy(&node, "echo", "echo", &["greet"]).await.id;
    let (subject, event) = expect("workload_deployed").await;
    assert_eq!(subject, "$NEX.events.default.workload_deployed");
    assert_eq!(event["source"], format!("{id}-{workload}"));
    assert_eq!(
        event["data"],
        json!({"workload_id": workload, "workload_name": "echo", "essential": false, "total_bytes": 4})
    );

    world.stop(&node, &workload).await.unwrap();
    let (_, event) = expect("workload_undeployed").await;
    assert_eq!(
        event["data"],
        json!({"workload_id": workload, "workload_name": "echo", "reason": "Workload undeploy requested"})
    );

    node.events().agent_stopped("a1", "killed", 9);
    let (subject, event) = expect("agent_stopped").await;
    assert_eq!(subject, "$NEX.events.system.agent_stopped");
    assert_eq!(
        (&event["source"], &event["data"]),
        (&json!(format!("{id}-a1")), &json!({"message": "killed", "code": 9}))
    );

    node.enter_lame_duck();
    node.enter_lame_duck();
    let (_, event) = expect("node_entered_lameduck").await;
    assert_eq!(event["data"]["id"], id);

    assert!(node.shutdown().await);
    let (_, event) = expect("node_stopped").await;
    assert_eq!(event["data"], json!({"id": id, "graceful": true}));
    assert!(
        world
            .client
            .request(nex_node::control::subjects::ping(&id), Bytes::new())
            .await
            .is_err()
    );
}

/// Calls that are running when their function or node is stopped end as if nothing had happened.
#[tokio::test]
async fn calls_in_flight_end_well() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    let workload = world.deploy(&node, "hold", "hold", &["hold"]).await.id;
    world.deploy(&node, "hold2", "hold", &["hold2"]).await;
    let inbox = world.client.new_inbox();
    let mut replies = world.listen(&inbox).await;
    world
        .client
        .publish_with_reply("hold", inbox.clone(), "one".into())
        .await
        .unwrap();
    // Answered after the message above has been taken, because both come over the node's one connection.
    world.deploy(&node, "echo", "echo", &["greet"]).await;

    world.stop(&node, &workload).await.unwrap();
    let gone = world.client.request("hold", Bytes::new()).await.unwrap_err();
    assert_eq!(gone.kind(), async_nats::client::RequestErrorKind::NoResponders);
    world.held.add_permits(1);
    assert_eq!(next(&mut replies).await.payload, "one");

    world
        .client
        .publish_with_reply("hold2", inbox.clone(), "two".into())
        .await
        .unwrap();
    assert_eq!(world.call("greet", "x").await.payload, "x");
    let node = std::sync::Arc::new(node);
    let shutdown = tokio::spawn({
        let node = node.clone();
        async move { node.shutdown().await }
    });
    // No more calls are taken while the last one is still running.
    loop {
        let answer = world.client.request("greet", Bytes::new()).await;
        if answer.is_err_and(|error| error.kind() == async_nats::client::RequestErrorKind::NoResponders) {
            break;
        }
    }
    assert!(!shutdown.is_finished());
    world.held.add_permits(1);
    assert_eq!(next(&mut replies).await.payload, "two");
    assert!(tokio::time::timeout(PATIENCE, shutdown).await.unwrap().unwrap());
    assert!(node.shutdown().await, "a second time is no harm");
}

#[tokio::test]
async fn a_call_that_does_not_end_does_not_keep_the_node() {
    let world = World::new().await;
    let node = world
        .node(NodeConfig {
            shutdown_grace_ms: 100,
            ..NodeConfig::default()
        })
        .await;
    world.deploy(&node, "hold", "hold", &["hold"]).await;
    let mut stopped = world.listen("$NEX.events.system.node_stopped").await;
    world.client.publish("hold", Bytes::new()).await.unwrap();
    world.deploy(&node, "echo", "echo", &["greet"]).await;
    assert!(!node.shutdown().await);
    assert_eq!(next_json(&mut stopped).await.1["data"]["graceful"], json!(false));
}

/// The same node after a restart; one node at a time.
#[tokio::test]
async fn identity_survives_a_restart() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        state_dir: Some(folder.path().join("state")),
        ..NodeConfig::default()
    };
    let node = world.node(config.clone()).await;
    let (id, xkey, tags) = (node.id().to_owned(), node.public_xkey().to_owned(), node.tags());
    let engine = std::sync::Arc::new(OneWordEngine {
        held: world.held.clone(),
    });
    let second = Node::start(config.clone(), world.client.clone(), engine).await;
    assert!(matches!(second, Err(NodeError::Identity(_))), "{second:?}");
    node.shutdown().await;
    drop(node);
    let node = loop {
        // The lock goes with the last task of the first node.
        let engine = std::sync::Arc::new(OneWordEngine {
            held: world.held.clone(),
        });
        match Node::start(config.clone(), world.client.clone(), engine).await {
            Ok(node) => break node,
            Err(NodeError::Identity(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(
        (node.id(), node.public_xkey(), node.tags()),
        (id.as_str(), xkey.as_str(), tags)
    );
}

#[tokio::test]
async fn a_node_that_cannot_work_does_not_start() {
    let world = World::new().await;
    let start = async |config: NodeConfig| {
        let engine = std::sync::Arc::new(OneWordEngine {
            held: world.held.clone(),
        });
        Node::start(config, world.client.clone(), engine)
            .await
            .unwrap_err()
            .to_string()
    };
    let error = start(NodeConfig {
        workload_types: vec!["v8".into(), "oci".into()],
        ..NodeConfig::default()
    })
    .await;
    assert!(
        error.contains("configuration key `workload_types`: this node cannot run `oci`"),
        "{error}"
    );
    let mut config = NodeConfig::default();
    config.host_services_config.nats.nats_url = "nats://127.0.0.1:1".to_owned();
    let error = start(config).await;
    assert!(
        error.contains("configuration key `host_services_config.nats`: cannot connect"),
        "{error}"
    );
    let error = start(NodeConfig {
        no_sandbox: Some(false),
        ..NodeConfig::default()
    })
    .await;
    assert!(error.contains("configuration key `no_sandbox`"), "{error}");
}

/// A node that is dropped, not shut down, leaves no subscriptions behind.
#[tokio::test]
async fn dropping_a_node_ends_it() {
    let world = World::new().await;
    let node = world.node_on(NodeConfig::default(), world.client.clone()).await;
    let id = node.id().to_owned();
    world.deploy(&node, "throw", "throw", &["greet"]).await;
    assert_eq!(
        header(&world.call("greet", "").await, "Nex-Error-Kind"),
        Some("exception")
    );
    drop(node);
    for subject in ["greet".to_owned(), nex_node::control::subjects::ping(&id)] {
        let inbox = world.client.new_inbox();
        let mut replies = world.listen(&inbox).await;
        loop {
            world
                .client
                .publish_with_reply(subject.clone(), inbox.clone(), Bytes::new())
                .await
                .unwrap();
            let reply = tokio::time::timeout(PATIENCE, replies.next()).await.unwrap().unwrap();
            if reply.status.is_some() {
                break;
            }
        }
    }
}
