//! What must be shown, shown by a foreign client: Python scripts on nats-py call functions that a real node runs in real
//! agent processes, and drive the node's control interface.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use futures::future::join_all;
use serde_json::{Value, json};
use support::{Cluster, Node, fixture};
use tokio::sync::Mutex;

/// One scenario at a time: some measure how long an answer takes, and each keeps the machine busy by itself.
static MACHINE: Mutex<()> = Mutex::const_new(());

/// A node that runs functions, with these fixtures deployed, each on its subject; all at once, as many developers would.
async fn deployed(cluster: &Cluster, config: Value, functions: &[(&str, &str)]) -> Node {
    let node = cluster.node("acceptance", config).await;
    join_all(functions.iter().map(async |(function, subject)| {
        let answer = cluster.devrun(function, &[subject]).await;
        assert_eq!(answer["node"], node.id, "{function}: {answer}");
    }))
    .await;
    node
}

fn config(name: &str) -> Value {
    let text = std::fs::read_to_string(fixture("config").join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn documented_examples() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start();
    let functions = [
        ("echofunction.js", "helloworld"),
        ("echo.mjs", "module.echo"),
        ("kv.js", "hello.kv"),
        ("kv_v3.js", "hello.kv.v3"),
        ("objectstore.js", "hello.objects"),
        ("objectstore_v3.js", "hello.objects.v3"),
        ("messaging.js", "hello.messaging"),
        ("messaging_v3.js", "hello.messaging.v3"),
        ("http.js", "hello.http"),
        ("http_v3.js", "hello.http.v3"),
        ("services.mjs", "module.services"),
    ];
    let _node = deployed(&cluster, config("simple.json"), &functions).await;
    cluster.python("documented.py", &[]).await;
}

#[tokio::test]
async fn bytes_survive() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start();
    let functions = [
        ("bytes.js", "bytes"),
        ("identity.js", "identity"),
        ("identity.mjs", "module.identity"),
        ("reply.js", "reply"),
        ("stream.mjs", "stream"),
        ("shared.js", "shared.>"),
    ];
    let _node = deployed(&cluster, config("simple.json"), &functions).await;
    cluster.python("binary.py", &[]).await;
}

#[tokio::test]
async fn failed_calls_answer() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start();
    let functions = [
        ("throws.js", "throws"),
        ("spin.js", "spin"),
        ("spin_array.js", "spin.array"),
        ("identity.js", "identity"),
    ];
    let config = config("short_limits.json");
    let wall = config["limits"]["wall_time_ms"].to_string();
    let _node = deployed(&cluster, config, &functions).await;
    cluster.python("failures.py", &[("WALL_MS", &wall)]).await;
}

#[tokio::test]
async fn two_nodes_share_one_function() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start();
    let _first = cluster.node("first", config("simple.json")).await;
    let _second = cluster.node("second", config("simple.json")).await;
    cluster.python("two_nodes.py", &[]).await;
}

#[tokio::test]
async fn killed_agents_are_replaced() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start();
    let node = deployed(&cluster, config("simple.json"), &[("identity.js", "identity")]).await;
    let pid = node.pid().to_string();
    cluster.python("agent_killed.py", &[("NODE_PID", &pid)]).await;
}

#[tokio::test]
async fn control_interface_as_the_original_client_speaks_it() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start();
    let _node = cluster.node("wire", config("limited_issuers.json")).await;
    cluster.python("wire.py", &[]).await;
}

#[tokio::test]
async fn nodes_end_when_asked() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start();
    let mut node = deployed(&cluster, json!({}), &[("identity.js", "identity")]).await;
    let status = node.stop().await;
    assert!(status.success(), "{status}: {}", node.log());
}
