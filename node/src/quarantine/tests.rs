//! The record of an artefact over time.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rules() -> QuarantineRules {
    QuarantineRules {
        after: 3,
        window: 100 * SECOND,
        duration: 10 * SECOND,
        max_duration: 30 * SECOND,
    }
}

fn length(record: &Record) -> Duration {
    let state = record.state.lock();
    let quarantine = state.last.as_ref().unwrap();
    quarantine.until.duration_since(quarantine.since).unwrap()
}

#[test]
fn three_incidents_within_the_window_are_too_many() {
    let record = Record::new(rules());
    let start = Instant::now();
    assert!(!record.incident_at(start, "a"));
    assert!(!record.incident_at(start + 60 * SECOND, "b"));
    // The first is forgotten by now.
    assert!(!record.incident_at(start + 101 * SECOND, "c"));
    assert!(record.incident_at(start + 102 * SECOND, "d"));
    let state = record.state.lock();
    assert!(state.active(start + 111 * SECOND).is_some());
    assert!(state.active(start + 112 * SECOND).is_none());
    let told = state.last.as_ref().unwrap().to_string();
    assert!(told.starts_with("the function is quarantined since 2"), "{told}");
    assert!(
        told.ends_with("Z: 3 times it has cost its agent; the last time, d"),
        "{told}"
    );
}

#[test]
fn after_a_quarantine_one_incident_is_enough_and_the_next_is_longer() {
    let record = Record::new(rules());
    let mut now = Instant::now();
    for _ in 0..3 {
        record.incident_at(now, "x");
    }
    for expected in [10, 20, 30, 30] {
        assert_eq!(length(&record), expected * SECOND);
        // What happens while it lasts changes nothing.
        assert!(record.incident_at(now + SECOND, "y"));
        assert_eq!(length(&record), expected * SECOND);
        now += expected * SECOND;
        assert!(record.incident_at(now, "z"));
    }
    // Without an incident for as long as the window, all is forgiven.
    now += (30 + 101) * SECOND;
    assert!(record.is_clean(now));
    assert!(!record.incident_at(now, "z"));
}

#[test]
fn bytes_are_known_again_in_their_namespace_and_forgotten_when_they_are_clean() {
    let ledger = Ledger::new(QuarantineRules { after: 1, ..rules() });
    assert!(ledger.record("a", b"bad").incident("x"));
    assert!(ledger.record("a", b"bad").quarantine().is_some());
    assert!(ledger.record("a", b"bad").is_on_trial());
    for (namespace, artifact) in [("a", "better"), ("b", "bad"), ("ab", "ad")] {
        let record = ledger.record(namespace, artifact.as_bytes());
        assert!(record.quarantine().is_none() && !record.is_on_trial());
    }
    let kept = ledger.record("a", b"deployed");
    for i in 0..1_000 {
        ledger.record("a", format!("{i}").as_bytes());
    }
    assert!(ledger.records.lock().by_artifact.len() <= PRUNE_FIRST);
    assert!(Arc::ptr_eq(&kept, &ledger.record("a", b"deployed")));
    assert!(ledger.record("a", b"bad").quarantine().is_some());
}
