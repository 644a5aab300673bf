//! Configurations that are accepted, and what is said about those that are not.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;

#[test]
fn an_empty_object_is_the_defaults() {
    assert_eq!(NodeConfig::from_json(b"{}").unwrap(), NodeConfig::default());
    let written = serde_json::to_vec(&NodeConfig::default()).unwrap();
    assert_eq!(NodeConfig::from_json(&written).unwrap(), NodeConfig::default());
}

#[test]
fn keys_of_the_original() {
    let issuer = KeyPair::new_account().public_key();
    let json = serde_json::json!({
        "machine_pool_size": 3,
        "no_sandbox": true,
        "workload_types": ["v8", "wasm"],
        "valid_issuers": [issuer],
        "deny_trigger_subjects": ["internal.>"],
        "node_limits": {"max_workloads": 2, "max_total_bytes": 10, "max_workload_bytes": 5},
        "allow_duplicate_workloads": false,
        "tags": {"node_name": "a"},
        "host_services_config": {
            "nats": {"nats_url": "nats://127.0.0.1:1", "nats_user_jwt": "", "nats_user_seed": ""},
            "services": {"http": {"enabled": false, "config": null}}
        },
        "agent_handshake_timeout_ms": 1000,
        "agent_ping_timeout_ms": 200
    });
    let config = NodeConfig::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(config.machine_pool_size.get(), 3);
    assert_eq!(config.node_limits.max_workloads, 2);
    assert!(!config.host_services_config.services.http.enabled);
    assert!(config.host_services_config.services.kv.enabled);
}

#[test]
fn every_mistake_is_named() {
    for (json, message) in [
        ("", "not JSON"),
        ("null", "not a JSON object"),
        ("[1]", "not a JSON object"),
        (
            r#"{"kernel_path": "x"}"#,
            "configuration key `kernel_path`: unknown field",
        ),
        (
            r#"{"machine_pool_size": 0}"#,
            "configuration key `machine_pool_size`: invalid value: integer `0`",
        ),
        (
            r#"{"machine_pool_size": "two"}"#,
            "configuration key `machine_pool_size`: invalid type",
        ),
        (
            r#"{"limits": {"wall_time": 1}}"#,
            "configuration key `limits.wall_time`: unknown field",
        ),
        (r#"{"limits": 5}"#, "configuration key `limits`: invalid type"),
        (
            r#"{"tags": {}, "host_services_config": {"services": {"kv": {"config": {"max_bytes": -1}}}}}"#,
            "configuration key `host_services_config.services.kv.config.max_bytes`: invalid value",
        ),
        (
            r#"{"no_sandbox": false}"#,
            "configuration key `no_sandbox`: this node has no virtual machines",
        ),
        (
            r#"{"workload_types": []}"#,
            "configuration key `workload_types`: is empty",
        ),
        (
            r#"{"valid_issuers": ["UABC"]}"#,
            "configuration key `valid_issuers`: `UABC` is not a public account key",
        ),
        (
            r#"{"deny_trigger_subjects": ["a..b"]}"#,
            "configuration key `deny_trigger_subjects`: subject `a..b`",
        ),
        (
            r#"{"tags": {"nex.os": "plan9"}}"#,
            "configuration key `tags`: `nex.os` is reserved",
        ),
        (
            r#"{"host_services_config": {"nats": {"nats_user_jwt": "x"}}}"#,
            "configuration key `host_services_config.nats`",
        ),
    ] {
        let error = NodeConfig::from_json(json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(message), "{json}: {error}");
    }
    let missing = NodeConfig::load(Path::new("no/such/file.json")).unwrap_err();
    assert!(missing.to_string().contains("open no/such/file.json:"));
}

#[test]
fn every_example_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/config");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            NodeConfig::load(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            seen += 1;
        }
    }
    assert!(seen > 0);
}
