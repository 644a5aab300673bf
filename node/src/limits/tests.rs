//! Limits in JSON and on the command line, good ones and bad ones.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use serde_json::json;

use super::*;

fn set(value: Value) -> Result<LimitSet, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// The command line's notation.
fn assigned(text: &str) -> Result<LimitSet, String> {
    LimitKey::parse_assignment(text).map(|assignment| [assignment].into_iter().collect())
}

#[test]
fn every_limit_of_the_engine_has_a_key() {
    let Value::Object(engine) = serde_json::to_value(Limits::default()).unwrap() else {
        unreachable!("a struct is an object")
    };
    let mut expected: Vec<&str> = engine.keys().map(String::as_str).collect();
    let mut keys = LimitKey::ALL.map(|limit| limit.key().trim_end_matches("_ms"));
    expected.sort_unstable();
    keys.sort_unstable();
    assert_eq!(keys.as_slice(), expected);
}

#[test]
fn what_is_set_is_what_is_read() {
    for limit in LimitKey::ALL {
        for value in [*limit.bounds().start(), *limit.bounds().end()] {
            let set = set(json!({ limit.key(): value })).unwrap();
            let limits = set.over(Limits::default());
            assert_eq!(limit.of(&limits), value, "{limit}");
            let others = LimitKey::ALL.into_iter().filter(|other| *other != limit);
            for other in others {
                assert_eq!(other.of(&limits), other.of(&Limits::default()), "{other} by {limit}");
            }
        }
        assert!(limit.bounds().contains(&limit.of(&Limits::default())), "{limit}");
    }
    let complete = LimitSet::complete(&Limits::default());
    assert_eq!(complete.iter().count(), LimitKey::ALL.len());
    assert_eq!(set(serde_json::to_value(&complete).unwrap()).unwrap(), complete);
    assert!(set(json!({"heap_bytes": null})).unwrap().is_empty());
}

#[test]
fn bad_values_are_named_with_what_is_possible() {
    for (value, message) in [
        (
            json!({"cpu_time": 1}),
            "unknown limit `cpu_time`, expected one of cpu_time_ms, wall_time_ms,",
        ),
        (
            json!({"reply_bytes": 64_000_001_000_u64}),
            "`reply_bytes` is 64000001000, possible are 0 to 67108864 bytes",
        ),
        (
            json!({"cpu_time_ms": 0}),
            "`cpu_time_ms` is 0, possible are 1 to 2592000000 milliseconds",
        ),
        (
            json!({"cpu_time_ms": -1}),
            "`cpu_time_ms` is -1, expected a whole number of milliseconds",
        ),
        (
            json!({"cpu_time_ms": 1.5}),
            "`cpu_time_ms` is 1.5, expected a whole number",
        ),
        (
            json!({"heap_bytes": "64MiB"}),
            "`heap_bytes` is \"64MiB\", expected a whole number of bytes",
        ),
        (
            json!({"heap_bytes": 1}),
            "`heap_bytes` is 1, possible are 8388608 to 68719476736 bytes",
        ),
        (
            json!({"stack_bytes": 1}),
            "`stack_bytes` is 1, possible are 131072 to 16777216 bytes",
        ),
        (json!({"instances": 0}), "`instances` is 0, possible are 1 to 1000"),
        (
            json!({"queue_depth": 0}),
            "`queue_depth` is 0, possible are 1 to 1000000",
        ),
        (
            json!({"concurrency": u64::MAX}),
            "`concurrency` is 18446744073709551615, possible are 1 to 65536",
        ),
        (json!([1]), "expected a map"),
    ] {
        let error = set(value.clone()).unwrap_err();
        assert!(error.contains(message), "{value}: {error}");
    }
    let asked = set(json!({"heap_bytes": 256 << 20, "timers": 5})).unwrap();
    let error = asked.check_within(&Limits::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`heap_bytes` is 268435456, this node allows at most 134217728 bytes"
    );
    set(json!({"heap_bytes": 128 << 20}))
        .unwrap()
        .check_within(&Limits::default())
        .unwrap();
}

#[test]
fn the_command_lines_notation() {
    for (text, limit, value) in [
        ("cpu_time=500ms", LimitKey::CpuTime, 500),
        ("cpu_time=0.3s", LimitKey::CpuTime, 300),
        ("wall_time=1m30s", LimitKey::WallTime, 90_000),
        ("wall_time_ms=200", LimitKey::WallTime, 200),
        ("heap=64MiB", LimitKey::Heap, 64 << 20),
        ("heap=1.5GiB", LimitKey::Heap, 3 << 29),
        ("heap=64MB", LimitKey::Heap, 64_000_000),
        ("heap_bytes=10000000", LimitKey::Heap, 10_000_000),
        ("stack=256KiB", LimitKey::Stack, 256 << 10),
        ("buffer=65536B", LimitKey::Buffer, 65_536),
        ("reply=10KiB", LimitKey::Reply, 10_240),
        ("instances=2", LimitKey::Instances, 2),
        ("hibernate_after=0s", LimitKey::HibernateAfter, 0),
    ] {
        let set = assigned(text).unwrap();
        assert_eq!(set.get(limit), Some(value), "{text}");
        let shown = format!("{}={}", limit.name(), limit.show(value));
        assert_eq!(assigned(&shown).unwrap(), set, "{shown}");
    }
    for (text, message) in [
        ("cpu_time", "expected NAME=VALUE"),
        ("speed=1", "unknown limit `speed`, expected one of cpu_time, wall_time,"),
        (
            "cpu_time=500",
            "cpu_time: `500` is not a duration; expected something like 2s, 750ms",
        ),
        ("cpu_time=1us", "not a whole number of milliseconds"),
        ("cpu_time=0s", "cpu_time is 0s, possible are 1ms to 2592000s"),
        ("cpu_time_ms=1s", "cpu_time_ms: `1s` is not a whole number"),
        (
            "heap=64",
            "heap: `64` is not a number of bytes; expected something like 64MiB",
        ),
        ("heap=-1MiB", "not a number of bytes"),
        ("heap=1.2.3MiB", "not a number of bytes"),
        ("heap=.5GiB", "not a number of bytes"),
        ("heap=0.1B", "not a number of bytes"),
        ("heap=1MiB", "heap is 1MiB, possible are 8MiB to 64GiB"),
        ("instances=two", "instances: `two` is not a whole number"),
        ("instances=0", "instances is 0, possible are 1 to 1000"),
    ] {
        let error = assigned(text).unwrap_err();
        assert!(error.contains(message), "{text}: {error}");
    }
}
