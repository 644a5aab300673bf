//! Gives back the stack that an isolate's thread no longer uses while it is idle: making an isolate and compiling take far
//! more than waiting for a call.

use super::discard;

/// Left alone below the place where the stack is used at the moment: what is called from there needs some.
const MARGIN: usize = 4 << 10;

/// Gives back the calling thread's stack from its end up to what is in use.
#[allow(unsafe_code, reason = "functions of the C library without a safe wrapper")]
pub(super) fn give_back() {
    let here = 0_u8;
    let in_use = std::ptr::from_ref(&here).addr();
    if let Some(end) = end() {
        // SAFETY: between the end of the stack, which grows down, and what is in use of it there is nothing that anybody
        // needs; only this thread uses it.
        unsafe { discard::pages(end..in_use.saturating_sub(MARGIN).max(end)) };
    }
}

/// The lowest address of the calling thread's stack.
#[allow(unsafe_code, reason = "functions of the C library without a safe wrapper")]
fn end() -> Option<usize> {
    let mut attributes = std::mem::MaybeUninit::uninit();
    let mut lowest = std::ptr::null_mut();
    let mut bytes = 0;
    // SAFETY: the first call fills in the attributes of a live thread, which the others then read and destroy.
    let found = unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let found = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut lowest, &raw mut bytes);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        found
    };
    (found == 0).then(|| lowest.addr())
}
