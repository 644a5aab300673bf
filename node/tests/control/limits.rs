//! Limits of a node as a whole.

use nex_node::NodeConfig;
use nex_node::config::NodeLimits;
use nex_node::control::messages::AuctionRequest;
use serde_json::json;

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
