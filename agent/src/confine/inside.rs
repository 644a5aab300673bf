//! What happens in the new namespaces: PID 1 builds a root with next to nothing in it, starts the agent, and stays to wait
//! for it; the agent gives up every privilege and executes its binary again.
//!
//! All of this runs in copies of the launcher, which may have had other threads. Nothing here allocates, locks or panics.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Access, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions};

use super::failure::{Failure, Message, Step, exit};
use super::launcher;
use super::plan::{INNER_ID, Plan, Purpose, clone_tree};
use super::privileges;

/// What PID 1 and its launcher have of each other.
#[derive(Debug)]
pub(super) struct Pipes {
    /// One byte comes when the ids are mapped, and then the end when the launcher ends.
    pub(super) go: OwnedFd,
    /// For messages.
    pub(super) tell: OwnedFd,
    /// The launcher's ends.
    pub(super) outside: Outside,
}

/// The launcher's ends of the pipes.
#[derive(Debug)]
pub(super) struct Outside {
    pub(super) tell_go: OwnedFd,
    pub(super) messages: OwnedFd,
}

/// Longest the new root's file system may become, and most files in it: folders and mount points only.
const ROOT_SIZE: &std::ffi::CStr = c"256k";
const ROOT_INODES: &std::ffi::CStr = c"256";

/// The life of PID 1.
pub(super) fn first_process(plan: &Plan, pipes: &Pipes) -> ! {
    match set_up(plan, pipes).and_then(|()| start_agent(plan, pipes)) {
        Ok(agent) => reap(agent, pipes),
        Err(failure) => {
            Message::Failed(failure).send(&pipes.tell);
            exit(1)
        }
    }
}

fn set_up(plan: &Plan, pipes: &Pipes) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Failure::at(Step::Watch))?;
    // Or this process would wait for itself.
    close(&pipes.outside.tell_go);
    close(&pipes.outside.messages);
    let mut byte = [0; 1];
    match rustix::io::retry_on_intr(|| rustix::io::read(&pipes.go, &mut byte[..])) {
        Ok(1) => {}
        // The launcher gave up, and says why itself.
        _ => exit(1),
    }
    build_root(plan)?;
    // Once more: the change of ids has undone it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Failure::at(Step::Watch))?;
    if launcher::is_gone(&pipes.go) {
        exit(1);
    }
    // Nor may the agent look into this process, where it is the same user.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Failure::at(Step::Watch))?;
    // No terminal: whoever has one could type into it.
    rustix::process::setsid().map_err(Failure::at(Step::Watch))?;
    Ok(())
}

