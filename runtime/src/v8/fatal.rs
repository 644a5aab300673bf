//! What happens when V8 gives up: it aborts the process, because it has no way back to JavaScript. That would take the
//! neighbours of the function with it, so where V8 gives up for want of memory or because a value is too large for it, we
//! do not let it get as far: its callers are answered, the thread is parked for ever where it stands, and the process is
//! condemned. Its neighbours run on until they are moved.
//!
//! V8 gives up in two ways. Some places call the isolate's out-of-memory handler, which we do not leave. Others print a
//! message and execute a breakpoint instruction; its signal is delivered to this very thread at this very place, so that
//! its handler may do what any code may, and it is not left either. A failed `CHECK`, which goes the same way, means that
//! V8's state is not what it should be, perhaps because of an attack: that still ends the process.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::sync::{Once, OnceLock};
use std::thread;

use deno_core::v8;

use super::buffers;

thread_local! {
    /// A `CHECK` of V8 has failed on this thread.
    static CHECK_FAILED: Cell<bool> = const { Cell::new(false) };
}

/// What was done about breakpoints before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

#[allow(unsafe_code, reason = "a function of V8 that its Rust bindings do not carry")]
unsafe extern "C" {
    /// `v8::base::SetFatalFunction`: sets what a failed `CHECK` calls first.
    #[link_name = "_ZN2v84base16SetFatalFunctionEPFvPKciS2_E"]
    fn set_fatal_function(function: extern "C" fn(*const c_char, c_int, *const c_char));
}

/// Prepares the process. Once, before the first isolate.
#[allow(unsafe_code, reason = "a signal handler, and a function of V8")]
pub(super) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void) = breakpoint;
        // SAFETY: both structures are plain data, valid when zeroed; the handler has the signature that SA_SIGINFO asks
        // for. The function is called with what the header of V8 declares.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO;
            let mut previous: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGTRAP, &raw const action, &raw mut previous) == 0 {
                _ = PREVIOUS.set(previous);
            }
            set_fatal_function(check_failed);
        }
    });
}

/// Takes care of an isolate that belongs to a function from now on.
pub(super) fn watch(isolate: &mut v8::Isolate) {
    isolate.set_oom_error_handler(out_of_memory);
}

/// Stops the thread for ever.
pub(super) fn park() -> ! {
    loop {
        thread::park();
    }
}

/// Gives up the instance of this thread. Returns when it has none.
fn give_up(reason: &str) {
    if let Some(owner) = buffers::current().as_deref().and_then(buffers::Account::owner) {
        owner.beyond_rescue(reason);
        park()
    }
}

extern "C" fn check_failed(_file: *const c_char, _line: c_int, _message: *const c_char) {
    CHECK_FAILED.set(true);
}

/// V8 cannot have memory that it cannot do without, and aborts the process when this returns.
#[allow(unsafe_code, reason = "a callback with C strings")]
unsafe extern "C" fn out_of_memory(location: *const c_char, _details: &v8::OomDetails) {
    let location = if location.is_null() {
        "unknown".into()
    } else {
        // SAFETY: V8 passes a literal.
        unsafe { CStr::from_ptr(location) }.to_string_lossy()
    };
    give_up(&format!("V8 cannot go on without more memory ({location})"));
}

/// A breakpoint instruction: V8 has given up.
extern "C" fn breakpoint(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    if !CHECK_FAILED.get() {
        give_up("V8 cannot go on, because a value is too large for it");
    }
    // Not ours. The instruction is not executed again, so that the signal must be.
    #[allow(unsafe_code, reason = "restores a signal's action and raises it")]
    // SAFETY: both calls are safe in signal handlers, and `previous` is what the system gave us.
    unsafe {
        if let Some(previous) = PREVIOUS.get() {
            libc::sigaction(libc::SIGTRAP, previous, std::ptr::null_mut());
        }
        libc::raise(libc::SIGTRAP);
    }
}
