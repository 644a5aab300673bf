//! Which system calls an agent makes, and which it never makes. The lists come from tracing agents that run JavaScript and
//! WebAssembly, hibernate, give back memory, crash and end.

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::Rules;

/// Allowed whatever the arguments.
const PLAIN: &[i64] = &[
    // The link, the log, and the runtime's own descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    // What `/proc` says of the process.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_pread64,
    // Memory; V8 makes code executable.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads.
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time, chance, and the host as far as it matters.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    // V8 wants to know the version of the kernel.
    libc::SYS_uname,
];

/// Older forms of the above that the C library uses on this processor.
#[cfg(target_arch = "x86_64")]
const PLAIN_HERE: &[i64] = &[libc::SYS_dup2, libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const PLAIN_HERE: &[i64] = &[];

/// End the process.
const DEADLY: &[i64] = &[
    // Other programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    // Networks.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // Users and namespaces.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_unshare,
    libc::SYS_setns,
    // File systems.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_mknodat,
    // Parts of the kernel that are large, or known for holes.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_syslog,
    libc::SYS_acct,
    // The host itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

#[cfg(target_arch = "x86_64")]
const DEADLY_HERE: &[i64] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_mknod,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const DEADLY_HERE: &[i64] = &[];

/// `PR_SET_MEMORY_MERGE`, since Linux 6.4.
const SET_MEMORY_MERGE: i32 = 67;

/// Flags of `clone` that make namespaces.
const NEW_NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Flags of `openat` that only who writes has a use for.
const WRITING: i32 = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY;

pub(super) fn allowed() -> Result<Rules, BackendError> {
    let own = std::process::id();
    let mut rules: Rules = PLAIN.iter().chain(PLAIN_HERE).map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_openat, vec![masked(2, WRITING, libc::O_RDONLY)?]);
    rules.insert(
        libc::SYS_clone,
        vec![masked(0, libc::CLONE_THREAD | NEW_NAMESPACES, libc::CLONE_THREAD)?],
    );
    // A call may be interrupted by nobody else, and look into nobody else.
    rules.insert(libc::SYS_kill, vec![equal(0, own)?]);
    rules.insert(libc::SYS_tgkill, vec![equal(0, own)?]);
    rules.insert(libc::SYS_process_vm_readv, vec![equal(0, own)?]);
    // To ask for limits, not to set them.
    rules.insert(libc::SYS_prlimit64, vec![no_pointer(2)?]);
    rules.insert(
        libc::SYS_sched_setscheduler,
        vec![equal(1, libc::SCHED_IDLE.unsigned_abs())?],
    );
    // The runtime wakes itself through a pair.
    rules.insert(libc::SYS_socketpair, vec![equal(0, libc::AF_UNIX.unsigned_abs())?]);
    rules.insert(libc::SYS_ioctl, vec![request(1, libc::FIONBIO)?]);
    rules.insert(
        libc::SYS_fcntl,
        any(
            1,
            &[
                libc::F_GETFD,
                libc::F_SETFD,
                libc::F_GETFL,
                libc::F_SETFL,
                libc::F_DUPFD_CLOEXEC,
            ],
        )?,
    );
    rules.insert(
        libc::SYS_prctl,
        any(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME, SET_MEMORY_MERGE])?,
    );
    Ok(rules)
}

pub(super) fn deadly() -> Result<Rules, BackendError> {
    let mut rules: Rules = DEADLY
        .iter()
        .chain(DEADLY_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    rules.insert(libc::SYS_clone, vec![masked(0, libc::CLONE_THREAD, 0)?]);
    Ok(rules)
}

fn rule(
    argument: u8,
    length: SeccompCmpArgLen,
    comparison: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, BackendError> {
    let condition = SeccompCondition::new(argument, length, comparison, value)?;
    SeccompRule::new(vec![condition])
}

fn equal(argument: u8, value: u32) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
}

fn any(argument: u8, values: &[i32]) -> Result<Vec<SeccompRule>, BackendError> {
    values
        .iter()
        .map(|value| equal(argument, value.cast_unsigned()))
        .collect()
}

fn masked(argument: u8, mask: i32, value: i32) -> Result<SeccompRule, BackendError> {
    let mask = SeccompCmpOp::MaskedEq(mask.cast_unsigned().into());
    rule(argument, SeccompCmpArgLen::Dword, mask, value.cast_unsigned().into())
}

fn no_pointer(argument: u8) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}

fn request(argument: u8, value: libc::Ioctl) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value & 0xFFFF_FFFF)
}
