//! Who may run and stop what: hashes, replays, issuers, sealed environments.

use std::collections::BTreeMap;

use data_encoding::{BASE64URL, HEXLOWER};
use nex_node::claims::{Claims, hex_sha256, now};
use nex_node::control::Location;
use nex_node::{NodeConfig, environment};
use nkeys::KeyPair;
use serde_json::json;

use crate::harness::{BUCKET, World, refusal};

#[tokio::test]
async fn only_the_signed_artefact_runs() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    let control = world.control();
    let request = world.request(&node, "word", "word good", &["word"]).await;
    // Somebody replaces the object after it was signed for.
    world.upload("word", "word evil").await;
    let refused = refusal(control.deploy(node.id(), &request).await);
    let (good, evil) = (hex_sha256(b"word good"), hex_sha256(b"word evil"));
    assert_eq!(
        refused,
        format!("Invalid deploy request: the artefact's SHA-256 is {evil}, the signed claim says {good}")
    );
    // A request that failed may be sent again.
    world.upload("word", "word good").await;
    control.deploy(node.id(), &request).await.unwrap();
    assert_eq!(world.call("word", "").await.payload, "good");

    // The digest as the object store writes it is the same hash, and so are capitals.
    let bytes = HEXLOWER.decode(good.as_bytes()).unwrap();
    let digest = format!("SHA-256={}", BASE64URL.encode(&bytes));
    for (hash, in_request) in [(digest, Some(good.clone())), (good.to_uppercase(), None)] {
        let mut request = world.request(&node, "word", "word good", &["word"]).await;
        request.workload_jwt = Claims::for_deploy("r", "word", &hash).sign(&world.issuer).unwrap();
        request.hash = in_request;
        request.id = None;
        let deployed = control.deploy(node.id(), &request).await;
        // Both have the same standard claims, hence the same ID, if they are signed within one second.
        if let Err(error) = deployed {
            assert!(error.to_string().contains("have been used before"), "{error}");
        }
    }

    // Even with the content at hand, the object must be where the request says.
    let mut request = world.request(&node, "word", "word good", &["word"]).await;
    request.location = Location::new(BUCKET, "gone").unwrap();
    assert!(refusal(control.deploy(node.id(), &request).await).contains("has no object `gone`"));
}

#[tokio::test]
async fn a_request_works_once() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    let control = world.control();
    let request = world.request(&node, "echo", "echo", &["greet"]).await;
    let first = control.deploy(node.id(), &request).await.unwrap();
    let claims = Claims::verify(&request.workload_jwt).unwrap();
    assert_eq!(
        refusal(control.deploy(node.id(), &request).await),
        format!(
            "Invalid deploy request: these claims (jti {}) have been used before, expected new ones for each request",
            claims.id
        )
    );
    // Not even after the workload has been stopped, and not to stop it.
    let mut stop = world.stop_request(&node, &first.id);
    stop.workload_jwt = request.workload_jwt.clone();
    let cloned = "Invalid stop request: stop claims appear to be cloned or captured from the original start claims. \
                  Rejecting for security reasons";
    assert_eq!(refusal(control.stop(node.id(), &stop).await), cloned);
    stop.workload_jwt = Claims::for_stop(&first.id)
        .sign_at(&world.issuer, claims.issued_at)
        .unwrap();
    assert_eq!(refusal(control.stop(node.id(), &stop).await), cloned);
    world.stop(&node, &first.id).await.unwrap();
    assert!(refusal(control.deploy(node.id(), &request).await).contains("have been used before"));
    assert_eq!(refusal(world.stop(&node, &first.id).await), "No such workload");

    // Sent twice at the same time, it works once as well.
    let request = world.request(&node, "echo", "echo", &["greet"]).await;
    let both = futures::join!(control.deploy(node.id(), &request), control.deploy(node.id(), &request));
    assert_eq!(i32::from(both.0.is_ok()) + i32::from(both.1.is_ok()), 1, "{both:?}");
}

#[tokio::test]
async fn any_issuer_unless_listed_and_only_the_starter_stops() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    let workload = world.deploy(&node, "echo", "echo", &["greet"]).await;
    let mut stop = world.stop_request(&node, &workload.id);
    let other = KeyPair::new_account();
    stop.workload_jwt = Claims::for_stop(&workload.id).sign_at(&other, now() + 1).unwrap();
    assert_eq!(
        refusal(world.control().stop(node.id(), &stop).await),
        "Invalid stop request: the only entity allowed to terminate a workload is the issuer that originally started it"
    );
    assert_eq!(world.call("greet", "x").await.payload, "x");
    let response = world.stop(&node, &workload.id).await.unwrap();
    assert_eq!(response.issuer, world.issuer.public_key());
}

#[tokio::test]
async fn the_sealed_environment_reaches_the_function() {
    let world = World::new().await;
    let node = world.node(NodeConfig::default()).await;
    let variables = BTreeMap::from([
        ("GREETING".to_owned(), "grüß".to_owned()),
        ("EMPTY".to_owned(), String::new()),
    ]);
    let mut request = world.request(&node, "vars", "vars", &["vars"]).await;
    request.environment = environment::seal(&variables, &world.xkey, node.public_xkey()).unwrap();
    world.control().deploy(node.id(), &request).await.unwrap();
    let reply = world.call("vars", "").await;
    let seen: serde_json::Value = serde_json::from_slice(&reply.payload).unwrap();
    assert_eq!(seen, json!({"GREETING": "grüß", "EMPTY": ""}));
}
