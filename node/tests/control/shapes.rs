//! The wire, key by key, as the original 0.2.7 and 0.3.0-rc1 have it.

use std::collections::BTreeMap;
use std::time::Duration;

use nex_node::NodeConfig;
use nex_node::claims::{Claims, hex_sha256, now};
use nex_node::control::messages::AuctionRequest;
use nex_node::control::subjects;
use nex_node::limits::LimitSet;
use nex_runtime::engine::Limits;
use serde_json::{Value, json};

use crate::harness::{BUCKET, World};

fn config() -> NodeConfig {
    NodeConfig {
        tags: BTreeMap::from([("node_name".into(), "here".into())]),
        ..NodeConfig::default()
    }
}

/// Replaces what differs in each run, after checking that it looks right.
fn tags() -> Value {
    let cpus = std::thread::available_parallelism().unwrap().to_string();
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let os = if cfg!(target_os = "linux") { "linux" } else { "darwin" };
    json!({"node_name": "here", "nex.os": os, "nex.arch": arch, "nex.cpucount": cpus, "nex.driver": "in_process", "nex.unsafe": "true"})
}

fn take_uptime(value: &mut Value) {
    let uptime = value["uptime"].take();
    assert!(uptime.as_str().is_some_and(|text| text.ends_with('s')), "{uptime}");
}

#[tokio::test]
async fn ping_and_auction() {
    let world = World::new().await;
    let node = world.node(config()).await;
    let mut expected = json!({
        "type": "io.nats.nex.v1.ping_response",
        "data": {
            "node_id": node.id(),
            "nexus": "nexus",
            "version": env!("CARGO_PKG_VERSION"),
            "uptime": null,
            "target_xkey": node.public_xkey(),
            "tags": tags(),
            "running_machines": 0,
        }
    });
    for subject in [subjects::PING.to_owned(), subjects::ping(node.id())] {
        let mut answer = world.raw(&subject, "").await;
        take_uptime(&mut answer["data"]);
        assert_eq!(answer, expected, "{subject}");
    }
    expected["type"] = json!("io.nats.nex.v1.auction_response");
    for request in [
        json!({}),
        json!({"arch": null, "tags": null}),
        json!({"arch": tags()["nex.arch"], "os": "LINUX", "sandboxed": false, "tags": {"node_name": "HERE"}, "workload_types": ["v8"]}),
    ] {
        let mut answer = world.raw(subjects::AUCTION, request.to_string()).await;
        take_uptime(&mut answer["data"]);
        assert_eq!(answer, expected, "{request}");
    }
    // The original sends nothing at all if it asks for nothing in particular.
    assert_eq!(world.raw(subjects::AUCTION, "").await["data"]["node_id"], node.id());
}

#[tokio::test]
async fn nodes_that_do_not_fit_are_silent() {
    let world = World::new().await;
    let node = world.node(config()).await;
    let control = world.control().with_timeout(Duration::from_millis(300));
    for request in [
        AuctionRequest {
            arch: Some("mips".into()),
            ..AuctionRequest::default()
        },
        AuctionRequest {
            os: Some("plan9".into()),
            ..AuctionRequest::default()
        },
        AuctionRequest {
            sandboxed: Some(true),
            ..AuctionRequest::default()
        },
        AuctionRequest {
            tags: BTreeMap::from([("gpu".into(), "yes".into())]),
            ..AuctionRequest::default()
        },
        AuctionRequest {
            workload_types: vec!["v8".into(), "native".into()],
            ..AuctionRequest::default()
        },
    ] {
        assert_eq!(control.auction(&request, None).await.unwrap(), [], "{request:?}");
    }
    assert_eq!(control.ping_workloads(None, None).await.unwrap(), []);
    // With an expected number of answers nobody waits for the whole time.
    let nodes = world
        .control()
        .auction(&AuctionRequest::default(), Some(1))
        .await
        .unwrap();
    assert_eq!(nodes[0].node_id, node.id());
}

