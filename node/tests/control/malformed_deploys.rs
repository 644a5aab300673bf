//! Whatever is sent to a node as a deploy request, it says what is wrong with it, and lives on.

use std::collections::BTreeSet;

use nex_node::NodeConfig;
use nex_node::claims::{Claims, hex_sha256, now};
use nex_node::control::subjects;
use nkeys::{KeyPair, XKey};
use serde_json::{Value, json};

use crate::harness::{BUCKET, World};

/// What to change in a good request, and what the node must say.
type Case = (&'static str, Box<dyn Fn(&mut Value)>, &'static str);

fn set(key: &'static str, value: Value) -> Box<dyn Fn(&mut Value)> {
    Box::new(move |request| request[key] = value.clone())
}

fn unset(key: &'static str) -> Box<dyn Fn(&mut Value)> {
    Box::new(move |request| {
        request.as_object_mut().unwrap().remove(key);
    })
}

#[tokio::test]
async fn deploy_requests() {
    let world = World::new().await;
    let friend = world.issuer.public_key();
    let config = NodeConfig {
        workload_types: vec!["v8".into(), "native".into()],
        valid_issuers: vec![friend.clone()],
        deny_trigger_subjects: vec!["internal.>".into()],
        ..NodeConfig::default()
    };
    let node = world.node(config).await;
    let deploy = subjects::deploy("default", node.id());

    let hash = hex_sha256(b"echo");
    let stranger = KeyPair::new_account();
    let sign = |claims: Claims| Value::from(claims.sign(&world.issuer).unwrap());
    let claims = |name: &str, hash: &str| Claims::for_deploy(&uuid::Uuid::new_v4().to_string(), name, hash);
    let wrong_key = {
        let jwt = claims("echo", &hash).sign(&stranger).unwrap();
        let payload = jwt.split('.').nth(1).unwrap();
        let bytes = data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes()).unwrap();
        let forged = String::from_utf8(bytes)
            .unwrap()
            .replace(&stranger.public_key(), &friend);
        jwt.replace(payload, &data_encoding::BASE64URL_NOPAD.encode(forged.as_bytes()))
    };
    let sealed_for_another = {
        let other = XKey::new().public_key();
        nex_node::environment::seal(&[].into(), &world.xkey, &other).unwrap()
    };

    let cases: Vec<Case> = vec![
        (
            "null",
            Box::new(|r| *r = Value::Null),
            "Unable to deserialize deploy request: expected a JSON object, got null",
        ),
        (
            "array",
            Box::new(|r| *r = json!([])),
            "Unable to deserialize deploy request: expected a JSON object, got an array",
        ),
        (
            "string",
            Box::new(|r| *r = json!("deploy")),
            "expected a JSON object, got a string",
        ),
        (
            "number",
            Box::new(|r| *r = json!(5)),
            "expected a JSON object, got a number",
        ),
        (
            "no type",
            unset("type"),
            "field `type` is missing, expected a workload type such as \"v8\"",
        ),
        (
            "type number",
            set("type", json!(8)),
            "field `type` is a number, expected a workload type",
        ),
        (
            "type unknown",
            set("type", json!("cobol")),
            "Unsupported workload type on this node: cobol",
        ),
        (
            "no location",
            unset("location"),
            "field `location` is missing, expected a URL nats://BUCKET/key",
        ),
        (
            "location number",
            set("location", json!(1)),
            "field `location`: expected a URL string or a structured URL",
        ),
        (
            "location file",
            set("location", json!("file:///etc/passwd")),
            "field `location`: the scheme `file` is not supported",
        ),
        (
            "location no key",
            set("location", json!("nats://bucket")),
            "field `location`: it names no object",
        ),
        (
            "location structure",
            set("location", json!({"Scheme": "nats", "Host": 7, "Path": "/x"})),
            "field `location`: `Host` of the structured URL is not a string",
        ),
        (
            "no jwt",
            unset("workload_jwt"),
            "field `workload_jwt` is missing, expected the signed claims",
        ),
        (
            "null jwt",
            set("workload_jwt", Value::Null),
            "field `workload_jwt` is missing",
        ),
        (
            "empty jwt",
            set("workload_jwt", json!("")),
            "field `workload_jwt` is an empty string, expected the signed claims",
        ),
        (
            "jwt number",
            set("workload_jwt", json!(1)),
            "field `workload_jwt` is a number",
        ),
        (
            "no environment",
            unset("environment"),
            "field `environment` is missing, expected the sealed environment in base64",
        ),
        (
            "no sender",
            unset("sender_public_key"),
            "field `sender_public_key` is missing, expected a public xkey (X…)",
        ),
        (
            "limits array",
            set("limits", json!([1])),
            "field `limits` is an array, expected an object",
        ),
        (
            "limit unknown",
            set("limits", json!({"memory": 1})),
            "field `limits`: unknown limit `memory`, expected one of cpu_time_ms, wall_time_ms,",
        ),
        (
            "limit text",
            set("limits", json!({"cpu_time_ms": "1s"})),
            "field `limits`: `cpu_time_ms` is \"1s\", expected a whole number of milliseconds",
        ),
        (
            "limit zero",
            set("limits", json!({"wall_time_ms": 0})),
            "field `limits`: `wall_time_ms` is 0, possible are 1 to 2592000000 milliseconds",
        ),
        (
            "limit negative",
            set("limits", json!({"timers": -1})),
            "field `limits`: `timers` is -1, expected a whole number",
        ),
        (
            "limit too small",
            set("limits", json!({"heap_bytes": 1024})),
            "field `limits`: `heap_bytes` is 1024, possible are 8388608 to",
        ),
        (
            "limit beyond the node's",
            set("limits", json!({"wall_time_ms": 30_001})),
            "limit `wall_time_ms` is 30001, this node allows at most 30000 milliseconds",
        ),
        (
            "environment not base64",
            set("environment", json!("%%%")),
            "Failed to decrypt environment for deploy request: the environment is not base64",
        ),
        (
            "environment too short",
            set("environment", json!("AAAA")),
            "Failed to decrypt environment for deploy request: it does not open",
        ),
        (
            "environment of another node",
            set("environment", json!(sealed_for_another)),
            "Failed to decrypt environment for deploy request: it does not open with this node's key",
        ),
        (
            "sender no xkey",
            set("sender_public_key", json!(friend)),
            "is not a public xkey (X…)",
        ),
        (
            "triggers string",
            set("trigger_subjects", json!("a")),
            "field `trigger_subjects` is a string, expected an array of strings",
        ),
        (
            "triggers numbers",
            set("trigger_subjects", json!([1])),
            "field `trigger_subjects`: holds a number, expected an array of strings",
        ),
        (
            "no triggers",
            set("trigger_subjects", json!([])),
            "Invalid deploy request: at least one trigger subject is required for workload type v8",
        ),
        (
            "empty trigger",
            set("trigger_subjects", json!([""])),
            "Invalid deploy request: trigger subject `` is empty",
        ),
        (
            "trigger with space",
            set("trigger_subjects", json!(["a b"])),
            "trigger subject `a b` contains white space or control characters",
        ),
        (
            "trigger with line break",
            set("trigger_subjects", json!(["a\r\nSUB x 1"])),
            r"trigger subject `a\r\nSUB x 1` contains white space",
        ),
        (
            "trigger with empty token",
            set("trigger_subjects", json!(["a..b"])),
            "trigger subject `a..b` has an empty token",
        ),
        (
            "trigger with early wildcard",
            set("trigger_subjects", json!(["a.>.b"])),
            "trigger subject `a.>.b` has the wildcard `>` before its last token",
        ),
        (
            "too many triggers",
            set("trigger_subjects", json!(vec!["a"; 257])),
            "257 trigger subjects, at most 256 are possible",
        ),
        (
            "denied $SYS",
            set("trigger_subjects", json!(["$SYS.ACCOUNT"])),
            "The trigger subject $SYS.ACCOUNT overlaps with subject(s) in this node's deny list",
        ),
        (
            "denied by wildcard",
            set("trigger_subjects", json!([">"])),
            "The trigger subject > overlaps with subject(s) in this node's deny list",
        ),
        (
            "denied by configuration",
            set("trigger_subjects", json!(["ok", "internal.*"])),
            "The trigger subject internal.* overlaps",
        ),
        (
            "triggers of a service",
            set("type", json!("native")),
            "Unsupported workload type for trigger subject registration: native",
        ),
        (
            "essential function",
            set("essential", json!(true)),
            "essential flag is not supported for workload type v8",
        ),
        (
            "essential text",
            set("essential", json!("yes")),
            "field `essential` is a string, expected true or false",
        ),
        (
            "argv text",
            set("argv", json!("-x")),
            "field `argv` is a string, expected an array of strings",
        ),
        (
            "description number",
            set("description", json!(3)),
            "field `description` is a number, expected a string",
        ),
        (
            "retry count",
            set("retry_count", json!(-1)),
            "field `retry_count` is a number, expected a whole number, zero or more",
        ),
        (
            "host services text",
            set("host_services_config", json!("nats://x")),
            "field `host_services_config` is a string, expected an object",
        ),
        (
            "unreachable host services",
            set("host_services_config", json!({"nats_url": "nats://127.0.0.1:1"})),
            "Failed to deploy workload: cannot connect to the NATS server at nats://127.0.0.1:1",
        ),
        (
            "domain",
            set("jsdomain", json!("a.>")),
            "`a.>` is not a JetStream domain",
        ),
        (
            "unknown domain",
            set("jsdomain", json!("nowhere")),
            "Failed to cache workload bytes: JetStream does not answer",
        ),
        (
            "another node",
            set("target_node", json!("NABC")),
            "Invalid deploy request: it is meant for node NABC",
        ),
        (
            "another name",
            set("workload_name", json!("other")),
            "workload name `other` does not match the signed name `echo`",
        ),
        (
            "another hash",
            set("hash", json!("00ff")),
            "Invalid deploy request: artifact hash claim does not match request",
        ),
        (
            "no JWT",
            set("workload_jwt", json!("abc")),
            "Invalid deploy request: could not decode workload JWT: expected 3 chunks",
        ),
        (
            "JWT of rubbish",
            set("workload_jwt", json!("a.b.c")),
            "could not decode workload JWT: its header is not base64url",
        ),
        (
            "forged issuer",
            set("workload_jwt", json!(wrong_key)),
            "could not decode workload JWT: claim failed V2 signature verification",
        ),
        (
            "name with a dot",
            set("workload_jwt", sign(claims("a.b", &hash))),
            "invalid workload name `a.b`",
        ),
        (
            "claims without hash",
            set(
                "workload_jwt",
                sign(Claims {
                    hash: None,
                    ..claims("echo", "")
                }),
            ),
            "the claims have no `hash`",
        ),
        (
            "hash of the original devrun",
            set("workload_jwt", sign(claims("echo", "abc12345TODOmakethisreal"))),
            "hash claim `abc12345TODOmakethisreal` is not a SHA-256",
        ),
        (
            "expired claims",
            set(
                "workload_jwt",
                sign(Claims {
                    expires: Some(now() - 10),
                    ..claims("echo", &hash)
                }),
            ),
            "standard claims within JWT are not valid: claim is expired",
        ),
        (
            "early claims",
            set(
                "workload_jwt",
                sign(Claims {
                    not_before: Some(now() + 1_000),
                    ..claims("echo", &hash)
                }),
            ),
            "standard claims within JWT are not valid: claim is not yet valid",
        ),
        (
            "old claims",
            set(
                "workload_jwt",
                json!(claims("echo", &hash).sign_at(&world.issuer, now() - 5_000).unwrap()),
            ),
            "and has no expiry, such claims are accepted for 3600 s",
        ),
        (
            "claims from the future",
            set(
                "workload_jwt",
                json!(claims("echo", &hash).sign_at(&world.issuer, now() + 5_000).unwrap()),
            ),
            "s in the future, are the clocks right?",
        ),
        (
            "unwelcome issuer",
            set("workload_jwt", json!(claims("echo", &hash).sign(&stranger).unwrap())),
            "invalid workload issuer: A",
        ),
        (
            "wrong hash",
            set("workload_jwt", sign(claims("echo", &hex_sha256(b"something else")))),
            "Invalid deploy request: the artefact's SHA-256 is",
        ),
        (
            "no bucket",
            set("location", json!("nats://nowhere/echo")),
            "Failed to cache workload bytes: object store `nowhere` does not exist",
        ),
        (
            "no object",
            set("location", json!(format!("nats://{BUCKET}/nothing"))),
            "Failed to cache workload bytes: object store `testObjBucket` has no object `nothing`",
        ),
        (
            "does not compile",
            Box::new({
                let jwt = sign(claims("echo", &hex_sha256(b"syntax")));
                move |request| {
                    request["workload_jwt"] = jwt.clone();
                    request["location"] = json!(format!("nats://{BUCKET}/syntax"));
                }
            }),
            "Failed to deploy workload: SyntaxError: Unexpected identifier 'x' at echo.js:1:8",
        ),
    ];
    world.upload("syntax", "syntax").await;

    let mut texts = BTreeSet::new();
    for (title, change, expected) in &cases {
        let mut request = serde_json::to_value(world.request(&node, "echo", "echo", &["a"]).await).unwrap();
        change(&mut request);
        let answer = world.raw(&deploy, request.to_string()).await;
        assert_eq!(answer["type"], "io.nats.nex.v1.run_response", "{title}");
        assert_eq!(answer["data"], "", "{title}");
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{title}: {answer}"));
        assert!(error.contains(expected), "{title}: {error}");
        texts.insert(error.to_owned());
    }
    for (payload, expected) in [
        (
            &b""[..],
            "Unable to deserialize deploy request: the message is empty, expected a JSON object",
        ),
        (
            b"\xff\xfe{",
            "Unable to deserialize deploy request: the message is not JSON",
        ),
        (
            b"{\"type\":",
            "Unable to deserialize deploy request: the message is not JSON: EOF",
        ),
        (
            &[b'['; 100_000],
            "Unable to deserialize deploy request: the message is not JSON: recursion limit",
        ),
    ] {
        let answer = world.raw(&deploy, payload.to_vec()).await;
        let error = answer["error"].as_str().unwrap();
        assert!(error.starts_with(expected), "{error}");
        texts.insert(error.to_owned());
    }
    for (namespace, expected) in [
        (
            "a*b",
            "Invalid subject for workload deployment: `a*b` is not a namespace",
        ),
        (
            "system",
            "Invalid subject for workload deployment: namespace `system` is the node's own",
        ),
    ] {
        let answer = world.raw(&subjects::deploy(namespace, node.id()), "{}").await;
        let error = answer["error"].as_str().unwrap();
        assert!(error.starts_with(expected), "{error}");
        texts.insert(error.to_owned());
    }
    // Two cases may only share a text if they are the same mistake, as a missing and a null field are.
    assert!(
        texts.len() >= cases.len() + 5,
        "{} texts for {} cases",
        texts.len(),
        cases.len()
    );

    assert_eq!(node.running_workloads(), 0);
    let response = world.deploy(&node, "echo", "echo", &["greet"]).await;
    assert_eq!(response.issuer, friend);
    assert_eq!(world.call("greet", "still here").await.payload, "still here");
}
