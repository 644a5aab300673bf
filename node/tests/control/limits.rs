//! Limits of a node as a whole, and of each workload.

use std::time::Duration;

use nex_node::NodeConfig;
use nex_node::config::NodeLimits;
use nex_node::control::messages::AuctionRequest;
use nex_node::limits::LimitSet;
use nex_runtime::engine::Limits;
use serde_json::{Value, json};

use crate::harness::{World, refusal};

#[tokio::test]
async fn counts_and_sizes() {
    let world = World::new().await;
    let limits = NodeLimits {
        max_workloads: 2,
        max_total_bytes: 20,
        max_workload_bytes: 12,
    };
    let node = world
        .node(NodeConfig {
            node_limits: limits,
            ..NodeConfig::default()
        })
        .await;
    let control = world.control();

    let too_large = world.request(&node, "large", "word 45678901", &["a"]).await;
    assert_eq!(
        refusal(control.deploy(node.id(), &too_large).await),
        "Workload file size would exceed node limitations"
    );
    world.deploy(&node, "first", "word 4567890", &["a"]).await;
    let too_much = world.request(&node, "second", "word 4567", &["a"]).await;
    assert_eq!(
        refusal(control.deploy(node.id(), &too_much).await),
        "Workload file size would exceed node total limitations"
    );
    let second = world.deploy(&node, "second", "word 456", &["b"]).await;
    let one_more = world.request(&node, "third", "x", &["c"]).await;
    assert_eq!(
        refusal(control.deploy(node.id(), &one_more).await),
        "Node is at maximum workload limit. Deploy request denied"
    );
    world.stop(&node, &second.id).await.unwrap();
    world.deploy(&node, "third", "echo", &["c"]).await;
    assert_eq!(node.running_workloads(), 2);
}

fn limit_set(json: Value) -> LimitSet {
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn a_workload_has_the_limits_of_its_node_or_those_it_asks_for() {
    let world = World::new().await;
    let node = world
        .node(NodeConfig {
            limits: limit_set(json!({"wall_time_ms": 5000, "timers": 7})),
            max_limits: limit_set(json!({"wall_time_ms": 60000})),
            ..NodeConfig::default()
        })
        .await;
    let control = world.control();
    let in_force =
        async |subject: &str| -> Value { serde_json::from_slice(&world.call(subject, "").await.payload).unwrap() };
    let mut defaults = serde_json::to_value(LimitSet::complete(&Limits::default())).unwrap();
    defaults["wall_time_ms"] = json!(5000);
    defaults["timers"] = json!(7);

    let answer = world.deploy(&node, "default", "limits", &["default"]).await;
    assert!(
        answer.limits.is_empty(),
        "an original client asks for none and is told none"
    );
    assert_eq!(in_force("default").await, defaults);

    let mut request = world.request(&node, "own", "limits", &["own"]).await;
    request.limits = limit_set(
        json!({"wall_time_ms": 60000, "heap_bytes": 64 << 20, "instances": 1, "timers": 0, "reply_bytes": 500}),
    );
    let answer = control.deploy(node.id(), &request).await.unwrap();
    let mut own = defaults.clone();
    for (limit, value) in request.limits.iter() {
        own[limit.key()] = json!(value);
    }
    assert_eq!(in_force("own").await, own);
    assert_eq!(json!(answer.limits), own);

    // What the server does not take, no node can grant.
    let mut request = world.request(&node, "generous", "limits", &["generous"]).await;
    request.limits = limit_set(json!({"reply_bytes": 64 << 20}));
    let answer = control.deploy(node.id(), &request).await.unwrap();
    assert_eq!(answer.limits["reply_bytes"], u64::from(Limits::default().reply_bytes));
    assert_eq!(in_force("generous").await, defaults);
    world.stop(&node, &answer.id).await.unwrap();

    // Info tells what is in force, what is the default, and what could be had.
    let info = control.info(node.id()).await.unwrap();
    let mut max = defaults.clone();
    max["wall_time_ms"] = json!(60000);
    assert_eq!((json!(info.limits), json!(info.max_limits)), (defaults.clone(), max));
    let shown: Vec<_> = info
        .machines
        .iter()
        .map(|machine| (machine.workload.name.as_str(), json!(machine.workload.limits)))
        .collect();
    assert_eq!(shown, [("default", defaults), ("own", own)]);
}

#[tokio::test]
async fn what_a_node_cannot_grant_it_refuses_and_does_not_bid_for() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    for (asked, refused) in [
        (
            json!({"heap_bytes": 1 << 30}),
            "limit `heap_bytes` is 1073741824, this node allows at most 134217728 bytes",
        ),
        (
            json!({"instances": 5}),
            "limit `instances` is 5, this node allows at most 4",
        ),
    ] {
        let mut request = world.request(&node, "f", "echo", &["a"]).await;
        request.limits = limit_set(asked.clone());
        assert_eq!(
            refusal(world.control().deploy(node.id(), &request).await),
            format!("Invalid deploy request: {refused}")
        );
        let auction = AuctionRequest {
            limits: limit_set(asked),
            ..AuctionRequest::default()
        };
        let hurried = world.control().with_timeout(Duration::from_millis(300));
        assert_eq!(hurried.auction(&auction, None).await.unwrap(), []);
    }
    assert_eq!(node.running_workloads(), 0);
    let modest = AuctionRequest {
        limits: limit_set(json!({"heap_bytes": 64 << 20, "instances": 4})),
        ..AuctionRequest::default()
    };
    let bids = world.control().auction(&modest, Some(1)).await.unwrap();
    assert_eq!(bids[0].node_id, node.id());
}

