//! Looks at memory of this process that may not be there, for what is only presumed of V8's objects: the kernel copies
//! what it can, and nobody crashes.

/// Copies words from an address on. Returns those that could be read.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
pub(super) fn words(address: usize, buffer: &mut [usize]) -> &[usize] {
    let bytes = size_of_val(buffer);
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: bytes,
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address),
        iov_len: bytes,
    };
    // SAFETY: the kernel writes to the buffer only, which is as long as it says, and any bytes are valid words. The other
    // address is not used as a pointer here: what cannot be read there is an error.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    let read = usize::try_from(read).unwrap_or(0) / size_of::<usize>();
    buffer.get(..read).unwrap_or_default()
}

/// The word at an address, if one can be read there.
pub(super) fn word(address: usize) -> Option<usize> {
    words(address, &mut [0]).first().copied()
}
