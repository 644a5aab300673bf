//! Configurations that are accepted, and what is said about those that are not.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use super::*;
use crate::machines::firecracker::{CpuTemplate, HugePages};

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
fn a_deploy_may_ask_for_less_and_for_more_only_where_the_operator_says_so() {
    let json = r#"{"limits": {"wall_time_ms": 5000}, "max_limits": {"heap_bytes": 268435456}}"#;
    let config = NodeConfig::from_json(json.as_bytes()).unwrap();
    let asked = |json: &str| serde_json::from_str::<LimitSet>(json).unwrap();

    let limits = config.grant(&asked("{}")).unwrap();
    assert_eq!(limits.wall_time, Duration::from_secs(5));
    assert_eq!(limits.heap_bytes, Limits::default().heap_bytes);
    let limits = config
        .grant(&asked(r#"{"wall_time_ms": 200, "heap_bytes": 268435456}"#))
        .unwrap();
    assert_eq!((limits.wall_time.as_millis(), limits.heap_bytes), (200, 256 << 20));
    let error = config.grant(&asked(r#"{"wall_time_ms": 5001}"#)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`wall_time_ms` is 5001, this node allows at most 5000 milliseconds"
    );
}

#[test]
fn firecracker_has_settings_of_its_own() {
    let jailer = NodeConfig::default().firecracker.jailer;
    assert_eq!(jailer.range(), 4_000_000..=4_000_999);
    let json = r#"{"firecracker": {
        "balloon": {"amount_mib": 64, "deflate_on_oom": true},
        "huge_pages": "transparent",
        "cpu_template": "T2S",
        "jailer": {"first_uid": 70000, "uids": 2, "cgroup": {"parent": "nex", "settings": {"memory.max": "300000000"}}}
    }}"#;
    let config = NodeConfig::from_json(json.as_bytes()).unwrap().firecracker;
    assert_eq!(
        config
            .balloon
            .map(|balloon| (balloon.amount_mib, balloon.deflate_on_oom)),
        Some((64, true))
    );
    assert_eq!(config.huge_pages, HugePages::Transparent);
    assert_eq!(config.cpu_template, Some(CpuTemplate::T2S));
    assert_eq!(config.jailer.range(), 70_000..=70_001);
    assert_eq!(config.jailer.cgroup.unwrap().settings["memory.max"], "300000000");
}

#[test]
fn a_machine_has_limits_whether_or_not_they_are_set() {
    let limits = NodeConfig::default().process_limits();
    let usable = crate::machines::ProcessLimits::usable_memory_bytes().unwrap();
    assert_eq!(limits.memory_bytes, Some((usable / 2).max(96 << 20)));
    assert_eq!(limits.pids, Some(2 * 1_000 + 256));
    assert_eq!(limits.cpus, None);

    let json = r#"{"machine_limits": {"memory_mib": 300, "cpus": 0.5}, "max_instances_per_agent": 10}"#;
    let limits = NodeConfig::from_json(json.as_bytes()).unwrap().process_limits();
    assert_eq!(limits.memory_bytes, Some(300 << 20));
    assert_eq!(limits.pids, Some(2 * 10 + 256));
    assert_eq!(limits.cpus, Some(0.5));

    let json = r#"{"machine_limits": {"pids": 100}, "max_instances_per_agent": 4000000000}"#;
    let mut config = NodeConfig::from_json(json.as_bytes()).unwrap();
    assert_eq!(config.process_limits().pids, Some(100));
    config.machine_limits.pids = None;
    assert_eq!(config.process_limits().pids, Some(4_194_304));
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
            r#"{"limits": {"timers": 1, "wall_time": 1}}"#,
            "configuration key `limits.wall_time`: unknown limit `wall_time`, expected one of cpu_time_ms, wall_time_ms,",
        ),
        (
            r#"{"limits": {"heap_bytes": 5}}"#,
            "configuration key `limits.heap_bytes`: `heap_bytes` is 5, possible are 8388608 to 68719476736 bytes",
        ),
        (
            r#"{"max_limits": {"instances": 0}}"#,
            "configuration key `max_limits.instances`: `instances` is 0, possible are 1 to 1000",
        ),
        (
            r#"{"limits": {"cpu_time_ms": "1s"}}"#,
            "configuration key `limits.cpu_time_ms`: `cpu_time_ms` is \"1s\", expected a whole number of milliseconds",
        ),
        (
            r#"{"max_limits": {"wall_time_ms": 10000}}"#,
            "configuration key `max_limits.wall_time_ms`: 10000 is below 30000, which workloads have by default",
        ),
        (
            r#"{"quarantine": {"duration_ms": 10, "max_duration_ms": 9}}"#,
            "configuration key `quarantine.max_duration_ms`: 9 is below `quarantine.duration_ms`, which is 10",
        ),
        (
            r#"{"quarantine": {"after": 0}}"#,
            "configuration key `quarantine.after`: invalid value",
        ),
        (
            r#"{"agent_memory_high_bytes": 0}"#,
            "configuration key `agent_memory_high_bytes`: invalid value",
        ),
        (r#"{"limits": 5}"#, "configuration key `limits`: invalid type"),
        (
            r#"{"tags": {}, "host_services_config": {"services": {"kv": {"config": {"max_bytes": -1}}}}}"#,
            "configuration key `host_services_config.services.kv.config.max_bytes`: invalid value",
        ),
        (
            r#"{"no_sandbox": false}"#,
            "configuration key `no_sandbox`: false asks for virtual machines, but `machine_driver` is process",
        ),
        (
            r#"{"no_sandbox": true, "machine_driver": "qemu"}"#,
            "configuration key `no_sandbox`: true contradicts `machine_driver`, which is qemu",
        ),
        (
            r#"{"machine_driver": "docker"}"#,
            "configuration key `machine_driver`: unknown variant `docker`, expected one of",
        ),
        (
            r#"{"machine_template": {"memsize_mib": 64}}"#,
            "configuration key `machine_template.memsize_mib`: 64 is below 192",
        ),
        (
            r#"{"machine_template": {"vcpu_count": 33}}"#,
            "configuration key `machine_template.vcpu_count`: 33 is above 32",
        ),
        (
            r#"{"firecracker": {"baloon": {}}}"#,
            "configuration key `firecracker.baloon`: unknown field `baloon`, expected one of `balloon`, `huge_pages`, \
             `cpu_template`, `jailer`",
        ),
        (
            r#"{"firecracker": {"jailer": {"first_uid": 4294967290, "uids": 10}}}"#,
            "configuration key `firecracker.jailer.uids`: 10 user ids from 4294967290 on are more than there are, up to \
             4294967294",
        ),
        (
            r#"{"machine_limits": {"memory": 512}}"#,
            "configuration key `machine_limits.memory`: unknown field `memory`, expected one of `memory_mib`, `pids`, `cpus`",
        ),
        (
            r#"{"machine_limits": {"memory_mib": 0}}"#,
            "configuration key `machine_limits.memory_mib`: invalid value: integer `0`, expected a nonzero u32",
        ),
        (
            r#"{"machine_limits": {"memory_mib": 95}}"#,
            "configuration key `machine_limits.memory_mib`: 95 is below 96",
        ),
        (
            r#"{"machine_limits": {"pids": -1}}"#,
            "configuration key `machine_limits.pids`: invalid value: integer `-1`, expected a nonzero u32",
        ),
        (
            r#"{"machine_limits": {"pids": 4194305}}"#,
            "configuration key `machine_limits.pids`: 4194305 processes and threads, possible are 64 to 4194304",
        ),
        (
            r#"{"machine_limits": {"cpus": 0}}"#,
            "configuration key `machine_limits.cpus`: 0 processors, possible are 0.01 to 4096",
        ),
        (
            r#"{"machine_limits": {"cpus": -1.5}}"#,
            "configuration key `machine_limits.cpus`: -1.5 processors, possible are 0.01 to 4096",
        ),
        (
            r#"{"machine_limits": {"cpus": "2"}}"#,
            "configuration key `machine_limits.cpus`: invalid type: string \"2\", expected f64",
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
