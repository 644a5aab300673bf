//! Gives back pages of memory that stays in use but whose contents nobody needs.

use std::ops::Range;

/// Has the kernel take back whole pages within the addresses. They read as zeros from now on, and take no memory until they
/// are written to.
///
/// # Safety
/// The addresses must be of private anonymous memory, and nobody must need what is in it or use it meanwhile.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
pub(super) unsafe fn pages(addresses: Range<usize>) {
    // SAFETY: sysconf has no preconditions.
    let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else {
        return;
    };
    let start = addresses.start.next_multiple_of(page);
    let end = addresses.end / page * page;
    if start < end {
        let start = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the caller's promise. Where the kernel refuses, all is as before.
        unsafe { libc::madvise(start, end - start.addr(), libc::MADV_DONTNEED) };
    }
}
