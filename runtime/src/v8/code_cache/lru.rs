//! A map from sources that knows its size in bytes and which entry was not used for longest.

use std::collections::{BTreeMap, HashMap};

use super::SourceHash;

/// About what an entry costs beside its bytes: its places in both maps, and the blocks of the allocator.
pub(super) const ENTRY_OVERHEAD_BYTES: usize = 256;

pub(super) struct Lru<T> {
    slots: HashMap<SourceHash, Slot<T>>,
    /// By when they were used, which grows with each use.
    order: BTreeMap<u64, SourceHash>,
    clock: u64,
    bytes: usize,
}

struct Slot<T> {
    value: T,
    bytes: usize,
    used: u64,
}

impl<T> Default for Lru<T> {
    fn default() -> Self {
        Self {
            slots: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            bytes: 0,
        }
    }
}

impl<T> Lru<T> {
    /// Looks without use.
    pub(super) fn peek(&self, key: &SourceHash) -> Option<&T> {
        self.slots.get(key).map(|slot| &slot.value)
    }

    pub(super) fn get(&mut self, key: &SourceHash) -> Option<&T> {
        let slot = self.slots.get_mut(key)?;
        self.order.remove(&slot.used);
        self.clock += 1;
        slot.used = self.clock;
        self.order.insert(slot.used, *key);
        Some(&slot.value)
    }

    /// Puts a value of that many bytes in, in place of one that is there.
    pub(super) fn insert(&mut self, key: SourceHash, value: T, bytes: usize) {
        self.remove(&key);
        self.clock += 1;
        let used = self.clock;
        self.order.insert(used, key);
        self.slots.insert(key, Slot { value, bytes, used });
        self.bytes += bytes;
    }

    pub(super) fn remove(&mut self, key: &SourceHash) {
        if let Some(slot) = self.slots.remove(key) {
            self.order.remove(&slot.used);
            self.bytes -= slot.bytes;
        }
    }

    /// Drops what was not used for longest until no more than that many bytes are left.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        while self.bytes > bytes
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some(slot) = self.slots.remove(&oldest) {
                self.bytes -= slot.bytes;
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
