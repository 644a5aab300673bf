//! Which functions have cost too much to be run for now. Code that cannot be stopped, or that ends its process, costs an
//! agent each time it is called; a function that does so again and again is quarantined: its calls are answered at once,
//! and no agent is spent on it. When the time is over it gets one more chance, and if it uses that badly, the next
//! quarantine is twice as long.
//!
//! What is remembered is the artefact of a namespace, not the workload: the same bytes deployed again are the same code.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::config::QuarantineConfig;
use crate::text;

/// When a function is quarantined, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct QuarantineRules {
    /// Incidents within the window before it is. Default 3.
    pub after: u32,
    /// Time without an incident after which all is forgiven. Default 10 min.
    pub window: Duration,
    /// How long the first one lasts; each further one is twice as long. Default 1 min.
    pub duration: Duration,
    /// How long the longest one lasts. Default 1 h.
    pub max_duration: Duration,
}

impl Default for QuarantineRules {
    fn default() -> Self {
        (&QuarantineConfig::default()).into()
    }
}

impl From<&QuarantineConfig> for QuarantineRules {
    fn from(config: &QuarantineConfig) -> Self {
        let millis = |millis: std::num::NonZeroU32| Duration::from_millis(millis.get().into());
        Self {
            after: config.after.get(),
            window: millis(config.window_ms),
            duration: millis(config.duration_ms),
            max_duration: millis(config.max_duration_ms),
        }
    }
}

/// One quarantine. `Display` is what callers are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quarantine {
    pub(crate) since: SystemTime,
    pub(crate) until: SystemTime,
    /// The same as `until`, on the clock that nobody sets.
    pub(crate) ends: Instant,
    /// What it did last.
    pub(crate) reason: String,
}

impl std::fmt::Display for Quarantine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the function is quarantined since {} until {}: {}",
            text::instant(self.since),
            text::instant(self.until),
            self.reason
        )
    }
}

/// The records of all artefacts that are deployed, and of those that are not clean.
#[derive(Debug)]
pub(crate) struct Ledger {
    rules: QuarantineRules,
    records: Mutex<Records>,
}

#[derive(Debug)]
struct Records {
    by_artifact: HashMap<[u8; 32], Arc<Record>>,
    /// How many there may be before those that nobody needs are looked for.
    prune_at: usize,
}

/// Records kept before the first search for those that nobody needs.
const PRUNE_FIRST: usize = 64;

impl Ledger {
    pub(crate) fn new(rules: QuarantineRules) -> Self {
        Self {
            rules,
            records: Mutex::new(Records {
                by_artifact: HashMap::new(),
                prune_at: PRUNE_FIRST,
            }),
        }
    }

    /// The record of an artefact in a namespace.
    pub(crate) fn record(&self, namespace: &str, artifact: &[u8]) -> Arc<Record> {
        let key = Sha256::new()
            .chain_update((namespace.len() as u64).to_le_bytes())
            .chain_update(namespace)
            .chain_update(artifact)
            .finalize()
            .into();
        let mut records = self.records.lock();
        if records.by_artifact.len() >= records.prune_at {
            let now = Instant::now();
            records
                .by_artifact
                .retain(|_, record| Arc::strong_count(record) > 1 || !record.is_clean(now));
            records.prune_at = (2 * records.by_artifact.len()).max(PRUNE_FIRST);
        }
        let new = || Arc::new(Record::new(self.rules));
        records.by_artifact.entry(key).or_insert_with(new).clone()
    }
}

/// What an artefact has done lately.
#[derive(Debug)]
pub(crate) struct Record {
    rules: QuarantineRules,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Incidents since the last quarantine, within the window.
    incidents: VecDeque<Instant>,
    /// Quarantines that are not forgiven.
    quarantines: u32,
    /// The last of them.
    last: Option<Quarantine>,
}

impl Record {
    fn new(rules: QuarantineRules) -> Self {
        Self {
            rules,
            state: Mutex::default(),
        }
    }

    /// It has cost an agent. Returns whether that was once too often: it is quarantined now.
    pub(crate) fn incident(&self, what: &str) -> bool {
        self.incident_at(Instant::now(), what)
    }

    fn incident_at(&self, now: Instant, what: &str) -> bool {
        let mut state = self.state.lock();
        state.forgive(now, self.rules.window);
        if state.active(now).is_some() {
            // The last of what led to it.
            return true;
        }
        state.incidents.push_back(now);
        let count = state.incidents.len();
        let reason = match state.quarantines {
            0 if count < self.rules.after as usize => return false,
            0 => format!("{count} times it has cost its agent; the last time, {what}"),
            before => format!("after {before} quarantines it has cost its agent again: {what}"),
        };
        let doubled = 2_u32.saturating_pow(state.quarantines.min(31));
        let duration = self.rules.duration.saturating_mul(doubled).min(self.rules.max_duration);
        let since = SystemTime::now();
        state.last = Some(Quarantine {
            since,
            until: since + duration,
            ends: now + duration,
            reason,
        });
        state.quarantines += 1;
        state.incidents.clear();
        true
    }

    /// The quarantine it is in.
    pub(crate) fn quarantine(&self) -> Option<Quarantine> {
        self.state.lock().active(Instant::now()).cloned()
    }

    /// Whether it has been quarantined lately and has yet to show that it can do better.
    pub(crate) fn is_on_trial(&self) -> bool {
        let mut state = self.state.lock();
        state.forgive(Instant::now(), self.rules.window);
        state.quarantines > 0
    }

    fn is_clean(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        state.forgive(now, self.rules.window);
        state.incidents.is_empty() && state.quarantines == 0
    }
}

impl State {
    fn active(&self, now: Instant) -> Option<&Quarantine> {
        self.last.as_ref().filter(|quarantine| quarantine.ends > now)
    }

    fn forgive(&mut self, now: Instant, window: Duration) {
        let is_old = |at: Instant| now.saturating_duration_since(at) > window;
        while self.incidents.pop_front_if(|at| is_old(*at)).is_some() {}
        if self.incidents.is_empty() && self.last.as_ref().is_some_and(|last| is_old(last.ends)) {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests;
