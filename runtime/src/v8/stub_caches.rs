//! Gives back the memory of V8's stub caches while an isolate is idle.
//!
//! An isolate has three of them, of 120 KiB each: what code has found out about properties of objects where it sees objects
//! of many shapes. They make up a fifth of what an idle function takes, although each full garbage collection empties them,
//! by writing to every entry that it is vacant. The kernel is asked for pages of zeros in their place, which take no memory
//! until they are written to. To V8, zeros are a vacant entry, too: it finds one by key and shape, which are objects and so
//! never zero, and overwrites one if its shape is a small integer, which zero is (`StubCache::Set` and `TryProbeStubCache`).
//!
//! V8 tells nobody where they are, so they are looked for in the isolate: three pointers in a row to what ends with a
//! pointer back. What is found is checked at each isolate, and nothing is done unless all its entries are vacant.

use std::sync::OnceLock;

use super::{discard, peek};

/// Words of an entry: key, value, shape.
const ENTRY: usize = 3;
/// Entries of a cache: both of its tables.
const ENTRIES: usize = 4096 + 1024;
/// Its bytes up to the pointer to the isolate.
const BYTES: usize = ENTRIES * ENTRY * size_of::<usize>();
/// Caches of an isolate.
const CACHES: usize = 3;
/// Words of an isolate that are searched, at most: it has some 9,000.
const SEARCHED: usize = 32 << 10;

/// Gives back what can be of the caches of this thread's isolate. After a full garbage collection, which makes them vacant.
pub(super) fn give_back(isolate: usize) {
    /// Where an isolate has the pointers, in words.
    static POSITION: OnceLock<Option<usize>> = OnceLock::new();
    let position = *POSITION.get_or_init(|| {
        let position = find(isolate);
        tracing::debug!(?position, "looked for the stub caches of isolates");
        position
    });
    let Some(position) = position else { return };
    let mut caches = [0; CACHES];
    if peek::words(isolate + position * size_of::<usize>(), &mut caches).len() == CACHES {
        for cache in caches.into_iter().filter(|&cache| belongs_to(cache, isolate)) {
            empty(cache);
        }
    }
}

fn find(isolate: usize) -> Option<usize> {
    let mut words = vec![0; SEARCHED];
    let words = peek::words(isolate, &mut words);
    words
        .windows(CACHES)
        .position(|pointers| pointers.iter().all(|&pointer| belongs_to(pointer, isolate)))
}

/// Whether there is a cache of this isolate.
fn belongs_to(cache: usize, isolate: usize) -> bool {
    // What the C heap gives out, and not a small integer or a flag.
    cache.is_multiple_of(16) && cache > BYTES && peek::word(cache.saturating_add(BYTES)) == Some(isolate)
}

/// Puts zeros in place of a cache, if it is vacant.
#[allow(unsafe_code, reason = "reads and replaces memory of a C++ object")]
fn empty(cache: usize) {
    let pointer: *const usize = std::ptr::with_exposed_provenance(cache);
    // SAFETY: `belongs_to` has found a cache of this isolate there, so much memory that V8 initialised. V8 uses it on the
    // thread of the isolate only, which is this one.
    let entries = unsafe { std::slice::from_raw_parts(pointer, ENTRIES * ENTRY) };
    let (first, _) = entries.split_at(ENTRY);
    let vacant = first.last() == Some(&0) && entries.chunks_exact(ENTRY).all(|entry| entry == first);
    if vacant {
        // SAFETY: whole pages within the entries, whose values nobody needs: see above.
        unsafe { discard::pages(cache..cache + BYTES) };
    }
}
