//! The workloads of a node, and the limits that all of them together must keep. A deploy takes a slot first, so that
//! limits hold while several deploys are under way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use nex_runtime::engine::{Function, Limits};
use parking_lot::Mutex;

use crate::claims::Claims;
use crate::config::NodeLimits;
use crate::control::messages::{MachineSummary, WorkloadSummary};
use crate::limits::LimitSet;
use crate::outbound::Outbound;
use crate::report::Reporter;
use crate::text;
use crate::triggers::Triggers;

/// A running workload.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) id: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) workload_type: String,
    pub(super) description: String,
    /// SHA-256 of the artefact in hexadecimal.
    pub(super) hash: String,
    /// The limits in force.
    pub(super) limits: Limits,
    /// What it was started with.
    pub(super) claims: Claims,
    pub(super) started: Instant,
    pub(super) reporter: Arc<Reporter>,
    pub(super) triggers: Triggers,
    /// Carries its replies.
    pub(super) outbound: Outbound,
    /// Keeps the function loaded for as long as the workload is known.
    pub(super) _function: Arc<dyn Function>,
}

impl Workload {
    pub(super) fn summary(&self) -> MachineSummary {
        let uptime = text::uptime(self.started.elapsed());
        MachineSummary {
            id: self.id.clone(),
            healthy: true,
            uptime: uptime.clone(),
            namespace: self.namespace.clone(),
            workload: WorkloadSummary {
                id: self.id.clone(),
                name: self.name.clone(),
                description: self.description.clone(),
                essential: false,
                hash: self.hash.clone(),
                limits: LimitSet::complete(&self.limits).values(),
                runtime: text::runtime(self.reporter.runtime()),
                uptime,
                workload_type: self.workload_type.clone(),
            },
        }
    }
}

/// Why a workload cannot be taken, in the words of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LimitError {
    #[error("Node is at maximum workload limit. Deploy request denied")]
    Count,
    #[error("Workload file size would exceed node total limitations")]
    TotalBytes,
    #[error(
        "Failed to deploy workload: attempted to deploy duplicate workload to node configured to reject duplicates"
    )]
    Duplicate,
    #[error("Node is shutting down. Deploy request denied")]
    Closed,
}

#[derive(Debug)]
pub(super) struct Registry {
    limits: NodeLimits,
    allow_duplicates: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    closed: bool,
    next_slot: u64,
    /// Workloads that run or are on the way there, by slot.
    slots: BTreeMap<u64, Occupant>,
}

#[derive(Debug, Default)]
struct Occupant {
    bytes: u64,
    namespace: String,
    hash: String,
    workload: Option<Arc<Workload>>,
}

impl Registry {
    pub(super) fn new(limits: NodeLimits, allow_duplicates: bool) -> Self {
        Self {
            limits,
            allow_duplicates,
            inner: Mutex::default(),
        }
    }

    /// Running workloads.
    pub(super) fn len(&self) -> usize {
        self.inner.lock().running().count()
    }

    /// Running workloads, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Workload>> {
        self.inner.lock().running().cloned().collect()
    }

    /// A running workload of a namespace.
    pub(super) fn find(&self, namespace: &str, id: &str) -> Option<Arc<Workload>> {
        self.inner
            .lock()
            .running()
            .find(|w| w.id == id && w.namespace == namespace)
            .cloned()
    }

    /// Takes a workload out; of several that try, one gets it.
    pub(super) fn remove(&self, id: &str) -> Option<Arc<Workload>> {
        let mut inner = self.inner.lock();
        let slot = *inner
            .slots
            .iter()
            .find(|(_, o)| o.workload.as_ref().is_some_and(|w| w.id == id))?
            .0;
        inner.slots.remove(&slot)?.workload
    }

    /// Takes all workloads out; from now on nothing comes in.
    pub(super) fn close(&self) -> Vec<Arc<Workload>> {
        let mut inner = self.inner.lock();
        inner.closed = true;
        std::mem::take(&mut inner.slots)
            .into_values()
            .filter_map(|occupant| occupant.workload)
            .collect()
    }

    /// Room for one workload. Dropping the slot gives it up, unless a workload has moved in.
    pub(super) fn slot(&self) -> Result<Slot<'_>, LimitError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(LimitError::Closed);
        }
        if self.limits.max_workloads > 0 && inner.slots.len() >= self.limits.max_workloads {
            return Err(LimitError::Count);
        }
        let id = inner.next_slot;
        inner.next_slot += 1;
        inner.slots.insert(id, Occupant::default());
        Ok(Slot {
            registry: self,
            id,
            occupied: false,
        })
    }
}

impl Inner {
    fn running(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.slots.values().filter_map(|occupant| occupant.workload.as_ref())
    }
}

/// Room for a workload that is being deployed.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    registry: &'a Registry,
    id: u64,
    occupied: bool,
}

impl Slot<'_> {
    /// Books what is going to run.
    pub(super) fn book(&self, namespace: &str, hash: &str, bytes: u64) -> Result<(), LimitError> {
        let mut inner = self.registry.inner.lock();
        let limit = self.registry.limits.max_total_bytes;
        let total = inner
            .slots
            .values()
            .fold(bytes, |total, occupant| total.saturating_add(occupant.bytes));
        if limit > 0 && total > limit {
            return Err(LimitError::TotalBytes);
        }
        let twice = inner
            .slots
            .values()
            .any(|other| other.namespace == namespace && other.hash == hash);
        if twice && !self.registry.allow_duplicates {
            return Err(LimitError::Duplicate);
        }
        let occupant = inner.slots.get_mut(&self.id).ok_or(LimitError::Closed)?;
        *occupant = Occupant {
            bytes,
            namespace: namespace.to_owned(),
            hash: hash.to_owned(),
            workload: None,
        };
        Ok(())
    }

    /// The workload runs.
    pub(super) fn move_in(mut self, workload: Arc<Workload>) -> Result<(), LimitError> {
        let mut inner = self.registry.inner.lock();
        let occupant = inner.slots.get_mut(&self.id).ok_or(LimitError::Closed)?;
        occupant.workload = Some(workload);
        drop(inner);
        self.occupied = true;
        Ok(())
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.occupied {
            self.registry.inner.lock().slots.remove(&self.id);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_while_deploys_are_under_way() {
        let limits = NodeLimits {
            max_workloads: 2,
            max_total_bytes: 100,
            ..NodeLimits::default()
        };
        let registry = Registry::new(limits, false);
        let first = registry.slot().unwrap();
        let second = registry.slot().unwrap();
        assert_eq!(registry.slot().unwrap_err(), LimitError::Count);
        first.book("ns", "h1", 60).unwrap();
        assert_eq!(second.book("ns", "h2", 41), Err(LimitError::TotalBytes));
        assert_eq!(second.book("ns", "h1", 40), Err(LimitError::Duplicate));
        second.book("other", "h1", 40).unwrap();
        drop(first);
        let third = registry.slot().unwrap();
        third.book("ns", "h1", 60).unwrap();
        assert_eq!(registry.len(), 0);
        assert!(registry.close().is_empty());
        assert_eq!(registry.slot().unwrap_err(), LimitError::Closed);
        assert_eq!(third.book("ns", "h1", 1), Err(LimitError::Closed));
    }
}
