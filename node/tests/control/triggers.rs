//! Messages to functions and replies back: queue groups, errors, streams, replacement without loss.

use std::collections::BTreeMap;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures::StreamExt as _;
use nex_host_services::nats_server::Options;
use nex_node::NodeConfig;
use nex_node::control::messages::NatsConnection;
use serde_json::json;

use crate::harness::{World, connect, header, next, next_json};

#[tokio::test]
async fn bytes_headers_and_wildcards() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    // The second subject overlaps with the first, the third is there twice: still one call for each message.
    world
        .deploy(&node, "echo", "echo", &["greet.*", "greet.>", "other", "other"])
        .await;
    let all: Vec<u8> = (0..=255).collect();
    let mut headers = HeaderMap::new();
    headers.append("X-One", "1");
    headers.append("X-One", "2");
    let request = async_nats::Request::new().payload(all.clone().into()).headers(headers);
    let reply = world.client.send_request("greet.you", request).await.unwrap();
    assert_eq!(reply.payload, all);
    let echoed: Vec<_> = reply
        .headers
        .unwrap()
        .get_all("X-One")
        .map(|value| value.as_str().to_owned())
        .collect();
    assert_eq!(echoed, ["1", "2"]);

    let large = Bytes::from(vec![7; 1_000_000]);
    let reply = world.client.request("greet.a.b", large.clone()).await.unwrap();
    assert_eq!(reply.payload, large);
    assert!(reply.headers.is_none());

    let inbox = world.client.new_inbox();
    let mut replies = world.listen(&inbox).await;
    for subject in ["greet.x", "other"] {
        world
            .client
            .publish_with_reply(subject, inbox.clone(), subject.into())
            .await
            .unwrap();
    }
    let mut bodies = [next(&mut replies).await.payload, next(&mut replies).await.payload];
    bodies.sort();
    assert_eq!(bodies, ["greet.x", "other"]);
    // Had any message been taken twice, its second reply would be here before this one.
    let last = world.call("other", "last").await;
    assert_eq!(last.payload, "last");
    world.settle().await;
    let more = tokio::time::timeout(std::time::Duration::from_millis(100), replies.next()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn two_nodes_share_the_work() {
    let world = World::new().await;
    let nodes = [
        world.node(NodeConfig::default()).await,
        world.node(NodeConfig::default()).await,
    ];
    world.deploy(&nodes[0], "word", "word a", &["word"]).await;
    world.deploy(&nodes[1], "word", "word b", &["word"]).await;

    let inbox = world.client.new_inbox();
    let mut replies = world.listen(&inbox).await;
    for _ in 0..1_000 {
        world
            .client
            .publish_with_reply("word", inbox.clone(), Bytes::new())
            .await
            .unwrap();
    }
    let mut served = BTreeMap::<Bytes, u32>::new();
    for _ in 0..1_000 {
        *served.entry(next(&mut replies).await.payload).or_default() += 1;
    }
    assert_eq!(served.len(), 2, "{served:?}");
    for node in &nodes {
        assert!(node.shutdown().await);
    }
    // Whatever they sent is on its way before `node_stopped`; a second reply to anything would be here by now.
    world.settle().await;
    let more = tokio::time::timeout(std::time::Duration::from_millis(100), replies.next()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn every_failure_is_an_answer() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    let failure = async |source: &str| -> Message {
        world.deploy(&node, source, source, &[source]).await;
        let reply = world.call(source, "").await;
        assert_eq!(reply.payload, "", "{source}");
        reply
    };
    let error = |reply: &Message| {
        [
            "Nats-Service-Error-Code",
            "Nex-Error-Kind",
            "Nats-Service-Error",
            "Nex-Error-Name",
        ]
        .map(|name| header(reply, name).unwrap_or_default().to_owned())
    };
    assert_eq!(
        error(&failure("throw").await),
        ["500", "exception", "TypeError: first line  second line", "TypeError"]
    );
    let limit = world.client.max_payload();
    assert_eq!(
        error(&failure("huge").await),
        [
            "413",
            "payload_too_large",
            &format!(
                "the reply has {} bytes with its headers, the server takes {limit}",
                limit + 1
            ),
            ""
        ]
    );
    assert_eq!(
        error(&failure("header").await),
        [
            "500",
            "exception",
            "reply header \"X-Bad\" has a name or value that NATS does not allow",
            ""
        ]
    );
    assert_eq!(
        error(&failure("forget").await),
        ["503", "not_ready", "the call was abandoned by the engine", ""]
    );
}

#[tokio::test]
async fn a_stream_ends_with_an_empty_reply() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    world.deploy(&node, "stream", "stream", &["stream"]).await;
    let inbox = world.client.new_inbox();
    let mut replies = world.listen(&inbox).await;
    world
        .client
        .publish_with_reply("stream", inbox, Bytes::new())
        .await
        .unwrap();
    for expected in ["1", "2", "3", ""] {
        assert_eq!(next(&mut replies).await.payload, expected);
    }
}

#[tokio::test]
async fn a_failure_nobody_waits_for_is_an_event_and_a_log_line() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    let workload = world.deploy(&node, "throw", "throw", &["bad.*"]).await.id;
    let mut events = world.listen("$NEX.events.default.function_exec_failed").await;
    let mut logs = world
        .listen(&format!("$NEX.logs.default.{}.throw.{workload}", node.id()))
        .await;
    world.client.publish("bad.thing", Bytes::new()).await.unwrap();

    let (_, event) = next_json(&mut events).await;
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["type"], "function_exec_failed");
    assert_eq!(event["source"], format!("{}-{workload}", node.id()));
    assert_eq!(event["namespace"], "default");
    assert_eq!(event["datacontenttype"], "application/json");
    uuid::Uuid::parse_str(event["id"].as_str().unwrap()).unwrap();
    assert_eq!(
        event["data"],
        json!({
            "workload_id": workload,
            "workload_name": "throw",
            "namespace": "default",
            "trigger_subject": "bad.*",
            "error": "TypeError: first line\r\nsecond line",
            "kind": "exception",
        })
    );
    let (_, log) = next_json(&mut logs).await;
    assert_eq!(
        log,
        json!({
            "text": "call on bad.* failed (exception): TypeError: first line\n    at echo.js:3:7",
            "level": "ERROR",
            "id": workload,
        })
    );
}

