//! Gives back the memory of caches that nothing is in while an isolate is idle.
//!
//! Two of V8's caches are blocks of the C heap that are written full of zeros when an isolate is made, or when they are
//! emptied, and that few isolates ever put anything into: 112 KiB for where compiled code comes from, which is asked when a
//! stack is walked. Where a block is nothing but zeros, the kernel is asked for zeros that take no memory.
//!
//! V8 tells nobody where they are, so they are looked for: pointers in the isolate to blocks of their sizes, by what the GNU
//! C library notes in front of a block. With another library nothing is found and nothing is done.

use std::sync::OnceLock;

use super::{discard, peek};

const WORD: usize = size_of::<usize>();

/// Bytes of `InnerPointerToCodeCache`, which begins with the address of its isolate, and of `WasmCodeLookupCache`.
const CACHES: [usize; 2] = [WORD + 1024 * 64, 1024 * 48];

/// Words of an isolate that are searched, at most: it has some 9,000.
const SEARCHED: usize = 32 << 10;

/// Gives back what can be of the caches of this thread's isolate.
pub(super) fn give_back(isolate: usize) {
    /// Where an isolate has the pointers, in words.
    static POSITIONS: OnceLock<[Option<usize>; CACHES.len()]> = OnceLock::new();
    let positions = POSITIONS.get_or_init(|| {
        let positions = find(isolate);
        tracing::debug!(?positions, "looked for the lookup caches of isolates");
        positions
    });
    for (position, bytes) in positions.iter().zip(CACHES) {
        let cache = position.and_then(|position| peek::word(isolate + position * WORD));
        if let Some(cache) = cache.filter(|&cache| is_block(cache, bytes)) {
            give_back_zeros(cache, bytes);
        }
    }
}

fn find(isolate: usize) -> [Option<usize>; CACHES.len()] {
    let mut words = vec![0; SEARCHED];
    let words = peek::words(isolate, &mut words);
    CACHES.map(|bytes| words.iter().position(|&word| is_block(word, bytes)))
}

/// Whether there is a block of the C heap that was asked for with so many bytes.
fn is_block(address: usize, bytes: usize) -> bool {
    /// Bits that are not of the size.
    const FLAGS: usize = 7;
    let size = (bytes + WORD).next_multiple_of(2 * WORD);
    address.is_multiple_of(2 * WORD)
        && address > WORD
        && peek::word(address - WORD).is_some_and(|noted| noted & !FLAGS == size)
}

#[allow(unsafe_code, reason = "reads and replaces memory of a C++ object")]
fn give_back_zeros(cache: usize, bytes: usize) {
    let pointer: *const usize = std::ptr::with_exposed_provenance(cache);
    // SAFETY: a block of so many bytes, which V8 has written to. It belongs to the isolate of this thread, and V8 puts
    // things into it on this thread only.
    let words = unsafe { std::slice::from_raw_parts(pointer, bytes / WORD) };
    // The first may be the address of the isolate, and is not on a page of zeros then.
    let zeros = words.iter().skip(1).all(|&word| word == 0);
    if zeros {
        // SAFETY: pages of zeros become pages of zeros.
        unsafe { discard::pages(cache + WORD..cache + bytes) };
    }
}
