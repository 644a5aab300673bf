//! An isolate's thread as the kernel knows it: how much processor time it has used, and how important it is.

use std::ffi::CString;
use std::time::Duration;

/// Names the calling thread after a workload, with the first 15 bytes of its ID: `top -H` shows whose it is, and a
/// process that crashes on it can tell.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
pub(super) fn name_current_thread(workload_id: &str) {
    let Ok(name) = CString::new(workload_id) else {
        return;
    };
    // SAFETY: the pointer is to a string with a zero at its end; the kernel copies what it keeps.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// A thread of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThreadId {
    kernel: libc::pid_t,
    /// The clock of its processor time; `None` where the system has none.
    clock: Option<libc::clockid_t>,
}

impl ThreadId {
    /// The calling thread.
    #[allow(unsafe_code, reason = "system calls without a safe wrapper")]
    pub(super) fn current() -> Self {
        let mut clock = 0;
        // SAFETY: the calling thread is alive, and the pointer is to a live `clockid_t`.
        let result = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        Self {
            // SAFETY: gettid has no preconditions.
            kernel: unsafe { libc::gettid() },
            clock: (result == 0).then_some(clock),
        }
    }

    /// Processor time it has used, in user and kernel mode; `None` once it has ended.
    #[allow(unsafe_code, reason = "a system call without a safe wrapper")]
    pub(super) fn processor_time(self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a live `timespec`; the clock of a thread that has ended gives an error.
        let result = unsafe { libc::clock_gettime(self.clock?, &raw mut time) };
        let seconds = u64::try_from(time.tv_sec).ok()?;
        let nanoseconds = u32::try_from(time.tv_nsec).ok()?;
        (result == 0).then(|| Duration::new(seconds, nanoseconds))
    }

    /// Lets the thread run only when no other wants the processor. Needs no privilege; where the system refuses, the
    /// thread competes as before until its process is replaced.
    #[allow(unsafe_code, reason = "a system call without a safe wrapper")]
    pub(super) fn set_idle_priority(self) {
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: the pointer is to a live `sched_param`; a thread that has ended gives an error, nothing worse.
        let result = unsafe { libc::sched_setscheduler(self.kernel, libc::SCHED_IDLE, &raw const parameters) };
        if result != 0 {
            tracing::warn!(error = %std::io::Error::last_os_error(), "cannot set idle priority");
        }
    }
}
