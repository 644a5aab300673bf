//! Gives up users, groups and capabilities.

use std::io;

use rustix::io::Errno;
use rustix::process::{Gid, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::bounding_set;

/// Makes the calling thread, the only one of its process, that user and group for good.
pub(super) fn become_user(uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Gives up all capabilities, and that the calling thread or what it executes could ever have one. Allocates nothing.
pub(super) fn give_up_all() -> Result<(), Errno> {
    rustix::thread::set_no_new_privs(true)?;
    bounding_set::empty()?;
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Makes this process that user and group, with no other groups and no capabilities, if it is root.
///
/// # Errors
/// When the system refuses; the process may be half of each.
#[allow(
    unsafe_code,
    reason = "these functions of the C library change all threads, std's do not exist"
)]
pub(super) fn drop_root(uid: u32, gid: u32) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let end = rustix::process::parent_process_death_signal()?;
    let parent = rustix::process::getppid();
    // While it still may.
    bounding_set::empty()?;
    // SAFETY: they take numbers, and an empty list.
    let done = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(gid, gid, gid) == 0
            && libc::setresuid(uid, uid, uid) == 0
    };
    if !done {
        return Err(io::Error::last_os_error());
    }
    // The kernel forgets it with the change.
    if let Some(signal) = end {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        if rustix::process::getppid() != parent {
            return Ok(rustix::process::kill_process(rustix::process::getpid(), Signal::KILL)?);
        }
    }
    Ok(())
}