#[tokio::test]
async fn deploy_info_workload_ping_and_stop() {
    let world = World::new().await;
    let node = world.node(config()).await;
    let (id, issuer) = (node.id(), world.issuer.public_key());
    world.upload("echo.js", "echo").await;
    let hash = hex_sha256(b"echo");
    // As nex 0.3.0-rc1 sends it.
    let request_id = "5ae3e5ef-9a0c-4f0b-8a55-1f1e0f6d3b1a";
    let mut claims = Claims::for_deploy(request_id, "echojs", &hash);
    let mut request = json!({
        "description": "Workload published in devmode",
        "hash": null,
        "location": {
            "Scheme": "nats", "Opaque": "", "User": null, "Host": BUCKET, "Path": "/echo.js", "RawPath": "",
            "OmitHost": false, "ForceQuery": false, "RawQuery": "", "Fragment": "", "RawFragment": ""
        },
        "essential": false,
        "environment": nex_node::environment::seal(&BTreeMap::new(), &world.xkey, node.public_xkey()).unwrap(),
        "id": request_id,
        "sender_public_key": world.xkey.public_key(),
        "target_node": id,
        "trigger_subjects": ["greet"],
        "workload_name": "echojs",
        "workload_jwt": claims.sign(&world.issuer).unwrap(),
        "type": "v8"
    });
    let mut answer = world.raw(&subjects::deploy("default", id), request.to_string()).await;
    let first = answer["data"]["id"].take();
    let workload = first.as_str().unwrap();
    uuid::Uuid::parse_str(workload).unwrap();
    assert_eq!(
        answer,
        json!({
            "type": "io.nats.nex.v1.run_response",
            "data": {"started": true, "id": null, "issuer": issuer, "name": "echojs"}
        })
    );

    // Keys of ours beside those of the original.
    let limits = serde_json::to_value(LimitSet::complete(&Limits::default())).unwrap();
    let mut answer = world.raw(&subjects::info("DEFAULT", id), "").await;
    let data = &mut answer["data"];
    take_uptime(data);
    take_uptime(&mut data["machines"][0]);
    take_uptime(&mut data["machines"][0]["workload"]);
    let memory = data["memory"].take();
    for key in ["total", "free", "available"] {
        assert!(memory[key].as_u64().is_some_and(|kb| kb > 0), "{memory}");
    }
    assert_eq!(
        answer,
        json!({
            "type": "io.nats.nex.v1.info_response",
            "data": {
                "version": env!("CARGO_PKG_VERSION"),
                "uptime": null,
                "public_xkey": node.public_xkey(),
                "tags": tags(),
                "memory": null,
                "available_agents": 1,
                "allow_duplicate_workloads": true,
                "supported_workload_types": ["v8"],
                "limits": limits,
                "max_limits": limits,
                "machines": [{
                    "id": workload,
                    "healthy": true,
                    "state": "running",
                    "uptime": null,
                    "namespace": "default",
                    "workload": {
                        "id": workload,
                        "name": "echojs",
                        "description": "Workload published in devmode",
                        "essential": false,
                        "hash": hash,
                        "limits": limits,
                        "runtime": "0ns",
                        "uptime": null,
                        "type": "v8",
                    }
                }],
            }
        })
    );
    assert_eq!(
        world.raw(&subjects::info("other", id), "").await["data"]["machines"],
        json!([])
    );

    for subject in [
        "$NEX.WPING.default".to_owned(),
        "$NEX.WPING.Default.ECHOJS".to_owned(),
        format!("$NEX.WPING.default.{workload}"),
    ] {
        let mut answer = world.raw(&subject, "").await;
        take_uptime(&mut answer["data"]);
        assert_eq!(
            answer,
            json!({
                "type": "io.nats.nex.v1.ping_response",
                "data": {
                    "node_id": id,
                    "target_xkey": node.public_xkey(),
                    "version": env!("CARGO_PKG_VERSION"),
                    "tags": tags(),
                    "uptime": null,
                    "running_machines": [{"id": workload, "namespace": "default", "name": "echojs", "type": "v8"}],
                }
            }),
            "{subject}"
        );
    }

    // As nex 0.2.7 sends it: the name is in the claims only, a domain may be empty.
    claims = Claims {
        name: None,
        ..Claims::for_deploy("old_echo", "", &hash)
    };
    for key in ["id", "hash", "workload_name"] {
        request.as_object_mut().unwrap().remove(key);
    }
    request["jsdomain"] = json!("");
    request["workload_jwt"] = json!(claims.sign(&world.issuer).unwrap());
    let answer = world.raw(&subjects::deploy("default", id), request.to_string()).await;
    assert_eq!(answer["data"]["name"], "old_echo", "{answer}");
    let second = answer["data"]["id"].as_str().unwrap().to_owned();

    // Stop as 0.3.0-rc1 and as 0.2.7 send it.
    let sign = |subject: &str| Claims::for_stop(subject).sign_at(&world.issuer, now() + 1).unwrap();
    for (request, name) in [
        (
            json!({"node_id": id, "workload_id": workload, "workload_jwt": sign(workload)}),
            "echojs",
        ),
        (
            json!({"target_node": id, "workload_id": second, "workload_jwt": sign("old_echo")}),
            "old_echo",
        ),
    ] {
        let answer = world.raw(&subjects::stop("default", id), request.to_string()).await;
        assert_eq!(
            answer,
            json!({
                "type": "io.nats.nex.v1.stop_response",
                "data": {"stopped": true, "id": request["workload_id"], "issuer": issuer, "name": name}
            })
        );
    }
}

#[tokio::test]
async fn lame_duck() {
    let world = World::new().await;
    let node = world.node(config()).await;
    world.deploy(&node, "echo", "echo", &["greet"]).await;
    let answer = world.raw(&subjects::lameduck(node.id()), "").await;
    assert_eq!(
        answer,
        json!({"type": "io.nats.nex.v1.lameduck_response", "data": {"node_id": node.id(), "success": true}})
    );
    let answer = world.raw(&subjects::deploy("default", node.id()), "{}").await;
    assert_eq!(
        answer["error"],
        "Node is in lame duck mode. Workload deploy request denied"
    );
    let ping = world.control().ping_node(node.id()).await.unwrap();
    assert_eq!((ping.tags["nex.lameduck"].as_str(), ping.running_machines), ("true", 1));
    assert_eq!(world.call("greet", "x").await.payload, "x");
    let control = world.control().with_timeout(Duration::from_millis(300));
    assert_eq!(control.auction(&AuctionRequest::default(), None).await.unwrap(), []);
}
