//! The awake instances of an engine: how many there are, and which has been idle for the longest, should one have to make
//! room.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::instance::Instance;

/// All awake instances.
#[derive(Default)]
pub(super) struct Residents {
    instances: Mutex<Vec<Weak<Instance>>>,
    /// How many there are, with those on their way.
    places: Arc<AtomicUsize>,
}

/// Room for an instance, from before it is started; it is free again when this is dropped.
pub(super) struct Place(Arc<AtomicUsize>);

/// An instance among the residents, until this is dropped.
pub(super) struct Resident<'a> {
    residents: &'a Residents,
    instance: Weak<Instance>,
}

impl Residents {
    pub(super) fn enter(&self, instance: &Arc<Instance>) -> Resident<'_> {
        let instance = Arc::downgrade(instance);
        self.instances.lock().push(Weak::clone(&instance));
        Resident {
            residents: self,
            instance,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.instances.lock().len()
    }

    /// Room for one more instance. Where there are `max`, an idle one is asked to hibernate, and counts on until it has;
    /// `None` when none is idle.
    pub(super) fn take_place(&self, max: usize) -> Option<Place> {
        let place = Place(Arc::clone(&self.places));
        let before = self.places.fetch_add(1, Ordering::AcqRel);
        (before < max || self.evict(1) > 0).then_some(place)
    }

    /// Asks the idle instances that were used the longest ago, so many at most, to hibernate. Returns how many it asked.
    pub(super) fn evict(&self, count: usize) -> usize {
        let mut idle: Vec<(u64, Arc<Instance>)> = self
            .instances
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|instance| instance.last_used() != u64::MAX && !instance.is_evicted())
            .map(|instance| (instance.last_used(), instance))
            .collect();
        idle.sort_unstable_by_key(|(last_used, _)| *last_used);
        idle.truncate(count);
        for (_, instance) in &idle {
            instance.evict();
        }
        idle.len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Resident<'_> {
    fn drop(&mut self) {
        self.residents
            .instances
            .lock()
            .retain(|instance| !Weak::ptr_eq(instance, &self.instance));
    }
}
