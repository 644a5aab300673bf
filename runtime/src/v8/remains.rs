//! Frees what V8's Rust bindings leave of an isolate that has ended.
//!
//! It is a cell of 8 bytes, by which a handle (`v8::Global`) that is dropped late knows that its isolate is gone. The
//! bindings leave it for ever. It lies amid what else the isolate had of the C heap and so keeps the page around it from
//! being given back: 4 KiB for each isolate that ever was.

use deno_core::v8;

use super::peek;

/// The cell of an isolate.
pub(super) struct Remains(usize);

impl Remains {
    /// Finds the cell by way of a handle, which has its address and that of what it is a handle of. An isolate's cell has
    /// the address of the isolate.
    #[allow(unsafe_code, reason = "looks into a handle")]
    pub(super) fn find(isolate: usize, handle: &v8::Global<v8::Context>) -> Option<Self> {
        const { assert!(size_of::<v8::Global<v8::Context>>() == size_of::<[usize; 2]>()) };
        // SAFETY: of equal size, and made of pointers, of which only the addresses are used.
        let words: [usize; 2] = unsafe { std::mem::transmute_copy(handle) };
        let cell = words.into_iter().find(|&word| peek::word(word) == Some(isolate));
        cell.map(Self)
    }

    /// Frees the cell, if the isolate has ended.
    ///
    /// # Safety
    /// There must be no handle of the isolate any more. They cannot leave its thread, so this holds when nothing of what
    /// ran there is left.
    #[allow(unsafe_code, reason = "frees what the bindings have leaked")]
    pub(super) unsafe fn free(self) {
        if peek::word(self.0) == Some(0) {
            // SAFETY: the bindings have leaked a `Box` of an atomic pointer here, which is to the allocator what a word is,
            // and nobody else knows of it any more.
            drop(unsafe { Box::from_raw(std::ptr::with_exposed_provenance_mut::<usize>(self.0)) });
        }
    }
}