fn build_root(plan: &Plan) -> Result<(), Failure> {
    // While this process is still the user who may reach the files.
    let mut trees = [const { None }; MAX_FILES];
    if plan.files.len() > MAX_FILES {
        return Err(Failure::at(Step::OpenTree)(Errno::TOOBIG));
    }
    for (index, (file, tree)) in plan.files.iter().zip(&mut trees).enumerate() {
        if file.tree.is_none() {
            *tree = Some(clone_tree(&file.path).map_err(Failure::on(Step::OpenTree, index))?);
        }
    }
    privileges::become_user(INNER_ID, INNER_ID).map_err(Failure::at(Step::Ids))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(Failure::at(Step::PrivateMounts))?;
    let root = empty_root().map_err(Failure::at(Step::NewRoot))?;
    rustix::process::fchdir(&root).map_err(Failure::at(Step::NewRoot))?;
    for folder in &plan.folders {
        rustix::fs::mkdirat(CWD, folder.as_c_str(), Mode::from_raw_mode(0o755))
            .map_err(Failure::at(Step::MakeFolder))?;
    }
    for (index, (file, tree)) in plan.files.iter().zip(&trees).enumerate() {
        let Some(tree) = file.tree.as_ref().or(tree.as_ref()) else {
            continue;
        };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let place = rustix::fs::openat(CWD, file.relative(), flags, Mode::from_raw_mode(0o444));
        drop(place.map_err(Failure::on(Step::MakeFile, index))?);
        rustix::mount::move_mount(tree, c"", CWD, file.relative(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(Failure::on(Step::Mount, index))?;
        let kind = if file.is_device {
            // A device can be written to through a read-only mount.
            MountAttrFlags::MOUNT_ATTR_NOEXEC
        } else {
            MountAttrFlags::MOUNT_ATTR_NODEV
        };
        let attributes = kind | MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
        restrict(tree, attributes).map_err(Failure::on(Step::Restrict, index))?;
    }
    mount_proc().map_err(Failure::at(Step::MountProc))?;
    // The old root comes to lie on top of the new one, from where it is taken away.
    rustix::process::pivot_root(c".", c".").map_err(Failure::at(Step::ChangeRoot))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(Failure::at(Step::LeaveOldRoot))?;
    rustix::process::chdir(c"/").map_err(Failure::at(Step::LeaveOldRoot))?;
    restrict(&root, MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(Failure::at(Step::ReadOnly))?;
    rustix::system::sethostname(b"agent").map_err(Failure::at(Step::HostName))?;
    rustix::system::setdomainname(b"").map_err(Failure::at(Step::HostName))?;
    Ok(())
}

/// Most files a plan may have.
const MAX_FILES: usize = 64;

/// An empty file system, mounted over `/proc`: a place that every host has. What is there stays visible to the kernel,
/// which shows no new `/proc` to those who do not see one already.
fn empty_root() -> Result<OwnedFd, Errno> {
    let new = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&new, c"size", ROOT_SIZE)?;
    rustix::mount::fsconfig_set_string(&new, c"nr_inodes", ROOT_INODES)?;
    rustix::mount::fsconfig_set_string(&new, c"mode", c"755")?;
    rustix::mount::fsconfig_create(&new)?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = rustix::mount::fsmount(&new, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    rustix::mount::move_mount(&root, c"", CWD, c"/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(root)
}

/// Shows the processes of the new namespace only, of those only what the agent may look into, and nothing of the kernel.
fn mount_proc() -> Result<(), Errno> {
    rustix::mount::mount(
        c"proc",
        c"proc",
        c"proc",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY,
        c"hidepid=ptraceable,subset=pid",
    )
}

/// Takes something away from a mount.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
fn restrict(mount: &OwnedFd, attributes: MountAttrFlags) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: attributes.bits().into(),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty string, and the structure is alive and as long as we say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
fn start_agent(plan: &Plan, pipes: &Pipes) -> Result<Pid, Failure> {
    let zero: libc::c_long = 0;
    // SAFETY: a fork, after which the child makes system calls only until it executes another program or exits.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(libc::SIGCHLD),
            zero,
            zero,
            zero,
            zero,
        )
    };
    match i32::try_from(pid).ok() {
        Some(0) => {
            let failure = become_agent(plan);
            Message::Failed(failure).send(&pipes.tell);
            exit(1)
        }
        Some(pid) if pid > 0 => Pid::from_raw(pid).ok_or(Failure::at(Step::Fork)(Errno::CHILD)),
        _ => Err(Failure::at(Step::Fork)(last_error())),
    }
}

/// Turns this process into the agent. Returns only if that fails.
#[allow(unsafe_code, reason = "system calls without a safe wrapper")]
fn become_agent(plan: &Plan) -> Failure {
    if let Err(errno) = privileges::give_up_all() {
        return Failure::at(Step::Privileges)(errno);
    }
    launcher::restore_group_signals();
    if plan.purpose == Purpose::Probe {
        return match rustix::fs::access(plan.binary(), Access::EXEC_OK) {
            Ok(()) => exit(0),
            Err(errno) => Failure::on(Step::Execute, 0)(errno),
        };
    }
    // SAFETY: it takes numbers only. All but the standard streams close when the binary is executed.
    let closed = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            libc::STDERR_FILENO + 1,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if closed != 0 {
        return Failure::at(Step::Execute)(last_error());
    }
    // SAFETY: the path ends with a zero, and the lists, of such strings, with a null pointer.
    unsafe {
        libc::execve(
            plan.binary().as_ptr(),
            plan.arguments.as_ptr(),
            plan.environment.as_ptr(),
        )
    };
    Failure::on(Step::Execute, 0)(last_error())
}

/// Waits for the agent, and for orphans meanwhile, and tells the launcher how it ended.
fn reap(agent: Pid, pipes: &Pipes) -> ! {
    let_go_of_all_but(&pipes.tell);
    // It has no more to do than to wait.
    _ = privileges::give_up_all();
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => {
                Message::Ended(status.as_raw()).send(&pipes.tell);
                exit(0)
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => exit(1),
        }
    }
}

/// Closes a descriptor for good, in a process that returns to nobody who would use it.
#[allow(unsafe_code, reason = "closes a descriptor by its number")]
fn close(descriptor: &OwnedFd) {
    // SAFETY: whoever owns it is never reached in this copy of the process.
    unsafe { rustix::io::close(descriptor.as_raw_fd()) };
}

/// Closes every other descriptor: the link and the log are the agent's alone, and end with it.
#[allow(unsafe_code, reason = "closes descriptors by their numbers")]
fn let_go_of_all_but(kept: &OwnedFd) {
    let kept = kept.as_raw_fd().cast_unsigned();
    // SAFETY: nobody in this process uses the others any more.
    unsafe {
        if let Some(last) = kept.checked_sub(1) {
            libc::syscall(libc::SYS_close_range, 0, last, 0);
        }
        libc::syscall(libc::SYS_close_range, kept + 1, libc::c_uint::MAX, 0);
    }
}