#[tokio::test]
async fn what_functions_log_and_successes_on_demand() {
    let world = World::new().await;
    let mut config = NodeConfig::default();
    config.events.function_exec_succeeded = true;
    let node = world.node(config).await;
    let workload = world.deploy(&node, "log", "log", &["log"]).await.id;
    let mut logs = world.listen("$NEX.logs.*.*.*.*").await;
    let mut events = world.listen("$NEX.events.default.*").await;
    assert_eq!(world.call("log", "").await.payload, "");
    let (subject, log) = next_json(&mut logs).await;
    assert_eq!(subject, format!("$NEX.logs.default.{}.log.{workload}", node.id()));
    assert_eq!(
        log,
        json!({"text": "hello from the function", "level": "WARN", "id": workload})
    );
    let (subject, event) = next_json(&mut events).await;
    assert_eq!(subject, "$NEX.events.default.function_exec_succeeded");
    assert_eq!(event["data"]["trigger_subject"], "log");
    assert!(event["data"]["elapsed_nanos"].as_u64().is_some());
    let info = world.control().info(node.id()).await.unwrap();
    assert_ne!(info.machines[0].workload.runtime, "0ns");
}

/// A newer version of a function is deployed and the older one stopped while calls come: each gets one answer.
#[tokio::test]
async fn replacement_loses_nothing() {
    const CALLS: usize = 2_000;
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    let old = world.deploy(&node, "word", "word old", &["word"]).await.id;

    let inbox = world.client.new_inbox();
    let mut replies = world.listen(&inbox).await;
    let caller = tokio::spawn({
        let (client, inbox) = (world.client.clone(), inbox.clone());
        async move {
            for _ in 0..CALLS {
                client
                    .publish_with_reply("word", inbox.clone(), Bytes::new())
                    .await
                    .unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    world.deploy(&node, "word", "word new", &["word"]).await;
    world.stop(&node, &old).await.unwrap();
    caller.await.unwrap();
    for _ in 0..CALLS {
        let reply = next(&mut replies).await;
        assert!(reply.status.is_none(), "unanswered");
    }
    assert_eq!(world.call("word", "").await.payload, "new");
}

/// Triggers and host services can live in another account than the node, for all workloads or for one.
#[tokio::test]
async fn connections_of_their_own() {
    let options = Options {
        config: "accounts {
            NODES { jetstream: enabled, users: [{user: node, password: n}] }
            TENANT { users: [{user: tenant, password: t}] }
            GUEST { users: [{user: guest, password: g}] }
        }\n"
        .to_owned(),
        ..Options::default()
    };
    let world = World::with_server(options, "node:n@").await;
    let at = |user: &str| world.server.url().replace("://", &format!("://{user}@"));
    let connection = |user: &str| NatsConnection {
        nats_url: at(user),
        ..NatsConnection::default()
    };
    let mut config = NodeConfig::default();
    config.host_services_config.nats = connection("tenant:t");
    let node = world.node(config).await;

    world.deploy(&node, "theirs", "word tenant", &["word"]).await;
    let mut request = world.request(&node, "guest", "word guest", &["word"]).await;
    request.host_services_config = Some(connection("guest:g"));
    world.control().deploy(node.id(), &request).await.unwrap();
    let mut request = world.request(&node, "split", "word split", &["split"]).await;
    request.trigger_connection = Some(connection("guest:g"));
    world.control().deploy(node.id(), &request).await.unwrap();

    for (user, subject, expected) in [
        ("tenant:t", "word", "tenant"),
        ("guest:g", "word", "guest"),
        ("guest:g", "split", "split"),
    ] {
        let client = connect(&at(user)).await;
        assert_eq!(
            client.request(subject, Bytes::new()).await.unwrap().payload,
            expected,
            "{user}"
        );
    }
    assert!(world.client.request("word", Bytes::new()).await.is_err());
}