#[tokio::test]
async fn duplicates() {
    let world = World::new().await;
    let node = world
        .node(NodeConfig {
            allow_duplicate_workloads: false,
            ..NodeConfig::default()
        })
        .await;
    let first = world.deploy(&node, "one", "echo", &["a"]).await;
    let twin = world.request(&node, "two", "echo", &["b"]).await;
    assert_eq!(
        refusal(world.control().deploy(node.id(), &twin).await),
        "Failed to deploy workload: attempted to deploy duplicate workload to node configured to reject duplicates"
    );
    // Another namespace is another matter, and so is another artefact.
    let elsewhere = nex_node::control::ControlClient::new(world.client.clone(), "other", crate::harness::PATIENCE);
    elsewhere
        .deploy(node.id(), &world.request(&node, "two", "echo", &["b"]).await)
        .await
        .unwrap();
    world.deploy(&node, "three", "word x", &["c"]).await;
    world.stop(&node, &first.id).await.unwrap();
    world.deploy(&node, "two", "echo", &["a"]).await;
    assert_eq!(node.running_workloads(), 3);

    // A namespace sees its own workloads.
    let info = elsewhere.info(node.id()).await.unwrap();
    assert_eq!(
        info.machines
            .iter()
            .map(|m| m.workload.name.as_str())
            .collect::<Vec<_>>(),
        ["two"]
    );
    let found = elsewhere.ping_workloads(None, Some(1)).await.unwrap();
    assert_eq!(found[0].running_machines.len(), 1);
}

/// The answer to an info request has its limits as well: the node says so instead of losing its connection.
#[tokio::test]
async fn an_answer_too_large_for_the_server() {
    let options = nex_host_services::nats_server::Options {
        config: "max_payload: 1024\n".to_owned(),
        ..Default::default()
    };
    let world = World::with_server(options, "").await;
    let mut config = NodeConfig::default();
    config.tags.insert("long".to_owned(), "x".repeat(2_000));
    let node = world.node(config).await;
    let answer = world.raw(&nex_node::control::subjects::ping(node.id()), "").await;
    assert_eq!(answer["data"], json!(""));
    assert!(
        answer["error"].as_str().unwrap().contains("the server takes 1024"),
        "{answer}"
    );
    let answered = world.control().with_timeout(std::time::Duration::from_millis(300));
    assert_eq!(answered.auction(&AuctionRequest::default(), None).await.unwrap(), []);
}
