//! What a dying agent says last: whose code it ran. V8 ends a process it has lost control of by a fatal signal, Rust by a
//! panic; either way the thread it happens on writes its name to standard error before the process is gone. Isolate
//! threads bear the first bytes of their workload's ID, so the node can tell the function to blame from its neighbours.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;

/// What the line begins with, and what the thread's name stands behind.
const CRASHED: &str = "nex-agent crashed";
const IN_THREAD: &str = " in thread ";

/// Bytes that Linux keeps of a thread's name.
pub const MAX_THREAD_NAME: usize = 15;

/// Signals by which code ends its own process; by the last one the filter on system calls does, see `confine`.
const FATAL: [libc::c_int; 7] = [
    libc::SIGABRT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
];

/// The name of the thread that an agent died of, if this is the line in which it says so.
#[must_use]
pub fn thread_in(line: &str) -> Option<&str> {
    let (_, thread) = line.strip_prefix(CRASHED)?.split_once(IN_THREAD)?;
    Some(thread)
}

/// Whether a process that was ended by this signal ended itself. Others come from outside.
#[must_use]
pub fn is_crash(signal: i32) -> bool {
    FATAL.contains(&signal)
}

/// Has fatal signals reported from now on. The process still ends by them.
///
/// # Errors
/// When the system refuses.
#[allow(unsafe_code, reason = "std has no signal handlers")]
pub(crate) fn report_signals() -> io::Result<()> {
    for signal in FATAL {
        // SAFETY: all-zero bytes are a valid `sigaction`: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_signal as *const () as usize;
        // Once is enough: the next one has the default action, which ends the process.
        action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
        // SAFETY: the structure is alive, and the handler does nothing that is forbidden in one.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes system calls only: it may interrupt anything, the memory allocator included.
#[allow(unsafe_code, reason = "raise has no safe wrapper")]
extern "C" fn on_signal(signal: libc::c_int) {
    report(match signal {
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGTRAP => " (SIGTRAP)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGSYS => " (SIGSYS)",
        _ => " (SIGSEGV)",
    });
    // SAFETY: raise has no preconditions. It takes effect when this handler returns.
    unsafe { libc::raise(signal) };
}

/// Says that the process ends because of the calling thread. Allocates nothing.
#[allow(
    unsafe_code,
    reason = "system calls without a safe wrapper that are allowed in a signal handler"
)]
pub(crate) fn report(cause: &str) {
    let mut name = [0_u8; MAX_THREAD_NAME + 1];
    // SAFETY: the kernel writes at most 16 bytes, with a zero at the end.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name = CStr::from_bytes_until_nul(&name).map_or(&[][..], CStr::to_bytes);

    let mut line = [0_u8; 128];
    let mut length = 0;
    for part in [CRASHED.as_bytes(), cause.as_bytes(), IN_THREAD.as_bytes(), name, b"\n"] {
        let Some(room) = line.get_mut(length..length + part.len()) else {
            break;
        };
        room.copy_from_slice(part);
        length += part.len();
    }
    // SAFETY: the bytes are alive. One write of so few is not mixed with others on a pipe.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_is_read_from_the_line_and_from_no_other() {
        assert_eq!(
            thread_in("nex-agent crashed (SIGSEGV) in thread 1f2e3d4c-5b6a-4"),
            Some("1f2e3d4c-5b6a-4")
        );
        assert_eq!(
            thread_in("nex-agent crashed (panic) in thread a in thread b"),
            Some("a in thread b")
        );
        assert_eq!(thread_in("ERROR nex-agent crashed (SIGSEGV) in thread x"), None);
        assert_eq!(thread_in("# Fatal error in , line 0"), None);
    }
}
