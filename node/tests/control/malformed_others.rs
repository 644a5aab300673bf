//! The same for requests that deploy nothing.

use nex_node::NodeConfig;
use nex_node::claims::{Claims, now};
use nex_node::control::subjects;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::harness::World;

#[tokio::test]
async fn other_requests() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    let id = node.id();
    let workload = world.deploy(&node, "echo", "echo", &["greet"]).await.id;
    let stranger = KeyPair::new_account();

    let good = serde_json::to_value(world.stop_request(&node, &workload)).unwrap();
    let with = |key: &str, value: Value| {
        let mut request = good.clone();
        request[key] = value;
        request.to_string()
    };
    let signed = |claims: Claims, key: &KeyPair, at: u64| json!(claims.sign_at(key, at).unwrap());
    let stop = subjects::stop("default", id);
    let other_namespace = subjects::stop("other", id);
    let auction = subjects::AUCTION.to_owned();
    let cases = [
        (
            &stop,
            String::new(),
            "Unable to deserialize stop request: the message is empty",
        ),
        (
            &stop,
            "null".into(),
            "Unable to deserialize stop request: expected a JSON object, got null",
        ),
        (
            &stop,
            "{}".into(),
            "Unable to deserialize stop request: field `workload_id` is missing, expected the ID of a workload",
        ),
        (&stop, with("workload_id", json!(5)), "field `workload_id` is a number"),
        (
            &stop,
            with("workload_jwt", Value::Null),
            "field `workload_jwt` is missing, expected the signed claims",
        ),
        (
            &stop,
            with("node_id", json!([])),
            "field `node_id` is an array, expected a string",
        ),
        (
            &stop,
            with("node_id", json!("NABC")),
            "Invalid stop request: it is meant for node NABC",
        ),
        (&stop, with("workload_id", json!("nothing")), "No such workload"),
        (&other_namespace, good.to_string(), "No such workload"),
        (
            &stop,
            with("workload_jwt", json!("x")),
            "Invalid stop request: could not decode workload JWT: expected 3 chunks",
        ),
        (
            &stop,
            with(
                "workload_jwt",
                signed(Claims::for_stop(&workload), &stranger, now() + 1),
            ),
            "Invalid stop request: the only entity allowed to terminate a workload is the issuer that originally started it",
        ),
        (
            &stop,
            with(
                "workload_jwt",
                signed(Claims::for_stop("other"), &world.issuer, now() + 1),
            ),
            "Invalid stop request: stop claims subject does not match original start claims subject",
        ),
        (
            &stop,
            with(
                "workload_jwt",
                signed(Claims::for_stop(&workload), &world.issuer, now() - 100),
            ),
            "Invalid stop request: stop claims are older than the original start claims",
        ),
        (
            &stop,
            with(
                "workload_jwt",
                signed(
                    Claims {
                        expires: Some(5),
                        ..Claims::for_stop(&workload)
                    },
                    &world.issuer,
                    now() + 1,
                ),
            ),
            "Invalid stop request: standard claims within JWT are not valid: claim is expired",
        ),
        (
            &auction,
            "null".into(),
            "Unable to deserialize auction request: expected a JSON object, got null",
        ),
        (
            &auction,
            "x".into(),
            "Unable to deserialize auction request: the message is not JSON",
        ),
        (
            &auction,
            json!({"arch": 5}).to_string(),
            "field `arch` is a number, expected a string",
        ),
        (
            &auction,
            json!({"sandboxed": "no"}).to_string(),
            "field `sandboxed` is a string, expected true or false",
        ),
        (
            &auction,
            json!({"tags": []}).to_string(),
            "field `tags` is an array, expected an object of strings",
        ),
        (
            &auction,
            json!({"tags": {"a": 1}}).to_string(),
            "field `tags`: `a` is a number, expected an object of strings",
        ),
        (
            &auction,
            json!({"workload_types": "v8"}).to_string(),
            "field `workload_types` is a string, expected an array of strings",
        ),
        (
            &"$NEX.WPING.a.b.c".to_owned(),
            String::new(),
            "Invalid subject for workload ping: expected $NEX.WPING.",
        ),
        (
            &subjects::info("a*b", id),
            String::new(),
            "Failed to extract namespace for info request: `a*b` is not a namespace",
        ),
    ];
    for (subject, payload, expected) in cases {
        let answer = world.raw(subject, payload.clone()).await;
        assert_eq!(answer["data"], "", "{payload}");
        let error = answer["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{payload}: {answer}"));
        assert!(error.contains(expected), "{payload}: {error}");
    }

    // Rubbish without a reply subject is ignored.
    for subject in [&stop, &auction, &subjects::deploy("default", id), &subjects::ping(id)] {
        world.client.publish(subject.clone(), "null".into()).await.unwrap();
    }
    assert_eq!(world.control().ping_node(id).await.unwrap().running_machines, 1);
    assert_eq!(world.call("greet", "still here").await.payload, "still here");
    world.stop(&node, &workload).await.unwrap();
    assert_eq!(node.running_workloads(), 0);
}
