//! The filter on system calls: those that the agent makes work, all others do not exist (`ENOSYS`), and those that only
//! an attack makes end the process by `SIGSYS`.
//!
//! Not to exist is what the C library, Rust's and V8 are prepared for: they try newer calls and fall back on older ones,
//! so another version of them does not end the agent for asking. What nothing in an agent has a use for, on the other
//! hand, is asked for by code that has broken out of V8, and should not get a second try. `SIGSYS` is delivered (`TRAP`)
//! rather than the process killed outright, so that it still tells on which thread, see `crash`.

mod calls;

use std::collections::BTreeMap;
use std::io;

use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use super::{ConfineError, Layer};

/// Filters all threads of this process from now on.
pub(super) fn apply() -> Result<(), ConfineError> {
    let error = |step, source: String| ConfineError::step(Layer::Seccomp, step, io::Error::other(source));
    let errno = libc::ENOSYS.unsigned_abs();
    let filters = [
        // First, since the other does not let anything be added.
        compile(calls::deadly(), SeccompAction::Allow, SeccompAction::Trap),
        compile(calls::allowed(), SeccompAction::Errno(errno), SeccompAction::Allow),
    ];
    for filter in filters {
        let filter = filter.map_err(|source| error("make the filter", source))?;
        seccompiler::apply_filter_all_threads(&filter).map_err(|source| error("filter", source.to_string()))?;
    }
    Ok(())
}

/// Why there are no filters, if that is so.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
pub(super) fn missing() -> Option<String> {
    for action in [libc::SECCOMP_RET_TRAP, libc::SECCOMP_RET_ERRNO] {
        // SAFETY: the pointer is to a live number, which is read only.
        let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
        if result != 0 {
            return Some(format!("the kernel: {}", io::Error::last_os_error()));
        }
    }
    TargetArch::try_from(std::env::consts::ARCH)
        .err()
        .map(|error| error.to_string())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(
    rules: Result<Rules, BackendError>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, String> {
    let compile = || {
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        BpfProgram::try_from(SeccompFilter::new(rules?, otherwise, then, arch)?)
    };
    compile().map_err(|error: BackendError| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn few_calls_are_allowed_and_none_of_them_is_deadly() {
        let allowed = calls::allowed().unwrap();
        assert!(allowed.len() <= 75, "{} calls", allowed.len());
        let both: Vec<_> = calls::deadly()
            .unwrap()
            .into_keys()
            .filter(|call| allowed.contains_key(call))
            .collect();
        assert_eq!(both, [libc::SYS_clone], "a thread is allowed, a process deadly");
        for filter in [calls::allowed(), calls::deadly()] {
            assert!(
                !compile(filter, SeccompAction::Allow, SeccompAction::Trap)
                    .unwrap()
                    .is_empty()
            );
        }
    }
}
