//! The scheduling class of a thread.

/// A thread of this process, by the kernel's number.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThreadId(libc::pid_t);

impl ThreadId {
    /// The calling thread.
    #[allow(unsafe_code, reason = "a system call without a safe wrapper")]
    pub(super) fn current() -> Self {
        // SAFETY: gettid has no preconditions.
        Self(unsafe { libc::gettid() })
    }

    /// Lets the thread run only when no other wants the processor. Needs no privilege; where the system refuses, the
    /// thread competes as before until its process is replaced.
    #[allow(unsafe_code, reason = "a system call without a safe wrapper")]
    pub(super) fn set_idle_priority(self) {
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: the pointer is to a live `sched_param`; a thread that has ended gives an error, nothing worse.
        let result = unsafe { libc::sched_setscheduler(self.0, libc::SCHED_IDLE, &raw const parameters) };
        if result != 0 {
            tracing::warn!(error = %std::io::Error::last_os_error(), "cannot set idle priority");
        }
    }
}
