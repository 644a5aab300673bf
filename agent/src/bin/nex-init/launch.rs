//! Starts the agent as a user without rights, and looks after the processes of the machine, all of which are children of
//! the first one sooner or later.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, WaitOptions};

use crate::{bounding_set, during};

/// The agent in the root file system.
const AGENT: &str = "/usr/bin/nex-agent";

/// The user and group it runs as.
const USER: u32 = 1000;

/// A started agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) pid: Pid,
    /// To its standard input.
    pub(super) socket: UnixStream,
}

/// Starts it.
///
/// # Errors
/// What the system says.
pub(super) fn start(args: &[String], env: &[(String, String)]) -> io::Result<Agent> {
    // Of this process too, which keeps what it has but executes nothing else.
    during(|| "limiting capabilities".to_owned(), bounding_set::empty())?;
    let (ours, theirs) = during(|| "a socket pair".to_owned(), UnixStream::pair())?;
    let mut command = Command::new(AGENT);
    command
        .arg("--wait-for-link")
        .args(args)
        .env_clear()
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        // With another user than root, no capabilities are left.
        .uid(USER)
        .gid(USER)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null());
    #[allow(unsafe_code, reason = "std has no safe way to do something between fork and exec")]
    // SAFETY: between fork and exec only async-signal-safe functions may be called; prctl is a system call.
    unsafe {
        command.pre_exec(|| Ok(rustix::thread::set_no_new_privs(true)?));
    }
    let child = during(|| format!("starting {AGENT}"), command.spawn())?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the agent has no process number"))?;
    Ok(Agent { pid, socket: ours })
}

impl Agent {
    /// Ends it at once.
    pub(super) fn kill(&self) -> io::Result<()> {
        Ok(rustix::process::kill_process(self.pid, Signal::KILL)?)
    }
}

/// Told when a child has ended.
///
/// # Errors
/// What the system says.
#[allow(unsafe_code, reason = "system calls without a safe wrapper")]
pub(super) fn child_signals() -> io::Result<OwnedFd> {
    let mut signals = std::mem::MaybeUninit::uninit();
    // SAFETY: the first call initialises the set the others use; no other thread exists whose mask would matter.
    let descriptor = unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, signals.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, signals.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Reaps all that have ended. Returns how the process in question has, if it is among them.
///
/// # Errors
/// What the system says.
pub(super) fn reap(signals: &OwnedFd, wanted: Option<Pid>) -> io::Result<Option<i32>> {
    // Several children may have ended with one signal, so its content says nothing.
    let mut buffer = [0; size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(signals, &mut buffer).is_ok_and(|read| read > 0) {}
    let mut ended = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if Some(pid) == wanted => ended = Some(status.as_raw()),
            Ok(Some(_)) => {}
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(ended),
            Err(error) => return Err(error.into()),
        }
    }
}
